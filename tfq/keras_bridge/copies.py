# SPDX-License-Identifier: Apache-2.0
"""What a copy of a model keeps: the names that its user knows, and the training code of its class.

tfmot names the wrapper of layer `x` "quant_x", and tf_keras names an output after the last layer of it. The names of a
model's outputs are its interface: losses, metrics, targets and sample weights are keyed by them, and so is the
signature of the flatbuffer.

A copy of a model's graph is a plain functional model. `keep_class` makes it an instance of the original's class, so
that fit trains it in the same way: with its train_step, compute_loss, compile and the like, and its attributes. Across
the bridge, from Keras 3 to tf_keras, code cannot be kept: the bridged model is marked, and `check_own_training` raises
an error before such a model is trained in another way than its own.
"""

import functools
import inspect
import re
import types
from typing import Any

from tfq.errors import InputError
from tfq.keras_bridge.environment import import_tf_keras, model_kind

# What a class overrides to be trained or evaluated in another way.
HOOKS = (
    *("train_step", "test_step", "compute_loss", "compute_metrics", "compile", "fit", "evaluate"),
    *("make_train_function", "make_test_function"),
)
_KERAS = ("keras.", "tf_keras.", "tensorflow.")
_MARK = "_tfq_lost_training"
# Assignments to attributes in the source of a class: self.x = 1, self.x: int = 1.
_ASSIGNED = re.compile(r"\bself\.(\w+)\s*(?::[^=\n]+)?=[^=]")
# Keras sets these from outside of its classes.
_SET_BY_CALLBACKS = ("history", "stop_training", _MARK)


def own_name(layer: Any) -> str:
    """Return the name that the user gave to a layer; for tfmot's QuantizeLayer, that of the input that it quantizes."""
    if hasattr(layer, "quantize_config") and hasattr(layer, "layer"):
        return str(layer.layer.name)
    if type(layer).__name__ == "QuantizeLayer":
        # Copies of a model leave nodes behind, all of them on a layer of this name.
        before = [node.inbound_layers for node in layer.inbound_nodes]
        names = {str(item.name) for item in before if not isinstance(item, (list, tuple))}
        return names.pop() if len(names) == 1 else str(layer.name)
    return str(layer.name)


def layer_names(model: Any) -> dict[str, str]:
    """Return name in the model -> the user's name of each layer, those in models inside it included.

    tfmot's QuantizeLayer goes by the name of the input that it quantizes.
    """
    names: dict[str, str] = {}
    for layer in model.layers:
        names.setdefault(layer.name, own_name(layer))
        if hasattr(layer, "layers"):
            for name, own in layer_names(layer).items():
                names.setdefault(name, own)
    return names


def input_names(model: Any, structure: Any, tensors: list[Any]) -> tuple[str, ...]:
    """Return the names of a model's inputs in the order of `tensors`: dict keys, otherwise names of Input layers.

    Args:
        model: Of either Keras.
        structure: What its call takes: a tensor, or a list or dict of tensors.
        tensors: The same, flat.
    """
    if isinstance(structure, dict) and len(structure) == len(tensors):
        return tuple(sorted(structure))
    names = list(getattr(model, "input_names", None) or ())
    return distinct(names if len(names) == len(tensors) else [tensor.name for tensor in tensors], "input")


def output_names(model: Any, tensors: list[Any]) -> tuple[str, ...]:
    """Return the names of a model's outputs in the order of `tensors`: dict keys, otherwise names of their layers."""
    structure = getattr(model, "output", None)
    if isinstance(structure, dict) and len(structure) == len(tensors):
        return tuple(sorted(structure))
    names = flat_output_names(model)
    return distinct(names if len(names) == len(tensors) else [""] * len(tensors), "output")


def flat_output_names(model: Any) -> list[str]:
    """Return a model's own `output_names`, without what tfmot added to them."""
    names = list(getattr(model, "output_names", None) or [model.layers[-1].name])  # a Sequential of Keras 3 has none
    layers = list(getattr(model, "_output_layers", None) or ())
    if len(layers) != len(names):
        return names
    # tf_keras numbers the second output of a layer: "quant_x_1".
    return [
        own_name(layer) + name.removeprefix(layer.name) if name.startswith(layer.name) else name
        for name, layer in zip(names, layers, strict=True)
    ]


def keep_names(source: Any, copy: Any) -> None:
    """Give `copy`, a tf_keras model with the inputs and outputs of `source`, the names that these have there.

    tf_keras looks losses, metrics, targets and weights up by `output_names`. A name that several outputs of `source`
    have cannot serve for that, and is replaced as in the signature of a flatbuffer.
    """
    outputs = list(distinct(flat_output_names(source), "output"))
    if len(outputs) == len(copy.output_names) and outputs != list(copy.output_names):
        object.__setattr__(copy, "output_names", outputs)  # Keras' own would wrap the list
    inputs = list(getattr(source, "input_names", None) or [tensor.name for tensor in source.inputs])
    if len(inputs) == len(copy.input_names) and inputs != list(copy.input_names) and len(set(inputs)) == len(inputs):
        object.__setattr__(copy, "input_names", inputs)


def distinct(names: list[str], what: str) -> tuple[str, ...]:
    """Return `names` where each is there once, otherwise "what_0", "what_1" and so on."""
    if len(set(names)) == len(names) and all(names):
        return tuple(names)
    return tuple(f"{what}_{index}" for index in range(len(names)))


def own_hooks(model: Any) -> list[str]:
    """Return the names of the training methods that the model's class, or the model itself, overrides."""
    classes = [cls for cls in type(model).__mro__ if cls is not object and not cls.__module__.startswith(_KERAS)]
    own = [vars(model), *(vars(cls) for cls in classes if not cls.__module__.startswith("tfq."))]
    return [hook for hook in HOOKS if any(callable(names.get(hook)) for names in own)]


def mark_lost_training(source: Any, bridged: Any) -> str | None:
    """Mark a bridged model whose source has training code that tf_keras cannot run; return a note that says so."""
    hooks = own_hooks(source)
    if not hooks:
        return None
    setattr(bridged, _MARK, f"{type(source).__name__}.{', '.join(hooks)}")
    return f"{type(source).__name__} has its own {', '.join(hooks)}, which the tf_keras model does not have"


def check_own_training(model: Any, step: str) -> None:
    """Raise InputError, before any work, if a copy of `model` cannot be trained as the model itself.

    It came over the bridge without the training code that its class had in Keras 3, or its class has an attribute that
    `keep_class` cannot copy.
    """
    lost = getattr(model, _MARK, None)
    if not lost:
        if getattr(model, "_is_graph_network", False) and _has_own_class(model):
            nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
            _carried_attributes(model, model, {id(node.layer): node.layer for node in nodes}, step)
        return
    name, _, hooks = str(lost).partition(".")
    raise InputError(
        f"{step}: the class of the Keras 3 model, {name}, has its own {hooks}, and {step} trains a tf_keras model, "
        f"which cannot run it. Write the class for tf_keras and pass NewClass(bridged.model.input, "
        "bridged.model.output), where bridged = tfq.to_tf_keras(model). To train by the losses of compile instead, "
        "pass tf_keras.Model(bridged.model.input, bridged.model.output)",
        field="model",
        expected="training code that runs in tf_keras",
        got=str(lost),
    )


def keep_class(source: Any, copy: Any, layers: dict[int, Any], step: str) -> None:
    """Make `copy` an instance of the class of `source`, with the attributes that its user gave it.

    Metrics and optimizers among them are copied, variables too; a layer becomes that of `copy`. What Keras itself sets,
    the state of compile included, is left out.

    Args:
        source: A functional or sequential tf_keras model.
        copy: A tf_keras model of the same graph; changed in place.
        layers: id of a layer of `source` -> the layer of `copy`.
        step: The step that errors name.

    Raises:
        InputError: An attribute refers to a layer or a tensor that `copy` does not have.
    """
    if not _has_own_class(source):
        return
    attributes = _carried_attributes(source, copy, layers, step)
    _drop_attributes(copy)
    # Keras' own __setattr__ would track it.
    object.__setattr__(copy, "__class__", type(source))
    for name, value in attributes.items():
        setattr(copy, name, value)


def _has_own_class(model: Any) -> bool:
    is_own = not type(model).__module__.startswith(_KERAS)
    return model_kind(model) == "tf_keras" and (is_own or bool(own_hooks(model)))


def _carried_attributes(source: Any, copy: Any, layers: dict[int, Any], step: str) -> dict[str, Any]:
    where = f"{step}: {type(source).__name__}"
    return {
        name: _carried(value, source, copy, layers, f"{where}.{name}")
        for name, value in _user_attributes(source).items()
    }


def _user_attributes(model: Any) -> dict[str, Any]:
    known = _keras_attributes()
    return {name: value for name, value in vars(model).items() if name not in known or name in HOOKS}


@functools.cache
def _keras_attributes() -> frozenset[str]:
    """Names of the attributes that Keras and TensorFlow set in a model."""
    tf_keras = import_tf_keras()
    x = tf_keras.Input((1,), name="probe")
    probes = [tf_keras.Model(x, x), tf_keras.Sequential([tf_keras.layers.InputLayer((1,))])]
    names = {name for probe in probes for name in vars(probe)}
    for cls in {cls for probe in probes for cls in type(probe).__mro__ if cls is not object}:
        names.update(_ASSIGNED.findall(inspect.getsource(cls)))
    return frozenset(names.union(_SET_BY_CALLBACKS))


def _drop_attributes(copy: Any) -> None:
    """Take out what a constructor of the user's class set when tf_keras cloned the model."""
    for name, value in _user_attributes(copy).items():
        delattr(copy, name)
        # Keras leaves a metric in this list when its attribute goes.
        copy._metrics = [metric for metric in copy._metrics if metric is not value]


def _carried(value: Any, source: Any, copy: Any, layers: dict[int, Any], where: str) -> Any:
    """Return the value of an attribute of `source` for `copy`."""
    import tensorflow as tf

    tf_keras = import_tf_keras()

    def inner(item: Any) -> Any:
        return _carried(item, source, copy, layers, where)

    if isinstance(value, dict):
        return {key: inner(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return (tuple if isinstance(value, tuple) else list)(inner(item) for item in value)
    if isinstance(value, types.MethodType) and value.__self__ is source:
        return types.MethodType(value.__func__, copy)
    if isinstance(value, (tf_keras.metrics.Metric, tf_keras.optimizers.Optimizer)):
        return type(value).from_config(value.get_config())
    if id(value) in layers:
        return layers[id(value)]
    if isinstance(value, tf.Variable) and not any(
        value is weight for layer in source.layers for weight in layer.weights
    ):
        return tf.Variable(value, trainable=value.trainable, name=value.name.partition(":")[0])
    if isinstance(value, (tf_keras.layers.Layer, tf.Variable)) or hasattr(value, "_keras_history"):
        raise InputError(
            f"{where} refers to {getattr(value, 'name', value)!r}, which a compressed copy of the model does not have: "
            "only layers of the model's graph can be kept. Use it from the function `fit` instead",
            field="model",
            expected="attributes that a copy of the model can have",
            got=getattr(value, "name", None),
        )
    return value

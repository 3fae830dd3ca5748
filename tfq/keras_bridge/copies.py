# SPDX-License-Identifier: Apache-2.0
"""Keep the names that the user knows, and the training code of a model's class, in a copy of the model.

tfmot names the wrapper of layer `x` "quant_x", and tf_keras names an output after its last layer. The output names of a
model are its interface: losses, metrics, targets and sample weights refer to them, and so does the flatbuffer's
signature.

A copy of a model's graph is an ordinary functional model. `keep_class` makes it an instance of the original's class, so
that fit trains it in the same way: with its train_step, compute_loss, compile etc., and its attributes. From Keras 3 to
tf_keras, code cannot be kept: the bridged model is marked, and `check_own_training` raises an error before such a model
is trained differently from the user's model.
"""

import functools
import inspect
import re
import types
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.keras_bridge.environment import import_tf_keras, model_kind

# Methods that a class overrides to change its training or evaluation.
HOOKS = (
    *("train_step", "test_step", "compute_loss", "compute_metrics", "compile", "fit", "evaluate"),
    *("make_train_function", "make_test_function"),
)
_KERAS = ("keras.", "tf_keras.", "tensorflow.")
_MARK = "_tfq_lost_training"
# Matches assignments to attributes in a class's source: self.x = 1, self.x: int = 1.
_ASSIGNED = re.compile(r"\bself\.(\w+)\s*(?::[^=\n]+)?=[^=]")
# Attributes that Keras sets from outside of the class.
_SET_BY_CALLBACKS = ("history", "stop_training", _MARK)


def own_name(layer: Any) -> str:
    """Return the user's name of a layer. For tfmot's QuantizeLayer, return the name of the quantized input."""
    if hasattr(layer, "quantize_config") and hasattr(layer, "layer"):
        return str(layer.layer.name)
    if type(layer).__name__ == "QuantizeLayer":
        # Earlier copies of the model have left nodes, which all come from a layer of the same name.
        inbound_layers = [node.inbound_layers for node in layer.inbound_nodes]
        names = {str(item.name) for item in inbound_layers if not isinstance(item, (list, tuple))}
        return names.pop() if len(names) == 1 else str(layer.name)
    return str(layer.name)


def layer_names(model: Any) -> dict[str, str]:
    """Return a dict: name in the model -> the user's name of each layer, including layers of inner models.

    tfmot's QuantizeLayer has the name of the input that it quantizes.
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
        model: A model of either Keras.
        structure: The argument of its call: a tensor, or a list or dict of tensors.
        tensors: The flat list of these tensors.
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
    """Return a model's `output_names`, without the prefixes that tfmot added."""
    # A Sequential of Keras 3 has no output_names.
    names = list(getattr(model, "output_names", None) or [model.layers[-1].name])
    layers = list(getattr(model, "_output_layers", None) or ())
    if len(layers) != len(names):
        return names
    # tf_keras appends a number to the second output of a layer: "quant_x_1".
    return [
        own_name(layer) + name.removeprefix(layer.name) if name.startswith(layer.name) else name
        for name, layer in zip(names, layers, strict=True)
    ]


def keep_names(source: Any, copy: Any) -> None:
    """Give the inputs and outputs of `copy`, a tf_keras model, the names that they have in `source`.

    tf_keras looks losses, metrics, targets and weights up by `output_names`. If several outputs of `source` have the
    same name, the names are replaced as in the signature of a flatbuffer (see `distinct`).
    """
    outputs = list(distinct(flat_output_names(source), "output"))
    if len(outputs) == len(copy.output_names) and outputs != list(copy.output_names):
        object.__setattr__(copy, "output_names", outputs)  # Keras' __setattr__ would wrap the list
    inputs = list(getattr(source, "input_names", None) or [tensor.name for tensor in source.inputs])
    if len(inputs) == len(copy.input_names) and inputs != list(copy.input_names) and len(set(inputs)) == len(inputs):
        object.__setattr__(copy, "input_names", inputs)


def is_adapted(layer: Any) -> bool:
    """Check for a Normalization with statistics from `adapt`. It reads them when built, and ignores later weights."""
    return type(layer) is import_tf_keras().layers.Normalization and layer.input_mean is None


def full_config(layer: Any) -> dict[str, Any]:
    """Return the layer's config, with statistics from `adapt` as constants, so that all later clones keep them."""
    config: dict[str, Any] = layer.get_config()
    if is_adapted(layer):
        mean, variance = (np.asarray(value) for value in (layer.adapt_mean, layer.adapt_variance))
        config |= {"mean": mean.tolist(), "variance": variance.tolist()}
    return config


def distinct(names: list[str], what: str) -> tuple[str, ...]:
    """Return `names` if all are different and not empty, otherwise "what_0", "what_1" and so on."""
    if len(set(names)) == len(names) and all(names):
        return tuple(names)
    return tuple(f"{what}_{index}" for index in range(len(names)))


def overridden_hooks(model: Any) -> list[str]:
    """Return the names of the training methods that the model's class, or the model, overrides."""
    classes = [cls for cls in type(model).__mro__ if cls is not object and not cls.__module__.startswith(_KERAS)]
    own = [vars(model), *(vars(cls) for cls in classes if not cls.__module__.startswith("tfq."))]
    return [hook for hook in HOOKS if any(callable(names.get(hook)) for names in own)]


def mark_lost_training(source: Any, bridged: Any) -> str | None:
    """Mark a bridged model if its source has training code that tf_keras cannot run, and return a note about it."""
    hooks = overridden_hooks(source)
    if not hooks:
        return None
    setattr(bridged, _MARK, f"{type(source).__name__}.{', '.join(hooks)}")
    return f"{type(source).__name__} overrides {', '.join(hooks)}, which the tf_keras model does not have"


def check_own_training(model: Any, step: str) -> None:
    """Raise InputError, before any work, if a copy of `model` cannot be trained like the model itself.

    That is the case if the model was bridged without the training code of its Keras 3 class, or if its class has an
    attribute that `keep_class` cannot copy.
    """
    lost_training = getattr(model, _MARK, None)
    if not lost_training:
        if getattr(model, "_is_graph_network", False) and _has_own_class(model):
            nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
            _copied_attributes(model, model, {id(node.layer): node.layer for node in nodes}, step)
        return
    name, _, hooks = str(lost_training).partition(".")
    raise InputError(
        f"{step}: the class of the Keras 3 model, {name}, overrides {hooks}. {step} trains a tf_keras model, which "
        "cannot run this code. Write the class for tf_keras and pass NewClass(bridged.model.input, "
        "bridged.model.output), where bridged = tfq.to_tf_keras(model). To train with the losses of compile instead, "
        "pass tf_keras.Model(bridged.model.input, bridged.model.output)",
        field="model",
        expected="training code that runs in tf_keras",
        got=str(lost_training),
        limit="training-code",
    )


def keep_class(source: Any, copy: Any, layers: dict[int, Any], step: str) -> None:
    """Make `copy` an instance of the class of `source`, with the attributes that the user set.

    Metrics, optimizers and variables among the attributes are copied. A layer is replaced by the layer of `copy`.
    Attributes that Keras sets, such as the state of compile, are left out.

    Args:
        source: A functional or sequential tf_keras model.
        copy: A tf_keras model of the same graph; it is changed in place.
        layers: id of a layer of `source` -> the layer of `copy`.
        step: The step that errors name.

    Raises:
        InputError: An attribute refers to a layer or a tensor that `copy` does not have.
    """
    if not _has_own_class(source):
        return
    attributes = _copied_attributes(source, copy, layers, step)
    _drop_attributes(copy)
    # Keras' __setattr__ would track the attribute.
    object.__setattr__(copy, "__class__", type(source))
    for name, value in attributes.items():
        setattr(copy, name, value)


def _has_own_class(model: Any) -> bool:
    is_own = not type(model).__module__.startswith(_KERAS)
    return model_kind(model) == "tf_keras" and (is_own or bool(overridden_hooks(model)))


def _copied_attributes(source: Any, copy: Any, layers: dict[int, Any], step: str) -> dict[str, Any]:
    where = f"{step}: {type(source).__name__}"
    return {
        name: _copied_value(value, source, copy, layers, f"{where}.{name}")
        for name, value in _user_attributes(source).items()
    }


def _user_attributes(model: Any) -> dict[str, Any]:
    known = _keras_attributes()
    return {name: value for name, value in vars(model).items() if name not in known or name in HOOKS}


@functools.cache
def _keras_attributes() -> frozenset[str]:
    """Return the names of the attributes that Keras and TensorFlow set in a model."""
    tf_keras = import_tf_keras()
    x = tf_keras.Input((1,), name="probe")
    probes = [tf_keras.Model(x, x), tf_keras.Sequential([tf_keras.layers.InputLayer((1,))])]
    names = {name for probe in probes for name in vars(probe)}
    for cls in {cls for probe in probes for cls in type(probe).__mro__ if cls is not object}:
        names.update(_ASSIGNED.findall(inspect.getsource(cls)))
    return frozenset(names.union(_SET_BY_CALLBACKS))


def _drop_attributes(copy: Any) -> None:
    """Remove the attributes that a constructor of the user's class set when tf_keras cloned the model."""
    for name, value in _user_attributes(copy).items():
        delattr(copy, name)
        # Keras does not remove a metric from this list when its attribute is deleted.
        copy._metrics = [metric for metric in copy._metrics if metric is not value]


def _copied_value(value: Any, source: Any, copy: Any, layers: dict[int, Any], where: str) -> Any:
    """Return the value for `copy` of an attribute of `source`."""
    import tensorflow as tf

    tf_keras = import_tf_keras()

    def inner(item: Any) -> Any:
        return _copied_value(item, source, copy, layers, where)

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
            "only layers of the model's graph can be copied. Use it in the function `fit` instead",
            field="model",
            expected="attributes that a copy of the model can have",
            got=getattr(value, "name", None),
            limit="copied-attributes",
        )
    return value

# SPDX-License-Identifier: Apache-2.0
"""Traverse, clone and train tf_keras models, without changing the original."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfq import progress
from tfq.compression._tfmot.tfmot_symbols import is_graph_model
from tfq.conversion.tracing import reject_stateful
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_tf_keras, require_tf_keras
from tfq.keras_bridge.copies import full_config, is_adapted, keep_names
from tfq.keras_bridge.precision import config_in_float32, float32_inputs
from tfq.keras_bridge.strategies import synchronize
from tfq.typing import Fit


def require_graph_model(model: Any, context: str) -> None:
    """Raise InputError unless `model` is a built functional or sequential tf_keras model without a stateful layer."""
    require_tf_keras(model, context)
    if is_graph_model(model):
        reject_stateful(model)
        return
    if isinstance(model, import_tf_keras().Sequential):
        raise InputError(
            f"{context}: the sequential model {model.name!r} is not built: set input_shape in its first layer",
            field="model",
            expected="a built model",
            got=model.name,
            limit="never-built",
        )
    raise InputError(
        f"{context} supports functional and sequential models, but {model.name!r} is a subclassed model "
        f"({type(model).__name__}), whose graph is not known: build it as tf_keras.Model(inputs, outputs)",
        field="model",
        expected="a functional or sequential model",
        got=type(model).__name__,
        limit="no-graph",
    )


def named_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, layer) of every layer, in order. A layer of a nested model is "inner/layer"."""
    for layer in model.layers:
        if hasattr(layer, "layers") and hasattr(layer, "outputs"):
            yield from ((f"{layer.name}/{name}", inner) for name, inner in named_layers(layer))
        else:
            yield layer.name, layer


def reasons_by_layer(model: Any, reason: Callable[[Any], str | None]) -> dict[str, str | None]:
    """Return name -> reason(layer) of every layer, in order.

    A layer that occurs under several names is evaluated once. The reason of its other names is that they refer to the
    first one.
    """
    first_names: dict[int, str] = {}
    reasons = {}
    for name, layer in named_layers(model):
        first_name = first_names.setdefault(id(layer), name)
        reasons[name] = reason(layer) if first_name == name else f"it is the same layer as {first_name}"
    return reasons


def cloned(
    model: Any, wrap: Callable[[Any, Any], Any] | None = None, *, float32: bool = False
) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return a copy of a model with new layers and the same weights.

    Args:
        model: The model.
        wrap: wrap(old layer, new layer) returns a layer to use instead of the new one. It must have the same weights.
        float32: Whether layers and inputs of other float types become float32.

    Returns:
        (clone, pairs of an old layer and its new one).
    """
    tf_keras = import_tf_keras()
    pairs: list[tuple[Any, Any]] = []
    # A layer that several nested models share remains one layer.
    built: dict[int, Any] = {}

    def clone_layer(layer: Any) -> Any:
        if id(layer) not in built:
            built[id(layer)] = new_layer(layer)
        return built[id(layer)]

    def new_layer(layer: Any) -> Any:
        if isinstance(layer, tf_keras.Model):
            return clone_model(layer)
        config = full_config(layer)
        new = layer.__class__.from_config(config_in_float32(config) if float32 else config)
        new = wrap(layer, new) if wrap else new
        pairs.append((layer, new))
        return new

    def clone_model(original: Any) -> Any:
        inputs = float32_inputs(original) if float32 else None
        return tf_keras.models.clone_model(original, input_tensors=inputs, clone_function=clone_layer)

    clone = clone_model(model)
    for old, new in pairs:
        if not is_adapted(old):
            new.set_weights(old.get_weights())
    keep_names(model, clone)
    return clone, pairs


def reconnected(model: Any, replace: Callable[[Any], list[Any]]) -> Any:
    """Return a functional model with the graph of `model`, in which other layers are called.

    Weights are not copied. The calls of a layer remain in order.

    Args:
        model: A functional model whose layers are not connected to any other model, as returned by `cloned`.
        replace: replace(layer) returns the layers to call instead, one after the other. Layers that follow an Input are
            called with a new Input of the same name.

    Raises:
        TfqError: A layer is also called on a tensor that is not in the model.
    """
    import tensorflow as tf

    tf_keras = import_tf_keras()
    inputs: dict[int, Any] = {}
    tensors: dict[int, Any] = {}

    def called(layers: list[Any], args: Any, kwargs: Any) -> Any:
        first, *others = layers
        result = first(*args, **kwargs)
        for layer in others:
            result = layer(result)
        return result

    waiting: list[tuple[list[Any], list[Any]]] = []
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.InputLayer):
            new = inputs[id(layer.output)] = type(layer)(**layer.get_config()).output
            others = replace(layer)
            tensors[id(layer.output)] = called(others, (new,), {}) if others else new
        else:
            waiting.append((replace(layer), list(layer.inbound_nodes)))
    while waiting:
        known = len(tensors)
        for layers, nodes in waiting:
            while nodes and all(id(tensor) in tensors for tensor in nodes[0].keras_inputs):
                node = nodes.pop(0)
                args, kwargs = tf.nest.map_structure(
                    lambda value: tensors.get(id(value), value), (node.call_args, node.call_kwargs)
                )
                outputs = tf.nest.flatten(called(layers, args, kwargs))
                tensors.update(zip(map(id, tf.nest.flatten(node.outputs)), outputs, strict=True))
        waiting = [item for item in waiting if item[1]]
        if waiting and len(tensors) == known:
            names = list(dict.fromkeys(nodes[0].layer.name for _, nodes in waiting))
            raise TfqError(
                f"{model.name!r}: the inputs of {', '.join(names)} do not all come from this model: its layers are "
                "also called in another model. Pass a copy (tf_keras.models.clone_model)",
                field="model",
                expected="layers that no other model calls",
                got=tuple(names),
            )
    return tf_keras.Model(
        tf.nest.map_structure(lambda tensor: inputs[id(tensor)], model.input),
        tf.nest.map_structure(lambda tensor: tensors[id(tensor)], model.output),
        name=model.name,
    )


def run_fit(fit: Fit, model: Any, callbacks: list[Any]) -> None:
    """Call the user's training function, with the progress display of tfq hidden.

    Afterwards, all replicas of a tf.distribute strategy have the same BatchNormalization statistics.
    """
    logger = logging.getLogger("tensorflow")
    logger.addFilter(_is_no_advice)
    try:
        with progress.stage("training"), progress.hidden():
            fit(model, callbacks)
        synchronize(model)
    finally:
        logger.removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Return False for tf_keras' warning about slow callbacks, which compile in their first step here."""
    return "is slow compared to the batch time" not in record.getMessage()


def fit_with(fit: Fit, model: Any, callback: Any, context: str) -> None:
    """Call fit(model, [callback]), and check that the callback counted training steps.

    Args:
        fit: The user's training function.
        model: The model to train in place.
        callback: A callback whose attribute `steps` counts training steps.
        context: Start of the error message.

    Raises:
        TfqError: `fit` did not train the model, or did not pass on the callback.
    """
    run_fit(fit, model, [callback])
    if callback.steps:
        return
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    if iterations is not None and int(iterations.numpy()):
        raise TfqError(
            f"{context}: fit did not pass on the callbacks that it received: call model.fit(..., callbacks=callbacks)",
            field="fit",
            expected="a fit that passes on the callbacks",
        )
    raise TfqError(
        f"{context}: fit did not train the model that it received (no training step was counted): it must compile that "
        "model and call its fit with the callbacks, for at least one step",
        field="fit",
        expected="a fit that trains the model",
    )


def steps_of_training(params: dict[str, Any], step: str, setting: str, fraction: str) -> int:
    """Return the number of training steps, from the `params` of a Keras callback.

    Args:
        params: The callback's params.
        step: The compression step whose config needs the number.
        setting: The config field that is -1, which stands for a fraction of the training steps.
        fraction: That fraction in words, for the error message.

    Raises:
        InputError: Keras does not know the number of steps in advance.
    """
    epochs, steps = params.get("epochs"), params.get("steps")
    if not epochs or not steps:
        raise InputError(
            f"{step}: {setting} is -1 ({fraction} of the training), but the number of training steps is not known in "
            f"advance: set compression.{step}.{setting}, or pass steps_per_epoch to model.fit",
            field=f"compression.{step}.{setting}",
            expected="a step",
            got=-1,
        )
    return int(epochs * steps)


def check_finite(model: Any, after: str) -> None:
    """Raise TfqError if weights are NaN or infinite, with the names of their layers.

    Args:
        model: The model.
        after: The last operation on the model, for the error message.
    """
    bad = [
        name
        for name, layer in named_layers(model)
        if any(not np.isfinite(weight).all() for weight in layer.get_weights() if weight.dtype.kind == "f")
    ]
    if bad:
        raise TfqError(
            f"{model.name!r}: after {after}, weights of {', '.join(bad)} are NaN or infinite: lower the learning rate",
            field="model",
            expected="finite weights",
            got=tuple(bad),
        )

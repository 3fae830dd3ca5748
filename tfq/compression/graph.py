# SPDX-License-Identifier: Apache-2.0
"""Walking, cloning and training tf_keras models, without touching the one that was given."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfq import progress
from tfq.compression._tfmot.tfmot_symbols import is_graph_model
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_tf_keras, require_tf_keras
from tfq.keras_bridge.copies import keep_names
from tfq.typing import Fit

# The user's own training loop: fit(model, callbacks) compiles the model and trains it in place.


def require_graph_model(model: Any, what: str) -> None:
    """Raises InputError unless `model` is a built functional or sequential tf_keras model."""
    require_tf_keras(model, what)
    if is_graph_model(model):
        return
    if isinstance(model, import_tf_keras().Sequential):
        raise InputError(
            f"{what}: the sequential model {model.name!r} is not built: give its first layer an input_shape",
            field="model",
            expected="a built model",
            got=model.name,
        )
    raise InputError(
        f"{what} takes functional and sequential models, and {model.name!r} is a subclass ({type(model).__name__}) "
        "whose graph nobody can see: build it as tf_keras.Model(inputs, outputs)",
        field="model",
        expected="a functional or sequential model",
        got=type(model).__name__,
    )


def named_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, layer) of every layer but models, in order; a layer of a model inside the model is "inner/layer"."""
    for layer in model.layers:
        if hasattr(layer, "layers") and hasattr(layer, "outputs"):
            yield from ((f"{layer.name}/{name}", inner) for name, inner in named_layers(layer))
        else:
            yield layer.name, layer


def reasons_by_layer(model: Any, why_not: Callable[[Any], str | None]) -> dict[str, str | None]:
    """Name -> why_not(layer) of every layer, in order; a layer that was named before is told to be that one."""
    first: dict[int, str] = {}
    reasons = {}
    for name, layer in named_layers(model):
        known = first.setdefault(id(layer), name)
        reasons[name] = why_not(layer) if known == name else f"it is {known}, called again"
    return reasons


def cloned(model: Any, wrap: Callable[[Any, Any], Any] | None = None) -> tuple[Any, list[tuple[Any, Any]]]:
    """(clone, pairs): a model of new layers with the weights of `model`, and each old layer with its new one.

    wrap(old layer, new layer) gives the layer that takes the new one's place; its get_weights must stay the same.
    """
    tf_keras = import_tf_keras()
    pairs: list[tuple[Any, Any]] = []
    # A layer that several models inside the model share stays one layer.
    built: dict[int, Any] = {}

    def clone_layer(layer: Any) -> Any:
        if id(layer) not in built:
            built[id(layer)] = new_layer(layer)
        return built[id(layer)]

    def new_layer(layer: Any) -> Any:
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=clone_layer)
        new = layer.__class__.from_config(_config(layer))
        new = wrap(layer, new) if wrap else new
        pairs.append((layer, new))
        return new

    clone = tf_keras.models.clone_model(model, clone_function=clone_layer)
    for old, new in pairs:
        if not _is_adapted(old):
            new.set_weights(old.get_weights())
    keep_names(model, clone)
    return clone, pairs


def _is_adapted(layer: Any) -> bool:
    """A Normalization reads the statistics of `adapt` when it is built: weights that are set later change nothing."""
    return type(layer) is import_tf_keras().layers.Normalization and layer.input_mean is None


def _config(layer: Any) -> dict[str, Any]:
    """As the layer gives it; with the statistics of `adapt` as constants, which every other clone keeps as well."""
    config: dict[str, Any] = layer.get_config()
    if _is_adapted(layer):
        mean, variance = (np.asarray(value) for value in (layer.adapt_mean, layer.adapt_variance))
        config |= {"mean": mean.tolist(), "variance": variance.tolist()}
    return config


def run_fit(fit: Fit, model: Any, callbacks: list[Any]) -> None:
    """Call `fit`, the user's training loop. Its own progress bars are the only ones on the screen."""
    logger = logging.getLogger("tensorflow")
    logger.addFilter(_is_no_advice)
    try:
        with progress.stage("training"), progress.hidden():
            fit(model, callbacks)
    finally:
        logger.removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Return False for tf_keras' advice that a callback is slow: those of tfmot compile in their first step."""
    return "is slow compared to the batch time" not in record.getMessage()


def fit_with(fit: Fit, model: Any, callback: Any, what: str) -> None:
    """fit(model, [callback]), after which callback.steps says how many steps there were.

    Raises TfqError, beginning with `what`, where there was none: fit did not train, or did not pass the callback on.
    """
    run_fit(fit, model, [callback])
    if callback.steps:
        return
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    if iterations is not None and int(iterations.numpy()):
        raise TfqError(
            f"{what}: fit did not pass on the callbacks that it was given: model.fit(..., callbacks=callbacks)",
            field="fit",
            expected="a fit that passes on the callbacks",
        )
    raise TfqError(
        f"{what}: fit did not train the model that it was given (no step was counted): it must compile that model "
        "and call its fit with the callbacks, for at least one step",
        field="fit",
        expected="a fit that trains the model",
    )


def steps_of_training(params: dict[str, Any], step: str, setting: str, share: str) -> int:
    """The steps of a training that Keras describes by a callback's `params`.

    Raises InputError where nobody knows them beforehand, though config `setting` of `step` is -1: a share of them.
    """
    epochs, steps = params.get("epochs"), params.get("steps")
    if not epochs or not steps:
        raise InputError(
            f"{step}: {setting} is -1 ({share} of the training), and the length of this training is not known "
            f"beforehand: set {setting} (--{step}.{setting}), or give fit a steps_per_epoch",
            field=f"compression.{step}.{setting}",
            expected="a step",
            got=-1,
        )
    return int(epochs * steps)


def check_finite(model: Any, after: str) -> None:
    """Raises TfqError naming each layer with a NaN or infinite weight; `after` says what was done last."""
    bad = [
        name
        for name, layer in named_layers(model)
        if any(not np.isfinite(weight).all() for weight in layer.get_weights() if weight.dtype.kind == "f")
    ]
    if bad:
        raise TfqError(
            f"{model.name!r}: after {after}, {', '.join(bad)} hold(s) weights that are NaN or infinite: "
            "lower the learning rate",
            field="model",
            expected="finite weights",
            got=tuple(bad),
        )

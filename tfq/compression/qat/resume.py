# SPDX-License-Identifier: Apache-2.0
"""Continue the training of a quantization-aware model, of tfq or of unmodified tfmot, with its ranges and weights."""

from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.gate import random_inputs
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_tf_keras
from tfq.keras_bridge.copies import keep_names
from tfq.keras_bridge.weights import short_name
from tfq.keras_bridge.wrapped import QUANTIZED, computed_weights, is_cluster_preserving, wrapper_kinds

# Moving averages continue as after this number of updates, because a file does not contain the real one.
UPDATES = 1000
# The range of an activation before any training, in tfmot.
_INITIAL = (-6.0, 6.0)


def is_quantization_aware(model: Any) -> bool:
    """Check whether a tf_keras model has fake quantization.

    Raises:
        InputError: It also has wrappers of tfmot's pruning or clustering, or preserves clusters by tfmot's scheme.
    """
    kinds = wrapper_kinds(model)
    if QUANTIZED not in kinds:
        return False
    if len(kinds) > 1:
        raise InputError(
            f"qat: {model.name!r} has fake quantization and other wrappers of tfmot ({', '.join(sorted(kinds))}). "
            "Remove them first (strip_pruning, strip_clustering)",
            field="model",
            expected="a model with one kind of wrapper",
            got=tuple(sorted(kinds)),
            limit="qat-resume",
        )
    if is_cluster_preserving(model):
        raise InputError(
            f"qat: {model.name!r} preserves clusters by tfmot's scheme, whose training tfq cannot continue. Convert "
            "it, or call tfq.cluster, which removes the fake quantization, and then tfq.qat",
            field="model",
            expected="a model without tfmot's cluster preserving quantization",
            got=model.name,
            limit="qat-resume",
        )
    return True


def has_ranges(model: Any) -> bool:
    """Check whether the activation ranges of a quantization-aware model were calibrated or trained."""
    places = tfmot_symbols.activation_quantizers(model)
    return any(tfmot_symbols.ends_of(pair) != _INITIAL for place in places for pair in place.ranges)


def copied(model: Any) -> Any:
    """Return a copy of a quantization-aware model with the same weights, ranges and outputs.

    The caller provides the scope in which tfmot's classes are found.

    Raises:
        TfqError: The outputs of the copy differ.
    """
    pairs: list[tuple[Any, Any]] = []

    def copy_layer(layer: Any) -> Any:
        new = type(layer).from_config(layer.get_config())
        pairs.append((layer, new))
        return new

    result = import_tf_keras().models.clone_model(model, clone_function=copy_layer)
    for old, new in pairs:
        _copy_variables(old, new)
    keep_names(model, result)
    _check_same_outputs(model, result)
    return result


def _copy_variables(old: Any, new: Any) -> None:
    """Copy variables by name, because tfmot's wrappers list them in another order after loading."""
    values = computed_weights(old)
    sources: dict[tuple[str, tuple[int, ...]], list[Any]] = {}
    for variable in _variables(old):
        sources.setdefault((short_name(variable), tuple(variable.shape)), []).append(variable)
    for variable in _variables(new):
        same = sources.get((short_name(variable), tuple(variable.shape)))
        if not same:
            raise TfqError(
                f"qat: the copy of layer {old.name!r} has a variable {short_name(variable)}, which the model lacks",
                field="model",
                got=old.name,
            )
        source = same.pop(0)
        variable.assign(values.get(id(source), np.asarray(source)))


def _variables(layer: Any) -> list[Any]:
    inner = tfmot_symbols.wrapped(layer)
    return list({id(variable): variable for variable in (*layer.weights, *inner.weights)}.values())


def _check_same_outputs(model: Any, copy: Any) -> None:
    import tensorflow as tf

    inputs = random_inputs(model)
    fed = inputs if len(inputs) > 1 else inputs[0]
    expected, got = (tf.nest.flatten(item(fed, training=False)) for item in (model, copy))
    for index, (old, new) in enumerate(zip(expected, got, strict=True)):
        if not np.array_equal(old, new, equal_nan=True):
            raise TfqError(
                f"qat: the copy of {model.name!r} for training computes another output {index}. get_config() of custom "
                "layers must be complete",
                field="model",
                expected="equal outputs",
                got=float(np.max(np.abs(np.asarray(old, np.float64) - new), initial=0.0)),
            )

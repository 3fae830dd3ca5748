# SPDX-License-Identifier: Apache-2.0
"""Ranges and biases that are what the flatbuffer can hold, so that the QAT model rounds as the flatbuffer will.

A range must have zero as one of its codes. [-1, 1] has it between two: TensorFlow's kernel takes one of them, the
converter the other. A bias in a flatbuffer is a 32-bit integer in steps of input_scale * weight_scale, far finer than
the output's. The half step that rounding moves it by shows in one code of some hundreds of a layer; but each such code
moves others behind it, and at the end of a deep model the flatbuffer has another noise than the QAT model.
Sources: FakeQuantWithMinMaxVars; TFLite 8-bit quantization specification.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat.layer_facts import kind, passes_on
from tfq.compression.qat.ranges import unite_ranges

_STEPS = 255
# Of a code; float32 errs by less than a thousandth of it.
_BETWEEN = 1e-3
# Symmetric, narrow range.
_WEIGHT_STEPS = 127


def round_to_flatbuffer(model: Any) -> None:
    """At the end of training: unites and moves ranges, and then the biases that depend on them."""
    unite_ranges(model)
    round_ranges(model)
    round_biases(model)


def round_ranges(model: Any) -> None:
    """Moves learned ranges of activations in a QAT model to what fake quantization makes of them already.

    Those alone whose zero is in the middle between two codes: there, rounding errors tell which one it takes.
    """
    for place in tfmot_symbols.activation_quantizers(model):
        for variables in place.ranges:
            low, high = (np.float32(variables[end].numpy()) for end in ("min_var", "max_var"))
            scale = (high - low) / np.float32(_STEPS)
            if not scale > 0 or abs((-low / scale) % 1 - 0.5) > _BETWEEN:
                continue
            # As the kernel has it, in float32, a half up.
            below = np.clip(np.floor(-low / scale + np.float32(0.5)), 0, _STEPS)
            tfmot_symbols.assign_ends(variables, -below * scale, (_STEPS - below) * scale)


def round_biases(model: Any) -> int:
    """Moves each bias of a QAT model to the nearest whole step of its accumulator; gives of how many layers.

    model: with ranges that will not change any more; changed in place. What a BatchNormalization (a Rescaling with one
    factor) behind the kernel makes of the bias counts, for the flatbuffer has it folded: then beta moves, or the moving
    mean where there is no beta. A layer whose input has a scale that nobody knows here keeps what it has.
    """
    bounds = {name: _bound(variables) for name, _, _, variables in tfmot_symbols.weight_ranges(model)}
    return sum(_round(layer, bounds.get(layer.name)) for layer in model.layers)


def _round(layer: Any, bound: NDArray | None) -> bool:
    inner = tfmot_symbols.wrapped(layer)
    if kind(inner) == "ConvolvedBatchNormalization":
        bound, after = np.ones(1), inner
    elif bound is not None:
        after = _folded(layer)
    if bound is None or (input_step := _input_step(layer)) is None:
        return False
    own = np.asarray(inner.bias, np.float64) if getattr(inner, "use_bias", False) else np.zeros(1)
    factor, offset = _affine(after)
    total = own * factor + offset
    step = input_step * bound / _WEIGHT_STEPS * np.abs(factor)
    # A factor of zero leaves nothing to round: the whole channel is its offset.
    rounded = np.where(step > 0, np.rint(total / np.where(step > 0, step, 1.0)) * step, total)
    return _move(inner, after, rounded - total, factor)


def _move(inner: Any, after: Any, by: NDArray, factor: NDArray) -> bool:
    """Adds `by` to the folded bias, wherever it can be added; whether it could."""
    if hasattr(after, "moving_variance"):
        if after.center:
            after.beta.assign_add(np.broadcast_to(by, after.beta.shape))
        else:
            by = np.broadcast_to(by / np.where(factor == 0, np.inf, factor), after.moving_mean.shape)
            after.moving_mean.assign_sub(by)
    elif getattr(inner, "use_bias", False):
        inner.bias.assign_add(np.broadcast_to(by / np.where(factor == 0, np.inf, factor), inner.bias.shape))
    else:
        return False
    return True


def _affine(after: Any) -> tuple[NDArray, NDArray]:
    """(factor, offset), a value a channel or one: what the layer that the kernel takes in makes of a bias."""
    if after is None:
        return np.ones(1), np.zeros(1)
    if kind(after) == "Rescaling":
        return np.full(1, float(after.scale)), np.full(1, float(after.offset))
    factor = 1 / np.sqrt(np.asarray(after.moving_variance, np.float64) + after.epsilon)
    if after.scale:
        factor = factor * np.asarray(after.gamma, np.float64)
    offset = -np.asarray(after.moving_mean, np.float64) * factor
    return factor, offset + np.asarray(after.beta, np.float64) if after.center else offset


def _folded(layer: Any) -> Any:
    """The layer whose factor and offset become part of this one's kernel and bias, or None."""
    nodes = layer.outbound_nodes
    if len(nodes) != 1 or tfmot_symbols.output_range(layer) is not None:
        return None
    after = tfmot_symbols.wrapped(nodes[0].outbound_layer)
    is_one_factor = kind(after) == "Rescaling" and np.ndim(after.scale) == np.ndim(after.offset) == 0
    return after if hasattr(after, "moving_variance") or is_one_factor else None


def _input_step(layer: Any) -> float | None:
    """The scale of what the layer's kernel reads; None where it is not known."""
    if kind(tfmot_symbols.wrapped(layer)) == "SplitSeparableConv2D":
        intermediate = tfmot_symbols.inner_range(layer, "intermediate")
        return None if intermediate is None else (intermediate[1] - intermediate[0]) / _STEPS
    [node] = layer.inbound_nodes
    while len(node.keras_inputs) == 1:
        # By this node: a layer that is not wrapped is in the model that tfmot made this one of as well.
        before, index, _ = node.keras_inputs[0]._keras_history
        result = tfmot_symbols.output_range(before)
        if result is not None:
            return (result[1] - result[0]) / _STEPS
        if not passes_on(before):
            return None
        node = before.inbound_nodes[index]
    return None


def _bound(variables: dict[str, Any]) -> NDArray:
    """The largest magnitude that each channel of a weight can have."""
    return np.maximum(-np.asarray(variables["min_var"], np.float64), np.asarray(variables["max_var"], np.float64))

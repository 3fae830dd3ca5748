# SPDX-License-Identifier: Apache-2.0
"""Move ranges and biases of a QAT model to values that the flatbuffer can represent, so that both round equally.

Zero must be one of the 256 quantized values of a range. In [-1, 1], zero is between two of them: TensorFlow's kernel
rounds to one, the converter to the other. A bias in a flatbuffer is a 32-bit integer in steps of
input_scale * weight_scale, which is much finer than the scale of the output. Rounding the bias changes it by up to half
such a step, and with it one output value in some hundreds. Each changed value changes others in later layers, and the
outputs of a deep model differ.

Sources: FakeQuantWithMinMaxVars; TFLite 8-bit quantization specification.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat.layer_facts import kind, only_reader, preserves_range
from tfq.compression.qat.ranges import layer_calls, unify_ranges

_ACTIVATION_STEPS = 255
# In quantization steps. The error of float32 is below a thousandth of a step.
_TIE_TOLERANCE = 1e-3


def round_to_flatbuffer(model: Any) -> None:
    """Unify and round the ranges of a trained QAT model, and then round the biases, which depend on them."""
    unify_ranges(model)
    round_ranges(model)
    round_biases(model)


def round_ranges(model: Any) -> None:
    """Set activation ranges of a QAT model to the nudged ranges that fake quantization uses already.

    Only ranges with zero in the middle between two quantized values change, because rounding errors decide there which
    of the two becomes the zero point.
    """
    for place in tfmot_symbols.activation_quantizers(model):
        for variables in place.ranges:
            low, high = (np.float32(variables[end].numpy()) for end in ("min_var", "max_var"))
            scale = (high - low) / np.float32(_ACTIVATION_STEPS)
            if not scale > 0 or abs((-low / scale) % 1 - 0.5) > _TIE_TOLERANCE:
                continue
            # As TensorFlow's kernel rounds: in float32, half up.
            below = np.clip(np.floor(-low / scale + np.float32(0.5)), 0, _ACTIVATION_STEPS)
            tfmot_symbols.assign_ends(variables, -below * scale, (_ACTIVATION_STEPS - below) * scale)


def round_biases(model: Any) -> int:
    """Round each bias of a QAT model to a multiple of its accumulator's step, input_scale * weight_scale.

    The bias is the folded one: a BatchNormalization (or scalar Rescaling) after the kernel is folded into it by the
    converter. The rounding then changes beta, or the moving mean if there is no beta. A layer whose input scale is not
    known keeps its bias.

    Args:
        model: The QAT model, with final ranges. It is changed in place.

    Returns:
        The number of layers with a rounded bias.
    """
    steps = {
        name: _largest_magnitudes(variables) / (2 ** (quantizer.num_bits - 1) - 1)
        for name, _, quantizer, variables in tfmot_symbols.weight_ranges(model)
    }
    calls = Counter(layer.name for layer, _ in layer_calls(model).values())
    return sum(_round_bias(layer, steps.get(layer.name), calls) for layer in model.layers)


def _round_bias(layer: Any, weight_step: NDArray | None, calls: Mapping[str, int]) -> bool:
    """Round the bias of one layer, and return whether it was changed.

    Args:
        layer: The layer of the QAT model.
        weight_step: The step of its weight, which is symmetric, for each channel; None without a weight.
        calls: Layer name -> number of calls in the QAT model.
    """
    inner = tfmot_symbols.wrapped(layer)
    if kind(inner) == "ConvolvedBatchNormalization":
        weight_step, after = np.ones(1) / 127, inner  # its kernel of ones
    elif weight_step is not None:
        after = _folded_layer(layer)
        if hasattr(after, "moving_variance") and calls[only_reader(layer).name] != calls[layer.name]:
            return False  # a BatchNormalization that is folded into several layers has one beta for all of them
    if weight_step is None or (input_step := _input_step(layer)) is None:
        return False
    own = np.asarray(inner.bias, np.float64) if getattr(inner, "use_bias", False) else np.zeros(1)
    factor, offset = _factor_and_offset(after)
    total = own * factor + offset
    step = input_step * weight_step * np.abs(factor)
    # With a factor of zero, the channel is constant, and there is nothing to round.
    rounded = np.where(step > 0, np.rint(total / np.where(step > 0, step, 1.0)) * step, total)
    return _add_to_bias(inner, after, rounded - total, factor)


def _add_to_bias(inner: Any, after: Any, by: NDArray, factor: NDArray) -> bool:
    """Add `by` to the folded bias, and return whether the layer has a parameter for that."""
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


def _factor_and_offset(after: Any) -> tuple[NDArray, NDArray]:
    """Return (factor, offset) per channel, or single values, that the folded layer applies to a bias."""
    if after is None:
        return np.ones(1), np.zeros(1)
    if kind(after) == "Rescaling":
        return np.full(1, float(after.scale)), np.full(1, float(after.offset))
    factor = 1 / np.sqrt(np.asarray(after.moving_variance, np.float64) + after.epsilon)
    if after.scale:
        factor = factor * np.asarray(after.gamma, np.float64)
    offset = -np.asarray(after.moving_mean, np.float64) * factor
    return factor, offset + np.asarray(after.beta, np.float64) if after.center else offset


def _folded_layer(layer: Any) -> Any:
    """Return the layer that the converter folds into this layer's kernel and bias, or None."""
    reader = only_reader(layer)
    if reader is None or tfmot_symbols.output_range(layer) is not None:
        return None
    after = tfmot_symbols.wrapped(reader)
    is_one_factor = kind(after) == "Rescaling" and np.ndim(after.scale) == np.ndim(after.offset) == 0
    return after if hasattr(after, "moving_variance") or is_one_factor else None


def _input_step(layer: Any) -> float | None:
    """Return the scale of the input of the layer's kernel; None if it is not known."""
    if kind(tfmot_symbols.wrapped(layer)) == "SplitSeparableConv2D":
        intermediate = tfmot_symbols.inner_range(layer, "intermediate")
        return None if intermediate is None else (intermediate[1] - intermediate[0]) / _ACTIVATION_STEPS
    steps = {_step_before(node) for node in layer.inbound_nodes}
    # The biases of the calls have different scales in the flatbuffer if their inputs have.
    return steps.pop() if len(steps) == 1 else None


def _step_before(node: Any) -> float | None:
    while len(node.keras_inputs) == 1:
        # From this node, because a layer that is not wrapped also belongs to the model before tfmot's rewrite.
        before, index, _ = node.keras_inputs[0]._keras_history
        result = tfmot_symbols.output_range(before)
        if result is not None:
            return (result[1] - result[0]) / _ACTIVATION_STEPS
        if not preserves_range(before):
            return None
        node = before.inbound_nodes[index]
    return None


def _largest_magnitudes(variables: dict[str, Any]) -> NDArray:
    """Return the largest magnitude in the range of each channel of a weight."""
    return np.maximum(-np.asarray(variables["min_var"], np.float64), np.asarray(variables["max_var"], np.float64))

# SPDX-License-Identifier: Apache-2.0
"""Bias absorption: move a constant part of each channel into the biases of the next layer.

Let h = f(W1 x + b1) and y = W2 h + b2. If f is a ReLU and a channel of h is never below c >= 0, then
    b1 <- b1 - c        b2 <- b2 + W2 c
leave y unchanged. Without an activation this is true for any c. The range of h, which one scale has to cover, becomes
narrower.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.3. The
paper derives c from BatchNormalization. A flatbuffer has none any more, so c is observed on the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.errors import InputError
from tfq.progress import stage
from tfq.ptq.calibration.observer import Sample
from tfq.ptq.layer_pairs import NO_ACTIVATION, RELU, PairTechnique, channel_ranges, find_layer_pairs
from tfq.ptq.same_function import check_same_function
from tfq.ptq.weighted_ops import WeightedOp, weighted_ops

# Ops that do not change a per-channel constant. PAD is not one of them: its zeros would stay zeros.
_PASS_THROUGH = frozenset(("MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "RESHAPE", "SQUEEZE"))
# After a ReLU, unseen data may be lower than the samples by this fraction of the channel's range.
_MARGIN = 0.1
# Skip a pair if its range would keep more than this fraction of its width.
_MAX_WIDTH_RATIO = 0.95
# Accepted difference of the outputs, relative to the largest output: float32 rounds the moved constants differently.
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class AbsorbedPair:
    """Two adjacent layers, and the width of the range between them (including zero) before and after."""

    first: str
    second: str
    channels: int
    width_before: float
    width_after: float


@stage("bias absorption")
def absorb_biases(model: bytes, samples: Sequence[Sample]) -> PairTechnique:
    """Move the constant part of each channel into the biases of the layer that reads it.

    A pair is two layers with biases, where only the second reads the output of the first, through ops that do not
    change a constant and without zero padding.

    Args:
        model: A float flatbuffer.
        samples: The representative dataset: {input name: array of batch size 1}.

    Returns:
        The changed flatbuffer, with an AbsorbedPair for each pair that was changed.

    Raises:
        InputError: There are no samples.
        TfqError: The outputs on `samples` changed by more than rounding.
    """
    if not samples:
        raise InputError(
            "bias_absorption needs the smallest value of each channel, which it observes on data: expected at least "
            "one sample, got none. Pass calibration samples, or remove bias_absorption from conversion.techniques",
            field="samples",
            expected="at least one sample",
        )
    parsed, edited = tflite.read(model), tflite.unpack(model)
    ranges = channel_ranges(model, [op.output for op in weighted_ops(edited, parsed)], samples)
    pairs, skipped = find_layer_pairs(edited, parsed, _PASS_THROUGH, _reason_to_skip)
    absorbed = []
    for first, second in pairs:
        low, high = (values.astype(np.float64) for values in ranges[first.output])
        constants = _constants(first, low, high)
        before = _width(low, high)
        after = _width(low - constants, high - constants)
        if after > _MAX_WIDTH_RATIO * before:
            skipped[first.layer] = "its range would not become narrower"
            continue
        first.set_bias(first.bias - constants.astype(np.float32))
        second.set_bias((second.bias + second.constant_response(constants)).astype(np.float32))
        absorbed.append(
            AbsorbedPair(
                first=first.layer,
                second=second.layer,
                channels=first.num_outputs,
                width_before=before,
                width_after=after,
            )
        )
    content = tflite.pack(edited, len(model))
    difference, num_samples = check_same_function(model, content, samples, "bias_absorption", _TOLERANCE)
    return PairTechnique(
        model=content, pairs=tuple(absorbed), skipped=skipped, difference=difference, num_samples=num_samples
    )


def _reason_to_skip(first: WeightedOp, second: WeightedOp | None) -> str:
    """Return why no constant can move from `first` (to `second`, if it is known), or "" if one can."""
    if first.activation not in (NO_ACTIVATION, RELU):
        return "its activation is neither ReLU nor linear"
    if not first.has_bias or (second is not None and not second.has_bias):
        return "one of the two layers has no bias"
    if second is not None and second.pads:
        return "the layer that reads it pads with zeros"
    return ""


def _constants(first: WeightedOp, low: NDArray, high: NDArray) -> NDArray[np.float64]:
    """Return the constant to subtract from each channel: its lower bound after a ReLU, otherwise its center."""
    if first.activation == RELU:
        return np.maximum(low - _MARGIN * (high - low), 0)
    return (low + high) / 2


def _width(low: NDArray, high: NDArray) -> float:
    return float(max(high.max(), 0.0) - min(low.min(), 0.0))

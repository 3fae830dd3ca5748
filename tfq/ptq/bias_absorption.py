# SPDX-License-Identifier: Apache-2.0
"""Bias absorption: what a channel always gives is taken off it, and added to the next layer's biases.

A channel that is never below c behind its ReLU can give c less, and one without an activation any constant less, where
the next layer adds what its weights make of that constant: the range that one scale must hold becomes narrower.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.3;
there c is read off BatchNormalization, which a flatbuffer no longer has: here off the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.errors import InputError
from tfq.ptq.calibration.observer import Sample
from tfq.ptq.layer_pairs import NO_ACTIVATION, RELU, PairTechnique, channel_ranges, find_layer_pairs
from tfq.ptq.same_function import check_same_function
from tfq.ptq.weighted_ops import WeightedOp, weighted_ops

# What a constant goes through as it is, each channel's by itself: no padding among them, whose zeros stay zeros.
_PASSING = frozenset(("MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "RESHAPE", "SQUEEZE"))
# Behind a ReLU, data that was not seen may be lower than what was, by this share of the channel's range.
_MARGIN = 0.1
# A range that becomes narrower by less than that is left as it is.
_WORTH = 0.95
# Of outputs, as a share of their largest: constants are added at another place, and float32 rounds them there.
_SAME = 1e-4


@dataclass(frozen=True, kw_only=True)
class AbsorbedPair:
    """Two layers, and how wide the range between them was and is, zero within."""

    first: str
    second: str
    channels: int
    width_before: float
    width_after: float


def absorb_biases(model: bytes, samples: Sequence[Sample]) -> PairTechnique:
    """The float flatbuffer `model` with constants moved from layers to the biases of those that read them.

    samples: of the representative dataset, by input name. A pair is a layer with a bias, its only reader behind ops
    that let a constant through, without padding, and that reader's bias. The function is compared before and after on
    the samples. Raises InputError where there are none, and TfqError where the function changed.
    """
    if not samples:
        raise InputError(
            "absorb: no samples, expected at least one: what a channel always gives is seen on data alone",
            field="samples",
            expected="at least one sample",
        )
    parsed, edited = tflite.read(model), tflite.unpack(model)
    ends = channel_ranges(model, [item.output for item in weighted_ops(edited, parsed)], samples)
    pairs, skipped = find_layer_pairs(edited, parsed, _PASSING, _why_not)
    messages = []
    for first, second in pairs:
        low, high = (item.astype(np.float64) for item in ends[first.output])
        constants = _constants(first, low, high)
        before = _width(low, high)
        after = _width(low - constants, high - constants)
        if after > _WORTH * before:
            skipped[first.layer] = "its range would stay as wide as it is"
            continue
        first.set_bias(first.bias - constants.astype(np.float32))
        second.set_bias((second.bias + second.constant_response(constants)).astype(np.float32))
        messages.append(
            AbsorbedPair(
                first=first.layer,
                second=second.layer,
                channels=first.num_outputs,
                width_before=before,
                width_after=after,
            )
        )
    content = tflite.pack(edited, len(model))
    difference, tried = check_same_function(model, content, samples, "absorbing biases", _SAME)
    return PairTechnique(
        model=content, pairs=tuple(messages), skipped=skipped, difference=difference, num_samples=tried
    )


def _why_not(first: WeightedOp, second: WeightedOp | None) -> str:
    """Why a constant cannot be taken off `first`, or be given to `second` where it is known; "" where it can."""
    if first.activation not in (NO_ACTIVATION, RELU):
        return "its activation caps or bends what it gives"
    if not first.has_bias or (second is not None and not second.has_bias):
        return "one of the two layers has no bias"
    if second is not None and second.pads:
        return "the layer that reads it pads with zeros"
    return ""


def _constants(first: WeightedOp, low: NDArray, high: NDArray) -> NDArray[np.float64]:
    """Of each channel: what is taken off it."""
    if first.activation == RELU:
        return np.maximum(low - _MARGIN * (high - low), 0)
    return (low + high) / 2


def _width(low: NDArray, high: NDArray) -> float:
    return float(max(high.max(), 0.0) - min(low.min(), 0.0))

# SPDX-License-Identifier: Apache-2.0
"""Cross-layer equalization: channels of very different size made alike, where the float function allows it.

A channel that one layer makes s times smaller, and the next one weighs s times more, leaves the function as it was, as
long as what lies between commutes with a positive factor. One scale then serves all channels of the tensor between.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.

Factors are powers of two: then every product and every sum is the same to the bit but for its exponent, and so is what
the next layer gives. It costs at most half a bit of evenness.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.ptq.calibration.observer import Sample
from tfq.ptq.layer_pairs import NO_ACTIVATION, RELU, RELU6, PairTechnique, channel_ranges, find_layer_pairs
from tfq.ptq.same_function import check_same_function
from tfq.ptq.weighted_ops import WeightedOp, weighted_ops

# What moves or selects values without mixing channels, or averages them within one: a factor goes through.
_COMMUTING = frozenset(("MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "RELU", "LEAKY_RELU", "MEAN", "RESHAPE", "SQUEEZE"))
_SWEEPS = 20
# A ReLU6 must cut off nothing but what it did: channels stay below the cap, were they so much larger than on the data.
_CAP, _MARGIN = 6.0, 1.5
# Beyond these factors a channel is as good as dead, or so large that another sweep will not help.
_LARGEST_EXPONENT = 16
# Of outputs, as a share of their largest: what the sums of a float32 kernel may differ by.
_SAME = 1e-5


@dataclass(frozen=True, kw_only=True)
class EqualizedPair:
    """Two layers, and by which factors the channels between them were divided (the lowest and the highest)."""

    first: str
    second: str
    channels: int
    lowest_factor: float
    highest_factor: float


@dataclass(frozen=True, eq=False)
class ChannelPair:
    """Two layers, and the channels that one gives and the other alone reads."""

    first: WeightedOp
    second: WeightedOp
    channels: int
    # Of what a fused ReLU6 gives, the largest of each channel on the data; empty where nothing caps.
    largest: NDArray

    def factors(self) -> NDArray[np.float64]:
        """By which to divide each channel between the two, so that both layers' weights of it have one range."""
        one = np.abs(self.first.weights_by_output()).max(axis=1).astype(np.float64)
        other = np.abs(self.second.weights_by_input(self.channels)).max(axis=1).astype(np.float64)
        alive = (one > 0) & (other > 0)
        exponents = np.zeros(self.channels)
        exponents[alive] = np.log2(one[alive] / other[alive]) / 2
        # What all channels have in common is no unevenness, and stays as it is.
        exponents[alive] -= np.median(exponents[alive]) if alive.any() else 0
        exponents = np.clip(np.rint(exponents), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        if self.largest.size:
            room = np.maximum(self.largest, 1e-30) * _MARGIN / _CAP
            exponents = np.where(room < 1, np.maximum(exponents, np.ceil(np.log2(room))), 0)
        return 2.0**exponents

    def apply(self, factors: NDArray) -> None:
        """Divide each channel between the two by its factor: powers of two leave the function as it was to the bit."""
        self.first.scale_outputs(1 / factors)
        self.second.scale_inputs(factors)
        if self.largest.size:
            self.largest[:] /= factors


def equalize(model: bytes, samples: Sequence[Sample] = ()) -> PairTechnique:
    """The float flatbuffer `model` with the channels between pairs of its layers equalized.

    A pair is a layer with weights, its only reader behind ops that commute with a positive factor, and that reader's
    weights. Left alone, with the reason: what several ops read, outputs of the model, fused activations other than
    ReLU, weights that are shared.
    samples: of the representative dataset, by input name. Behind a ReLU6 a channel can be scaled only if it stays below
        the cap, which is seen on them; without them such layers are left alone.
    The function is compared before and after, on the samples, or on random ones where there are none. Raises TfqError
    where it changed.
    """
    parsed = tflite.read(model)
    edited = tflite.unpack(model)
    pairs, skipped = _pairs(edited, parsed, _largest(model, edited, parsed, samples))
    total = [np.ones(pair.channels) for pair in pairs]
    for _ in range(_SWEEPS):
        changed = False
        for place, pair in enumerate(pairs):
            factors = pair.factors()
            if (factors != 1).any():
                pair.apply(factors)
                total[place] *= factors
                changed = True
        if not changed:
            break
    messages = tuple(
        EqualizedPair(
            first=pair.first.layer,
            second=pair.second.layer,
            channels=pair.channels,
            lowest_factor=float(factors.min()),
            highest_factor=float(factors.max()),
        )
        for pair, factors in zip(pairs, total, strict=True)
    )
    content = tflite.pack(edited, len(model))
    difference, tried = check_same_function(model, content, samples, "equalization", _SAME)
    return PairTechnique(model=content, pairs=messages, skipped=skipped, difference=difference, num_samples=tried)


def _largest(model: bytes, edited: Any, parsed: tflite.Model, samples: Sequence[Sample]) -> dict[int, NDArray]:
    """{tensor: largest value of each channel on the samples} of what layers with a fused ReLU6 give."""
    tensors = [item.output for item in weighted_ops(edited, parsed) if item.activation == RELU6]
    return {tensor: high for tensor, (_, high) in channel_ranges(model, tensors if samples else [], samples).items()}


def find_pairs(edited: Any, parsed: tflite.Model) -> list[ChannelPair]:
    """The pairs that can be scaled without data. edited: `parsed` in its object form, which `apply` changes."""
    return _pairs(edited, parsed, {})[0]


def _pairs(
    edited: Any, parsed: tflite.Model, largest: Mapping[int, NDArray]
) -> tuple[list[ChannelPair], dict[str, str]]:
    def why_not(first: WeightedOp, second: WeightedOp | None) -> str:
        if first.activation == RELU6 and first.output not in largest:
            return "its ReLU6 caps, and without samples nobody knows where"
        if first.activation not in (NO_ACTIVATION, RELU, RELU6):
            return "its activation does not commute with a factor"
        return ""

    result, skipped = find_layer_pairs(edited, parsed, _COMMUTING, why_not)
    none = np.zeros(0)
    pairs = [ChannelPair(first, second, first.num_outputs, largest.get(first.output, none)) for first, second in result]
    return pairs, skipped

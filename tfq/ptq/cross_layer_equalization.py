# SPDX-License-Identifier: Apache-2.0
"""Cross-layer equalization (CLE): give the channels between two layers similar ranges.

For f with f(s x) = s f(x), s > 0, such as ReLU:
    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1),    S = diag(s),    s_i = sqrt(r1_i / r2_i)
with r1_i and r2_i the largest magnitudes of channel i's weights in W1 and W2. Both are then sqrt(r1_i r2_i), so one
scale serves all channels.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.

Differences from the paper: s_i is divided by its median over the channels, and rounded to a power of two. Powers of two
change only the exponents of the float32 products and sums, so the outputs stay bit-exact. Rounding costs at most half a
bit of evenness.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.progress import stage
from tfq.ptq.calibration.observer import Sample
from tfq.ptq.layer_pairs import NO_ACTIVATION, RELU, RELU6, PairTechnique, channel_ranges, find_layer_pairs
from tfq.ptq.same_function import check_same_function
from tfq.ptq.weighted_ops import WeightedOp, weighted_ops

# Ops that commute with a positive factor per channel: they move, select or average values within a channel.
_COMMUTING = frozenset(("MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "RELU", "LEAKY_RELU", "MEAN", "RESHAPE", "SQUEEZE"))
# A layer can be the second of one pair and the first of the next, so all pairs are equalized until none changes.
_MAX_SWEEPS = 20
# After scaling, a ReLU6 must not cap more than before: each channel stays below 6 with this margin over the data.
_CAP, _MARGIN = 6.0, 1.5
# Beyond 2^16 a channel is practically dead, or so large that another sweep does not help.
_LARGEST_EXPONENT = 16
# Accepted difference of the outputs, relative to the largest output: kernels may sum float32 in another order.
_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class EqualizedPair:
    """Two adjacent layers, and the lowest and highest factor that a channel between them was divided by."""

    first: str
    second: str
    channels: int
    lowest_factor: float
    highest_factor: float


@dataclass(frozen=True, eq=False)
class ChannelPair:
    """Two layers, where only the second reads the output channels of the first.

    Attributes:
        first: The layer that computes the channels.
        second: The layer that reads them.
        channels: The number of channels.
        largest: The largest value of each channel on the data if `first` has a fused ReLU6; otherwise empty.
    """

    first: WeightedOp
    second: WeightedOp
    channels: int
    largest: NDArray

    def factors(self) -> NDArray[np.float64]:
        """Return the power of two to divide each channel by, so that both layers' weights for it have one range."""
        written = np.abs(self.first.weights_by_output()).max(axis=1).astype(np.float64)
        read = np.abs(self.second.weights_by_input(self.channels)).max(axis=1).astype(np.float64)
        alive = (written > 0) & (read > 0)
        exponents = np.zeros(self.channels)
        exponents[alive] = np.log2(written[alive] / read[alive]) / 2
        # A factor that all channels share does not make them more even.
        exponents[alive] -= np.median(exponents[alive]) if alive.any() else 0
        exponents = np.clip(np.rint(exponents), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        if self.largest.size:
            smallest = np.maximum(self.largest, 1e-30) * _MARGIN / _CAP
            exponents = np.where(smallest < 1, np.maximum(exponents, np.ceil(np.log2(smallest))), 0)
        return 2.0**exponents

    def apply(self, factors: NDArray) -> None:
        """Divide each channel by its factor. Powers of two keep the float function bit-exact."""
        self.first.scale_outputs(1 / factors)
        self.second.scale_inputs(factors)
        if self.largest.size:
            self.largest[:] /= factors


@stage("cross-layer equalization")
def equalize(model: bytes, samples: Sequence[Sample] = ()) -> PairTechnique:
    """Equalize the channels between pairs of layers.

    A pair is two layers with weights, where only the second reads the output of the first, through ops that commute
    with a positive factor. Skipped, with the reason: tensors that several ops read, outputs of the model, fused
    activations other than ReLU and ReLU6, shared weights.

    Args:
        model: A float flatbuffer.
        samples: The representative dataset: {input name: array of batch size 1}. After a ReLU6 a channel can be scaled
            only if it stays below 6, which these samples show. Without samples, layers with ReLU6 are skipped.

    Returns:
        The changed flatbuffer, with an EqualizedPair for each pair.

    Raises:
        TfqError: The outputs changed by more than rounding, on `samples` or, if there are none, on random samples.
    """
    parsed = tflite.read(model)
    edited = tflite.unpack(model)
    pairs, skipped = _pairs(edited, parsed, _largest(model, edited, parsed, samples))
    total = [np.ones(pair.channels) for pair in pairs]
    for _ in range(_MAX_SWEEPS):
        changed = False
        for place, pair in enumerate(pairs):
            factors = pair.factors()
            if (factors != 1).any():
                pair.apply(factors)
                total[place] *= factors
                changed = True
        if not changed:
            break
    equalized = tuple(
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
    difference, num_samples = check_same_function(model, content, samples, "cross_layer_equalization", _TOLERANCE)
    return PairTechnique(
        model=content, pairs=equalized, skipped=skipped, difference=difference, num_samples=num_samples
    )


def _largest(model: bytes, edited: Any, parsed: tflite.Model, samples: Sequence[Sample]) -> dict[int, NDArray]:
    """Return {output of a layer with a fused ReLU6: the largest value of each channel on the samples}."""
    tensors = [item.output for item in weighted_ops(edited, parsed) if item.activation == RELU6]
    return {tensor: high for tensor, (_, high) in channel_ranges(model, tensors if samples else [], samples).items()}


def find_pairs(edited: Any, parsed: tflite.Model) -> list[ChannelPair]:
    """Return the pairs that can be scaled without data.

    Args:
        edited: `parsed` in its object form, which `ChannelPair.apply` changes.
        parsed: A float flatbuffer.
    """
    return _pairs(edited, parsed, {})[0]


def _pairs(
    edited: Any, parsed: tflite.Model, largest: Mapping[int, NDArray]
) -> tuple[list[ChannelPair], dict[str, str]]:
    def reason_to_skip(first: WeightedOp, second: WeightedOp | None) -> str:
        if first.activation == RELU6 and first.output not in largest:
            return "without samples it is not known how close its ReLU6 comes to the cap"
        if first.activation not in (NO_ACTIVATION, RELU, RELU6):
            return "its activation does not commute with a factor"
        return ""

    matches, skipped = find_layer_pairs(edited, parsed, _COMMUTING, reason_to_skip)
    uncapped = np.zeros(0)
    pairs = [
        ChannelPair(first, second, first.num_outputs, largest.get(first.output, uncapped)) for first, second in matches
    ]
    return pairs, skipped

# SPDX-License-Identifier: Apache-2.0
"""Bias correction: what quantization adds to a channel on average, taken off its bias.

Rounded weights, and values that were clipped, move the mean of a layer's outputs; the mean is what the next layers
notice most. The biases of an int8 flatbuffer are 32-bit codes, fine enough to put it right.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, its
empirical form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.ptq.calibration.observer import Sample
from tfq.ptq.layer_pairs import ModelPair, channel_means
from tfq.ptq.weighted_ops import WeightedOp, weighted_ops

# A layer's error is its own and what came through it from the layers before; once these are put right the rest is
# smaller, and all are put right again. Every round settles one layer more for good, and most of them nearly so.
_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class BiasCorrection:
    """model: the int8 flatbuffer with corrected biases.

    layers: {layer: (mean error of its outputs before, and after)}, root mean square over channels, in steps of the
    output. rounds: how often all biases were corrected; 0 is none, where that made the model's outputs no better.
    error_before, error_after: mean squared error of the model's outputs on the samples.
    """

    model: bytes
    layers: Mapping[str, tuple[float, float]]
    rounds: int
    error_before: float
    error_after: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the flatbuffer."""
        return {
            "rounds": self.rounds,
            "error_before": self.error_before,
            "error_after": self.error_after,
            "layers": {name: {"before": before, "after": after} for name, (before, after) in self.layers.items()},
        }


def correct_biases(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> BiasCorrection:
    """The int8 flatbuffer `quantized` with the biases of its layers corrected by what `floating` gives on `samples`.

    floating: the float flatbuffer that it was made of. samples: by input name, real values.
    Of the rounds the one is kept that leaves the least error in the model's outputs, or none.
    """
    pair = ModelPair(floating, quantized)
    edited = tflite.unpack(quantized)
    layers = [
        item for item in weighted_ops(edited, pair.quantized) if item.has_bias and item.output in pair.float_tensors
    ]
    tensors = [item.output for item in layers]
    wanted, answers = channel_means(floating, [pair.float_tensors[tensor] for tensor in tensors], samples)
    content, rounds = quantized, 0
    while True:
        got, quantized_values = channel_means(content, tensors, pair.quantize_samples(samples))
        offsets = [
            pair.dequantize(tensor, mean) - real for tensor, mean, real in zip(tensors, got, wanted, strict=True)
        ]
        state = _State(rounds, content, _squared_error(pair, answers, quantized_values), offsets)
        if rounds == 0:
            first = best = state
        elif state.error < best.error:
            best = state
        if rounds == _ROUNDS:
            break
        for layer, offset in zip(layers, offsets, strict=True):
            _shift(layer, -offset)
        content, rounds = tflite.pack(edited, len(quantized)), rounds + 1
    return BiasCorrection(
        model=best.content,
        layers={
            layer.layer: (_in_steps(pair, layer.output, one), _in_steps(pair, layer.output, other))
            for layer, one, other in zip(layers, first.offsets, best.offsets, strict=True)
        },
        rounds=best.rounds,
        error_before=first.error,
        error_after=best.error,
    )


@dataclass(frozen=True, eq=False)
class _State:
    """After so many rounds: the flatbuffer, its outputs' error, and by how much the channels of layers are off."""

    rounds: int
    content: bytes
    error: float
    offsets: Sequence[NDArray[np.float64]]


def _shift(layer: WeightedOp, offset: NDArray[np.float64]) -> None:
    """Add `offset`, real values, to the layer's bias."""
    bias = layer.bias
    limits = np.iinfo(bias.dtype)
    quantized = bias + np.rint(offset / layer.bias_scale)
    layer.set_bias(np.clip(quantized, limits.min, limits.max))


def _squared_error(pair: ModelPair, answers: Sequence[NDArray], codes: Sequence[NDArray]) -> float:
    tensors = pair.quantized.main_subgraph.outputs
    squares = [
        np.mean((wanted - pair.dequantize(tensor, got)) ** 2)
        for tensor, wanted, got in zip(tensors, answers, codes, strict=True)
    ]
    return float(np.mean(squares))


def _in_steps(pair: ModelPair, tensor: int, offset: NDArray) -> float:
    return float(np.sqrt(np.mean(offset**2)) / pair.scale_and_zero_point(tensor)[0])

# SPDX-License-Identifier: Apache-2.0
"""Bias correction: subtract the mean quantization error of each output channel from its bias.

    b <- b - (E[y_int8] - E[y_float]), over the samples and the positions of a channel

Rounded weights and clipped activations shift the mean of a layer's outputs. The biases of an int8 flatbuffer are int32,
which is fine enough to correct the shift.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, the
empirical form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.progress import stage
from tfq.ptq.calibration.observer import Sample
from tfq.ptq.layer_pairs import ModelPair, channel_means
from tfq.ptq.weighted_ops import WeightedOp, weighted_ops

# A layer's mean error includes the errors of the layers before it, and changes when these are corrected. Each round
# makes at least one more layer exact, and brings most others close.
_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class BiasCorrection:
    """The result of a bias correction.

    Attributes:
        model: The int8 flatbuffer with corrected biases.
        layers: {layer: (mean error of its outputs before, after)}: the root mean square over channels, in output steps.
        rounds: How many times all biases were corrected; 0 if no round reduced the error of the model's outputs.
        error_before: Mean squared error of the model's outputs on the samples, before.
        error_after: The same, after.
    """

    model: bytes
    layers: Mapping[str, tuple[float, float]]
    rounds: int
    error_before: float
    error_after: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the flatbuffer."""
        return {
            "rounds": self.rounds,
            "error_before": self.error_before,
            "error_after": self.error_after,
            "layers": {name: {"before": before, "after": after} for name, (before, after) in self.layers.items()},
        }


@stage("bias correction")
def correct_biases(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> BiasCorrection:
    """Correct the biases of an int8 flatbuffer by the mean errors of its layers.

    All biases are corrected several times. The result is the round with the smallest error of the model's outputs,
    which may be the uncorrected model.

    Args:
        quantized: An int8 flatbuffer.
        floating: The float flatbuffer that it was converted from.
        samples: {input name: array of real values, batch size 1}.

    Raises:
        InputError: The flatbuffers do not belong together, or there are no samples.
    """
    pair = ModelPair(floating, quantized)
    edited = tflite.unpack(quantized)
    layers = [op for op in weighted_ops(edited, pair.quantized) if op.has_bias and op.output in pair.float_tensors]
    tensors = [layer.output for layer in layers]
    float_means, float_outputs = channel_means(floating, [pair.float_tensors[tensor] for tensor in tensors], samples)
    content, rounds = quantized, 0
    while True:
        means, outputs = channel_means(content, tensors, pair.quantize_samples(samples))
        offsets = [
            pair.dequantize(tensor, mean) - float_mean
            for tensor, mean, float_mean in zip(tensors, means, float_means, strict=True)
        ]
        state = _State(rounds, content, _squared_error(pair, float_outputs, outputs), offsets)
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
            layer.key: (_rms_in_steps(pair, layer.output, before), _rms_in_steps(pair, layer.output, after))
            for layer, before, after in zip(layers, first.offsets, best.offsets, strict=True)
        },
        rounds=best.rounds,
        error_before=first.error,
        error_after=best.error,
    )


@dataclass(frozen=True, eq=False)
class _State:
    """The flatbuffer after some rounds, the error of its outputs, and each layer's mean error per channel."""

    rounds: int
    content: bytes
    error: float
    offsets: Sequence[NDArray[np.float64]]


def _shift(layer: WeightedOp, offset: NDArray[np.float64]) -> None:
    """Add `offset`, one real value per output channel, to the layer's bias."""
    bias = layer.bias
    limits = np.iinfo(bias.dtype)
    quantized = bias + np.rint(offset / layer.bias_scale)
    layer.set_bias(np.clip(quantized, limits.min, limits.max))


def _squared_error(pair: ModelPair, float_outputs: Sequence[NDArray], outputs: Sequence[NDArray]) -> float:
    tensors = pair.quantized.main_subgraph.outputs
    squares = [
        np.mean((expected - pair.dequantize(tensor, values)) ** 2)
        for tensor, expected, values in zip(tensors, float_outputs, outputs, strict=True)
    ]
    return float(np.mean(squares))


def _rms_in_steps(pair: ModelPair, tensor: int, offset: NDArray) -> float:
    return float(np.sqrt(np.mean(offset**2)) / pair.scale_and_zero_point(tensor)[0])

# SPDX-License-Identifier: Apache-2.0
"""The quantization error of each op's weights, computed from the two files without running them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.errors import InputError
from tfq.ptq.layer_pairs import ModelPair
from tfq.tflite.op_types import CHANNEL_AXES, WEIGHT_INPUTS


@dataclass(frozen=True, kw_only=True)
class WeightError:
    """The quantized weights of one op compared with the float weights.

    Attributes:
        sqnr_db: The sum of the squared float weights divided by that of the errors, in dB; infinite if there is no
            error.
        worst_channel: The output channel with the lowest SQNR, among those that are not 0.
        worst_channel_sqnr_db: The SQNR of that channel.
        per_channel: Whether each output channel has its own scale.
    """

    sqnr_db: float
    worst_channel: int
    worst_channel_sqnr_db: float
    per_channel: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; infinities are null."""
        return {
            name: None if isinstance(value, float) and math.isinf(value) else value
            for name, value in asdict(self).items()
        }


def weight_errors(quantized: bytes, floating: bytes, pair: ModelPair) -> Mapping[int, WeightError]:
    """Return {index of the op in the int8 flatbuffer: the error of its weights}.

    Ops are matched by the name of their output. Ops whose weights are stored in another format (packed 4 bits, sparse,
    float16) are left out.
    """
    graphs = pair.quantized.main_subgraph, pair.floating.main_subgraph
    results = {}
    for op in graphs[0].ops:
        float_op = graphs[1].producers.get(pair.float_tensors.get(op.outputs[0], tflite.ABSENT)) if op.outputs else None
        if float_op is None or float_op.name != op.name:
            continue
        for slot in sorted(WEIGHT_INPUTS.get(op.name, ())):
            weights = _weights_pair(quantized, floating, graphs, op, float_op, slot)
            if weights is not None and op.index not in results:
                results[op.index] = _error(*weights, axis=CHANNEL_AXES.get(op.name, 0))
    return results


def _weights_pair(
    quantized: bytes,
    floating: bytes,
    graphs: tuple[tflite.Subgraph, tflite.Subgraph],
    op: tflite.Op,
    float_op: tflite.Op,
    slot: int,
) -> tuple[tflite.Tensor, NDArray, NDArray] | None:
    """Return the quantized weights, their real values and the float weights; None if they cannot be compared."""
    if max(slot, 0) >= min(len(op.inputs), len(float_op.inputs)) or tflite.ABSENT in (
        op.inputs[slot],
        float_op.inputs[slot],
    ):
        return None
    quantized_weights, float_weights = graphs[0].tensors[op.inputs[slot]], graphs[1].tensors[float_op.inputs[slot]]
    if (
        not (quantized_weights.is_constant and float_weights.is_constant and quantized_weights.is_quantized)
        or quantized_weights.shape != float_weights.shape
    ):
        return None
    if float_weights.dtype != "float32":
        return None
    try:
        quantized_values, expected = (
            tflite.constant_values(quantized, quantized_weights),
            tflite.constant_values(floating, float_weights),
        )
    except InputError:
        return None
    shape = [1] * len(quantized_weights.shape)
    if len(quantized_weights.scale) > 1:
        shape[quantized_weights.quantized_dimension] = -1
    scale, zero_point = (
        np.reshape(values, shape) for values in (quantized_weights.scale, quantized_weights.zero_point)
    )
    return quantized_weights, (quantized_values.astype(np.float64) - zero_point) * scale, expected.astype(np.float64)


def _error(tensor: tflite.Tensor, dequantized: NDArray, expected: NDArray, axis: int) -> WeightError:
    rows = [np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1) for values in (expected, dequantized)]
    signal, noise = (rows[0] ** 2).sum(axis=1), ((rows[1] - rows[0]) ** 2).sum(axis=1)
    by_channel = np.full(len(signal), np.inf)
    # A channel of zeros has no signal.
    counted = (noise > 0) & (signal > 0)
    by_channel[counted] = 10 * np.log10(signal[counted] / noise[counted])
    worst = int(by_channel.argmin())
    has_error = signal.sum() > 0 and noise.sum() > 0
    return WeightError(
        sqnr_db=10 * math.log10(signal.sum() / noise.sum()) if has_error else math.inf,
        worst_channel=worst,
        worst_channel_sqnr_db=float(by_channel[worst]),
        per_channel=len(tensor.scale) > 1,
    )

# SPDX-License-Identifier: Apache-2.0
"""The error that quantizing has put into the weights of each op: no run needed, the two files hold them."""

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
    """The quantized weights of one op against the float ones.

    Attributes:
        sqnr_db: Sum of the squared float weights to that of the errors, in dB; infinite if there is no error.
        worst_channel: The output channel with the lowest SQNR, of those that are not 0.
        worst_channel_sqnr_db: Its SQNR.
        per_channel: Whether each output channel has a scale.
    """

    sqnr_db: float
    worst_channel: int
    worst_channel_sqnr_db: float
    per_channel: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: infinities are null."""
        return {
            name: None if isinstance(value, float) and math.isinf(value) else value
            for name, value in asdict(self).items()
        }


def weight_errors(quantized: bytes, floating: bytes, pair: ModelPair) -> Mapping[int, WeightError]:
    """Return {index of the op in the int8 flatbuffer: the error of its weights}.

    Ops are matched by the name of their output. Ops whose weights are stored otherwise (packed 4 bits, sparse, float16)
    are left out.
    """
    graphs = pair.quantized.main_subgraph, pair.floating.main_subgraph
    results = {}
    for op in graphs[0].ops:
        twin = graphs[1].producers.get(pair.float_tensors.get(op.outputs[0], tflite.ABSENT)) if op.outputs else None
        if twin is None or twin.name != op.name:
            continue
        for slot in sorted(WEIGHT_INPUTS.get(op.name, ())):
            weights = _pair(quantized, floating, graphs, op, twin, slot)
            if weights is not None and op.index not in results:
                results[op.index] = _error(*weights, axis=CHANNEL_AXES.get(op.name, 0))
    return results


def _pair(
    quantized: bytes,
    floating: bytes,
    graphs: tuple[tflite.Subgraph, tflite.Subgraph],
    op: tflite.Op,
    twin: tflite.Op,
    slot: int,
) -> tuple[tflite.Tensor, NDArray, NDArray] | None:
    """Return (the quantized weights, their real values, the float ones); None if they cannot be compared."""
    if max(slot, 0) >= min(len(op.inputs), len(twin.inputs)) or tflite.ABSENT in (op.inputs[slot], twin.inputs[slot]):
        return None
    ours, theirs = graphs[0].tensors[op.inputs[slot]], graphs[1].tensors[twin.inputs[slot]]
    if not (ours.is_constant and theirs.is_constant and ours.is_quantized) or ours.shape != theirs.shape:
        return None
    if theirs.dtype != "float32":
        return None
    try:
        codes, wanted = tflite.constant_values(quantized, ours), tflite.constant_values(floating, theirs)
    except InputError:
        return None
    shape = [1] * len(ours.shape)
    if len(ours.scale) > 1:
        shape[ours.quantized_dimension] = -1
    scale, zero_point = (np.reshape(values, shape) for values in (ours.scale, ours.zero_point))
    return ours, (codes.astype(np.float64) - zero_point) * scale, wanted.astype(np.float64)


def _error(tensor: tflite.Tensor, got: NDArray, wanted: NDArray, axis: int) -> WeightError:
    rows = [np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1) for values in (wanted, got)]
    signal, noise = (rows[0] ** 2).sum(axis=1), ((rows[1] - rows[0]) ** 2).sum(axis=1)
    by_channel = np.full(len(signal), np.inf)
    # A channel that is 0 has no signal to lose.
    counted = (noise > 0) & (signal > 0)
    by_channel[counted] = 10 * np.log10(signal[counted] / noise[counted])
    worst = int(by_channel.argmin())
    lost = signal.sum() > 0 and noise.sum() > 0
    return WeightError(
        sqnr_db=10 * math.log10(signal.sum() / noise.sum()) if lost else math.inf,
        worst_channel=worst,
        worst_channel_sqnr_db=float(by_channel[worst]),
        per_channel=len(tensor.scale) > 1,
    )

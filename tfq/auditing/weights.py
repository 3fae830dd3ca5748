# SPDX-License-Identifier: Apache-2.0
"""The weights of a flatbuffer: how they are stored, how large they are, how many of their values are zero."""

import collections
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.tflite.op_roles import CHANNEL_AXES, WEIGHT, roles
from tfq.tflite.records import ABSENT, Model, Op, Subgraph, Tensor, constant_values

DENSE = "FULLY_CONNECTED"


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A constant that an op (`op`, of `keras_layer`) reads as its weight, directly or behind a DEQUANTIZE.

    dtype: as it is stored. bytes: of its content in the file. values: how many. zeros: how many of them stand for
    exactly 0, None where they cannot be counted (sparse, below 8 bits). channels: output channels, 1 where the op's
    weights have none. scales: 0 unquantized, 1 per_tensor, else one for each channel.
    """

    tensor: str
    keras_layer: str | None
    op: str
    dtype: str
    bytes: int
    values: int
    zeros: int | None
    channels: int
    scales: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def weights_of(data: bytes, model: Model) -> tuple[Weight, ...]:
    """Every weight of the model, once, in the order of the ops that read them. `data`: what `model` was read from."""
    # Damaged files can have many tensors share one place: what is read stays in proportion to the file.
    budget = 2 * len(data)
    found = []
    for op, tensor in _stored_weights(model):
        zeros = None
        if tensor.buffer_bytes <= budget:
            budget -= tensor.buffer_bytes
            zeros = _zeros(data, tensor)
        axis = CHANNEL_AXES.get(op.name)
        found.append(
            Weight(
                tensor=tensor.name,
                keras_layer=op.keras_layer,
                op=op.name,
                dtype=tensor.dtype,
                bytes=tensor.buffer_bytes,
                values=math.prod(tensor.shape),
                zeros=zeros,
                channels=tensor.shape[axis] if axis is not None and tensor.shape else 1,
                scales=len(tensor.scale),
            )
        )
    return tuple(found)


def weight_counts(weights: tuple[Weight, ...]) -> dict[str, Any]:
    """What a report counts of them: granularity, of all and of dense layers alone, and types."""
    dense = [weight for weight in weights if weight.op == DENSE]
    return {
        "weights_per_channel": _count(weights, many=True),
        "weights_per_tensor": _count(weights, many=False),
        "dense_per_channel": _count(dense, many=True),
        "dense_per_tensor": _count(dense, many=False),
        "weight_types": dict(collections.Counter(weight.dtype for weight in weights)),
    }


def _count(weights: Any, *, many: bool) -> int:
    # One channel has one scale either way, and is no sign of anything where there are others.
    return sum(weight.scales > 1 if many else weight.scales == 1 for weight in weights)


def _stored_weights(model: Model) -> Iterator[tuple[Op, Tensor]]:
    for graph in model.subgraphs:
        stored = _behind_dequantize(graph)
        seen = {ABSENT}
        for op in graph.ops:
            for _, _, index, role in roles(op):
                index = stored.get(index, index)
                if role == WEIGHT and index not in seen and graph.tensors[index].is_constant:
                    seen.add(index)
                    yield op, graph.tensors[index]


def _behind_dequantize(graph: Subgraph) -> dict[int, int]:
    """What a DEQUANTIZE makes -> what it makes it from."""
    return {op.outputs[0]: op.inputs[0] for op in graph.ops if op.name == "DEQUANTIZE" and op.inputs and op.outputs}


def _zeros(data: bytes, tensor: Tensor) -> int | None:
    try:
        values = constant_values(data, tensor)
    except InputError:
        return None
    zero_point: Any = 0
    if len(set(tensor.zero_point)) > 1:
        shape = [1] * values.ndim
        shape[tensor.quantized_dimension] = -1
        zero_point = np.reshape(tensor.zero_point, shape)
    elif tensor.zero_point:
        zero_point = tensor.zero_point[0]
    return int(np.count_nonzero(values == zero_point))

# SPDX-License-Identifier: Apache-2.0
"""Count the work of one inference: multiply-adds and bytes of each op, from the shapes alone.

A byte is counted each time that an op reads or writes it: an ideal machine without a cache between ops. Real traffic is
lower where an output stays in a cache, and higher where an op reads a value several times.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tfq.tflite.records import Model, Op, Subgraph, Tensor

# Types whose name does not end in their number of bits; a resource is a handle of 64 bits.
_ITEM_BITS = {"bool": 8, "float8_e4m3fn": 8, "float8_e5m2": 8}
# Ops without arithmetic on the values of their inputs, which only exist in the graph.
_NO_COPY = frozenset(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"))


@dataclass(frozen=True, kw_only=True)
class OpWorkload:
    """The work of an op in one inference.

    Attributes:
        index: The index of the op in subgraph 0.
        name: Its name.
        keras_layer: The Keras layer that it came from, or None.
        multiply_adds: Multiplications that are added up: of convolutions, matrix products and recurrent layers; 0 for
            other ops. None if the op is a custom op or runs a subgraph, whose work is not known.
        weight_bytes: Bytes of the constants that it reads.
        input_bytes: Bytes of the other tensors that it reads.
        output_bytes: Bytes that it writes.
    """

    index: int
    name: str
    keras_layer: str | None
    multiply_adds: int | None
    weight_bytes: int
    input_bytes: int
    output_bytes: int

    @property
    def bytes_moved(self) -> int:
        """All bytes that the op reads and writes."""
        return self.weight_bytes + self.input_bytes + self.output_bytes

    @property
    def intensity(self) -> float | None:
        """Multiply-adds for each byte moved; None if either is unknown or 0."""
        return self.multiply_adds / self.bytes_moved if self.multiply_adds and self.bytes_moved else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "bytes_moved": self.bytes_moved, "intensity": self.intensity}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work of one inference at the model's batch size.

    Attributes:
        batch: Examples in one inference.
        ops: The work of each op of subgraph 0.
    """

    batch: int
    ops: tuple[OpWorkload, ...]

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of all ops whose work is known."""
        return sum(op.multiply_adds or 0 for op in self.ops)

    @property
    def bytes_moved(self) -> int:
        """The bytes that all ops read and write."""
        return sum(op.bytes_moved for op in self.ops)

    @property
    def intensity(self) -> float | None:
        """Multiply-adds for each byte moved; None if there are none."""
        return self.multiply_adds / self.bytes_moved if self.multiply_adds and self.bytes_moved else None

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of the ops whose multiply-adds are not known."""
        return tuple(dict.fromkeys(op.name for op in self.ops if op.multiply_adds is None))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: the totals, and `ops`."""
        return {
            "batch": self.batch,
            "multiply_adds": self.multiply_adds,
            "bytes_moved": self.bytes_moved,
            "intensity": self.intensity,
            "unknown": list(self.unknown),
            "ops": [op.to_dict() for op in self.ops],
        }


def workload(model: Model) -> Workload:
    """Return the work of one inference of subgraph 0. A dynamic dimension counts as its size in the file."""
    graph = model.main_subgraph
    shapes = [tensor.shape for tensor in graph.input_tensors]
    return Workload(
        batch=max(1, shapes[0][0]) if shapes and shapes[0] else 1, ops=tuple(_workload(graph, op) for op in graph.ops)
    )


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's values; values of fewer than 8 bits are packed."""
    digits = "".join(letter for letter in tensor.dtype if letter.isdigit())
    bits = _ITEM_BITS.get(tensor.dtype) or (int(digits) if digits else 64)
    return -(-math.prod(tensor.shape) * bits // 8)


def peak_activation_bytes(model: Model) -> int:
    """Return the most bytes of tensors in subgraph 0 that are alive at the same time: a lower bound of the arena.

    A tensor is alive from the op that writes it to the last op that reads it; inputs of the model from the start, its
    outputs until the end, variables always. Constants are not counted, and neither are alignment, scratch memory of
    kernels and the runtime's own structures.
    """
    graph = model.main_subgraph
    count = len(graph.ops)
    first = dict.fromkeys(graph.inputs, 0)
    last = dict.fromkeys(graph.outputs, count - 1)
    for position, op in enumerate(graph.ops):
        for index in op.tensors:
            first.setdefault(index, position)
            last[index] = max(last.get(index, 0), position)
    changes = [0] * (count + 1)
    for index, start in first.items():
        tensor = graph.tensors[index]
        if tensor.is_constant:
            continue
        start, end = (0, count - 1) if tensor.is_variable else (start, last.get(index, start))
        changes[start] += tensor_bytes(tensor)
        changes[end + 1] -= tensor_bytes(tensor)
    return max(itertools.accumulate(changes), default=0)


def _workload(graph: Subgraph, op: Op) -> OpWorkload:
    inputs = [graph.tensors[index] for index in op.inputs if index >= 0]
    weights = sum(tensor_bytes(tensor) for tensor in inputs if tensor.is_constant)
    read = sum(tensor_bytes(tensor) for tensor in inputs if not tensor.is_constant)
    written = sum(tensor_bytes(graph.tensors[index]) for index in op.outputs if index >= 0)
    if op.name in _NO_COPY:
        weights = read = written = 0
    return OpWorkload(
        index=op.index,
        name=op.name,
        keras_layer=op.keras_layer,
        multiply_adds=_multiply_adds(graph, op),
        weight_bytes=weights,
        input_bytes=read,
        output_bytes=written,
    )


def _multiply_adds(graph: Subgraph, op: Op) -> int | None:
    if op.name == "CUSTOM" or op.name.startswith("UNKNOWN_") or op.name in ("IF", "WHILE", "CALL", "CALL_ONCE"):
        return None
    count = _COUNTS.get(op.name)
    return 0 if count is None else count([_shape(graph, index) for index in op.inputs], _shape(graph, op.outputs[0]))


Shape = tuple[int, ...]


def _shape(graph: Subgraph, index: int) -> Shape:
    return graph.tensors[index].shape if index >= 0 else ()


def _of_filter(inputs: list[Shape], output: Shape) -> int:
    """Count a convolution or dense layer: each output value reads one filter (out, ..., in)."""
    return math.prod(output) * math.prod(inputs[1][1:])


def _of_depthwise(inputs: list[Shape], output: Shape) -> int:
    """Count a depthwise convolution: each output value reads one filter of (1, height, width, out)."""
    return math.prod(output) * math.prod(inputs[1][1:3])


def _of_transposed(inputs: list[Shape], output: Shape) -> int:
    """Count a transposed convolution: each value of the input (2) is multiplied with the filters of its channel."""
    weights, source = inputs[1], inputs[2]
    return math.prod(source[:-1]) * math.prod(weights)


def _of_conv_3d(inputs: list[Shape], output: Shape) -> int:
    """Count a 3-D convolution, whose filter is (depth, height, width, in, out)."""
    return math.prod(output) * math.prod(inputs[1][:-1])


def _of_matmul(inputs: list[Shape], output: Shape) -> int:
    """Count a batch of matrix products, whichever of the operands is transposed."""
    return math.prod(output) * (math.prod(inputs[0][-2:]) // max(1, output[-2]))


def _of_lstm(inputs: list[Shape], output: Shape) -> int:
    """Count a fused LSTM: at each step of each example, all weight matrices are used once."""
    matrices = [*inputs[1:9], inputs[16]]  # the weights of inputs, of the recurrent state, and of the projection
    return math.prod(inputs[0][:-1]) * sum(math.prod(shape) for shape in matrices if shape)


_COUNTS: dict[str, Callable[[list[Shape], Shape], int]] = {
    "CONV_2D": _of_filter,
    "FULLY_CONNECTED": _of_filter,
    "DEPTHWISE_CONV_2D": _of_depthwise,
    "TRANSPOSE_CONV": _of_transposed,
    "CONV_3D": _of_conv_3d,
    "BATCH_MATMUL": _of_matmul,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _of_lstm,
}

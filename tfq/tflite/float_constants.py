# SPDX-License-Identifier: Apache-2.0
"""Replace constants that a flatbuffer stores as float16, as integers with a scale, or sparse by float32 constants.

Published files often store their weights in a smaller form:

- DEQUANTIZE or CAST of a constant: the interpreter converts float16 or integers to float32 when it starts.
- DENSIFY of a constant: the interpreter expands a sparse constant when it starts.
- Hybrid ops: the op reads integer weights directly, and its other operands are float32. The weights have one scale, one
  for each channel, or one for each block of values along the last axis, which another tensor of the graph holds.

The first two are replaced exactly: the new constant has the values that these ops compute. An op with float32 weights
instead of integer ones computes without the rounding of activations that a hybrid kernel adds.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.tflite.edit import (
    operator_name,
    pack,
    remove_unused_constants,
    remove_unused_operator_codes,
    remove_unused_tensors,
    unpack,
)
from tfq.tflite.op_types import COPIED_SLOTS, INDEX_INPUTS
from tfq.tflite.schema import TENSOR_TYPES
from tfq.tflite.stored_values import BLOCKWISE, PACKED_BITS, has_blocks, real_values, stored_values, tensor_name

_FLOAT32 = TENSOR_TYPES.index("float32")
_STORED = ("float16", "bfloat16", "int8", "uint8", "int16", *PACKED_BITS)
_CONVERTING = ("DEQUANTIZE", "CAST", "DENSIFY")
# The new constants of a file may have 64 times its size, which no real file reaches.
_LARGEST_FACTOR, _FREE_BYTES, _FLATBUFFER_BYTES = 64, 1 << 26, (1 << 31) - (1 << 20)


@dataclass(frozen=True, kw_only=True)
class FloatConstants:
    """A flatbuffer after `with_float_constants`.

    Attributes:
        content: Its bytes.
        stored: Stored type, such as "float16", "int8" or "sparse float16" -> the number of constants that were
            replaced.
        hybrid_ops: The names of the ops whose weights were integers.
    """

    content: bytes
    stored: Mapping[str, int] = field(default_factory=dict)
    hybrid_ops: tuple[str, ...] = ()


def with_float_constants(data: bytes) -> FloatConstants:
    """Replace the stored constants of all subgraphs by float32 constants; `data` is trusted.

    Ops that convert them are removed, and tensors get new indices. Signatures and metadata stay. The same bytes are
    returned if there is nothing to replace. Constants of integer ops stay as they are.

    Raises:
        InputError: A constant's quantization is not that of TFLite, or the float32 form is too large for a flatbuffer.
        FlatbufferError: A sparse constant, or one with a scale for each block, is damaged.
    """
    edited = unpack(data)
    writer = _Writer(edited, len(data))
    for graph in edited.subgraphs:
        _Graph(edited, graph, writer).replace()
    if not writer.stored:
        return FloatConstants(content=data)
    remove_unused_operator_codes(edited)
    remove_unused_tensors(edited)
    remove_unused_constants(edited)
    content = pack(edited, len(data) + writer.written)
    return FloatConstants(content=content, stored=dict(writer.stored), hybrid_ops=tuple(sorted(writer.hybrid_ops)))


class _Writer:
    """Writes float32 constants into a flatbuffer, equal ones once."""

    def __init__(self, edited: Any, size: int) -> None:
        self._edited = edited
        self._most = min(_LARGEST_FACTOR * size + _FREE_BYTES, _FLATBUFFER_BYTES)
        self._known: dict[Any, int] = {}
        self.written = 0
        self.stored: collections.Counter[str] = collections.Counter()
        self.hybrid_ops: set[str] = set()

    def write(self, source: Any, target: Any, target_type: int, tensors: Sequence[Any]) -> None:
        """Give `target` the values of the constant `source` as `target_type`, which is float32 or the source's type.

        `tensors` are those of its subgraph, which may contain its scales.
        """
        shape = tuple(int(size) for size in ([] if source.shape is None else source.shape))
        keeps_type = target_type == source.type
        has_own_scales = source.sparsity is None and not has_blocks(source)
        key = (source.buffer, source.type, target_type, shape, _quantization_key(source)) if has_own_scales else None
        if key is None or key not in self._known:
            values = self._values(source, shape, tensors, keeps_type=keeps_type)
            self.written += values.nbytes
            buffer = type(self._edited.buffers[source.buffer])()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            self._edited.buffers.append(buffer)
            self._known[key] = len(self._edited.buffers) - 1
        self.stored[f"{'sparse ' if source.sparsity else ''}{TENSOR_TYPES[source.type]}"] += 1
        quantization = source.quantization if keeps_type else None
        target.buffer, target.type, target.sparsity = self._known[key], target_type, None
        target.shape, target.quantization = source.shape, quantization

    def _values(self, source: Any, shape: tuple[int, ...], tensors: Sequence[Any], *, keeps_type: bool) -> NDArray:
        size = math.prod(shape) * (np.dtype(TENSOR_TYPES[source.type]).itemsize if keeps_type else 4)
        if self.written + size > self._most:
            raise InputError(
                f"tensor {tensor_name(source)!r}: the float32 form of the file's constants needs more than "
                f"{self._most:,} bytes, which is too large. Pass a smaller model",
                field="model",
                expected=self._most,
                got=self.written + size,
                limit="large-files",
            )
        if keeps_type:
            return stored_values(self._edited.buffers, source, shape)
        return real_values(self._edited.buffers, source, shape, tensors).astype(np.float32, copy=False)


def _quantization_key(tensor: Any) -> Any:
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return None
    zero_point = b"" if quantization.zeroPoint is None else np.asarray(quantization.zeroPoint).tobytes()
    return np.asarray(quantization.scale).tobytes(), zero_point, quantization.quantizedDimension


class _Graph:
    """Replaces the stored constants of one subgraph."""

    def __init__(self, edited: Any, graph: Any, writer: _Writer) -> None:
        self._edited, self._graph, self._writer = edited, graph, writer

    def replace(self) -> None:
        """Replace them in place."""
        graph, tensors = self._graph, self._graph.tensors
        graph.operators = [op for op in graph.operators or [] if not self._folded(op)]
        for tensor in tensors:
            if tensor.sparsity is not None and self._is_constant(tensor):
                self._writer.write(tensor, tensor, tensor.type, tensors)
        readers = collections.defaultdict(list)
        for op in graph.operators:
            for slot, index in enumerate([] if op.inputs is None else op.inputs):
                readers[int(index)].append((op, slot))
        for index, read in readers.items():
            if index >= 0 and self._is_quantized(tensors[index]):
                self._replace_operand(index, read, readers)

    def _folded(self, op: Any) -> bool:
        """Compute the output of an op that converts a constant; return whether that was possible."""
        name = operator_name(self._edited, op)
        if name not in _CONVERTING:
            return False
        source, target = (self._graph.tensors[int(numbers[0])] for numbers in (op.inputs, op.outputs))
        if not self._is_constant(source):
            return False
        if name == "DENSIFY":
            self._writer.write(source, target, source.type, self._graph.tensors)
            return True
        kind = TENSOR_TYPES[source.type]
        is_float = kind in ("float16", "bfloat16")
        if target.type != _FLOAT32 or not (is_float or (name == "DEQUANTIZE" and self._is_quantized(source))):
            return False
        self._writer.write(source, target, _FLOAT32, self._graph.tensors)
        return True

    def _replace_operand(self, index: int, read: list[tuple[Any, int]], readers: Mapping[int, list]) -> None:
        """Make a quantized constant float32 if all ops that read it compute on floats, or only look values up in it."""
        hybrid, lookups = [], []
        for op, slot in read:
            name = operator_name(self._edited, op)
            if slot in INDEX_INPUTS.get(name, ()):
                return
            if self._computes_on_floats(op):
                hybrid.append(name)
                continue
            if COPIED_SLOTS.get(name) != (slot,):
                return
            converters = [reader for reader, _ in readers.get(int(op.outputs[0]), [])]
            only_converted = all(operator_name(self._edited, other) == "DEQUANTIZE" for other in converters)
            is_output = int(op.outputs[0]) in map(int, self._graph.outputs)
            if not converters or not only_converted or is_output:
                return
            lookups.append((op, converters))
        self._writer.hybrid_ops.update(hybrid)
        tensors = self._graph.tensors
        self._writer.write(tensors[index], tensors[index], _FLOAT32, tensors)
        for op, converters in lookups:
            self._skip(op, converters)

    def _computes_on_floats(self, op: Any) -> bool:
        """Check whether the op reads or writes float32 activations, and no integer activations with a scale."""
        numbers = [int(index) for side in (op.inputs, op.outputs) if side is not None for index in side]
        tensors = [self._graph.tensors[index] for index in numbers if index >= 0]
        activations = [tensor for tensor in tensors if not self._is_constant(tensor)]
        return any(tensor.type == _FLOAT32 for tensor in activations) and not any(map(_has_scale, activations))

    def _skip(self, op: Any, converters: list[Any]) -> None:
        """Let `op` write the output of the DEQUANTIZE ops `converters`, which are removed."""
        graph = self._graph
        is_output = set(map(int, graph.outputs))
        converters = sorted(converters, key=lambda other: int(other.outputs[0]) not in is_output)
        result, removed = int(converters[0].outputs[0]), {id(other) for other in converters}
        others = {int(other.outputs[0]) for other in converters}
        op.outputs = np.array([result], np.int32)
        graph.outputs = np.array([result if int(index) in others else int(index) for index in graph.outputs], np.int32)
        graph.operators = [other for other in graph.operators if id(other) not in removed]
        for other in graph.operators:
            inputs = [result if int(index) in others else int(index) for index in other.inputs]
            other.inputs = np.array(inputs, np.int32)

    def _is_constant(self, tensor: Any) -> bool:
        data = self._edited.buffers[tensor.buffer].data if tensor.buffer else None
        return (
            data is not None
            and len(data) > 0
            and not tensor.isVariable
            and TENSOR_TYPES[tensor.type]
            in (
                *_STORED,
                "float32",
            )
        )

    def _is_quantized(self, tensor: Any) -> bool:
        return self._is_constant(tensor) and TENSOR_TYPES[tensor.type] in _STORED[2:] and _has_scale(tensor)


def _has_scale(tensor: Any) -> bool:
    """Check whether a tensor has a scale.

    Raises:
        InputError: It has scales in a form that TFLite's converters do not write.
    """
    quantization = tensor.quantization
    if quantization is None:
        return False
    if quantization.detailsType not in (0, BLOCKWISE):
        raise InputError(
            f"tensor {tensor_name(tensor)!r} has a custom quantization, or one along several axes, which tfq does not "
            "support as the source of a conversion. Pass the float model",
            field="model",
            expected="one scale, or one for each channel or block",
            got=tensor_name(tensor),
            limit="custom-quantization",
        )
    return has_blocks(tensor) or (quantization.scale is not None and len(quantization.scale) > 0)

# SPDX-License-Identifier: Apache-2.0
"""Add outputs to a flatbuffer, so that an interpreter keeps the values of inner tensors.

Only the tables that change are written, in front of the original file. Their references lead to everything else there,
so a model of a hundred megabytes takes as long as a small one. The functions trust their bytes.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfq.tflite.binary import decoding
from tfq.tflite.edit import ALIGNMENT, finished, new_builder, operator_code, pack, unpack

_REDUCTIONS = ("REDUCE_MIN", "REDUCE_MAX", "SUM")


def expose_tensors(data: bytes, tensors: Sequence[int]) -> tuple[bytes, tuple[int, ...]]:
    """Return `data` with additional outputs, and the tensor indices of all outputs.

    Without this, reading an inner tensor from an interpreter silently gives wrong values, because its memory is reused.
    Signatures are removed.

    Args:
        data: The flatbuffer.
        tensors: Indices of tensors of the main subgraph that become outputs. Inputs are ignored.
    """
    model = _unpacked(data)
    graph = model.subgraphs[0]
    graph.outputs, model.signatureDefs = _with_outputs(graph, tensors), []
    return _packed(model, data), tuple(graph.outputs)


def _with_outputs(graph: Any, tensors: Sequence[int]) -> list[int]:
    outputs = list(map(int, graph.outputs))
    present = {*outputs, *map(int, graph.inputs)}
    return [*outputs, *(index for index in dict.fromkeys(tensors) if index not in present)]


class Joined(NamedTuple):
    """A flatbuffer with outputs that hold the values of several tensors.

    Attributes:
        model: The flatbuffer.
        values: The index of the tensor with the values of the joined tensors; -1 if there are none.
        reduced: The index of the tensor with the reductions; -1 if there are none.
    """

    model: bytes
    values: int
    reduced: int


def join_tensors(
    data: bytes,
    joined: Mapping[int, int],
    exposed: Sequence[int] = (),
    reduced: Mapping[int, tuple[Sequence[int], Sequence[int]]] | None = None,
) -> Joined:
    """Return `data` with outputs that hold the values, or reductions of the values, of many tensors.

    Reading one large tensor is much faster than reading many small ones, and a reduction by the model takes the values
    from the cache. Signatures are removed.

    Args:
        data: The flatbuffer.
        joined: {float32 tensor of the main subgraph with a constant shape: its number of values}. The values follow
            each other in this order.
        exposed: Further tensors that become outputs, as in `expose_tensors`.
        reduced: {output of an op: (its shape, axes to reduce)}. The output has the minima of all these tensors in this
            order, then the maxima, then the sums.
    """
    from ai_edge_litert import schema_py_generated as generated

    model = _unpacked(data)
    graph = model.subgraphs[0]
    ops = _Ops(model, generated)
    reduced = reduced or {}
    reductions: list[dict[int, int]] = [{} for _ in _REDUCTIONS]
    if reduced:
        inserted: dict[int, list[Any]] = collections.defaultdict(list)
        for index, (shape, axes) in reduced.items():
            for results, name in zip(reductions, _REDUCTIONS, strict=True):
                result, op = ops.reduction(name, index, shape, axes)
                results[result] = int(np.prod(shape, dtype=np.int64)) // int(np.prod([shape[axis] for axis in axes]))
                inserted[index].append(op)
        # The values are still in the cache right after the op that computes them.
        operators = []
        for op, outputs in zip(graph.operators, ops.outputs, strict=True):
            operators.append(op)
            for index in outputs:
                operators += inserted.pop(index, ())
        graph.operators = [*(op for group in inserted.values() for op in group), *operators]
    values = ops.joined("joined", joined) if joined else -1
    parts = {index: size for results in reductions for index, size in results.items()}
    all_reduced = ops.joined("reduced", parts) if parts else -1
    added = [index for index in (values, all_reduced) if index >= 0]
    graph.outputs, model.signatureDefs = [*_with_outputs(graph, exposed), *added], []
    return Joined(_packed(model, data), values, all_reduced)


class _Ops:
    """Adds ops and tensors to the main subgraph of a ModelT."""

    def __init__(self, model: Any, generated: Any) -> None:
        self._model, self._graph, self._generated = model, model.subgraphs[0], generated
        self._constants: dict[tuple[int, ...], int] = {}
        self.outputs = [() if op.outputs is None else op.outputs for op in self._graph.operators]

    def reduction(self, name: str, index: int, shape: Sequence[int], axes: Sequence[int]) -> tuple[int, Any]:
        """Return a new tensor with a reduction of a tensor, and the op that computes it, which is not added."""
        options = self._generated.ReducerOptionsT()
        options.keepDims = True
        result = self._tensor(f"{name}/{index}", [1 if axis in axes else size for axis, size in enumerate(shape)])
        return result, self._op(name, [index, self._constant(axes)], result, "ReducerOptions", options, version=2)

    def joined(self, name: str, tensors: Mapping[int, int]) -> int:
        """Add a tensor with the values of tensors of these sizes, and return its index."""
        flat = []
        for index, size in tensors.items():
            options = self._generated.ReshapeOptionsT()
            options.newShape = [size]
            flat.append(self._tensor(f"{name}/{index}", [size]))
            shape = self._constant([size])
            self._graph.operators.append(self._op("RESHAPE", [index, shape], flat[-1], "ReshapeOptions", options))
        options = self._generated.ConcatenationOptionsT()
        options.axis = 0
        result = self._tensor(name, [sum(tensors.values())])
        self._graph.operators.append(self._op("CONCATENATION", flat, result, "ConcatenationOptions", options))
        return result

    def _tensor(self, name: str, shape: Sequence[int], buffer: int = 0, kind: str = "FLOAT32") -> int:
        tensor = self._generated.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), buffer
        tensor.type = getattr(self._generated.TensorType, kind)
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _constant(self, values: Sequence[int]) -> int:
        """Return the index of an int32 tensor with these values."""
        key = tuple(values)
        if key not in self._constants:
            buffer = self._generated.BufferT()
            buffer.data = np.asarray(key, "<i4").view(np.uint8)
            self._model.buffers.append(buffer)
            name, place = f"constant/{len(self._graph.tensors)}", len(self._model.buffers) - 1
            self._constants[key] = self._tensor(name, [len(key)], place, "INT32")
        return self._constants[key]

    def _op(self, name: str, inputs: list[int], output: int, kind: str, options: Any, version: int = 1) -> Any:
        op = self._generated.OperatorT()
        op.opcodeIndex = operator_code(self._model, getattr(self._generated.BuiltinOperator, name), version)
        op.inputs, op.outputs = inputs, [output]
        op.builtinOptionsType, op.builtinOptions = getattr(self._generated.BuiltinOptions, kind), options
        return op


class _Stored:
    """A table of the original file, in place of its generated class.

    Attributes:
        outputs: If it is an op, the indices of its outputs.
    """

    def __init__(self, position: int, outputs: Sequence[int] = ()) -> None:
        self._position, self.outputs = position, outputs

    def Pack(self, builder: Any) -> int:
        """Return where the table is: offsets count from the end of the new tables, where the original file begins."""
        return -self._position


def _unpacked(data: bytes) -> Any:
    """Return a ModelT with the tensors, ops and constants of the original file as they are stored there.

    Raises:
        FlatbufferError: As `unpack`.
    """
    with decoding():
        return _stored_model(data)


def _stored_model(data: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as generated

    root = generated.Model.GetRootAs(data)
    buffers = [root.Buffers(index) for index in range(root.BuffersLength())]
    graph = root.Subgraphs(0)
    ops = [graph.Operators(index) for index in range(graph.OperatorsLength())]
    if any(buffer.Offset() > 1 for buffer in buffers) or any(op.LargeCustomOptionsOffset() > 1 for op in ops):
        return unpack(data)  # it has data after the flatbuffer, whose position must not change
    model, main = generated.ModelT(), generated.SubGraphT()
    model.version, model.description = root.Version(), root.Description()
    model.metadata = [_Stored(root.Metadata(index)._tab.Pos) for index in range(root.MetadataLength())]
    operators = (root.OperatorCodes(index) for index in range(root.OperatorCodesLength()))
    model.operatorCodes = [generated.OperatorCodeT.InitFromObj(operator) for operator in operators]
    model.buffers = [_Stored(buffer._tab.Pos) for buffer in buffers]
    others = (root.Subgraphs(index) for index in range(1, root.SubgraphsLength()))
    model.subgraphs = [main, *(_Stored(other._tab.Pos) for other in others)]
    main.name = graph.Name()
    # A missing vector is 0 as an array.
    main.inputs = graph.InputsAsNumpy() if graph.InputsLength() else []
    main.outputs = graph.OutputsAsNumpy() if graph.OutputsLength() else []
    main.tensors = [_Stored(graph.Tensors(index)._tab.Pos) for index in range(graph.TensorsLength())]
    main.operators = [_Stored(op._tab.Pos, op.OutputsAsNumpy() if op.OutputsLength() else ()) for op in ops]
    return model


def _packed(model: Any, data: bytes) -> bytes:
    if not any(isinstance(buffer, _Stored) for buffer in model.buffers):
        return pack(model, len(data))
    builder = new_builder(1 << 16)
    builder.Prep(ALIGNMENT, 0)  # makes the size of the result a multiple of it
    return finished(builder, model) + data

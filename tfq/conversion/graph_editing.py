# SPDX-License-Identifier: Apache-2.0
"""Edit an unpacked flatbuffer: new ops, tensors and constants, other inputs, scales.

`edited` is a ModelT of the schema's object API, as `tflite.unpack` returns it, and `graph` one of its subgraphs; both
are changed in place. Rewrites are in other modules: see the order in the docstring of `quantize`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES


def replace_op(edited: Any, op: Any, name: str, inputs: list[int], kind: int = 0, options: Any = None) -> None:
    """Turn `op` into one called `name`. kind, options: a BuiltinOptions number and its table, 0 for none."""
    op.opcodeIndex = tflite.operator_code(edited, OPERATORS.index(name), 1)
    op.inputs, op.builtinOptionsType, op.builtinOptions = inputs, kind, options


def new_op(edited: Any, name: str, inputs: list[int], output: int, kind: int = 0, options: Any = None) -> Any:
    """Return a new op, which the caller inserts into a graph."""
    from ai_edge_litert import schema_py_generated as generated

    op = generated.OperatorT()
    op.outputs = np.array([output], np.int32)
    replace_op(edited, op, name, inputs, kind, options)
    return op


def add_constant(edited: Any, graph: Any, value: Any, dtype: Any = np.float32) -> int:
    """Add a constant; return its tensor index."""
    from ai_edge_litert import schema_py_generated as generated

    buffer, tensor = generated.BufferT(), generated.TensorT()
    array = np.asarray(value, dtype)
    buffer.data = np.frombuffer(array.tobytes(), np.uint8)
    edited.buffers.append(buffer)
    tensor.shape, tensor.type = list(array.shape), TENSOR_TYPES.index(array.dtype.name)
    tensor.buffer = len(edited.buffers) - 1
    tensor.name = f"tfq/constant_{len(graph.tensors)}"
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def add_tensor(graph: Any, like: int, name: str) -> int:
    """Add an activation with the shape and type of tensor `like`; return its index."""
    from ai_edge_litert import schema_py_generated as generated

    tensor, other = generated.TensorT(), graph.tensors[like]
    tensor.shape, tensor.shapeSignature, tensor.type = other.shape, other.shapeSignature, other.type
    tensor.buffer, tensor.name = 0, name
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def name_of(graph: Any, index: int) -> str:
    """Return a tensor's name as a string; tensors that were read from a file have it as bytes."""
    name = graph.tensors[index].name
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def constant_of(edited: Any, graph: Any, index: int, dtype: str = "float32") -> NDArray | None:
    """Return the flat values of a constant of this type; None of any other tensor."""
    tensor = graph.tensors[int(index)]
    data = edited.buffers[tensor.buffer].data
    if tensor.type != TENSOR_TYPES.index(dtype) or data is None or len(data) == 0:
        return None
    return np.asarray(data, np.uint8).view(dtype)


def sizes_of(tensor: Any) -> list[int]:
    """Return the shape of a tensor, with -1 for each size that is known only when the model runs."""
    signature = tensor.shapeSignature
    return [int(size) for size in (tensor.shape if signature is None or len(signature) == 0 else signature)]


def set_input(op: Any, place: int, tensor: int) -> None:
    """Let `op` read another tensor at `place`."""
    inputs = [int(index) for index in op.inputs]
    inputs[place] = tensor
    op.inputs = np.array(inputs, np.int32)


def replace_reads(ops: Iterable[Any], old: int, new: int) -> None:
    """Let each of `ops` read the tensor `new` wherever it reads `old`."""
    for op in ops:
        op.inputs = np.array([new if int(index) == old else int(index) for index in op.inputs], np.int32)


def set_scale(graph: Any, index: int, scale: float, zero_point: int) -> None:
    """Give a tensor one scale and zero point."""
    from ai_edge_litert import schema_py_generated as generated

    quantization = generated.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.array([scale], np.float32), np.array([zero_point], np.int64)
    graph.tensors[index].quantization = quantization


def scale_of(graph: Any, index: int) -> tuple[float, int]:
    """Return the scale and zero point of a tensor that has one of each."""
    quantization = graph.tensors[int(index)].quantization
    return float(quantization.scale[0]), int(quantization.zeroPoint[0])


def quantize_op(edited: Any, source: int, target: int) -> Any:
    """Return a new QUANTIZE, which the caller inserts into a graph."""
    from ai_edge_litert import schema_py_generated as generated

    kind, options = generated.BuiltinOptions.QuantizeOptions, generated.QuantizeOptionsT()
    return new_op(edited, "QUANTIZE", [source], target, kind, options)


def remove_unread_ops(graph: Any) -> bool:
    """Take out the ops with outputs of which nobody reads any, in place; return whether there were some."""
    needed, kept = {int(index) for index in graph.outputs}, []
    for op in reversed(graph.operators):
        if len(op.outputs) and needed.isdisjoint(map(int, op.outputs)):
            continue
        kept.append(op)
        needed |= {int(index) for index in op.inputs}
    found = len(kept) < len(graph.operators)
    graph.operators = kept[::-1]
    return found


def rewrite_graphs(
    model: bytes, names: Iterable[str], rewrite: Callable[[Any, Any], int], *, forget_tensors: bool = False
) -> bytes:
    """Return the flatbuffer after `rewrite(edited, graph)` changed its graphs in place; the same one without changes.

    Args:
        model: A flatbuffer.
        names: The ops that are rewritten: without any of them nothing is unpacked.
        rewrite: Returns how many changes it made.
        forget_tensors: Whether to take out the tensors that are unused afterwards; those after them get other indices.
    """
    if tflite.operator_names(model).isdisjoint(names):
        return model
    edited = tflite.unpack(model)
    if sum(rewrite(edited, graph) for graph in edited.subgraphs) == 0:
        return model
    if forget_tensors:
        tflite.remove_unused_tensors(edited)
    return tflite.pack(edited, len(model))

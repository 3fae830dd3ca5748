# SPDX-License-Identifier: Apache-2.0
"""Edit an unpacked flatbuffer: add ops, tensors and constants, change inputs and scales.

`edited` is a ModelT of the schema's object API, as `tflite.unpack` returns it, and `graph` is one of its subgraphs.
Both are changed in place. The docstring of `quantize` lists the rewrites that use these helpers.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES


def replace_op(edited: Any, op: Any, name: str, inputs: list[int], kind: int = 0, options: Any = None) -> None:
    """Turn `op` into another op in place.

    Args:
        edited: The flatbuffer.
        op: The op to change. It keeps its outputs.
        name: The new op, such as "MUL".
        inputs: Its input tensors.
        kind: The BuiltinOptions number of `options`; 0 for none.
        options: The table of options.
    """
    op.opcodeIndex = tflite.operator_code(edited, OPERATORS.index(name), 1)
    op.inputs, op.builtinOptionsType, op.builtinOptions = inputs, kind, options


def new_op(edited: Any, name: str, inputs: list[int], output: int, kind: int = 0, options: Any = None) -> Any:
    """Return a new op with one output, which the caller inserts into a graph; arguments as in `replace_op`."""
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
    """Return the values of a constant of this type as a flat array; None for any other tensor."""
    tensor = graph.tensors[int(index)]
    data = edited.buffers[tensor.buffer].data
    if tensor.type != TENSOR_TYPES.index(dtype) or data is None or len(data) == 0:
        return None
    return np.asarray(data, np.uint8).view(dtype)


def sizes_of(tensor: Any) -> list[int]:
    """Return the shape of a tensor, with -1 for each dynamic size."""
    signature = tensor.shapeSignature
    return [int(size) for size in (tensor.shape if signature is None or len(signature) == 0 else signature)]


def set_input(op: Any, place: int, tensor: int) -> None:
    """Replace input number `place` of `op` by another tensor."""
    inputs = [int(index) for index in op.inputs]
    inputs[place] = tensor
    op.inputs = np.array(inputs, np.int32)


def replace_reads(ops: Iterable[Any], old: int, new: int) -> None:
    """Replace the tensor `old` by `new` in the inputs of `ops`."""
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
    """Remove the ops none of whose outputs is read, in place; return whether there were any."""
    needed, remaining = {int(index) for index in graph.outputs}, []
    for op in reversed(graph.operators):
        if len(op.outputs) and needed.isdisjoint(map(int, op.outputs)):
            continue
        remaining.append(op)
        needed |= {int(index) for index in op.inputs}
    changed = len(remaining) < len(graph.operators)
    graph.operators = remaining[::-1]
    return changed


def rewrite_graphs(
    model: bytes, names: Iterable[str], rewrite: Callable[[Any, Any], int], *, remove_tensors: bool = False
) -> bytes:
    """Rewrite all subgraphs of a flatbuffer; return the same bytes if nothing changed.

    Args:
        model: A flatbuffer.
        names: The ops that are rewritten. A flatbuffer without any of them is not unpacked.
        rewrite: Called with (edited, graph) for each subgraph. It changes them in place and returns the number of
            changes.
        remove_tensors: Whether to remove tensors that are unused afterwards, which renumbers the others.
    """
    if tflite.operator_names(model).isdisjoint(names):
        return model
    edited = tflite.unpack(model)
    if sum(rewrite(edited, graph) for graph in edited.subgraphs) == 0:
        return model
    if remove_tensors:
        tflite.remove_unused_tensors(edited)
    return tflite.pack(edited, len(model))

# SPDX-License-Identifier: Apache-2.0
"""Ops and tensors of an unpacked flatbuffer (`tflite.unpack`) changed and added, as the rewriting of it needs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES


def become(edited: Any, op: Any, name: str, inputs: list[int], kind: int = 0, options: Any = None) -> None:
    """Makes `op` one called `name` with `inputs`. kind, options: a BuiltinOptions number and its table, 0 for none."""
    op.opcodeIndex = tflite.operator_code(edited, OPERATORS.index(name), 1)
    op.inputs, op.builtinOptionsType, op.builtinOptions = inputs, kind, options


def new_op(edited: Any, name: str, inputs: list[int], output: int, kind: int = 0, options: Any = None) -> Any:
    """An op that stands in no graph yet."""
    from ai_edge_litert import schema_py_generated as generated

    op = generated.OperatorT()
    op.outputs = np.array([output], np.int32)
    become(edited, op, name, inputs, kind, options)
    return op


def add_constant(edited: Any, graph: Any, value: Any, dtype: Any = np.float32) -> int:
    """The index of a new tensor that holds `value`."""
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
    """The index of a new activation of the shape and type of tensor `like`."""
    from ai_edge_litert import schema_py_generated as generated

    tensor, other = generated.TensorT(), graph.tensors[like]
    tensor.shape, tensor.shapeSignature, tensor.type = other.shape, other.shapeSignature, other.type
    tensor.buffer, tensor.name = 0, name
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def name_of(graph: Any, index: int) -> str:
    """A tensor's name, which is bytes where it was read from a file."""
    name = graph.tensors[index].name
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def constant_of(edited: Any, graph: Any, index: int) -> NDArray | None:
    """The flat values of a float32 constant; None for all else."""
    tensor = graph.tensors[int(index)]
    data = edited.buffers[tensor.buffer].data
    if tensor.type != TENSOR_TYPES.index("float32") or data is None or len(data) == 0:
        return None
    return np.asarray(data, np.uint8).view(np.float32)

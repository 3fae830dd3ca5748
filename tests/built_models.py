# SPDX-License-Identifier: Apache-2.0
"""Flatbuffers built by hand from the schema: ops that no converter emits, or forms that tfq never writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as generated

from tfq import tflite
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES


@dataclass(frozen=True)
class T:
    """A tensor. scale: set if it is quantized. values: set if it is a constant. is_state: a variable tensor."""

    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0
    values: Any = None
    is_state: bool = False


def constant(values: Any, dtype: str = "float32") -> T:
    array = np.asarray(values, dtype)
    return T(dtype, array.shape, values=array)


@dataclass(frozen=True)
class Call:
    """An op. inputs, outputs: names of tensors; None omits one. options: kind and table of builtin options."""

    op: str
    inputs: Sequence[str | None]
    outputs: Sequence[str]
    options: Any = None
    version: int = 1


def build(tensors: Mapping[str, T], ops: Sequence[Call], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Build a flatbuffer with one subgraph and the signature `serving_default`, which has the names of the tensors."""
    model, graph = generated.ModelT(), generated.SubGraphT()
    model.version, model.description, model.metadata = 3, "built by hand", []
    model.buffers, model.operatorCodes, model.subgraphs = [generated.BufferT()], [], [graph]
    places = {name: place for place, name in enumerate(tensors)}
    graph.name, graph.tensors, graph.operators = "main", [], []
    for name, tensor in tensors.items():
        graph.tensors.append(_tensor(model, name, tensor))
    for call in ops:
        op = generated.OperatorT()
        op.opcodeIndex = tflite.operator_code(model, OPERATORS.index(call.op), call.version)
        op.inputs = np.array([-1 if name is None else places[name] for name in call.inputs], np.int32)
        op.outputs = np.array([places[name] for name in call.outputs], np.int32)
        if call.options is not None:
            kind = type(call.options).__name__.removesuffix("T")
            op.builtinOptionsType, op.builtinOptions = getattr(generated.BuiltinOptions, kind), call.options
        graph.operators.append(op)
    graph.inputs = np.array([places[name] for name in inputs], np.int32)
    graph.outputs = np.array([places[name] for name in outputs], np.int32)
    signature = ({name: places[name] for name in inputs}, {name: places[name] for name in outputs})
    return tflite.add_signature(tflite.pack(model, 10_000), *signature)


def _tensor(model: Any, name: str, tensor: T) -> Any:
    result, buffer = generated.TensorT(), generated.BufferT()
    result.name, result.shape, result.type = name, list(tensor.shape), TENSOR_TYPES.index(tensor.dtype)
    result.isVariable, result.hasRank = tensor.is_state, True
    if tensor.values is not None:
        buffer.data = np.frombuffer(np.asarray(tensor.values, tensor.dtype).tobytes(), np.uint8)
    if tensor.scale is not None:
        result.quantization = generated.QuantizationParametersT()
        result.quantization.scale, result.quantization.zeroPoint = [tensor.scale], [tensor.zero_point]
    model.buffers.append(buffer)
    result.buffer = len(model.buffers) - 1
    return result

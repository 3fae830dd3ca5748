# SPDX-License-Identifier: Apache-2.0
"""A float tensor of a flatbuffer that is read rounded to codes: a QUANTIZE and a DEQUANTIZE behind it."""

from typing import Any

import numpy as np

from tfq import tflite
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES


def round_tensor(edited: Any, tensor: int, scale: float, zero_point: int, highest: float | None = None) -> None:
    """Let all that reads a float tensor of the main subgraph, outputs among them, read it rounded to int8 codes.

    edited: the flatbuffer in its object form, which is changed. highest: values above it are cut off before, for codes
    that end below 127; the lowest code is -128.
    """
    from ai_edge_litert import schema_py_generated as generated

    graph, shape = edited.subgraphs[0], edited.subgraphs[0].tensors[tensor]
    first = len(graph.tensors)

    def add_tensor(name: str, kind: str) -> Any:
        made = generated.TensorT()
        made.shape, made.shapeSignature = shape.shape, shape.shapeSignature
        made.name, made.type, made.buffer = f"tfq/{name}_{tensor}", TENSOR_TYPES.index(kind), 0
        graph.tensors.append(made)
        return made

    codes = add_tensor("codes", "int8")
    add_tensor("rounded", "float32")
    codes.quantization = generated.QuantizationParametersT()
    codes.quantization.scale, codes.quantization.zeroPoint = [scale], [zero_point]
    steps = [("QUANTIZE", [tensor], first), ("DEQUANTIZE", [first], first + 1)]
    if highest is not None:
        add_tensor("cut", "float32")
        limit = add_tensor("highest", "float32")
        limit.shape, limit.shapeSignature = [], None
        edited.buffers.append(generated.BufferT())
        edited.buffers[-1].data = np.frombuffer(np.float32(highest).tobytes(), np.uint8)
        limit.buffer = len(edited.buffers) - 1
        steps = [("MINIMUM", [tensor, first + 3], first + 2), ("QUANTIZE", [first + 2], first), steps[1]]
    place = next(place for place, op in enumerate(graph.operators) if tensor in map(int, op.outputs))
    for op in graph.operators[place + 1 :]:
        op.inputs = np.array([first + 1 if int(index) == tensor else int(index) for index in op.inputs], np.int32)
    graph.outputs = [first + 1 if int(index) == tensor else int(index) for index in graph.outputs]
    for signature in edited.signatureDefs or []:
        for entry in signature.outputs:
            entry.tensorIndex = first + 1 if entry.tensorIndex == tensor else entry.tensorIndex
    ops = []
    for name, sources, target in steps:
        op = generated.OperatorT()
        op.opcodeIndex = tflite.operator_code(edited, OPERATORS.index(name), 1)
        op.inputs, op.outputs = np.array(sources, np.int32), np.array([target], np.int32)
        if name == "MINIMUM":
            op.builtinOptionsType = generated.BuiltinOptions.MaximumMinimumOptions
            op.builtinOptions = generated.MaximumMinimumOptionsT()
        ops.append(op)
    graph.operators[place + 1 : place + 1] = ops

# SPDX-License-Identifier: Apache-2.0
"""Regressions, seeded into tests/golden/digits_int8.tflite without the code under test."""

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from golden_models import changed, golden

BASE, FLOAT = "digits_int8", "digits_float32"
# A layer of that file -> the number of its op.
CONV2, DEPTHWISE, LAST = 4, 1, 7


def with_output_scale_doubled() -> bytes:
    """Return the model in which the scale of conv2's output is twice as large, as a wrong converter would write it."""

    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        quantization = graph.tensors[graph.operators[CONV2].outputs[0]].quantization
        quantization.scale = [2 * scale for scale in quantization.scale]

    return changed(golden(BASE), change)


def with_weight_scale_doubled() -> bytes:
    """Return the model in which the scales of the weights of `depthwise` are twice as large."""

    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        quantization = graph.tensors[graph.operators[DEPTHWISE].inputs[1]].quantization
        quantization.scale = [2 * scale for scale in quantization.scale]

    return changed(golden(BASE), change)


def with_float_layer() -> bytes:
    """Return the model in which the ADD of the layer `residual` computes in float32."""

    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
        ops = [names[code.builtinCode] for code in model.operatorCodes]
        position = next(i for i, op in enumerate(graph.operators) if ops[op.opcodeIndex] == "ADD")
        op = graph.operators[position]

        def converter(name: str, source: int, target: int) -> Any:
            if name not in ops:
                code = schema.OperatorCodeT()
                code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
                code.version = 1
                model.operatorCodes.append(code)
                ops.append(name)
            result = schema.OperatorT()
            result.opcodeIndex, result.inputs, result.outputs = ops.index(name), [source], [target]
            return result

        def in_float(index: int) -> int:
            tensor = copy.copy(graph.tensors[index])
            tensor.type, tensor.quantization, tensor.buffer = schema.TensorType.FLOAT32, None, 0
            graph.tensors.append(tensor)
            return len(graph.tensors) - 1

        inputs, output = [in_float(index) for index in op.inputs], in_float(op.outputs[0])
        before = [converter("DEQUANTIZE", source, target) for source, target in zip(op.inputs, inputs, strict=True)]
        after = converter("QUANTIZE", output, op.outputs[0])
        op.inputs, op.outputs = inputs, [output]
        graph.operators[position : position + 1] = [*before, op, after]

    return changed(golden(BASE), change)


def with_classes_exchanged(one: int = 3, other: int = 8) -> bytes:
    """Return the model that computes the probability of class `one` where that of `other` was, and vice versa."""

    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
        dense = [
            op for op in graph.operators if names[model.operatorCodes[op.opcodeIndex].builtinCode] == "FULLY_CONNECTED"
        ][-1]
        for index in dense.inputs[1:]:
            tensor = graph.tensors[index]
            order = np.arange(tensor.shape[0])
            order[[one, other]] = order[[other, one]]
            buffer = model.buffers[tensor.buffer]
            buffer.data = np.asarray(buffer.data, np.uint8).reshape(tensor.shape[0], -1)[order].reshape(-1)
            if len(tensor.quantization.scale) > 1:
                tensor.quantization.scale = list(np.asarray(tensor.quantization.scale)[order])

    return changed(golden(BASE), change)

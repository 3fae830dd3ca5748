# SPDX-License-Identifier: Apache-2.0
"""Rewrite integer 1x1 convolutions with a stride for targets that compute them wrongly.

LiteRT's GPU accelerator (2.3.0) computes such a convolution as if its stride were 1, and writes the values to a tensor
of the smaller size. A MAX_POOL_2D of size 1 takes the stride instead: it selects the values that the convolution reads.
The results are the same to the bit on every runtime.
"""

from typing import Any

from tfq import tflite
from tfq.auditing.schemes import is_strided_pointwise
from tfq.conversion.graph_editing import add_tensor, name_of, new_op, set_input
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES

# From this version on, MAX_POOL_2D has an int8 kernel.
_INT8_VERSION = 2


def without_strided_pointwise(model: bytes) -> bytes:
    """Return the flatbuffer with a MAX_POOL_2D before each strided integer 1x1 convolution, whose stride becomes 1.

    Convolutions that read the same tensor with the same strides share one.

    Args:
        model: A flatbuffer from any tool.
    """
    parsed = tflite.read(model)
    places = [[op.index for op in graph.ops if is_strided_pointwise(graph, op)] for graph in parsed.subgraphs]
    if not any(places):
        return model
    edited = tflite.unpack(model)
    for graph, ops in zip(edited.subgraphs, places, strict=True):
        _rewrite(edited, graph, frozenset(ops))
    return tflite.pack(edited, len(model))


def _rewrite(edited: Any, graph: Any, ops: frozenset[int]) -> None:
    """Rewrite the ops with these numbers in place."""
    result: list[Any] = []
    selected: dict[tuple[int, int, int], int] = {}
    for number, op in enumerate(graph.operators):
        if number in ops:
            source, options = int(op.inputs[0]), op.builtinOptions
            key = (source, options.strideH, options.strideW)
            if key not in selected:
                selected[key] = _add_selection(graph, source, int(op.outputs[0]))
                result.append(_selecting_op(edited, graph, *key, selected[key]))
            set_input(op, 0, selected[key])
            options.strideH = options.strideW = 1
        result.append(op)
    graph.operators = result


def _add_selection(graph: Any, source: int, output: int) -> int:
    """Add the tensor of the selected values: the convolution's output size with the channels of its input."""
    index = add_tensor(graph, source, f"{name_of(graph, source)}/strided")
    tensor, other = graph.tensors[index], graph.tensors[output]
    tensor.quantization = graph.tensors[source].quantization
    tensor.shape = [*other.shape[:3], graph.tensors[source].shape[3]]
    if other.shapeSignature is not None and len(other.shapeSignature):
        tensor.shapeSignature = [*other.shapeSignature[:3], graph.tensors[source].shape[3]]
    else:
        tensor.shapeSignature = None
    return index


def _selecting_op(edited: Any, graph: Any, source: int, stride_h: int, stride_w: int, output: int) -> Any:
    from ai_edge_litert import schema_py_generated as generated

    options = generated.Pool2DOptionsT()
    options.padding, options.filterHeight, options.filterWidth = generated.Padding.VALID, 1, 1
    options.strideH, options.strideW = stride_h, stride_w
    op = new_op(edited, "MAX_POOL_2D", [source], output, generated.BuiltinOptions.Pool2DOptions, options)
    if graph.tensors[source].type == TENSOR_TYPES.index("int8"):
        op.opcodeIndex = tflite.operator_code(edited, OPERATORS.index("MAX_POOL_2D"), _INT8_VERSION)
    return op

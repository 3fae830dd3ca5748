# SPDX-License-Identifier: Apache-2.0
"""Ops that TensorFlow's quantizer (2.21) leaves in float, though TFLite's kernels can compute the same in int8.

Before it, on the float flatbuffer and exact to the bit, what is another op's work: a square is a product. There too,
what would be computed by way of an exponential without bounds, one step of which is wider than all that matters
(bounded_exponentials.py). After it, on the integer one, what it does not know has an int8 kernel: the op takes the
codes on both sides of its float island.
"""

from typing import Any

import numpy as np

from tfq import tflite
from tfq.conversion.bounded_exponentials import bound_exponentials
from tfq.conversion.graph_edits import add_constant, become, new_op
from tfq.quant_math import dequantize, quantize
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES

_FLOAT32, _BOOL, _INT8 = (TENSOR_TYPES.index(name) for name in ("float32", "bool", "int8"))
# Of ops with several outputs the quantizer leaves now one, now another in float: the gates of an unrolled LSTM came out
# in three ways of the same bytes, in one process.
_DIVIDING = ("SPLIT", "SPLIT_V", "UNPACK")
_REWRITTEN = ("SQUARE", "NEG", "CAST", *_DIVIDING)
_HAVE_KERNEL = ("ELU",)
# What gives an index alone, the same one by codes as by what they stand for.
_INDEXING = ("ARG_MAX", "ARG_MIN")
# What copies the codes of its constants, which the quantizer gives scales of their own: op -> their places.
_COPYING = {"ONE_HOT": (2, 3)}


def in_quantizable_ops(model: bytes) -> bytes:
    """A float flatbuffer with the same tensors and values, in ops that the quantizer knows.

    x² becomes x * x, -x becomes x * -1, a condition cast to 0 and 1 selects them, and each part of a tensor that is
    split or unpacked is cut out by itself: each bit stays. Exponentials are bounded, within float32's rounding.
    """
    if tflite.operator_names(model).isdisjoint((*_REWRITTEN, "EXP")):
        return model
    edited = tflite.unpack(model)
    for graph in edited.subgraphs:
        bound_exponentials(edited, graph)
        parts = [_parts(edited, graph, op) for op in graph.operators]
        graph.operators = [op for ops in parts for op in ops]
        for op in graph.operators:
            _rewrite(edited, graph, op)
    tflite.forget_unused_codes(edited)
    return tflite.pack(edited, len(model))


def with_kernels_of_int8(model: bytes) -> bytes:
    """An integer flatbuffer in which ELU computes on codes, by the scales that stood on its float island's shores.

    So does what looks for the largest or the least value, which QAT leaves behind a DEQUANTIZE. ONE_HOT gives codes of
    its output: the 0 of a scale of its own, copied, would stand for one half there.
    """
    if tflite.operator_names(model).isdisjoint((*_HAVE_KERNEL, *_INDEXING, *_COPYING)):
        return model
    edited = tflite.unpack(model)
    if sum(_lift(edited, graph) + _in_output_codes(edited, graph) for graph in edited.subgraphs) == 0:
        return model
    tflite.forget_unused_codes(edited)
    tflite.forget_unused_tensors(edited)
    return tflite.pack(edited, len(model))


def _parts(edited: Any, graph: Any, op: Any) -> list[Any]:
    """An op for each output of one that divides a float tensor; any other op as it is."""
    name, outputs = tflite.operator_name(edited, op), [graph.tensors[int(index)] for index in op.outputs]
    if name not in _DIVIDING or any(tensor.type != _FLOAT32 for tensor in outputs):
        return [op]
    divided = int(op.inputs[1 if name == "SPLIT" else 0])
    sizes = _sizes(graph.tensors[divided])
    axis = op.builtinOptions.axis if name == "UNPACK" else _axis(edited, graph, op.inputs[0 if name == "SPLIT" else 2])
    lengths = [1 if name == "UNPACK" or axis is None else _sizes(tensor)[axis] for tensor in outputs]
    if axis is None or min(lengths) < 0:
        return [op]
    found, begin = [], np.zeros_like(sizes)
    for index, length in zip(op.outputs, lengths, strict=True):
        sizes[axis] = length
        if name == "UNPACK":
            found.append(_strided_slice(edited, graph, divided, int(index), begin, axis % len(sizes)))
        else:
            found.append(_slice(edited, graph, divided, int(index), begin, sizes))
        begin[axis] += length
    return found


def _slice(edited: Any, graph: Any, divided: int, part: int, begin: Any, sizes: Any) -> Any:
    from ai_edge_litert import schema_py_generated as generated

    inputs = [divided, *(add_constant(edited, graph, each, np.int32) for each in (begin, sizes))]
    return new_op(edited, "SLICE", inputs, part, generated.BuiltinOptions.SliceOptions, generated.SliceOptionsT())


def _strided_slice(edited: Any, graph: Any, divided: int, part: int, begin: Any, axis: int) -> Any:
    """One place of `axis`, which the output does not have, and all of the others."""
    from ai_edge_litert import schema_py_generated as generated

    options = generated.StridedSliceOptionsT()
    options.shrinkAxisMask = 1 << axis
    options.beginMask = options.endMask = (1 << len(begin)) - 1 - options.shrinkAxisMask
    numbers = (begin, begin + 1, np.ones_like(begin))
    inputs = [divided, *(add_constant(edited, graph, each, np.int32) for each in numbers)]
    return new_op(edited, "STRIDED_SLICE", inputs, part, generated.BuiltinOptions.StridedSliceOptions, options)


def _sizes(tensor: Any) -> Any:
    """Its shape, with -1 for what is left open: to SLICE, all. XNNPACK wants the numbers where there are any."""
    signature = tensor.shapeSignature
    return np.array(tensor.shape if signature is None or len(signature) == 0 else signature, np.int32)


def _axis(edited: Any, graph: Any, index: Any) -> int | None:
    """The value of a constant tensor of one whole number; None where it is computed."""
    data = edited.buffers[graph.tensors[int(index)].buffer].data
    return None if data is None or len(data) == 0 else int(np.asarray(data, np.uint8).view(np.int32)[0])


def _rewrite(edited: Any, graph: Any, op: Any) -> None:
    from ai_edge_litert import schema_py_generated as generated

    name, first = tflite.operator_name(edited, op), int(op.inputs[0])
    is_float = graph.tensors[int(op.outputs[0])].type == _FLOAT32
    if not is_float or (name != "CAST" and graph.tensors[first].type != _FLOAT32):
        return
    if name in ("SQUARE", "NEG"):
        factor = first if name == "SQUARE" else add_constant(edited, graph, -1.0)
        options = generated.MulOptionsT()
        become(edited, op, "MUL", [first, factor], generated.BuiltinOptions.MulOptions, options)
    elif name == "CAST" and graph.tensors[first].type == _BOOL:
        one, zero = add_constant(edited, graph, 1.0), add_constant(edited, graph, 0.0)
        options = generated.SelectV2OptionsT()
        become(edited, op, "SELECT_V2", [first, one, zero], generated.BuiltinOptions.SelectV2Options, options)


def _lift(edited: Any, graph: Any) -> int:
    """Let the ops compute on codes where nobody needs what they get or give in float; how many do."""
    named = [(tflite.operator_name(edited, op), op) for op in graph.operators]
    quantizes = [op for name, op in named if name == "QUANTIZE" and _is_int8(graph, op.outputs)]
    dequantizes = [op for name, op in named if name == "DEQUANTIZE" and _is_int8(graph, op.inputs)]
    given = {int(op.outputs[0]): int(op.inputs[0]) for op in dequantizes}
    made = {int(op.inputs[0]): int(op.outputs[0]) for op in quantizes}
    chosen = {int(op.outputs[0]): op for name, op in named if name in _HAVE_KERNEL}

    def is_free(tensor: int, op: Any) -> bool:
        source, readers = int(op.inputs[0]), [each for each in graph.operators if tensor in map(int, each.inputs)]
        others = [each for each in readers if int(each.outputs[0]) not in chosen]
        return (
            (source in given or source in chosen)
            and [int(each.outputs[0]) for each in others] == [made.get(tensor)]
            and tensor not in map(int, graph.outputs)
        )

    while blocked := [tensor for tensor, op in chosen.items() if not is_free(tensor, op)]:
        for tensor in blocked:
            del chosen[tensor]
    graph.operators = [op for op in graph.operators if not (op in quantizes and int(op.inputs[0]) in chosen)]
    for tensor, op in chosen.items():
        source, codes = int(op.inputs[0]), graph.tensors[made[tensor]]
        # A layer is known by the name of what it gives.
        graph.tensors[tensor].name, codes.name = codes.name, graph.tensors[tensor].name
        op.inputs, op.outputs = [given[source] if source in given else made[source]], [made[tensor]]
    indexing = [(name, op) for name, op in named if name in _INDEXING and int(op.inputs[0]) in given]
    for name, op in indexing:
        op.inputs = [given[int(op.inputs[0])], *op.inputs[1:]]
        op.opcodeIndex = tflite.operator_code(edited, OPERATORS.index(name), 2)
    needed = {int(index) for op in graph.operators for index in op.inputs} | set(map(int, graph.outputs))
    graph.operators = [op for op in graph.operators if op not in dequantizes or int(op.outputs[0]) in needed]
    return len(chosen) + len(indexing)


def _in_output_codes(edited: Any, graph: Any) -> int:
    """Let the ops that copy codes of constants have them by their output's scale; how many constants were changed."""
    changed = 0
    for op in graph.operators:
        places = _COPYING.get(tflite.operator_name(edited, op), ())
        if not places or not _is_int8(graph, op.outputs):
            continue
        op.inputs = [int(index) for index in op.inputs]
        for place in places:
            given = graph.tensors[op.inputs[place]]
            data = edited.buffers[given.buffer].data
            if data is None or not _is_int8(graph, [op.inputs[place]]):
                continue
            values = dequantize(np.asarray(data, np.uint8).view(np.int8), *_scale_of(graph, op.inputs[place]))
            codes = quantize(values.reshape(given.shape), *_scale_of(graph, op.outputs[0]))
            constant = add_constant(edited, graph, codes, np.int8)
            graph.tensors[constant].quantization = graph.tensors[int(op.outputs[0])].quantization
            op.inputs[place] = constant
            changed += 1
    return changed


def _scale_of(graph: Any, index: Any) -> tuple[float, int]:
    quantization = graph.tensors[int(index)].quantization
    return float(quantization.scale[0]), int(quantization.zeroPoint[0])


def _is_int8(graph: Any, tensors: Any) -> bool:
    return bool(graph.tensors[int(tensors[0])].type == _INT8)

# SPDX-License-Identifier: Apache-2.0
"""Replace ops of a calibrated float flatbuffer that do not work with int16 activations.

TensorFlow's quantizer (2.21) writes int16 ops for which the runtime (ai-edge-litert 2.3) has no int16 kernel, or whose
scales lose the function. Neither the quantizer nor an audit of types notices:

- SQUARED_DIFFERENCE (LayerNormalization, variance, square(x - c)): invoke fails. It becomes SUB and MUL.
- SUM: the output gets the input's scale and saturates. It becomes MEAN and MUL by the number of values.
- MINIMUM, MAXIMUM with a far constant (min(x, 1e6) in UnitNormalization): both operands share one scale, so x becomes
  0. The constant moves to the end of the other operand's range, where int16 clips anyway.
- A bias that several ops read (the converter stores equal constants once): it gets the scale of one op, and is wrong
  for the others. Each op gets a separate bias.
- A model whose first or last op stays float: the quantizer rejects int16 inputs and outputs. A RESHAPE to the same
  shape becomes the first or last op.
"""

import math
from typing import Any

import numpy as np

from tfq import tflite
from tfq.conversion.fake_quant import Ranges
from tfq.conversion.graph_editing import (
    add_constant,
    add_tensor,
    constant_of,
    name_of,
    new_op,
    replace_op,
    replace_reads,
    set_input,
    sizes_of,
)
from tfq.tflite.op_types import WEIGHTED_SLOTS
from tfq.tflite.schema import TENSOR_TYPES

_FLOAT32 = TENSOR_TYPES.index("float32")
# Op -> the end of the other operand's range that bounds its constant: 0 is the lower end, 1 the upper end.
_BOUNDED = {"MINIMUM": 1, "MAXIMUM": 0}
_REWRITTEN = frozenset((*_BOUNDED, "SQUARED_DIFFERENCE", "SUM"))


def with_int16_forms(model: bytes, ranges: Ranges) -> tuple[bytes, Ranges]:
    """Replace the ops of a float flatbuffer that do not work with int16 activations.

    Args:
        model: A float flatbuffer.
        ranges: {(subgraph, tensor): (minimum, maximum)} of its activations.

    Returns:
        The flatbuffer, in which the tensors of `model` keep their indices, and the ranges including the new tensors.
    """
    if tflite.operator_names(model).isdisjoint((*_REWRITTEN, *WEIGHTED_SLOTS)):
        return model, ranges
    edited, results = tflite.unpack(model), dict(ranges)
    for number, graph in enumerate(edited.subgraphs):
        operators = []
        own = {tensor: ends for (owner, tensor), ends in ranges.items() if owner == number}
        for op in graph.operators:
            name = tflite.operator_name(edited, op)
            if graph.tensors[int(op.outputs[0])].type != _FLOAT32:
                pass
            elif name == "SQUARED_DIFFERENCE":
                operators.append(_difference(edited, graph, op, number, results))
            elif name == "SUM" and (count := _number_of_values(edited, graph, op)):
                operators.append(_mean(edited, graph, op, number, count, results))
            elif name in _BOUNDED:
                _bound_constant(edited, graph, op, name, own)
            operators.append(op)
        graph.operators = operators
        _separate_biases(edited, graph)
    tflite.remove_unused_operator_codes(edited)
    return tflite.pack(edited, len(model)), results


def _difference(edited: Any, graph: Any, op: Any, number: int, ranges: Ranges) -> Any:
    """Turn `op` into the square of the output of a new SUB; return the SUB."""
    from ai_edge_litert import schema_py_generated as generated

    first, second, output = int(op.inputs[0]), int(op.inputs[1]), int(op.outputs[0])
    difference = add_tensor(graph, output, f"{name_of(graph, output)}/difference")
    kinds = generated.BuiltinOptions
    sub = new_op(edited, "SUB", [first, second], difference, kinds.SubOptions, generated.SubOptionsT())
    replace_op(edited, op, "MUL", [difference, difference], kinds.MulOptions, generated.MulOptionsT())
    if (number, output) in ranges:
        # int16 is symmetric, so the sign of the largest difference does not matter.
        end = float(np.sqrt(max(ranges[number, output][1], 0.0)))
        ranges[number, difference] = (-end, end)
    return sub


def _separate_biases(edited: Any, graph: Any) -> None:
    seen: set[int] = set()
    for op in graph.operators:
        name = tflite.operator_name(edited, op)
        if name not in WEIGHTED_SLOTS:
            continue
        _, _, slot = WEIGHTED_SLOTS[name]
        if len(op.inputs) <= slot or op.inputs[slot] == tflite.ABSENT:
            continue
        values = constant_of(edited, graph, op.inputs[slot])
        if values is None or not (values.any() or name == "FULLY_CONNECTED"):
            continue  # zeros are right with any scale, and convolutions do not check it, so they can stay shared
        if int(op.inputs[slot]) in seen:
            set_input(op, slot, add_constant(edited, graph, values))
        seen.add(int(op.inputs[slot]))


def _number_of_values(edited: Any, graph: Any, op: Any) -> int:
    """Return how many values a reduction combines into each output; 0 if that is only known at run time."""
    axes = constant_of(edited, graph, op.inputs[1], "int32")
    if axes is None:
        return 0
    shape = sizes_of(graph.tensors[int(op.inputs[0])])
    sizes = [shape[axis] for axis in axes]
    return math.prod(sizes) if sizes and min(sizes) > 0 else 0


def _mean(edited: Any, graph: Any, op: Any, number: int, count: int, ranges: Ranges) -> Any:
    """Turn `op`, a SUM of `count` values, into the product of `count` and a new MEAN; return the MEAN."""
    from ai_edge_litert import schema_py_generated as generated

    inputs, output = [int(index) for index in op.inputs], int(op.outputs[0])
    mean = add_tensor(graph, output, f"{name_of(graph, output)}/mean")
    kinds = generated.BuiltinOptions
    new = new_op(edited, "MEAN", inputs, mean, kinds.ReducerOptions, op.builtinOptions)
    factor = add_constant(edited, graph, float(count))
    replace_op(edited, op, "MUL", [mean, factor], kinds.MulOptions, generated.MulOptionsT())
    if (number, output) in ranges:
        low, high = ranges[number, output]
        ranges[number, mean] = (low / count, high / count)
    return new


def _bound_constant(edited: Any, graph: Any, op: Any, name: str, ranges: dict[int, tuple[float, float]]) -> None:
    first, second = map(int, op.inputs)
    for place, (index, other) in enumerate(((first, second), (second, first))):
        values = constant_of(edited, graph, index)
        if values is None or other not in ranges:
            continue
        low, high = ranges[other]
        bounded = np.minimum(values, np.float32(high)) if name == "MINIMUM" else np.maximum(values, np.float32(low))
        if not np.array_equal(bounded, values):
            shape = [int(size) for size in graph.tensors[index].shape]
            set_input(op, place, add_constant(edited, graph, bounded.reshape(shape)))


def with_float_edges(model: bytes) -> bytes:
    """Insert a RESHAPE after each float input and before each float output; tensors keep their ranges."""
    edited = tflite.unpack(model)
    graph = edited.subgraphs[0]
    before, after = [], []
    for index in dict.fromkeys(int(index) for index in graph.inputs):
        if graph.tensors[index].type == _FLOAT32:
            inner = _twin(graph, index)
            replace_reads(graph.operators, index, inner)
            before.append(_reshape(edited, graph, index, inner))
    inputs = set(map(int, graph.inputs))
    for index in dict.fromkeys(int(index) for index in graph.outputs):
        if graph.tensors[index].type == _FLOAT32 and index not in inputs:
            inner = _twin(graph, index)
            replace_reads(graph.operators, index, inner)
            for op in graph.operators:
                op.outputs = [inner if int(item) == index else int(item) for item in op.outputs]
            after.append(_reshape(edited, graph, inner, index))
    graph.operators = [*before, *graph.operators, *after]
    return tflite.pack(edited, len(model))


def _twin(graph: Any, index: int) -> int:
    inner = add_tensor(graph, index, f"{name_of(graph, index)}/edge")
    graph.tensors[inner].quantization = graph.tensors[index].quantization
    return inner


def _reshape(edited: Any, graph: Any, source: int, target: int) -> Any:
    from ai_edge_litert import schema_py_generated as generated

    shape = sizes_of(graph.tensors[target])
    options = generated.ReshapeOptionsT()
    options.newShape = shape
    inputs = [source, add_constant(edited, graph, shape, np.int32)]
    return new_op(edited, "RESHAPE", inputs, target, generated.BuiltinOptions.ReshapeOptions, options)

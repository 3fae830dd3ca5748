# SPDX-License-Identifier: Apache-2.0
"""Ranges of tensors that have one scale in an int8 flatbuffer, before TensorFlow's quantizer makes scales of them.

It gives what an op moves or chooses from the scale of what comes out, or the other way, as they stand in its graph
("inputs and outputs must all have same scale", TFLite 8-bit quantization specification): so one range is given to all.
"""

import collections

from tfq import tflite
from tfq.conversion.fake_quant import Ranges

# Their output has the scale of their first input; the quantizer may take it from either.
_SAME_SCALE_NAMES = """
    BATCH_TO_SPACE_ND DEPTH_TO_SPACE EXPAND_DIMS GATHER MAX_POOL_2D MIRROR_PAD PAD REDUCE_MAX REDUCE_MIN RESHAPE
    RESIZE_NEAREST_NEIGHBOR REVERSE_V2 SLICE SPACE_TO_BATCH_ND SPACE_TO_DEPTH SQUEEZE STRIDED_SLICE TILE TRANSPOSE
"""
_SAME_SCALE = frozenset(_SAME_SCALE_NAMES.split())
# What they choose from has their output's scale.
_CHOICES = frozenset(("MAXIMUM", "MINIMUM", "SELECT", "SELECT_V2"))
_CUTS = frozenset(("MAXIMUM", "MINIMUM", "RELU", "RELU6"))


def with_same_scales(model: bytes, ranges: Ranges) -> Ranges:
    """`ranges` of the flatbuffer `model`, and the same of tensors that ops which only move values connect with them.

    What calibration finds on the far side of a RESHAPE would else be taken for both sides of it. So would it be of a
    choice between a tensor and a constant. And of a tensor that is read by one op alone, which cuts it off, what comes
    out is all that counts: a ReLU that ends at 1 is three ops, of which training knows the last.
    """
    found = dict(ranges)
    for number, graph in enumerate(tflite.read(model).subgraphs):
        moves = [((number, op.inputs[0]), (number, op.outputs[0])) for op in graph.ops if op.name in _SAME_SCALE]
        for op in graph.ops:
            if op.name in _SAME_SCALE and (number, op.inputs[0]) in found:
                found[number, op.outputs[0]] = found[number, op.inputs[0]]
            elif op.name in _CHOICES and len(read := _chosen_from(graph, op)) == 1 and (number, read[0]) in found:
                ends = _with_constants(model, graph, op, found[number, read[0]])
                found.setdefault((number, op.outputs[0]), ends)
        for before, behind in reversed(moves):
            if behind in found and before not in found and not graph.tensors[before[1]].is_constant:
                found[before] = found[behind]
        readers = _readers(graph)
        for op in (op for op in reversed(graph.ops) if op.name in _CUTS and (number, op.outputs[0]) in found):
            read = _chosen_from(graph, op)
            if len(read) == 1 and readers[read[0]] == 1:
                found.setdefault((number, read[0]), found[number, op.outputs[0]])
    return found


def has_choices(model: bytes) -> bool:
    """Whether the flatbuffer has ops for `with_operands_of_choices`."""
    return not tflite.operator_names(model).isdisjoint(_CHOICES)


def with_operands_of_choices(model: bytes, ranges: Ranges, *, alike: bool) -> Ranges:
    """`ranges` of the flatbuffer `model`, those of MINIMUM, MAXIMUM and SELECT as wide as what else is made of theirs.

    TensorFlow's quantizer gives what they choose from the scale of what they give: min(x, 0) would cut all above 0 from
    x, for all who read it. What nobody else reads is cut off there as it would be by the choice itself.
    alike: all of them get one range, for a quantizer that leaves each its own, though the kernels take it for one.
    """
    found = dict(ranges)
    for number, graph in enumerate(tflite.read(model).subgraphs):
        others_read = {index for index, count in _readers(graph).items() if count > 1}
        for op in graph.ops:
            if op.name in _SAME_SCALE and op.inputs[0] in others_read:
                others_read.add(op.outputs[0])
            if op.name not in _CHOICES:
                continue
            operands = _chosen_from(graph, op)
            if not others_read.isdisjoint(operands):
                others_read.add(op.outputs[0])  # the scale of a choice from this one would reach them too
            if (number, op.outputs[0]) not in found:
                continue
            counted = [(number, index) for index in operands if alike or index in others_read]
            tied = [each for each in ((number, op.outputs[0]), *counted) if each in found]
            ends = min(found[each][0] for each in tied), max(found[each][1] for each in tied)
            found |= dict.fromkeys(tied if alike else tied[:1], ends)
    return found


def _chosen_from(graph: tflite.Subgraph, op: tflite.Op) -> list[int]:
    """The tensors, no constants, that the values come from which the op gives out: of SELECT not the condition."""
    return [index for index in _values(op) if not graph.tensors[index].is_constant]


def _values(op: tflite.Op) -> tuple[int, ...]:
    return op.inputs[1:] if op.name.startswith("SELECT") else op.inputs


def _with_constants(
    model: bytes, graph: tflite.Subgraph, op: tflite.Op, ends: tuple[float, float]
) -> tuple[float, float]:
    """What a choice gives between a tensor with these `ends` and its constants."""
    low, high = ends
    for constant in (graph.tensors[index] for index in _values(op) if graph.tensors[index].is_constant):
        array = tflite.constant_values(model, constant)
        low = low if op.name == "MAXIMUM" else min(low, float(array.min()))
        high = high if op.name == "MINIMUM" else max(high, float(array.max()))
    return low, high


def _readers(graph: tflite.Subgraph) -> collections.Counter[int]:
    """How many read each tensor; that it leaves the model is one more."""
    readers = collections.Counter(index for op in graph.ops for index in {*op.inputs})
    readers.update(graph.outputs)
    return readers

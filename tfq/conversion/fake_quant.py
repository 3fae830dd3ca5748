# SPDX-License-Identifier: Apache-2.0
"""Fake quantization in the traced graph: which ranges it sets, and which tensors must share one scale.

It gives what an op moves or chooses from the scale of what comes out, or the other way, as they stand in its graph
("inputs and outputs must all have same scale", TFLite 8-bit quantization specification): so one range is given to all.

The converter turns a FakeQuant into a QUANTIZE and a DEQUANTIZE, which name the tensor before them and its range to the
bit. With these taken out, the flatbuffer is a float one, of which some tensors have ranges and the rest can be
calibrated: so a model that is fake-quantized in part becomes all int8, as after training.
A weight's own fake quantization is symmetric and ends at its largest value: the quantizer makes the same codes of the
plain weight. It goes before conversion, for it would keep reshapes and factors of weights from being folded.
"""

import collections
from dataclasses import dataclass
from typing import Any

from tfq import tflite
from tfq.native_stderr import captured_stderr

# Their output has the scale of their first input; the quantizer may take it from either.
_SAME_SCALE_NAMES = """
    BATCH_TO_SPACE_ND DEPTH_TO_SPACE EXPAND_DIMS GATHER MAX_POOL_2D MIRROR_PAD PAD REDUCE_MAX REDUCE_MIN RESHAPE
    RESIZE_NEAREST_NEIGHBOR REVERSE_V2 SLICE SPACE_TO_BATCH_ND SPACE_TO_DEPTH SQUEEZE STRIDED_SLICE TILE TRANSPOSE
"""
_SAME_SCALE = frozenset(_SAME_SCALE_NAMES.split())
# What they choose from has their output's scale.
_CHOICES = frozenset(("MAXIMUM", "MINIMUM", "SELECT", "SELECT_V2"))
# What they give has the scale of what they choose from, of which it may be a narrow part.
_EXTREMES = frozenset(("MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN"))
_CUTS = frozenset(("MAXIMUM", "MINIMUM", "RELU", "RELU6"))


_PREFIX = "FakeQuantWithMinMaxVars"
_PER_CHANNEL = "FakeQuantWithMinMaxVarsPerChannel"
# Between a weight and its fake quantization: what moves values, or passes them on.
_MOVES = frozenset(("Identity", "Reshape", "Transpose", "ExpandDims", "Squeeze", "ReadVariableOp", "Mul"))

Ranges = dict[tuple[int, int], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class WeightGranularity:
    """How many weights were trained with one scale for all of it, and with one for each channel; matrices apart.

    moved: of all, those that were brought into another shape for it, which TensorFlow's own converter cannot undo.
    """

    per_tensor: int = 0
    per_channel: int = 0
    dense_per_tensor: int = 0
    dense_per_channel: int = 0
    moved: int = 0


def without_weight_fake_quant(graph_def: Any) -> tuple[Any, WeightGranularity]:
    """Return a copy of a frozen graph without fake quantization of weights, and the granularity that it had."""
    graph = type(graph_def)()
    graph.CopyFrom(graph_def)
    nodes = {node.name: node for node in graph.node}
    readers = collections.defaultdict(list)
    for node in graph.node:
        for source in node.input:
            readers[_name(source)].append(node)
    counts: collections.Counter[str] = collections.Counter()
    for node in _weight_fake_quant(graph, nodes):
        granularity = "per_channel" if node.op == _PER_CHANNEL else "per_tensor"
        is_dense = any(reader.op == "MatMul" for reader in _behind(readers, node.name))
        counts[f"dense_{granularity}" if is_dense else granularity] += 1
        counts["moved"] += any(reader.op in ("Reshape", "Transpose") for reader in readers[node.name])
        _make_identity(node)
    return graph, WeightGranularity(**counts)


def with_rounded_weights(graph_def: Any) -> Any:
    """Return a copy of a frozen graph in which each fake-quantized weight is a constant: the values it rounds to.

    The fake quantization of activations stays.
    """
    import tensorflow as tf

    graph = type(graph_def)()
    graph.CopyFrom(graph_def)
    weights = _weight_fake_quant(graph, {node.name: node for node in graph.node})
    if not weights:
        return graph
    names = [node.name for node in weights]
    with tf.Graph().as_default() as part, tf.compat.v1.Session(graph=part) as session:
        tf.import_graph_def(tf.compat.v1.graph_util.extract_sub_graph(graph, names), name="")
        with captured_stderr():
            values = session.run([f"{name}:0" for name in names])
    for node, value in zip(weights, values, strict=True):
        del node.input[:]
        node.op = "Const"
        node.attr.clear()
        node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return graph


def _weight_fake_quant(graph: Any, nodes: dict[str, Any]) -> list[Any]:
    """The nodes that fake-quantize a weight; nodes: those of the graph by name."""
    return [node for node in graph.node if node.op.startswith(_PREFIX) and _is_constant(nodes, node.input[0])]


def _make_identity(node: Any) -> None:
    dtype, data = node.attr["T"].type or 1, node.input[0]
    del node.input[:]
    node.input.append(data)
    node.op = "Identity"
    for name in list(node.attr):
        del node.attr[name]
    node.attr["T"].type = dtype


def _is_constant(nodes: dict[str, Any], source: str) -> bool:
    node = nodes[_name(source)]
    if node.op == "Const":
        return True
    data = [item for item in node.input if not item.startswith("^")]
    return node.op in _MOVES and bool(data) and all(_is_constant(nodes, item) for item in data)


def _behind(readers: dict[str, list[Any]], name: str) -> list[Any]:
    results = []
    for reader in readers[name]:
        results += _behind(readers, reader.name) if reader.op in _MOVES else [reader]
    return results


def _name(source: str) -> str:
    return source.lstrip("^").partition(":")[0]


def without_fake_quant(model: bytes) -> tuple[bytes, Ranges]:
    """Return a float flatbuffer without its pairs of QUANTIZE and DEQUANTIZE, and the ranges that they had.

    model: a flatbuffer as the converter makes it of a trace with fake quantization. A tensor that is quantized in
    several ways, one behind the other, has the last range.
    """
    edited = tflite.unpack(model)
    ranges: Ranges = {}
    for number, graph in enumerate(edited.subgraphs):
        constants = {
            index for index, tensor in enumerate(graph.tensors) if edited.buffers[tensor.buffer].data is not None
        }
        result = _take_out(edited, graph)
        _forget_handed_on(result, edited, graph)
        ranges |= {(number, tensor): ends for tensor, ends in result.items() if tensor not in constants}
    tflite.remove_unused_operator_codes(edited)
    return tflite.pack(edited, len(model)), ranges


def _take_out(edited: Any, graph: Any) -> dict[int, tuple[float, float]]:
    named = [(tflite.operator_name(edited, op), op) for op in graph.operators]
    quantizes = {int(op.outputs[0]): op for name, op in named if name == "QUANTIZE"}
    source_of: dict[int, int] = {}
    ranges: dict[int, tuple[float, float]] = {}
    kept = []
    for name, op in named:
        if name == "QUANTIZE":
            continue
        op.inputs = [source_of.get(int(index), int(index)) for index in op.inputs]
        if name != "DEQUANTIZE" or int(op.inputs[0]) not in quantizes:
            kept.append(op)
            continue
        codes_of = int(op.inputs[0])
        real = int(quantizes[codes_of].inputs[0])
        source_of[int(op.outputs[0])] = real = source_of.get(real, real)
        ends = _range(graph.tensors[codes_of].quantization)
        if ends is not None:
            ranges[real] = ends
    graph.operators = kept
    graph.outputs = [source_of.get(int(index), int(index)) for index in graph.outputs]
    return ranges


def _forget_handed_on(ranges: dict[int, tuple[float, float]], edited: Any, graph: Any) -> None:
    """The ranges that no training has given: TensorFlow's converter takes MEAN for an op that keeps the scale.

    Of a MEAN with its fake quantization and a RESHAPE behind it, it moves the fake quantization behind the RESHAPE, and
    between the two it puts another one, with the range of the MEAN's input.
    """
    for op in graph.operators:
        if tflite.operator_name(edited, op) != "MEAN":
            continue
        source, mean = int(op.inputs[0]), int(op.outputs[0])
        if mean in ranges and ranges[mean] == ranges.get(source):
            readers = [int(reader.outputs[0]) for reader in graph.operators if mean in map(int, reader.inputs)]
            if readers and all(output in ranges for output in readers):
                del ranges[mean]


def _range(quantization: Any) -> tuple[float, float] | None:
    """What codes of a whole uint8 tensor can say; None of one with a scale for each channel."""
    scales, zero_points = quantization.scale, quantization.zeroPoint
    if len(scales) != 1:
        return None
    scale, zero_point = float(scales[0]), int(zero_points[0])
    return -zero_point * scale, (255 - zero_point) * scale


def with_same_scales(model: bytes, ranges: Ranges) -> Ranges:
    """Return `ranges` of the flatbuffer `model`, extended to tensors that ops which only move values connect with them.

    Otherwise the range that calibration observes after a RESHAPE would be used for both sides of it; likewise for a
    choice between a tensor and a constant. If one op alone reads a tensor and cuts it off, the range of that op's
    output counts: a ReLU that ends at 1 is three ops, and training has a range for the last.
    """
    results = dict(ranges)
    for number, graph in enumerate(tflite.read(model).subgraphs):
        moves = [((number, op.inputs[0]), (number, op.outputs[0])) for op in graph.ops if op.name in _SAME_SCALE]
        for op in graph.ops:
            if op.name in _SAME_SCALE and (number, op.inputs[0]) in results:
                results[number, op.outputs[0]] = results[number, op.inputs[0]]
            elif op.name in _CHOICES and len(read := _chosen_from(graph, op)) == 1 and (number, read[0]) in results:
                ends = _with_constants(model, graph, op, results[number, read[0]])
                results.setdefault((number, op.outputs[0]), ends)
        for before, after in reversed(moves):
            if after in results and before not in results and not graph.tensors[before[1]].is_constant:
                results[before] = results[after]
        readers = _readers(graph)
        for op in (op for op in reversed(graph.ops) if op.name in _CUTS and (number, op.outputs[0]) in results):
            read = _chosen_from(graph, op)
            if len(read) == 1 and readers[read[0]] == 1:
                results.setdefault((number, read[0]), results[number, op.outputs[0]])
    return results


def has_selections(model: bytes) -> bool:
    """Check whether the flatbuffer has ops for `with_selection_ranges`."""
    return not tflite.operator_names(model).isdisjoint(_CHOICES)


def with_selection_ranges(model: bytes, ranges: Ranges, *, shared: bool) -> Ranges:
    """Return `ranges`, those of MINIMUM, MAXIMUM and SELECT as wide as other readers of their operands need.

    TensorFlow's quantizer gives their operands the scale of their output: min(x, 0) would cut x off at 0 for all its
    readers. An operand that nothing else reads is cut off there, as the choice itself would.

    Args:
        model: A float flatbuffer.
        ranges: (subgraph, tensor) -> (minimum, maximum).
        alike: Whether operands and output get one range, for a quantizer that leaves each its own though the kernels
            assume one.
    """
    results = dict(ranges)
    for number, graph in enumerate(tflite.read(model).subgraphs):
        others_read = {index for index, count in _readers(graph).items() if count > 1}
        for op in graph.ops:
            if op.name in _SAME_SCALE and op.inputs[0] in others_read:
                others_read.add(op.outputs[0])
                # Of x - max(x), what is below the least of the maxima would be cut off from x.
                pair = [results[key] for key in ((number, op.inputs[0]), (number, op.outputs[0])) if key in results]
                if op.name in _EXTREMES and len(pair) == 2:
                    results[number, op.outputs[0]] = min(pair)[0], max(end[1] for end in pair)
            if op.name not in _CHOICES:
                continue
            operands = _chosen_from(graph, op)
            if not others_read.isdisjoint(operands):
                others_read.add(op.outputs[0])  # the scale of a choice from this one would reach them too
            if (number, op.outputs[0]) not in results:
                continue
            counted = [(number, index) for index in operands if shared or index in others_read]
            tied = [item for item in ((number, op.outputs[0]), *counted) if item in results]
            ends = min(results[item][0] for item in tied), max(results[item][1] for item in tied)
            results |= dict.fromkeys(tied if shared else tied[:1], ends)
    return results


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

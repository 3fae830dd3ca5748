# SPDX-License-Identifier: Apache-2.0
"""Fake quantization in a traced graph: the ranges that it sets, and the tensors that must share one scale.

Activations: the converter turns a FakeQuant into a QUANTIZE and a DEQUANTIZE, which have the exact range of the tensor
before them. Without these ops the flatbuffer is a float one, some of whose tensors have ranges. The others can be
calibrated, so a partly fake-quantized model becomes full int8, like any model quantized after training.

Weights: their fake quantization is symmetric and ends at the largest magnitude, so the quantizer computes the same
values from the plain weight. It is removed before the conversion, because it would prevent the converter from folding
reshapes and factors of weights.

Shared scales: "inputs and outputs must all have same scale" for ops that move or select values (TFLite 8-bit
quantization specification). TensorFlow's quantizer copies the scale from the output to the inputs or the other way,
depending on the order of the ops. To be independent of that, all of these tensors get one range here.
"""

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfq import tflite
from tfq.native_stderr import captured_stderr
from tfq.tflite.op_types import SAME_SCALE_OPS

# Ops that select between inputs, which get the scale of the output.
_SELECTING = frozenset(("MAXIMUM", "MINIMUM", "SELECT", "SELECT_V2"))
# Ops that select values of their input, whose output may have a much narrower range than the input.
_EXTREMES = frozenset(("MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN"))
_CLIPPING = frozenset(("MAXIMUM", "MINIMUM", "RELU", "RELU6"))


_PREFIX = "FakeQuantWithMinMaxVars"
_PER_CHANNEL = "FakeQuantWithMinMaxVarsPerChannel"
# Graph nodes that may lie between a weight and its fake quantization.
_BETWEEN = frozenset(("Identity", "Reshape", "Transpose", "ExpandDims", "Squeeze", "ReadVariableOp", "Mul"))

# {(subgraph, tensor): (minimum, maximum)}.
Ranges = dict[tuple[int, int], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class WeightGranularity:
    """The numbers of weights that were fake-quantized per tensor and per channel.

    Attributes:
        per_tensor: Weights with one scale, without those of dense layers.
        per_channel: Weights with a scale for each channel, without those of dense layers.
        dense_per_tensor: Weights of dense layers with one scale.
        dense_per_channel: Weights of dense layers with a scale for each channel.
        int4: The layers whose weights were fake-quantized to 4 bits. These weights keep the rounded values.
        moved: Weights of all kinds that were reshaped or transposed after their fake quantization, which TensorFlow's
            converter cannot undo.
    """

    per_tensor: int = 0
    per_channel: int = 0
    dense_per_tensor: int = 0
    dense_per_channel: int = 0
    int4: tuple[str, ...] = ()
    moved: int = 0


def without_weight_fake_quant(graph_def: Any, layer_names: Mapping[str, str]) -> tuple[Any, WeightGranularity]:
    """Return a copy of a frozen graph without fake quantization of weights, and the granularity that it had.

    Weights of 4 bits are constants with their rounded values, from which their scales can be computed.

    Args:
        graph_def: The graph.
        layer_names: {name of a layer in the graph: the user's name}.
    """
    narrow = [node.name for node in _weight_fake_quant(graph_def, _by_name(graph_def)) if _is_int4(node)]
    int4 = tuple(dict.fromkeys(_layer_of(name, layer_names) for name in narrow))
    graph = with_rounded_weights(graph_def, only_int4=True) if int4 else _copy(graph_def)
    nodes = _by_name(graph)
    readers = collections.defaultdict(list)
    for node in graph.node:
        for source in node.input:
            readers[_name(source)].append(node)
    counts: collections.Counter[str] = collections.Counter()
    for node in _weight_fake_quant(graph, nodes):
        granularity = "per_channel" if node.op == _PER_CHANNEL else "per_tensor"
        is_dense = any(reader.op == "MatMul" for reader in _final_readers(readers, node.name))
        counts[f"dense_{granularity}" if is_dense else granularity] += 1
        counts["moved"] += any(reader.op in ("Reshape", "Transpose") for reader in readers[node.name])
        _make_identity(node)
    return graph, WeightGranularity(**counts, int4=int4)


def with_rounded_weights(graph_def: Any, *, only_int4: bool = False) -> Any:
    """Return a copy of a frozen graph in which each fake-quantized weight is a constant with its rounded values.

    The fake quantization of activations stays.

    Args:
        graph_def: The graph.
        only_int4: Leave weights of 8 bits as they are.
    """
    import tensorflow as tf

    graph = _copy(graph_def)
    weights = [node for node in _weight_fake_quant(graph, _by_name(graph)) if _is_int4(node) or not only_int4]
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


def _layer_of(node: str, layer_names: Mapping[str, str]) -> str:
    """Return the innermost layer in the scopes of a node; the name of the node if they have no known layer."""
    scopes = reversed(node.split("/")[:-1])
    return next((layer_names[scope] for scope in scopes if scope in layer_names), node)


def _copy(graph_def: Any) -> Any:
    graph = type(graph_def)()
    graph.CopyFrom(graph_def)
    return graph


def _by_name(graph: Any) -> dict[str, Any]:
    return {node.name: node for node in graph.node}


def _is_int4(node: Any) -> bool:
    return bool(node.attr["num_bits"].i == 4)


def _weight_fake_quant(graph: Any, nodes: dict[str, Any]) -> list[Any]:
    """Return the nodes that fake-quantize a weight; `nodes` maps the names of the graph's nodes to them."""
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
    return node.op in _BETWEEN and bool(data) and all(_is_constant(nodes, item) for item in data)


def _final_readers(readers: dict[str, list[Any]], name: str) -> list[Any]:
    """Return the readers of a node, those after reshapes and similar nodes instead of these."""
    results = []
    for reader in readers[name]:
        results += _final_readers(readers, reader.name) if reader.op in _BETWEEN else [reader]
    return results


def _name(source: str) -> str:
    return source.lstrip("^").partition(":")[0]


def without_fake_quant(model: bytes) -> tuple[bytes, Ranges]:
    """Remove the pairs of QUANTIZE and DEQUANTIZE from a float flatbuffer; return it with their ranges.

    Args:
        model: The converter's float flatbuffer of a trace with fake quantization.

    Returns:
        The flatbuffer and the ranges. A tensor with several pairs in a row has the last range.
    """
    edited = tflite.unpack(model)
    ranges: Ranges = {}
    for number, graph in enumerate(edited.subgraphs):
        constants = {
            index for index, tensor in enumerate(graph.tensors) if edited.buffers[tensor.buffer].data is not None
        }
        result = _remove_pairs(edited, graph)
        _remove_untrained(result, edited, graph)
        ranges |= {(number, tensor): ends for tensor, ends in result.items() if tensor not in constants}
    tflite.remove_unused_operator_codes(edited)
    return tflite.pack(edited, len(model)), ranges


def _remove_pairs(edited: Any, graph: Any) -> dict[int, tuple[float, float]]:
    """Remove the pairs of QUANTIZE and DEQUANTIZE of a graph in place; return {tensor before them: their range}."""
    named = [(tflite.operator_name(edited, op), op) for op in graph.operators]
    quantizes = {int(op.outputs[0]): op for name, op in named if name == "QUANTIZE"}
    source_of: dict[int, int] = {}
    ranges: dict[int, tuple[float, float]] = {}
    remaining = []
    for name, op in named:
        if name == "QUANTIZE":
            continue
        op.inputs = [source_of.get(int(index), int(index)) for index in op.inputs]
        if name != "DEQUANTIZE" or int(op.inputs[0]) not in quantizes:
            remaining.append(op)
            continue
        quantized = int(op.inputs[0])
        real = int(quantizes[quantized].inputs[0])
        source_of[int(op.outputs[0])] = real = source_of.get(real, real)
        ends = _range(graph.tensors[quantized].quantization)
        if ends is not None:
            ranges[real] = ends
    graph.operators = remaining
    graph.outputs = [source_of.get(int(index), int(index)) for index in graph.outputs]
    return ranges


def _remove_untrained(ranges: dict[int, tuple[float, float]], edited: Any, graph: Any) -> None:
    """Remove ranges that the converter made up, because it treats MEAN as an op that keeps the scale.

    If a RESHAPE follows a fake-quantized MEAN, TensorFlow's converter moves the fake quantization after the RESHAPE,
    and inserts another one between the two, with the range of the MEAN's input.
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
    """Return the range of a per-tensor quantized uint8 tensor; None if it is quantized per channel."""
    scales, zero_points = quantization.scale, quantization.zeroPoint
    if len(scales) != 1:
        return None
    scale, zero_point = float(scales[0]), int(zero_points[0])
    return -zero_point * scale, (255 - zero_point) * scale


def with_same_scales(model: bytes, ranges: Ranges) -> Ranges:
    """Extend ranges to the tensors that must share a scale with a tensor that has a range.

    - Through ops that only move values. Otherwise the range that calibration observes after a RESHAPE would be used for
      both sides of it.
    - Through a selection between a tensor and a constant.
    - From the output of an op that clips to its input, if no other op reads this. A ReLU that ends at 1 consists of
      three ops, and training has a range for the last one.

    Args:
        model: A float flatbuffer.
        ranges: The ranges of some of its tensors.

    Returns:
        The ranges, including the new ones.
    """
    results = dict(ranges)
    for number, graph in enumerate(tflite.read(model).subgraphs):
        moves = [((number, op.inputs[0]), (number, op.outputs[0])) for op in graph.ops if op.name in SAME_SCALE_OPS]
        for op in graph.ops:
            if op.name in SAME_SCALE_OPS and (number, op.inputs[0]) in results:
                results[number, op.outputs[0]] = results[number, op.inputs[0]]
            elif op.name in _SELECTING and len(read := _selected_from(graph, op)) == 1 and (number, read[0]) in results:
                ends = _with_constants(model, graph, op, results[number, read[0]])
                results.setdefault((number, op.outputs[0]), ends)
        for source, target in reversed(moves):
            if target in results and source not in results and not graph.tensors[source[1]].is_constant:
                results[source] = results[target]
        readers = _readers(graph)
        for op in (op for op in reversed(graph.ops) if op.name in _CLIPPING and (number, op.outputs[0]) in results):
            read = _selected_from(graph, op)
            if len(read) == 1 and readers[read[0]] == 1:
                results.setdefault((number, read[0]), results[number, op.outputs[0]])
    return results


def has_selections(model: bytes) -> bool:
    """Check whether the flatbuffer has ops for `with_selection_ranges`."""
    return not tflite.operator_names(model).isdisjoint(_SELECTING)


def with_selection_ranges(model: bytes, ranges: Ranges, *, shared: bool) -> Ranges:
    """Widen the ranges of MINIMUM, MAXIMUM and SELECT to those that other readers of their operands need.

    TensorFlow's quantizer gives the operands the scale of the output, so min(x, 0) would clip x at 0 for all its
    readers. An operand without other readers may be clipped, because the op itself does that.

    Args:
        model: A float flatbuffer.
        ranges: {(subgraph, tensor): (minimum, maximum)}.
        shared: Whether to give operands and output one range, for a quantizer that gives them separate ones although
            the kernels assume the same.
    """
    results = dict(ranges)
    for number, graph in enumerate(tflite.read(model).subgraphs):
        others_read = {index for index, count in _readers(graph).items() if count > 1}
        for op in graph.ops:
            if op.name in SAME_SCALE_OPS and op.inputs[0] in others_read:
                others_read.add(op.outputs[0])
                # In x - max(x), x would be clipped at the smallest maximum.
                pair = [results[key] for key in ((number, op.inputs[0]), (number, op.outputs[0])) if key in results]
                if op.name in _EXTREMES and len(pair) == 2:
                    results[number, op.outputs[0]] = min(pair)[0], max(end[1] for end in pair)
            if op.name not in _SELECTING:
                continue
            operands = _selected_from(graph, op)
            if not others_read.isdisjoint(operands):
                others_read.add(op.outputs[0])  # a selection from this output would change their scale as well
            if (number, op.outputs[0]) not in results:
                continue
            relevant = [(number, index) for index in operands if shared or index in others_read]
            group = [item for item in ((number, op.outputs[0]), *relevant) if item in results]
            ends = min(results[item][0] for item in group), max(results[item][1] for item in group)
            results |= dict.fromkeys(group if shared else group[:1], ends)
    return results


def _selected_from(graph: tflite.Subgraph, op: tflite.Op) -> list[int]:
    """Return the inputs whose values the op selects from, without constants and without the condition of a SELECT."""
    return [index for index in _values(op) if not graph.tensors[index].is_constant]


def _values(op: tflite.Op) -> tuple[int, ...]:
    return op.inputs[1:] if op.name.startswith("SELECT") else op.inputs


def _with_constants(
    model: bytes, graph: tflite.Subgraph, op: tflite.Op, ends: tuple[float, float]
) -> tuple[float, float]:
    """Return the output range of a selection between a tensor with the range `ends` and constants."""
    low, high = ends
    for constant in (graph.tensors[index] for index in _values(op) if graph.tensors[index].is_constant):
        array = tflite.constant_values(model, constant)
        low = low if op.name == "MAXIMUM" else min(low, float(array.min()))
        high = high if op.name == "MINIMUM" else max(high, float(array.max()))
    return low, high


def _readers(graph: tflite.Subgraph) -> collections.Counter[int]:
    """Return {tensor: the number of its readers}. Being an output of the model counts as one."""
    readers = collections.Counter(index for op in graph.ops for index in {*op.inputs})
    readers.update(graph.outputs)
    return readers

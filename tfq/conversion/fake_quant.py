# SPDX-License-Identifier: Apache-2.0
"""What quantization-aware training has learned, taken out of the model and held as ranges of its tensors.

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
    """A copy of a frozen graph whose weights are as they were trained, and the granularity they were trained with."""
    graph = type(graph_def)()
    graph.CopyFrom(graph_def)
    nodes = {node.name: node for node in graph.node}
    readers = collections.defaultdict(list)
    for node in graph.node:
        for source in node.input:
            readers[_name(source)].append(node)
    counts: collections.Counter[str] = collections.Counter()
    for node in graph.node:
        if not node.op.startswith(_PREFIX) or not _is_constant(nodes, node.input[0]):
            continue
        granularity = "per_channel" if node.op == _PER_CHANNEL else "per_tensor"
        is_dense = any(reader.op == "MatMul" for reader in _behind(readers, node.name))
        counts[f"dense_{granularity}" if is_dense else granularity] += 1
        counts["moved"] += any(reader.op in ("Reshape", "Transpose") for reader in readers[node.name])
        _make_identity(node)
    return graph, WeightGranularity(**counts)


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
    data = [each for each in node.input if not each.startswith("^")]
    return node.op in _MOVES and bool(data) and all(_is_constant(nodes, each) for each in data)


def _behind(readers: dict[str, list[Any]], name: str) -> list[Any]:
    found = []
    for reader in readers[name]:
        found += _behind(readers, reader.name) if reader.op in _MOVES else [reader]
    return found


def _name(source: str) -> str:
    return source.lstrip("^").partition(":")[0]


def without_fake_quant(model: bytes) -> tuple[bytes, Ranges]:
    """A float flatbuffer without its pairs of QUANTIZE and DEQUANTIZE, and the ranges that they had.

    model: a flatbuffer as the converter makes it of a trace with fake quantization. A tensor that is quantized in
    several ways, one behind the other, has the last range.
    """
    edited = tflite.unpack(model)
    ranges: Ranges = {}
    for number, graph in enumerate(edited.subgraphs):
        constants = {
            index for index, tensor in enumerate(graph.tensors) if edited.buffers[tensor.buffer].data is not None
        }
        found = _take_out(edited, graph)
        _forget_handed_on(found, edited, graph)
        ranges |= {(number, tensor): ends for tensor, ends in found.items() if tensor not in constants}
    tflite.forget_unused_codes(edited)
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

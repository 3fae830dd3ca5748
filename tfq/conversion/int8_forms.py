# SPDX-License-Identifier: Apache-2.0
"""Rewrite an integer flatbuffer so that int8 kernels compute what the scales of its tensors say.

Copies: kernels of ops that move or choose values (REVERSE_V2, GATHER, SELECT) copy the quantized values, whatever the
scales of their tensors say. TensorFlow's quantizer (2.21) leaves them different where one of the ranges has another
origin, and the output is wrong by their ratio.

The kernels of SCATTER_ND and MATRIX_DIAG fill what they do not write with the quantized value 0, and SCATTER_ND adds
quantized values where an index occurs twice. With an asymmetric scale the quantized value 0 stands for another
number: the output of a `scatter` was wrong in all places but the written ones (-2.5 dB). With a zero point of 0 both
are right, and the cost is at most one bit.

Comparisons: TFLite's int8 comparisons (comparisons.cc) turn both operands into fixed-point numbers with 8 bits after
the point, whatever their scale. Values that differ by less than 1/256 may be equal to them, so that a condition on a
tensor of small values is constant; and a scale of 1 or more, as pixels above 255 have it, aborts the process. The
order of two values does not change if both are multiplied by the same positive number: here by the power of two that
brings the larger scale below 1. Constants need no scale of their own choice: TensorFlow's quantizer gives a 0 the
scale 3.9e-9 and an infinity one of 1e36.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.conversion.graph_editing import (
    add_constant,
    add_tensor,
    constant_of,
    name_of,
    new_op,
    quantize_op,
    rewrite_graphs,
    scale_of,
    set_input,
    set_scale,
)
from tfq.conversion.graph_rewrites import with_int8_kernels
from tfq.ptq.kernel_faults import COARSEST, COMPARING, FINEST
from tfq.quant_math import dequantize, quantize
from tfq.tflite.op_types import COPIED_SLOTS
from tfq.tflite.schema import TENSOR_TYPES

_INT8 = TENSOR_TYPES.index("int8")
# Op -> the place of its data among its inputs.
_DATA_OF = {"SCATTER_ND": 1, "MATRIX_DIAG": 0}
# Of the 127 positive values; the others are left to the rounding of what SCATTER_ND adds up.
_GREATEST = 120
# Below it a tensor is 0 on all samples: the quantizer gives it 7.8e-9, and what it holds is rounding noise.
_DEAD = 1e-7
_LOWEST, _HIGHEST = -128, 127


def with_int8_forms(model: bytes) -> bytes:
    """Return a flatbuffer of TensorFlow's quantizer with ops and scales that its int8 kernels take at their word."""
    model = with_int8_kernels(model)
    model = with_equal_copy_scales(model)
    model = with_symmetric_zero_fill(model)
    return with_comparable_scales(model)


def with_equal_copy_scales(model: bytes) -> bytes:
    """Return an integer flatbuffer in which int8 ops that copy values have one scale on both sides.

    A QUANTIZE changes each input to the scale of the output, where it is another. XNNPACK and the built-in kernels
    compute it alike.

    Args:
        model: A flatbuffer, whose int8 ops TensorFlow's quantizer made.
    """
    return rewrite_graphs(model, COPIED_SLOTS, _requantized)


def _requantized(edited: Any, graph: Any) -> int:
    """Put a QUANTIZE in front of the ops of a graph that need one, in place; return how many were added."""
    result, added = [], 0
    for op in graph.operators:
        for place in COPIED_SLOTS.get(tflite.operator_name(edited, op), ()):
            output = int(op.outputs[0])
            if place >= len(op.inputs) or not _differ(graph, int(op.inputs[place]), output):
                continue
            source = int(op.inputs[place])
            wanted = add_tensor(graph, source, f"{name_of(graph, source)}/rescaled")
            graph.tensors[wanted].quantization = graph.tensors[output].quantization
            set_input(op, place, wanted)
            result.append(quantize_op(edited, source, wanted))
            added += 1
        result.append(op)
    graph.operators = result
    return added


def _differ(graph: Any, source: int, output: int) -> bool:
    """Check whether two int8 tensors have scales or zero points that differ."""
    if any(graph.tensors[index].type != _INT8 for index in (source, output)):
        return False
    one, other = (graph.tensors[index].quantization for index in (source, output))
    if any(item is None or item.scale is None or len(item.scale) != 1 for item in (one, other)):
        return False
    return not np.isclose(one.scale[0], other.scale[0], rtol=1e-5) or one.zeroPoint[0] != other.zeroPoint[0]


def with_symmetric_zero_fill(model: bytes) -> bytes:
    """Return an integer flatbuffer in which ops that fill with zeros compute with a zero point of 0.

    A QUANTIZE before such an op and one after it change to the symmetric scale and back. The scale holds the range of
    the output and that of the data, so sums do not overflow.

    Args:
        model: A flatbuffer, whose int8 ops TensorFlow's quantizer made.
    """
    return rewrite_graphs(model, _DATA_OF, _symmetric)


def _symmetric(edited: Any, graph: Any) -> int:
    """Surround the ops of a graph in place; return how many were."""
    result, changed = [], 0
    for op in graph.operators:
        place = _DATA_OF.get(tflite.operator_name(edited, op))
        if place is None or graph.tensors[int(op.outputs[0])].type != _INT8:
            result.append(op)
            continue
        data, output = int(op.inputs[place]), int(op.outputs[0])
        scale = max(_largest(graph, data), _largest(graph, output)) / _GREATEST
        before, after = (_tensor(graph, index, scale) for index in (data, output))
        set_input(op, place, before)
        op.outputs = np.array([after], np.int32)
        result += [quantize_op(edited, data, before), op, quantize_op(edited, after, output)]
        changed += 1
    graph.operators = result
    return changed


def _largest(graph: Any, index: int) -> float:
    """The largest magnitude that an int8 tensor can hold."""
    return max(map(abs, _reach(graph, index)))


def _tensor(graph: Any, like: int, scale: float) -> int:
    """A new tensor like another one, with a zero point of 0."""
    index = add_tensor(graph, like, f"{name_of(graph, like)}/symmetric")
    set_scale(graph, index, scale, 0)
    return index


def with_comparable_scales(model: bytes) -> bytes:
    """Return an integer flatbuffer in which int8 comparisons see every step of their operands.

    Args:
        model: A flatbuffer, whose int8 ops TensorFlow's quantizer made.
    """
    return rewrite_graphs(model, COMPARING, _comparable, remove_tensors=True)


def _comparable(edited: Any, graph: Any) -> int:
    """Rewrite the comparisons of a graph in place; return how many were changed."""
    result, changed = [], 0
    for op in graph.operators:
        operands = [int(index) for index in op.inputs]
        compares = tflite.operator_name(edited, op) in COMPARING
        if compares and all(graph.tensors[index].type == _INT8 for index in operands):
            added = _with_scaled_operands(edited, graph, op, operands)
            changed += added is not None
            result += added or []
        result.append(op)
    graph.operators = result
    return changed


def _with_scaled_operands(edited: Any, graph: Any, op: Any, operands: list[int]) -> list[Any] | None:
    """Give `op` operands of a good scale; return the ops that make them, None if the operands are good as they are."""
    constants = {
        place: values for place, index in enumerate(operands) if (values := _values(edited, graph, index)) is not None
    }
    moving = [place for place in (0, 1) if place not in constants]
    if not moving:
        return None
    scales = [scale_of(graph, operands[place])[0] for place in moving]
    if max(scales) < _DEAD:
        return None
    # Beyond all that the other operand can hold, a constant is as good as any other beyond it.
    low, high = _reach(graph, operands[moving[0]])
    constants = {place: np.clip(item, 2 * low - high, 2 * high - low) for place, item in constants.items()}
    largest = max([*scales, *(float(np.abs(item).max()) / _HIGHEST for item in constants.values())])
    good = min(scales) >= FINEST and largest < COARSEST
    factor = 1.0 if good else 2.0 ** -np.ceil(np.log2(largest * 1.001))
    if good and not constants:
        return None
    op.inputs, added = [*operands], []
    for place, values in constants.items():
        op.inputs[place] = _constant(edited, graph, operands[place], values * factor)
    for place in moving if factor != 1.0 else ():
        op.inputs[place], multiply = _multiplied(edited, graph, operands[place], factor)
        added.append(multiply)
    return added


def _values(edited: Any, graph: Any, index: int) -> NDArray | None:
    """The numbers that an int8 constant stands for; None for an activation."""
    steps = constant_of(edited, graph, index, "int8")
    if steps is None:
        return None
    with np.errstate(over="ignore"):
        values = dequantize(steps.reshape(graph.tensors[index].shape), *scale_of(graph, index))
    return np.asarray(values, np.float64)


def _reach(graph: Any, index: int) -> tuple[float, float]:
    """The least and the largest number that an int8 tensor can hold."""
    scale, zero_point = scale_of(graph, index)
    return scale * (_LOWEST - zero_point), scale * (_HIGHEST - zero_point)


def _constant(edited: Any, graph: Any, like: int, values: NDArray) -> int:
    """A new int8 constant with a scale that fits its values."""
    scale = min(max(float(np.abs(values).max()) / _HIGHEST, FINEST / 256), 0.999)
    index = add_constant(edited, graph, quantize(values, scale, 0), np.int8)
    graph.tensors[index].name = f"{name_of(graph, like)}/comparable"
    set_scale(graph, index, scale, 0)
    return index


def _multiplied(edited: Any, graph: Any, source: int, factor: float) -> tuple[int, Any]:
    """A tensor with the same quantized values and `factor` times the scale, and the MUL that makes it."""
    from ai_edge_litert import schema_py_generated as generated

    number = add_constant(edited, graph, np.int8(_HIGHEST), np.int8)
    set_scale(graph, number, factor / _HIGHEST, 0)
    result = add_tensor(graph, source, f"{name_of(graph, source)}/comparable")
    scale, zero_point = scale_of(graph, source)
    set_scale(graph, result, scale * factor, zero_point)
    kind, options = generated.BuiltinOptions.MulOptions, generated.MulOptionsT()
    return result, new_op(edited, "MUL", [source, number], result, kind, options)

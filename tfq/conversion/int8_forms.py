# SPDX-License-Identifier: Apache-2.0
"""Rewrite an integer flatbuffer so that its int8 kernels respect the scales of their tensors.

TensorFlow's quantizer (2.21) writes scales that some kernels ignore:

- Copies: kernels of ops that move or select values (REVERSE_V2, GATHER, SELECT) copy the quantized values and ignore
  the scales. The quantizer leaves different scales if one of the ranges has another origin, and the output is wrong by
  their ratio. A QUANTIZE before the op rescales its input.
- Zero fill: the kernels of SCATTER_ND and MATRIX_DIAG fill the elements that they do not write with the quantized
  value 0, and SCATTER_ND adds quantized values if an index occurs twice. With an asymmetric scale, the quantized value
  0 represents another number: all elements of a `scatter` except the written ones were wrong (-2.5 dB). With a zero
  point of 0 both are right, which costs at most one bit.
- Comparisons: the int8 kernels (comparisons.cc) convert both operands to fixed-point numbers with 8 fractional bits.
  Values that differ by less than 1/256 may compare as equal, so a condition on a tensor of small values is constant. A
  scale of 1 or more, such as that of pixels above 255, aborts the process. Multiplying both operands by the same
  positive number does not change their order, so they are multiplied by the power of two that brings the larger scale
  below 1. Constants get a new scale: the quantizer gives a 0 the scale 3.9e-9, and an infinity a scale of 1e36.
- LSTM: the output of UNIDIRECTIONAL_SEQUENCE_LSTM is its hidden state, but the quantizer gives the output another scale
  if it must be that of a neighbor, as before a CONCATENATION. The kernel then reads the state of the previous step with
  the wrong scale (a bidirectional layer: 16 dB instead of 37). The state gets the scale of the output.
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
from tfq.ptq.calibration import lstm_states
from tfq.ptq.kernel_faults import COARSEST, COMPARING, FINEST
from tfq.quant_math import dequantize, quantize
from tfq.tflite.op_types import COPIED_SLOTS
from tfq.tflite.schema import TENSOR_TYPES

_INT8 = TENSOR_TYPES.index("int8")
# Op -> the position of its data among its inputs.
_DATA_OF = {"SCATTER_ND": 1, "MATRIX_DIAG": 0}
# The quantized value of the largest magnitude. Up to 127 there is room for the rounding errors that SCATTER_ND adds up.
_LARGEST_VALUE = 120
# A scale below this belongs to a tensor that is 0 on all samples: the quantizer gives it 7.8e-9.
_DEAD = 1e-7
_LOWEST, _HIGHEST = -128, 127


def with_int8_forms(model: bytes) -> bytes:
    """Apply all rewrites of this module, and `with_int8_kernels`, to a flatbuffer of TensorFlow's quantizer."""
    model = with_int8_kernels(model)
    model = with_equal_copy_scales(model)
    model = with_symmetric_zero_fill(model)
    model = with_lstm_state_scales(model)
    return with_comparable_scales(model)


def with_equal_copy_scales(model: bytes) -> bytes:
    """Give int8 ops that copy values the same scale for inputs and output.

    A QUANTIZE rescales each input whose scale differs from that of the output. XNNPACK and the built-in kernels then
    agree.

    Args:
        model: An int8 flatbuffer of TensorFlow's quantizer.
    """
    return rewrite_graphs(model, COPIED_SLOTS, _requantize_copies)


def _requantize_copies(edited: Any, graph: Any) -> int:
    """Insert a QUANTIZE before the ops of a graph that need one, in place; return how many were added."""
    result, added = [], 0
    for op in graph.operators:
        for place in COPIED_SLOTS.get(tflite.operator_name(edited, op), ()):
            output = int(op.outputs[0])
            if place >= len(op.inputs) or not _differ(graph, int(op.inputs[place]), output):
                continue
            source = int(op.inputs[place])
            rescaled = add_tensor(graph, source, f"{name_of(graph, source)}/rescaled")
            graph.tensors[rescaled].quantization = graph.tensors[output].quantization
            set_input(op, place, rescaled)
            result.append(quantize_op(edited, source, rescaled))
            added += 1
        result.append(op)
    graph.operators = result
    return added


def with_lstm_state_scales(model: bytes) -> bytes:
    """Give the hidden state of int8 LSTM ops the scale of their output.

    The quantizer also writes a buffer for each state, which no tensor reads: uninitialized memory, which would make
    each conversion different. It is emptied.

    Args:
        model: An int8 flatbuffer of TensorFlow's quantizer.
    """
    if "UNIDIRECTIONAL_SEQUENCE_LSTM" not in tflite.operator_names(model):
        return model
    edited = tflite.unpack(model)
    for parsed, graph in zip(tflite.read(model).subgraphs, edited.subgraphs, strict=True):
        for state, output in lstm_states(parsed).items():
            if _differ(graph, state, output):
                graph.tensors[state].quantization = graph.tensors[output].quantization
    tflite.remove_unused_constants(edited)
    return tflite.pack(edited, len(model))


def _differ(graph: Any, source: int, output: int) -> bool:
    """Check whether two int8 tensors have different scales or zero points."""
    if any(graph.tensors[index].type != _INT8 for index in (source, output)):
        return False
    one, other = (graph.tensors[index].quantization for index in (source, output))
    if any(item is None or item.scale is None or len(item.scale) != 1 for item in (one, other)):
        return False
    return not np.isclose(one.scale[0], other.scale[0], rtol=1e-5) or one.zeroPoint[0] != other.zeroPoint[0]


def with_symmetric_zero_fill(model: bytes) -> bytes:
    """Make ops that fill with zeros compute with a zero point of 0.

    A QUANTIZE before the op changes to a symmetric scale, and one after it changes back. The scale covers the ranges of
    the data and the output, so sums do not overflow.

    Args:
        model: An int8 flatbuffer of TensorFlow's quantizer.
    """
    return rewrite_graphs(model, _DATA_OF, _make_symmetric)


def _make_symmetric(edited: Any, graph: Any) -> int:
    """Insert both QUANTIZE ops around the ops of a graph, in place; return how many ops were changed."""
    result, changed = [], 0
    for op in graph.operators:
        place = _DATA_OF.get(tflite.operator_name(edited, op))
        if place is None or graph.tensors[int(op.outputs[0])].type != _INT8:
            result.append(op)
            continue
        data, output = int(op.inputs[place]), int(op.outputs[0])
        scale = max(_max_magnitude(graph, data), _max_magnitude(graph, output)) / _LARGEST_VALUE
        before, after = (_tensor(graph, index, scale) for index in (data, output))
        set_input(op, place, before)
        op.outputs = np.array([after], np.int32)
        result += [quantize_op(edited, data, before), op, quantize_op(edited, after, output)]
        changed += 1
    graph.operators = result
    return changed


def _max_magnitude(graph: Any, index: int) -> float:
    """Return the largest magnitude that an int8 tensor can represent."""
    return max(map(abs, _representable_range(graph, index)))


def _tensor(graph: Any, like: int, scale: float) -> int:
    """Add a tensor like another one, with a zero point of 0; return its index."""
    index = add_tensor(graph, like, f"{name_of(graph, like)}/symmetric")
    set_scale(graph, index, scale, 0)
    return index


def with_comparable_scales(model: bytes) -> bytes:
    """Rescale the operands of int8 comparisons so that the kernels distinguish all quantized values.

    Args:
        model: An int8 flatbuffer of TensorFlow's quantizer.
    """
    return rewrite_graphs(model, COMPARING, _rescale_comparisons, remove_tensors=True)


def _rescale_comparisons(edited: Any, graph: Any) -> int:
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
    """Give `op` operands with suitable scales; return the ops that compute them, None if nothing has to change."""
    constants = {
        place: values for place, index in enumerate(operands) if (values := _values(edited, graph, index)) is not None
    }
    activations = [place for place in (0, 1) if place not in constants]
    if not activations:
        return None
    scales = [scale_of(graph, operands[place])[0] for place in activations]
    if max(scales) < _DEAD:
        return None
    # A constant outside the range of the other operand can be any number on that side.
    low, high = _representable_range(graph, operands[activations[0]])
    constants = {place: np.clip(item, 2 * low - high, 2 * high - low) for place, item in constants.items()}
    largest = max([*scales, *(float(np.abs(item).max()) / _HIGHEST for item in constants.values())])
    suitable = min(scales) >= FINEST and largest < COARSEST
    factor = 1.0 if suitable else 2.0 ** -np.ceil(np.log2(largest * 1.001))
    if suitable and not constants:
        return None
    op.inputs, added = [*operands], []
    for place, values in constants.items():
        op.inputs[place] = _constant(edited, graph, operands[place], values * factor)
    for place in activations if factor != 1.0 else ():
        op.inputs[place], multiply = _multiplied(edited, graph, operands[place], factor)
        added.append(multiply)
    return added


def _values(edited: Any, graph: Any, index: int) -> NDArray | None:
    """Return the real values of an int8 constant; None for an activation."""
    stored = constant_of(edited, graph, index, "int8")
    if stored is None:
        return None
    with np.errstate(over="ignore"):
        values = dequantize(stored.reshape(graph.tensors[index].shape), *scale_of(graph, index))
    return np.asarray(values, np.float64)


def _representable_range(graph: Any, index: int) -> tuple[float, float]:
    """Return the smallest and the largest real value that an int8 tensor can represent."""
    scale, zero_point = scale_of(graph, index)
    return scale * (_LOWEST - zero_point), scale * (_HIGHEST - zero_point)


def _constant(edited: Any, graph: Any, like: int, values: NDArray) -> int:
    """Add an int8 constant with a scale that suits its values; return its index."""
    scale = min(max(float(np.abs(values).max()) / _HIGHEST, FINEST / 256), 0.999)
    index = add_constant(edited, graph, quantize(values, scale, 0), np.int8)
    graph.tensors[index].name = f"{name_of(graph, like)}/comparable"
    set_scale(graph, index, scale, 0)
    return index


def _multiplied(edited: Any, graph: Any, source: int, factor: float) -> tuple[int, Any]:
    """Return a new tensor with the same quantized values and `factor` times the scale, and the MUL that computes it."""
    from ai_edge_litert import schema_py_generated as generated

    number = add_constant(edited, graph, np.int8(_HIGHEST), np.int8)
    set_scale(graph, number, factor / _HIGHEST, 0)
    result = add_tensor(graph, source, f"{name_of(graph, source)}/comparable")
    scale, zero_point = scale_of(graph, source)
    set_scale(graph, result, scale * factor, zero_point)
    kind, options = generated.BuiltinOptions.MulOptions, generated.MulOptionsT()
    return result, new_op(edited, "MUL", [source, number], result, kind, options)

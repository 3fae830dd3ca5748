# SPDX-License-Identifier: Apache-2.0
"""Audit rules for quantization parameters that TFLite's integer kernels assume.

A kernel does not read every scale and zero point in the file. It multiplies by the product of input and weight scales,
whatever the scale of the bias is. It treats weights as symmetric, copies bytes in ops that only move values, and
assumes a fixed output range of a sigmoid. A file with other parameters loads, passes all checks of types, and computes
wrong values. Source: the TFLite 8-bit quantization specification
(https://ai.google.dev/edge/litert/models/quantization_spec) and tflite/core/kernels.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from tfq.errors import InputError
from tfq.tflite.op_types import (
    BIAS,
    BIAS_INPUTS,
    CHANNEL_AXES,
    FIXED_OUTPUT_SCALES,
    WEIGHT,
    WEIGHT_INPUTS,
    WEIGHTED_SLOTS,
    moved_inputs,
    roles,
)
from tfq.tflite.records import ABSENT, Op, Subgraph, Tensor, constant_values

SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)

# Ops whose weight slots are weights as the specification defines them; in others they are activations or tables.
_WEIGHTED = frozenset(WEIGHT_INPUTS) - {"BATCH_MATMUL", "EMBEDDING_LOOKUP"}
_SYMMETRIC = ("int8", "int4", "int2")
_NARROW_BIASES = ("int8", "uint8", "int16", "int4", "uint4", "int2")

_BIAS_TOLERANCE = 0.01

_MOVED_TYPES = ("int8", "int16")
_SCALE_TOLERANCE = 1e-3


def parameter_faults(data: bytes, graph: Subgraph, op: Op) -> Iterator[tuple[Tensor, str, str]]:
    """Yield (tensor, kind, fault) for each quantization parameter of `op` that its kernel does not honor.

    Args:
        data: The bytes that `graph` was read from.
        graph: The subgraph of `op`.
        op: The operator.

    Yields:
        Kinds: weight_zero_point, weight_axis, bias_type, bias_zero_point, bias_scale, activation_scale, fixed_scale,
        unequal_scales. The fault completes the sentence "tensor NAME ...".
    """
    yield from _weight_faults(graph, op)
    yield from _bias_faults(data, graph, op)
    yield from _activation_faults(graph, op)
    yield from _moving_faults(graph, op)


def _weight_faults(graph: Subgraph, op: Op) -> Iterator[tuple[Tensor, str, str]]:
    if op.name not in _WEIGHTED:
        return
    for _, _, index, role in roles(op):
        tensor = graph.tensors[index]
        if role != WEIGHT or not tensor.is_constant or tensor.dtype not in _SYMMETRIC:
            continue
        if any(tensor.zero_point):
            wrong = (
                f"is a weight with zero_point {next(filter(None, tensor.zero_point))}, expected 0: the kernels treat "
                f"{tensor.dtype} weights as symmetric: quantize it again"
            )
            yield tensor, "weight_zero_point", wrong
        axis = CHANNEL_AXES.get(op.name)
        if axis is not None and len(tensor.scale) > 1 and tensor.quantized_dimension != axis % len(tensor.shape):
            wrong = (
                f"has one scale per slice of axis {tensor.quantized_dimension}, expected axis "
                f"{axis % len(tensor.shape)}, the output channels of {op.name}: quantize it again"
            )
            yield tensor, "weight_axis", wrong


def _bias_faults(data: bytes, graph: Subgraph, op: Op) -> Iterator[tuple[Tensor, str, str]]:
    if op.name not in BIAS_INPUTS:
        return
    for _, _, index, role in roles(op):
        bias = graph.tensors[index]
        if role != BIAS:
            continue
        if bias.dtype in _NARROW_BIASES:
            wrong = f"is a bias of type {bias.dtype}, expected int32 (int64 in int16x8): quantize it again"
            yield bias, "bias_type", wrong
        elif bias.dtype in ("int32", "int64") and bias.is_quantized:
            if any(bias.zero_point):
                wrong = (
                    f"is a bias with zero_point {next(filter(None, bias.zero_point))}, expected 0: quantize it again"
                )
                yield bias, "bias_zero_point", wrong
            if wrong := _bias_scale_fault(data, graph, op, bias):
                yield bias, "bias_scale", wrong


def _bias_scale_fault(data: bytes, graph: Subgraph, op: Op, bias: Tensor) -> str:
    """Return the fault of a bias' scales; empty if there is none, or if all values of the bias are zero."""
    slots = WEIGHTED_SLOTS.get(op.name, ())[:2]  # an LSTM has one bias per gate, with other scales
    if not slots or max(slots) >= len(op.inputs) or ABSENT in (op.inputs[slots[0]], op.inputs[slots[1]]):
        return ""
    inputs, weights = (graph.tensors[op.inputs[slot]] for slot in slots)
    if len(inputs.scale) != 1 or not weights.scale or inputs.dtype not in ("int8", "uint8", "int16"):
        return ""
    if len({len(weights.scale), len(bias.scale)} - {1}) > 1:
        return f"has {len(bias.scale)} scales, expected {len(weights.scale)}, as its weights: quantize it again"
    expected = np.float64(inputs.scale[0]) * np.asarray(weights.scale, np.float64)
    got = np.asarray(bias.scale, np.float64)
    sound = _is_sound((*inputs.scale, *weights.scale)) and bool(np.all(np.isfinite(got) & (got > 0)))
    if not sound or np.all(np.abs(got / expected - 1) <= _BIAS_TOLERANCE) or _is_zero(data, bias):
        return ""
    worst = int(np.argmax(np.abs(np.log(got / expected))))
    got, expected = np.broadcast_arrays(got, expected)
    return (
        f"has the scale {got[worst]:.4g}, expected {expected[worst]:.4g}, the product of the scales of its op's input "
        "and weights, which the kernel assumes: quantize it again"
    )


def _is_sound(scales: Iterable[float]) -> bool:
    """Check whether all scales are positive normal numbers; others are reported as bad_scale."""
    return all(SMALLEST_NORMAL <= scale < math.inf for scale in scales)


def _is_zero(data: bytes, bias: Tensor) -> bool:
    try:
        return not constant_values(data, bias).any()
    except InputError:
        return not bias.is_constant


def _activation_faults(graph: Subgraph, op: Op) -> Iterator[tuple[Tensor, str, str]]:
    for place, slot, index, _ in roles(op):
        tensor = graph.tensors[index]
        if place != "output" or tensor.is_constant:
            continue
        if len(tensor.scale) > 1:
            wrong = f"has {len(tensor.scale)} scales, expected one, because only weights may have more: convert again"
            yield tensor, "activation_scale", wrong
        elif tensor.dtype == "int16" and any(tensor.zero_point):
            wrong = f"is int16 with zero_point {tensor.zero_point[0]}, expected 0: convert again"
            yield tensor, "activation_scale", wrong
        fixed = FIXED_OUTPUT_SCALES.get(op.name, {}).get(tensor.dtype)
        if fixed and slot == 0 and len(tensor.scale) == 1 and not _alike(tensor, *fixed):
            wrong = (
                f"has scale {tensor.scale[0]:.4g} and zero_point {tensor.zero_point[0]}, expected {fixed[0]:.4g} and "
                f"{fixed[1]}, which the {tensor.dtype} kernel of {op.name} assumes: convert again"
            )
            yield tensor, "fixed_scale", wrong


def _moving_faults(graph: Subgraph, op: Op) -> Iterator[tuple[Tensor, str, str]]:
    inputs = [graph.tensors[index] for index in moved_inputs(op.name, op.inputs) if index != ABSENT]
    for output in (graph.tensors[index] for index in op.outputs):
        for tensor in inputs:
            both = len(tensor.scale) == len(output.scale) == 1 and tensor.dtype == output.dtype
            if both and tensor.dtype in _MOVED_TYPES and not _alike(output, tensor.scale[0], tensor.zero_point[0]):
                wrong = (
                    f"has scale {output.scale[0]:.4g} and zero_point {output.zero_point[0]}, expected those of its "
                    f"input, {tensor.scale[0]:.4g} and {tensor.zero_point[0]}: {op.name} copies the quantized "
                    "values: convert again"
                )
                yield output, "unequal_scales", wrong
                break


def _alike(tensor: Tensor, scale: float, zero_point: int) -> bool:
    got = tensor.scale[0]
    if not _is_sound((got, scale)):
        return True
    return math.isclose(got, scale, rel_tol=_SCALE_TOLERANCE) and tensor.zero_point[0] == zero_point

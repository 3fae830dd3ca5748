# SPDX-License-Identifier: Apache-2.0
"""Clipping that reaches no output: values beyond a tensor's range that no op makes use of.

A mask of -1e9 is bounded near the scores that a softmax reads, a choice of two tensors has the range of what it
chooses, and a maximum never takes what lies far below its result. The tensors in front of such ops are clipped on
purpose, or at no cost.
"""

from typing import TYPE_CHECKING

import numpy as np

from tfq.tflite import Op, Tensor

if TYPE_CHECKING:
    from tfq.ptq.causes import Diagnosis

# Part of the range that values exceed it by before it counts.
CLIPPED_WIDTH = 0.25
# Of the range of a softmax: exp(-12) is 6e-6, far below a quantized value of its output.
_NEGLIGIBLE = 12.0
# Ops whose outputs are some of the values that they read. What is not in their output was not used.
_CHOOSING = frozenset({"SELECT", "SELECT_V2", "MAXIMUM", "MINIMUM", "REDUCE_MAX", "REDUCE_MIN", "MAX_POOL_2D"})
_COMPARING = frozenset({"GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"})
# Ops that only hand on what is clipped, in part after a shift.
_HANDING_ON = frozenset({"ADD", "SUB", "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "QUANTIZE", "DEQUANTIZE"})
# Ops between a tensor and those that decide.
_FARTHEST = 8


def representable_range(tensor: Tensor) -> tuple[float, float]:
    """Return the lowest and the highest real value that the codes of a per-tensor quantized tensor express."""
    limits = np.iinfo(tensor.dtype)
    scale, zero_point = float(tensor.scale[0]), int(tensor.zero_point[0])
    return (limits.min - zero_point) * scale, (limits.max - zero_point) * scale


def max_magnitude(tensor: Tensor) -> float:
    """Return the largest magnitude that the codes of a tensor express; 0 of a tensor without a scale."""
    if not tensor.scale or tensor.dtype not in ("int8", "int16", "uint8"):
        return 0.0
    limits = np.iinfo(tensor.dtype)
    return max(
        max(limits.max - zero_point, zero_point - limits.min) * scale
        for scale, zero_point in zip(tensor.scale, tensor.zero_point, strict=True)
    )


def clipped_sides(diagnosis: "Diagnosis", tensor: int) -> tuple[bool, bool]:
    """Return whether the float values of a tensor lie below its range, and whether above it, by enough to count."""
    known, scale = diagnosis.facts(tensor), diagnosis.scale(tensor)
    if known is None or scale is None or diagnosis.graph.tensors[tensor].is_constant:
        return False, False
    low, high = representable_range(diagnosis.graph.tensors[tensor])
    margin = CLIPPED_WIDTH * (high - low)
    return low - known.minimum > margin, known.maximum - high > margin


def is_clipping_harmless(diagnosis: "Diagnosis", tensor: int, steps: int = _FARTHEST) -> bool:
    """Check whether what is clipped of a tensor reaches no output of the model.

    Args:
        diagnosis: The quantized graph next to the facts of the float tensors.
        tensor: A tensor whose float values exceed its range.
        steps: How many ops to follow.
    """
    readers = diagnosis.graph.readers.get(tensor, ())
    if tensor in diagnosis.graph.outputs or not readers or steps == 0:
        return False
    return all(_ignores(diagnosis, op, tensor, steps) for op in readers)


def _ignores(diagnosis: "Diagnosis", op: Op, tensor: int, steps: int) -> bool:
    below, above = clipped_sides(diagnosis, tensor)
    low, high = representable_range(diagnosis.graph.tensors[tensor])
    if op.name in _CHOOSING:
        return _within(diagnosis, op.outputs[0], low, high) or is_clipping_harmless(diagnosis, op.outputs[0], steps - 1)
    if op.name in _COMPARING:
        return all(_within(diagnosis, other, low, high) for other in op.inputs if other != tensor)
    if op.name == "SOFTMAX":
        return below and not above and high - low >= _NEGLIGIBLE
    if op.name == "EXP":
        return below and not above and low <= -_NEGLIGIBLE
    if op.name in _HANDING_ON:
        return any(clipped_sides(diagnosis, op.outputs[0])) and is_clipping_harmless(
            diagnosis, op.outputs[0], steps - 1
        )
    return False


def _within(diagnosis: "Diagnosis", tensor: int, low: float, high: float) -> bool:
    known, margin = diagnosis.facts(tensor), CLIPPED_WIDTH * (high - low)
    if diagnosis.graph.tensors[tensor].is_constant:
        return (
            diagnosis.scale(tensor) is not None
            and max_magnitude(diagnosis.graph.tensors[tensor]) <= max(-low, high) + margin
        )
    return known is not None and known.minimum >= low - margin and known.maximum <= high + margin

# SPDX-License-Identifier: Apache-2.0
"""Clipping of activations, and whether it affects an output of the model.

Some tensors are clipped on purpose or without cost: a mask of -1e9 is bounded near the scores that a softmax reads, a
SELECT has the range of the values that it selects, and a MAXIMUM never takes values far below its result.
"""

from typing import TYPE_CHECKING

import numpy as np

from tfq.tflite import Op, Tensor

if TYPE_CHECKING:
    from tfq.ptq.causes import Diagnosis

# Values must exceed the range by this fraction of its width to count as clipped.
_CLIPPING_MARGIN = 0.25
# Softmax inputs this far below the largest one are negligible: exp(-12) = 6e-6, far below one step of the output.
_NEGLIGIBLE = 12.0
# Ops whose outputs are a selection of their inputs. Values that are not in the output were not used.
_SELECTING = frozenset({"SELECT", "SELECT_V2", "MAXIMUM", "MINIMUM", "REDUCE_MAX", "REDUCE_MIN", "MAX_POOL_2D"})
_COMPARING = frozenset({"GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"})
# Ops that pass clipped values on, ADD and SUB with an offset.
_PASS_THROUGH = frozenset({"ADD", "SUB", "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "QUANTIZE", "DEQUANTIZE"})
# The number of ops to follow from a clipped tensor.
_MAX_OPS = 8


def representable_range(tensor: Tensor) -> tuple[float, float]:
    """Return the lowest and the highest real value that a per-tensor quantized tensor can represent."""
    limits = np.iinfo(tensor.dtype)
    scale, zero_point = float(tensor.scale[0]), int(tensor.zero_point[0])
    return (limits.min - zero_point) * scale, (limits.max - zero_point) * scale


def max_magnitude(tensor: Tensor) -> float:
    """Return the largest magnitude that a quantized tensor can represent; 0 if it has no scale."""
    if not tensor.scale or tensor.dtype not in ("int8", "int16", "uint8"):
        return 0.0
    limits = np.iinfo(tensor.dtype)
    return max(
        max(limits.max - zero_point, zero_point - limits.min) * scale
        for scale, zero_point in zip(tensor.scale, tensor.zero_point, strict=True)
    )


def clipped_sides(diagnosis: "Diagnosis", tensor: int) -> tuple[bool, bool]:
    """Return (clipped below, clipped above): whether float values exceed the range by more than a quarter of it."""
    known, scale = diagnosis.facts(tensor), diagnosis.scale(tensor)
    if known is None or scale is None or diagnosis.graph.tensors[tensor].is_constant:
        return False, False
    low, high = representable_range(diagnosis.graph.tensors[tensor])
    margin = _CLIPPING_MARGIN * (high - low)
    return low - known.minimum > margin, known.maximum - high > margin


def is_clipping_harmless(diagnosis: "Diagnosis", tensor: int, steps: int = _MAX_OPS) -> bool:
    """Check whether the clipped values of a tensor affect no output of the model.

    Args:
        diagnosis: The quantized graph, with the facts of the float tensors.
        tensor: A tensor whose float values exceed its range.
        steps: How many ops to follow. If they do not decide, the clipping counts as harmful.
    """
    readers = diagnosis.graph.readers.get(tensor, ())
    if tensor in diagnosis.graph.outputs or not readers or steps == 0:
        return False
    return all(_ignores(diagnosis, op, tensor, steps) for op in readers)


def _ignores(diagnosis: "Diagnosis", op: Op, tensor: int, steps: int) -> bool:
    below, above = clipped_sides(diagnosis, tensor)
    low, high = representable_range(diagnosis.graph.tensors[tensor])
    if op.name in _SELECTING:
        return _within(diagnosis, op.outputs[0], low, high) or is_clipping_harmless(diagnosis, op.outputs[0], steps - 1)
    if op.name in _COMPARING:
        return all(_within(diagnosis, other, low, high) for other in op.inputs if other != tensor)
    if op.name == "SOFTMAX":
        return below and not above and high - low >= _NEGLIGIBLE
    if op.name == "EXP":
        return below and not above and low <= -_NEGLIGIBLE
    if op.name in _PASS_THROUGH:
        return any(clipped_sides(diagnosis, op.outputs[0])) and is_clipping_harmless(
            diagnosis, op.outputs[0], steps - 1
        )
    return False


def _within(diagnosis: "Diagnosis", tensor: int, low: float, high: float) -> bool:
    known, margin = diagnosis.facts(tensor), _CLIPPING_MARGIN * (high - low)
    if diagnosis.graph.tensors[tensor].is_constant:
        return (
            diagnosis.scale(tensor) is not None
            and max_magnitude(diagnosis.graph.tensors[tensor]) <= max(-low, high) + margin
        )
    return known is not None and known.minimum >= low - margin and known.maximum <= high + margin

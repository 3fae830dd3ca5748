# SPDX-License-Identifier: Apache-2.0
"""Bound the masks of a float flatbuffer before quantization, so that the scores keep a fine int8 scale.

`mask_flow` finds where masks act, and to which interval they can be clipped. This module clips the constants to it, and
limits the ranges of the tensors between. Larger values saturate when they are quantized. The function stays the same: a
masked weight is at most exp(-12) of an unmasked one instead of 0 (exp(-24) in the float model, whose masks share no
scale), and a max pool or a maximum is bit-exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.conversion.graph_editing import add_constant, constant_of, remove_unread_ops, set_input
from tfq.conversion.mask_flow import MIN_MASK_CONSTANT, Interval, MaskFlow
from tfq.errors import warn
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.typing import JSON

Ranges = dict[tuple[int, int], Interval]
RangeMap = Mapping[tuple[int, int], Interval]

# Replaces an infinite constant. Twice this value is still finite.
_FINITE = 1e30
_MASKING = ("ADD", "MAXIMUM", "MINIMUM", "PADV2", "SELECT", "SELECT_V2", "SUB")
# Constants are clipped this much farther out than ranges, so that a row with only the lowest score stays within 1e-6.
_EXTRA = 12.0
# Constants with more values than this are stored once for all ops that read them.
_SHARED_SIZE = 1024
# The number of samples to compare the bounded float model with the original one, and the accepted difference of an
# output relative to the largest one.
_NUM_COMPARED, _TOLERANCE = 64, 1e-4
# A mask of -1e4 rounds the scores that it is added to by 1e-3, so a row of such scores changes by at most this.
_ROUNDING = 1e-2
# If the scores of a fully masked row differ by less than this, its softmax counts as uniform.
_UNIFORM_SPREAD = 0.05


@dataclass(frozen=True, kw_only=True)
class BoundedMasks:
    """A float flatbuffer with bounded masks.

    Attributes:
        model: The flatbuffer. Its tensors keep their indices.
        ranges: The ranges of its activations.
        layers: Each softmax, maximum or max pool whose mask was bounded: its layer, its op, and its input with the
            range.
        uneven: Whether a mask is so small that float32 still distinguishes the scores that it is added to.
        unbounded: Layers in which a mask shares a scale with other values and cannot be bounded.
    """

    model: bytes
    ranges: Ranges
    layers: tuple[dict[str, Any], ...] = ()
    uneven: bool = False
    unbounded: tuple[str, ...] = ()

    def to_dict(self) -> JSON:
        """Return plain JSON values: {"masks": ...}, or an empty dict if no mask was bounded."""
        return {"masks": {"bounded": list(self.layers)}} if self.layers else {}


def with_finite_masks(model: bytes) -> bytes:
    """Replace infinite constants of ops that mask by finite ones, because a range cannot be infinite."""
    if tflite.operator_names(model).isdisjoint(_MASKING):
        return model
    edited, changed = tflite.unpack(model), False
    for graph in edited.subgraphs:
        for op in graph.operators:
            if tflite.operator_name(edited, op) not in _MASKING:
                continue
            for place, index in enumerate(op.inputs):
                values = None if index < 0 else constant_of(edited, graph, index)
                if values is None or not np.isinf(values).any():
                    continue
                finite = np.where(np.isinf(values), np.copysign(np.float32(_FINITE), values), values)
                _replace_constant(edited, graph, op, place, finite)
                changed = True
    return tflite.pack(edited, len(model)) if changed else model


def without_nested_selects(model: bytes, ranges: Ranges) -> tuple[bytes, Ranges]:
    """Replace select(c, select(c, x, a), b) by select(c, x, b).

    Quantization-aware training masks scores in this form. The constant a, which is near the scores, only affects the
    range of the inner SELECT. This range becomes that of x and of the outer SELECT.

    Args:
        model: A float flatbuffer.
        ranges: {(subgraph, tensor): (minimum, maximum)} of its activations.

    Returns:
        The flatbuffer and its ranges.
    """
    if tflite.operator_names(model).isdisjoint(("SELECT", "SELECT_V2")):
        return model, ranges
    edited, changed, results = tflite.unpack(model), False, dict(ranges)
    for number, graph in enumerate(edited.subgraphs):
        selects = [op for op in graph.operators if tflite.operator_name(edited, op).startswith("SELECT")]
        producers = {int(op.outputs[0]): op for op in selects}
        for outer in selects:
            inner = producers.get(int(outer.inputs[1]))
            if inner is None or not _same_values(edited, graph, int(inner.inputs[0]), int(outer.inputs[0])):
                continue
            covered, x = int(outer.inputs[1]), int(inner.inputs[1])
            outer.inputs = np.array([outer.inputs[0], x, outer.inputs[2]], np.int32)
            changed = True
            if (number, covered) in results:
                results[number, int(outer.outputs[0])] = results[number, x] = results.pop((number, covered))
        if changed:
            remove_unread_ops(graph)
    if not changed:
        return model, ranges
    tflite.remove_unused_operator_codes(edited)
    return tflite.pack(edited, len(model)), results


def _same_values(edited: Any, graph: Any, one: int, other: int) -> bool:
    left, right = (edited.buffers[graph.tensors[index].buffer].data for index in (one, other))
    if one == other or left is None or right is None:
        return one == other
    return list(graph.tensors[one].shape) == list(graph.tensors[other].shape) and np.array_equal(left, right)


def bound_masks(model: bytes, ranges: RangeMap, observed: RangeMap, scheme: str, *, even: bool = True) -> BoundedMasks:
    """Clip the masks that reach a softmax, a maximum or a max pool near the range of the scores.

    Only the main subgraph is changed, because only it has observed ranges.

    Args:
        model: A float flatbuffer.
        ranges: {(subgraph, tensor): (minimum, maximum)} that calibration chose.
        observed: The same for all values on the calibration data, without clipping.
        scheme: "int8" or "int16x8".
        even: As in `MaskFlow`.
    """
    graph = tflite.read(model).main_subgraph
    edited = tflite.unpack(model)
    by_observed = _flow(edited, graph, observed, observed, scheme, extra=_EXTRA if even else 0.0)
    by_chosen = _flow(edited, graph, observed, ranges, scheme, even=even)
    unbounded = tuple(sorted({graph.layer_of(op) for op in by_observed.unbounded}))
    if not by_observed.limits:
        return BoundedMasks(model=model, ranges=dict(ranges), unbounded=unbounded)
    changed = _clip_constants(edited, edited.subgraphs[graph.index], by_observed)
    bounded = dict(ranges)
    for index, limit in by_chosen.limits.items():
        ends = ranges.get((graph.index, index), observed.get((graph.index, index)))
        if ends is not None:
            bounded[graph.index, index] = tuple(np.clip(ends, *limit).tolist())
    changed_ranges = {key[1] for key, ends in bounded.items() if ends != ranges.get(key)}
    layers = [
        {
            "layer": graph.layer_of(op),
            "op": op.name,
            "tensor": op.inputs[0],
            "range": list(bounded.get((graph.index, op.inputs[0]), ())),
        }
        for op in by_observed.sinks
        if changed or op.inputs[0] in changed_ranges
    ]
    if not changed and not layers:
        return BoundedMasks(model=model, ranges=dict(ranges), unbounded=unbounded)
    uneven = any(_distinguishes_scores(by_observed, op) for op in by_observed.sinks if op.name == "SOFTMAX")
    return BoundedMasks(
        model=tflite.pack(edited, len(model)),
        ranges=bounded,
        layers=tuple(layers),
        uneven=uneven,
        unbounded=unbounded,
    )


def _flow(
    edited: Any,
    graph: tflite.Subgraph,
    observed: RangeMap,
    ranges: RangeMap,
    scheme: str,
    *,
    even: bool = True,
    extra: float = 0.0,
) -> MaskFlow:
    table = edited.subgraphs[graph.index]
    constants: dict[int, NDArray | None] = {}

    def constant(index: int) -> NDArray | None:
        if index not in constants:
            constants[index] = None if index == tflite.ABSENT else constant_of(edited, table, index)
        return constants[index]

    return MaskFlow(
        graph=graph,
        constant=constant,
        observed={tensor: ends for (subgraph, tensor), ends in observed.items() if subgraph == graph.index},
        ranges={tensor: ends for (subgraph, tensor), ends in ranges.items() if subgraph == graph.index},
        has_activation=lambda index: bool(getattr(table.operators[index].builtinOptions, "fusedActivationFunction", 0)),
        symmetric=scheme == "int16x8",
        even=even,
        extra=extra,
    )


def _distinguishes_scores(flow: MaskFlow, op: tflite.Op) -> bool:
    """Check whether scores that a mask was added to still differ in float32."""
    (low, high), real = flow.observed.get(op.inputs[0], (0.0, 0.0)), flow.masked[op.inputs[0]] or (0.0, 0.0)
    return max(-low, high) * float(np.finfo(np.float32).eps) / 2 < real[1] - real[0]


def _clip_constants(edited: Any, table: Any, flow: MaskFlow) -> bool:
    """Clip the mask constants in place; return whether any changed."""
    limits = dict(flow.constant_limits)
    by_tensor: dict[int, list[Interval]] = {}
    for (op, place), limit in limits.items():
        by_tensor.setdefault(int(table.operators[op].inputs[place]), []).append(limit)
    changed = False
    built: dict[tuple[int, Interval], int] = {}
    for (number, place), own in limits.items():
        op = table.operators[number]
        index = int(op.inputs[place])
        values = flow.constant(index)
        if values is None:
            continue
        limit = own
        if values.size > _SHARED_SIZE:
            lows, highs = zip(*by_tensor[index], strict=True)
            limit = min(lows), max(highs)
        clipped = np.where(np.abs(values) >= MIN_MASK_CONSTANT, np.clip(values, *limit), values).astype(np.float32)
        if np.array_equal(clipped, values):
            continue
        key = index, limit
        built[key] = _replace_constant(edited, table, op, place, clipped, built.get(key))
        changed = True
    return changed


def _replace_constant(edited: Any, graph: Any, op: Any, place: int, values: NDArray, index: int | None = None) -> int:
    """Replace a constant input of `op` by a new constant with these values, or by the one at `index`."""
    if index is None:
        old = graph.tensors[int(op.inputs[place])]
        index = add_constant(edited, graph, values.reshape([int(size) for size in old.shape]))
    set_input(op, place, index)
    return index


def bound_and_check_masks(
    model: bytes, ranges: RangeMap, observed: RangeMap, scheme: str, samples: Sequence[Sample]
) -> BoundedMasks:
    """Bound the masks of a float flatbuffer, and compare its outputs on `samples` before and after.

    Fully masked rows are special. In float, their softmax is uniform if float32 rounds away the scores that the mask is
    added to. In integers it is uniform because the scores saturate. There are three cases:

    - The mask is so small that float32 still distinguishes the scores: the ranges are widened, so that integers
      distinguish them as well.
    - The mask rounds the scores: a TfqWarning names the layer.
    - Something else differs: the masks are not bounded, and a TfqWarning names the layers.

    A TfqWarning also names the layers whose masks cannot be bounded.

    Args:
        model: As in `bound_masks`.
        ranges: As in `bound_masks`.
        observed: As in `bound_masks`.
        scheme: As in `bound_masks`.
        samples: Calibration samples to compare both float models on.
    """
    bounded = bound_masks(model, ranges, observed, scheme)
    _warn_of_unbounded(bounded.unbounded)
    if not bounded.layers or not samples:
        return bounded
    graph = tflite.read(model).main_subgraph
    compared = samples[:: -(-len(samples) // _NUM_COMPARED)]
    difference = _difference(graph, model, bounded.model, compared)
    rows = _uneven_rows(model, bounded, compared) if difference > _TOLERANCE or bounded.uneven else None
    if difference > _TOLERANCE and rows is None:
        names = ", ".join(sorted({item["layer"] for item in bounded.layers}))
        warn(
            f"masks: the masks of {names} keep their values, which may take the whole int8 range. Bounding them would "
            f"change the outputs of the float model by {difference:.1e} of the largest output. Use masks of 0 and one "
            "large value, or keep these layers in float (conversion.float_layers)"
        )
        return BoundedMasks(model=model, ranges=dict(ranges))
    if not rows:
        return bounded
    if difference <= _ROUNDING:
        return bound_masks(model, ranges, observed, scheme, even=False)
    warn(
        f"masks: some rows of {', '.join(rows)} are fully masked on the calibration data. In float, the mask rounds "
        "their scores; in integers, all their scores are equal. Use a larger mask constant (-1e9), or ignore the "
        "output of these rows"
    )
    return bounded


def _difference(graph: tflite.Subgraph, before: bytes, after: bytes, samples: Sequence[Sample]) -> float:
    """Return the largest difference of an output, relative to that output's largest magnitude."""
    runs = [
        map_activations(model, graph.outputs, samples, lambda values: [value.astype(np.float64) for value in values])
        for model in (before, after)
    ]
    largest, difference = np.zeros(len(graph.outputs)), np.zeros(len(graph.outputs))
    for original, bounded in zip(*runs, strict=True):
        for place, (expected, got) in enumerate(zip(original, bounded, strict=True)):
            # In a log-softmax, the result of a masked position is a mask value itself; in int8 it ends at -16.
            real = np.abs(expected) < MIN_MASK_CONSTANT
            largest[place] = max(largest[place], np.abs(expected[real]).max(initial=0))
            difference[place] = max(difference[place], np.abs(expected - got)[real].max(initial=0))
    return float((difference / np.where(largest > 0, largest, 1)).max(initial=0))


def _uneven_rows(model: bytes, bounded: BoundedMasks, samples: Sequence[Sample]) -> list[str] | None:
    """Return the layers with a fully masked row whose scores differ; None if there is no fully masked row."""
    sinks = {item["tensor"]: item["layer"] for item in bounded.layers if item["op"] == "SOFTMAX"}
    names, has_masked_rows = set(), False
    for spreads in map_activations(model, list(sinks), samples, lambda arrays: list(map(_spread_of_masked, arrays))):
        for layer, spread in zip(sinks.values(), spreads, strict=True):
            has_masked_rows |= spread is not None
            if spread is not None and spread > _UNIFORM_SPREAD:
                names.add(layer)
    return sorted(names) if has_masked_rows else None


def _spread_of_masked(scores: NDArray) -> float | None:
    """Return the largest spread of a fully masked row (along the last axis); None if there is no such row."""
    highest = scores.max(axis=-1)
    rows = highest <= -MIN_MASK_CONSTANT / 2
    return float((highest - scores.min(axis=-1))[rows].max()) if rows.any() else None


def _warn_of_unbounded(layers: Sequence[str]) -> None:
    if layers:
        warn(
            f"masks: {', '.join(layers)} lose values, because a constant or an input of at least {MIN_MASK_CONSTANT:g} "
            "shares a scale with them and they are smaller than one int8 step of it. The constant cannot be bounded, "
            "because ops other than a softmax, a maximum or a max pool read the result. Use a smaller constant, or "
            "keep the layer in float (conversion.float_layers)"
        )

# SPDX-License-Identifier: Apache-2.0
"""Bound the masks of a float flatbuffer before it is quantized, so that they do not take the scores' int8 scale.

`mask_flow` finds where masks act and how far they can be cut off. This module cuts constants off there, and
ends the ranges of the tensors on the way there; values beyond saturate when quantized. The function stays the same: a
masked weight is at most exp(-12) of an unmasked one instead of 0 (in the float model, whose masks have no scale to
share, exp(-24)), and a max pool or a maximum gives the same bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.conversion.graph_editing import add_constant, constant_of, remove_unread_ops, set_input
from tfq.conversion.mask_flow import HUGE, Interval, MaskFlow
from tfq.errors import warn
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.typing import JSON

Ranges = dict[tuple[int, int], Interval]
RangeMap = Mapping[tuple[int, int], Interval]

# In the place of an infinite constant: twice this is finite too.
_FINITE = 1e30
_MASKING = ("ADD", "MAXIMUM", "MINIMUM", "PADV2", "SELECT", "SELECT_V2", "SUB")
# Of constants beyond the margin of ranges: a row whose only score is the lowest one stays within 1e-6 as well.
_EXTRA = 12.0
# Constants of more values than this are stored once, for all ops that read them.
_SHARED_SIZE = 1024
# Samples on which the bounded float model is compared with the original one, and the largest difference of an output
# as a fraction of the largest one.
_COMPARED, _MOST = 64, 1e-4
# A mask of -1e4 rounds the scores that it is added to by 1e-3: a row of such scores differs by no more than this.
_ROUNDED = 1e-2
# Scores that differ by less, in a row that is masked throughout, give an even softmax.
_EVEN = 0.05


@dataclass(frozen=True, kw_only=True)
class BoundedMasks:
    """A float flatbuffer with bounded masks.

    model: the flatbuffer; tensors have the indices that they had. ranges: of its activations.
    layers: each softmax, maximum or max pool whose mask was bounded: its layer and op, its input and that one's range.
    uneven: whether a mask is so small that float32 still tells scores apart that it is added to.
    unbounded: layers where a mask takes a scale from other values, and nothing allows to cut it off.
    """

    model: bytes
    ranges: Ranges
    layers: tuple[dict[str, Any], ...] = ()
    uneven: bool = False
    unbounded: tuple[str, ...] = ()

    def to_dict(self) -> JSON:
        """Return plain JSON values: {"masks": ...}, or nothing where no mask was bounded."""
        return {"masks": {"bounded": list(self.layers)}} if self.layers else {}


def with_finite_masks(model: bytes) -> bytes:
    """Replace infinite constants of ops that mask: no range can hold infinity."""
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
    """Let a SELECT read directly what an inner SELECT with the same condition would pass on to it.

    select(c, select(c, x, a), b) is select(c, x, b). Quantization-aware training masks scores in this form: a, near the
    scores, affects only the range of the inner choice, which becomes the range of x and of the outer one.
    """
    if tflite.operator_names(model).isdisjoint(("SELECT", "SELECT_V2")):
        return model, ranges
    edited, changed, results = tflite.unpack(model), False, dict(ranges)
    for number, graph in enumerate(edited.subgraphs):
        selects = [op for op in graph.operators if tflite.operator_name(edited, op).startswith("SELECT")]
        makers = {int(op.outputs[0]): op for op in selects}
        for outer in selects:
            inner = makers.get(int(outer.inputs[1]))
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
    """Cut off the masks on the way to a softmax, a maximum or a max pool at the scores' own range.

    Only the main subgraph is changed: it alone has observed ranges.

    Args:
        model: A float flatbuffer.
        ranges: (subgraph, tensor) -> (minimum, maximum) that calibration chose.
        observed: The same of all values on the calibration data.
        scheme: "int8" or "int16x8".
        even: As in `MaskFlow`.
    """
    graph = tflite.read(model).main_subgraph
    edited = tflite.unpack(model)
    by_observed = _flow(edited, graph, observed, observed, scheme, extra=_EXTRA if even else 0.0)
    by_chosen = _flow(edited, graph, observed, ranges, scheme, even=even)
    unbounded = tuple(sorted({graph.layer_of(op) for op in by_observed.swallowed}))
    if not by_observed.limits:
        return BoundedMasks(model=model, ranges=dict(ranges), unbounded=unbounded)
    changed = _cut_constants(edited, edited.subgraphs[graph.index], by_observed)
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
    uneven = any(_tells_apart(by_observed, op) for op in by_observed.sinks if op.name == "SOFTMAX")
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
    spans: RangeMap,
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
        ends={tensor: ends for (subgraph, tensor), ends in observed.items() if subgraph == graph.index},
        spans={tensor: ends for (subgraph, tensor), ends in spans.items() if subgraph == graph.index},
        has_activation=lambda index: bool(getattr(table.operators[index].builtinOptions, "fusedActivationFunction", 0)),
        symmetric=scheme == "int16x8",
        even=even,
        extra=extra,
    )


def _tells_apart(flow: MaskFlow, op: tflite.Op) -> bool:
    """Whether scores that a mask is added to still differ in float32."""
    (low, high), real = flow.ends.get(op.inputs[0], (0.0, 0.0)), flow.masked[op.inputs[0]] or (0.0, 0.0)
    return max(-low, high) * float(np.finfo(np.float32).eps) / 2 < real[1] - real[0]


def _cut_constants(edited: Any, table: Any, flow: MaskFlow) -> bool:
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
        cut = np.where(np.abs(values) >= HUGE, np.clip(values, *limit), values).astype(np.float32)
        if np.array_equal(cut, values):
            continue
        key = index, limit
        built[key] = _replace_constant(edited, table, op, place, cut, built.get(key))
        changed = True
    return changed


def _replace_constant(edited: Any, graph: Any, op: Any, place: int, values: NDArray, index: int | None = None) -> int:
    """Let `op` read a new constant with these values, or the one at `index`."""
    if index is None:
        old = graph.tensors[int(op.inputs[place])]
        index = add_constant(edited, graph, values.reshape([int(size) for size in old.shape]))
    set_input(op, place, index)
    return index


def bound_and_check_masks(
    model: bytes, ranges: RangeMap, observed: RangeMap, scheme: str, samples: Sequence[Sample]
) -> BoundedMasks:
    """Bound the masks of a float flatbuffer, and compare it on `samples` with what it was.

    A row that is masked throughout gives an even softmax in float if float32 rounds away the scores that the mask is
    added to. In integers it does as well, because they saturate there. If a mask is so small that float32 still
    distinguishes the scores, the ranges end lower, so that integers do as well; if it rounds them, a TfqWarning names
    the layer. If anything else differs, the masks stay as they were. A TfqWarning names these layers, and those whose
    masks cannot be bounded.

    Args:
        model: As in `bound_masks`, like the next three.
        ranges: Likewise.
        observed: Likewise.
        scheme: Likewise.
        samples: Calibration samples to compare both float models on.
    """
    bounded = bound_masks(model, ranges, observed, scheme)
    _warn_of_unbounded(bounded.unbounded)
    if not bounded.layers or not samples:
        return bounded
    graph = tflite.read(model).main_subgraph
    some = samples[:: -(-len(samples) // _COMPARED)]
    difference = _difference(graph, model, bounded.model, some)
    rows = _uneven_rows(graph, model, bounded, some) if difference > _MOST or bounded.uneven else None
    if difference > _MOST and rows is None:
        names = ", ".join(sorted({item["layer"] for item in bounded.layers}))
        warn(
            f"masks: bounding the masks of {names} would change the float model by {difference:.1e} of its largest "
            "output, so they keep their values, which may take the whole int8 range: use masks of 0 and one large "
            "value, or keep these layers in float (conversion.float_layers)"
        )
        return BoundedMasks(model=model, ranges=dict(ranges))
    if not rows:
        return bounded
    if difference <= _ROUNDED:
        return bound_masks(model, ranges, observed, scheme, even=False)
    warn(
        f"masks: {', '.join(rows)}: on the calibration data some rows are masked throughout. In float their scores are "
        "rounded to the resolution of the mask, in integers all are the same: mask with a larger constant (-1e9), or "
        "ignore the output there"
    )
    return bounded


def _difference(graph: tflite.Subgraph, one: bytes, other: bytes, samples: Sequence[Sample]) -> float:
    """The largest difference of an output, as a fraction of that output's largest magnitude."""
    runs = [
        map_activations(model, graph.outputs, samples, lambda values: [value.astype(np.float64) for value in values])
        for model in (one, other)
    ]
    largest, furthest = np.zeros(len(graph.outputs)), np.zeros(len(graph.outputs))
    for wanted, got in zip(*runs, strict=True):
        for place, (left, right) in enumerate(zip(wanted, got, strict=True)):
            # The logarithm of a softmax is a mask value itself where all else is masked; in int8 it ends at -16.
            real = np.abs(left) < HUGE
            largest[place] = max(largest[place], np.abs(left[real]).max(initial=0))
            furthest[place] = max(furthest[place], np.abs(left - right)[real].max(initial=0))
    return float((furthest / np.where(largest > 0, largest, 1)).max(initial=0))


def _uneven_rows(
    graph: tflite.Subgraph, model: bytes, bounded: BoundedMasks, samples: Sequence[Sample]
) -> list[str] | None:
    """Layers with a row of scores that are all masked and yet differ; None where no row is masked throughout."""
    sinks = {item["tensor"]: item["layer"] for item in bounded.layers if item["op"] == "SOFTMAX"}
    names, is_masked = set(), False
    for spreads in map_activations(model, list(sinks), samples, lambda arrays: list(map(_masked_rows, arrays))):
        for layer, spread in zip(sinks.values(), spreads, strict=True):
            is_masked |= spread is not None
            if spread is not None and spread > _EVEN:
                names.add(layer)
    return sorted(names) if is_masked else None


def _masked_rows(scores: NDArray) -> float | None:
    """The largest spread of a row (last axis) in which all is masked; None where there is none."""
    highest = scores.max(axis=-1)
    rows = highest <= -HUGE / 2
    return float((highest - scores.min(axis=-1))[rows].max()) if rows.any() else None


def _warn_of_unbounded(layers: Sequence[str]) -> None:
    if layers:
        warn(
            f"masks: {', '.join(layers)}: a constant or an input of at least {HUGE:g} shares a scale with values that "
            "are smaller than one int8 step of it, and other ops than a softmax, a maximum or a max pool read the "
            "result: these values are lost. Use a smaller constant, or keep the layer in float "
            "(conversion.float_layers)"
        )

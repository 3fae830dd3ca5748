# SPDX-License-Identifier: Apache-2.0
"""What the numbers of an analysis mean, in plain words, with what to do about it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfq.analysis.joins import Join
from tfq.analysis.op_errors import OpError
from tfq.ptq import causes
from tfq.ptq.causes import Cause, Diagnosis, op_label
from tfq.tflite.op_types import FIXED_OUTPUT_SCALES, INDEX, WEIGHTED_SLOTS, roles

# Decibels. Below the first an output says little about the float one; a fall by the second is then the work of this op,
# and one by the third if it ends below the fourth.
_COLLAPSED_DB, _FALL_DB, _STEEP_DB, _HEALTHY_DB = 10.0, 8.0, 20.0, 30.0
# An output whose own grid allows no more than this carries little on these samples, in int8 or not.
_IDEAL_DB = 25.0
# The channel in the middle has this part of the range or less.
_UNEVEN = 1 / 32
_CLIPPED = 0.001
# Clipping that costs less than this is no finding, but for a channel whose own error is below _COLUMN_DB.
_CLIPPING_DB = 30.0
# In one op at least, where ranges are those of other data: a few values are beyond the range wherever data is new.
_CLIPPED_BY_OTHER_DATA = 0.01
_UNUSED = 0.25
# Weights of a channel that are worse than this are a finding by themselves.
_WEIGHTS_DB = 10.0
# A column of an input, or a channel, that is worse than this is lost.
_COLUMN_DB = 10.0
# A shift of the mean that is this part of the standard deviation is more than rounding leaves.
_SHIFTED = 0.1
_SUMS = ("ADD", "SUB", "ADD_N")
_GATES = ("MUL", "LOGISTIC", "HARD_SWISH", "TANH")
# Causes that lie in the graph and not in the data; the ranges of what follows them say nothing about the data.
_STRUCTURAL = (
    *(causes.UNEQUAL_JOIN, causes.MASK_CONSTANT, causes.WIDE_DYNAMIC_RANGE, causes.MIXED_INPUT_SCALES),
    causes.INDEX_QUANTIZED,
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that costs accuracy: what it is, where, and what to do.

    Attributes:
        kind: A kind of `tfq.ptq.causes`, or "collapse", "gate_collapse", "dead_channels", "saturated_channels",
            "ranges_widened", "ranges_too_narrow", "ranges_too_wide", "mean_shift".
        label: The op or the input, as in the records: "logpower/LOG (#4)".
        op_index: Position of the op in the int8 flatbuffer, None for an input of the model.
        message: What it is and what to do, in sentences.
    """

    kind: str
    label: str
    op_index: int | None
    message: str


def find(errors: Sequence[OpError], joins: Sequence[Join], diagnosis: Diagnosis) -> list[Finding]:
    """Return the findings: those of a kind together, kinds in the order of their first op."""
    errors = [item for item in errors if not item.never_taken]
    lost, collapsed = list(_lost_columns(errors)), list(_collapses(errors, diagnosis))
    if lost:
        collapsed = [item for item in collapsed if item.kind != causes.MIXED_INPUT_SCALES]
    structural = _without_repeats([*lost, *_indices(diagnosis), *collapsed])
    structural = _without_repeats([*structural, *_joined(joins, diagnosis, structural)])
    of_other_data = [] if any(item.kind in _STRUCTURAL for item in structural) else list(_other_data(errors))
    rest = [*structural, *_dead(errors, diagnosis), *_weights(errors, diagnosis), *_channels(errors)]
    if not structural:
        rest += _shifted(errors)
    if not of_other_data:
        named = {item.label for item in structural}
        ranges = [*_widened(errors, diagnosis), *_clipped(errors)]
        rest += [item for item in ranges if item.label not in named]
    kinds = list(dict.fromkeys(item.kind for item in rest))
    return of_other_data + sorted(_without_repeats(rest), key=lambda item: kinds.index(item.kind))


def _without_repeats(findings: Sequence[Finding]) -> list[Finding]:
    """Leave out findings of a kind on an op that already has one of it."""
    return list({(item.kind, item.label): item for item in reversed(findings)}.values())[::-1]


def _of(cause: Cause, diagnosis: Diagnosis) -> Finding:
    return Finding(
        kind=cause.kind,
        label=op_label(diagnosis.graph, cause.op_index),
        op_index=cause.op_index,
        message=cause.message,
    )


def _collapses(errors: Sequence[OpError], diagnosis: Diagnosis) -> Iterator[Finding]:
    """Yield the ops whose output is much worse than what they read, by the cause."""
    by_tensor = {item.tensor_index: item for item in errors}
    for item in errors:
        if item.op_index is None or item.dead or math.isinf(item.sqnr_db):
            continue
        came = min((by_tensor[index].sqnr_db for index in _read_by(item, by_tensor, diagnosis)), default=math.inf)
        came = item.expected_sqnr_db if math.isinf(came) else came
        needed = _FALL_DB if item.sqnr_db < _COLLAPSED_DB else _STEEP_DB
        if item.sqnr_db >= _HEALTHY_DB or came < _COLLAPSED_DB or came - item.sqnr_db < needed:
            continue
        cause = diagnosis.cause_of(item.op_index, _worst_weights(item))
        on_its_grid = min(came, item.expected_sqnr_db) - item.sqnr_db
        # A coarse grid without a reason in the graph: the output hardly varies on these samples, as a softmax may.
        if cause.kind not in _STRUCTURAL and item.expected_sqnr_db < _IDEAL_DB and on_its_grid < needed:
            continue
        falls = f"{item.label}: signal to error falls from {came:.0f} to {item.sqnr_db:.0f} dB"
        if cause.kind != causes.UNKNOWN:
            found = _of(cause, diagnosis)
            yield Finding(
                kind=found.kind, label=found.label, op_index=found.op_index, message=f"{falls}. {cause.message}"
            )
        elif item.op in _GATES and _is_gate(item.op_index, diagnosis):
            yield Finding(
                kind="gate_collapse",
                label=item.label,
                op_index=item.op_index,
                message=f"{falls}: a gate (swish, hard swish, squeeze-and-excitation) multiplies two rounded numbers, "
                "most of them small for their range. Quantization-aware train the model (tfq compress), or keep this "
                "layer in float or int16",
            )
        else:
            yield Finding(
                kind="collapse",
                label=item.label,
                op_index=item.op_index,
                message=f"{falls}. Try conversion.techniques=cross_layer_equalization,gptq,bias_correction, another "
                "conversion.calibration.method for it, or keep it in float",
            )


def _read_by(item: OpError, by_tensor: Mapping[int, OpError], diagnosis: Diagnosis) -> list[int]:
    """Return the nearest tensors before the op that have records and are not dead."""
    waiting = list(diagnosis.graph.ops[item.op_index or 0].inputs)
    found, seen = [], set[int]()
    while waiting:
        tensor = waiting.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor in by_tensor:
            if not by_tensor[tensor].dead:
                found.append(tensor)
        elif tensor in diagnosis.graph.producers:
            waiting += diagnosis.graph.producers[tensor].inputs
    return found


def _is_gate(op_index: int, diagnosis: Diagnosis) -> bool:
    """Check that an op is a squashing function, or multiplies two activations."""
    op = diagnosis.graph.ops[op_index]
    return op.name != "MUL" or not any(diagnosis.graph.tensors[index].is_constant for index in op.inputs)


def _worst_weights(item: OpError) -> float | None:
    return None if item.weights is None else item.weights.worst_channel_sqnr_db


def _lost_columns(errors: Sequence[OpError]) -> Iterator[Finding]:
    """Yield inputs whose one scale is too coarse for some of their columns."""
    for item in errors:
        lost = [place for place, value in enumerate(item.channel_sqnr_db) if value is not None and value < _COLUMN_DB]
        if item.op_index is not None or not lost or item.saturated > _CLIPPED_BY_OTHER_DATA:
            continue
        named = ", ".join(f"{place} ({item.channel_sqnr_db[place]:.0f} dB)" for place in lost[:6])
        named += ", ..." if len(lost) > 6 else ""
        yield Finding(
            kind=causes.MIXED_INPUT_SCALES,
            label=item.label,
            op_index=None,
            message=f"{item.label} has one scale of {item.scale:.3g} for all its {item.channels} columns, which is too "
            f"coarse for {len(lost)} of them: {named}. Use conversion.scheme=int16x8 or dynamic_range, feed it in "
            "float (conversion.inference_input_type=float32 with conversion.float_layers for the first layers), or "
            "normalize the columns before the model",
        )


def _indices(diagnosis: Diagnosis) -> Iterator[Finding]:
    for op in diagnosis.graph.ops:
        indices = [tensor for place, _, tensor, role in roles(op) if place == "input" and role == INDEX]
        if all(diagnosis.graph.tensors[index].is_constant for index in indices):
            continue
        cause = diagnosis.structural_cause(op)
        if cause is not None and cause.kind == causes.INDEX_QUANTIZED:
            yield _of(cause, diagnosis)


def _dead(errors: Sequence[OpError], diagnosis: Diagnosis) -> Iterator[Finding]:
    for item in errors:
        if item.dead and item.op_index is not None:
            # What only moves a dead tensor is not named again.
            before = [diagnosis.facts(index) for index in diagnosis.graph.ops[item.op_index].inputs[:1]]
            if all(known is None or known.magnitude > 0 for known in before):
                yield _of(diagnosis.cause_of(item.op_index), diagnosis)


def _weights(errors: Sequence[OpError], diagnosis: Diagnosis) -> Iterator[Finding]:
    for item in errors:
        worst = _worst_weights(item)
        # Coarse weights do no harm to an output that is right, or that hardly varies.
        lost = item.sqnr_db < _HEALTHY_DB or (item.worst_channel_sqnr_db or 0.0) < _COLUMN_DB
        if item.op_index is None or not lost or item.expected_sqnr_db < _IDEAL_DB:
            continue
        if worst is not None and worst < _WEIGHTS_DB and item.weights is not None:
            yield Finding(
                kind=causes.WEIGHTS,
                label=item.label,
                op_index=item.op_index,
                message=f"{item.label}: the weights of channel {item.weights.worst_channel} have a signal to error of "
                f"{worst:.0f} dB, those of the whole op {item.weights.sqnr_db:.0f} dB: "
                + (
                    "try conversion.techniques=gptq, or more bits for this layer"
                    if item.weights.per_channel
                    else "one scale serves all channels. Use a scale for each (conversion.per_channel=True), or "
                    "conversion.techniques=cross_layer_equalization"
                ),
            )


def _channels(errors: Sequence[OpError]) -> Iterator[Finding]:
    for item in errors:
        if item.dead or item.op_index is None:
            continue
        if item.dead_channels and item.channels > 1 and item.op in WEIGHTED_SLOTS:
            named = "all" if len(item.dead_channels) == item.channels else ", ".join(map(str, item.dead_channels[:6]))
            named += ", ..." if 6 < len(item.dead_channels) < item.channels else ""
            yield Finding(
                kind="dead_channels",
                label=item.label,
                op_index=item.op_index,
                message=f"{item.label}: {len(item.dead_channels)} of {item.channels} channels ({named}) never leave "
                "one quantized value: they are 0 on all of the data, or too small for the range. Take them out "
                "(compression.structured_pruning.enabled=True), or use conversion.techniques=cross_layer_equalization",
            )
        elif item.op in WEIGHTED_SLOTS and item.channel_spread is not None and item.channel_spread < _UNEVEN:
            yield Finding(
                kind=causes.UNEVEN_CHANNELS,
                label=item.label,
                op_index=item.op_index,
                message=f"{item.label}: half of its channels use less than {item.channel_spread:.1%} of the range that "
                "one scale gives to all: conversion.techniques=cross_layer_equalization",
            )


def _joined(joins: Sequence[Join], diagnosis: Diagnosis, already: Sequence[Finding]) -> Iterator[Finding]:
    known = {item.op_index for item in already}
    for item in joins:
        # A sum is about as large as its larger term, in float too: nothing is lost that mattered.
        if item.ratio < causes.MIN_WIDTH_RATIO or item.op_index in known or item.op in _SUMS:
            continue
        cause = diagnosis.structural_cause(diagnosis.graph.ops[item.op_index])
        if cause is not None and cause.kind in (causes.UNEQUAL_JOIN, causes.MASK_CONSTANT):
            if cause.op_index not in known:
                yield _of(cause, diagnosis)
            continue
        smallest = min((name for name in item.ranges if item.ranges[name] > 0), key=item.ranges.__getitem__)
        yield Finding(
            kind=causes.UNEQUAL_JOIN,
            label=item.label,
            op_index=item.op_index,
            message=f"{item.label} brings ranges {item.ratio:.0f} times apart to one scale: {smallest} has "
            f"{item.codes[smallest]} of 256 quantized values left. Bring its inputs to one size in the model (a scale "
            "or a normalization before the join), or return them as separate outputs",
        )


def _shifted(errors: Sequence[OpError]) -> Iterator[Finding]:
    """Yield the op with the largest mean shift, of those whose weights could be corrected for it."""
    shifted = [
        item
        for item in errors
        if item.op in WEIGHTED_SLOTS and item.mean_shift is not None and item.mean_shift > _SHIFTED
    ]
    # Rounding alone moves the mean of a channel by less than half a step.
    shifted = [item for item in shifted if abs(item.mean_shift_lsb) > 0.5 and item.saturated < _CLIPPED]
    if shifted:
        worst = max(shifted, key=lambda item: item.mean_shift or 0.0)
        others = f", and {len(shifted) - 1} more ops by more than {_SHIFTED:.0%}" if len(shifted) > 1 else ""
        yield Finding(
            kind="mean_shift",
            label=worst.label,
            op_index=worst.op_index,
            message=f"{worst.label}: the mean of a channel is off by {worst.mean_shift:.0%} of the standard deviation"
            f"{others}: conversion.techniques=bias_correction",
        )


def _widened(errors: Sequence[OpError], diagnosis: Diagnosis) -> Iterator[Finding]:
    """Yield that single ops, and not most of them, have ranges that are far wider than what this data needs."""
    unused = sorted(
        (item for item in errors if item.range_use < _UNUSED and not _is_explained(item, diagnosis)),
        key=lambda item: item.range_use,
    )
    if unused:
        worst = unused[0]
        others = f", and {len(unused) - 1} more ops" if len(unused) > 1 else ","
        named = ", ".join(item.label for item in unused[1:6]) + (", ..." if len(unused) > 6 else "")
        yield Finding(
            kind="ranges_widened",
            label=worst.label,
            op_index=worst.op_index,
            message=f"{worst.label} uses {worst.range_use:.1%} of its range on this data{others} less than "
            f"{_UNUSED:.0%}{f' ({named})' if named else ''}: single samples of the calibration data went much farther "
            "than these do. conversion.calibration.method=percentile or mse leave such samples out and name them",
        )


def _is_explained(item: OpError, diagnosis: Diagnosis) -> bool:
    """Check for a reason of a wide range: values below a step, an op that fixes it, a wider tensor on its scale."""
    if item.op_index is None or item.op in FIXED_OUTPUT_SCALES or len(item.dead_channels) == item.channels:
        return True
    cause = diagnosis.structural_cause(diagnosis.graph.ops[item.op_index])
    return cause is not None and cause.kind in (causes.UNEQUAL_JOIN, causes.MASK_CONSTANT)


def _clipped(errors: Sequence[OpError]) -> Iterator[Finding]:
    for item in errors:
        if item.op in causes.PASSING:
            continue
        lost = item.worst_channel in item.saturated_channels and (item.worst_channel_sqnr_db or 0.0) < _COLUMN_DB
        if item.clipping_sqnr_db >= _CLIPPING_DB and not lost:
            continue
        if item.saturated_channels:
            yield Finding(
                kind="saturated_channels",
                label=item.label,
                op_index=item.op_index,
                message=f"{item.label}: {len(item.saturated_channels)} of {item.channels} channels are cut off in more "
                "than 1% of their values: the calibration data did not hold such values, or the method clips too much. "
                "Use more and other data, or conversion.calibration.method=min_max for this layer",
            )
        elif item.saturated > _CLIPPED:
            yield Finding(
                kind=causes.CLIPPED,
                label=item.label,
                op_index=item.op_index,
                message=f"{item.label}: {item.saturated:.2%} of its values are cut off by its range"
                f"{_split(item)}: more calibration data, or a method that clips less",
            )


def _split(item: OpError) -> str:
    if math.isinf(item.clipping_sqnr_db):
        return ""
    return f" (signal to error by clipping {item.clipping_sqnr_db:.0f} dB, by rounding {item.rounding_sqnr_db:.0f} dB)"


def _other_data(errors: Sequence[OpError]) -> Iterator[Finding]:
    """Yield that most ranges do not suit: they were calibrated with something else than this data."""
    # A tensor whose values are all below a step has a scale that kernels need, not one of other data.
    errors = [
        item
        for item in errors
        if item.op_index is not None and item.op not in FIXED_OUTPUT_SCALES and len(item.dead_channels) < item.channels
    ]
    message = (
        "the ranges come from other data than this (random noise, another scaling): calibrate with real examples, "
        "scaled as in training"
    )
    clipped = [item for item in errors if item.saturated_channels]
    worst = max(clipped, key=lambda item: item.saturated, default=None)
    if worst and worst.saturated > _CLIPPED_BY_OTHER_DATA and len(clipped) > len(errors) / 2:
        yield Finding(
            kind="ranges_too_narrow",
            label=worst.label,
            op_index=worst.op_index,
            message=f"{len(clipped)} of {len(errors)} ops are cut off by their ranges on this data ({worst.label} in "
            f"{worst.saturated:.0%} of its values): {message}",
        )
    unused = [item for item in errors if item.range_use < _UNUSED]
    if len(unused) > len(errors) / 2:
        shares = sorted(item.range_use for item in unused)
        yield Finding(
            kind="ranges_too_wide",
            label=unused[0].label,
            op_index=unused[0].op_index,
            message=f"{len(unused)} of {len(errors)} ops use less than {_UNUSED:.0%} of their ranges on this data (the "
            f"one in the middle {shares[len(shares) // 2]:.0%}): {message}",
        )

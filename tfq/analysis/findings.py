# SPDX-License-Identifier: Apache-2.0
"""Explain the numbers of an analysis: what costs accuracy, where, and what to do about it."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfq.analysis.joins import Join
from tfq.analysis.op_errors import OpError
from tfq.ptq import causes
from tfq.ptq.causes import Cause, Diagnosis, op_label
from tfq.tflite.op_types import FIXED_OUTPUT_SCALES, INDEX, WEIGHTED_SLOTS, roles

# All in decibels. An output below the first has lost its information. An op is to blame if its output is worse than
# its inputs by the second value; or by the third, if the output is between the first and the fourth.
_COLLAPSED_DB, _FALL_DB, _STEEP_DB, _HEALTHY_DB = 10.0, 8.0, 20.0, 30.0
# An output whose own grid allows no more than this hardly varies on these samples, quantized or not.
_IDEAL_DB = 25.0
# The range of the median channel as a fraction of the op's range: below it, the channels are uneven.
_UNEVEN = 1 / 32
_CLIPPED = 0.001
# Clipping with a better SQNR than this is not a finding, unless a clipped channel is itself below _COLUMN_DB.
_CLIPPING_DB = 30.0
# New data always has a few values outside of the ranges. Ranges of other data clip at least this much in one op.
_CLIPPED_BY_OTHER_DATA = 0.01
_UNUSED = 0.25
# Channels whose weights have a lower SQNR than this are a finding.
_WEIGHTS_DB = 10.0
# Rounding to 8 bits alone gives the weights of an op 30 dB or more. A median below this over at least so many ops means
# that the weights are other ones.
_OTHER_WEIGHTS_DB, _FEWEST_WEIGHTS = 20.0, 3
# A column of an input, or a channel, with a lower SQNR than this has lost its information.
_COLUMN_DB = 10.0
# The mean of a channel may be shifted by this fraction of the standard deviation through rounding alone.
_SHIFTED = 0.1
_SUMS = ("ADD", "SUB", "ADD_N")
_GATES = ("MUL", "LOGISTIC", "HARD_SWISH", "TANH")
# Causes in the graph instead of the data. The ranges of the ops after them do not tell anything about the data.
# Causes that lie in the graph and not in the data; the ranges of what follows them say nothing about the data.
_STRUCTURAL = (
    *(causes.UNEQUAL_JOIN, causes.MASK_CONSTANT, causes.WIDE_DYNAMIC_RANGE, causes.MIXED_INPUT_SCALES),
    causes.INDEX_QUANTIZED,
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A cause of lost accuracy: what it is, where, and what to do.

    Attributes:
        kind: A kind of `tfq.ptq.causes`, or "collapse", "gate_collapse", "dead_channels", "saturated_channels",
            "ranges_widened", "ranges_too_narrow", "ranges_too_wide", "mean_shift", "other_weights".
        label: The op or the input, as in the records: "logpower/LOG (#4)".
        op_index: The position of the op in the int8 flatbuffer, None for an input of the model.
        message: The problem with its numbers and what to do, in sentences.
    """

    kind: str
    label: str
    op_index: int | None
    message: str


def find(errors: Sequence[OpError], joins: Sequence[Join], diagnosis: Diagnosis) -> list[Finding]:
    """Return the findings, grouped by kind; kinds are in the order of their first op."""
    errors = [item for item in errors if not item.never_selected]
    if other_weights := _other_weights(errors):
        return [other_weights]
    degraded, collapsed = list(_degraded_columns(errors)), list(_collapses(errors, diagnosis))
    if degraded:
        collapsed = [item for item in collapsed if item.kind != causes.MIXED_INPUT_SCALES]
    structural = _without_repeats([*degraded, *_indices(diagnosis), *collapsed])
    structural = _without_repeats([*structural, *_join_findings(joins, diagnosis, structural)])
    other_data = [] if any(item.kind in _STRUCTURAL for item in structural) else list(_other_data(errors))
    rest = [*structural, *_dead(errors, diagnosis), *_weights(errors), *_channels(errors)]
    if not structural:
        rest += _shifted(errors)
    if not other_data:
        named = {item.label for item in structural}
        ranges = [*_widened(errors, diagnosis), *_clipped(errors)]
        rest += [item for item in ranges if item.label not in named]
    kinds = list(dict.fromkeys(item.kind for item in rest))
    return other_data + sorted(_without_repeats(rest), key=lambda item: kinds.index(item.kind))


def _other_weights(errors: Sequence[OpError]) -> Finding | None:
    """Return a finding if most weights are not those of the float model, which makes all other findings void."""
    weighted = [item for item in errors if item.weights is not None and not math.isinf(item.weights.sqnr_db)]
    ratios = [item.weights.sqnr_db for item in weighted if item.weights is not None]
    if len(ratios) < _FEWEST_WEIGHTS or statistics.median(ratios) >= _OTHER_WEIGHTS_DB:
        return None
    return Finding(
        kind="other_weights",
        label=weighted[0].label,
        op_index=weighted[0].op_index,
        message=f"the weights differ from those of the float model by more than rounding: their median SQNR is "
        f"{statistics.median(ratios):.0f} dB over {len(ratios)} ops. The int8 model was trained further, such as by "
        "pruning or quantization-aware training, or it is another model. All numbers include that difference and do "
        "not show the error of quantization. Use a float .tflite with the same weights as the reference",
    )


def _without_repeats(findings: Sequence[Finding]) -> list[Finding]:
    """Keep only the first finding of each kind on each op."""
    return list({(item.kind, item.label): item for item in reversed(findings)}.values())[::-1]


def _from_cause(cause: Cause, diagnosis: Diagnosis) -> Finding:
    return Finding(
        kind=cause.kind,
        label=op_label(diagnosis.graph, cause.op_index),
        op_index=cause.op_index,
        message=cause.message,
    )


def _collapses(errors: Sequence[OpError], diagnosis: Diagnosis) -> Iterator[Finding]:
    """Yield a finding for each op whose output is much worse than its inputs, with the cause."""
    by_tensor = {item.tensor_index: item for item in errors}
    for item in errors:
        if item.op_index is None or item.dead or math.isinf(item.sqnr_db):
            continue
        before_db = min(
            (by_tensor[index].sqnr_db for index in _sources_of(item, by_tensor, diagnosis)), default=math.inf
        )
        before_db = item.expected_sqnr_db if math.isinf(before_db) else before_db
        needed = _FALL_DB if item.sqnr_db < _COLLAPSED_DB else _STEEP_DB
        if item.sqnr_db >= _HEALTHY_DB or before_db < _COLLAPSED_DB or before_db - item.sqnr_db < needed:
            continue
        cause = diagnosis.cause_of(item.op_index, _worst_weights(item))
        on_its_grid = min(before_db, item.expected_sqnr_db) - item.sqnr_db
        # A coarse grid without a cause in the graph: the output hardly varies on these samples. A softmax may do that.
        if cause.kind not in _STRUCTURAL and item.expected_sqnr_db < _IDEAL_DB and on_its_grid < needed:
            continue
        drop = f"{item.label}: the SQNR falls from {before_db:.0f} dB before this op to {item.sqnr_db:.0f} dB after it"
        if cause.kind != causes.UNKNOWN:
            result = _from_cause(cause, diagnosis)
            yield Finding(
                kind=result.kind, label=result.label, op_index=result.op_index, message=f"{drop}. {cause.message}"
            )
        elif item.op in _GATES and _is_gate(item.op_index, diagnosis):
            yield Finding(
                kind="gate_collapse",
                label=item.label,
                op_index=item.op_index,
                message=f"{drop}. It is part of a gate (swish, hard swish, squeeze-and-excitation): the product of two "
                "quantized factors is inaccurate if most values are small for their range. Use quantization-aware "
                f"training (tfq compress), or keep this layer in float (conversion.float_layers={item.layer})",
            )
        else:
            yield Finding(
                kind="collapse",
                label=item.label,
                op_index=item.op_index,
                message=f"{drop}. The graph does not show why. Try conversion.techniques=cross_layer_equalization,"
                "gptq,bias_correction or another conversion.calibration.method, or keep this layer in float "
                f"(conversion.float_layers={item.layer})",
            )


def _sources_of(item: OpError, by_tensor: Mapping[int, OpError], diagnosis: Diagnosis) -> list[int]:
    """Return the nearest tensors before the op that have records and are not dead."""
    pending = list(diagnosis.graph.ops[item.op_index or 0].inputs)
    result, seen = [], set[int]()
    while pending:
        tensor = pending.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor in by_tensor:
            if not by_tensor[tensor].dead:
                result.append(tensor)
        elif tensor in diagnosis.graph.producers:
            pending += diagnosis.graph.producers[tensor].inputs
    return result


def _is_gate(op_index: int, diagnosis: Diagnosis) -> bool:
    """Check whether an op is a squashing function or the product of two activations."""
    op = diagnosis.graph.ops[op_index]
    return op.name != "MUL" or not any(diagnosis.graph.tensors[index].is_constant for index in op.inputs)


def _worst_weights(item: OpError) -> float | None:
    return None if item.weights is None else item.weights.worst_channel_sqnr_db


def _degraded_columns(errors: Sequence[OpError]) -> Iterator[Finding]:
    """Yield a finding for each input whose single scale is too coarse for some of its columns."""
    for item in errors:
        degraded = [
            position for position, value in enumerate(item.channel_sqnr_db) if value is not None and value < _COLUMN_DB
        ]
        if item.op_index is not None or not degraded or item.saturated > _CLIPPED_BY_OTHER_DATA:
            continue
        named = "columns " if len(degraded) > 1 else "column "
        named += ", ".join(f"{position} ({item.channel_sqnr_db[position]:.0f} dB)" for position in degraded[:6])
        named += ", ..." if len(degraded) > 6 else ""
        yield Finding(
            kind=causes.MIXED_INPUT_SCALES,
            label=item.label,
            op_index=None,
            message=f"{item.label} has one scale of {item.scale:.3g} for all {item.channels} columns, which is too "
            f"coarse for {len(degraded)} of them: {named}. Normalize the columns before the model, use "
            "conversion.scheme=int16x8 or dynamic_range, or feed this input in float "
            "(conversion.inference_input_type=float32, and the first layers in conversion.float_layers)",
        )


def _indices(diagnosis: Diagnosis) -> Iterator[Finding]:
    for op in diagnosis.graph.ops:
        indices = [tensor for position, _, tensor, role in roles(op) if position == "input" and role == INDEX]
        if all(diagnosis.graph.tensors[index].is_constant for index in indices):
            continue
        cause = diagnosis.structural_cause(op)
        if cause is not None and cause.kind == causes.INDEX_QUANTIZED:
            yield _from_cause(cause, diagnosis)


def _dead(errors: Sequence[OpError], diagnosis: Diagnosis) -> Iterator[Finding]:
    for item in errors:
        if item.dead and item.op_index is not None:
            # An op that only moves the values of a dead tensor is not reported again.
            before = [diagnosis.facts(index) for index in diagnosis.graph.ops[item.op_index].inputs[:1]]
            if all(known is None or known.magnitude > 0 for known in before):
                yield _from_cause(diagnosis.cause_of(item.op_index), diagnosis)


def _weights(errors: Sequence[OpError]) -> Iterator[Finding]:
    for item in errors:
        worst = _worst_weights(item)
        # Coarse weights do no harm if the output is accurate or hardly varies.
        degraded = item.sqnr_db < _HEALTHY_DB or (item.worst_channel_sqnr_db or 0.0) < _COLUMN_DB
        if item.op_index is None or not degraded or item.expected_sqnr_db < _IDEAL_DB:
            continue
        if worst is not None and worst < _WEIGHTS_DB and item.weights is not None:
            yield Finding(
                kind=causes.WEIGHTS,
                label=item.label,
                op_index=item.op_index,
                message=f"{item.label}: the weights of channel {item.weights.worst_channel} have an SQNR of "
                f"{worst:.0f} dB, those of the whole op {item.weights.sqnr_db:.0f} dB. "
                + (
                    "Try conversion.techniques=gptq, or more bits for this layer"
                    if item.weights.per_channel
                    else "All channels share one scale. Use one scale per channel (conversion.per_channel=True), or "
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
                message=f"{item.label}: {len(item.dead_channels)} of {item.channels} channels ({named}) have the same "
                "quantized value for all of the data: the float model outputs 0 there too, or values below one step of "
                "the range. Remove these channels (compression.structured_pruning.enabled=True), or use "
                "conversion.techniques=cross_layer_equalization",
            )
        elif item.op in WEIGHTED_SLOTS and item.channel_spread is not None and item.channel_spread < _UNEVEN:
            yield Finding(
                kind=causes.UNEVEN_CHANNELS,
                label=item.label,
                op_index=item.op_index,
                message=f"{item.label}: half of the channels use less than {item.channel_spread:.1%} of the range that "
                "all channels share, so they have few quantized values. Use "
                "conversion.techniques=cross_layer_equalization",
            )


def _join_findings(joins: Sequence[Join], diagnosis: Diagnosis, reported: Sequence[Finding]) -> Iterator[Finding]:
    known = {item.op_index for item in reported}
    for item in joins:
        # A sum is about as large as its larger term, also in float: nothing significant is lost.
        if item.ratio < causes.MIN_WIDTH_RATIO or item.op_index in known or item.op in _SUMS:
            continue
        cause = diagnosis.structural_cause(diagnosis.graph.ops[item.op_index])
        if cause is not None and cause.kind in (causes.UNEQUAL_JOIN, causes.MASK_CONSTANT):
            if cause.op_index not in known:
                yield _from_cause(cause, diagnosis)
            continue
        smallest = min((name for name in item.ranges if item.ranges[name] > 0), key=item.ranges.__getitem__)
        yield Finding(
            kind=causes.UNEQUAL_JOIN,
            label=item.label,
            op_index=item.op_index,
            message=f"{item.label} gives tensors whose ranges differ by a factor of {item.ratio:.0f} one scale: "
            f"{smallest} has {item.num_values[smallest]} of 256 quantized values left. Scale or normalize the inputs "
            "to similar ranges in the model, or return them as separate outputs",
        )


def _shifted(errors: Sequence[OpError]) -> Iterator[Finding]:
    """Yield a finding for the op with the largest mean shift, among the ops that bias correction applies to."""
    shifted = [
        item
        for item in errors
        if item.op in WEIGHTED_SLOTS and item.mean_shift is not None and item.mean_shift > _SHIFTED
    ]
    # Rounding alone shifts the mean of a channel by less than half a step.
    shifted = [item for item in shifted if abs(item.mean_shift_lsb) > 0.5 and item.saturated < _CLIPPED]
    if shifted:
        worst = max(shifted, key=lambda item: item.mean_shift or 0.0)
        others = f". {len(shifted) - 1} more ops are off by more than {_SHIFTED:.0%}" if len(shifted) > 1 else ""
        yield Finding(
            kind="mean_shift",
            label=worst.label,
            op_index=worst.op_index,
            message=f"{worst.label}: the mean of a channel is off by {worst.mean_shift:.0%} of the standard deviation"
            f"{others}. Use conversion.techniques=bias_correction",
        )


def _widened(errors: Sequence[OpError], diagnosis: Diagnosis) -> Iterator[Finding]:
    """Yield a finding if some ops, but not most, have ranges that are much wider than the values of this data."""
    unused = sorted(
        (item for item in errors if item.range_use < _UNUSED and not _is_explained(item, diagnosis)),
        key=lambda item: item.range_use,
    )
    if unused:
        worst = unused[0]
        named = ", ".join(item.label for item in unused[1:6]) + (", ..." if len(unused) > 6 else "")
        others = f" {len(unused) - 1} more ops use less than {_UNUSED:.0%} ({named})." if named else ""
        yield Finding(
            kind="ranges_widened",
            label=worst.label,
            op_index=worst.op_index,
            message=f"{worst.label} uses only {worst.range_use:.1%} of its range on this data.{others} A few "
            "calibration samples had much larger values and widened the range. Use conversion.calibration.method="
            "percentile or mse, which ignore such outliers and name the samples",
        )


def _is_explained(item: OpError, diagnosis: Diagnosis) -> bool:
    """Check whether a wide range has another reason: an op that fixes it, values below a step, or a join of tensors."""
    if item.op_index is None or item.op in FIXED_OUTPUT_SCALES or len(item.dead_channels) == item.channels:
        return True
    cause = diagnosis.structural_cause(diagnosis.graph.ops[item.op_index])
    return cause is not None and cause.kind in (causes.UNEQUAL_JOIN, causes.MASK_CONSTANT)


def _clipped(errors: Sequence[OpError]) -> Iterator[Finding]:
    for item in errors:
        if item.op in causes.MOVING_OPS:
            continue
        degraded = item.worst_channel in item.saturated_channels and (item.worst_channel_sqnr_db or 0.0) < _COLUMN_DB
        if item.clipping_sqnr_db >= _CLIPPING_DB and not degraded:
            continue
        if item.saturated_channels:
            yield Finding(
                kind="saturated_channels",
                label=item.label,
                op_index=item.op_index,
                message=f"{item.label}: {len(item.saturated_channels)} of {item.channels} channels have more than 1% "
                "of their values clipped: the calibration data had no such values, or the calibration method clips too "
                "much. Use more and other calibration data, or conversion.calibration.method=min_max",
            )
        elif item.saturated > _CLIPPED:
            yield Finding(
                kind=causes.CLIPPED,
                label=item.label,
                op_index=item.op_index,
                message=f"{item.label}: {item.saturated:.2%} of the values are clipped by the range"
                f"{_error_parts(item)}. Use more calibration data, or a method that clips less, such as "
                "conversion.calibration.method=min_max",
            )


def _error_parts(item: OpError) -> str:
    if math.isinf(item.clipping_sqnr_db):
        return ""
    return f" (SQNR of clipping {item.clipping_sqnr_db:.0f} dB, of rounding {item.rounding_sqnr_db:.0f} dB)"


def _other_data(errors: Sequence[OpError]) -> Iterator[Finding]:
    """Yield findings if most ranges do not fit: the model was calibrated with other data than this."""
    # If all values of a tensor are below a step, its kernel needs the scale; the data is not the reason.
    errors = [
        item
        for item in errors
        if item.op_index is not None and item.op not in FIXED_OUTPUT_SCALES and len(item.dead_channels) < item.channels
    ]
    message = (
        "the model was calibrated with other data, such as random noise or data with another scaling. Calibrate with "
        "real examples that are scaled as in training"
    )
    clipped = [item for item in errors if item.saturated_channels]
    worst = max(clipped, key=lambda item: item.saturated, default=None)
    if worst and worst.saturated > _CLIPPED_BY_OTHER_DATA and len(clipped) > len(errors) / 2:
        yield Finding(
            kind="ranges_too_narrow",
            label=worst.label,
            op_index=worst.op_index,
            message=f"{len(clipped)} of {len(errors)} ops clip values of this data ({worst.label}: "
            f"{worst.saturated:.0%} of its values), so {message}",
        )
    unused = [item for item in errors if item.range_use < _UNUSED]
    if len(unused) > len(errors) / 2:
        fractions = sorted(item.range_use for item in unused)
        yield Finding(
            kind="ranges_too_wide",
            label=unused[0].label,
            op_index=unused[0].op_index,
            message=f"{len(unused)} of {len(errors)} ops use less than {_UNUSED:.0%} of their ranges on this data "
            f"(median of these {fractions[len(fractions) // 2]:.0%}), so {message}",
        )

# SPDX-License-Identifier: Apache-2.0
"""What the numbers of an analysis mean, in plain words, with what to do about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfq.analysis.layers import Join, LayerError

# Decibels. Below the first an activation hardly tells what the float one does; a fall by the second is the work of this
# layer then, and one by the third wherever it ends.
_COLLAPSED_DB, _FALL_DB, _STEEP_DB = 10.0, 8.0, 20.0
# Ranges that are so many times apart leave the smaller one less than four bits of eight.
_APART = 16.0
# The channel in the middle has this share of the range or less.
_UNEVEN = 1 / 32
_CLIPPED = 0.001
# In one layer at least, where ranges are those of other data: a few values are beyond the range wherever data is new.
_CLIPPED_BY_OTHER_DATA = 0.01
_UNUSED = 0.25
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_GATES = ("MUL", "LOGISTIC", "HARD_SWISH", "TANH")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that costs accuracy: what it is, where, and what to do."""

    kind: str
    layer: str
    message: str


def find(layers: Sequence[LayerError], joins: Sequence[Join], sources: Mapping[str, Sequence[str]]) -> list[Finding]:
    """The findings, those of a kind together and nearest to the input first.

    sources: layer -> the layers whose outputs it reads.
    """
    of_other_data = list(_other_data(layers))
    rest = [*_collapses(layers, sources), *_channels(layers), *_joined(joins)]
    if not of_other_data:
        rest = [*_widened(layers), *rest, *_clipped(layers)]
    kinds = list(dict.fromkeys(item.kind for item in rest))
    return of_other_data + sorted(rest, key=lambda item: kinds.index(item.kind))


def _collapses(layers: Sequence[LayerError], sources: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    by_layer = {item.layer: item for item in layers}
    for item in layers:
        before = [by_layer[name].sqnr_db for name in sources.get(item.layer, ()) if name in by_layer]
        came = min(before, default=item.expected_sqnr_db)
        falls = min(came, item.expected_sqnr_db) - item.sqnr_db
        if falls < (_FALL_DB if item.sqnr_db < _COLLAPSED_DB else _STEEP_DB):
            continue
        message = f"{item.layer} ({item.op}): signal to error falls from {came:.0f} to {item.sqnr_db:.0f} dB here"
        if item.op in _GATES:
            yield Finding(
                kind="gate_collapse",
                layer=item.layer,
                message=f"{message}: a gate (swish, hard swish, squeeze-and-excitation) multiplies two rounded "
                f"numbers, "
                "most of them small beside their range: quantization-aware train the model (tfq compress), or keep "
                "this layer in float or int16",
            )
        else:
            yield Finding(
                kind="collapse",
                layer=item.layer,
                message=f"{message}: try conversion.techniques=cross_layer_equalization,gptq,bias_correction, another "
                f"conversion.calibration.method for it, or keep it "
                "in float",
            )


def _channels(layers: Sequence[LayerError]) -> Iterator[Finding]:
    for item in layers:
        if item.dead_channels and item.channels > 1 and item.op in _WEIGHTED:
            named = ", ".join(map(str, item.dead_channels[:6])) + (", ..." if len(item.dead_channels) > 6 else "")
            yield Finding(
                kind="dead_channels",
                layer=item.layer,
                message=f"{item.layer} ({item.op}): {len(item.dead_channels)} of {item.channels} channels ({named}) "
                "never leave one code: they are zero for all of the data, or too small beside the others: take them "
                "out (compression.structured_pruning.enabled=True), or conversion.techniques=cross_layer_equalization",
            )
        elif item.channel_spread is not None and item.channel_spread < _UNEVEN:
            yield Finding(
                kind="uneven_channels",
                layer=item.layer,
                message=f"{item.layer} ({item.op}): half of its channels use less than {item.channel_spread:.1%} of "
                "the range that one scale gives to all: conversion.techniques=cross_layer_equalization",
            )


def _joined(joins: Sequence[Join]) -> Iterator[Finding]:
    for item in joins:
        if item.ratio < _APART:
            continue
        smallest = min(item.codes, key=lambda name: item.ranges[name])
        yield Finding(
            kind="ranges_apart",
            layer=item.layer,
            message=f"{item.layer} ({item.op}) brings ranges {item.ratio:.0f} times apart to one scale: what "
            f"{smallest} gives has {item.codes[smallest]} of 256 codes left: bring its inputs to one size in the model "
            "(a scale or a normalization before the join), or give them out as separate outputs",
        )


def _widened(layers: Sequence[LayerError]) -> Iterator[Finding]:
    """Where single layers, and not most of them, have ranges that are far wider than what this data needs."""
    unused = sorted((item for item in layers if item.range_use < _UNUSED), key=lambda item: item.range_use)
    if unused:
        worst = unused[0]
        others = f", and {len(unused) - 1} more layers" if len(unused) > 1 else ","
        named = ", ".join(item.layer for item in unused[1:6]) + (", ..." if len(unused) > 6 else "")
        yield Finding(
            kind="ranges_widened",
            layer=worst.layer,
            message=f"{worst.layer} ({worst.op}) uses {worst.range_use:.1%} of its codes on this data{others} less "
            f"than {_UNUSED:.0%}{f' ({named})' if named else ''}: single samples of the calibration data went much "
            "farther than these do: conversion.calibration.method=percentile or mse leave such samples out and "
            "name them",
        )


def _clipped(layers: Sequence[LayerError]) -> Iterator[Finding]:
    for item in layers:
        if item.saturated_channels:
            yield Finding(
                kind="saturated_channels",
                layer=item.layer,
                message=f"{item.layer} ({item.op}): {len(item.saturated_channels)} of {item.channels} channels are cut "
                "off in more than 1% of their values: the calibration data did not hold such values, or the method "
                "clips too much: more and other data, or conversion.calibration.method=min_max for this layer",
            )
        elif item.saturated > _CLIPPED:
            yield Finding(
                kind="clipped",
                layer=item.layer,
                message=f"{item.layer} ({item.op}): {item.saturated:.2%} of its values are cut off by its range: more "
                "calibration data, or a method that clips less",
            )


def _other_data(layers: Sequence[LayerError]) -> Iterator[Finding]:
    """Where most ranges do not suit: they were calibrated with something else than this data."""
    message = (
        "the ranges come from other data than this (random noise, another scaling): calibrate with real examples, "
    )
    message += "scaled as in training"
    clipped = [item for item in layers if item.saturated_channels]
    worst = max(clipped, key=lambda item: item.saturated, default=None)
    if worst and worst.saturated > _CLIPPED_BY_OTHER_DATA and len(clipped) > len(layers) / 2:
        yield Finding(
            kind="ranges_too_narrow",
            layer=worst.layer,
            message=f"{len(clipped)} of {len(layers)} layers are cut off by their ranges on this data ({worst.layer} "
            f"in {worst.saturated:.0%} of its values): {message}",
        )
    unused = [item for item in layers if item.range_use < _UNUSED]
    if len(unused) > len(layers) / 2:
        shares = sorted(item.range_use for item in unused)
        yield Finding(
            kind="ranges_too_wide",
            layer=unused[0].layer,
            message=f"{len(unused)} of {len(layers)} layers use less than {_UNUSED:.0%} of their codes on this data "
            f"(the one in the middle {shares[len(shares) // 2]:.0%}): {message}",
        )

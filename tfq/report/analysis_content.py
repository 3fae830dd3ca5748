# SPDX-License-Identifier: Apache-2.0
"""The page of `tfq analyze`: findings, error by op, sensitivity, values and ranges; maps; accuracy by bit width."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfq.config import FLOAT_BITS
from tfq.report.content import provenance_sections
from tfq.report.examples_content import examples_of_pair
from tfq.report.explain_content import explain_section
from tfq.report.formatting import DASH, count, is_number, number_of, percent, plain, points
from tfq.report.kinds import RecordKind, register
from tfq.report.plots import (
    Plot,
    color_of,
    drawn,
    figure_of,
    marker_of,
    name_rows,
    svg_of,
)
from tfq.report.record import Record
from tfq.report.tables import Section, Table

_MOST_ROWS, _MOST_HISTOGRAMS, _MOST_BINS = 40, 12, 1000


def _subtitle(record: Record) -> str:
    counts = []
    if "ops" in record:
        counts.append(number_of(record["num_samples"], "sample"))
    if "bit_widths" in record:
        measured = record["bit_widths"]
        examples = number_of(measured["num_examples"], "test example")
        counts.append(f"{examples}, float accuracy {percent(measured['float_accuracy'])}")
        reason = (measured.get("criterion") or {}).get("reason")
        if reason:
            counts.append(f"compared with the float model, because {plain(reason)}")
    return " · ".join(counts)


def _sections(record: Record) -> list[Section]:
    """Return the analysis of ops, of bit widths, or of both."""
    sections = _op_sections(record) if "ops" in record else []
    differing = examples_of_pair(record, reference="float", model="int8")
    sections += [dataclasses.replace(differing, folded=False)] if differing else []
    sections += [explain_section(record["explain"])] if "explain" in record else []
    sections += _bit_width_sections(record["bit_widths"]) if "bit_widths" in record else []
    return [*sections, *provenance_sections(record)]


def _plots(record: Record) -> dict[str, Plot]:
    plots: dict[str, Plot] = {}
    if "ops" in record:
        ops = record["ops"]
        plots["depth"] = drawn("Error of each op", lambda: _depth(ops))
        plots["sensitivity"] = drawn(
            "Sensitivity of the outputs", lambda: _sensitivity(record.get("sensitivity") or [])
        )
        plots |= {
            key: drawn(title, functools.partial(_histogram, bars)) for key, (title, bars) in _histograms(record).items()
        }
    if "bit_widths" in record:
        measured = record["bit_widths"]
        alone, others = _by_activations(measured)
        plots["weights"] = drawn("Weights quantized, activations float", lambda: _curves(alone, measured))
        plots["activations"] = drawn("Activations quantized, alone and with weights", lambda: _curves(others, measured))
    return plots


ANALYSIS = register(
    RecordKind(
        command="analyze",
        help="error and sensitivity of each op of an int8 model; occlusion saliency; accuracy by bit width",
        needs={"ops": list, "bit_widths": dict},
        sections=_sections,
        plots=_plots,
        subtitle=_subtitle,
    )
)


def _op_sections(record: Record) -> list[Section]:
    findings = tuple(plain(finding["message"]) for finding in record["findings"])
    about = "SQNR is the ratio of signal to quantization error in dB: higher is better, 6 dB more is half the error."
    return [
        Section(
            key="findings",
            title="Findings",
            paragraphs=() if findings else ("No problems were found.",),
            items=findings,
            folded=False,
        ),
        Section(key="ops", title="Ops", paragraphs=(about,), plots=("depth", "sensitivity"), folded=False),
        Section(key="numbers", title="All numbers", tables=(_numbers(record["ops"]),), folded=False),
        _values_section(record),
    ]


# heading -> key of an op's record
_COLUMNS = {
    "SQNR": "sqnr_db",
    "rounding alone": "expected_sqnr_db",
    "values in range": "rounding_sqnr_db",
    "clipped values": "clipping_sqnr_db",
    "worst channel": "worst_channel_sqnr_db",
    "mean shift": "mean_shift",
}


def _numbers(ops: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for item in ops:
        weights = item["weights"] or {}
        values = [*(item[key] for key in _COLUMNS.values()), weights.get("sqnr_db")]
        values.append(weights.get("worst_channel_sqnr_db"))
        unused = " (always 0)" if item["dead"] else ""
        rows.append((plain(item["label"]) + unused, *(f"{v:.2f}" if is_number(v) else DASH for v in values)))
    return Table(
        key="ops",
        columns=("op", *_COLUMNS, "weights", "worst channel of the weights"),
        rows=tuple(rows),
        notes=(
            "All values are in dB, except the mean shift, which is relative to the standard deviation of the tensor.",
            "SQNR: of the op's output, including the errors of all ops before it. Rounding alone: what the scale of "
            "the output allows. Values in range and clipped values: the same error, split by whether the value is "
            "inside the quantized range.",
            "A dash means that there is no such error, or that the op has no weights.",
        ),
        sortable=True,
    )


def _short(label: str) -> str:
    """Return the layer and the position of an op: "conv2 #5" for "conv2/CONV_2D (#5)"."""
    match = re.fullmatch(r"(.+)/[A-Z0-9_]+ \((#\d+)\)(:\d+)?", label)
    return plain(f"{match[1]} {match[2]}{match[3] or ''}" if match else label)


def _depth(ops: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    series = (("sqnr_db", "measured"), ("expected_sqnr_db", "rounding alone"))
    known = [item for item in ops if any(is_number(item[key]) for key, _ in series)]
    if not known:
        return "", "not drawn: no op has an error"
    shown = known if len(known) <= _MOST_ROWS else sorted(known, key=_loss)[:_MOST_ROWS]
    shown = [item for item in known if item in shown]
    figure, axes = figure_of(0.9 + 0.24 * len(shown))
    for number, (key, name) in enumerate(series):
        values = [(item[key], row) for row, item in enumerate(shown) if is_number(item[key])]
        if values:
            axes.plot(
                *zip(*values, strict=True), f"-{marker_of(number)}", color=color_of(number), ms=4, lw=1, label=name
            )
    name_rows(axes, [_short(item["label"]) for item in shown])
    axes.set_xlabel("SQNR, dB")
    figure.legend(loc="outside upper left", ncols=2)
    caption = "SQNR of the output of each op, from the input of the model on: left is worse."
    left_out = len(known) - len(shown)
    return svg_of(figure, "Error of each op"), caption + (
        f" The {count(left_out)} better ops are in the table." if left_out else ""
    )


def _loss(item: Mapping[str, Any]) -> float:
    return float(item["sqnr_db"]) if is_number(item["sqnr_db"]) else float("inf")


_NO_SENSITIVITY = "not measured: to see which op costs most, repeat the analysis with analysis.sensitivity=True"


def _sensitivity(measured: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    shown = [item for item in measured if is_number(item["sqnr_db"])][:_MOST_ROWS]
    if not shown:
        return "", _NO_SENSITIVITY if not measured else "not drawn: no op has an error"
    figure, axes = figure_of(0.7 + 0.24 * len(shown))
    for row, item in enumerate(shown):
        axes.barh(row, item["sqnr_db"], height=0.6, color=color_of(0))
    name_rows(axes, [_short(item["label"]) for item in shown])
    axes.set_xlabel("SQNR of the outputs, dB")
    caption = "SQNR of the model's outputs if only this op is quantized: the op with the shortest bar costs most."
    return svg_of(figure, "Sensitivity"), caption


def _values_section(record: Record) -> Section:
    """Return the histograms of the worst ops: outputs and weights, with the quantized range."""
    about = (
        "Values of the float model in the ops with the lowest SQNR, and their weights, on a logarithmic scale. The "
        "pale band is the range of the quantized values; values outside it are clipped."
    )
    keys = tuple(_histograms(record))
    if not keys:
        about = "Not drawn: the record has no histograms (analysis.histograms)."
    return Section(key="values", title="Values and ranges", paragraphs=(about,), plots=keys, folded=False)


def _histograms(record: Record) -> dict[str, tuple[str, Record]]:
    """Return key -> (title, histogram) of the outputs and weights of the worst ops."""
    return {
        f"histogram{place}{what}": (f"{_short(item['label'])}: {what}", bars)
        for place, item in enumerate(_worst(record))
        for what, bars in (("output", item["activations"]), ("weights", item["weights"]))
        if bars
    }


def _worst(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the histograms of the ops with the lowest SQNR, in the order of the ops."""
    by_label = {item["label"]: item for item in record["ops"]}
    listed = [(by_label[item["label"]], item) for item in record["histograms"] if item["label"] in by_label]
    chosen = [id(histogram) for _, histogram in sorted(listed, key=lambda pair: _loss(pair[0]))[:_MOST_HISTOGRAMS]]
    return [histogram for _, histogram in listed if id(histogram) in chosen]


def _histogram(bars: Mapping[str, Any]) -> tuple[str, str]:
    if len(bars["counts"]) > _MOST_BINS:
        return "", f"not drawn: the histogram has {count(len(bars['counts']))} bins"
    figure, axes = figure_of(1.3)
    width = (bars["high"] - bars["low"]) / len(bars["counts"])
    starts = [bars["low"] + place * width for place in range(len(bars["counts"]))]
    axes.axvspan(*bars["range"], color=color_of(2), alpha=0.15, linewidth=0)
    axes.bar(starts, bars["counts"], width=width, align="edge", color=color_of(0))
    axes.set_yscale("symlog")
    axes.set_yticks([])
    axes.set_yticks([], minor=True)
    return svg_of(figure, "Histogram"), ""


def _by_activations(measured: Record) -> tuple[list[Record], list[Record]]:
    """Return the combinations with float activations, and the others."""
    ways = measured["ways"]
    alone = [way for way in ways if way["activation_bits"] == FLOAT_BITS]
    return alone, [way for way in ways if way["activation_bits"] != FLOAT_BITS]


def _bit_width_sections(measured: Record) -> list[Section]:
    """Return the section on bit widths: plots for weights and for activations, and all numbers."""
    about = (
        "Accuracy of the model with fewer bits, simulated in float without training. If TFLite can run a combination, "
        "the last column has the setting that makes such a file."
    )
    table = Table(
        key="bit_widths",
        columns=("weights", "activations", "grid", "accuracy", "minus float, points", "95% interval", "on TFLite"),
        rows=tuple(map(_row, measured["ways"])),
        numeric=(False, False, False, True, True, True, False),
        sortable=True,
    )
    return [
        Section(
            key="bit_widths",
            title="Accuracy by bit width",
            paragraphs=(about,),
            plots=("weights", "activations"),
            folded=False,
        ),
        Section(key="all_bit_widths", title="All combinations", tables=(table,), folded=False),
    ]


def _curves(ways: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> tuple[str, str]:
    series: dict[str, list[tuple[int, float]]] = {}
    for way in ways:
        weights, activations = way["weight_bits"], way["activation_bits"]
        if activations == FLOAT_BITS:
            name, bits = way["grid"], weights
        elif weights == FLOAT_BITS:
            name, bits = "activations alone", activations
        elif weights == activations:
            name, bits = "both", activations
        else:
            name, bits = "weights, 8-bit activations", weights
        series.setdefault(name, []).append((bits, 100 * way["accuracy"]))
    if not series:
        return "", "not measured: see analysis.bit_widths"
    figure, axes = figure_of(3.1)
    for number, (name, values) in enumerate(series.items()):
        ordered = sorted(values)
        axes.plot(
            [bits for bits, _ in ordered],
            [accuracy for _, accuracy in ordered],
            f"-{marker_of(number)}",
            color=color_of(number),
            markersize=5,
            label=name.replace("_", " "),
        )
    axes.axhline(100 * record["float_accuracy"], linewidth=0.8, linestyle=":", color=color_of(5), label="float")
    axes.set_xticks(sorted({bits for values in series.values() for bits, _ in values}))
    axes.grid(True)
    axes.set_xlabel("bits")
    axes.set_ylabel("accuracy, %")
    figure.legend(loc="outside upper left", ncols=3 if len(series) > 3 else 2, handletextpad=0.4, columnspacing=1.0)
    return svg_of(figure, "Accuracy by bit width"), "Accuracy on the test examples; the dotted line is the float model."


def _row(way: Mapping[str, Any]) -> tuple[str, ...]:
    bits = ["float" if way[name] == FLOAT_BITS else str(way[name]) for name in ("weight_bits", "activation_bits")]
    grid = DASH if way["weight_bits"] == FLOAT_BITS else plain(way["grid"]).replace("_", " ")
    difference = way["against_float"]
    ends = [difference.get(key) for key in ("low", "high")]
    interval = f"{points(ends[0])} to {points(ends[1])}" if all(map(is_number, ends)) else "no interval"
    return (
        *bits,
        grid,
        percent(way["accuracy"]),
        points(difference["difference"]),
        interval,
        plain(way["runs_as"]),
    )

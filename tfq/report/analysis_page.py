# SPDX-License-Identifier: Apache-2.0
"""The page of `tfq analyze`: findings, error by op, sensitivity, values and ranges; accuracy by bit width."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from tfq.config import FLOAT_BITS
from tfq.report.formatting import DASH, count, is_number, number_of, percent, plain, points
from tfq.report.page import document, figure_html, section_html
from tfq.report.plots import (
    Plot,
    color_of,
    figure_of,
    marker_of,
    missing_matplotlib,
    name_rows,
    style,
    svg_of,
)
from tfq.report.tables import Section, Table

_MOST_ROWS, _MOST_HISTOGRAMS = 40, 12


def analysis_page(record: Mapping[str, Any]) -> str:
    """Return the page of a record that `tfq analyze` wrote: the analysis of ops, of bit widths, or of both."""
    title = f"tfq analyze: {escape(plain(record.get('config', {}).get('model', '')))}"
    counts, body = [], []
    if "ops" in record:
        counts.append(number_of(record["num_samples"], "sample"))
        body += _op_sections(record)
    if "bit_widths" in record:
        measured = record["bit_widths"]
        examples = number_of(measured["num_examples"], "test example")
        counts.append(f"{examples}, float accuracy {percent(measured['float_accuracy'])}")
        reason = (measured.get("criterion") or {}).get("reason")
        if reason:
            counts.append(f"compared with the float model, because {reason}")
        body += _bit_width_sections(measured)
    header = f'<header><h1>{title}</h1><p class="subtitle">{escape(" · ".join(counts))}</p></header>'
    return document(title, "\n".join([header, "<main>", *body, "</main>"]))


def _op_sections(record: Mapping[str, Any]) -> list[str]:
    ops = record["ops"]
    findings = tuple(plain(finding["message"]) for finding in record["findings"])
    about = "SQNR is the ratio of signal to quantization error in dB: higher is better, 6 dB more is half the error."
    plots = {
        "depth": _plot("Error of each op", lambda: _depth(ops)),
        "sensitivity": _plot("Sensitivity of the outputs", lambda: _sensitivity(record.get("sensitivity") or [])),
    }
    list_of_findings = "".join(f"<li>{escape(finding)}</li>" for finding in findings)
    return [
        '<section><h2 id="findings">Findings</h2>'
        f'<ul data-findings="{len(findings)}">{list_of_findings or "<li>no problems found</li>"}</ul></section>',
        section_html(Section(key="ops", title="Ops", paragraphs=(about,), plots=tuple(plots), folded=False), plots),
        section_html(Section(key="numbers", title="All numbers", tables=(_numbers(ops),), folded=False), {}),
        _values_section(record),
    ]


def _plot(title: str, draw: Callable[[], tuple[str, str]]) -> Plot:
    """Return a plot, or one without a drawing whose caption says why. draw: () -> (SVG, caption)."""
    try:
        with style():
            svg, caption = draw()
    except ImportError as error:
        svg, caption = "", missing_matplotlib(error)
    return Plot(title=title, svg=svg, caption=caption)


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


def _values_section(record: Mapping[str, Any]) -> str:
    """Return the histograms of the worst ops: outputs and weights, with the quantized range."""
    about = (
        "Values of the float model in the ops with the lowest SQNR, and their weights, on a logarithmic scale. The "
        "pale band is the range of the quantized values; values outside it are clipped."
    )
    worst = _worst(record)
    if not worst:
        about = "Not drawn: the record has no histograms (analysis.histograms)."
    figures = "".join(
        figure_html("histogram", _plot(f"{_short(item['label'])}: {what}", functools.partial(_histogram, bars)))
        for item in worst
        for what, bars in (("output", item["activations"]), ("weights", item["weights"]))
        if bars
    )
    grid = f'<div class="figures">{figures}</div>' if figures else ""
    return f'<section><h2 id="values">Values and ranges</h2><p>{escape(about)}</p>{grid}</section>'


def _worst(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the histograms of the ops with the lowest SQNR, in the order of the ops."""
    by_label = {item["label"]: item for item in record["ops"]}
    listed = [(by_label[item["label"]], item) for item in record["histograms"] if item["label"] in by_label]
    chosen = [id(histogram) for _, histogram in sorted(listed, key=lambda pair: _loss(pair[0]))[:_MOST_HISTOGRAMS]]
    return [histogram for _, histogram in listed if id(histogram) in chosen]


def _histogram(bars: Mapping[str, Any]) -> tuple[str, str]:
    figure, axes = figure_of(1.3)
    width = (bars["high"] - bars["low"]) / len(bars["counts"])
    starts = [bars["low"] + place * width for place in range(len(bars["counts"]))]
    axes.axvspan(*bars["range"], color=color_of(2), alpha=0.15, linewidth=0)
    axes.bar(starts, bars["counts"], width=width, align="edge", color=color_of(0))
    axes.set_yscale("symlog")
    axes.set_yticks([])
    axes.set_yticks([], minor=True)
    return svg_of(figure, "Histogram"), ""


def _bit_width_sections(record: Mapping[str, Any]) -> list[str]:
    """Return the section on bit widths: plots for weights and for activations, and all numbers."""
    ways = record["ways"]
    weights_alone = [way for way in ways if way["activation_bits"] == FLOAT_BITS]
    others = [way for way in ways if way["activation_bits"] != FLOAT_BITS]
    plots = {
        "weights": _plot("Weights quantized, activations float", lambda: _curves(weights_alone, record)),
        "activations": _plot("Activations quantized, alone and with weights", lambda: _curves(others, record)),
    }
    about = (
        "Accuracy of the model with fewer bits, simulated in float without training. If TFLite can run a combination, "
        "the last column has the setting that makes such a file."
    )
    table = Table(
        key="bit_widths",
        columns=("weights", "activations", "grid", "accuracy", "minus float, points", "95% interval", "on TFLite"),
        rows=tuple(map(_row, ways)),
        numeric=(False, False, False, True, True, True, False),
        sortable=True,
    )
    sections = (
        Section(key="bit_widths", title="Accuracy by bit width", paragraphs=(about,), plots=tuple(plots), folded=False),
        Section(key="all_bit_widths", title="All combinations", tables=(table,), folded=False),
    )
    return [section_html(section, plots) for section in sections]


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

# SPDX-License-Identifier: Apache-2.0
"""The page of `tfq bits`: accuracy against bits, as curves and as a table."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tfq.config import FLOAT_BITS
from tfq.report.drawing import colour_of, figure_of, marker_of, missing_matplotlib, style, svg_of
from tfq.report.formatting import plain
from tfq.report.page import document


def bits_page(record: Mapping[str, Any]) -> str:
    """The page of a record that `tfq bits` wrote: plots of weights, of activations and of both, and all numbers."""
    config = record.get("config", {})
    title = f"Accuracy against bits: {escape(plain(config.get('model', '')))}"
    told = f"{record['num_examples']:,} test examples, float {record['float_accuracy']:.2%}"
    rows = "".join(_row(way) for way in record["ways"])
    body = [
        f'<header><h1>{title}</h1><p class="subtitle">{escape(told)}</p></header>',
        "<main>",
        *_plots(record),
        '<section><h2>All of it</h2><div class="table"><table><thead><tr><th>weights</th><th>activations</th>'
        "<th>grid</th><th>accuracy</th><th>against float</th><th>on TFLite</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>",
        "</main>",
    ]
    return document(title, "\n".join(body))


def _plots(record: Mapping[str, Any]) -> list[str]:
    curves = {
        "Weights, activations in float": [way for way in record["ways"] if way["activation_bits"] == FLOAT_BITS],
        "Activations, and weights beside them": [way for way in record["ways"] if way["activation_bits"] != FLOAT_BITS],
    }
    try:
        with style():
            return [_section(title, _drawn(title, ways, record["float_accuracy"])) for title, ways in curves.items()]
    except ImportError as error:
        return [f"<p>{escape(missing_matplotlib(error), quote=False)}</p>"]


def _section(title: str, svg: str) -> str:
    return f"<section><h2>{title}</h2><figure>{svg}</figure></section>" if svg else ""


def _drawn(title: str, ways: Sequence[Mapping[str, Any]], float_accuracy: float) -> str:
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
        return ""
    figure, axes = figure_of(3.1)
    for number, (name, points) in enumerate(series.items()):
        ordered = sorted(points)
        axes.plot(
            [bits for bits, _ in ordered],
            [accuracy for _, accuracy in ordered],
            f"-{marker_of(number)}",
            color=colour_of(number),
            markersize=5,
            label=name.replace("_", " "),
        )
    axes.axhline(100 * float_accuracy, linewidth=0.8, linestyle=":", color=colour_of(5), label="float")
    axes.set_xticks(sorted({bits for points in series.values() for bits, _ in points}))
    axes.grid(True)
    axes.set_xlabel("bits")
    axes.set_ylabel("accuracy, %")
    figure.legend(loc="outside upper left", ncols=3 if len(series) > 3 else 2, handletextpad=0.4, columnspacing=1.0)
    return svg_of(figure, title)


def _row(way: Mapping[str, Any]) -> str:
    bits = ["float" if way[name] == FLOAT_BITS else str(way[name]) for name in ("weight_bits", "activation_bits")]
    grid = "" if way["weight_bits"] == FLOAT_BITS else way["grid"].replace("_", " ")
    cells = [*bits, grid, f"{way['accuracy']:.2%}", f"{100 * way['against_float']['difference']:+.2f}", way["runs_as"]]
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"

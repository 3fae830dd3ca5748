# SPDX-License-Identifier: Apache-2.0
"""The page of `tfq analyze`: what was found, error along the depth, sensitivity, and values beside their ranges."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tfq.report.drawing import colour_of, figure_of, marker_of, missing_matplotlib, name_rows, style, svg_of
from tfq.report.formatting import plain
from tfq.report.page import document

_MOST_BARS, _MOST_HISTOGRAMS = 24, 12


def analysis_page(record: Mapping[str, Any]) -> str:
    """The page of a record that `tfq analyze` wrote."""
    title = f"What costs accuracy: {escape(plain(record.get('config', {}).get('model', '')))}"
    found = "".join(f"<li>{escape(finding['message'])}</li>" for finding in record["findings"])
    body = [
        f'<header><h1>{title}</h1><p class="subtitle">{record["num_samples"]:,} samples</p></header>',
        "<main>",
        f"<section><h2>Found</h2><ul>{found or '<li>nothing stands out</li>'}</ul></section>",
        *_plots(record),
        "</main>",
    ]
    return document(title, "\n".join(body))


def _plots(record: Mapping[str, Any]) -> list[str]:
    try:
        with style():
            parts = [
                _section(
                    "Error along the depth", _depth(record["layers"]), "Signal to error of what each layer gives."
                ),
                _section(
                    "Sensitivity",
                    _sensitivity(record["sensitivity"]),
                    "Signal to error of the model's outputs with one layer alone quantized: the shortest costs most.",
                ),
            ]
            drawn = [_histograms(each) for each in _worst(record)]
    except ImportError as error:
        return [f"<p>{escape(missing_matplotlib(error), quote=False)}</p>"]
    caption = "Values of the layers that lose most, and of their weights; the pale band is what their codes span."
    return [*parts, _section("Values and ranges", "".join(drawn), caption)]


def _section(title: str, svg: str, caption: str) -> str:
    figure = f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
    return f"<section><h2>{title}</h2>{figure}</section>" if svg else ""


def _depth(layers: Sequence[Mapping[str, Any]]) -> str:
    figure, axes = figure_of(3.1)
    places = range(1, len(layers) + 1)
    for number, (key, name) in enumerate((("sqnr_db", "measured"), ("expected_sqnr_db", "rounding alone"))):
        values = [layer[key] for layer in layers]
        points = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), f"-{marker_of(number)}", color=colour_of(number), ms=3, label=name)
    axes.grid(True)
    axes.set_xlabel("layer, from the input on")
    axes.set_ylabel("SQNR, dB")
    figure.legend(loc="outside upper left", ncols=2)
    return svg_of(figure, "Error along the depth")


def _sensitivity(measured: Sequence[Mapping[str, Any]]) -> str:
    shown = [each for each in measured if each["sqnr_db"] is not None][:_MOST_BARS]
    if not shown:
        return ""
    figure, axes = figure_of(0.7 + 0.28 * len(shown))
    for row, each in enumerate(shown):
        axes.barh(row, each["sqnr_db"], height=0.6, color=colour_of(0))
    name_rows(axes, [each["layer"] for each in shown])
    axes.set_xlabel("SQNR of the outputs, dB")
    return svg_of(figure, "Sensitivity")


def _worst(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The histograms of the layers with the least signal to error, in the order of the ops."""
    listed = list(zip(record["layers"], record["histograms"], strict=True)) if record["histograms"] else []
    by_loss = sorted(listed, key=lambda pair: float("inf") if pair[0]["sqnr_db"] is None else pair[0]["sqnr_db"])
    chosen = [id(histogram) for _, histogram in by_loss[:_MOST_HISTOGRAMS]]
    return [histogram for _, histogram in listed if id(histogram) in chosen]


def _histograms(layer: Mapping[str, Any]) -> str:
    kinds = [("gives", layer["activations"]), ("weighs with", layer["weights"])]
    return "".join(_bars(f"{layer['layer']} {verb}", bars) for verb, bars in kinds if bars)


def _bars(title: str, bars: Mapping[str, Any]) -> str:
    figure, axes = figure_of(1.5)
    width = (bars["high"] - bars["low"]) / len(bars["counts"])
    starts = [bars["low"] + place * width for place in range(len(bars["counts"]))]
    axes.axvspan(*bars["range"], color=colour_of(2), alpha=0.15, linewidth=0)
    axes.bar(starts, bars["counts"], width=width, align="edge", color=colour_of(0))
    axes.set_yscale("symlog")
    axes.set_yticks([])
    axes.set_yticks([], minor=True)
    axes.set_title(title, fontsize=9, loc="left")
    return svg_of(figure, escape(title, quote=True))

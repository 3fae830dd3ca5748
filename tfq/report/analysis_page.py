# SPDX-License-Identifier: Apache-2.0
"""The pages of `tfq analyze`: findings, error by depth, sensitivity, values and ranges; accuracy by bit width."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tfq.config import FLOAT_BITS
from tfq.report.formatting import DASH, plain
from tfq.report.page import document
from tfq.report.plots import color_of, figure_of, marker_of, missing_matplotlib, name_rows, style, svg_of

_MOST_BARS, _MOST_HISTOGRAMS = 24, 12


def analysis_page(record: Mapping[str, Any]) -> str:
    """Return the page of a record that `tfq analyze` wrote: the analysis of ops, bit widths, or both."""
    title = f"What costs accuracy: {escape(plain(record.get('config', {}).get('model', '')))}"
    counts = []
    body = []
    if "ops" in record:
        counts.append(f"{record['num_samples']:,} samples")
        findings = "".join(f"<li>{escape(finding['message'])}</li>" for finding in record["findings"])
        body += [
            f"<section><h2>Findings</h2><ul>{findings or '<li>nothing stands out</li>'}</ul></section>",
            *_plots(record),
            _table(record["ops"]),
        ]
    if "bit_widths" in record:
        bit_widths = record["bit_widths"]
        counts.append(f"{bit_widths['num_examples']:,} test examples, float {bit_widths['float_accuracy']:.2%}")
        body += _bit_widths(bit_widths)
    header = f'<header><h1>{title}</h1><p class="subtitle">{escape(" · ".join(counts))}</p></header>'
    return document(title, "\n".join([header, "<main>", *body, "</main>"]))


_COLUMNS = {
    "SQNR, dB": "sqnr_db",
    "own grid, dB": "expected_sqnr_db",
    "rounding, dB": "rounding_sqnr_db",
    "clipping, dB": "clipping_sqnr_db",
    "worst channel, dB": "worst_channel_sqnr_db",
    "mean shift / std": "mean_shift",
}


def _table(ops: Sequence[Mapping[str, Any]]) -> str:
    """Return the section with the numbers of every input and op."""
    head = "".join(f"<th>{name}</th>" for name in ("op", *_COLUMNS, "weights, dB", "worst channel, dB"))
    rows = []
    for item in ops:
        weights = item["weights"] or {}
        values = [*(item[key] for key in _COLUMNS.values()), weights.get("sqnr_db")]
        values.append(weights.get("worst_channel_sqnr_db"))
        cells = "".join(f"<td>{DASH if value is None else format(value, '.2f')}</td>" for value in values)
        dead = " (dead)" if item["dead"] else ""
        rows.append(f"<tr><td>{escape(plain(item['label']))}{dead}</td>{cells}</tr>")
    return (
        f'<section><h2>Numbers</h2><div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _plots(record: Mapping[str, Any]) -> list[str]:
    try:
        with style():
            parts = [
                _section("Error along the depth", _depth(record["ops"]), "Signal to error of the output of each op."),
                _section(
                    "Sensitivity",
                    _sensitivity(record["sensitivity"]),
                    "Signal to error of the model's outputs with one op alone quantized: the shortest costs most.",
                ),
            ]
            drawn = [_histograms(item) for item in _worst(record)]
    except ImportError as error:
        return [f"<p>{escape(missing_matplotlib(error), quote=False)}</p>"]
    caption = (
        "Outputs of the ops that lose most, and their weights; the pale band is the range of the quantized values."
    )
    return [*parts, _section("Values and ranges", "".join(drawn), caption)]


def _section(title: str, svg: str, caption: str) -> str:
    figure = f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
    return f"<section><h2>{title}</h2>{figure}</section>" if svg else ""


def _depth(ops: Sequence[Mapping[str, Any]]) -> str:
    figure, axes = figure_of(3.1)
    places = range(1, len(ops) + 1)
    for number, (key, name) in enumerate((("sqnr_db", "measured"), ("expected_sqnr_db", "rounding alone"))):
        values = [item[key] for item in ops]
        points = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), f"-{marker_of(number)}", color=color_of(number), ms=3, label=name)
    axes.grid(True)
    axes.set_xlabel("op, from the input on")
    axes.set_ylabel("SQNR, dB")
    figure.legend(loc="outside upper left", ncols=2)
    return svg_of(figure, "Error along the depth")


def _sensitivity(measured: Sequence[Mapping[str, Any]]) -> str:
    shown = [item for item in measured if item["sqnr_db"] is not None][:_MOST_BARS]
    if not shown:
        return ""
    figure, axes = figure_of(0.7 + 0.28 * len(shown))
    for row, item in enumerate(shown):
        axes.barh(row, item["sqnr_db"], height=0.6, color=color_of(0))
    name_rows(axes, [item["label"] for item in shown])
    axes.set_xlabel("SQNR of the outputs, dB")
    return svg_of(figure, "Sensitivity")


def _worst(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the histograms of the ops with the least signal to error, in the order of the ops."""
    by_label = {item["label"]: item for item in record["ops"]}
    listed = [(by_label[item["label"]], item) for item in record["histograms"] if item["label"] in by_label]
    by_loss = sorted(listed, key=lambda pair: float("inf") if pair[0]["sqnr_db"] is None else pair[0]["sqnr_db"])
    chosen = [id(histogram) for _, histogram in by_loss[:_MOST_HISTOGRAMS]]
    return [histogram for _, histogram in listed if id(histogram) in chosen]


def _histograms(op: Mapping[str, Any]) -> str:
    kinds = [("output", op["activations"]), ("weights", op["weights"])]
    return "".join(_bars(f"{op['label']}: {what}", bars) for what, bars in kinds if bars)


def _bars(title: str, bars: Mapping[str, Any]) -> str:
    figure, axes = figure_of(1.5)
    width = (bars["high"] - bars["low"]) / len(bars["counts"])
    starts = [bars["low"] + place * width for place in range(len(bars["counts"]))]
    axes.axvspan(*bars["range"], color=color_of(2), alpha=0.15, linewidth=0)
    axes.bar(starts, bars["counts"], width=width, align="edge", color=color_of(0))
    axes.set_yscale("symlog")
    axes.set_yticks([])
    axes.set_yticks([], minor=True)
    axes.set_title(title, fontsize=9, loc="left")
    return svg_of(figure, escape(title, quote=True))


def _bit_widths(record: Mapping[str, Any]) -> list[str]:
    """Return the sections on bit widths: plots of weights, of activations and of both, and all numbers."""
    rows = "".join(_row(way) for way in record["ways"])
    return [
        *_bits_plots(record),
        '<section><h2>Accuracy by bit width</h2><div class="table"><table><thead><tr><th>weights</th>'
        "<th>activations</th><th>grid</th><th>accuracy</th><th>against float</th><th>on TFLite</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>",
    ]


def _bits_plots(record: Mapping[str, Any]) -> list[str]:
    curves = {
        "Weights, activations in float": [way for way in record["ways"] if way["activation_bits"] == FLOAT_BITS],
        "Activations, alone and with weights": [way for way in record["ways"] if way["activation_bits"] != FLOAT_BITS],
    }
    try:
        with style():
            return [
                _bits_section(title, _drawn(title, ways, record["float_accuracy"])) for title, ways in curves.items()
            ]
    except ImportError as error:
        return [f"<p>{escape(missing_matplotlib(error), quote=False)}</p>"]


def _bits_section(title: str, svg: str) -> str:
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
            color=color_of(number),
            markersize=5,
            label=name.replace("_", " "),
        )
    axes.axhline(100 * float_accuracy, linewidth=0.8, linestyle=":", color=color_of(5), label="float")
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

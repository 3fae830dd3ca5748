# SPDX-License-Identifier: Apache-2.0
"""The report's plots as inline SVG, drawn by matplotlib; they take their text colour from the page around them."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from tfq.report.formatting import is_number, kilobytes, model_label, percent, plain, significant
from tfq.report.summary import evaluation_of, is_share

# Mid tones that stand out on white and on near-black alike; a model keeps its colour through all the plots.
COLOURS = ("#3f8fd2", "#dd7f24", "#2f9f72", "#a86fd0", "#cf5a73", "#7c8896")

# Stands for "the page's text colour" while matplotlib draws.
_INK = "#010203"
_MOST_LAYERS = 40

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """svg: the drawing, "" where it is missing; caption: what it shows, or why it is missing."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """A model as the plots know it."""

    label: str
    colour: str
    evaluation: Mapping[str, Any]


def plots_of(record: Mapping[str, Any]) -> list[Plot]:
    """Accuracy against size, sizes, latency, sparsity; each drawn, or missing with its reason."""
    marks = [
        _Mark(
            label=model_label(model.get("name", "?")),
            colour=COLOURS[index % len(COLOURS)],
            evaluation=evaluation_of(model),
        )
        for index, model in enumerate(record.get("models") or [])
    ]
    # Without labels there is no accuracy; agreement is the next best.
    quantity = "accuracy" if any(is_number(mark.evaluation.get("accuracy")) for mark in marks) else "agreement"
    drawings: list[tuple[str, Callable[[], tuple[str, str]]]] = [
        (f"{quantity.capitalize()} against size", lambda: _accuracy_against_size(marks, quantity)),
        ("Size", lambda: _sizes(marks)),
        ("Latency", lambda: _latencies(marks)),
        ("Sparsity of each layer", lambda: _sparsities(record.get("sparsity") or {})),
    ]
    try:
        import matplotlib
    except ImportError as error:
        missing = f"not drawn: matplotlib cannot be imported ({plain(error)}): pip install 'tfq[report]'"
        return [Plot(title=title, svg="", caption=missing) for title, _ in drawings]
    plots = []
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A glyph that matplotlib's font lacks is drawn by the browser's: text stays text in the SVG.
        warnings.filterwarnings("ignore", message="Glyph")
        matplotlib.rcdefaults()
        for title, draw in drawings:
            matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": title})
            svg, caption = draw()
            plots.append(Plot(title=title, svg=svg, caption=caption))
    return plots


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Without pyplot: it would choose a backend for the whole process.
    figure = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Any, title: str) -> str:
    file = StringIO()
    figure.savefig(
        file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>\s*", "", drawing, count=1, flags=re.DOTALL)
    drawing = re.sub(r"((?:fill|stroke): ?)" + _INK, r"\1currentColor", drawing)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def _accuracy_against_size(marks: Sequence[_Mark], quantity: str) -> tuple[str, str]:
    shown = [mark for mark in marks if all(is_number(mark.evaluation.get(key)) for key in (quantity, "gzip_bytes"))]
    if not shown:
        return "", f"not drawn: no model has both an {quantity} and a size"
    figure, axes = _figure(3.6)
    is_percent = quantity == "agreement" or all(is_share(mark.evaluation) for mark in shown)
    values = [(100 if is_percent else 1) * mark.evaluation[quantity] for mark in shown]
    for mark, value in zip(shown, values, strict=True):
        axes.plot(
            [mark.evaluation["gzip_bytes"] / 1000],
            [value],
            "o",
            markersize=11,
            color=mark.colour,
            label=mark.label,
            clip_on=False,
        )
    axes.grid(True)
    axes.set_xlim(left=0)
    if is_percent:
        spread = max(values) - min(values)
        # At least two points of height: a tenth of a point must not look like a cliff.
        margin = max(0.15 * spread, (2 - spread) / 2)
        axes.set_ylim(min(values) - margin, min(max(values) + margin, 100))
    axes.set_xlabel("gzip size, kB")
    axes.set_ylabel(f"{quantity}, %" if is_percent else plain(shown[0].evaluation["metric"]))
    figure.legend(loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.2, markerscale=0.7)
    left_out = [mark.label for mark in marks if mark not in shown]
    better = "up and to the left is better" if is_percent else "what is better is the metric's own matter"
    caption = f"{quantity.capitalize()} on the test examples; {better}."
    return _svg(figure, f"{quantity} against size"), caption + (
        f" Not known for {', '.join(left_out)}." if left_out else ""
    )


def _sizes(marks: Sequence[_Mark]) -> tuple[str, str]:
    shown = [mark for mark in marks if is_number(mark.evaluation.get("model_bytes"))]
    if not shown:
        return "", "not drawn: no size is recorded"
    figure, axes = _figure(0.9 + 0.85 * len(shown))
    for row, mark in enumerate(shown):
        for offset, key, alpha in ((-0.2, "model_bytes", 0.45), (0.2, "gzip_bytes", 1.0)):
            value = mark.evaluation.get(key)
            if is_number(value):
                axes.barh(row + offset, value / 1000, height=0.36, color=mark.colour, alpha=alpha)
                name = "file" if key == "model_bytes" else "gzip"
                _value_label(axes, value / 1000, row + offset, f"{kilobytes(value)} {name}")
    _name_rows(axes, [mark.label for mark in shown])
    axes.set_xlabel("kB")
    return _svg(figure, "Size"), "The .tflite file as it is (pale) and compressed with gzip."


def _latencies(marks: Sequence[_Mark]) -> tuple[str, str]:
    shown = [mark for mark in marks if is_number(mark.evaluation.get("latency_p50_ms"))]
    if not shown:
        reasons = {plain(m.evaluation.get("latency_reason") or "no latency is recorded") for m in marks}
        return "", f"not drawn: {'; '.join(sorted(reasons)) or 'no model was evaluated'}"
    figure, axes = _figure(0.9 + 0.5 * len(shown))
    for row, mark in enumerate(shown):
        p50, p90 = mark.evaluation["latency_p50_ms"], mark.evaluation.get("latency_p90_ms")
        axes.barh(row, p50, height=0.5, color=mark.colour)
        end = p50
        if is_number(p90) and p90 >= p50:
            axes.plot([p50, p90], [row, row], color=_INK, linewidth=1.2, marker="|", markersize=7)
            end = p90
        _value_label(axes, end, row, f"{significant(p50)} ms")
    _name_rows(axes, [mark.label for mark in shown])
    axes.set_xlabel("ms an inference")
    threads = {mark.evaluation.get("num_threads") for mark in shown}
    number = f", {threads.pop()} thread(s)" if len(threads) == 1 and is_number(next(iter(threads))) else ""
    return _svg(figure, "Latency"), f"Median on this machine{number}; the line reaches to the 90th percentile."


def _sparsities(sparsity: Mapping[str, Any]) -> tuple[str, str]:
    layers = [(plain(name), value) for name, value in sparsity.items() if is_number(value)]
    if not layers:
        return "", "not drawn: no sparsity is recorded"
    shown = layers[:_MOST_LAYERS]
    figure, axes = _figure(0.9 + 0.3 * len(shown))
    for row, (_, value) in enumerate(shown):
        axes.barh(row, 100 * value, height=0.6, color=COLOURS[0])
        _value_label(axes, 100 * value, row, percent(value))
    _name_rows(axes, [name if len(name) <= 40 else f"{name[:19]}…{name[-20:]}" for name, _ in shown])
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("zeros among the weights, %")
    rest = f" The first {len(shown)} of {len(layers)} layers; all are in the table." if len(layers) > len(shown) else ""
    return _svg(figure, "Sparsity of each layer"), f"Zeros in each layer's weights, in the model's order.{rest}"


def _value_label(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=10)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    """Bars from the top down, with room to the right for the labels of their values."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max(axes.get_xlim()[1], 1e-9) * 1.22)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")

# SPDX-License-Identifier: Apache-2.0
"""The report's plots as inline SVG: accuracy against size, latency distributions, instructions."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any
from warnings import catch_warnings, filterwarnings

from tfq.errors import install_hint
from tfq.report.formatting import (
    NOT_A_TIME,
    better,
    cpu_label,
    is_fraction,
    is_number,
    kilobytes,
    metric_word,
    millions,
    model_label,
    plain,
    significant,
    time_unit,
)
from tfq.report.latency_content import kernels_word
from tfq.report.summary import Record, Reported, backends_of, benchmark_of, models_of, part, series_of

# Stand for the page's text colour, and for the colour of each model, while matplotlib draws.
INK = "#010203"
SERIES = tuple(f"#0102{number:02x}" for number in range(10, 16))
MARKERS = ("o", "s", "D", "^", "v", "P")

_WIDTH = 4.5
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.5,
}


def colour_of(series: int) -> str:
    """What to draw the model of that number in."""
    return SERIES[series % len(SERIES)]


def marker_of(series: int) -> str:
    """Its shape, for those who do not tell the colours apart."""
    return MARKERS[series % len(MARKERS)]


@contextmanager
def style() -> Iterator[None]:
    """Inside, matplotlib draws as the report does; after it, as before. Raises ImportError where there is none."""
    import matplotlib

    with matplotlib.rc_context(), catch_warnings():
        # A glyph that matplotlib's font lacks is drawn by the browser's: text stays text in the SVG.
        filterwarnings("ignore", message="Glyph")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def missing_matplotlib(error: ImportError) -> str:
    """What stands in the place of a drawing."""
    return f"not drawn: matplotlib cannot be imported ({plain(error)}): {install_hint('report')}"


def figure_of(height: float) -> tuple[Any, Any]:
    """An empty figure of that height in inches, and its axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Without pyplot: it would choose a backend for the whole process.
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def svg_of(figure: Any, title: str) -> str:
    """The drawing. title: our own words, for those who do not see it; the same bytes for the same drawing."""
    import matplotlib

    file = StringIO()
    matplotlib.rcParams["svg.hashsalt"] = title
    figure.savefig(
        file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<(metadata|defs)>\s*(<style.*?</style>)?.*?</\1>\s*", _without_style, drawing, flags=re.DOTALL)
    drawing = re.sub(r"<!--.*?-->\s*", "", drawing, flags=re.DOTALL)
    # Several drawings stand on one page: an id that nothing refers to is only one more that is given twice.
    referred = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", drawing))
    drawing = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referred else "", drawing)
    drawing = re.sub(r"((?:fill|stroke): ?)" + INK, r"\1currentColor", drawing)
    for number, colour in enumerate(SERIES):
        drawing = re.sub(rf"((?:fill|stroke): ?){colour}", rf"\1var(--c{number})", drawing)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def _without_style(match: re.Match[str]) -> str:
    """Drops the metadata; of the definitions, a style sheet that would apply to the whole page."""
    return "" if match[1] == "metadata" or match[2] else match[0]


def label_value(axes: Any, x: float, y: float, text: str) -> None:
    """A bar's or strip's number, to the right of its end."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """Rows from the top down, each with its name; long ones shortened in the middle."""
    short = [name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}" for name in names]
    axes.set_yticks(range(len(names)), short)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")


_QUANTILES = 21
_MOST_ROWS = 24


@dataclass(frozen=True, kw_only=True)
class Plot:
    """svg: the drawing, "" where it is missing; caption: what it shows, or why it is missing."""

    title: str
    svg: str
    caption: str


def plots_of(record: Record) -> dict[str, Plot]:
    """Each plot by its key: drawn, or missing with its reason."""
    models = models_of(record)
    # Without labels there is no accuracy; agreement is the next best.
    quantity = "accuracy" if any(is_number(model.evaluation.get("accuracy")) for model in models) else "agreement"
    drawings: dict[str, tuple[str, Callable[[], tuple[str, str]]]] = {
        "accuracy": (f"{quantity.capitalize()} against size", lambda: _accuracy_against_size(models, quantity)),
        "size": ("Size", lambda: _sizes(models)),
        "latency": ("Latency", lambda: _latencies(record, models)),
        "instructions": ("Instructions an inference", lambda: _instructions(models)),
    }
    try:
        with style():
            drawn = {key: draw() for key, (_, draw) in drawings.items()}
    except ImportError as error:
        drawn = dict.fromkeys(drawings, ("", missing_matplotlib(error)))
    return {key: Plot(title=title, svg=drawn[key][0], caption=drawn[key][1]) for key, (title, _) in drawings.items()}


def _accuracy_against_size(models: Sequence[Reported], quantity: str) -> tuple[str, str]:
    shown = [model for model in models if all(is_number(model.evaluation.get(key)) for key in (quantity, "gzip_bytes"))]
    if not shown:
        return "", f"not drawn: no model has both an {quantity} and a size"
    is_percent = quantity == "agreement" or all(is_fraction(model.evaluation) for model in shown)
    values = [(100 if is_percent else 1) * model.evaluation[quantity] for model in shown]
    figure, axes = figure_of(3.1)
    for model, value in zip(shown, values, strict=True):
        x = model.evaluation["gzip_bytes"] / 1000
        axes.plot(
            [x],
            [value],
            marker_of(model.series),
            markersize=9,
            color=colour_of(model.series),
            label=model.label if len(model.label) <= 28 else f"{model.label[:14]}…{model.label[-13:]}",
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
    axes.set_ylabel(f"{quantity}, %" if is_percent else metric_word(shown[0].evaluation))
    columns = 3 if len(shown) <= 3 and sum(len(model.label) for model in shown) <= 40 else 2
    figure.legend(loc="outside upper left", ncols=columns, handletextpad=0.2, columnspacing=1.0, markerscale=0.8)
    direction = "higher" if is_percent else better(shown[0].evaluation)
    side = {"higher": "up and to the left is better", "lower": "down and to the left is better"}
    words = side.get(direction or "", "what is better is the metric's own matter")
    left_out = [model.label for model in models if model not in shown]
    caption = (
        f"{quantity.capitalize()} on the test examples; {words}. {'The upright axis does not start at 0.' * is_percent}"
    )
    return svg_of(figure, f"{quantity} against size"), caption.strip() + (
        f" Not known for {', '.join(left_out)}." if left_out else ""
    )


def _sizes(models: Sequence[Reported]) -> tuple[str, str]:
    shown = [model for model in models if is_number(model.evaluation.get("model_bytes"))][:_MOST_ROWS]
    if not shown:
        return "", "not drawn: no size is recorded"
    figure, axes = figure_of(0.7 + 0.55 * len(shown))
    for row, model in enumerate(shown):
        for offset, key, alpha in ((-0.2, "model_bytes", 0.45), (0.2, "gzip_bytes", 1.0)):
            value = model.evaluation.get(key)
            if is_number(value):
                axes.barh(row + offset, value / 1000, height=0.36, color=colour_of(model.series), alpha=alpha)
                name = "file" if key == "model_bytes" else "gzip"
                label_value(axes, value / 1000, row + offset, f"{kilobytes(value)} {name}")
    name_rows(axes, [model.label for model in shown])
    axes.set_xlim(0, max(axes.get_xlim()[1], 1e-9) * 1.35)
    axes.set_xlabel("kB")
    return svg_of(figure, "Size"), "The .tflite file as it is (pale) and compressed with gzip."


def _latencies(record: Record, models: Sequence[Reported]) -> tuple[str, str]:
    _, timed = benchmark_of(record)
    with_quantiles = [model for model in timed if _quantiles(model)][:_MOST_ROWS]
    return _distributions(record, with_quantiles) if with_quantiles else _medians(models)


def _quantiles(model: Mapping[str, Any]) -> list[float]:
    values = model.get("quantiles_ms") or []
    return values if len(values) == _QUANTILES and all(map(is_number, values)) else []


def _distributions(record: Record, timed: Sequence[Record]) -> tuple[str, str]:
    """A strip a model and kernels: the middle half dark, nine tenths pale, the median a line across."""
    unit = time_unit(model["p50_ms"] for model in timed)
    quantiles = [[unit.per_ms * value for value in _quantiles(model)] for model in timed]
    low, high = min(q[0] for q in quantiles), max(q[-2] for q in quantiles)
    from_zero = low < 0.5 * high
    left = 0.0 if from_zero else low - 0.08 * (high - low)
    right = high + 0.04 * (high - left)
    figure, axes = figure_of(0.7 + 0.42 * len(timed))
    for row, (model, q) in enumerate(zip(timed, quantiles, strict=True)):
        colour = colour_of(series_of(record, model.get("name")))
        axes.plot([q[0], min(q[-1], right)], [row, row], color=colour, linewidth=1)
        for first, last, height, alpha in ((1, 19, 0.34, 0.3), (2, 18, 0.42, 0.3), (5, 15, 0.5, 0.85)):
            width = max(q[last] - q[first], 0.002 * (right - left))
            axes.barh(row, width, left=q[first], height=height, color=colour, alpha=alpha, linewidth=0)
        axes.plot([q[10]] * 2, [row - 0.34, row + 0.34], color=INK, linewidth=1.4)
        axes.annotate(
            f"{significant(q[10])} {unit.short}",
            (1.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
        )
    several = len({plain(model.get("kernels")) for model in timed}) > 1
    name_rows(
        axes,
        [
            model_label(model.get("name", "?")) + (f", {kernels_word(model.get('kernels'))}" if several else "")
            for model in timed
        ],
    )
    axes.set_xlim(left, right)
    axes.set_xlabel(f"{unit.short} an inference")
    caption = "Line: median; dark: the middle half of all runs; pale: 90%; thin: from the fastest run on."
    beyond = max(q[-1] for q in quantiles)
    caption += f" The slowest run, {significant(beyond)} {unit.short}, is beyond the edge." if beyond > right else ""
    return svg_of(figure, "Latency"), caption + ("" if from_zero else " The axis does not start at 0.")


def _medians(models: Sequence[Reported]) -> tuple[str, str]:
    shown = [model for model in models if is_number(model.evaluation.get("latency_p50_ms"))][:_MOST_ROWS]
    if not shown:
        reasons = {plain(model.evaluation.get("latency_reason") or "no latency is recorded") for model in models}
        return "", f"not drawn: {'; '.join(sorted(reasons)) or 'no model was evaluated'}"
    unit = time_unit(model.evaluation["latency_p50_ms"] for model in shown)
    figure, axes = figure_of(0.7 + 0.36 * len(shown))
    for row, model in enumerate(shown):
        p50, p90 = unit.per_ms * model.evaluation["latency_p50_ms"], model.evaluation.get("latency_p90_ms")
        axes.barh(row, p50, height=0.5, color=colour_of(model.series))
        end = p50
        if is_number(p90) and unit.per_ms * p90 >= p50:
            end = unit.per_ms * p90
            axes.plot([p50, end], [row, row], color=INK, linewidth=1.2, marker="|", markersize=7)
        label_value(axes, end, row, f"{significant(p50)} {unit.short}")
    name_rows(axes, [model.label for model in shown])
    axes.set_xlim(0, max(axes.get_xlim()[1], 1e-9) * 1.25)
    axes.set_xlabel(f"{unit.short} an inference")
    threads = {model.evaluation.get("num_threads") for model in shown}
    number = f", {threads.pop()} thread(s)" if len(threads) == 1 and is_number(next(iter(threads))) else ""
    return svg_of(figure, "Latency"), f"Median on this machine{number}; the line reaches to the 90th percentile."


def _instructions(models: Sequence[Reported]) -> tuple[str, str]:
    shown = [
        (backend, model, count)
        for backend in backends_of(models, "instructions")
        for model in models
        if is_number(count := part(model.instructions, backend).get("instructions"))
    ][:_MOST_ROWS]
    if not shown:
        return "", "not drawn: no instructions were counted"
    figure, axes = figure_of(0.7 + 0.32 * len(shown))
    for row, (_, model, count) in enumerate(shown):
        axes.barh(row, count / 1e6, height=0.6, color=colour_of(model.series))
        label_value(axes, count / 1e6, row, f"{millions(count)} M")
    cpus = list(dict.fromkeys(backend for backend, _, _ in shown))
    several = len(cpus) > 1
    name_rows(
        axes,
        [
            f"{cpu_label(backend).removeprefix('cortex-')}, {model.label}" if several else model.label
            for backend, model, _ in shown
        ],
    )
    axes.set_xlim(0, max(axes.get_xlim()[1], 1e-9) * 1.25)
    axes.set_xlabel("millions of instructions an inference")
    message = f"On {', '.join(map(cpu_label, cpus))}, emulated: {NOT_A_TIME}."
    return svg_of(figure, "Instructions an inference"), message

# SPDX-License-Identifier: Apache-2.0
"""The plots of a report as inline SVG: accuracy by size, sizes, latency, training curves, instructions."""

import functools
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
    metric_facts,
    metric_title,
    millions,
    model_label,
    plain,
    significant,
    time_unit,
)
from tfq.report.latency_content import kernels_word
from tfq.report.metric_content import class_names, confusion_key
from tfq.report.record import (
    Record,
    Reported,
    backends_of,
    benchmark_of,
    curves_of,
    histories_of,
    latencies_of,
    models_of,
    part,
    series_of,
    stages_of,
)

# Placeholders for the page's text color and the colors of the models, which `svg_of` replaces by CSS variables.
INK = "#010203"
SERIES = tuple(f"#0102{number:02x}" for number in range(10, 16))
MARKERS = ("o", "s", "D", "^", "v", "P")

_WIDTH, _WIDE = 4.5, 7.2
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


def color_of(series: int) -> str:
    """Return the color of the model at that position."""
    return SERIES[series % len(SERIES)]


def marker_of(series: int) -> str:
    """Return the marker of the model at that position, for readers who cannot distinguish the colors."""
    return MARKERS[series % len(MARKERS)]


@contextmanager
def style() -> Iterator[None]:
    """Set matplotlib's style to the report's inside the block, and restore it afterwards.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    with matplotlib.rc_context(), catch_warnings():
        # Text stays text in the SVG, so that the browser draws glyphs that matplotlib's font does not have.
        filterwarnings("ignore", message="Glyph")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def missing_matplotlib(error: ImportError) -> str:
    """Return the caption of a plot that cannot be drawn without matplotlib."""
    return f"not drawn: matplotlib cannot be imported ({plain(error)}): {install_hint('report')}"


def figure_of(height: float, rows: int = 1, *, wide: bool = False, columns: int = 1) -> tuple[Any, Any]:
    """Return an empty figure of `height` inches and its axes; an array of axes, one below the other, if rows > 1.

    `wide`: for a plot that takes the whole width of a page. `columns`: of axes, which then share both scales.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # pyplot would choose a backend for the whole process.
    figure = Figure(figsize=(_WIDE if wide else _WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(rows, columns, sharex=True, sharey=columns > 1)


def svg_of(figure: Any, title: str) -> str:
    """Return the drawing as SVG; the same figure gives the same bytes.

    Args:
        figure: From `figure_of`.
        title: Text for screen readers; it must be escaped already.
    """
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
    # A page has several drawings: ids that nothing refers to are removed, because they would not be unique.
    referred = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", drawing))
    drawing = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referred else "", drawing)
    drawing = re.sub(r"((?:fill|stroke): ?)" + INK, r"\1currentColor", drawing)
    for number, color in enumerate(SERIES):
        drawing = re.sub(rf"((?:fill|stroke): ?){color}", rf"\1var(--c{number})", drawing)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def _without_style(match: re.Match[str]) -> str:
    """Remove metadata, and definitions with a style sheet, which would apply to the whole page."""
    return "" if match[1] == "metadata" or match[2] else match[0]


def label_value(axes: Any, x: float, y: float, text: str) -> None:
    """Write the number of a bar to the right of its end."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """Label the rows from the top down; long names are shortened in the middle."""
    short = [name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}" for name in names]
    axes.set_yticks(range(len(names)), short)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")


_QUANTILES = 21
# The cells of larger confusion matrices have no numbers, and not every class is named.
_WRITTEN_CLASSES = 12
_MOST_ROWS = 24


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot with its title.

    Attributes:
        title: The heading.
        svg: The drawing; "" if it is missing.
        caption: What the plot shows, or why it is missing.
        wide: Whether it takes the whole width of a page.
    """

    title: str
    svg: str
    caption: str
    wide: bool = False


def drawn(title: str, draw: Callable[[], tuple[str, str]], *, wide: bool = False) -> Plot:
    """Return a plot, or one without a drawing whose caption says why. draw: () -> (SVG, caption)."""
    try:
        with style():
            svg, caption = draw()
    except ImportError as error:
        svg, caption = "", missing_matplotlib(error)
    return Plot(title=title, svg=svg, caption=caption, wide=wide)


def plots_of(record: Record) -> dict[str, Plot]:
    """Return all plots by their keys; a plot without numbers has the reason as its caption."""
    models = models_of(record)
    # Without labels there is no accuracy, but there may be an agreement.
    quantity = "accuracy" if any(is_number(model.evaluation.get("accuracy")) for model in models) else "agreement"
    drawings: dict[str, tuple[str, Callable[[], tuple[str, str]]]] = {
        "accuracy": (f"{quantity.capitalize()} by size", lambda: _accuracy_by_size(models, quantity)),
        "size": ("Size of the files", lambda: _sizes(models)),
        "latency": ("Latency", lambda: _latencies(record, models)),
        "training": ("Training", lambda: _training(record)),
        "instructions": ("Instructions per inference", lambda: _instructions(models)),
    }
    results = {key: drawn(title, draw) for key, (title, draw) in drawings.items()}
    return {**results, **confusion_plots(record)}


def confusion_plots(record: Record) -> dict[str, Plot]:
    """Return the confusion matrices of each model by the keys of their plots."""
    results = {}
    for model in models_of(record):
        confusion = part(part(model.evaluation, "classes"), "confusion")
        if confusion.get("matrix"):
            draw = functools.partial(_confusion, confusion, model.label)
            results[confusion_key(model)] = drawn(f"Confusion matrix, {model.label}", draw, wide=True)
    return results


def _confusion(confusion: Record, label: str) -> tuple[str, str]:
    """Draw the matrix of the float model, that of the model, and their difference, as heat maps."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.colors import Normalize, PowerNorm
    from matplotlib.figure import Figure

    ours, theirs = confusion["matrix"], confusion.get("reference_matrix")
    panels = [("float", theirs), (label, ours)] if theirs else [(label, ours)]
    if theirs:
        pairs = zip(ours, theirs, strict=True)
        panels.append(("minus float", [[a - b for a, b in zip(*rows, strict=True)] for rows in pairs]))
    names = class_names(confusion)
    classes = [_short_class(names.get(number, number)) for number in confusion["classes"]]
    # Long names stand upright below the matrix, and need room.
    longest = max(map(len, classes))
    side = (_WIDE - 0.6 - 0.06 * longest) / len(panels)
    figure = Figure(figsize=(_WIDE, side + 0.8 + 0.06 * longest), layout="constrained")
    FigureCanvasSVG(figure)
    largest = max(1, *(value for _, matrix in panels[:2] for row in matrix for value in row))
    change = max(abs(value) for row in panels[-1][1] for value in row)
    step = -(-len(classes) // _WRITTEN_CLASSES)
    for place, (axes, (title, matrix)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)
    ):
        is_difference = title == "minus float"
        # A square root, so that few confusions differ visibly from none next to a full diagonal.
        norm = Normalize(-max(change, 1), max(change, 1)) if is_difference else PowerNorm(0.5, 0, largest)
        colors = colormaps["RdBu" if is_difference else "viridis"]
        if len(classes) <= _WRITTEN_CLASSES:
            axes.pcolormesh(matrix, cmap=colors, norm=norm)
            _write_cells(axes, matrix, colors, norm)
            axes.invert_yaxis()
        else:
            # A path for each cell would make a page of megabytes. The pixels are repeated, so that edges stay sharp.
            pixels = np.kron(np.asarray(matrix), np.ones((8, 8)))
            axes.imshow(
                colors(norm(pixels), bytes=True), extent=(0, len(classes), len(classes), 0), interpolation="none"
            )
        axes.set_title(title if len(title) <= 20 else f"{title[:9]}…{title[-10:]}", fontsize=10)
        axes.set_aspect("equal")
        ticks = [index + 0.5 for index in range(0, len(classes), step)]
        axes.xaxis.set_ticks(ticks, classes[::step], fontsize=7, rotation=90 if longest > 2 else 0)
        # The panels have the same rows.
        axes.yaxis.set_ticks(ticks, classes[::step] if place == 0 else [], fontsize=7)
        axes.set_xlabel("predicted class", fontsize=8)
        if place == 0:
            axes.set_ylabel("label", fontsize=8)
    caption = f"Rows: labels. Columns: predicted classes. In examples: dark blue is 0, yellow is {largest:,g}."
    if theirs and change:
        caption += f" Minus float: blue is more than the float model, up to {change:,g}, red is fewer."
    elif theirs:
        caption += " The float model has the same matrix."
    return svg_of(figure, f"Confusion matrix, {label}"), caption


def _short_class(name: Any) -> str:
    text = plain(name)
    return text if len(text) <= 14 else f"{text[:7]}…{text[-6:]}"


def _write_cells(axes: Any, matrix: Sequence[Sequence[float]], colors: Any, norm: Any) -> None:
    """Write the numbers that are not 0 into their cells, black or white, whichever has more contrast."""
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            if value:
                red, green, blue, _ = (_linear(part) for part in colors(norm(value)))
                is_light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179
                color = "#101010" if is_light else "#ffffff"
                text = f"{value:g}".replace("-", "−")
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=5.5, color=color)


def _linear(part: float) -> float:
    """Return a component of an sRGB color as light, as WCAG 2 defines it for contrast."""
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4


def _accuracy_by_size(models: Sequence[Reported], quantity: str) -> tuple[str, str]:
    shown = [model for model in models if all(is_number(model.evaluation.get(key)) for key in (quantity, "gzip_bytes"))]
    if not shown:
        return "", f"not drawn: no model has both an {quantity} and a size"
    is_percent = quantity == "agreement" or all(is_fraction(model.evaluation) for model in shown)
    factor = 100 if is_percent else 1
    values = [factor * model.evaluation[quantity] for model in shown]
    intervals = {model.series: ends for model in shown if (ends := _interval(model, quantity))}
    figure, axes = figure_of(3.1)
    for model, value in zip(shown, values, strict=True):
        x = model.evaluation["gzip_bytes"] / 1000
        if ends := intervals.get(model.series):
            low, high = (factor * end for end in ends)
            axes.plot([x, x], [low, high], "-", color=color_of(model.series), linewidth=1.2, clip_on=False)
        axes.plot(
            [x],
            [value],
            marker_of(model.series),
            markersize=9,
            color=color_of(model.series),
            label=model.label if len(model.label) <= 28 else f"{model.label[:14]}…{model.label[-13:]}",
            clip_on=False,
        )
    axes.grid(True)
    axes.set_xlim(left=0)
    if is_percent:
        values += [100 * end for ends in intervals.values() for end in ends]
        spread = max(values) - min(values)
        # At least two points high, so that a tenth of a point does not look large.
        margin = max(0.15 * spread, (2 - spread) / 2)
        axes.set_ylim(min(values) - margin, min(max(values) + margin, 100))
    axes.set_xlabel("gzip size, kB")
    axes.set_ylabel(f"{quantity}, %" if is_percent else metric_title(shown[0].evaluation))
    columns = 3 if len(shown) <= 3 and sum(len(model.label) for model in shown) <= 40 else 2
    figure.legend(loc="outside upper left", ncols=columns, handletextpad=0.2, columnspacing=1.0, markerscale=0.8)
    direction = "higher" if is_percent else better(shown[0].evaluation)
    side = {"higher": "up and to the left is better", "lower": "down and to the left is better"}
    words = side.get(direction or "", "the metric does not declare whether higher or lower is better")
    left_out = [model.label for model in models if model not in shown]
    caption = f"{quantity.capitalize()} on the test examples; {words}."
    caption += " Vertical lines: 95% intervals." if intervals else ""
    caption += " The vertical axis does not start at 0." if is_percent else ""
    return svg_of(figure, f"{quantity} by size"), caption + (f" Not known: {', '.join(left_out)}." if left_out else "")


def _interval(model: Reported, quantity: str) -> tuple[float, float] | None:
    """Return the 95% interval of the accuracy, or None."""
    ends = metric_facts(model.evaluation).get("interval") if quantity == "accuracy" else None
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or not all(map(is_number, ends)):
        return None
    return ends[0], ends[1]


def _sizes(models: Sequence[Reported]) -> tuple[str, str]:
    shown = [model for model in models if is_number(model.evaluation.get("model_bytes"))][:_MOST_ROWS]
    if not shown:
        return "", "not drawn: no size is recorded"
    figure, axes = figure_of(0.7 + 0.55 * len(shown))
    for row, model in enumerate(shown):
        for offset, key, alpha in ((-0.2, "model_bytes", 0.45), (0.2, "gzip_bytes", 1.0)):
            value = model.evaluation.get(key)
            if is_number(value):
                axes.barh(row + offset, value / 1000, height=0.36, color=color_of(model.series), alpha=alpha)
                name = "file" if key == "model_bytes" else "gzip"
                label_value(axes, value / 1000, row + offset, f"{kilobytes(value)} {name}")
    name_rows(axes, [model.label for model in shown])
    axes.set_xlim(0, max(axes.get_xlim()[1], 1e-9) * 1.35)
    axes.set_xlabel("kB")
    return svg_of(figure, "Size"), "The .tflite file (pale) and the same file compressed with gzip."


def _latencies(record: Record, models: Sequence[Reported]) -> tuple[str, str]:
    _, timed = benchmark_of(record)
    with_quantiles = [model for model in timed if _quantiles(model)][:_MOST_ROWS]
    return _distributions(record, with_quantiles) if with_quantiles else _medians(record, models)


def _quantiles(model: Mapping[str, Any]) -> list[float]:
    values = model.get("quantiles_ms") or []
    return values if len(values) == _QUANTILES and all(map(is_number, values)) else []


def _distributions(record: Record, timed: Sequence[Record]) -> tuple[str, str]:
    """Draw a strip for each model and kernels: middle half dark, 90% pale, the median as a line."""
    unit = time_unit(model["p50_ms"] for model in timed)
    quantiles = [[unit.per_ms * value for value in _quantiles(model)] for model in timed]
    low, high = min(q[0] for q in quantiles), max(q[-2] for q in quantiles)
    from_zero = low < 0.5 * high
    left = 0.0 if from_zero else low - 0.08 * (high - low)
    right = high + 0.04 * (high - left)
    figure, axes = figure_of(0.7 + 0.42 * len(timed))
    for row, (model, q) in enumerate(zip(timed, quantiles, strict=True)):
        color = color_of(series_of(record, model.get("name")))
        axes.plot([q[0], min(q[-1], right)], [row, row], color=color, linewidth=1)
        for first, last, height, alpha in ((1, 19, 0.34, 0.3), (2, 18, 0.42, 0.3), (5, 15, 0.5, 0.85)):
            width = max(q[last] - q[first], 0.002 * (right - left))
            axes.barh(row, width, left=q[first], height=height, color=color, alpha=alpha, linewidth=0)
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
    axes.set_xlabel(f"{unit.short} per inference")
    caption = "Line: median. Dark: the middle half of all runs. Pale: 90% of them. Thin line: from the fastest run on."
    beyond = max(q[-1] for q in quantiles)
    caption += f" The slowest run, {significant(beyond)} {unit.short}, is outside the plot." if beyond > right else ""
    return svg_of(figure, "Latency"), caption + ("" if from_zero else " The axis does not start at 0.")


def _medians(record: Record, models: Sequence[Reported]) -> tuple[str, str]:
    latencies = latencies_of(record)
    shown = [model for model in models if model.name in latencies.medians_ms][:_MOST_ROWS]
    if not shown:
        reasons = {reason or "the record has no latency" for reason in latencies.reasons.values()}
        return "", f"not drawn: {'; '.join(sorted(reasons)) or 'no model was evaluated'}"
    unit = time_unit(latencies.medians_ms.values())
    figure, axes = figure_of(0.7 + 0.36 * len(shown))
    for row, model in enumerate(shown):
        source = latencies.rows.get(model.name, model.evaluation)
        p50, p90 = unit.per_ms * latencies.medians_ms[model.name], source.get("p90_ms", source.get("latency_p90_ms"))
        axes.barh(row, p50, height=0.5, color=color_of(model.series))
        end = p50
        if is_number(p90) and unit.per_ms * p90 >= p50:
            end = unit.per_ms * p90
            axes.plot([p50, end], [row, row], color=INK, linewidth=1.2, marker="|", markersize=7)
        label_value(axes, end, row, f"{significant(p50)} {unit.short}")
    name_rows(axes, [model.label for model in shown])
    axes.set_xlim(0, max(axes.get_xlim()[1], 1e-9) * 1.25)
    axes.set_xlabel(f"{unit.short} per inference")
    return svg_of(figure, "Latency"), "Median on this machine; the line ends at the 90th percentile."


def _training(record: Record) -> tuple[str, str]:
    """Draw loss and metric by epoch. The steps follow each other, with a vertical line where one begins."""
    histories = [(step, curves_of(history)) for step, history in histories_of(stages_of(record))]
    histories = [(step, curves) for step, curves in histories if "loss" in curves]
    if not histories:
        return "", "not drawn: nothing was trained"
    names = dict.fromkeys(name.removeprefix("val_") for _, curves in histories for name in curves)
    # If there are several outputs, draw the first metric ("classes_accuracy"), not another loss ("classes_loss").
    others = [name for name in names if not name.endswith("loss") and name not in ("lr", "learning_rate")]
    panels = ["loss", *others[:1]]
    figure, axes = figure_of(0.9 + 1.35 * len(panels), len(panels))
    for panel, name in zip([axes] if len(panels) == 1 else axes, panels, strict=True):
        factor = 100 if name.endswith("accuracy") else 1
        start = 0
        for place, (step, curves) in enumerate(histories):
            for series, (key, line, kind) in enumerate(((name, "-", "training"), (f"val_{name}", "--", "validation"))):
                values = [factor * value for value in curves.get(key, ())]
                epochs = range(start + 1, start + 1 + len(values))
                label = kind if place == 0 and name == "loss" else None
                marker = marker_of(series) if len(values) == 1 else ""
                panel.plot(epochs, values, line + marker, color=color_of(series), linewidth=1.4, ms=3, label=label)
            if start:
                panel.axvline(start + 0.5, color=INK, linewidth=0.6, linestyle=":")
            if name == "loss":
                at = (start + 0.6, 1.0)
                panel.annotate(
                    step, at, xycoords=("data", "axes fraction"), xytext=(2, 2), textcoords="offset points", fontsize=8
                )
            start += max(map(len, curves.values()))
        panel.grid(True)
        panel.set_ylabel(f"{name}, %" if factor == 100 else name)
        panel.set_xlim(0.5, start + 0.5)
        panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel("epoch")
    figure.legend(loc="outside upper left", ncols=2)
    steps = ", then ".join(step for step, _ in histories)
    return svg_of(figure, "Training"), f"Loss and metric after each epoch: {steps}." + (
        "" if any(key.startswith("val_") for _, curves in histories for key in curves) else " No validation split."
    )


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
        axes.barh(row, count / 1e6, height=0.6, color=color_of(model.series))
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
    axes.set_xlabel("millions of instructions per inference")
    message = f"On {', '.join(map(cpu_label, cpus))}, emulated: {NOT_A_TIME}."
    return svg_of(figure, "Instructions per inference"), message

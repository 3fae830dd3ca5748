# SPDX-License-Identifier: Apache-2.0
"""The report's plots: accuracy against size, sizes, latency distributions, instructions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.report.drawing import (
    INK,
    colour_of,
    figure_of,
    label_value,
    marker_of,
    missing_matplotlib,
    name_rows,
    style,
    svg_of,
)
from tfq.report.formatting import cpu_label, is_number, kilobytes, millions, model_label, plain, significant, time_unit
from tfq.report.instructions_content import NOT_A_TIME
from tfq.report.latency_content import kernels_word
from tfq.report.reported import Record, Reported, benchmark_of, models_of, part, runners_of, series_of
from tfq.report.scores import better, is_share, metric_word

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
    is_percent = quantity == "agreement" or all(is_share(model.evaluation) for model in shown)
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
    axes.set_ylabel(f"{quantity}, %" if is_percent else metric_word(shown[0].evaluation.get("metric")))
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
        (runner, model, count)
        for runner in runners_of(models, "instructions")
        for model in models
        if is_number(count := part(model.instructions, runner).get("instructions"))
    ][:_MOST_ROWS]
    if not shown:
        return "", "not drawn: no instructions were counted"
    figure, axes = figure_of(0.7 + 0.32 * len(shown))
    for row, (_, model, count) in enumerate(shown):
        axes.barh(row, count / 1e6, height=0.6, color=colour_of(model.series))
        label_value(axes, count / 1e6, row, f"{millions(count)} M")
    cpus = list(dict.fromkeys(runner for runner, _, _ in shown))
    several = len(cpus) > 1
    name_rows(
        axes,
        [
            f"{cpu_label(runner).removeprefix('cortex-')}, {model.label}" if several else model.label
            for runner, model, _ in shown
        ],
    )
    axes.set_xlim(0, max(axes.get_xlim()[1], 1e-9) * 1.25)
    axes.set_xlabel("millions of instructions an inference")
    told = f"On {', '.join(map(cpu_label, cpus))}, emulated: {NOT_A_TIME}."
    return svg_of(figure, "Instructions an inference"), told

# SPDX-License-Identifier: Apache-2.0
"""The plots of a sweep's page: Pareto fronts, and quantization against pruning."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from tfq.report.plots import INK, SERIES, Plot, color_of, drawn, figure_of, marker_of, svg_of
from tfq.report.record import Record
from tfq.report.sweep_view import (
    Group,
    Metric,
    axes_that_set,
    cost_format,
    fronts_of,
    groups_of,
    metric_of,
    objects,
    reported_split,
)

QUANTIZATION = "quantization_against_pruning"
# A plot labels at most this many points; the table has the names of all.
_MOST_LABELS = 10
_HEIGHT = 3.4


def front_key(cost: str) -> str:
    """Return the key of the plot of the front of a cost."""
    return "front_" + "".join(character if character.isalnum() else "_" for character in cost)


def sweep_plots(record: Record) -> dict[str, Plot]:
    """Return the plots of a sweep by their keys: one for each front, and quantization against pruning."""
    groups, metric = groups_of(record), metric_of(record)
    plots = {
        front_key(cost): drawn(
            f"{metric.name} against {cost_format(cost).title}",
            functools.partial(_front, groups, metric, cost, front),
            wide=True,
        )
        for cost, front in fronts_of(record).items()
    }
    pair = compared_axes(record)
    if pair is not None:
        plots[QUANTIZATION] = drawn(
            "Quantization against pruning",
            functools.partial(_by_axes, groups, metric, reported_split(record), *pair),
            wide=True,
        )
    return plots


def compared_axes(record: Record) -> tuple[str, str] | None:
    """Return the axis of the conversion and that of the compression; None if the grid has not both.

    If several axes set the section, the first one counts. An axis that sets both is that of the compression.
    """
    compression = next(axes_that_set(record, "compression"), None)
    conversion = next((axis for axis in axes_that_set(record, "conversion") if axis != compression), None)
    return None if compression is None or conversion is None else (conversion, compression)


def _whisker(axes: Any, x: float, group: Group, kind: str, name: str, factor: float, color: str) -> bool:
    """Draw the range over the seeds as a vertical line; return whether there is one."""
    low, high = group.number(kind, name, "low"), group.number(kind, name, "high")
    if low is None or high is None or low == high:
        return False
    axes.plot([x, x], [factor * low, factor * high], "-", color=color, linewidth=1.2, alpha=0.6)
    return True


def _front(groups: Sequence[Group], metric: Metric, cost: str, front: Record) -> tuple[str, str]:
    """Draw all groups, those of the front connected by a step line, and those that may be on it hollow."""
    split, shown = str(front.get("split") or ""), cost_format(cost)
    members = {str(item.get("group")) for item in objects(front, "members")}
    possible = front.get("possible") if isinstance(front.get("possible"), Mapping) else {}
    placed = [
        (group, x / shown.per_unit, metric.factor * y)
        for group in groups
        if (x := group.number("costs", cost)) is not None and (y := group.number("scores", split)) is not None
    ]
    if not placed:
        return "", f"not drawn: no group has both a {shown.title} and a score on {split}"
    figure, axes = figure_of(_HEIGHT, wide=True)
    has_ranges, labels = False, dict[tuple[float, float], str]()
    for group, x, y in placed:
        is_member = group.name in members
        color = color_of(0) if is_member else INK if group.is_reference and not group.is_in_grid else color_of(1)
        has_ranges |= _whisker(axes, x, group, "scores", split, metric.factor, color)
        filled = is_member or group.name not in (possible or {})
        axes.plot(
            [x], [y], marker_of(0 if is_member else 1), markersize=7 if is_member else 5, color=color,
            fillstyle="full" if filled else "none", alpha=1 if is_member else 0.75,
        )  # fmt: skip
        if (is_member and len(labels) < _MOST_LABELS) or not group.is_in_grid:
            labels[x, y] = _short(group.name) + ("" if group.is_in_grid else " (reference)")
    line = sorted((x, y) for group, x, y in placed if group.name in members)
    if len(line) > 1:
        axes.step([x for x, _ in line], [y for _, y in line], where="post", color=color_of(0), linewidth=1.2)
    _finish(axes, placed, shown.axis, metric.axis)
    _write_labels(figure, axes, labels)
    better = {"higher": "Up and to the left is better", "lower": "Down and to the left is better"}
    caption = f"{better.get(metric.direction, 'To the left is cheaper')}; scores on {split}. "
    caption += "Circles and the line: groups that no other one beats in both. "
    caption += "Hollow squares: dominated, but within noise of the front. " if possible else ""
    caption += "Vertical lines: lowest to highest seed. " if has_ranges else ""
    left_out = front.get("left_out")
    if isinstance(left_out, Mapping) and left_out:
        caption += f"Not compared: {', '.join(map(str, left_out))}. "
    return svg_of(figure, f"{metric.name} against {shown.title}"), caption.strip()


# Offsets in points of a label from its point, and which of its ends is there.
_PLACES = ((5, 5, "left"), (5, -12, "left"), (-5, 5, "right"), (-5, -12, "right"), (5, 16, "left"), (5, -23, "left"))
_LABEL_SIZE = 8


def _write_labels(figure: Any, axes: Any, labels: Mapping[tuple[float, float], str]) -> None:
    """Write labels next to their points where they cover neither another label nor a point nor the edge of the plot."""
    figure.draw_without_rendering()
    per_point = figure.dpi / 72
    points = {point: axes.transData.transform(point) for point in labels}
    height = _LABEL_SIZE * 1.2 * per_point
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points.values()]
    right = axes.bbox.x1
    for point, text in labels.items():
        x, y = points[point]
        width = 0.6 * _LABEL_SIZE * len(text) * per_point
        boxes = []
        for across, up, end in _PLACES:
            left = x + across * per_point - (width if end == "right" else 0)
            boxes.append((left, y + up * per_point, left + width, y + up * per_point + height))
        free = [
            place
            for place, box in enumerate(boxes)
            if box[2] <= right and box[0] >= axes.bbox.x0 and not any(_overlap(box, other) for other in taken)
        ]
        chosen = free[0] if free else 0
        across, up, end = _PLACES[chosen]
        taken.append(boxes[chosen])
        axes.annotate(
            text, point, xytext=(across, up), textcoords="offset points", fontsize=_LABEL_SIZE, ha=end, va="bottom",
        )  # fmt: skip


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _by_axes(groups: Sequence[Group], metric: Metric, split: str, conversion: str, compression: str) -> tuple[str, str]:
    """Draw score against gzip size: a color for each kind of quantization, a point for each kind of compression."""
    cost = "gzip_bytes"
    shown = cost_format(cost)
    placed = [
        (group, x / shown.per_unit, metric.factor * y)
        for group in groups
        if group.is_in_grid
        and (x := group.number("costs", cost)) is not None
        and (y := group.number("scores", split)) is not None
    ]
    values = list(dict.fromkeys(group.axes.get(conversion, "") for group, _, _ in placed))
    if not placed:
        return "", f"not drawn: no group has both a gzip size and a score on {split}"
    figure, axes = figure_of(_HEIGHT + 0.6, wide=True)
    has_ranges, labels = False, 0
    for series, value in enumerate(values):
        own = sorted(((x, y, group) for group, x, y in placed if group.axes.get(conversion, "") == value), key=_xy)
        axes.plot(
            [x for x, _, _ in own], [y for _, y, _ in own], f"-{marker_of(series)}", color=color_of(series),
            markersize=6, linewidth=0.8, label=_short(value) or "all",
        )  # fmt: skip
        for x, y, group in own:
            has_ranges |= _whisker(axes, x, group, "scores", split, metric.factor, color_of(series))
            if len(placed) <= 2 * _MOST_LABELS or labels < _MOST_LABELS:
                labels += 1
                axes.annotate(
                    _short(group.axes.get(compression, "")), (x, y), xytext=(4, -9 if series % 2 else 5),
                    textcoords="offset points", fontsize=7, color=color_of(series),
                )  # fmt: skip
    figure.legend(loc="outside upper left", ncols=min(3, len(values)), handletextpad=0.3, columnspacing=1.0)
    _finish(axes, placed, shown.axis, metric.axis)
    caption = (
        f"Scores on {split} against the size of the file after gzip. A color for each value of the axis {conversion}, "
        f"a point for each value of the axis {compression}."
    )
    caption += " Vertical lines: lowest to highest seed." if has_ranges else ""
    caption += f" Colors repeat after {len(SERIES)} values." if len(values) > len(SERIES) else ""
    return svg_of(figure, "Quantization against pruning"), caption


def _xy(item: tuple[float, float, Group]) -> tuple[float, float]:
    return item[0], item[1]


def _finish(axes: Any, placed: Sequence[tuple[Group, float, float]], x_label: str, y_label: str) -> None:
    """Set labels, grid, and a logarithmic axis if costs differ by more than a factor of ten."""
    costs = [x for _, x, _ in placed]
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_xscale("log")
        # The default formatter writes powers of ten in TeX.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0, right=max(costs) * 1.15 or 1)
    axes.grid(True)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:13]}…{name[-12:]}"

# SPDX-License-Identifier: Apache-2.0
"""The parts of a search page about levels of single layers: the Pareto front, its sizes, the sensitivity table."""

from collections.abc import Mapping
from typing import Any

from tfq.report.formatting import DASH, count, is_number, plain, significant, value_text
from tfq.report.plots import Plot, color_of, drawn, figure_of, marker_of, svg_of
from tfq.report.record import Record, part
from tfq.report.tables import Section, Table

# The key of the plot.
SIZES = "scores_by_size"


def _candidates(record: Record) -> dict[str, Record]:
    items = record.get("candidates")
    found = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    return {plain(item.get("name")): item for item in found}


def _items(record: Record, key: str) -> list[Record]:
    items = record.get(key)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def search_plots(record: Record) -> dict[str, Plot]:
    """Return the plot of all candidates by size, if the search assigned levels to layers."""
    if not record.get("points"):
        return {}
    return {SIZES: drawn("Score by size", lambda: _sizes(record), wide=True)}


def _sizes(record: Record) -> tuple[str, str]:
    """Draw the score of each candidate on the validation split against its size; a step line is the Pareto front."""
    unit = plain(part(record, "criterion").get("unit") or "fraction")
    factor = 100 if unit == "fraction" else 1
    front = [plain(name) for name in record.get("front") or []]
    placed = {
        name: (item["bytes"] / 1000, factor * item["accuracy"], bool(item.get("levels")))
        for name, item in _candidates(record).items()
        if is_number(item.get("bytes")) and is_number(item.get("accuracy"))
    }
    if not placed:
        return "", "not drawn: no candidate has both a size and a score"
    figure, axes = figure_of(3.4, wide=True)
    for name, (x, y, has_levels) in placed.items():
        series = 0 if has_levels else 1
        axes.plot(
            [x], [y], marker_of(series), color=color_of(series), markersize=7 if name in front else 5,
            fillstyle="full" if name in front else "none",
        )  # fmt: skip
    line = sorted(placed[name][:2] for name in front if name in placed)
    if len(line) > 1:
        axes.step([x for x, _ in line], [y for _, y in line], where="post", color=color_of(0), linewidth=1.2)
    floating = part(record, "validation").get("float_accuracy")
    if is_number(floating):
        axes.axhline(factor * floating, linestyle="--", linewidth=0.8, color=color_of(2))
    title = plain(part(record, "criterion").get("title") or "accuracy")
    axes.set_xlim(left=0)
    axes.set_xlabel("size, kB")
    axes.set_ylabel(f"{title}, %" if factor == 100 else title)
    axes.grid(True)
    caption = (
        "On the validation examples. Circles: files whose layers have their own levels; squares: other candidates. "
        "Filled, with the line: files that no other one beats in both size and score. Dashed: the float model."
    )
    return svg_of(figure, "Score by size"), caption


def points_table(record: Record) -> Table:
    """Return the sizes of the search with the candidate of each solver, and the best one."""
    candidates, unit = _candidates(record), plain(part(record, "criterion").get("unit") or "fraction")
    rows = []
    for point in _items(record, "points"):
        best, solvers = plain(point.get("best")), part(point, "by_solver")
        scores = [
            value_text(candidates[plain(name)].get("accuracy"), unit) if plain(name) in candidates else DASH
            for name in (solvers.get("ilp"), solvers.get("greedy"))
        ]
        rows.append((count(point.get("max_bytes")), *scores, best))
    return Table(
        key="points",
        columns=("at most, bytes", "integer program", "greedy", "best file of this size"),
        rows=tuple(rows),
        numeric=(True, True, True, False),
        caption="Levels of single layers, by size",
        notes=("The best file may be a candidate of another method or of a smaller size.",),
    )


def levels_section(record: Record) -> Section | None:
    """Return what each level of each layer distorts and costs; None if the search did not measure it."""
    table = part(record, "levels")
    effects = _items(table, "effects")
    if not effects:
        return None
    names = list(dict.fromkeys(name for item in effects for name in part(item, "costs")))
    rows = tuple(
        (
            plain(item.get("layer")),
            plain(item.get("level")),
            _signed(item.get("distortion")),
            *(_signed(part(item, "costs").get(name)) for name in names),
        )
        for item in effects
        if item.get("level") != table.get("base_level")
    )
    base = ", ".join(f"{plain(name)} {significant(value, 6)}" for name, value in part(table, "base_costs").items())
    about = (
        f"Each row is a file in which only this layer has another level than {plain(table.get('base_level'))}. Numbers "
        f"are changes from the file without such a layer: distortion {significant(table.get('base_distortion'))}, "
        f"{base}. The distortion is the Kullback-Leibler divergence of the class probabilities from the float model's "
        "in nats, or the squared error of other outputs relative to their variance."
    )
    impossible = part(table, "impossible")
    notes = tuple(f"{plain(name)} is not possible: {plain(reason)}" for name, reason in impossible.items())
    shown = Table(
        key="levels",
        columns=("layer", "level", "distortion", *map(plain, names)),
        rows=rows,
        numeric=(False, False, *[True] * (1 + len(names))),
        notes=notes,
        sortable=True,
    )
    return Section(key="levels", title="Sensitivity of the layers", paragraphs=(about,), tables=(shown,))


def _signed(value: Any) -> str:
    if not is_number(value):
        return DASH
    return "0" if value == 0 else f"{value:+,.4g}" if abs(value) < 1000 else f"{value:+,.0f}"

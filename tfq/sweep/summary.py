# SPDX-License-Identifier: Apache-2.0
"""Add the analysis to the points of a whole sweep, and show it on the terminal."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfq.config.sweep import SweepBudgetConfig
from tfq.evaluation.metric_text import change_text, score_text
from tfq.sweep.analysis import Group, front_of, groups_of, seed_pools
from tfq.sweep.best import best_of
from tfq.sweep.record import DONE, GroupRecord, OtherSpread, Spread, SweepResult
from tfq.text_table import aligned, listed


def summarized(result: SweepResult) -> SweepResult:
    """Return the result with its groups, fronts and best group."""
    everything = (*result.references, *result.points)
    groups = groups_of(result.points, result.references)
    reference_groups = groups_of(result.references)
    by_name = {group.record.group: group for group in (*reference_groups, *groups)}
    group_of = {point.id: point.group for point in everything}
    references = {
        point.group: by_name[group_of[point.reference]]
        for point in result.points
        if point.reference is not None and point.reference in group_of
    }
    # A reference within the grid is compared with itself: it loses nothing.
    references |= {group.record.group: group for group in groups if group.record.group not in references}
    chosen_on = result.settings["choose_on"]
    costs = dict.fromkeys(name for group in groups for name in group.record.costs)
    fronts = tuple(front_of(groups, cost, chosen_on) for cost in costs if _has(groups, cost))
    best = best_of(
        groups,
        SweepBudgetConfig.from_dict(result.settings["budget"]),
        chosen_on=chosen_on,
        reported_on="test",
        references=references,
        points=result.points,
    )
    return dataclasses.replace(
        result,
        groups=tuple(group.record for group in groups),
        reference_groups=tuple(dataclasses.replace(group.record, is_reference=True) for group in reference_groups),
        fronts=fronts,
        best=best,
        seed_spreads={split: pool.to_dict() for split, pool in seed_pools(result.points, result.references).items()},
    )


def _has(groups: list[Group], cost: str) -> bool:
    return any(group.record.costs[cost].mean is not None for group in groups if cost in group.record.costs)


def text_of(result: SweepResult) -> str:
    """Return a table of the groups, what is missing, and the sentence about the best one, for the terminal."""
    unit = next((score.unit for point in result.points for score in point.scores.values()), "fraction")
    splits = list(dict.fromkeys(split for point in result.points for split in point.scores))
    fronts = {cost.cost: {member.group for member in cost.members} for cost in result.fronts}
    front = fronts.get("gzip_bytes", set())
    header = ["", *splits, "difference on test", "bytes", "gzip", "front"]
    rows = [
        [
            group.group + (" (reference)" if group.is_reference else ""),
            *(_spread_text(group.scores.get(split), unit) for split in splits),
            _difference_text(group, unit),
            _cost_text(group.costs.get("model_bytes")),
            _cost_text(group.costs.get("gzip_bytes")),
            "*" if group.group in front else "",
        ]
        for group in (*result.reference_groups, *result.groups)
    ]
    missing = [f"{point.id}: {point.status}: {point.reason}" for point in result.points if point.status != DONE]
    lines = [
        *aligned([header, *rows], 1),
        "",
        "mean over the seeds ± standard deviation; difference from the reference (95% interval); * is on the front of "
        f"{result.settings['choose_on']} against gzip bytes",
    ]
    lines += _unpaired_lines(result.groups)
    lines += _other_lines((*result.reference_groups, *result.groups))
    if missing:
        lines += ["", *missing]
    return "\n".join([*lines, "", result.best.sentence if result.best else ""]).rstrip()


def _spread_text(spread: Spread | None, unit: str) -> str:
    if spread is None or spread.mean is None:
        return "-"
    std = "" if spread.std is None else f" ± {change_text(unit, spread.std).lstrip('+')}"
    return f"{score_text(unit, spread.mean)}{std}"


def _difference_text(group: GroupRecord, unit: str) -> str:
    difference = group.differences.get("test")
    return "-" if difference is None else _interval_text(difference, unit)


def _interval_text(difference: Mapping[str, Any], unit: str) -> str:
    value = change_text(unit, difference["difference"])
    if difference["low"] is None:
        return f"{value} (no interval)"
    return f"{value} ({change_text(unit, difference['low'])} to {change_text(unit, difference['high'])})"


def _other_lines(groups: Sequence[GroupRecord]) -> list[str]:
    """Return a table of the metrics other than the main one on the test split; [] if there are none."""
    names = dict.fromkeys(name for group in groups for name in group.others.get("test", {}))
    if not names:
        return []
    rows = [["on test", *(text for name in names for text in (name, "difference"))]]
    for group in groups:
        cells = [group.group]
        for name in names:
            item = group.others.get("test", {}).get(name)
            cells += ["-", "-"] if item is None else [_spread_text(item.value, item.unit), _change(item)]
        rows.append(cells)
    return ["", *aligned(rows, 1)]


def _change(item: OtherSpread) -> str:
    return "-" if item.difference is None else _interval_text(item.difference, item.unit)


def _unpaired_lines(groups: Sequence[GroupRecord]) -> list[str]:
    """Return a line for each reason why differences from the reference have no interval, with the groups."""
    names: dict[str, list[str]] = {}
    for group in groups:
        difference = group.differences.get("test")
        if difference is not None and difference["low"] is None:
            names.setdefault(str(difference["reason"]), []).append(group.group)
    return [f"no interval: {listed(groups)}: {reason}" for reason, groups in names.items()]


def _cost_text(spread: Spread | None) -> str:
    return "-" if spread is None or spread.mean is None else f"{spread.mean:,.0f}"

# SPDX-License-Identifier: Apache-2.0
"""Add the analysis to the points of a whole sweep, and show it on the terminal."""

import dataclasses

from tfq.config.sweep import SweepBudgetConfig
from tfq.evaluation.record import score_text
from tfq.sweep.analysis import Group, front_of, groups_of, seed_pools
from tfq.sweep.best import best_of
from tfq.sweep.record import DONE, GroupRecord, Spread, SweepResult
from tfq.text_table import aligned


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
    if missing:
        lines += ["", *missing]
    return "\n".join([*lines, "", result.best.sentence if result.best else ""]).rstrip()


def _spread_text(spread: Spread | None, unit: str) -> str:
    if spread is None or spread.mean is None:
        return "-"
    scale = 100 if unit == "fraction" else 1
    return f"{score_text(unit, spread.mean)}" + ("" if spread.std is None else f" ± {scale * spread.std:.2f}")


def _difference_text(group: GroupRecord, unit: str) -> str:
    difference = group.differences.get("test")
    if difference is None or difference["low"] is None:
        return "-"
    scale = 100 if unit == "fraction" else 1
    value, low, high = (scale * difference[name] for name in ("difference", "low", "high"))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def _cost_text(spread: Spread | None) -> str:
    return "-" if spread is None or spread.mean is None else f"{spread.mean:,.0f}"

# SPDX-License-Identifier: Apache-2.0
"""The analysis of the points of a sweep: groups of seeds, Pareto fronts, and the best group within the budget."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfq.config.sweep import SweepBudgetConfig
from tfq.requirement import ROUNDING
from tfq.sweep.paired_scores import PairedScore, difference_of
from tfq.sweep.record import DONE, Cost, Front, FrontMember, GroupRecord, OtherSpread, PointRecord, Spread
from tfq.sweep.seed_pool import Member, SeedPool
from tfq.sweep.statistics import SeedDifference, SeedSpread

_NO_COST = Cost(reason="it was not measured")


def pareto_front(costs: ArrayLike, scores: ArrayLike) -> list[int]:
    """Return the indices of the points that no other point dominates, in order of their cost, then of their index.

    A point dominates another one if its cost is not higher, its score is not lower, and one of them is better. Points
    with the same cost and score do not dominate each other.

    Args:
        costs: (n,) costs: lower is better.
        scores: (n,) scores: higher is better.
    """
    cost, score = np.asarray(costs, np.float64), np.asarray(scores, np.float64)
    order = np.lexsort((np.arange(len(cost)), -score, cost))
    members: list[int] = []
    best, best_cost = -np.inf, -np.inf
    for index in order:
        if score[index] > best or (score[index] == best and cost[index] == best_cost):
            members.append(int(index))
            best, best_cost = score[index], cost[index]
    return members


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """A group of seeds with what the analysis compares.

    Attributes:
        record: Its record.
        scores: Split -> {seed: the score, with what pairs it by example}; without the seeds that have no score.
        direction: 1 if a higher score is better, -1 if a lower one is.
        pooled: Split -> the spreads over seeds of the differences of groups.
    """

    record: GroupRecord
    scores: Mapping[str, Mapping[int, PairedScore]]
    direction: int
    pooled: Mapping[str, SeedPool]

    def value(self, split: str) -> float | None:
        """Return the mean score on a split, so that higher is better; None if there is none."""
        mean = self.record.scores[split].mean if split in self.record.scores else None
        return None if mean is None else self.direction * mean

    def minus(self, other: "Group", split: str, comparisons: int = 1) -> SeedDifference | None:
        """Return the difference of the mean scores on the seeds that both have; None if there are none.

        It has no interval, but the reason, if the scores cannot be paired by example.
        """
        mine, others = self.scores.get(split, {}), other.scores.get(split, {})
        seeds = [seed for seed in mine if seed in others]
        if not seeds:
            return None
        return difference_of(
            [mine[seed] for seed in seeds],
            [others[seed] for seed in seeds],
            comparisons=max(1, comparisons),
            pooled=_spread_between(self.pooled, split, self.record.group, other.record.group),
        )


def _spread_between(pooled: Mapping[str, SeedPool], split: str, one: str, other: str) -> SeedSpread | None:
    return pooled[split].spread(one, other) if split in pooled else None


def groups_of(points: Sequence[PointRecord], references: Sequence[PointRecord] = ()) -> list[Group]:
    """Return the points without their seeds, in the order of the points.

    Args:
        points: The points.
        references: Points outside of the grid that `PointRecord.reference` may name.
    """
    by_id = {point.id: point for point in (*references, *points)}
    by_group: dict[str, list[PointRecord]] = {}
    for point in points:
        by_group.setdefault(point.group, []).append(point)
    compared_with = {
        by_id[point.reference].group for point in points if point.reference is not None and point.reference in by_id
    }
    pooled = seed_pools(points, references)
    return [_group(members, by_id, members[0].group in compared_with, pooled) for members in by_group.values()]


def seed_pools(points: Sequence[PointRecord], references: Sequence[PointRecord] = ()) -> dict[str, SeedPool]:
    """Return split -> the spreads over seeds of the differences of groups; see `tfq.sweep.seed_pool`.

    Args:
        points: The points.
        references: Points outside of the grid that others are compared with.
    """
    by_group: dict[str, list[PointRecord]] = {}
    for point in (*references, *points):
        by_group.setdefault(point.group, []).append(point)
    seeds = {point.seed for members in by_group.values() for point in members}
    splits = dict.fromkeys(split for members in by_group.values() for point in members for split in point.scores)
    return {
        split: SeedPool([_member(sorted(points, key=_seed), split, len(seeds)) for points in by_group.values()])
        for split in splits
    }


def _seed(point: PointRecord) -> int:
    return point.seed


def _member(points: Sequence[PointRecord], split: str, num_seeds: int) -> Member:
    """Return a group in the pool of a split, without scores if a seed is missing."""
    scores = [point.scores[split].value for point in points if split in point.scores]
    known = [score for score in scores if score is not None]
    models = tuple(point.trained_model for point in points)
    return Member(
        name=points[0].group,
        family=points[0].family,
        model=points[0].group if None in models else models,
        scores=np.asarray(known, np.float64) if len(known) == num_seeds else None,
    )


def _group(
    points: Sequence[PointRecord],
    by_id: Mapping[str, PointRecord],
    is_reference: bool,
    pooled: Mapping[str, SeedPool],
) -> Group:
    done = [point for point in points if point.status == DONE]
    splits = list(dict.fromkeys(split for point in done for split in point.scores))
    costs = list(dict.fromkeys(name for point in done for name in point.costs))
    missing = {str(point.seed): str(point.reason) for point in points if point.status != DONE}
    why = next(iter(missing.values()), None)
    differences = {split: _from_references(done, by_id, split, pooled) for split in splits}
    record = GroupRecord(
        group=points[0].group,
        axes=points[0].axes,
        seeds=tuple(point.seed for point in done),
        missing=missing,
        scores={
            split: _spread([(point.scores[split].value, point.scores[split].reason) for point in done], why)
            for split in splits
        },
        costs={
            name: _spread(
                [(cost.value, cost.reason) for cost in (point.costs.get(name, _NO_COST) for point in done)], why
            )
            for name in costs
        },
        differences=differences,
        is_reference=is_reference,
        others={split: _others(done, by_id, split) for split in splits},
    )
    scores = {
        split: {point.seed: paired for point in done if (paired := _paired(point, split)) is not None}
        for split in splits
    }
    directions = [score.direction for point in done for score in point.scores.values()]
    return Group(record=record, scores=scores, direction=-1 if directions[:1] == ["lower"] else 1, pooled=pooled)


def _others(points: Sequence[PointRecord], by_id: Mapping[str, PointRecord], split: str) -> dict[str, OtherSpread]:
    """Return the metrics other than the main one of the points of a group."""
    known = {
        name: item for point in points if split in point.scores for name, item in point.scores[split].others.items()
    }
    results = {}
    for name, item in known.items():
        measured = [point.scores[split].others.get(name) if split in point.scores else None for point in points]
        values = [None if each is None else each.value for each in measured]
        results[name] = OtherSpread(
            unit=item.unit,
            direction=item.direction,
            value=_spread([(value, "a seed has no value") for value in values], None),
            difference=_from_references(points, by_id, split, {}, name),
        )
    return results


def _from_references(
    points: Sequence[PointRecord],
    by_id: Mapping[str, PointRecord],
    split: str,
    pooled: Mapping[str, SeedPool],
    metric: str = "",
) -> dict[str, Any] | None:
    """Return the mean difference of points from their references as JSON values; None if no pair has results.

    Args:
        points: The points of a group.
        by_id: All points.
        split: The split.
        pooled: The spreads over seeds of the main metric; may be empty.
        metric: The metric; "" for the main one.
    """
    pairs, spread = [], None
    for point in points:
        other = by_id.get(point.reference or "")
        mine, base = _paired(point, split, metric), None if other is None else _paired(other, split, metric)
        if mine is not None and base is not None:
            pairs.append((mine, base))
            spread = _spread_between(pooled, split, point.group, other.group if other else "")
    if not pairs:
        return None
    return difference_of([mine for mine, _ in pairs], [base for _, base in pairs], pooled=spread).to_dict()


def _paired(point: PointRecord, split: str, metric: str = "") -> PairedScore | None:
    """Return a metric of a point, "" for the main one, with what pairs it by example; None without a value."""
    score = point.scores.get(split)
    return None if score is None else score.paired(metric)


def _spread(values: Sequence[tuple[float | None, str | None]], why: str | None) -> Spread:
    numbers = [value for value, _ in values if value is not None]
    if len(numbers) < len(values) or not values:
        return Spread(mean=None, reason=next((reason for value, reason in values if value is None), why))
    return Spread(
        mean=statistics.fmean(numbers),
        std=statistics.stdev(numbers) if len(numbers) > 1 else None,
        low=min(numbers),
        high=max(numbers),
    )


def front_of(groups: Sequence[Group], cost: str, split: str) -> Front:
    """Return the Pareto front of the mean score on a split against one mean cost.

    Args:
        groups: The groups.
        cost: The name of the cost.
        split: The split of the scores.
    """
    left_out: dict[str, str] = {}
    compared: list[tuple[Group, float, float]] = []
    for group in groups:
        spread, value = group.record.costs.get(cost), group.value(split)
        if spread is None or spread.mean is None:
            left_out[group.record.group] = (spread.reason if spread else None) or _why_missing(group) or f"no {cost}"
        elif value is None:
            score = group.record.scores.get(split)
            left_out[group.record.group] = (score.reason if score else None) or f"no score on {split}"
        else:
            compared.append((group, spread.mean, value))
    if not compared:
        reason = next(iter(left_out.values()), "there are no points")
        return Front(cost=cost, split=split, members=(), possible={}, left_out=left_out, reason=reason)
    chosen = pareto_front([price for _, price, _ in compared], [value for _, _, value in compared])
    steps = len(chosen) - 1
    members = [
        _front_member(compared, index, compared[before][0] if before is not None else None, steps, split)
        for before, index in zip([None, *chosen], chosen, strict=False)
    ]
    return Front(
        cost=cost,
        split=split,
        members=tuple(members),
        possible=_possible(compared, chosen, split),
        left_out=left_out,
    )


def _why_missing(group: Group) -> str | None:
    return next(iter(group.record.missing.values()), None)


def _front_member(
    compared: Sequence[tuple[Group, float, float]], index: int, before: Group | None, steps: int, split: str
) -> FrontMember:
    group, price, value = compared[index]
    gain = None if before is None else group.minus(before, split, steps)
    cheaper = [other for other, cost, _ in compared if cost <= price and other is not group]
    noise: list[str] = []
    unknown: dict[str, str] = {}
    for other in cheaper:
        difference = group.minus(other, split, len(cheaper))
        if difference is not None and difference.is_noise:
            noise.append(other.record.group)
        elif difference is None or difference.is_noise is None:
            unknown[other.record.group] = why_no_interval(difference)
    return FrontMember(
        group=group.record.group,
        cost=price,
        score=group.direction * value,
        gain=None if gain is None else gain.to_dict(),
        within_noise=tuple(noise),
        without_interval=unknown,
    )


def why_no_interval(difference: SeedDifference | None) -> str:
    """Return why a difference has no interval."""
    return "no seed has a score of both" if difference is None else str(difference.reason)


def _possible(
    compared: Sequence[tuple[Group, float, float]], chosen: Sequence[int], split: str
) -> dict[str, dict[str, Any]]:
    """Return the dominated groups that are within noise of the best member that costs at most as much."""
    results = {}
    dominated = [index for index in range(len(compared)) if index not in chosen]
    for index in dominated:
        group, price, _ = compared[index]
        affordable = [member for member in chosen if compared[member][1] <= price]
        member = max(affordable, key=lambda each: compared[each][2])
        difference = group.minus(compared[member][0], split, len(dominated))
        if difference is not None and difference.is_noise is not False:
            results[group.record.group] = {
                "member": compared[member][0].record.group,
                "difference": difference.to_dict(),
            }
    return results


# Field of the budget -> the cost that it bounds.
BOUNDED = {
    "max_model_bytes": "model_bytes",
    "max_gzip_bytes": "gzip_bytes",
    "max_arena_bytes": "arena_bytes",
    "max_instructions": "instructions",
    "max_latency_ms": "latency_ms",
}


def bounds_of(budget: SweepBudgetConfig) -> dict[str, float]:
    """Return the bounds on points that are set: field of the budget -> bound."""
    values = {name: getattr(budget, name) for name in (*BOUNDED, "max_accuracy_drop")}
    return {name: value for name, value in values.items() if value is not None}


def missed_bounds(
    group: Group, bounds: Mapping[str, float], split: str, reference: Callable[[Group], float | None]
) -> tuple[str, ...]:
    """Return the bounds that a group misses, as sentences; a missing number misses its bound.

    A cost is that of the most expensive seed; the drop is that of the mean score.

    Args:
        group: The group.
        bounds: The result of `bounds_of`.
        split: The split that chooses.
        reference: (group) -> the mean score of its reference on that split, in the direction of `Group.value`.
    """
    results = []
    for name, bound in bounds.items():
        if name == "max_accuracy_drop":
            value, base = group.value(split), reference(group)
            if value is None or base is None:
                results.append(f"{name}: no score on {split} to compare with the reference")
            elif base - value > bound + ROUNDING:
                results.append(
                    f"{name}: {base - value:.4g} worse than the reference on {split}, at most {bound:g} allowed"
                )
            continue
        spread = group.record.costs.get(BOUNDED[name])
        if spread is None or spread.high is None:
            reason = (spread.reason if spread else None) or _why_missing(group) or "it was not measured"
            results.append(f"{name}: no {BOUNDED[name]}: {reason}")
        elif spread.high > bound + ROUNDING:
            results.append(f"{name}: {spread.high:,.6g}, at most {bound:,.6g} allowed")
    return tuple(results)

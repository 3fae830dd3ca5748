# SPDX-License-Identifier: Apache-2.0
"""The best group of a sweep within its budget, and the sentence that says by how much more than noise."""

from collections.abc import Mapping, Sequence

from tfq.config.sweep import SweepBudgetConfig
from tfq.evaluation.metric_text import change_text, score_text
from tfq.sweep.analysis import BOUNDED, Group, bounds_of, missed_bounds, why_no_interval
from tfq.sweep.record import Best, PointRecord
from tfq.sweep.statistics import SeedDifference


def best_of(
    groups: Sequence[Group],
    budget: SweepBudgetConfig,
    *,
    chosen_on: str,
    reported_on: str,
    references: Mapping[str, Group],
    points: Sequence[PointRecord],
) -> Best:
    """Return the best group within the budget: chosen on one split, compared with the others on another one.

    Args:
        groups: The groups.
        budget: The bounds.
        chosen_on: The split whose mean score chooses.
        reported_on: The split of the scores and intervals of the result.
        references: Group -> the group that it is compared with, for max_accuracy_drop.
        points: The points, for the unit of the metric.
    """
    bounds = bounds_of(budget)
    size = size_compared(bounds)

    def reference(group: Group) -> float | None:
        other = references.get(group.record.group)
        return None if other is None else other.value(chosen_on)

    missed = {group.record.group: missed_bounds(group, bounds, chosen_on, reference) for group in groups}
    for group in groups:
        if group.value(chosen_on) is None:
            why = next(iter(group.record.missing.values()), f"it has no score on {chosen_on}")
            missed[group.record.group] = (*missed[group.record.group], f"not compared: {why}")
    feasible = [group for group in groups if not missed[group.record.group]]
    failed = {name: sentences for name, sentences in missed.items() if sentences}
    unit = next((score.unit for point in points for score in point.scores.values()), "fraction")
    if not feasible:
        return Best(
            sentence=_none_sentence(bounds, failed),
            group=None,
            chosen_on=chosen_on,
            reported_on=reported_on,
            bounds=bounds,
            score=None,
            against={},
            indistinguishable=(),
            cheapest=None,
            size=size,
            missed=failed,
        )
    # If scores are equal, the smallest group; then the first of the grid.
    best = min(feasible, key=lambda group: (-(group.value(chosen_on) or 0.0), _bytes(group, size)))
    others = [group for group in feasible if group is not best]
    against = {group.record.group: best.minus(group, reported_on, len(others)) for group in others}
    same = tuple(name for name, difference in against.items() if difference is not None and difference.is_noise)
    unknown = _without_interval(against)
    alike = [best, *(group for group in others if group.record.group in (*same, *unknown))]
    cheapest = min(alike, key=lambda group: _bytes(group, size))
    score = best.record.scores.get(reported_on)
    return Best(
        sentence=_sentence(best, others, against, same, unknown, cheapest, size, bounds, chosen_on, reported_on, unit),
        group=best.record.group,
        chosen_on=chosen_on,
        reported_on=reported_on,
        bounds=bounds,
        score=None if score is None else vars(score),
        against={name: None if item is None else item.to_dict() for name, item in against.items()},
        indistinguishable=same,
        cheapest=cheapest.record.group,
        size=size,
        missed=failed,
        without_interval=unknown,
    )


def size_compared(bounds: Mapping[str, float]) -> str:
    """Return the cost that "smallest" compares: the size that the budget bounds, of two that of the file.

    Args:
        bounds: The result of `bounds_of`.
    """
    return "gzip_bytes" if "max_gzip_bytes" in bounds and "max_model_bytes" not in bounds else "model_bytes"


def _bytes(group: Group, size: str) -> float:
    spread = group.record.costs.get(size)
    return float("inf") if spread is None or spread.mean is None else spread.mean


def _budget_text(bounds: Mapping[str, float]) -> str:
    if not bounds:
        return "Without bounds"
    names = [
        f"{BOUNDED.get(name, 'accuracy drop').replace('_', ' ')} <= {bound:,.6g}" for name, bound in bounds.items()
    ]
    return f"Within the budget ({', '.join(names)})"


def _none_sentence(bounds: Mapping[str, float], failed: Mapping[str, Sequence[str]]) -> str:
    if not failed:
        return "There are no points to choose from."
    closest = min(failed, key=lambda name: len(failed[name]))
    return (
        f"{_budget_text(bounds)}, no group is left. {closest} misses the fewest bounds: {'; '.join(failed[closest])}."
    )


def _sentence(
    best: Group,
    others: Sequence[Group],
    against: Mapping[str, SeedDifference | None],
    same: Sequence[str],
    unknown: Mapping[str, str],
    cheapest: Group,
    size: str,
    bounds: Mapping[str, float],
    chosen_on: str,
    reported_on: str,
    unit: str,
) -> str:
    name, spread, count = best.record.group, best.record.scores.get(reported_on), len(best.record.seeds)
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    value = score_text(unit, spread.mean) if spread is not None else None
    start = f"{_budget_text(bounds)}, {name} is best on {chosen_on}"
    start += f", with {value} on {reported_on} (mean of {seeds})." if value else f" ({seeds})."
    if not others:
        return f"{start} No other group {'meets the bounds' if bounds else 'has a result'}."
    signed = {name: best.direction * item.difference for name, item in against.items() if item is not None}
    ahead = [name for name in signed if name not in (*same, *unknown) and signed[name] < 0]
    if ahead:
        leader = min(ahead, key=lambda name: signed[name])
        return (
            f"{start} But {leader} is better on {reported_on}: the difference of {name} is "
            f"{_difference_text(against[leader], unit)}, more than noise. Choose on more examples."
        )
    if unknown:
        start = f"{start} {_unknown_text(unknown, len(others))}"
    if len(unknown) == len(others):
        return f"{start} {_smallest_text(best, cheapest, size)}"
    if not same and unknown:
        return f"{start} It is better than the others by more than noise. {_smallest_text(best, cheapest, size)}"
    if not same:
        runner_up = min(signed, key=lambda name: signed[name])
        return (
            f"{start} It is better than {'the only' if len(others) == 1 else 'each'} other group by more than noise: "
            f"the closest is {runner_up}, with a difference of {_difference_text(against[runner_up], unit)}."
        )
    return f"{start} {_same_text(best, same, cheapest, size, len(others))}"


def _same_text(best: Group, same: Sequence[str], cheapest: Group, size: str, others: int) -> str:
    """Return the sentences about groups that are within noise of the best one."""
    which = "the only other group" if others == 1 else f"{len(same)} of {others} other groups"
    return (
        f"It is not better than {which} by more than noise ({_listed(same)}): the 95% interval of each of these "
        f"differences contains 0, together for {others} comparison{'' if others == 1 else 's'}. "
        f"{_smallest_text(best, cheapest, size)}"
    )


def _without_interval(against: Mapping[str, SeedDifference | None]) -> dict[str, str]:
    """Return {group: why} of the differences without an interval."""
    return {
        name: why_no_interval(difference)
        for name, difference in against.items()
        if difference is None or difference.is_noise is None
    }


def _unknown_text(unknown: Mapping[str, str], others: int) -> str:
    """Return the sentence about groups whose difference from the best one has no interval."""
    which = "the only other group" if others == 1 else f"{len(unknown)} of {others} other groups"
    reasons = "; ".join(dict.fromkeys(unknown.values()))
    return (
        f"It is not known whether it is better than {which} by more than noise ({_listed(list(unknown))}), because "
        f"these differences have no interval: {reasons}."
    )


def _smallest_text(best: Group, cheapest: Group, size: str) -> str:
    is_gzip = size == "gzip_bytes"
    if cheapest is best:
        return f"It is also the smallest of these{' after gzip' if is_gzip else ''}."
    return (
        f"The smallest of these is {cheapest.record.group}, with {_bytes(cheapest, size):,.0f} instead of "
        f"{_bytes(best, size):,.0f} {'bytes after gzip' if is_gzip else 'bytes'}."
    )


_LISTED = 4


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _difference_text(difference: SeedDifference | None, unit: str) -> str:
    """Return "+0.62 points (95% interval +0.31 to +0.93, together for 5 comparisons)"."""
    assert difference is not None and difference.low is not None and difference.high is not None
    word, count = " points" if unit == "fraction" else "", difference.comparisons
    value, low, high = (
        change_text(unit, number) for number in (difference.difference, difference.low, difference.high)
    )
    together = f"together for {count} comparison{'' if count == 1 else 's'}"
    return f"{value}{word} (95% interval {low} to {high}, {together})"

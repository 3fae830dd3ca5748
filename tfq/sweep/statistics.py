# SPDX-License-Identifier: Apache-2.0
"""Differences of two groups of models with an interval over the examples and over the seeds."""

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.paired import percentile_interval

CONFIDENCE = 0.95
# Fewer examples give no interval.
_MIN_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class SeedDifference:
    """The mean score of one group of models minus that of another, each with the same seeds, and its interval.

    Attributes:
        difference: The mean over seeds and examples of (first score - second score).
        low: The lower end of the interval; None without one.
        high: The upper end.
        confidence: The confidence of this interval alone.
        comparisons: The number of intervals that hold together with confidence 0.95 (Bonferroni): each has the
            confidence 1 - 0.05 / comparisons.
        std_over_seeds: The sample standard deviation of the seeds' differences; None for one seed.
        pooled_std: The standard deviation over seeds of a difference, pooled over other pairs of groups
            (`tfq.sweep.seed_pool`). The interval uses the larger of the two. None if it was not passed.
        pooled_over: What `pooled_std` is pooled over: "families" (pairs of groups of the same families) or "all" (all
            groups of the sweep). None without it.
        spread_from: The estimate of the spread over seeds that the interval uses: "own", "families" or "all"; None
            for one seed or without an interval.
        method: How the part of the interval over the examples was computed: "student_t", or "bootstrap" for metrics
            that are not means over the examples; "none" without an interval.
        wins: Pairs of example and seed that only the first group gets right; None if scores are not right or wrong.
        losses: Pairs that only the second group gets right.
        num_examples: The number of examples of each seed.
        num_seeds: The number of seeds.
        reason: Why there is no interval; or, for one seed, that it does not include the spread over seeds.
    """

    difference: float
    low: float | None
    high: float | None
    confidence: float
    comparisons: int
    std_over_seeds: float | None
    pooled_std: float | None
    pooled_over: str | None
    spread_from: str | None
    wins: int | None
    losses: int | None
    num_examples: int
    num_seeds: int
    reason: str | None = None
    method: str = "student_t"

    @property
    def is_noise(self) -> bool | None:
        """Whether the interval contains 0; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "is_noise": self.is_noise}


ONE_SEED = "one seed: the interval covers other examples, not other seeds"


# What a spread over seeds is estimated from: the two groups, pairs of the same families, all groups.
OWN, FAMILIES, ALL = "own", "families", "all"


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """The standard deviation over seeds of the difference of two groups.

    Attributes:
        std: The standard deviation.
        freedom: Its degrees of freedom.
        over: What it is pooled over: `FAMILIES` or `ALL`.
    """

    std: float
    freedom: int
    over: str = ALL


def pooled_seed_std(scores: NDArray[np.float64]) -> SeedSpread | None:
    """Return the standard deviation over seeds of the difference of two groups, pooled over all groups.

    The seeds are the blocks of a randomized complete block design: what a seed adds to all groups cancels in a
    difference. The residual mean square of the two-way analysis of variance, with (groups - 1)(seeds - 1) degrees of
    freedom, estimates the variance of the rest, and a difference has twice that variance. This assumes that it is the
    same for all groups.

    Args:
        scores: (groups, seeds) mean scores.

    Returns:
        None for fewer than two groups or seeds.
    """
    num_groups, num_seeds = scores.shape
    if num_groups < 2 or num_seeds < 2:
        return None
    rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0, keepdims=True) + scores.mean()
    freedom = (num_groups - 1) * (num_seeds - 1)
    return SeedSpread(std=math.sqrt(2 * float((rest**2).sum()) / freedom), freedom=freedom)


def seed_difference(
    scores: Sequence[NDArray],
    base_scores: Sequence[NDArray],
    *,
    comparisons: int = 1,
    pooled: SeedSpread | None = None,
) -> SeedDifference:
    """Return the difference of two groups of models that were evaluated on the same examples, paired by seed.

    The variance of the mean difference is the sum of two terms: that over the examples, of the differences averaged
    over the seeds, and that over the seeds, of the differences averaged over the examples. The noise of single pairs of
    example and seed is part of both, so the interval is slightly too wide, never too narrow on that account. It is a
    Student t interval whose degrees of freedom are those of Welch and Satterthwaite (Satterthwaite 1946, "An
    approximate distribution of estimates of variance components"). Few seeds estimate their spread badly, so the spread
    that is pooled over other groups is used where it is larger, with its degrees of freedom. Without it, the interval
    of two seeds is wide, and still contains the true difference in only 91% of simulated cases instead of 95%
    (tests/unit/test_sweep_statistics.py).

    For scores that are right or wrong, half a pair is added to each cell of the table of the two models, as Agresti and
    Min 2005 ("Simple improved confidence intervals for comparing matched proportions") do for one seed; otherwise an
    interval of two models without any different example would have no width. The point estimate is not changed.

    Args:
        scores: For each seed, (n,) whether each example is right, or its score.
        base_scores: The same for the second group, with the seeds in the same order.
        comparisons: The number of intervals that shall hold together.
        pooled: The spread over seeds that is pooled over other groups (`tfq.sweep.seed_pool.SeedPool`); None uses
            only that of these two. One seed uses neither.

    Raises:
        InputError: The numbers of seeds or examples differ, or there are none.
    """
    if not scores or len(scores) != len(base_scores) or len({len(each) for each in (*scores, *base_scores)}) != 1:
        raise InputError(
            f"scores of {[len(each) for each in scores]} and {[len(each) for each in base_scores]} examples: expected "
            "the same seeds and examples for both groups, at least one",
            field="scores",
            got=(len(scores), len(base_scores)),
        )
    is_binary = all(each.dtype.kind == "b" for each in (*scores, *base_scores))
    changes = np.stack(
        [new.astype(np.float64) - base.astype(np.float64) for new, base in zip(scores, base_scores, strict=True)]
    )
    num_seeds, count = changes.shape
    of_seeds, of_examples = changes.mean(axis=1), changes.mean(axis=0)
    difference, confidence = float(changes.mean()), 1 - (1 - CONFIDENCE) / comparisons
    std = float(of_seeds.std(ddof=1)) if num_seeds > 1 else None
    low = high = None
    reason = f"only {count} examples: an interval needs {_MIN_EXAMPLES}" if count < _MIN_EXAMPLES else None
    if reason is None:
        center, over_examples = _mean_and_variance(of_examples, is_binary)
        over_seeds, of_spread = _variance_over_seeds(std, pooled, num_seeds)
        freedom = _degrees_of_freedom((over_examples, count - 1), (over_seeds, of_spread))
        half_width = t_quantile(0.5 + confidence / 2, freedom) * math.sqrt(over_examples + over_seeds)
        # The added pairs move the center a little towards 0; the interval must contain the estimate.
        low, high = min(center - half_width, difference), max(center + half_width, difference)
        reason = ONE_SEED if num_seeds == 1 else None
    return SeedDifference(
        difference=difference,
        low=low,
        high=high,
        confidence=confidence,
        comparisons=comparisons,
        **_spread_fields(std, pooled, has_interval=low is not None),
        wins=int((changes > 0).sum()) if is_binary else None,
        losses=int((changes < 0).sum()) if is_binary else None,
        num_examples=count,
        num_seeds=num_seeds,
        reason=reason,
        method="none" if low is None else "student_t",
    )


def resampled_difference(
    values: Sequence[float],
    base_values: Sequence[float],
    replicates: Sequence[NDArray],
    base_replicates: Sequence[NDArray],
    num_examples: int,
    *,
    comparisons: int = 1,
    pooled: SeedSpread | None = None,
) -> SeedDifference:
    """Return the difference of a metric that is not a mean over the examples, of two groups of models, paired by seed.

    All models were resampled with the same draws (`tfq.evaluation.paired`), so that the difference of two replicates is
    paired by example. The part over the examples is the percentile interval of the replicates' differences, averaged
    over the seeds. Its half below the estimate and its half above it count as the reach of Student's t for a standard
    error, which may differ: so the interval of a skewed metric stays skewed. The variance over the seeds is added as in
    `seed_difference`, on each side. For one seed and one comparison, the result is the percentile interval itself. For
    more comparisons the halves are widened by the ratio of the quantiles of Student's t, because 1,000 draws have too
    few values beyond the percentiles that Bonferroni's correction needs.

    Args:
        values: For each seed, the metric of the first group on all examples.
        base_values: The same for the second group, with the seeds in the same order.
        replicates: For each seed, (num_draws,) the values of the first group for the draws; NaN where it is undefined.
        base_replicates: The same for the second group.
        num_examples: The number of examples.
        comparisons: The number of intervals that shall hold together.
        pooled: As in `seed_difference`.

    Raises:
        InputError: The numbers of seeds or draws differ, or there are none.
    """
    sizes = {len(each) for each in (*replicates, *base_replicates)}
    counts = {len(each) for each in (values, base_values, replicates, base_replicates)}
    if not len(values) or len(counts) != 1 or len(sizes) != 1:
        raise InputError(
            f"replicates of {len(replicates)} and {len(base_replicates)} seeds with {sorted(sizes)} draws: expected "
            "the same seeds and draws for both groups, at least one",
            field="replicates",
            got=(len(replicates), len(base_replicates)),
        )
    num_seeds, confidence = len(values), 1 - (1 - CONFIDENCE) / comparisons
    of_seeds = np.array(values, np.float64) - np.array(base_values, np.float64)
    difference = float(of_seeds.mean())
    of_draws = np.mean([new - base for new, base in zip(replicates, base_replicates, strict=True)], axis=0)
    ends, reason = percentile_interval(of_draws, num_examples)
    std = float(of_seeds.std(ddof=1)) if num_seeds > 1 else None
    low = high = None
    if ends is not None:
        over_seeds, of_spread = _variance_over_seeds(std, pooled, num_seeds)
        unit = t_quantile(0.5 + CONFIDENCE / 2, num_examples - 1)
        reaches = []
        for half in (difference - ends[0], ends[1] - difference):
            # A biased percentile interval may end before the estimate, which the interval must contain.
            over_examples = (max(half, 0.0) / unit) ** 2
            freedom = _degrees_of_freedom((over_examples, num_examples - 1), (over_seeds, of_spread))
            reaches.append(t_quantile(0.5 + confidence / 2, freedom) * math.sqrt(over_examples + over_seeds))
        low, high = difference - reaches[0], difference + reaches[1]
        reason = ONE_SEED if num_seeds == 1 else None
    return SeedDifference(
        difference=difference,
        low=low,
        high=high,
        confidence=confidence,
        comparisons=comparisons,
        **_spread_fields(std, pooled, has_interval=low is not None),
        wins=None,
        losses=None,
        num_examples=num_examples,
        num_seeds=num_seeds,
        reason=reason,
        method="none" if low is None else "bootstrap",
    )


def difference_without_interval(
    values: Sequence[float], base_values: Sequence[float], num_examples: int, reason: str, *, comparisons: int = 1
) -> SeedDifference:
    """Return the difference of the mean values of two groups, with the reason why it has no interval.

    Args:
        values: For each seed, the metric of the first group.
        base_values: The same for the second group, with the seeds in the same order.
        num_examples: The number of examples.
        reason: Why there is no interval.
        comparisons: The number of comparisons that it is one of.
    """
    of_seeds = np.array(values, np.float64) - np.array(base_values, np.float64)
    return SeedDifference(
        difference=float(of_seeds.mean()),
        low=None,
        high=None,
        confidence=1 - (1 - CONFIDENCE) / comparisons,
        comparisons=comparisons,
        std_over_seeds=float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None,
        pooled_std=None,
        pooled_over=None,
        spread_from=None,
        wins=None,
        losses=None,
        num_examples=num_examples,
        num_seeds=len(of_seeds),
        reason=reason,
        method="none",
    )


def _mean_and_variance(values: NDArray[np.float64], is_binary: bool) -> tuple[float, float]:
    """Return the mean of (n,) differences and the variance of that mean.

    If binary, half a difference of 1, half a one of -1, and two halves without a difference are added.
    """
    if not is_binary:
        return float(values.mean()), float(values.var(ddof=1)) / len(values)
    count = len(values) + 2
    mean = float(values.sum()) / count
    return mean, (float((values**2).sum() + 1) / count - mean**2) / count


def _variance_over_seeds(std: float | None, pooled: SeedSpread | None, num_seeds: int) -> tuple[float, int]:
    """Return the variance of a mean over the seeds, and the degrees of freedom of its estimate.

    Args:
        std: The standard deviation over the seeds of these two groups; None with one seed.
        pooled: The spread that is pooled over other groups, which is used if it is larger.
        num_seeds: The number of seeds.
    """
    spread = max(std or 0.0, pooled.std if pooled is not None and std is not None else 0.0)
    return spread**2 / num_seeds, num_seeds - 1 if pooled is None else pooled.freedom


def _spread_fields(std: float | None, pooled: SeedSpread | None, *, has_interval: bool) -> dict[str, Any]:
    """Return the fields of a SeedDifference about the spread over seeds."""
    if std is None:
        return {"std_over_seeds": None, "pooled_std": None, "pooled_over": None, "spread_from": None}
    used = OWN if pooled is None or std > pooled.std else pooled.over
    return {
        "std_over_seeds": std,
        "pooled_std": None if pooled is None else pooled.std,
        "pooled_over": None if pooled is None else pooled.over,
        "spread_from": used if has_interval else None,
    }


def _degrees_of_freedom(*terms: tuple[float, int]) -> float:
    """Return the degrees of freedom of a sum of variances, given each with its own: Welch and Satterthwaite."""
    total = sum(variance for variance, _ in terms)
    if not total:
        return math.inf
    return total**2 / sum(variance**2 / freedom for variance, freedom in terms if variance)


@functools.lru_cache(maxsize=4096)
def t_quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t distribution, for any positive number of degrees of freedom.

    It is found by bisection of the distribution function, which is a regularized incomplete beta function (Abramowitz
    and Stegun, 26.7.1).

    Args:
        probability: Between 0.5 and 1, both excluded for 1.
        freedom: The degrees of freedom; infinity gives the normal distribution.
    """
    freedom = min(freedom, 1e8)
    low, high = 0.0, 1.0
    while _t_distribution(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_distribution(value: float, freedom: float) -> float:
    """Return the probability that a t variable is at most `value`, which is not negative."""
    return 1 - 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + value * value))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function, by its continued fraction.

    Source: Abramowitz and Stegun, 26.5.8, evaluated by the method of Lentz 1976.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    d = 1 / max(1 - (a + b) * x / (a + 1), tiny)
    c, result = 1.0, d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + term * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + term / c
            c = c if abs(c) > tiny else tiny
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(logarithm) * result / a

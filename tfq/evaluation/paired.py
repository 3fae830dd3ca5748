# SPDX-License-Identifier: Apache-2.0
"""Paired comparisons: two models on the same examples or in the same run, with the interval of the difference."""

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfq.errors import InputError

PERCENTILES = (50, 90, 99)
QUANTILES = tuple(range(0, 101, 5))


def latency_percentiles(latencies_ms: ArrayLike) -> dict[str, float]:
    """{"latency_p50_ms": ..., "latency_p90_ms": ..., "latency_p99_ms": ...} of (n,) milliseconds, n >= 1.

    Interpolated linearly between the two nearest measurements. Raises InputError on none, NaN or negative ones.
    """
    times = checked_latencies(latencies_ms)
    return {
        f"latency_p{percentile}_ms": float(value)
        for percentile, value in zip(PERCENTILES, np.percentile(times, PERCENTILES), strict=True)
    }


def latency_statistics(latencies_ms: ArrayLike) -> dict[str, object]:
    """mean_ms, std_ms, p50_ms, p90_ms, p99_ms, min_ms, max_ms and quantiles_ms of (n,) milliseconds, n >= 1.

    std_ms: of the sample (over n - 1); None of a single one. quantiles_ms: 21 values, 0 to 100 % in steps of 5.
    Percentiles as in `latency_percentiles`; raises what it raises.
    """
    times = checked_latencies(latencies_ms)
    percentiles = latency_percentiles(times)
    return {
        "mean_ms": float(times.mean()),
        "std_ms": float(times.std(ddof=1)) if times.size > 1 else None,
        **{f"p{percentile}_ms": percentiles[f"latency_p{percentile}_ms"] for percentile in PERCENTILES},
        "min_ms": float(times.min()),
        "max_ms": float(times.max()),
        "quantiles_ms": [float(value) for value in np.percentile(times, QUANTILES)],
    }


def checked_latencies(latencies_ms: ArrayLike) -> NDArray[np.float64]:
    """The latencies as float64 (n,), n >= 1. Raises InputError on none, NaN, infinite or negative ones."""
    times = np.asarray(latencies_ms, np.float64)
    if times.ndim != 1 or not times.size or not ((times >= 0) & np.isfinite(times)).all():
        raise InputError(
            f"latencies of shape {times.shape}: expected at least one, each a number of milliseconds >= 0",
            field="latencies",
            got=times.shape,
        )
    return times


CONFIDENCE = 0.95
FEWEST_PAIRS = 5


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """`ratio` of two times, and the interval that holds the true one in `confidence` of all such measurements.

    low, high: None where there were too few blocks for an interval, and then `reason` says so.
    """

    ratio: float
    low: float | None
    high: float | None
    confidence: float = CONFIDENCE
    reason: str | None = None


def paired_ratio(times: ArrayLike, base_times: ArrayLike) -> Ratio:
    """The ratio of `times` to `base_times`, both (rounds,): the means of blocks that were timed round by round.

    Each round gives the logarithm of a ratio, in which the speed of the machine at that moment cancels. Rounds 2i and
    2i + 1 have opposite orders, so that in their mean a steady drift from block to block cancels too; these means are
    the sample of a Student t interval. Where neighbours among them are alike (a disturbance that lasts, and weighs on
    one of the two more), they count as fewer: n (1 - r) / (1 + r), r their correlation at lag 1, the size of an AR(1)
    sample of as much information (Bayley and Hammersley 1946). Raises InputError on times that are no pairs of
    positive numbers.
    """
    ours, base = (np.asarray(values, np.float64) for values in (times, base_times))
    if ours.ndim != 1 or ours.shape != base.shape or not ours.size:
        raise InputError(
            f"blocks of shapes {ours.shape} and {base.shape}: expected as many rounds of both, at least one",
            field="blocks",
            got=(ours.shape, base.shape),
        )
    if not all(((values > 0) & np.isfinite(values)).all() for values in (ours, base)):
        raise InputError(
            "the times of blocks: expected positive, finite numbers",
            field="blocks",
            expected="positive, finite numbers",
        )
    logs = np.log(ours / base)
    pairs = logs[: len(logs) // 2 * 2].reshape(-1, 2).mean(axis=1)
    if len(pairs) < FEWEST_PAIRS:
        reason = (
            f"{len(logs)} blocks of each: an interval wants {2 * FEWEST_PAIRS} (more benchmark.num_runs or "
            "benchmark.min_secs)"
        )
        return Ratio(ratio=math.exp(logs.mean()), low=None, high=None, reason=reason)
    center, size = float(pairs.mean()), _independent(pairs)
    reach = student_t(0.5 + CONFIDENCE / 2, size - 1) * float(pairs.std(ddof=1)) / math.sqrt(size)
    return Ratio(ratio=math.exp(center), low=math.exp(center - reach), high=math.exp(center + reach))


def student_t(probability: float, freedom: float) -> float:
    """The quantile of Student's t with `freedom` >= 2 degrees, within 0.5 % up to a probability of 0.975 from 3 on.

    The normal quantile's expansion in 1 / freedom. Source: Abramowitz and Stegun, 26.7.5.
    """
    z = statistics.NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def _independent(values: NDArray[np.float64]) -> float:
    """How many independent values `values` are worth: their number, or fewer where neighbours are alike."""
    centered = values - values.mean()
    spread = float(np.sum(centered**2))
    if not spread:
        return float(len(values))
    correlation = float(np.sum(centered[1:] * centered[:-1])) / spread
    return max(FEWEST_PAIRS - 1, len(values) * min(1, (1 - correlation) / (1 + correlation)))


# The quantile of the normal distribution that belongs to it.
_QUANTILE = 1.959964


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Accuracy of one model less that of another, a fraction, and the interval that holds the true one 95 times in 100.

    wins, losses: examples that one, and that the other alone gets right.
    """

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    num_examples: int

    @property
    def is_noise(self) -> bool:
        """Whether no difference at all is within the interval."""
        return self.low <= 0 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "confidence": CONFIDENCE, "is_noise": self.is_noise}


def paired_difference(right: NDArray[np.bool_], base_right: NDArray[np.bool_]) -> PairedDifference:
    """right, base_right: (n,) of the same examples: whether each model's answer is the label.

    Only examples on which the two differ tell anything; the interval is the score interval of that paired difference,
    which holds for few of them as well.
    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17.
    Raises InputError unless there is at least one example, and as many of both.
    """
    if right.shape != base_right.shape or right.ndim != 1 or not right.size:
        raise InputError(
            f"answers of shapes {right.shape} and {base_right.shape}: expected as many of both, at least one",
            field="answers",
            got=(right.shape, base_right.shape),
        )
    wins, losses = int((right & ~base_right).sum()), int((base_right & ~right).sum())
    count = right.size
    low, high = (_bound(wins, losses, count, sign) for sign in (-1, 1))
    return PairedDifference(
        difference=(wins - losses) / count, low=low, high=high, wins=wins, losses=losses, num_examples=count
    )


def _bound(wins: int, losses: int, count: int, sign: int) -> float:
    """The difference furthest from what was seen, downwards or upwards, whose score is still within the quantile."""
    seen = (wins - losses) / count
    near, far = seen, float(sign)
    for _ in range(60):
        middle = (near + far) / 2
        if _score(wins, losses, count, middle) * -sign <= _QUANTILE:
            near = middle
        else:
            far = middle
    return near


def _score(wins: int, losses: int, count: int, difference: float) -> float:
    """Tango's score of a supposed difference; 0 at what was seen."""
    b = -wins - losses + (2 * count - wins + losses) * difference
    c = -losses * difference * (1 - difference)
    fraction = (math.sqrt(max(b * b - 8 * count * c, 0)) - b) / (4 * count)
    variance = count * (2 * fraction + difference * (1 - difference))
    off = wins - losses - count * difference
    if variance <= 1e-12:
        return 0.0 if abs(off) < 1e-12 else math.copysign(math.inf, off)
    return off / math.sqrt(variance)

# SPDX-License-Identifier: Apache-2.0
"""Paired comparisons of two models on the same examples or in the same run, with confidence intervals."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfq.errors import InputError

PERCENTILES = (50, 90, 99)
QUANTILES = tuple(range(0, 101, 5))


def latency_percentiles(latencies_ms: ArrayLike) -> dict[str, float]:
    """Return {"latency_p50_ms": ..., "latency_p90_ms": ..., "latency_p99_ms": ...} of (n,) milliseconds, n >= 1.

    Percentiles are interpolated linearly between the two nearest measurements.

    Raises:
        InputError: There is no latency, or one is NaN, infinite or negative.
    """
    times = checked_latencies(latencies_ms)
    return {
        f"latency_p{percentile}_ms": float(value)
        for percentile, value in zip(PERCENTILES, np.percentile(times, PERCENTILES), strict=True)
    }


def latency_statistics(latencies_ms: ArrayLike) -> dict[str, object]:
    """Return mean_ms, std_ms, p50_ms, p90_ms, p99_ms, min_ms, max_ms and quantiles_ms of (n,) milliseconds, n >= 1.

    `std_ms` is the sample standard deviation (n - 1), None for a single measurement. `quantiles_ms` are 21 values, 0 to
    100% in steps of 5. Percentiles are as in `latency_percentiles`.

    Raises:
        InputError: There is no latency, or one is NaN, infinite or negative.
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
    """Return the latencies as float64 (n,), n >= 1.

    Raises:
        InputError: There is no latency, or one is NaN, infinite or negative.
    """
    times = np.asarray(latencies_ms, np.float64)
    if times.ndim != 1 or not times.size or not ((times >= 0) & np.isfinite(times)).all():
        raise InputError(
            f"latencies of shape {times.shape}: expected at least one number of milliseconds, all finite and >= 0",
            field="latencies",
            got=times.shape,
        )
    return times


CONFIDENCE = 0.95
MIN_PAIRS = 5


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The ratio of two times and its confidence interval.

    Args:
        ratio: The ratio.
        low: The lower end of the interval; None if there were too few blocks.
        high: Its upper end.
        confidence: The fraction of such intervals that contain the true ratio.
        reason: Why there is no interval.
    """

    ratio: float
    low: float | None
    high: float | None
    confidence: float = CONFIDENCE
    reason: str | None = None


def paired_ratio(times: ArrayLike, base_times: ArrayLike) -> Ratio:
    """Return the ratio of `times` to `base_times`, both (rounds,): mean times of blocks, two in each round.

    Each round gives the logarithm of a ratio, in which the momentary speed of the machine cancels. Rounds 2i and 2i + 1
    run in opposite order, so that a steady drift from block to block cancels in their mean. These means are the sample
    of a Student t interval. If neighboring means are correlated (by a disturbance that lasts and affects one model
    more), the
    sample counts as smaller: n (1 - r) / (1 + r), where r is the correlation at lag 1. This is the size of an
    independent sample with as much information as an AR(1) sample (Bayley and Hammersley 1946).

    Raises:
        InputError: The times are not pairs of positive numbers.
    """
    model_times, base = (np.asarray(values, np.float64) for values in (times, base_times))
    if model_times.ndim != 1 or model_times.shape != base.shape or not model_times.size:
        raise InputError(
            f"blocks of shapes {model_times.shape} and {base.shape}: expected the same number of rounds, at least one",
            field="blocks",
            got=(model_times.shape, base.shape),
        )
    if not all(((values > 0) & np.isfinite(values)).all() for values in (model_times, base)):
        raise InputError(
            "the times of blocks are not all positive and finite",
            field="blocks",
            expected="positive, finite numbers",
        )
    logs = np.log(model_times / base)
    pairs = logs[: len(logs) // 2 * 2].reshape(-1, 2).mean(axis=1)
    if len(pairs) < MIN_PAIRS:
        reason = (
            f"only {len(logs)} blocks of each model; an interval needs {2 * MIN_PAIRS}. Increase benchmark.num_runs "
            "or benchmark.min_secs"
        )
        return Ratio(ratio=math.exp(logs.mean()), low=None, high=None, reason=reason)
    center, size = float(pairs.mean()), _effective_size(pairs)
    half_width = student_t(0.5 + CONFIDENCE / 2, size - 1) * float(pairs.std(ddof=1)) / math.sqrt(size)
    return Ratio(ratio=math.exp(center), low=math.exp(center - half_width), high=math.exp(center + half_width))


def student_t(probability: float, degrees_of_freedom: float) -> float:
    """Return a quantile of Student's t distribution with `degrees_of_freedom` >= 2 degrees of freedom.

    It is the expansion of the normal quantile in 1 / freedom, accurate to 0.5% for probabilities up to 0.975 and 3
    degrees or more. Source: Abramowitz and Stegun, 26.7.5.
    """
    z = statistics.NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees_of_freedom**power for power, term in enumerate(terms))


def _effective_size(values: NDArray[np.float64]) -> float:
    """Return how many independent values contain as much information: fewer if neighboring values are correlated."""
    centered = values - values.mean()
    spread = float(np.sum(centered**2))
    if not spread:
        return float(len(values))
    correlation = float(np.sum(centered[1:] * centered[:-1])) / spread
    return max(MIN_PAIRS - 1, len(values) * min(1, (1 - correlation) / (1 + correlation)))


# The quantile of the normal distribution for this confidence.
_QUANTILE = 1.959964


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A metric of one model minus that of another on the same examples, with its 95% confidence interval.

    Args:
        difference: The difference, in the metric's unit.
        low: The lower end of the interval; None without one.
        high: The upper end of the interval; None without one.
        num_examples: The number of examples.
        method: How the interval was computed: "score" (of two paired fractions), "student_t" (of a mean of paired
            differences) or "bootstrap" (percentiles of resampled examples); "none" without one.
        wins: Examples that only the first model gets right; None if examples are not right or wrong.
        losses: Examples that only the second model gets right; None as for `wins`.
        num_draws: The number of resamples of a bootstrap that are defined for both models; None for another method.
    """

    difference: float
    low: float | None
    high: float | None
    num_examples: int
    method: str = "score"
    wins: int | None = None
    losses: int | None = None
    num_draws: int | None = None

    @property
    def is_noise(self) -> bool:
        """Whether there is an interval and it contains 0."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "confidence": CONFIDENCE, "is_noise": self.is_noise}


def paired_difference(is_correct: NDArray[np.bool_], base_is_correct: NDArray[np.bool_]) -> PairedDifference:
    """Return the difference in accuracy of two models on the same examples.

    Only examples on which the models differ contribute. The score interval of a paired difference is also valid if
    there are few of them.
    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17.

    Args:
        is_correct: (n,) whether the first model is right for each example.
        base_is_correct: (n,) the same for the second model.

    Raises:
        InputError: There are no examples, or the lengths differ.
    """
    if is_correct.shape != base_is_correct.shape or is_correct.ndim != 1 or not is_correct.size:
        raise InputError(
            f"answers of shapes {is_correct.shape} and {base_is_correct.shape}: expected the same number for both "
            "models, at least one",
            field="answers",
            got=(is_correct.shape, base_is_correct.shape),
        )
    wins, losses = int((is_correct & ~base_is_correct).sum()), int((base_is_correct & ~is_correct).sum())
    count = is_correct.size
    low, high = (_bound(wins, losses, count, sign) for sign in (-1, 1))
    return PairedDifference(
        difference=(wins - losses) / count, low=low, high=high, wins=wins, losses=losses, num_examples=count
    )


def _bound(wins: int, losses: int, count: int, sign: int) -> float:
    """Return the lowest (sign -1) or highest (sign 1) difference whose score is within the quantile."""
    observed = (wins - losses) / count
    near, far = observed, float(sign)
    for _ in range(60):
        middle = (near + far) / 2
        if _score(wins, losses, count, middle) * -sign <= _QUANTILE:
            near = middle
        else:
            far = middle
    return near


def _score(wins: int, losses: int, count: int, difference: float) -> float:
    """Return Tango's score of an assumed difference; it is 0 for the observed one."""
    b = -wins - losses + (2 * count - wins + losses) * difference
    c = -losses * difference * (1 - difference)
    fraction = (math.sqrt(max(b * b - 8 * count * c, 0)) - b) / (4 * count)
    variance = count * (2 * fraction + difference * (1 - difference))
    deviation = wins - losses - count * difference
    if variance <= 1e-12:
        return 0.0 if abs(deviation) < 1e-12 else math.copysign(math.inf, deviation)
    return deviation / math.sqrt(variance)


def mean_difference(scores: NDArray, base_scores: NDArray) -> PairedDifference | None:
    """Return the difference of the means of two (n,) scores of the same examples; None for fewer than `MIN_PAIRS`.

    The interval is that of Student's t for the mean of the paired differences. Booleans are compared by
    `paired_difference`.

    Raises:
        InputError: There are no examples, or the lengths differ.
    """
    if scores.dtype.kind == "b" and base_scores.dtype.kind == "b":
        return paired_difference(scores, base_scores)
    changes = scores.astype(np.float64) - base_scores.astype(np.float64)
    if len(changes) < MIN_PAIRS:
        return None
    value = float(changes.mean())
    half_width = student_t(0.5 + CONFIDENCE / 2, len(changes) - 1) * float(changes.std(ddof=1) / np.sqrt(len(changes)))
    return PairedDifference(
        difference=value,
        low=value - half_width,
        high=value + half_width,
        num_examples=len(changes),
        method="student_t",
    )


def mean_interval(scores: NDArray) -> tuple[float, float] | None:
    """Return the 95% Student t interval of the mean of (n,) scores; None for fewer than `MIN_PAIRS`."""
    if len(scores) < MIN_PAIRS:
        return None
    values = scores.astype(np.float64)
    half_width = student_t(0.5 + CONFIDENCE / 2, len(values) - 1) * float(values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half_width, float(values.mean()) + half_width


NUM_DRAWS = 1000
# Fewer examples have too few different resamples for percentiles at 2.5% and 97.5%.
MIN_RESAMPLED = 10
# More examples get fewer draws, so that the work of a bootstrap stays bounded. Their intervals are narrow.
_MOST_DRAWN, _MIN_DRAWS = 200_000_000, 200
# The fraction of the draws for which a metric must be defined.
_MIN_DEFINED = 0.95
_SEED = 0x7F9


def num_draws(num_examples: int) -> int:
    """Return the number of draws of a bootstrap: 1,000, and fewer (at least 200) above 200,000 examples."""
    return max(_MIN_DRAWS, min(NUM_DRAWS, _MOST_DRAWN // max(1, num_examples)))


def resampled_weights(num_examples: int, draws: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Yield, for each draw of a bootstrap, how often each of n examples was drawn, (n,) with the sum n.

    The weights depend on n only, so that the draws of two evaluations of the same examples are paired. They come from
    the raw output of PCG64, which NumPy promises not to change.

    Args:
        num_examples: n.
        draws: The number of draws; None for `num_draws(n)`.
    """
    generator = np.random.PCG64(_SEED)
    for _ in range(num_draws(num_examples) if draws is None else draws):
        # The upper 32 bits, scaled to [0, n). The bias is below n / 2^32.
        drawn = ((generator.random_raw(num_examples) >> np.uint64(32)) * np.uint64(num_examples)) >> np.uint64(32)
        yield np.bincount(drawn.astype(np.int64), minlength=num_examples)


def replicates(
    measures: Sequence[Callable[[NDArray[np.int64]], float]], num_examples: int, draws: int | None = None
) -> list[NDArray[np.float64]]:
    """Return for each measure its values for `resampled_weights`, (draws,); NaN where it is not defined.

    Args:
        measures: Functions weights (n,) -> a metric as if example i occurred weights[i] times.
        num_examples: n.
        draws: The number of draws; None for `num_draws(n)`.
    """
    rows = [[measure(weights) for measure in measures] for weights in resampled_weights(num_examples, draws)]
    return list(np.array(rows, np.float64).reshape(-1, len(measures)).T)


def bootstrap_difference(
    value: float, base_value: float, replicates: NDArray, base_replicates: NDArray, num_examples: int
) -> tuple[PairedDifference | None, str | None]:
    """Return the difference of a metric of two models with its bootstrap interval; or None and the reason.

    The interval consists of the percentiles 2.5 and 97.5 of the differences of the replicates, which pair the models in
    each draw.
    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    Args:
        value: The metric of the first model on all examples.
        base_value: That of the second model.
        replicates: The first model's result of `replicates`.
        base_replicates: The second model's, for the same examples and draws.
        num_examples: The number of examples.
    """
    ends, reason = percentile_interval(replicates - base_replicates, num_examples)
    if ends is None:
        return None, reason
    return PairedDifference(
        difference=value - base_value,
        low=ends[0],
        high=ends[1],
        num_examples=num_examples,
        method="bootstrap",
        num_draws=int(np.isfinite(replicates - base_replicates).sum()),
    ), None


def percentile_interval(values: NDArray, num_examples: int) -> tuple[tuple[float, float] | None, str | None]:
    """Return the percentiles 2.5 and 97.5 of replicates or of their differences; or None and the reason.

    Args:
        values: (num_draws,) replicates; NaN where the metric is not defined.
        num_examples: The number of examples that were resampled.
    """
    if num_examples < MIN_RESAMPLED:
        return None, f"only {num_examples} examples; a bootstrap interval needs {MIN_RESAMPLED}"
    defined = values[np.isfinite(values)]
    if len(defined) < _MIN_DEFINED * len(values):
        return None, (
            f"the metric is not defined for {len(values) - len(defined):,} of {len(values):,} resamples of the "
            "examples. Evaluate more examples"
        )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return (float(low), float(high)), None

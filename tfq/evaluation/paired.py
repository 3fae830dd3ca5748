# SPDX-License-Identifier: Apache-2.0
"""How much longer one thing takes than another, on a machine whose speed drifts while both are timed."""

import math
import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfq.errors import InputError

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
        raise InputError(f"blocks of shapes {ours.shape} and {base.shape}: wanted as many rounds of both, at least one")
    if not all(((values > 0) & np.isfinite(values)).all() for values in (ours, base)):
        raise InputError("the times of blocks: wanted positive, finite numbers")
    logs = np.log(ours / base)
    pairs = logs[: len(logs) // 2 * 2].reshape(-1, 2).mean(axis=1)
    if len(pairs) < FEWEST_PAIRS:
        reason = f"{len(logs)} blocks of each: an interval wants {2 * FEWEST_PAIRS} (more --num_runs or --min_secs)"
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

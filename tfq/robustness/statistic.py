# SPDX-License-Identifier: Apache-2.0
"""A number over the examples of a condition, with what the interval of its means and differences is computed from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.evaluation.paired import CONFIDENCE, percentile_interval, student_t
from tfq.robustness.record import MIN_EXAMPLES, Estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistic:
    """A metric of one model on n examples under one condition, or a mean or difference of such numbers.

    All conditions and models have the same examples and the same draws, so that means and differences of the arrays are
    paired.

    Attributes:
        value: The number.
        num_examples: n.
        interval: Its interval if the metric defines one, such as that of a fraction; None for means and differences.
        examples: (n,) the score of each example, whose mean is the number; None if it is not a mean.
        draws: (draws,) the values for resampled examples; None if they were not computed.
    """

    value: float
    num_examples: int
    interval: tuple[float, float] | None = None
    examples: NDArray[Any] | None = None
    draws: NDArray[np.float64] | None = None

    def estimate(self) -> tuple[Estimate, str | None]:
        """Return the number with its 95% interval, and why it has none.

        It is the metric's own interval; else Student's t interval of a mean over the examples; else the percentiles of
        the draws, extended to the number itself: a metric that is larger for resampled examples, such as the
        calibration error, may have percentiles above it.
        """
        if self.interval is not None:
            return Estimate(value=self.value, low=self.interval[0], high=self.interval[1]), None
        if self.examples is not None:
            return mean_of(self.examples), None
        if self.draws is None:
            return Estimate(value=self.value), None
        ends, reason = percentile_interval(self.draws, self.num_examples)
        if ends is None:
            return Estimate(value=self.value), reason
        return Estimate(value=self.value, low=min(ends[0], self.value), high=max(ends[1], self.value)), None


def mean_of(values: NDArray[Any]) -> Estimate:
    """Return the mean of values of independent examples, (n,), with Student's t interval.

    An example that is corrupted in many ways counts once: pass its mean. With less than `MIN_EXAMPLES` examples, or
    with values that are all equal, there is no interval.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if len(values) < MIN_EXAMPLES or not spread:
        return Estimate(value=mean)
    half = student_t(0.5 + CONFIDENCE / 2, len(values) - 1) * spread / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def average(parts: Sequence[Statistic | None]) -> Statistic | None:
    """Return the mean of several numbers over the same examples; None if one is missing or there are none."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    examples = [part.examples for part in known if part.examples is not None]
    draws = [part.draws for part in known if part.draws is not None]
    return Statistic(
        value=sum(part.value for part in known) / len(known),
        num_examples=known[0].num_examples,
        examples=np.mean(np.asarray(examples, np.float64), axis=0) if len(examples) == len(known) else None,
        draws=np.mean(draws, axis=0) if len(draws) == len(known) else None,
    )


def minus(one: Statistic | None, other: Statistic | None) -> Statistic | None:
    """Return the difference of two numbers over the same examples; None if one is missing."""
    if one is None or other is None:
        return None
    examples = draws = None
    if one.examples is not None and other.examples is not None:
        examples = np.subtract(one.examples, other.examples, dtype=np.float64)
    if one.draws is not None and other.draws is not None:
        draws = one.draws - other.draws
    return Statistic(value=one.value - other.value, num_examples=one.num_examples, examples=examples, draws=draws)

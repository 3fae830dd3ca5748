# SPDX-License-Identifier: Apache-2.0
"""Two models on the same examples: what one gets right more often, and how much of that may be chance."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError

CONFIDENCE = 0.95
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
            f"answers of shapes {right.shape} and {base_right.shape}: wanted as many of both, at least one"
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
    share = (math.sqrt(max(b * b - 8 * count * c, 0)) - b) / (4 * count)
    variance = count * (2 * share + difference * (1 - difference))
    off = wins - losses - count * difference
    if variance <= 1e-12:
        return 0.0 if abs(off) < 1e-12 else math.copysign(math.inf, off)
    return off / math.sqrt(variance)

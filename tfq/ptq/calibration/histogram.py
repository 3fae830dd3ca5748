# SPDX-License-Identifier: Apache-2.0
"""A histogram of float32 values whose bins are the same for all data: partial ones add up exactly.

The bin of a value is its sign, its exponent and the six highest bits of its mantissa, which are the upper 15 bits of a
float32: 64 bins an octave, each at most 1/64 wider than its lower end. Nothing has to be known of the data first, no
value falls outside, and where two machines, or two orders of the same samples, have counted, the sums are the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError

_MANTISSA_BITS = 6
_SHIFT = 23 - _MANTISSA_BITS
# Below: bins of positive values, by their magnitude. From there on: of negative ones.
_NEGATIVE = 1 << (31 - _SHIFT)
NUM_BINS = 2 * _NEGATIVE
# As many values as are counted at a time: their bins stay in the cache of a core.
_CHUNK = 1 << 16


class Histogram:
    """How many values lie in each bin. counts: int64, (NUM_BINS,): positive bins by magnitude, then negative ones."""

    def __init__(self, counts: NDArray[np.int64] | None = None) -> None:
        self.counts = np.zeros(NUM_BINS, np.int64) if counts is None else counts

    def add(self, values: NDArray[np.float32]) -> None:
        """Count all of `values`, of any shape. They must be finite: whoever adds has seen their minimum and maximum."""
        bits = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
        for start in range(0, bits.size, _CHUNK):
            # bincount wants the platform's own integers, and counts others by a copy.
            result = np.bincount(np.right_shift(bits[start : start + _CHUNK], _SHIFT, dtype=np.uint32).astype(np.intp))
            self.counts[: result.size] += result

    def merge(self, other: "Histogram") -> None:
        """Count what the other one has counted."""
        self.counts += other.counts

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def bins(self) -> "Bins":
        """The bins that hold something, from the lowest value to the highest."""
        (positive,) = np.nonzero(self.counts[:_NEGATIVE])
        (negative,) = np.nonzero(self.counts[_NEGATIVE:])
        negative = negative[::-1]
        return Bins(
            low=np.concatenate([-_edges(negative + 1), _edges(positive)]),
            high=np.concatenate([-_edges(negative), _edges(positive + 1)]),
            counts=np.concatenate([self.counts[_NEGATIVE:][negative], self.counts[:_NEGATIVE][positive]]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the bins that hold something, by number, and what they hold."""
        (filled,) = np.nonzero(self.counts)
        return {"mantissa_bits": _MANTISSA_BITS, "bins": filled.tolist(), "counts": self.counts[filled].tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Histogram":
        """What to_dict gave. Raises InputError on bins that are not these, and on counts below 1."""
        bins, counts = (np.asarray(values[name], np.int64).reshape(-1) for name in ("bins", "counts"))
        if values["mantissa_bits"] != _MANTISSA_BITS:
            raise InputError(
                f"histogram with {values['mantissa_bits']} bits of mantissa: expected {_MANTISSA_BITS}, as this "
                f"version "
                "of tfq counts: observe the data again",
                field="mantissa_bits",
                expected=_MANTISSA_BITS,
                got=values["mantissa_bits"],
            )
        if bins.size != counts.size or not np.isin(bins, np.arange(NUM_BINS)).all() or (counts < 1).any():
            raise InputError(
                f"histogram: expected as many counts of 1 or more as bins from 0 to {NUM_BINS - 1}", field="counts"
            )
        result = cls()
        result.counts[bins] = counts
        return result


@dataclass(frozen=True, eq=False)
class Bins:
    """Bins in ascending order, float64: `counts` values from `low` to `high` each.

    Zero has a bin of its own, of width (almost) 0: what a ReLU cuts off does not hide among small values.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def middle(self) -> NDArray[np.float64]:
        """The value that stands for all of a bin."""
        return (self.low + self.high) / 2

    def without_zero(self) -> "Bins":
        """The bins without that of zero, which every int8 grid represents exactly."""
        kept = np.maximum(np.abs(self.low), np.abs(self.high)) > _edges(np.array([1]))[0]
        return Bins(self.low[kept], self.high[kept], self.counts[kept])

    def quantile(self, share: float) -> float:
        """The value below which `share` of all values lie; those of a bin are taken as spread evenly over it.

        Raises InputError on a share outside [0, 1] and where nothing was counted.
        """
        if not 0 <= share <= 1 or not self.counts.size:
            raise InputError(
                f"quantile {share} of {self.counts.sum()} values: expected 0 to 1, of at least one value",
                field="share",
                expected=(0, 1),
                got=share,
            )
        reached = np.cumsum(self.counts)
        wanted = share * reached[-1]
        index = min(int(np.searchsorted(reached, wanted)), reached.size - 1)
        inside = 1 - (reached[index] - wanted) / self.counts[index]
        return float(self.low[index] + inside * (self.high[index] - self.low[index]))

    def outside(self, minimum: float, maximum: float) -> float:
        """The share of all values that lie beyond the ends; those of a bin that an end cuts are spread evenly."""
        width = np.maximum(self.high - self.low, math.ulp(0.0))
        with np.errstate(over="ignore"):  # of bins next to zero, which are narrower than float64 can divide by
            below = np.clip((minimum - self.low) / width, 0, 1)
            above = np.clip((self.high - maximum) / width, 0, 1)
        return float((self.counts * np.minimum(below + above, 1)).sum() / max(1, self.counts.sum()))


def _edges(magnitudes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The lower ends of the positive bins of these numbers; of the one past the last it is the largest float32."""
    ends = (magnitudes.astype(np.uint32) << np.uint32(_SHIFT)).view(np.float32).astype(np.float64)
    return np.minimum(ends, np.finfo(np.float32).max)

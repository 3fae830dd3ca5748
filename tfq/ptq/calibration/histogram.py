# SPDX-License-Identifier: Apache-2.0
"""A histogram of float32 values with the same bins for all data, so that partial histograms add up exactly.

The bin of a value is given by its sign, its exponent and the six highest bits of its mantissa, which are the upper 15
bits of a float32. There are 64 bins per octave, and the width of a bin is at most 1/64 of its lower end. The range of
the data need not be known in advance, every value has a bin, and the counts do not depend on the order of the samples
or on how they are distributed over machines.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.backends.target.counting import add_counts, ascending
from tfq.errors import InputError

_MANTISSA_BITS = 6
SHIFT = 23 - _MANTISSA_BITS
# The index of the first bin of negative values. Bins of positive values come before it. Both are sorted by magnitude.
_NEGATIVE = 1 << (31 - SHIFT)
NUM_BINS = 2 * _NEGATIVE
# The bins in the ascending order of their values.
_ASCENDING = ascending(NUM_BINS)
# The place of each bin in that order.
_PLACE = np.argsort(_ASCENDING)


class UnknownQuantileError(Exception):
    """A quantile lies in the gap of a histogram."""


class Histogram:
    """A histogram of float32 values.

    Attributes:
        counts: int64, (NUM_BINS,): the number of values in each bin, positive bins by magnitude, then negative bins by
            magnitude.
        gap: (bin, bin) if the values between these two bins are not in `counts`; None if all values are.
        num_missing: How many values that is.
    """

    def __init__(self, counts: NDArray[np.int64] | None = None) -> None:
        """Use `counts`, or start with an empty histogram."""
        self.counts = np.zeros(NUM_BINS, np.int64) if counts is None else counts
        self.gap: tuple[int, int] | None = None
        self.num_missing = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count `values`, of any shape. The caller makes sure that they are finite."""
        add_counts(self.counts, values, SHIFT)

    def merge(self, other: "Histogram") -> None:
        """Add the counts of another histogram. The wider gap stays."""
        total = self.total + other.total
        self.counts += other.counts
        gaps = [_PLACE[list(gap)] for gap in (self.gap, other.gap) if gap is not None]
        if gaps:
            low, high = min(gap[0] for gap in gaps), max(gap[1] for gap in gaps)
            (filled,) = np.nonzero(self.counts)
            self.counts[filled[_is_between(filled, low, high)]] = 0
            self.gap = int(_ASCENDING[low]), int(_ASCENDING[high])
            self.num_missing = total - int(self.counts.sum())

    @classmethod
    def of_counts(
        cls, bins: NDArray[np.integer], counts: NDArray[np.int64], total: int, gap: tuple[int, int] | None
    ) -> "Histogram":
        """Return the histogram of values that another process has counted.

        Args:
            bins: The bins that are not empty.
            counts: The number of values in each.
            total: The number of all values.
            gap: As in the attribute.
        """
        result = cls()
        if gap is not None:
            is_known = ~_is_between(bins, *_PLACE[list(gap)])
            bins, counts = bins[is_known], counts[is_known]
            result.gap, result.num_missing = gap, total - int(counts.sum())
        result.counts[bins] = counts
        return result

    @property
    def total(self) -> int:
        """The number of all values."""
        return int(self.counts.sum()) + self.num_missing

    def bins(self) -> "Bins":
        """Return the bins that are not empty, in ascending order of their values. A gap is one bin."""
        (filled,) = np.nonzero(self.counts)
        places = np.sort(_PLACE[filled])
        counts = self.counts[_ASCENDING[places]]
        low, high = _ends(_ASCENDING[places])
        if self.gap is None or not self.num_missing:
            return Bins(low, high, counts)
        place = int(np.searchsorted(places, _PLACE[self.gap[0]], "right"))
        (_, gap_high), (gap_low, _) = (_ends(np.array(self.gap))[side] for side in (0, 1))
        return Bins(
            low=np.insert(low, place, gap_low),
            high=np.insert(high, place, gap_high),
            counts=np.insert(counts, place, self.num_missing),
            gap=place,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: the indices of the bins that are not empty, and their counts."""
        (filled,) = np.nonzero(self.counts)
        return {"mantissa_bits": _MANTISSA_BITS, "bins": filled.tolist(), "counts": self.counts[filled].tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Histogram":
        """Return the histogram from the result of `to_dict`.

        Raises:
            InputError: The bins are not those of this version of tfq, or a count is below 1.
        """
        bins, counts = (np.asarray(values[name], np.int64).reshape(-1) for name in ("bins", "counts"))
        if values["mantissa_bits"] != _MANTISSA_BITS:
            raise InputError(
                f"histogram: expected bins with {_MANTISSA_BITS} mantissa bits, got {values['mantissa_bits']}. Another "
                "version of tfq recorded it. Observe the data again",
                field="mantissa_bits",
                expected=_MANTISSA_BITS,
                got=values["mantissa_bits"],
            )
        if bins.size != counts.size or not np.isin(bins, np.arange(NUM_BINS)).all() or (counts < 1).any():
            raise InputError(
                f"histogram: expected one count of at least 1 for each bin, and bin indices from 0 to {NUM_BINS - 1}. "
                "The file is damaged. Observe the data again",
                field="counts",
            )
        result = cls()
        result.counts[bins] = counts
        return result


@dataclass(frozen=True, eq=False)
class Bins:
    """Bins of a histogram in ascending order.

    Zero has a separate bin of almost no width, so the zeros after a ReLU do not mix with small values.

    Attributes:
        low: The lower end of each bin.
        high: The upper end of each bin.
        counts: The number of values in each bin.
        gap: The bin with all the values in the middle that were not counted one by one; None if there is none.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.int64]
    gap: int | None = None

    @property
    def centers(self) -> NDArray[np.float64]:
        """The center of each bin, which represents its values."""
        return (self.low + self.high) / 2

    def without_zero(self) -> "Bins":
        """Return all bins except that of zero, because every quantized grid represents zero exactly."""
        nonzero = np.maximum(np.abs(self.low), np.abs(self.high)) > _edges(np.array([1]))[0]
        return Bins(self.low[nonzero], self.high[nonzero], self.counts[nonzero])

    def quantile(self, fraction: float) -> float:
        """Return the value below which `fraction` of all values lie, with values evenly distributed within a bin.

        In the bin of zero it is 0.

        Raises:
            InputError: `fraction` is not in [0, 1], or there are no values.
            UnknownQuantileError: It lies among values that were not counted.
        """
        if not 0 <= fraction <= 1 or not self.counts.size:
            raise InputError(
                f"quantile: expected a fraction from 0 to 1 and at least one value, got {fraction} and "
                f"{self.counts.sum()} values",
                field="fraction",
                expected=(0, 1),
                got=fraction,
            )
        cumulative = np.cumsum(self.counts)
        target = fraction * cumulative[-1]
        index = min(int(np.searchsorted(cumulative, target)), cumulative.size - 1)
        if index == self.gap:
            raise UnknownQuantileError(f"the quantile {fraction} lies among values that were not counted")
        inside = 1 - (cumulative[index] - target) / self.counts[index]
        if max(-self.low[index], self.high[index]) <= _edges(np.array([1]))[0]:
            return 0.0
        return float(self.low[index] + inside * (self.high[index] - self.low[index]))

    def fraction_outside(self, minimum: float, maximum: float) -> float:
        """Return the fraction of values outside [minimum, maximum], with values evenly distributed within a bin."""
        width = np.maximum(self.high - self.low, math.ulp(0.0))
        with np.errstate(over="ignore"):  # Bins next to zero are so narrow that the division overflows.
            below = np.clip((minimum - self.low) / width, 0, 1)
            above = np.clip((self.high - maximum) / width, 0, 1)
        outside = self.counts * np.minimum(below + above, 1)
        # An exact sum does not depend on which of the bins inside are one gap.
        return math.fsum(outside[outside > 0]) / max(1, int(self.counts.sum()))


def _is_between(bins: NDArray[np.integer], low: int, high: int) -> NDArray[np.bool_]:
    """Check which bins lie between two places in the ascending order."""
    places = _PLACE[bins]
    return (places > low) & (places < high)


def _ends(bins: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and the upper ends of bins."""
    inner, outer = _edges(bins % _NEGATIVE), _edges(bins % _NEGATIVE + 1)
    is_negative = bins >= _NEGATIVE
    return np.where(is_negative, -outer, inner), np.where(is_negative, -inner, outer)


def _edges(magnitudes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the lower ends of the positive bins with these indices; past the last bin, the largest float32."""
    ends = (magnitudes.astype(np.uint32) << np.uint32(SHIFT)).view(np.float32).astype(np.float64)
    return np.minimum(ends, np.finfo(np.float32).max)

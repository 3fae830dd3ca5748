# SPDX-License-Identifier: Apache-2.0
"""Count float32 values by bins. Needs only NumPy.

A bin has the values with the same upper bits: float32 bits >> shift. The first bit is the sign, so bins of negative
values come after those of positive ones.

Counting all values costs several times as much as an inference. Quantiles near the ends need only the values near the
ends. So the first values can choose a low and a high bin, beyond which a given fraction of the values lies; later, only
the values there are counted, exactly.
"""

import functools

import numpy as np

# Values processed at a time: as many rows as this, of columns that stay in the cache of a core.
ROWS, COLUMNS = 64, 2048
# A bin at the edge of a tail with more than this fraction of the values is counted without copying its values.
LARGE_BIN = 0.02
# Values whose bins are counted at a time.
PART = 1 << 16
# Fewer values than this are counted one by one, because bincount allocates and adds an array of all bins.
FEW = 4096


@functools.cache
def ascending(num_bins):
    """Return the bins in the ascending order of their values."""
    half = num_bins // 2
    return np.concatenate([np.arange(half, num_bins)[::-1], np.arange(half)])


def bins_of(values, shift):
    """Return the bin of each value."""
    return np.right_shift(values.reshape(-1).view(np.uint32), shift, dtype=np.uint32).astype(np.intp)


def add_counts(counts, values, shift):
    """Add the values, float32 of any shape, to the counts of their bins."""
    values = np.ascontiguousarray(values).reshape(-1)
    for start in range(0, values.size, PART):
        bins = bins_of(values[start : start + PART], shift)
        if bins.size < FEW:
            np.add.at(counts, bins, 1)
        else:
            # bincount copies integers that are not of the platform's native type.
            result = np.bincount(bins)
            counts[: result.size] += result


class Tail:
    """The values in and beyond a bin, at the lower or the upper end."""

    def __init__(self, number, side, is_large, shift):
        """Find the ends of the bin.

        Args:
            number: The number of the bin. Those of 0.0 and -0.0 count as one.
            side: 1 for the upper end, -1 for the lower one.
            is_large: Whether so many values lie in the bin that only those beyond it should be copied.
            shift: As in the request.
        """
        ends = np.array([number << shift, ((number + 1) << shift) - 1], np.uint32).view(np.float32)
        low, high = ends.min(), ends.max()
        if low == 0 or high == 0:
            low, high = -max(-low, high), max(-low, high)
        self.number, self.side, self.is_large, self.shift = number, side, is_large, shift
        self.inner, self.outer = (low, high) if side > 0 else (high, low)

    def add(self, counts, matrix):
        """Count the values of this tail in a matrix, and return the extreme of all values on this side."""
        by_column = matrix.max(axis=0) if self.side > 0 else matrix.min(axis=0)
        extreme = by_column.max() if self.side > 0 else by_column.min()
        if not self.reaches(extreme, self.inner):
            return extreme
        reaches, limit = self.reaches, self.inner
        if self.is_large:
            counts[self.number] += np.count_nonzero(self.reaches(matrix, self.inner))
            reaches, limit = self.exceeds, self.outer
            if not self.exceeds(extreme, self.outer):
                return extreme
        # Few columns have values in the tail.
        (columns,) = np.nonzero(reaches(by_column, limit))
        values = matrix[:, columns]
        values = values[reaches(values, limit)]
        add_counts(counts, values, self.shift)
        if self.is_large:
            counts[self.number] -= values.size
        return extreme

    def reaches(self, values, limit):
        """Check where values are at the limit or beyond it."""
        return values >= limit if self.side > 0 else values <= limit

    def exceeds(self, values, limit):
        """Check where values are beyond the limit."""
        return values > limit if self.side > 0 else values < limit


class Counts:
    """The counts of one tensor.

    Attributes:
        counts: int64, (bins,).
        total: The number of values.
        gap: (low bin, high bin) if the values between these two bins are not in `counts`; None if all are.
    """

    def __init__(self, num_bins, shift):
        self.counts, self.total, self.gap = np.zeros(num_bins, np.int64), 0, None
        self._shift, self._tails = shift, None

    def count(self, matrix):
        """Add the values of a matrix. Returns their extremes if it comes across them, otherwise None."""
        self.total += matrix.size
        if self._tails:
            low, high = self._tails
            return low.add(self.counts, matrix), high.add(self.counts, matrix)
        add_counts(self.counts, matrix, self._shift)
        return None

    def add(self, matrix):
        """Add the values of a matrix, and return their extremes."""
        return self.count(matrix) or (matrix.min(), matrix.max())

    def add_array(self, values):
        """Add a contiguous array of any shape, in parts that stay in the cache, and return its extremes."""
        values = values.reshape(-1)
        even = values.size // ROWS * ROWS
        ends = [
            self.add(values[start : min(even, start + ROWS * COLUMNS)].reshape(ROWS, -1))
            for start in range(0, even, ROWS * COLUMNS)
        ]
        if even < values.size:
            ends.append(self.add(values[np.newaxis, even:]))
        all_ends = np.array(ends)
        return all_ends[:, 0].min(), all_ends[:, 1].max()

    def leave_out_middle(self, share):
        """From now on, count only the values in and beyond the bins that have `share` of the values at each end."""
        if not self.total:
            return
        half, order = self.counts.size // 2, ascending(self.counts.size)
        ordered = self.counts[order]
        cumulative = np.cumsum(ordered)
        low = int(np.searchsorted(cumulative, share * self.total))
        if low == half - 1:
            low = half  # a tail that has -0.0 has 0.0, too
        high = max(low + 1, int(np.searchsorted(cumulative, (1 - share) * self.total)))
        if high == half:
            high = half - 1
        if high >= order.size:
            return
        self.gap = int(order[low]), int(order[high])
        self._tails = [
            Tail(int(order[place]), side, ordered[place] > LARGE_BIN * self.total, self._shift)
            for place, side in ((low, -1), (high, 1))
        ]


def write_counts(path, counted):
    """Write the counts that are not 0."""
    filled = [np.flatnonzero(each.counts) for each in counted]
    np.savez(
        path,
        lengths=np.array([bins.size for bins in filled], np.int64),
        bins=np.concatenate([*filled, np.zeros(0, np.int64)]).astype(np.int32),
        counts=np.concatenate(
            [*(each.counts[bins] for each, bins in zip(counted, filled, strict=True)), np.zeros(0, np.int64)]
        ),
        totals=np.array([each.total for each in counted], np.int64),
        gaps=np.array([each.gap or (-1, -1) for each in counted], np.int32),
    )


def of_samples(values, axis, batch_size):
    """Return (batch_size, values of a sample), with the samples along `axis`."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    split = values.reshape(*before, batch_size, values.shape[axis] // batch_size, *after)
    return np.moveaxis(split, axis, 0).reshape(batch_size, -1)

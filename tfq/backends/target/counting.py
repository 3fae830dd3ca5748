# SPDX-License-Identifier: Apache-2.0
"""Count float32 values by bins. Needs only NumPy.

A bin has the values with the same upper bits: float32 bits >> shift. The first bit is the sign, so bins of negative
values come after those of positive ones.

Counting all values costs several times as much as an inference. Quantiles near the ends need only the values near the
ends. So the first values can choose a low and a high bin, beyond which a given fraction of the values lies; later, only
the values there are counted, exactly. If the fraction is only a few values, a single large one would move the ends too
far out, so more values are counted before the ends are chosen.
"""

import functools
import itertools

import numpy as np

# Values processed at a time: as many rows as this, of columns that stay in the cache of a core.
ROWS, COLUMNS = 64, 4096
# A bin at the edge of a tail with more than this fraction of the values is counted without copying its values.
LARGE_BIN = 0.02
# Values whose bins are counted at a time.
PART = 1 << 16
# Values of a large tensor that are compared at a time.
LARGE_PART = 1 << 18
# Fewer values than this are counted one by one, because bincount allocates and adds an array of all bins.
FEW = 4096
# The ends are chosen so that at least this many of the values counted so far lie beyond each.
TAIL_VALUES = 32
# Bytes of the values of joined tensors that are collected before all of them are counted.
RING_BYTES = 8 << 20
# Joined tensors with fewer values than this are compared with their limits together.
SEPARATE = 4096
# Samples of joined tensors after which the ends of further tensors may be chosen.
CHOOSE_EVERY = 64


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
        self.number, self.side, self.is_large = number, side, is_large
        self.inner, self.outer = (low, high) if side > 0 else (high, low)

    def add(self, counts, matrix):
        """Count the values of this tail in a matrix of a tensor, and return the extreme of all values on this side."""
        by_column = matrix.max(axis=0) if self.side > 0 else matrix.min(axis=0)
        extreme = by_column.max() if self.side > 0 else by_column.min()
        if not self.reaches(extreme, self.inner):
            return extreme
        reaches, limit = self.reaches, self.inner
        if self.is_large:
            counts.add_to_bin(self.number, np.count_nonzero(self.reaches(matrix, self.inner)))
            reaches, limit = self.exceeds, self.outer
            if not self.exceeds(extreme, self.outer):
                return extreme
        # Few columns have values in the tail.
        (columns,) = np.nonzero(reaches(by_column, limit))
        values = matrix[:, columns]
        values = values[reaches(values, limit)]
        counts.add_later(values)
        if self.is_large:
            counts.add_to_bin(self.number, -values.size)
        return extreme

    @property
    def copied_from(self):
        """The limit at and beyond which values are copied."""
        beyond = np.float32(np.inf if self.side > 0 else -np.inf)
        return np.nextafter(self.outer, beyond) if self.is_large else self.inner

    def add_groups(self, counts, matrix, numbers, are_rows, extreme):
        """Count the values of this tail in a matrix of a tensor.

        Args:
            counts: The counts to add to.
            matrix: The values.
            numbers: The numbers of the rows or columns that reach `copied_from`.
            are_rows: Whether they are rows.
            extreme: The extreme of all values on this side.
        """
        if self.is_large and self.reaches(extreme, self.inner):
            values = matrix.reshape(-1)
            parts = (values[start : start + LARGE_PART] for start in range(0, values.size, LARGE_PART))
            counts.add_to_bin(self.number, sum(np.count_nonzero(self.reaches(part, self.inner)) for part in parts))
        if not numbers.size:
            return
        if 2 * numbers.size < len(matrix) if are_rows else 4 * numbers.size < matrix.shape[1]:
            matrix = matrix.take(numbers, axis=0 if are_rows else 1)
        values = matrix[self.reaches(matrix, self.copied_from)]
        counts.add_later(values)
        if self.is_large:
            counts.add_to_bin(self.number, -values.size)

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

    def __init__(self, num_bins, shift, table=None):
        """Start without values; `table` is an array of zeros to use for the counts."""
        self.table = np.zeros(num_bins, np.int64) if table is None else table
        self.total, self.gap, self.tails = 0, None, None
        self._shift, self._later, self._num_later = shift, [], 0

    @property
    def counts(self):
        """The counts of all values so far."""
        if self._later:
            add_counts(self.table, np.concatenate(self._later), self._shift)
            self._later, self._num_later = [], 0
        return self.table

    def add_later(self, values):
        """Add values together with others, which is faster for few of them."""
        self._later.append(values)
        self._num_later += values.size
        if self._num_later > PART:
            self.counts  # noqa: B018  adds them

    def add_to_bin(self, number, count):
        """Add a number of values of one bin."""
        self.table[number] += count

    def count(self, matrix):
        """Add the values of a matrix. Returns their extremes if it comes across them, otherwise None."""
        self.total += matrix.size
        if self.tails:
            low, high = self.tails
            return low.add(self, matrix), high.add(self, matrix)
        add_counts(self.table, matrix, self._shift)
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
        """From now on, count only the values in and beyond the bins that have `share` of the values at each end.

        Nothing changes if that would be too few values, or if a middle is left out already.
        """
        if share * self.total < TAIL_VALUES or self.gap is not None:
            return
        half, (filled,) = self.table.size // 2, np.nonzero(self.counts)
        # The places of these bins in ascending order of the values.
        places = np.where(filled < half, half + filled, 2 * half - 1 - filled)
        by_value = np.argsort(places)
        places, filled = places[by_value], filled[by_value]
        counts = self.table[filled]
        cumulative = np.cumsum(counts)
        low = int(places[np.searchsorted(cumulative, share * self.total)])
        if low == half - 1:
            low = half  # a tail that has -0.0 has 0.0, too
        last = np.searchsorted(cumulative, (1 - share) * self.total)
        high = max(low + 1, int(places[min(last, places.size - 1)]))
        if high == half:
            high = half - 1
        if high >= 2 * half:
            return
        order = ascending(2 * half)
        self.gap = int(order[low]), int(order[high])
        self.tails = [
            Tail(number, side, self.table[number] > LARGE_BIN * self.total, self._shift)
            for number, side in zip(self.gap, (-1, 1), strict=True)
        ]


class JoinedCounts:
    """The counts of tensors whose values follow each other in one array.

    Attributes:
        tensors: Counts of each tensor.
    """

    def __init__(self, sizes, num_bins, shift):
        """Start without values.

        Args:
            sizes: The number of values of each tensor; ascending sizes are fast.
            num_bins: As in Counts.
            shift: As in Counts.
        """
        table = np.zeros((len(sizes), num_bins), np.int64)
        self.tensors = [Counts(num_bins, shift, row) for row in table]
        ends = np.cumsum(sizes)
        self._spans = list(zip((ends - sizes).tolist(), ends.tolist(), strict=True))
        self._table, self._shift = table.reshape(-1), shift
        # The place of the first bin of each value's tensor in the table.
        self._first = np.repeat(np.arange(len(sizes), dtype=np.int32) * num_bins, sizes)
        # All values of the first tensors are counted, when these rows are full.
        self._num_whole = len(sizes)
        self._ring = np.empty((max(1, min(ROWS, RING_BYTES // (4 * ends[-1]))), ends[-1]), np.float32)
        self._filled = 0
        self._share, self._sides, self._keys = 0.0, [], []

    def add(self, values, extremes):
        """Add the values of a sample.

        Args:
            values: The values of all tensors, float32.
            extremes: The minimum of each tensor, and the maximum of each.
        """
        self._ring[self._filled] = values[: self._ring.shape[1]]
        self._filled += 1
        if self._sides:
            positions = np.concatenate(
                [side.add(self.tensors, values, ends) for side, ends in zip(self._sides, extremes, strict=True)]
            )
            self._keys.append(self._first[positions] + bins_of(values[positions], self._shift))
        if self._filled == len(self._ring):
            self.leave_out_middle(self._share)

    def flush(self):
        """Count the values that were collected."""
        for place, (counts, (start, end)) in enumerate(zip(self.tensors, self._spans, strict=True)):
            if place >= self._num_whole:
                counts.total += self._filled * (end - start)
            elif self._filled:
                counts.count(self._ring[: self._filled, start:end])
        if self._keys:
            keys, numbers = np.unique(np.concatenate(self._keys), return_counts=True)
            self._table[keys] += numbers
        self._filled, self._keys = 0, []

    def leave_out_middle(self, share):
        """Do what Counts.leave_out_middle does for each tensor, now or when it has enough values."""
        self.flush()
        self._share = share
        before = [counts.gap for counts in self.tensors]
        for counts in self.tensors:
            counts.leave_out_middle(share)
        if before != [counts.gap for counts in self.tensors]:
            self._num_whole = next(place for place, counts in enumerate(self.tensors) if counts.gap)
            start = self._spans[self._num_whole][0]
            self._sides = [_JoinedSide(self.tensors, self._spans, start, side) for side in (-1, 1)]
            self._ring = np.empty((CHOOSE_EVERY, start), np.float32)


class Groups:
    """The extremes of groups of the values of large tensors, as the model computes them.

    A group is a row or a column of a tensor. Only the values of groups that reach a tail must be read.
    """

    def __init__(self, sizes, are_rows, counted):
        """Find the groups.

        Args:
            sizes: The number of groups of each tensor.
            are_rows: Whether they are rows.
            counted: The counts of each tensor; empty if only the extremes are needed.
        """
        self._sizes, self._are_rows, self._counted = sizes, are_rows, counted
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._limits = None

    def extremes(self, reduced):
        """Return the minimum and the maximum of each tensor, (2, tensors), or None if the model cannot tell.

        Args:
            reduced: The minima of all groups, then the maxima, then the sums.
        """
        low, high, sums = reduced.reshape(3, -1)
        # The kernels lose a NaN in some groups, but not in a sum.
        if not np.isfinite(sums).all():
            return None
        return np.stack([np.minimum.reduceat(low, self._starts), np.maximum.reduceat(high, self._starts)])

    def choose_limits(self):
        """Read the limits of the tails, after these were chosen."""
        self._limits = [
            np.repeat(
                np.array([counts.tails[side].copied_from if counts.tails else end for counts in self._counted]),
                self._sizes,
            ).astype(np.float32)
            for side, end in enumerate((-np.inf, np.inf))
        ]

    def add(self, reduced, values, extremes):
        """Count the values of a sample.

        Args:
            reduced: As in `extremes`.
            values: For each tensor, its values as a matrix.
            extremes: The result of `extremes`.
        """
        low, high, _ = reduced.reshape(3, -1)
        numbers = [np.arange(0)] * 2
        if self._limits:
            numbers = [np.flatnonzero(low <= self._limits[0]), np.flatnonzero(high >= self._limits[1])]
        first = [np.searchsorted(each, self._starts).tolist() for each in numbers]
        last = [np.searchsorted(each, self._ends).tolist() for each in numbers]
        for place, (counts, matrix) in enumerate(zip(self._counted, values, strict=True)):
            if not counts.tails:
                counts.add_array(matrix)
                continue
            counts.total += matrix.size
            for side, tail in enumerate(counts.tails):
                reached = numbers[side][first[side][place] : last[side][place]] - self._starts[place]
                tail.add_groups(counts, matrix, reached, self._are_rows[place], extremes[side, place])


class _JoinedSide:
    """The tails of joined tensors at one end. A tensor without tails is counted at the lower end.

    The values before the position `start` are not looked at.
    """

    def __init__(self, tensors, spans, start, side):
        sizes = [end - start for start, end in spans]
        tails = [counts.tails[side > 0] if counts.tails else None for counts in tensors]
        self._reaches = np.greater_equal if side > 0 else np.less_equal
        limits = np.array([tail.inner if tail else np.inf for tail in tails], np.float32)
        self._together = sum(itertools.takewhile(lambda size: size < SEPARATE, sizes))
        self._start = min(start, self._together)
        self._limits = np.repeat(limits, sizes)[self._start : self._together]
        self._separate = [
            (place, tail, slice(*spans[place]))
            for place, (tail, size) in enumerate(zip(tails, sizes, strict=True))
            if start <= spans[place][0] and (spans[place][0] >= self._together or (tail and tail.is_large))
        ]
        self._side, self._reached = side, np.zeros(sum(sizes), bool)

    def add(self, tensors, values, extremes):
        """Count the values in large bins, and return the positions of those to count by their bins."""
        reached = self._reached
        together = slice(self._start, self._together)
        self._reaches(values[together], self._limits, out=reached[together])
        for place, tail, span in self._separate:
            part = reached[span]
            if not tail:
                part[:] = self._side < 0
            elif not self._reaches(extremes[place], tail.inner):
                part[:] = False
            else:
                self._reaches(values[span], tail.inner, out=part)
                if tail.is_large:
                    tensors[place].add_to_bin(tail.number, np.count_nonzero(part))
                    part[:] = False
                    if tail.exceeds(extremes[place], tail.outer):
                        part[:] = tail.exceeds(values[span], tail.outer)
                        tensors[place].add_to_bin(tail.number, -np.count_nonzero(part))
        return np.flatnonzero(reached)


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

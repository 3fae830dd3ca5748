# SPDX-License-Identifier: Apache-2.0
"""Mode "statistics": run samples one by one, and count the values of float32 tensors by bins.

Only the extremes of each sample leave this process while it runs; the counts follow at the end. A bin has the values
with the same upper bits: float32 bits >> request["shift"]. The first bit is the sign, so bins of negative values come
after those of positive ones.

Messages are those of activations.py, with further fields: {"count", "used", "keep"}. The arrays of the slot's input
file are `count` inferences of each input, along a new first axis; of each, the first `used` samples count. The answer
has the extremes, float32 of shape (count, used, tensors, 2), then the outputs of each inference whose number is in
`keep`. At the end of stdin, counts.npz is written.

Counting all values costs several times as much as an inference. A calibration that only needs quantiles near the ends
needs the values near the ends: with request["share"], the first samples give each tensor a low and a high bin, so that
about this fraction of its values lie in or beyond each; later, only the values there are counted, exactly.
"""

import os
import time

import numpy as np

from . import activations, session

# Samples whose values are all counted, before `share` chooses the bins.
NUM_FULL = 8
# Values processed at a time: as many rows as this, of columns that stay in the cache of a core.
ROWS, COLUMNS = 64, 2048
# Bytes of the values of joined tensors that are collected before they are counted.
RING_BYTES = 8 << 20
# Seconds between reports while one message runs.
REPORT_SECS = 1.0
# A bin at the edge of a tail with more than this fraction of the values is counted without copying its values.
LARGE_BIN = 0.02


_PART = 1 << 16


def bins_of(values, shift):
    """Return the bin of each value."""
    return np.right_shift(values.reshape(-1).view(np.uint32), shift, dtype=np.uint32).astype(np.intp)


def add_counts(counts, values, shift):
    """Add the values, float32 of any shape, to the counts of their bins."""
    values = np.ascontiguousarray(values).reshape(-1)
    for start in range(0, values.size, _PART):
        bins = bins_of(values[start : start + _PART], shift)
        if bins.size < 4096:
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
        half = self.counts.size // 2
        order = np.concatenate([np.arange(half, 2 * half)[::-1], np.arange(half)])  # ascending values
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


class Observer:
    """The extremes and the counts of the tensors of a model."""

    def __init__(self, request):
        """Read which tensors to observe; see `run`."""
        self.places = request["places"]
        num_tensors = len(self.places)
        number = num_tensors if request["num_bins"] else 0
        self.counted = [Counts(request["num_bins"], request["shift"]) for _ in range(number)]
        self.share, self.num_samples = request["share"], 0
        self.axes, self.batch_size = request["axes"], request["batch_size"]
        self.joined, self.own = request["joined"], [place for place, at in enumerate(self.places) if at[0] == "own"]
        parts = [place for place, at in enumerate(self.places) if at[0] == "joined"]
        self.parts, self.starts = (
            np.array(parts, np.intp),
            np.array([self.places[place][1] for place in parts], np.intp),
        )
        if parts:
            size = sum(self.places[place][2] for place in parts)
            self.ring = np.empty((max(1, min(ROWS, RING_BYTES // (4 * size))), size), np.float32)
            self.filled = 0

    def add(self, interpreter, used, extremes):
        """Add the values of an inference, of which the first `used` samples count; write their extremes.

        Args:
            interpreter: The interpreter after an inference.
            used: How many samples of the batch count.
            extremes: float32 of shape (used, tensors, 2), to write to.
        """
        if self.parts.size:
            values = interpreter.tensor(self.joined)()
            extremes[0, self.parts, 0] = np.minimum.reduceat(values, self.starts)
            extremes[0, self.parts, 1] = np.maximum.reduceat(values, self.starts)
            if self.counted:
                self.ring[self.filled] = values
                self.filled += 1
        for place in self.own:
            values = interpreter.tensor(self.places[place][1])()
            self._add_tensor(place, values, used, extremes[:, place])
        self.num_samples += used
        is_full = self.num_samples < NUM_FULL + used and self.num_samples >= NUM_FULL
        if self.parts.size and self.counted and (self.filled == len(self.ring) or is_full):
            self._count_ring()
        if is_full and self.share and self.counted:
            for counts in self.counted:
                counts.leave_out_middle(self.share)

    def _add_tensor(self, place, values, used, extremes):
        if not values.size:
            extremes[:] = 0
            return
        values = np.ascontiguousarray(values)
        counts = self.counted[place] if self.counted else None
        if self.batch_size == 1:
            extremes[0] = counts.add_array(values) if counts else (values.min(), values.max())
            return
        axis = self.axes[place]
        # Values without an axis for the samples count for each of them.
        rows = of_samples(values, axis, self.batch_size)[:used] if axis is not None else values.reshape(1, -1)
        extremes[:, 0], extremes[:, 1] = rows.min(axis=1), rows.max(axis=1)
        if counts:
            for _ in range(used if axis is None else 1):
                counts.add_array(np.ascontiguousarray(rows))

    def _count_ring(self):
        for place in self.parts:
            _, start, size = self.places[place]
            self.counted[place].count(self.ring[: self.filled, start : start + size])
        self.filled = 0

    def finish(self):
        """Return the counts of all values; an empty list if nothing is counted."""
        if self.counted and self.parts.size and self.filled:
            self._count_ring()
        return self.counted


def of_samples(values, axis, batch_size):
    """Return (batch_size, values of a sample), with the samples along `axis`."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    split = values.reshape(*before, batch_size, values.shape[axis] // batch_size, *after)
    return np.moveaxis(split, axis, 0).reshape(batch_size, -1)


def run(directory, request):
    """Run the samples until stdin ends, then write the counts.

    Fields of the request: `places` has ["own", index] or ["joined", start, size] for each observed tensor: an output of
    the model, or a part of the output `joined` that has many small tensors. `num_bins` is 0 if only extremes are
    needed. `axes` and `batch_size` say where the samples of an inference are; `outputs` are returned for kept ones.
    """
    session.limit_memory(request["memory_bytes"])
    interpreter = session.make_interpreter(request["model"], request)
    feeder = activations.Feeder(interpreter, request)
    observer, reported = Observer(request), time.monotonic()
    for message, arrays, outputs in feeder:
        count, used = message["count"], message["used"]
        extremes, kept = np.empty((count, used, len(request["places"]), 2), np.float32), []
        for place in range(count):
            feeder.invoke([array[place] for array in arrays])
            observer.add(interpreter, used, extremes[place])
            if place in message["keep"]:
                kept += [interpreter.get_tensor(index) for index in request["outputs"]]
            if time.monotonic() > reported + REPORT_SECS:
                activations.write(b"more 1\n")
                reported = time.monotonic()
        feeder.answer(message, outputs, [extremes, *kept])
    counted = observer.finish()
    if counted:
        write_counts(os.path.join(directory, "counts.npz"), counted)
    return {}

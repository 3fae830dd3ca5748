# SPDX-License-Identifier: Apache-2.0
"""Mode "statistics": run samples one by one, and count the values of float32 tensors by bins.

Only the extremes of each sample leave this process while it runs; the counts (counting.py) follow at the end.

Messages are those of activations.py, with further fields: {"count", "used", "keep"}. The arrays of the slot's input
file are `count` inferences of each input, along a new first axis; of each, the first `used` samples count. The answer
has the extremes, float32 of shape (count, used, tensors, 2), then the outputs of each inference whose number is in
`keep`. At the end of stdin, counts.npz is written.

With request["share"], all values of the first samples are counted, and later only those near the ends of tensors with
enough values.
"""

import os
import time

import numpy as np

from . import activations, session
from .counting import Counts, Groups, JoinedCounts, of_samples, write_counts

# Samples whose values are all counted, before `share` chooses the bins.
NUM_FULL = 4
# Seconds between reports while one message runs.
REPORT_SECS = 1.0


class Observer:
    """The extremes and the counts of the tensors of a model."""

    def __init__(self, request):
        """Read which tensors to observe; see `run`."""
        self.places = request["places"]
        self.counted = [Counts(request["num_bins"], request["shift"]) for _ in self.places if request["num_bins"]]
        self.share, self.num_samples = request["share"], 0
        self.axes, self.batch_size = request["axes"], request["batch_size"]
        self.joined, self.reduced = request["joined"], request["reduced"]
        self.own = [place for place, at in enumerate(self.places) if at[0] == "own"]
        self.grouped = [place for place, at in enumerate(self.places) if at[0] == "reduced"]
        parts = [place for place, at in enumerate(self.places) if at[0] == "joined"]
        parts.sort(key=lambda place: self.places[place][1])
        self.parts = np.array(parts, np.intp)
        self.starts = np.array([self.places[place][1] for place in parts], np.intp)
        self.joined_counts = None
        if parts and self.counted:
            sizes = np.array([self.places[place][2] for place in parts])
            self.joined_counts = JoinedCounts(sizes, request["num_bins"], request["shift"])
            for place, counts in zip(parts, self.joined_counts.tensors, strict=True):
                self.counted[place] = counts
        shapes = [self.places[place][2:] for place in self.grouped]
        self.groups = Groups(
            [rows if are_rows else columns for rows, columns, are_rows in shapes],
            [are_rows for _, _, are_rows in shapes],
            [self.counted[place] for place in self.grouped if self.counted],
        )

    def add(self, interpreter, used, extremes):
        """Add the values of an inference, of which the first `used` samples count; write their extremes.

        Args:
            interpreter: The interpreter after an inference.
            used: How many samples of the batch count.
            extremes: float32 of shape (used, tensors, 2), to write to.
        """
        if self.parts.size:
            values = interpreter.tensor(self.joined)()
            ends = [np.minimum.reduceat(values, self.starts), np.maximum.reduceat(values, self.starts)]
            extremes[0, self.parts] = np.transpose(ends)
            if self.joined_counts:
                self.joined_counts.add(values, ends)
        own = self.own if self._add_groups(interpreter, extremes) else self.own + self.grouped
        for place in own:
            values = interpreter.tensor(self.places[place][1])()
            self._add_tensor(place, values, used, extremes[:, place])
        before, self.num_samples = self.num_samples, self.num_samples + used
        if before < NUM_FULL <= self.num_samples and self.share and self.counted:
            if self.joined_counts:
                self.joined_counts.leave_out_middle(self.share)
            for place in self.own + self.grouped:
                self.counted[place].leave_out_middle(self.share)
            self.groups.choose_limits()

    def _add_groups(self, interpreter, extremes):
        """Add the values of the tensors that the model reduces. Returns whether it could be done."""
        if not self.grouped:
            return True
        reduced = interpreter.tensor(self.reduced)()
        ends = self.groups.extremes(reduced)
        if ends is None:
            return False
        extremes[0, self.grouped] = ends.T
        if self.counted:
            matrices = [
                interpreter.tensor(self.places[place][1])().reshape(self.places[place][2:4]) for place in self.grouped
            ]
            self.groups.add(reduced, matrices, ends)
        return True

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

    def finish(self):
        """Return the counts of all values; an empty list if nothing is counted."""
        if self.joined_counts:
            self.joined_counts.flush()
        return self.counted


def run(directory, request):
    """Run the samples until stdin ends, then write the counts.

    Fields of the request: `places` has a list for each observed tensor: ["own", index] for an output of the model;
    ["joined", start, size] for a part of the output `joined`, which has many small tensors; or ["reduced", index, rows,
    columns, whether rows are reduced] for an output of which the output `reduced` has the minima, the maxima and the
    sums of each row or of each column. `num_bins` is 0 if only extremes are needed. `axes` and `batch_size` say where
    the samples of an inference are; `outputs` are returned for kept ones.
    """
    session.limit_memory(request["memory_bytes"])
    session.keep_freed_memory()
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

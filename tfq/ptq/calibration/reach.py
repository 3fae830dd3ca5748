# SPDX-License-Identifier: Apache-2.0
"""How far single samples reach: which of them go where no other goes, and would take all the codes with them.

One sample in five hundred can make a gate of a MobileNetV3 three hundred times as large as all others do. Of the values
of a small tensor it is far more than the share that a percentile leaves out, and its squares outweigh all others'.
"""

import bisect
from collections.abc import Iterable

# As many samples are kept of each end of a tensor: what is kept does not grow with the data, and merges exactly.
KEPT = 64
# At most this share of the samples is taken for outliers.
MOST_OUTLIERS = 0.01


class Reach:
    """The samples that reach farthest to one side. entries: (how far, number of the sample), the farthest first."""

    def __init__(self, entries: Iterable[tuple[float, int]] = ()) -> None:
        self._ordered: list[tuple[float, int]] = []
        for far, sample in entries:
            self.add(far, sample)

    @property
    def entries(self) -> list[tuple[float, int]]:
        return [(-negative, sample) for negative, sample in self._ordered]

    def add(self, far: float, sample: int) -> None:
        """A sample that was not seen before."""
        if len(self._ordered) < KEPT or -far < self._ordered[-1][0]:
            bisect.insort(self._ordered, (-far, sample))
            del self._ordered[KEPT:]

    def merge(self, other: "Reach", samples_before: int) -> None:
        """Take in that of samples which came after so many others."""
        for far, sample in other.entries:
            self.add(far, samples_before + sample)


def without_outliers(down: Reach, up: Reach, num_samples: int) -> tuple[float, float, tuple[int, ...]]:
    """(lowest, highest value that a sample reaches which is no outlier, the numbers of those that are).

    down, up: of `num_samples` samples, below zero as positive numbers. An outlier reaches beyond what 99 of 100 samples
    keep to by more than all that is as wide as; where these are zero throughout, and of fewer than 100, there is none.
    """
    rank = min(int(MOST_OUTLIERS * num_samples), KEPT - 1)
    typical = [max(side.entries[rank][0], 0.0) for side in (down, up)]
    width = sum(typical)
    if not width:
        return -down.entries[0][0], up.entries[0][0], ()
    outliers, ends = set(), []
    for side, end in zip((down, up), typical, strict=True):
        outliers |= {sample for far, sample in side.entries if far > end + width}
        ends.append(max(far for far, _ in side.entries if far <= end + width))
    return -ends[0], ends[1], tuple(sorted(outliers))

# SPDX-License-Identifier: Apache-2.0
"""What is observed of each activation over a data set: extremes, moving averages, histograms, outlier samples.

One sample in five hundred can make a gate of a MobileNetV3 three hundred times as large as all others do. Of the values
of a small tensor it is far more than the share that a percentile leaves out, and its squares outweigh all others'.
"""

import bisect
import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfq.artifacts import read_json, write_json
from tfq.errors import InputError
from tfq.ptq.calibration.histogram import Bins, Histogram

# As many samples are kept of each end of a tensor: what is kept does not grow with the data, and merges exactly.
NUM_FARTHEST = 64
# At most this share of the samples is taken for outliers.
MAX_OUTLIER_FRACTION = 0.01


class FarthestSamples:
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
        if len(self._ordered) < NUM_FARTHEST or -far < self._ordered[-1][0]:
            bisect.insort(self._ordered, (-far, sample))
            del self._ordered[NUM_FARTHEST:]

    def merge(self, other: "FarthestSamples", samples_before: int) -> None:
        """Take in that of samples which came after so many others."""
        for far, sample in other.entries:
            self.add(far, samples_before + sample)


def without_outliers(
    down: FarthestSamples, up: FarthestSamples, num_samples: int
) -> tuple[float, float, tuple[int, ...]]:
    """(lowest, highest value that a sample reaches which is no outlier, the numbers of those that are).

    down, up: of `num_samples` samples, below zero as positive numbers. An outlier reaches beyond what 99 of 100 samples
    keep to by more than all that is as wide as; where these are zero throughout, and of fewer than 100, there is none.
    """
    rank = min(int(MAX_OUTLIER_FRACTION * num_samples), NUM_FARTHEST - 1)
    typical = [max(side.entries[rank][0], 0.0) for side in (down, up)]
    width = sum(typical)
    if not width:
        return -down.entries[0][0], up.entries[0][0], ()
    outliers, ends = set(), []
    for side, end in zip((down, up), typical, strict=True):
        outliers |= {sample for far, sample in side.entries if far > end + width}
        ends.append(max(far for far, _ in side.entries if far <= end + width))
    return -ends[0], ends[1], tuple(sorted(outliers))


SCHEMA_VERSION = 2
# Of a moving average, what stays of the old value at each sample.
DECAY = 0.9
_NUMBERS = ("minimum", "maximum", "average_minimum", "average_maximum")
_REACHES = ("down", "up")


@dataclass(kw_only=True)
class TensorObservation:
    """One activation over all samples.

    minimum, maximum: the lowest and the highest value. average_minimum, average_maximum: those of the single samples,
    weighted by DECAY to the power of how many samples came after, without the weights' sum (see moving_average).
    down, up: the samples that reach farthest below and above zero.
    """

    name: str
    layer: str | None = None
    minimum: float = float("inf")
    maximum: float = float("-inf")
    average_minimum: float = 0.0
    average_maximum: float = 0.0
    down: FarthestSamples = field(default_factory=FarthestSamples)
    up: FarthestSamples = field(default_factory=FarthestSamples)
    histogram: Histogram | None = None

    def add_extremes(self, sample: int, minimum: float, maximum: float) -> None:
        """Those of the next sample, which has this number."""
        self.down.add(-minimum, sample)
        self.up.add(maximum, sample)
        self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)
        self.average_minimum = DECAY * self.average_minimum + minimum
        self.average_maximum = DECAY * self.average_maximum + maximum

    def moving_average(self, num_samples: int) -> tuple[float, float]:
        """(minimum, maximum) averaged over the samples, the later ones counting more, and free of any initial value."""
        weight = (1 - DECAY**num_samples) / (1 - DECAY)
        return self.average_minimum / weight, self.average_maximum / weight

    def without_outliers(self, num_samples: int) -> tuple[float, float, tuple[int, ...]]:
        """(minimum, maximum, the samples that are left out of them): those that reach far beyond all others."""
        return without_outliers(self.down, self.up, num_samples)

    def bins(self) -> Bins:
        """Those of the histogram, the outer ones cut off at the extremes. Raises InputError where none was kept."""
        if self.histogram is None:
            raise InputError(
                f"tensor {self.name!r} was observed without a histogram: observe it with histograms=True",
                field="histograms",
                expected=True,
                got=False,
            )
        result = self.histogram.bins()
        low, high = (np.clip(ends, self.minimum, self.maximum) for ends in (result.low, result.high))
        return Bins(low, high, result.counts)

    def merge(self, other: "TensorObservation", num_samples: int, samples_before: int) -> None:
        """Take in what was seen of the same tensor on `num_samples` samples after these, which are `samples_before`."""
        self.down.merge(other.down, samples_before)
        self.up.merge(other.up, samples_before)
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.average_minimum = DECAY**num_samples * self.average_minimum + other.average_minimum
        self.average_maximum = DECAY**num_samples * self.average_maximum + other.average_maximum
        if self.histogram is not None and other.histogram is not None:
            self.histogram.merge(other.histogram)


@dataclass(kw_only=True)
class Observations:
    """What calibration has seen of a float flatbuffer.

    tensors: (subgraph, tensor) -> what was seen of it. num_samples: over how many samples.
    model_sha256: of the flatbuffer. data_sha256: of the samples in their order; one for each part that was merged.
    outputs: number of a sample -> the model's outputs for it, of the samples that were asked for; never written to a
        file.
    """

    tensors: dict[tuple[int, int], TensorObservation]
    num_samples: int
    model_sha256: str
    data_sha256: tuple[str, ...]
    outputs: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)

    @property
    def has_histograms(self) -> bool:
        """Whether more than extremes was kept."""
        return all(seen.histogram is not None for seen in self.tensors.values())

    def save(self, path: str | os.PathLike) -> Path:
        """Write it to `path` as JSON, whole or not at all."""
        return write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "num_samples": self.num_samples,
            "model_sha256": self.model_sha256,
            "data_sha256": list(self.data_sha256),
            "decay": DECAY,
            "tensors": [
                {
                    "subgraph": subgraph,
                    "tensor": tensor,
                    "name": seen.name,
                    "layer": seen.layer,
                    **{name: getattr(seen, name) for name in _NUMBERS},
                    **{name: getattr(seen, name).entries for name in _REACHES},
                    "histogram": None if seen.histogram is None else seen.histogram.to_dict(),
                }
                for (subgraph, tensor), seen in self.tensors.items()
            ],
        }

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Observations":
        """What `save` wrote. Raises InputError on a file that is not this, or of another version of tfq."""
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} holds no observations of tfq ({type(error).__name__}: {error}): observe the data again",
                field="path",
                expected="observations",
                got=str(path),
            ) from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Observations":
        """What to_dict gave."""
        version = (values["schema_version"], values["decay"])
        if version != (SCHEMA_VERSION, DECAY):
            raise ValueError(f"schema_version and decay are {version}, wanted {(SCHEMA_VERSION, DECAY)}")
        tensors = {}
        for entry in values["tensors"]:
            seen = TensorObservation(name=str(entry["name"]), layer=entry["layer"])
            for name in _NUMBERS:
                setattr(seen, name, float(entry[name]))
            for name in _REACHES:
                setattr(seen, name, FarthestSamples((float(far), int(sample)) for far, sample in entry[name]))
            if entry["histogram"] is not None:
                seen.histogram = Histogram.from_dict(entry["histogram"])
            tensors[int(entry["subgraph"]), int(entry["tensor"])] = seen
        return cls(
            tensors=tensors,
            num_samples=int(values["num_samples"]),
            model_sha256=str(values["model_sha256"]),
            data_sha256=tuple(map(str, values["data_sha256"])),
        )


def merge_observations(parts: Sequence[Observations]) -> Observations:
    """What one pass over the samples of all `parts`, in this order, would have seen.

    Extremes and histograms are the same to the bit however the samples were shared out; a moving average, which
    weighs the last samples most, up to the rounding of float64.
    Raises InputError where there is no part, and on parts of different flatbuffers or with different things kept.
    """
    if not parts:
        raise InputError(
            "merge_observations: expected at least one part", field="parts", expected="at least one part", got=0
        )
    whole = copy.deepcopy(parts[0])
    for number, part in enumerate(parts[1:], 1):
        if part.model_sha256 != whole.model_sha256 or part.tensors.keys() != whole.tensors.keys():
            raise InputError(
                f"merge_observations: part {number} is of another flatbuffer than part 0 ({part.model_sha256[:12]}, "
                f"{whole.model_sha256[:12]}): observe all of the data with the same one",
                field=f"parts[{number}]",
                expected=whole.model_sha256,
                got=part.model_sha256,
            )
        if part.has_histograms != whole.has_histograms:
            raise InputError(
                f"merge_observations: one of parts 0 and {number} has histograms, the other has none",
                field=f"parts[{number}]",
                expected="histograms in all parts or in none",
            )
        for key, seen in whole.tensors.items():
            seen.merge(part.tensors[key], part.num_samples, whole.num_samples)
        whole.num_samples += part.num_samples
        whole.data_sha256 += part.data_sha256
    return whole

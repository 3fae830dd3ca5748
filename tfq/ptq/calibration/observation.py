# SPDX-License-Identifier: Apache-2.0
"""Statistics of each activation over a dataset: extremes, moving averages, histograms, outlier samples.

Outlier samples need their own treatment. One sample in five hundred can make a gate of a MobileNetV3 three hundred
times as large as all other samples do. In a small tensor such values are a larger fraction than a percentile clips, and
in an MSE they outweigh all other values.
"""

import bisect
import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import read_json, write_json
from tfq.errors import InputError
from tfq.ptq.calibration.histogram import Bins, Histogram

# Samples recorded for each side of a tensor. The fixed number bounds the memory, and parts can be merged exactly.
NUM_FARTHEST = 64
# Rules for outliers, each (fraction of the samples that may be outliers, distance from the others in widths of their
# range). More samples may be outliers if they are farther away.
OUTLIER_RULES = ((0.01, 1.0), (0.03, 2.0))
# Among fewer samples there are no outliers.
_LEAST_SAMPLES = 100


class FarthestSamples:
    """The samples whose values reach farthest from zero, on one side of it."""

    def __init__(self, entries: Iterable[tuple[float, int]] = ()) -> None:
        """Add (distance, index of the sample) pairs."""
        self._ordered: list[tuple[float, int]] = []
        for distance, sample in entries:
            self.add(distance, sample)

    @property
    def entries(self) -> list[tuple[float, int]]:
        """(distance, index of the sample) pairs, the farthest first; at most NUM_FARTHEST."""
        return [(-negative, sample) for negative, sample in self._ordered]

    def add(self, distance: float, sample: int) -> None:
        """Add a sample.

        Args:
            distance: The sample's extreme value, with the sign changed for the negative side. It is negative if the
                sample has no value on this side of zero.
            sample: The index of the sample, which was not added before.
        """
        if len(self._ordered) < NUM_FARTHEST or -distance < self._ordered[-1][0]:
            bisect.insort(self._ordered, (-distance, sample))
            del self._ordered[NUM_FARTHEST:]

    def add_many(self, distances: NDArray[np.float64], first: int) -> None:
        """Add samples with consecutive indices, of which `first` is the first one."""
        samples = np.arange(first, first + len(distances))
        order = np.lexsort((samples, -distances))[:NUM_FARTHEST]
        added = list(zip((-distances[order]).tolist(), samples[order].tolist(), strict=True))
        self._ordered = sorted([*self._ordered, *added])[:NUM_FARTHEST]

    def merge(self, other: "FarthestSamples", samples_before: int) -> None:
        """Add the samples of `other`, whose first sample has the index `samples_before` in the merged dataset."""
        for distance, sample in other.entries:
            self.add(distance, samples_before + sample)


def without_outliers(
    below: FarthestSamples, above: FarthestSamples, num_samples: int
) -> tuple[float, float, tuple[int, ...]]:
    """Return the range of the samples that are not outliers.

    Let [-a, b], including zero, be the range that 99% of the samples stay within on each side. A sample is an outlier
    if it exceeds an end of it by more than the width a + b. It is one as well if it exceeds the range of 97% of the
    samples by more than twice its width. A rule whose a + b is 0 has no outliers, and there are none among fewer than
    100 samples.

    Args:
        below: The farthest samples below zero.
        above: The farthest samples above zero.
        num_samples: The number of all samples.

    Returns:
        (minimum, maximum, indices of the outliers).
    """
    sides = below.entries, above.entries
    limits = [side[0][0] for side in sides]
    for fraction, distance in OUTLIER_RULES if num_samples >= _LEAST_SAMPLES else ():
        rank = min(int(fraction * num_samples), NUM_FARTHEST - 1)
        typical = [max(side[rank][0], 0.0) for side in sides]
        if width := sum(typical):
            limits = [min(limit, end + distance * width) for limit, end in zip(limits, typical, strict=True)]
    ends, outliers = [], set()
    for side, limit in zip(sides, limits, strict=True):
        outliers |= {sample for reached, sample in side if reached > limit}
        ends.append(max(reached for reached, _ in side if reached <= limit))
    return -ends[0], ends[1], tuple(sorted(outliers))


SCHEMA_VERSION = 3
# The weight of the old value in a moving average, per sample.
DECAY = 0.9
_NUMBERS = ("minimum", "maximum", "average_minimum", "average_maximum")
_FARTHEST_FIELDS = ("farthest_below", "farthest_above")


@dataclass(kw_only=True)
class TensorObservation:
    """Statistics of one activation over all samples.

    Attributes:
        name: The name of the tensor.
        layer: The Keras layer that computes it, if known.
        minimum: The smallest value.
        maximum: The largest value.
        average_minimum: The sum of the samples' minima, each weighted by DECAY to the power of the number of later
            samples. `moving_average` divides it by the sum of the weights.
        average_maximum: The same for the maxima.
        farthest_below: The samples that reach farthest below zero.
        farthest_above: The samples that reach farthest above zero.
        histogram: The histogram of all values; None if none was requested.
    """

    name: str
    layer: str | None = None
    minimum: float = float("inf")
    maximum: float = float("-inf")
    average_minimum: float = 0.0
    average_maximum: float = 0.0
    farthest_below: FarthestSamples = field(default_factory=FarthestSamples)
    farthest_above: FarthestSamples = field(default_factory=FarthestSamples)
    histogram: Histogram | None = None

    def moving_average(self, num_samples: int) -> tuple[float, float]:
        """Return the exponential moving averages of the samples' minima and maxima.

        Later samples have a larger weight. The weights add up to 1, so there is no bias from an initial value.
        """
        weight = (1 - DECAY**num_samples) / (1 - DECAY)
        return self.average_minimum / weight, self.average_maximum / weight

    def without_outliers(self, num_samples: int) -> tuple[float, float, tuple[int, ...]]:
        """Return (minimum, maximum, outlier samples), where the outliers do not count for the range."""
        return without_outliers(self.farthest_below, self.farthest_above, num_samples)

    def bins(self) -> Bins:
        """Return the bins of the histogram, the outer ones limited to the extremes.

        Raises:
            InputError: The tensor was observed without a histogram.
        """
        if self.histogram is None:
            raise InputError(
                f"tensor {self.name!r} was observed without a histogram, but this calibration method needs one. Call "
                "observe with histograms=True",
                field="histograms",
                expected=True,
                got=False,
            )
        result = self.histogram.bins()
        low, high = (np.clip(ends, self.minimum, self.maximum) for ends in (result.low, result.high))
        return Bins(low, high, result.counts, result.gap)

    def merge(self, other: "TensorObservation", num_samples: int, samples_before: int) -> None:
        """Add the statistics of the same tensor on later samples.

        Args:
            other: The statistics to add.
            num_samples: The number of samples in `other`.
            samples_before: The number of samples in this observation.
        """
        self.farthest_below.merge(other.farthest_below, samples_before)
        self.farthest_above.merge(other.farthest_above, samples_before)
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.average_minimum = DECAY**num_samples * self.average_minimum + other.average_minimum
        self.average_maximum = DECAY**num_samples * self.average_maximum + other.average_maximum
        if self.histogram is not None and other.histogram is not None:
            self.histogram.merge(other.histogram)


def add_extremes(observed: Sequence[TensorObservation], extremes: NDArray[np.float32], first: int) -> None:
    """Add the extremes of samples to the observations of tensors.

    Args:
        observed: The observations.
        extremes: The minimum and the maximum, of shape (samples, tensors, 2).
        first: The index of the first of these samples, which follow those that were added before.
    """
    values = extremes.astype(np.float64)
    averages = np.array([(each.average_minimum, each.average_maximum) for each in observed])
    for sample in values:
        averages = DECAY * averages + sample
    for place, observation in enumerate(observed):
        low, high = values[:, place, 0], values[:, place, 1]
        observation.farthest_below.add_many(-low, first)
        observation.farthest_above.add_many(high, first)
        observation.minimum = min(observation.minimum, float(low.min()))
        observation.maximum = max(observation.maximum, float(high.max()))
        observation.average_minimum, observation.average_maximum = map(float, averages[place])


@dataclass(kw_only=True)
class Observations:
    """Statistics of the activations of a float flatbuffer.

    Attributes:
        tensors: {(subgraph, tensor): its statistics}.
        num_samples: The number of samples.
        model_sha256: The SHA-256 of the flatbuffer.
        data_sha256: The SHA-256 of the samples in their order; one for each part that was merged.
        outputs: {index of a sample: the model's outputs for it}, for the samples that were requested. It is not saved.
    """

    tensors: dict[tuple[int, int], TensorObservation]
    num_samples: int
    model_sha256: str
    data_sha256: tuple[str, ...]
    outputs: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)

    @property
    def has_histograms(self) -> bool:
        """Whether all tensors were observed with histograms."""
        return all(observation.histogram is not None for observation in self.tensors.values())

    def save(self, path: str | os.PathLike) -> Path:
        """Write the observations to `path` as JSON, atomically."""
        return write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the outputs."""
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
                    "name": observation.name,
                    "layer": observation.layer,
                    **{name: getattr(observation, name) for name in _NUMBERS},
                    **{name: getattr(observation, name).entries for name in _FARTHEST_FIELDS},
                    "histogram": None if observation.histogram is None else observation.histogram.to_dict(),
                }
                for (subgraph, tensor), observation in self.tensors.items()
            ],
        }

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Observations":
        """Load a file that `save` wrote.

        Raises:
            InputError: The file has other content, or was written by another version of tfq.
        """
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise InputError(
                f"{path} is not a file of observations, or another version of tfq wrote it ({type(error).__name__}: "
                f"{error}). Observe the data again",
                field="path",
                expected="observations",
                got=str(path),
            ) from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Observations":
        """Return the observations from the result of `to_dict`."""
        version = (values["schema_version"], values["decay"])
        if version != (SCHEMA_VERSION, DECAY):
            raise ValueError(f"expected schema_version and decay {(SCHEMA_VERSION, DECAY)}, got {version}")
        tensors = {}
        for entry in values["tensors"]:
            observation = TensorObservation(name=str(entry["name"]), layer=entry["layer"])
            for name in _NUMBERS:
                setattr(observation, name, float(entry[name]))
            for name in _FARTHEST_FIELDS:
                entries = ((float(distance), int(sample)) for distance, sample in entry[name])
                setattr(observation, name, FarthestSamples(entries))
            if entry["histogram"] is not None:
                observation.histogram = Histogram.from_dict(entry["histogram"])
            tensors[int(entry["subgraph"]), int(entry["tensor"])] = observation
        return cls(
            tensors=tensors,
            num_samples=int(values["num_samples"]),
            model_sha256=str(values["model_sha256"]),
            data_sha256=tuple(map(str, values["data_sha256"])),
        )


def merge_observations(parts: Sequence[Observations]) -> Observations:
    """Merge observations of parts of a dataset into those of the whole dataset.

    The result equals that of one pass over all samples in this order: bit-exact for extremes and histograms, up to
    float64 rounding for moving averages.

    Args:
        parts: Observations of the same flatbuffer, all with histograms or all without.

    Raises:
        InputError: There is no part, or the parts differ in their flatbuffer or in whether they have histograms.
    """
    if not parts:
        raise InputError(
            "merge_observations: expected at least one part, got none",
            field="parts",
            expected="at least one part",
            got=0,
        )
    merged = copy.deepcopy(parts[0])
    for number, part in enumerate(parts[1:], 1):
        if part.model_sha256 != merged.model_sha256 or part.tensors.keys() != merged.tensors.keys():
            raise InputError(
                f"merge_observations: part {number} belongs to another flatbuffer than part 0 (SHA-256 "
                f"{part.model_sha256[:12]}..., expected {merged.model_sha256[:12]}...). Observe all parts of the data "
                "with the same flatbuffer",
                field=f"parts[{number}]",
                expected=merged.model_sha256,
                got=part.model_sha256,
            )
        if part.has_histograms != merged.has_histograms:
            raise InputError(
                f"merge_observations: only one of the parts 0 and {number} has histograms. Observe all parts with the "
                "same value of histograms",
                field=f"parts[{number}]",
                expected="histograms in all parts or in none",
            )
        for key, observation in merged.tensors.items():
            observation.merge(part.tensors[key], part.num_samples, merged.num_samples)
        merged.num_samples += part.num_samples
        merged.data_sha256 += part.data_sha256
    return merged

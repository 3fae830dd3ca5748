# SPDX-License-Identifier: Apache-2.0
"""What calibration finds out: the range of each activation."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfq.artifacts import read_json, write_json
from tfq.errors import InputError

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """The range of one activation, in real units.

    name, layer: of the tensor, and of the Keras layer that gives it out. minimum, maximum: what codes are to span.
    observed_minimum, observed_maximum: what was seen. method: that chose. clipped: share of the values seen that lie
    outside; None where no histogram was kept. outlier_samples: numbers of those that the range takes no notice of.
    """

    name: str
    layer: str | None
    minimum: float
    maximum: float
    observed_minimum: float
    observed_maximum: float
    method: str
    clipped: float | None = None
    outlier_samples: tuple[int, ...] = ()

    @property
    def coverage(self) -> float:
        """The width of the range as a share of what was observed, 1.0 where that was a single value."""
        width = self.observed_maximum - self.observed_minimum
        return (self.maximum - self.minimum) / width if width > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Ranges of a float flatbuffer's activations.

    tensors: (subgraph, tensor) -> its range. num_samples: how many were seen. model_sha256, data_sha256: as of
    Observations.
    """

    tensors: Mapping[tuple[int, int], TensorRange]
    num_samples: int
    model_sha256: str
    data_sha256: tuple[str, ...]

    @property
    def values(self) -> dict[tuple[int, int], tuple[float, float]]:
        """(subgraph, tensor) -> (minimum, maximum), as inject_ranges takes it."""
        return {key: (item.minimum, item.maximum) for key, item in self.tensors.items()}

    @property
    def observed(self) -> dict[tuple[int, int], tuple[float, float]]:
        """Return (subgraph, tensor) -> (minimum, maximum) of all values that were observed, nothing clipped."""
        return {key: (item.observed_minimum, item.observed_maximum) for key, item in self.tensors.items()}

    @property
    def outlier_samples(self) -> dict[int, list[TensorRange]]:
        """Number of a sample that ranges take no notice of -> these ranges."""
        results: dict[int, list[TensorRange]] = {}
        for item in self.tensors.values():
            for sample in item.outlier_samples:
                results.setdefault(sample, []).append(item)
        return dict(sorted(results.items()))

    def save(self, path: str | os.PathLike) -> Path:
        """Write it to `path` as JSON, whole or not at all; `Ranges.load` gives it back."""
        return write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "num_samples": self.num_samples,
            "model_sha256": self.model_sha256,
            "data_sha256": list(self.data_sha256),
            "tensors": [
                {"subgraph": subgraph, "tensor": tensor, **asdict(item), "coverage": item.coverage}
                for (subgraph, tensor), item in self.tensors.items()
            ],
        }

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Ranges":
        """What `save` wrote. Raises InputError on a file that is not this, or of another version of tfq."""
        values = read_json(path)
        try:
            if values["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version is {values['schema_version']}, wanted {SCHEMA_VERSION}")
            tensors = {}
            for entry in values["tensors"]:
                fields = {name: entry[name] for name in TensorRange.__dataclass_fields__}
                fields["outlier_samples"] = tuple(map(int, fields["outlier_samples"]))
                tensors[int(entry["subgraph"]), int(entry["tensor"])] = TensorRange(**fields)
            return cls(
                tensors=tensors,
                num_samples=int(values["num_samples"]),
                model_sha256=str(values["model_sha256"]),
                data_sha256=tuple(map(str, values["data_sha256"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} holds no calibrated ranges of tfq ({type(error).__name__}: {error}): calibrate again",
                field="conversion.calibration.ranges",
                expected="calibrated ranges",
                got=str(path),
            ) from error

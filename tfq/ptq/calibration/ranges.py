# SPDX-License-Identifier: Apache-2.0
"""The result of calibration: the range of each activation."""

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

    Attributes:
        name: The name of the tensor.
        layer: The Keras layer that computes it, if known.
        minimum: The lower end of the quantization range.
        maximum: The upper end of the quantization range.
        observed_minimum: The smallest value on the data; with the method "fixed", the same as `minimum`.
        observed_maximum: The largest value on the data; with the method "fixed", the same as `maximum`.
        method: The calibration method that chose the range; "fixed" if the op fixes it, so that the values were not
            observed; "tuned" if range tuning changed it.
        clipped: The fraction of the observed values outside the range; None if there is no histogram, or if range
            tuning changed it.
        outlier_samples: Indices of the samples that the range ignores.
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
        """The width of the range relative to that of the observed values; 1.0 if all values were equal."""
        width = self.observed_maximum - self.observed_minimum
        return (self.maximum - self.minimum) / width if width > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The ranges of a float flatbuffer's activations.

    Attributes:
        tensors: {(subgraph, tensor): its range}.
        num_samples: The number of samples that were observed.
        model_sha256: As in `Observations`.
        data_sha256: As in `Observations`.
    """

    tensors: Mapping[tuple[int, int], TensorRange]
    num_samples: int
    model_sha256: str
    data_sha256: tuple[str, ...]

    @property
    def values(self) -> dict[tuple[int, int], tuple[float, float]]:
        """{(subgraph, tensor): (minimum, maximum)}, the quantization ranges."""
        return {key: (item.minimum, item.maximum) for key, item in self.tensors.items()}

    @property
    def observed(self) -> dict[tuple[int, int], tuple[float, float]]:
        """{(subgraph, tensor): (minimum, maximum)} of all observed values, without clipping."""
        return {key: (item.observed_minimum, item.observed_maximum) for key, item in self.tensors.items()}

    @property
    def outlier_samples(self) -> dict[int, list[TensorRange]]:
        """{index of an outlier sample: the ranges that ignore it}."""
        results: dict[int, list[TensorRange]] = {}
        for item in self.tensors.values():
            for sample in item.outlier_samples:
                results.setdefault(sample, []).append(item)
        return dict(sorted(results.items()))

    def save(self, path: str | os.PathLike) -> Path:
        """Write the ranges to `path` as JSON, atomically. `Ranges.load` reads the file."""
        return write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
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
        """Load a file that `save` wrote.

        Raises:
            InputError: The file has other content, or was written by another version of tfq.
        """
        values = read_json(path, field="conversion.calibration.ranges")
        try:
            if values["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"expected schema_version {SCHEMA_VERSION}, got {values['schema_version']}")
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
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise InputError(
                f"{path} is not a file of calibrated ranges, or another version of tfq wrote it "
                f"({type(error).__name__}: {error}). Calibrate again",
                field="conversion.calibration.ranges",
                expected="calibrated ranges",
                got=str(path),
            ) from error

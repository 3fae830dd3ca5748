# SPDX-License-Identifier: Apache-2.0
"""What calibration finds out: the range of each activation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

# Samples of the representative dataset, each by input name, batch 1.
Samples = Sequence[Mapping[str, NDArray]]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Observed ranges of a float flatbuffer's activations.

    values: (subgraph, tensor) -> (observed_min, observed_max), in real units.
    method: the calibrator that found them. num_samples: how many samples it saw.
    """

    values: Mapping[tuple[int, int], tuple[float, float]]
    method: str
    num_samples: int


Calibrator = Callable[[bytes, Samples], Ranges]

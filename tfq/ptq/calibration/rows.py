# SPDX-License-Identifier: Apache-2.0
"""Attribute the values of a tensor to the samples of a batch.

A model of batch size n computes n samples at a time. The statistics of a calibration are per sample, so each tensor is
split along the axis that has the samples. The axis is not always the first one: recurrent layers move the time there.
It is found by running a batch and the same batch with its samples shifted by one.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tfq.backends.target.counting import of_samples

# A relative difference by which the sums of a sample's values may differ between two positions in a batch.
_TOLERANCE = 1e-4
# For each axis that may have the samples: (samples, 3), the minimum, the maximum and the sum of each one's values.
Digests = dict[int, NDArray[np.float64]]


def digests(values: NDArray, batch_size: int) -> Digests:
    """Return the digests of the samples' values for each axis whose size is a multiple of the batch size."""
    results = {}
    for axis, size in enumerate(values.shape):
        if size and size % batch_size == 0:
            rows = of_samples(values, axis, batch_size)
            results[axis] = np.stack([rows.min(1), rows.max(1), rows.sum(1, dtype=np.float64)], axis=1)
    return results


def shifted(sample: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Return a batch with each of its samples moved to the next position, the last one to the first."""
    return {name: np.roll(array, 1, axis=0) for name, array in sample.items()}


def sample_axes(batch: Sequence[Digests], shifted_batch: Sequence[Digests]) -> list[int | None]:
    """Return the axis of each tensor that has the samples; None if no axis moves with them.

    Args:
        batch: The digests of each tensor for a batch.
        shifted_batch: The digests of each tensor for the same batch after `shifted`.
    """

    def moves(one: NDArray, other: NDArray) -> bool:
        return bool(np.allclose(np.roll(one, 1, axis=0), other, rtol=_TOLERANCE, atol=_TOLERANCE * np.abs(one).max()))

    return [
        next((axis for axis, rows in one.items() if moves(rows, other[axis])), None)
        for one, other in zip(batch, shifted_batch, strict=True)
    ]

# SPDX-License-Identifier: Apache-2.0
"""Round weights to grids of few bits, to compare TFLite's uniform 8-bit and 4-bit grids with others.

Each function receives weights as rows, one per output channel, and returns them rounded. The scale of each row's grid
minimizes the squared error. All grids except `kmeans` contain zero.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

# Candidates for the largest level, as fractions of a row's largest weight.
_FRACTIONS = np.linspace(0.25, 1.0, 31)
_LOWEST_FRACTIONS = np.linspace(0.0, 0.5, 11)
# Candidates for the base of a logarithmic grid, as log2(base): from 2 to 2^(1/32). The levels of a grid cover between
# half an octave and 14 octaves: with fewer it lacks small levels, and what lies below is rounded to zero anyway.
_LOG2_BASES = 2.0 ** -np.arange(0, 5.25, 0.25)
_OCTAVES = (0.5, 14.0)
_SWEEPS, _BINS = 50, 4096


def uniform(rows: Rows, bits: int) -> Rows:
    """Round to evenly spaced levels from -L to L times a step, with L = 2^(bits-1) - 1, as TFLite's int8.

    `tfq.ptq.weight_scales`, which rounds weights of 4 bits for files, has one more level on the negative side.
    """
    steps = np.arange(1, _levels_per_side(bits) + 1) / _levels_per_side(bits)
    return _best(rows, (_mirrored(steps, _largest(rows) * fraction) for fraction in _FRACTIONS))


def zero_aware(rows: Rows, bits: int) -> Rows:
    """Round to zero and to levels that are evenly spaced from the smallest significant weight to the largest.

    For pruned layers, whose weights are zero or far from it: no level is wasted on the gap around zero.
    """
    count = _levels_per_side(bits)

    def candidates() -> Iterator[NDArray]:
        for fraction in _FRACTIONS[::2]:
            for lowest in _LOWEST_FRACTIONS:
                yield _mirrored(lowest + (1 - lowest) * np.arange(1, count + 1) / count, _largest(rows) * fraction)

    return _best(rows, candidates())


def power_of_two(rows: Rows, bits: int) -> Rows:
    """Round to zero and powers of two, so that a product is a shift.

    Source: Zhou et al. 2017, "Incremental network quantization".
    """
    largest, sides = _largest(rows), 2.0 ** -np.arange(_levels_per_side(bits))
    nearest = np.where(largest > 0, 2.0 ** np.floor(np.log2(np.maximum(largest, 1e-30))), 0)
    return _best(rows, (_mirrored(sides, nearest * factor) for factor in (0.5, 1, 2)))


def logarithmic(rows: Rows, bits: int) -> Rows:
    """Round to zero and powers of a base between 1 and 2, times a factor. It is finer near zero.

    Each row has the base and the factor with the least squared error. More bits need a smaller base: powers of a fixed
    base only reach further towards zero, where there is nothing to gain.

    Source: Miyashita et al. 2016, "Convolutional neural networks using logarithmic data representation", whose bases
    are 2 and the square root of 2.
    """
    powers = np.arange(_levels_per_side(bits))
    octaves = powers[-1] * _LOG2_BASES
    bases = _LOG2_BASES[(octaves >= _OCTAVES[0]) & (octaves <= _OCTAVES[1])] if powers.size > 1 else _LOG2_BASES[:1]

    def candidates() -> Iterator[NDArray]:
        for fraction in _FRACTIONS[::2]:
            for log2_base in bases:
                yield _mirrored(2.0 ** (-powers * log2_base), _largest(rows) * fraction)

    return _best(rows, candidates())


def kmeans(rows: Rows, bits: int) -> Rows:
    """Round to 2^bits cluster centers for the whole layer; zeros of a pruned layer stay zero.

    Source: Han et al. 2016, "Deep compression". It makes compressed files smaller; int8 kernels do not support it.
    """
    values = rows.reshape(-1).astype(np.float64)
    nonzero = values[values != 0]
    if not nonzero.size:
        return rows.copy()
    count = 2**bits - (1 if nonzero.size < values.size else 0)
    centers = _initial_centers(nonzero, count)
    for _ in range(_SWEEPS):
        nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, nonzero)
        sums = np.bincount(nearest, nonzero, centers.size)
        counts = np.bincount(nearest, minlength=centers.size)
        moved = np.where(counts > 0, sums / np.maximum(counts, 1), centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, values)
    return np.where(values == 0, 0, centers[nearest]).astype(np.float32).reshape(rows.shape)


def _initial_centers(values: NDArray, count: int) -> NDArray[np.float64]:
    """Return centers with the cube root of the values' density, best for many centers (Panter and Dite)."""
    counts, edges = np.histogram(values, _BINS)
    reached = np.concatenate([[0], np.cumsum(np.cbrt(counts))])
    return np.unique(np.interp((np.arange(count) + 0.5) / count * reached[-1], reached, edges))


def binary(rows: Rows) -> Rows:
    """Return the sign of each weight times the mean magnitude of its row.

    Source: Rastegari et al. 2016, "XNOR-Net".
    """
    return (np.sign(rows) * np.abs(rows).mean(axis=1, keepdims=True)).astype(np.float32)


GRIDS: Mapping[str, Callable[[Rows, int], Rows]] = {
    "uniform": uniform,
    "zero_aware": zero_aware,
    "power_of_two": power_of_two,
    "logarithmic": logarithmic,
    "kmeans": kmeans,
}


def on_grid(rows: Rows, grid: str, bits: int) -> Rows:
    """Return `rows` (output channels, weights per channel) rounded to a grid; 1 bit is `binary` except for kmeans."""
    return binary(rows) if bits == 1 and grid != "kmeans" else GRIDS[grid](rows, bits)


def _levels_per_side(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _largest(rows: Rows) -> NDArray[np.float64]:
    return np.abs(rows).max(axis=1).astype(np.float64)


def _mirrored(sides: NDArray, scales: NDArray) -> NDArray[np.float64]:
    """Return the levels of each row in ascending order: -sides, 0, sides, times the row's scale."""
    ordered = np.sort(sides)
    return np.concatenate([-ordered[::-1], [0.0], ordered])[None, :] * scales[:, None]


def _best(rows: Rows, candidates: Iterable[NDArray]) -> Rows:
    """Round each row to the candidate (levels of each row) with the least squared error."""
    best, least = np.zeros_like(rows, np.float64), np.full(len(rows), np.inf)
    for levels in candidates:
        midpoints = (levels[:, 1:] + levels[:, :-1]) / 2
        # One search for all rows, which are shifted into disjoint intervals.
        span = 4 * (np.abs(levels).max(initial=0) + np.abs(rows).max(initial=0)) + 1
        offsets = span * np.arange(len(rows))[:, None]
        level_indices = np.searchsorted((midpoints + offsets).reshape(-1), (rows + offsets).reshape(-1)).reshape(
            rows.shape
        )
        level_indices -= midpoints.shape[1] * np.arange(len(rows))[:, None]
        result = np.take_along_axis(levels, level_indices, axis=1)
        error = ((result - rows) ** 2).sum(axis=1)
        better = error < least
        best[better], least = result[better], np.minimum(error, least)
    return best.astype(np.float32)

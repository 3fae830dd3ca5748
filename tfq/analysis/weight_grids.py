# SPDX-License-Identifier: Apache-2.0
"""Weights on grids of few bits, of which TFLite knows the uniform ones of 8 and 4: what others would be worth.

Each grid takes weights as rows, one for each output channel, and gives back what they become on it, each row's grid
chosen for the least squared error. All but `kmeans` have a level at zero.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

# The largest level is tried at these shares of a row's largest weight.
_SHARES = np.linspace(0.25, 1.0, 31)
_LOWEST_SHARES = np.linspace(0.0, 0.5, 11)
_SWEEPS, _BINS = 50, 4096


def uniform(rows: Rows, bits: int) -> Rows:
    """Evenly spaced and symmetric: -L to L times a step, with L = 2^(bits-1) - 1, as TFLite's int8 and int4."""
    steps = np.arange(1, _levels_a_side(bits) + 1) / _levels_a_side(bits)
    return _best(rows, (_mirrored(steps, _largest(rows) * fraction) for fraction in _SHARES))


def zero_aware(rows: Rows, bits: int) -> Rows:
    """Zero, and evenly spaced from the smallest weight that matters to the largest: none lost in the gap around zero.

    For pruned layers, whose weights are zero or far from it.
    """
    count = _levels_a_side(bits)

    def candidates() -> Iterator[NDArray]:
        for fraction in _SHARES[::2]:
            for lowest in _LOWEST_SHARES:
                yield _mirrored(lowest + (1 - lowest) * np.arange(1, count + 1) / count, _largest(rows) * fraction)

    return _best(rows, candidates())


def power_of_two(rows: Rows, bits: int) -> Rows:
    """Zero and powers of two: a product is a shift. Source: Zhou et al. 2017, "Incremental network quantization"."""
    largest, sides = _largest(rows), 2.0 ** -np.arange(_levels_a_side(bits))
    nearest = np.where(largest > 0, 2.0 ** np.floor(np.log2(np.maximum(largest, 1e-30))), 0)
    return _best(rows, (_mirrored(sides, nearest * factor) for factor in (0.5, 1, 2)))


def logarithmic(rows: Rows, bits: int) -> Rows:
    """Zero and powers of the root of two, times what suits the row: finer near zero, where most weights are.

    Source: Miyashita et al. 2016, "Convolutional neural networks using logarithmic data representation".
    """
    sides = 2.0 ** (-np.arange(_levels_a_side(bits)) / 2)
    return _best(rows, (_mirrored(sides, _largest(rows) * fraction) for fraction in _SHARES))


def kmeans(rows: Rows, bits: int) -> Rows:
    """2^bits values for the whole layer, where its weights are; zeros of a pruned layer stay zero.

    Source: Han et al. 2016, "Deep compression". It makes files smaller that are compressed; int8 kernels know none.
    """
    values = rows.reshape(-1).astype(np.float64)
    inhabited = values[values != 0]
    if not inhabited.size:
        return rows.copy()
    count = 2**bits - (1 if inhabited.size < values.size else 0)
    centres = _first_centres(inhabited, count)
    for _ in range(_SWEEPS):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, inhabited)
        sums = np.bincount(nearest, inhabited, centres.size)
        counts = np.bincount(nearest, minlength=centres.size)
        moved = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
    return np.where(values == 0, 0, centres[nearest]).astype(np.float32).reshape(rows.shape)


def _first_centres(values: NDArray, count: int) -> NDArray[np.float64]:
    """Centres as dense as the cube root of the values' density, which is best for many of them (Panter and Dite)."""
    counts, edges = np.histogram(values, _BINS)
    reached = np.concatenate([[0], np.cumsum(np.cbrt(counts))])
    return np.unique(np.interp((np.arange(count) + 0.5) / count * reached[-1], reached, edges))


def binary(rows: Rows) -> Rows:
    """The sign of each weight times the mean magnitude of its row. Source: Rastegari et al. 2016, "XNOR-Net"."""
    return (np.sign(rows) * np.abs(rows).mean(axis=1, keepdims=True)).astype(np.float32)


GRIDS: Mapping[str, Callable[[Rows, int], Rows]] = {
    "uniform": uniform,
    "zero_aware": zero_aware,
    "power_of_two": power_of_two,
    "logarithmic": logarithmic,
    "kmeans": kmeans,
}


def on_grid(rows: Rows, grid: str, bits: int) -> Rows:
    """`rows` (output channels, weights of each) on the grid of that name; of one bit all but kmeans are `binary`."""
    return binary(rows) if bits == 1 and grid != "kmeans" else GRIDS[grid](rows, bits)


def _levels_a_side(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _largest(rows: Rows) -> NDArray[np.float64]:
    return np.abs(rows).max(axis=1).astype(np.float64)


def _mirrored(sides: NDArray, scales: NDArray) -> NDArray[np.float64]:
    """Levels of each row, ascending: -sides, 0, sides, times the row's scale."""
    ordered = np.sort(sides)
    return np.concatenate([-ordered[::-1], [0.0], ordered])[None, :] * scales[:, None]


def _best(rows: Rows, candidates: Iterable[NDArray]) -> Rows:
    """Each row on that of the `candidates` (levels of each row) on which its squared error is least."""
    best, least = np.zeros_like(rows, np.float64), np.full(len(rows), np.inf)
    for levels in candidates:
        middles = (levels[:, 1:] + levels[:, :-1]) / 2
        # One search for all rows: each is put into an interval of its own.
        span = 4 * (np.abs(levels).max(initial=0) + np.abs(rows).max(initial=0)) + 1
        offsets = span * np.arange(len(rows))[:, None]
        places = np.searchsorted((middles + offsets).reshape(-1), (rows + offsets).reshape(-1)).reshape(rows.shape)
        places -= middles.shape[1] * np.arange(len(rows))[:, None]
        result = np.take_along_axis(levels, places, axis=1)
        error = ((result - rows) ** 2).sum(axis=1)
        better = error < least
        best[better], least = result[better], np.minimum(error, least)
    return best.astype(np.float32)

# SPDX-License-Identifier: Apache-2.0
"""Whether examples are random noise: numbers drawn one by one, which know nothing of their neighbours."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FEWEST_EXAMPLES = 8
# Of an image, whose pixels follow each other closely; of other values, which may hang together loosely.
_FEWEST_PIXELS, _FEWEST_VALUES = 1000, 4000
_FEWEST_POSITIONS = 16
# Values that are looked at: the temporaries stay in the tens of megabytes.
_MOST_VALUES = 2_000_000
# Noise strays from what is expected by so many standard deviations once in millions.
_SIGMAS = 5.0


@dataclass(frozen=True, kw_only=True)
class NoiseVerdict:
    """is_noise: None where nothing can be said. reason: a clause, with the number that decided."""

    is_noise: bool | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Statistic:
    """A number, what it is of independent draws of one distribution, and how far it may stray; and what it tells."""

    value: float
    of_noise: float
    tolerance: float
    told: str

    @property
    def is_of_noise(self) -> bool:
        return abs(self.value - self.of_noise) <= self.tolerance


def examples_looked_at(positions: int) -> int:
    """How many examples of so many values are enough to judge by."""
    return max(_FEWEST_EXAMPLES, _MOST_VALUES // max(1, positions))


def judge_noise(values: NDArray) -> NoiseVerdict:
    """Whether `values` (n, ...) are independent draws of one distribution, all positions and examples alike.

    Looked at in turn, and the first that is not as in noise decides: neighbours along every axis, means and spreads of
    positions and of examples, products of pairs of examples; of what is no image also whether the values are spread
    evenly or by the bell curve. Real data fails at least one: pixels follow their neighbours, features differ in scale
    or move together, recordings differ in loudness. Scale and offset do not matter, of an image not even by channel.
    """
    if values.dtype.kind in "iub" and values.ndim <= 2:
        return NoiseVerdict(is_noise=None, reason="integers are taken as indices, and not looked at")
    positions = int(np.prod(values.shape[1:]))
    values = values[: examples_looked_at(positions)]
    is_image = values.ndim == 4 and min(values.shape[1:3]) >= 8
    fewest = _FEWEST_PIXELS if is_image else _FEWEST_VALUES
    if len(values) < _FEWEST_EXAMPLES or values.size < fewest or positions < _FEWEST_POSITIONS:
        return NoiseVerdict(is_noise=None, reason=f"{len(values)} examples of {positions} values are too few to tell")
    axes = (0, 1, 2) if is_image and values.shape[3] <= 4 else None
    values = values.astype(np.float64)
    spread = values.std(axis=axes, keepdims=True)
    if (spread == 0).any():
        return NoiseVerdict(is_noise=False, reason="the values are constant")
    levels = 0 if is_image else len(np.unique(values[:100]))
    values = (values - values.mean(axis=axes, keepdims=True)) / spread
    neighbours = 0.0
    for statistic in _statistics(values):
        if not statistic.is_of_noise:
            return NoiseVerdict(is_noise=False, reason=statistic.told)
        if "neighbours" in statistic.told:
            neighbours = max(neighbours, abs(statistic.value))
    if not is_image and not _is_drawn(values, levels):
        return NoiseVerdict(is_noise=False, reason="the values follow neither an even nor a normal distribution")
    return NoiseVerdict(
        is_noise=True,
        reason=f"neighbours correlate by {neighbours:.2f} at most, and all positions and examples are alike",
    )


def _statistics(values: NDArray[np.float64]) -> Iterator[_Statistic]:
    """Of standardised values (n, ...). Each expectation and deviation is that of independent draws."""
    n, shape = len(values), values.shape[1:]
    for axis in range(1, values.ndim):
        if values.shape[axis] < 2:
            continue
        before = np.take(values, range(values.shape[axis] - 1), axis=axis)
        after = np.take(values, range(1, values.shape[axis]), axis=axis)
        correlation = float(np.mean(before * after))
        along = f" along axis {axis}" if len(shape) > 1 else ""
        yield _Statistic(
            value=correlation,
            of_noise=0.0,
            tolerance=0.01 + _SIGMAS / np.sqrt(before.size),
            told=f"neighbours{along} correlate by {correlation:.2f}, those of noise by 0.00",
        )
    flat = values.reshape(n, -1)
    positions = flat.shape[1]
    squares = flat**2
    spread_of_squares = max(float(np.mean(squares**2)) - 1, 0.0)
    for axis, averaged, many, what in ((0, n, positions, "positions"), (1, positions, n, "examples")):
        ratio = float(flat.mean(axis=axis).var()) * averaged
        yield _Statistic(
            value=ratio,
            of_noise=1.0,
            tolerance=0.1 + _SIGMAS * np.sqrt(2 / many),
            told=f"the means of {what} vary {ratio:.3g} times as much as those of noise",
        )
        if spread_of_squares > 0.05:  # else all values are as far from the mean, and their squares tell nothing
            ratio = float(squares.mean(axis=axis).var()) * averaged / spread_of_squares
            yield _Statistic(
                value=ratio,
                of_noise=1.0,
                tolerance=0.2 + 1.5 * _SIGMAS * np.sqrt(2 / many),
                told=f"the spreads of {what} vary {ratio:.3g} times as much as those of noise",
            )
    products = (flat @ flat.T)[np.triu_indices(n, 1)] ** 2 / positions
    ratio = float(products.mean())
    yield _Statistic(
        value=ratio,
        of_noise=1.0,
        tolerance=0.1 + _SIGMAS * np.sqrt(2 / len(products)),
        told=f"examples are {ratio:.3g} times as alike as those of noise",
    )


def _is_drawn(values: NDArray[np.float64], levels: int) -> bool:
    """Whether skewness and kurtosis of standardised values are those of an even or of a normal distribution.

    levels: how many different values there are: an even distribution over m whole numbers has the kurtosis
    3 (3 m^2 - 7) / (5 (m^2 - 1)), and 1.8 in the limit.
    """
    skewness, kurtosis = float(np.mean(values**3)), float(np.mean(values**4))
    even = 3 * (3 * levels**2 - 7) / (5 * (levels**2 - 1))
    stray = 0.05 + _SIGMAS * np.sqrt(6 / values.size)
    return abs(skewness) <= stray and min(abs(kurtosis - even), abs(kurtosis - 3)) <= 2 * stray

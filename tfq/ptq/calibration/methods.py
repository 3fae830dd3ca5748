# SPDX-License-Identifier: Apache-2.0
"""Calibration methods: from what was observed of a tensor to its range.

Both searches work on the histogram alone. Zero has a code of its own in every int8 grid, so what lies there (half of
all values behind a ReLU) costs nothing in either, and the bin of zero is left out: taken along, it is what decides,
and plain entropy calibration is known to fail by it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.config import CalibrationConfig
from tfq.errors import InputError
from tfq.patterns import check_fits, fits_op
from tfq.ptq.calibration.histogram import Bins
from tfq.ptq.calibration.observation import Observations, TensorObservation
from tfq.ptq.calibration.ranges import Ranges, TensorRange
from tfq.registry import register

# An end is tried at these fractions of what was observed: eight an octave, twelve octaves down; then sixteen finer
# steps to either side of the best.
_FRACTIONS = 2.0 ** (-np.arange(97) / 8)
_FINER = 2.0 ** (np.arange(-16, 17) / 128)
# Of entropy: one end after the other, twice, at eight fractions an octave, eight octaves down.
_SHRINKS = 2.0 ** (-np.arange(65) / 8)
_ROUNDS = 2
# Below it a range is as good as empty.
_NOTHING = 1e-30
# Parts of each step of the grid that are told apart.
_PARTS = 8


def min_mse_range(bins: Bins, num_bits: int = 8) -> tuple[float, float]:
    """(minimum, maximum) with the least mean squared error of values that are rounded and clipped to it.

    bins: of the tensor, with or without zero; not empty. The range holds zero.
    The error is what clipping takes, and step² / 12 of each value inside, but no more than its own square, which is
    the error of a value that is rounded to zero.
    Source: of step² / 12, Widrow and Kollár 2008, "Quantization Noise", ch. 4.
    """
    bins = bins.without_zero()
    if not bins.counts.size:
        return 0.0, 0.0
    low, high = min(float(bins.low[0]), 0.0), max(float(bins.high[-1]), 0.0)
    errors = _SquaredErrors(bins, num_bits)
    low, high = errors.best(low * _FRACTIONS, high * _FRACTIONS)
    return errors.best(low * _FINER, high * _FINER)


class _SquaredErrors:
    """The squared error of whole grids of ranges at once, by sums over the sorted values."""

    def __init__(self, bins: Bins, num_bits: int) -> None:
        self._steps = 2**num_bits - 1
        self._values, counts = bins.middle, bins.counts.astype(np.float64)
        self._moments = [_summed(counts * self._values**power) for power in range(3)]
        order = np.argsort(np.abs(self._values), kind="stable")
        self._magnitudes = np.abs(self._values)[order]
        self._small_counts = _summed(counts[order])
        self._small_squares = _summed((counts * self._values**2)[order])

    def best(self, lows: NDArray, highs: NDArray) -> tuple[float, float]:
        """The pair of `lows` and `highs` with the least error, the widest of equal ones."""
        lows, highs = np.unique(lows), np.unique(highs)[::-1]
        step = (highs[None, :] - lows[:, None]) / self._steps
        rounded = np.searchsorted(self._magnitudes, step / 2)
        inside = self._between(lows, highs) - self._small_counts[rounded]
        error = self._below(lows)[:, None] + self._above(highs)[None, :]
        error = error + self._small_squares[rounded] + np.maximum(inside, 0) * step**2 / 12
        row, column = np.unravel_index(int(np.argmin(np.where(step > 0, error, np.inf))), error.shape)
        return float(lows[row]), float(highs[column])

    def _between(self, lows: NDArray, highs: NDArray) -> NDArray:
        counted = self._moments[0]
        ends = counted[np.searchsorted(self._values, highs, "right")]
        return ends[None, :] - counted[np.searchsorted(self._values, lows)][:, None]

    def _below(self, lows: NDArray) -> NDArray:
        place = np.searchsorted(self._values, lows)
        count, first, second = (moment[place] for moment in self._moments)
        return second - 2 * lows * first + lows**2 * count

    def _above(self, highs: NDArray) -> NDArray:
        place = np.searchsorted(self._values, highs, "right")
        count, first, second = (moment[-1] - moment[place] for moment in self._moments)
        return second - 2 * highs * first + highs**2 * count


def min_divergence_range(bins: Bins, num_bits: int = 8) -> tuple[float, float]:
    """(minimum, maximum) whose rounded values are distributed most like the values, by Kullback-Leibler divergence.

    bins: of the tensor, with or without zero; not empty. The range holds zero.
    Source: Migacz 2017, "8-bit inference with TensorRT" (GTC); here without the bin of zero.
    """
    bins = bins.without_zero()
    if not bins.counts.size:
        return 0.0, 0.0
    low, high = min(float(bins.low[0]), 0.0), max(float(bins.high[-1]), 0.0)
    lows, highs = np.unique(low * _SHRINKS), np.unique(high * _SHRINKS)[::-1]
    for _ in range(_ROUNDS):
        high = min(highs, key=lambda end: _divergence(bins, low, end, 2**num_bits))
        low = min(lows, key=lambda end: _divergence(bins, end, high, 2**num_bits))
    return float(low), float(high)


def _divergence(bins: Bins, low: float, high: float, levels: int) -> float:
    """Of the values, clipped, from the same rounded to `levels`, each standing evenly for the parts of its step."""
    reached = _summed(bins.counts.astype(np.float64))
    # Between two bins there may be a gap, over which nothing is added.
    edges = np.stack([bins.low, bins.high], axis=1).reshape(-1)
    at = np.interp(np.linspace(low, high, levels * _PARTS + 1), edges, np.repeat(reached, 2)[1:-1])
    kept = np.diff(at)
    clipped = kept.copy()
    clipped[0] += at[0]
    clipped[-1] += reached[-1] - at[-1]
    filled = kept > 0
    shares = filled.reshape(levels, _PARTS).sum(axis=1)
    sums = kept.reshape(levels, _PARTS).sum(axis=1)
    if not sums.any():
        return float("inf")
    rounded = np.repeat(sums / np.maximum(shares, 1), _PARTS) * filled
    # What only clipping brought somewhere is nowhere in the rounded: a little is everywhere, so that this costs much,
    # and not all.
    wanted, got = (values / values.sum() + 1e-9 for values in (clipped, rounded))
    return float((wanted * np.log(wanted / got)).sum())


def _summed(values: NDArray) -> NDArray:
    """The sums of the first 0, 1, ... of `values`."""
    return np.concatenate([[0.0], np.cumsum(values)])


Range = tuple[float, float]


@registry.extension_point("calibration_method")
@dataclass(frozen=True, kw_only=True)
class CalibrationMethod:
    """How the range of an activation is chosen from what was observed of it.

    Args:
        name: What users write: `calibration.method`.
        help: What it does and what it trades away, for the help of flags and the documentation.
        choose: (observation, number of samples, config) -> (minimum, maximum), in the tensor's real units. The
            observation has a histogram only with `needs_histogram`.
        needs_histogram: Whether it needs the distribution of the values, not only their extremes. Such a method weighs
            clipping against rounding, so samples that reach far beyond all others are left out before it is asked.
    """

    name: str
    help: str
    choose: Callable[[TensorObservation, int, CalibrationConfig], Range]
    needs_histogram: bool = False


def _percentile(seen: TensorObservation, num_samples: int, config: CalibrationConfig) -> Range:
    bins, fraction = seen.bins(), config.percentile / 100
    return bins.quantile(1 - fraction), bins.quantile(fraction)


register(
    CalibrationMethod(
        name="percentile",
        help="covers calibration.percentile percent of the values at each end; robust against outliers",
        choose=_percentile,
        needs_histogram=True,
    )
)
register(
    CalibrationMethod(
        name="mse",
        help="minimizes the mean squared error of clipping and rounding",
        choose=lambda seen, num_samples, config: min_mse_range(seen.bins()),
        needs_histogram=True,
    )
)
register(
    CalibrationMethod(
        name="min_max",
        help="covers all observed values; nothing is clipped, but a single outlier makes all steps coarser",
        choose=lambda seen, num_samples, config: (seen.minimum, seen.maximum),
    )
)
register(
    CalibrationMethod(
        name="moving_average",
        help="exponential moving average of the minimum and maximum of each sample, as in quantization-aware training",
        choose=lambda seen, num_samples, config: seen.moving_average(num_samples),
    )
)
register(
    CalibrationMethod(
        name="entropy",
        help="minimizes the Kullback-Leibler divergence between the observed and the quantized distribution",
        choose=lambda seen, num_samples, config: min_divergence_range(seen.bins()),
        needs_histogram=True,
    )
)


def choose_ranges(observations: Observations, config: CalibrationConfig) -> Ranges:
    """The range of every tensor by the config's method, or by that which its pattern gives it.

    Methods that weigh what is clipped against what is rounded leave out samples that reach far beyond all others.
    Raises InputError on a pattern that fits no tensor, and where a method needs the histograms that were not kept.
    """
    named = methods_by_pattern(config)
    names = {key: seen.layer or seen.name for key, seen in observations.tensors.items()}
    for pattern, method in named:
        check_fits(
            f"calibration: {pattern}={method}",
            pattern,
            dict.fromkeys(names.values()),
            field="conversion.calibration.tensors",
            tensors={seen.name for seen in observations.tensors.values()},
        )
    tensors = {}
    for key, seen in observations.tensors.items():
        method = next(
            (way for pattern, way in reversed(named) if fits_op(names[key], (seen.name,), (pattern,))), config.method
        )
        chosen = registry.get(CalibrationMethod, method)
        minimum, maximum = chosen.choose(seen, observations.num_samples, config)
        if max(-minimum, maximum) < _NOTHING < max(-seen.minimum, seen.maximum):
            # A tensor that is nearly always 0 and sometimes not is alive: the clipped range would turn it off.
            minimum, maximum = seen.minimum, seen.maximum
        outliers: tuple[int, ...] = ()
        if chosen.needs_histogram:
            lowest, highest, outliers = seen.without_outliers(observations.num_samples)
            minimum, maximum = max(minimum, lowest), min(maximum, highest)
        tensors[key] = TensorRange(
            name=seen.name,
            layer=seen.layer,
            minimum=minimum,
            maximum=maximum,
            observed_minimum=seen.minimum,
            observed_maximum=seen.maximum,
            method=method,
            clipped=None if seen.histogram is None else seen.bins().outside(minimum, maximum),
            outlier_samples=outliers,
        )
    return Ranges(
        tensors=tensors,
        num_samples=observations.num_samples,
        model_sha256=observations.model_sha256,
        data_sha256=observations.data_sha256,
    )


def methods_by_pattern(config: CalibrationConfig) -> list[tuple[str, str]]:
    """(pattern, method) of each of the config's `tensors`. Raises InputError where one is not PATTERN=METHOD."""
    results = []
    for text in config.tensors:
        pattern, equals, method = (part.strip() for part in text.rpartition("="))
        if not equals or not pattern:
            raise InputError(
                f"calibration: {text!r}: expected PATTERN=METHOD, as in 'conv*=mse'",
                field="calibration.tensors",
                expected="PATTERN=METHOD",
                got=text,
            )
        registry.get(CalibrationMethod, method, field="calibration.tensors")
        results.append((pattern, method))
    return results


def needs_histograms(config: CalibrationConfig) -> bool:
    """Whether a method of the config needs more than extremes."""
    methods = {config.method, *(method for _, method in methods_by_pattern(config))}
    return any(registry.get(CalibrationMethod, method).needs_histogram for method in methods)

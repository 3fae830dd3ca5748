# SPDX-License-Identifier: Apache-2.0
"""Calibration methods: choose the range of a tensor from the statistics of its values.

`mse` and `entropy` search the range on the histogram, without the bin of zero. Every quantized grid represents zero
exactly, so zeros (half of all values after a ReLU) cost nothing. With that bin, zeros would dominate the search, which
is a known failure of plain entropy calibration.
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

# `mse` tries these fractions of each observed end: 8 per octave over 12 octaves; then 16 finer steps on both sides of
# the best one.
_FRACTIONS = 2.0 ** (-np.arange(97) / 8)
_FINER = 2.0 ** (np.arange(-16, 17) / 128)
# `entropy` searches one end at a time, in two rounds, at 8 fractions per octave over 8 octaves.
_SHRINKS = 2.0 ** (-np.arange(65) / 8)
_ROUNDS = 2
# A range smaller than this counts as empty.
_EMPTY = 1e-30
# `entropy` compares distributions with a resolution of this many parts per quantization step.
_PARTS = 8


def min_mse_range(bins: Bins, num_bits: int = 8) -> tuple[float, float]:
    """Return the range with the smallest mean squared error of clipping and rounding together.

    With step = (maximum - minimum) / (2^num_bits - 1), the squared error of a value x is
        (x - end)^2          if x lies outside the range, with the end that is nearer to it
        x^2                  if |x| < step / 2, because x is rounded to zero
        step^2 / 12          otherwise
    Source of step^2 / 12: Widrow and Kollár 2008, "Quantization Noise", ch. 4.

    Args:
        bins: The histogram of the tensor. The bin of zero is ignored.
        num_bits: The number of bits of the quantized type.

    Returns:
        (minimum, maximum), a range that includes zero.
    """
    bins = bins.without_zero()
    if not bins.counts.size:
        return 0.0, 0.0
    low, high = min(float(bins.low[0]), 0.0), max(float(bins.high[-1]), 0.0)
    errors = _SquaredErrors(bins, num_bits)
    low, high = errors.best(low * _FRACTIONS, high * _FRACTIONS)
    return errors.best(low * _FINER, high * _FINER)


class _SquaredErrors:
    """Squared errors of many ranges at once, from cumulative sums over the sorted values."""

    def __init__(self, bins: Bins, num_bits: int) -> None:
        """Compute the cumulative moments of the bins."""
        self._steps = 2**num_bits - 1
        self._values, counts = bins.centers, bins.counts.astype(np.float64)
        self._moments = [_cumulative(counts * self._values**power) for power in range(3)]
        order = np.argsort(np.abs(self._values), kind="stable")
        self._magnitudes = np.abs(self._values)[order]
        self._small_counts = _cumulative(counts[order])
        self._small_squares = _cumulative((counts * self._values**2)[order])

    def best(self, lows: NDArray, highs: NDArray) -> tuple[float, float]:
        """Return the pair of one of `lows` and one of `highs` with the smallest error; the widest if several have."""
        lows, highs = np.unique(lows), np.unique(highs)[::-1]
        step = (highs[None, :] - lows[:, None]) / self._steps
        rounded = np.searchsorted(self._magnitudes, step / 2)
        inside = self._between(lows, highs) - self._small_counts[rounded]
        error = self._below(lows)[:, None] + self._above(highs)[None, :]
        error = error + self._small_squares[rounded] + np.maximum(inside, 0) * step**2 / 12
        row, column = np.unravel_index(int(np.argmin(np.where(step > 0, error, np.inf))), error.shape)
        return float(lows[row]), float(highs[column])

    def _between(self, lows: NDArray, highs: NDArray) -> NDArray:
        """Return the number of values inside each range."""
        counts = self._moments[0]
        ends = counts[np.searchsorted(self._values, highs, "right")]
        return ends[None, :] - counts[np.searchsorted(self._values, lows)][:, None]

    def _below(self, lows: NDArray) -> NDArray:
        """Return the squared error of clipping at each lower end."""
        index = np.searchsorted(self._values, lows)
        count, first, second = (moment[index] for moment in self._moments)
        return second - 2 * lows * first + lows**2 * count

    def _above(self, highs: NDArray) -> NDArray:
        """Return the squared error of clipping at each upper end."""
        index = np.searchsorted(self._values, highs, "right")
        count, first, second = (moment[-1] - moment[index] for moment in self._moments)
        return second - 2 * highs * first + highs**2 * count


def min_divergence_range(bins: Bins, num_bits: int = 8) -> tuple[float, float]:
    """Return the range with the smallest Kullback-Leibler divergence between the values and the quantized values.

    Source: Migacz 2017, "8-bit inference with TensorRT" (GTC). Here the bin of zero is left out.

    Args:
        bins: The histogram of the tensor. The bin of zero is ignored.
        num_bits: The number of bits of the quantized type.

    Returns:
        (minimum, maximum), a range that includes zero.
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
    """Return the KL divergence of the clipped values from the values rounded to `levels`.

    A quantized value is spread evenly over the parts of its step that have values.
    """
    cumulative = _cumulative(bins.counts.astype(np.float64))
    # There may be gaps between bins, where the cumulative count is constant.
    edges = np.stack([bins.low, bins.high], axis=1).reshape(-1)
    at = np.interp(np.linspace(low, high, levels * _PARTS + 1), edges, np.repeat(cumulative, 2)[1:-1])
    inside = np.diff(at)
    clipped = inside.copy()
    clipped[0] += at[0]
    clipped[-1] += cumulative[-1] - at[-1]
    filled = inside > 0
    filled_parts = filled.reshape(levels, _PARTS).sum(axis=1)
    sums = inside.reshape(levels, _PARTS).sum(axis=1)
    if not sums.any():
        return float("inf")
    rounded = np.repeat(sums / np.maximum(filled_parts, 1), _PARTS) * filled
    # Parts that only have clipped values are empty in `rounded`. The small constant makes their divergence large, but
    # finite.
    p, q = (values / values.sum() + 1e-9 for values in (clipped, rounded))
    return float((p * np.log(p / q)).sum())


def _cumulative(values: NDArray) -> NDArray:
    """Return the sums of the first 0, 1, 2, ... of `values`."""
    return np.concatenate([[0.0], np.cumsum(values)])


Range = tuple[float, float]
# With longer tails than this, it is not faster to count only the values there.
_MOST_TAILS = 0.02


@registry.extension_point("calibration_method")
@dataclass(frozen=True, kw_only=True)
class CalibrationMethod:
    """A method that chooses the range of an activation from the statistics of its values.

    Args:
        name: The value of `calibration.method` that selects it.
        help: What it does and what it trades away, for flag help and documentation.
        choose: (observation, number of samples, config) -> (minimum, maximum) in real units. The observation has a
            histogram only if `needs_histogram` is set.
        needs_histogram: Whether it needs the distribution of the values in addition to their extremes. Such a method
            trades clipping against rounding, so its range is limited to the samples that are not outliers.
        tails: config -> the fraction of the values at each end whose distribution it needs; 0 if it needs all values.
            With at most 2%, the values in the middle are not counted, which is faster.
    """

    name: str
    help: str
    choose: Callable[[TensorObservation, int, CalibrationConfig], Range]
    needs_histogram: bool = False
    tails: Callable[[CalibrationConfig], float] = lambda config: 0.0


def _percentile(observation: TensorObservation, num_samples: int, config: CalibrationConfig) -> Range:
    bins, fraction = observation.bins(), config.percentile / 100
    return bins.quantile(1 - fraction), bins.quantile(fraction)


register(
    CalibrationMethod(
        name="percentile",
        help="covers calibration.percentile percent of the values at each end; robust against outliers",
        choose=_percentile,
        needs_histogram=True,
        tails=lambda config: 1 - config.percentile / 100,
    )
)
register(
    CalibrationMethod(
        name="mse",
        help="minimizes the mean squared error of clipping and rounding",
        choose=lambda observation, num_samples, config: min_mse_range(observation.bins()),
        needs_histogram=True,
    )
)
register(
    CalibrationMethod(
        name="min_max",
        help="covers all observed values; nothing is clipped, but a single outlier makes all steps coarser",
        choose=lambda observation, num_samples, config: (observation.minimum, observation.maximum),
    )
)
register(
    CalibrationMethod(
        name="moving_average",
        help="exponential moving average of the minimum and maximum of each sample, as in quantization-aware training",
        choose=lambda observation, num_samples, config: observation.moving_average(num_samples),
    )
)
register(
    CalibrationMethod(
        name="entropy",
        help="minimizes the Kullback-Leibler divergence between the observed and the quantized distribution",
        choose=lambda observation, num_samples, config: min_divergence_range(observation.bins()),
        needs_histogram=True,
    )
)


def choose_ranges(observations: Observations, config: CalibrationConfig) -> Ranges:
    """Choose the range of each tensor with the method of the config.

    Ranges of methods that need histograms are limited to the samples that are not outliers.

    Args:
        observations: The statistics of the activations.
        config: `method` is the default; `tensors` (PATTERN=METHOD) overrides it, the last matching pattern first.

    Raises:
        InputError: A pattern matches no tensor, or a method needs histograms and there are none.
    """
    named = methods_by_pattern(config)
    names = {key: observation.layer or observation.name for key, observation in observations.tensors.items()}
    for pattern, method in named:
        check_fits(
            f"calibration: {pattern}={method}",
            pattern,
            dict.fromkeys(names.values()),
            field="conversion.calibration.tensors",
            tensors={observation.name for observation in observations.tensors.values()},
        )
    tensors = {}
    for key, observation in observations.tensors.items():
        method = next(
            (name for pattern, name in reversed(named) if fits_op(names[key], (observation.name,), (pattern,))),
            config.method,
        )
        chosen = registry.get(CalibrationMethod, method)
        minimum, maximum = chosen.choose(observation, observations.num_samples, config)
        if max(-minimum, maximum) < _EMPTY < max(-observation.minimum, observation.maximum):
            # A tensor that is nearly always 0 but not dead: an empty range would turn it off.
            minimum, maximum = observation.minimum, observation.maximum
        outliers: tuple[int, ...] = ()
        if chosen.needs_histogram:
            lowest, highest, outliers = observation.without_outliers(observations.num_samples)
            minimum, maximum = max(minimum, lowest), min(maximum, highest)
        tensors[key] = TensorRange(
            name=observation.name,
            layer=observation.layer,
            minimum=minimum,
            maximum=maximum,
            observed_minimum=observation.minimum,
            observed_maximum=observation.maximum,
            method=method,
            clipped=None if observation.histogram is None else observation.bins().fraction_outside(minimum, maximum),
            outlier_samples=outliers,
        )
    return Ranges(
        tensors=tensors,
        num_samples=observations.num_samples,
        model_sha256=observations.model_sha256,
        data_sha256=observations.data_sha256,
    )


def methods_by_pattern(config: CalibrationConfig) -> list[tuple[str, str]]:
    """Return the (pattern, method) pairs of the config's `tensors`.

    Raises:
        InputError: An entry is not PATTERN=METHOD, or there is no such method.
    """
    results = []
    for text in config.tensors:
        pattern, equals, method = (part.strip() for part in text.rpartition("="))
        if not equals or not pattern:
            raise InputError(
                f"calibration.tensors: expected PATTERN=METHOD, as in 'conv*=mse', got {text!r}",
                field="calibration.tensors",
                expected="PATTERN=METHOD",
                got=text,
            )
        registry.get(CalibrationMethod, method, field="calibration.tensors")
        results.append((pattern, method))
    return results


def needs_histograms(config: CalibrationConfig) -> bool:
    """Check whether a method of the config needs histograms."""
    methods = {config.method, *(method for _, method in methods_by_pattern(config))}
    return any(registry.get(CalibrationMethod, method).needs_histogram for method in methods)


def needed_tails(config: CalibrationConfig) -> float:
    """Return the fraction of the values at each end whose distribution the methods need; 0 if they need all values."""
    names = {config.method, *(method for _, method in methods_by_pattern(config))}
    methods = [registry.get(CalibrationMethod, name) for name in names]
    tails = [method.tails(config) for method in methods if method.needs_histogram]
    return max(tails) if tails and min(tails) > 0 and max(tails) <= _MOST_TAILS else 0.0

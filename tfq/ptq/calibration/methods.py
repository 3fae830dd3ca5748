# SPDX-License-Identifier: Apache-2.0
"""From what was seen of a tensor to its range: one function a method."""

from collections.abc import Callable, Mapping

from tfq.config import CalibrationConfig
from tfq.errors import InputError, did_you_mean
from tfq.patterns import check_fits, fits
from tfq.ptq.calibration.clipping import least_divergence_range, least_square_range
from tfq.ptq.calibration.observation import Observations, TensorObservation
from tfq.ptq.calibration.ranges import Ranges, TensorRange

Range = tuple[float, float]


def _min_max(seen: TensorObservation, num_samples: int, config: CalibrationConfig) -> Range:
    return seen.minimum, seen.maximum


def _moving_average(seen: TensorObservation, num_samples: int, config: CalibrationConfig) -> Range:
    return seen.moving_average(num_samples)


def _percentile(seen: TensorObservation, num_samples: int, config: CalibrationConfig) -> Range:
    bins, share = seen.bins(), config.percentile / 100
    return bins.quantile(1 - share), bins.quantile(share)


def _mse(seen: TensorObservation, num_samples: int, config: CalibrationConfig) -> Range:
    return least_square_range(seen.bins())


def _entropy(seen: TensorObservation, num_samples: int, config: CalibrationConfig) -> Range:
    return least_divergence_range(seen.bins())


METHODS: Mapping[str, Callable[[TensorObservation, int, CalibrationConfig], Range]] = {
    "min_max": _min_max,
    "moving_average": _moving_average,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
# What they need beyond extremes.
WITH_HISTOGRAM = frozenset(("percentile", "mse", "entropy"))


def choose_ranges(observations: Observations, config: CalibrationConfig) -> Ranges:
    """The range of every tensor by the config's method, or by that which its pattern gives it.

    Methods that weigh what is clipped against what is rounded leave out samples that reach far beyond all others.
    Raises InputError on a pattern that fits no tensor, and where a method needs the histograms that were not kept.
    """
    named = methods_by_pattern(config)
    names = {key: seen.layer or seen.name for key, seen in observations.tensors.items()}
    for pattern, method in named:
        check_fits(f"calibration: {pattern}={method}", pattern, dict.fromkeys(names.values()))
    tensors = {}
    for key, seen in observations.tensors.items():
        method = next((way for pattern, way in reversed(named) if fits(names[key], (pattern,))), config.method)
        minimum, maximum = METHODS[method](seen, observations.num_samples, config)
        outliers: tuple[int, ...] = ()
        if method in WITH_HISTOGRAM:
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
    found = []
    for text in config.tensors:
        pattern, equals, method = (part.strip() for part in text.rpartition("="))
        if not equals or not pattern:
            raise InputError(f"calibration: {text!r}: wanted PATTERN=METHOD, as in 'conv*=mse'")
        if method not in METHODS:
            raise InputError(f"calibration: {text!r}: unknown method: {did_you_mean(method, METHODS)}")
        found.append((pattern, method))
    return found


def needs_histograms(config: CalibrationConfig) -> bool:
    """Whether a method of the config needs more than extremes."""
    return not WITH_HISTOGRAM.isdisjoint((config.method, *(method for _, method in methods_by_pattern(config))))

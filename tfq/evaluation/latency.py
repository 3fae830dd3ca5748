# SPDX-License-Identifier: Apache-2.0
"""The time of an inference: percentiles and moments."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfq.errors import InputError

PERCENTILES = (50, 90, 99)
QUANTILES = tuple(range(0, 101, 5))


def latency_percentiles(latencies_ms: ArrayLike) -> dict[str, float]:
    """{"latency_p50_ms": ..., "latency_p90_ms": ..., "latency_p99_ms": ...} of (n,) milliseconds, n >= 1.

    Interpolated linearly between the two nearest measurements. Raises InputError on none, NaN or negative ones.
    """
    times = checked_latencies(latencies_ms)
    return {
        f"latency_p{percentile}_ms": float(value)
        for percentile, value in zip(PERCENTILES, np.percentile(times, PERCENTILES), strict=True)
    }


def latency_statistics(latencies_ms: ArrayLike) -> dict[str, object]:
    """mean_ms, std_ms, p50_ms, p90_ms, p99_ms, min_ms, max_ms and quantiles_ms of (n,) milliseconds, n >= 1.

    std_ms: of the sample (over n - 1); None of a single one. quantiles_ms: 21 values, 0 to 100 % in steps of 5.
    Percentiles as in `latency_percentiles`; raises what it raises.
    """
    times = checked_latencies(latencies_ms)
    percentiles = latency_percentiles(times)
    return {
        "mean_ms": float(times.mean()),
        "std_ms": float(times.std(ddof=1)) if times.size > 1 else None,
        **{f"p{percentile}_ms": percentiles[f"latency_p{percentile}_ms"] for percentile in PERCENTILES},
        "min_ms": float(times.min()),
        "max_ms": float(times.max()),
        "quantiles_ms": [float(value) for value in np.percentile(times, QUANTILES)],
    }


def checked_latencies(latencies_ms: ArrayLike) -> NDArray[np.float64]:
    """The latencies as float64 (n,), n >= 1. Raises InputError on none, NaN, infinite or negative ones."""
    times = np.asarray(latencies_ms, np.float64)
    if times.ndim != 1 or not times.size or not ((times >= 0) & np.isfinite(times)).all():
        raise InputError(f"latencies of shape {times.shape}: wanted at least one, each a number of milliseconds >= 0")
    return times

# SPDX-License-Identifier: Apache-2.0
"""Percentiles of the time of an inference."""

import numpy as np
from numpy.typing import ArrayLike

from tfq.errors import InputError

PERCENTILES = (50, 90, 99)


def latency_percentiles(latencies_ms: ArrayLike) -> dict[str, float]:
    """{"latency_p50_ms": ..., "latency_p90_ms": ..., "latency_p99_ms": ...} of (n,) milliseconds, n >= 1.

    Interpolated linearly between the two nearest measurements. Raises InputError on none, NaN or negative ones.
    """
    times = np.asarray(latencies_ms, np.float64)
    if times.ndim != 1 or not times.size or not (times >= 0).all():
        raise InputError(f"latencies of shape {times.shape}: wanted at least one, each a number of milliseconds >= 0")
    return {
        f"latency_p{percentile}_ms": float(value)
        for percentile, value in zip(PERCENTILES, np.percentile(times, PERCENTILES), strict=True)
    }

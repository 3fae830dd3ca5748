# SPDX-License-Identifier: Apache-2.0
"""Float bytes and data -> activation ranges: observe (what was there), choose (what the codes are to span)."""

from tfq.calibration.calibrate import calibrate
from tfq.calibration.histogram import Bins, Histogram
from tfq.calibration.methods import METHODS, choose_ranges
from tfq.calibration.observation import Observations, TensorObservation, merge_observations
from tfq.calibration.observer import observe
from tfq.calibration.ranges import Ranges, TensorRange

__all__ = [
    "METHODS",
    "Bins",
    "Histogram",
    "Observations",
    "Ranges",
    "TensorObservation",
    "TensorRange",
    "calibrate",
    "choose_ranges",
    "merge_observations",
    "observe",
]

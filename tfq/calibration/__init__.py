# SPDX-License-Identifier: Apache-2.0
"""Float bytes and data -> activation ranges. A better calibrator is one more entry of CALIBRATORS."""

from tfq.calibration.ranges import Calibrator, Ranges, Samples
from tfq.calibration.tensorflow_calibrator import tensorflow_min_max
from tfq.errors import InputError, did_you_mean

CALIBRATORS: dict[str, Calibrator] = {"tensorflow": tensorflow_min_max}

__all__ = ["CALIBRATORS", "Calibrator", "Ranges", "Samples", "calibrate"]


def calibrate(model: bytes, samples: Samples, method: str = "tensorflow") -> Ranges:
    """Activation ranges of the float flatbuffer `model` over `samples` (by input name, batch 1)."""
    if method not in CALIBRATORS:
        raise InputError(f"unknown calibration method {method!r}: {did_you_mean(method, CALIBRATORS)}")
    return CALIBRATORS[method](model, samples)

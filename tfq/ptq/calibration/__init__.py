# SPDX-License-Identifier: Apache-2.0
"""Calibration: observe the activations of a float flatbuffer on data, and choose their quantization ranges."""

from tfq.ptq.calibration.calibrate import (
    Outputs,
    calibrate,
    calibrate_with_outputs,
    lstm_states,
    with_intermediate_tensors,
)
from tfq.ptq.calibration.histogram import Bins, Histogram
from tfq.ptq.calibration.kernel_limits import with_kernel_limits
from tfq.ptq.calibration.methods import CalibrationMethod, choose_ranges
from tfq.ptq.calibration.observation import Observations, TensorObservation, merge_observations
from tfq.ptq.calibration.observer import observe
from tfq.ptq.calibration.ranges import Ranges, TensorRange

__all__ = [
    "Bins",
    "CalibrationMethod",
    "Histogram",
    "Observations",
    "Outputs",
    "Ranges",
    "TensorObservation",
    "TensorRange",
    "calibrate",
    "calibrate_with_outputs",
    "choose_ranges",
    "lstm_states",
    "merge_observations",
    "observe",
    "with_intermediate_tensors",
    "with_kernel_limits",
]

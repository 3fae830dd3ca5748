# SPDX-License-Identifier: Apache-2.0
"""TensorFlow's own calibrator instead of tfq's: the result is bit-identical to that of TFLiteConverter."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from numpy.typing import NDArray

from tfq import tflite
from tfq.ptq import calibration


def stock_ranges(model: bytes, samples: Sequence[Mapping[str, NDArray]], config: Any = None) -> calibration.Ranges:
    """Return the ranges of TensorFlow's own calibrator, which are too wide for the inputs of some ADDs."""
    from tensorflow.lite.python.optimize import calibrator

    (name,) = tflite.read(model).input_names
    feed = ([sample[name]] for sample in samples)
    calibrated = calibrator.Calibrator(calibrator.add_intermediate_tensors(model)).calibrate(lambda: feed)
    results = {
        key: calibration.TensorRange(
            name="",
            layer=None,
            minimum=low,
            maximum=high,
            observed_minimum=low,
            observed_maximum=high,
            method="stock",
        )
        for key, (low, high) in tflite.read_ranges(bytes(calibrated)).items()
    }
    return calibration.Ranges(tensors=results, num_samples=len(samples), model_sha256="", data_sha256=())


def use_stock_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let conversions calibrate with `stock_ranges`; no float outputs are kept, as if the ranges came from a file."""

    def calibrate(model: bytes, samples: Sequence[Mapping[str, NDArray]], *_: Any, **__: Any) -> Any:
        return stock_ranges(model, samples), {}

    monkeypatch.setattr(calibration, "calibrate_with_outputs", calibrate)

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare the wall time from a Keras model to a full-int8 file: tfq.convert, TFLiteConverter and litert-quantizer.

    pip install -c constraints.txt -e .[litert]
    python benchmarks/ptq_tools.py [--models=EfficientNetB0,ResNet50] [--rounds=3]

The models are those of keras.applications at 224x224 with random weights, the samples 100 random images. The tools take
turns. litert-quantizer starts from a float file, whose conversion by TFLiteConverter counts as its time; the script
also prints this part. tfq also verifies its file, which the others do not do. The script prints each round, and the
ratios of the medians.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from conversion import stock
from frontier import by_litert_quantizer as from_float
from numpy.typing import NDArray

import tfq
from tfq.keras_bridge import import_keras

SAMPLES = 100


def by_tfq(model: Any, images: NDArray) -> bytes:
    config = tfq.ConversionConfig(num_calibration_samples=len(images))
    return tfq.convert(model, lambda: ([image] for image in images), config)


def by_tensorflow(model: Any, images: NDArray) -> bytes:
    with contextlib.redirect_stdout(sys.stderr):
        return stock(model, images)


def by_litert_quantizer(model: Any, images: NDArray) -> bytes:
    import tensorflow as tf

    begin = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        floating = bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    print(f"float conversion for litert-quantizer: {time.perf_counter() - begin:.1f} s", flush=True)
    return from_float(floating, images[:, 0], "static_wi8_ai8")


TOOLS: dict[str, Callable[[Any, NDArray], bytes]] = {
    "tfq": by_tfq,
    "TFLiteConverter": by_tensorflow,
    "litert-quantizer": by_litert_quantizer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="EfficientNetB0,ResNet50")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.models.split(","):
        model = getattr(import_keras().applications, name)(weights=None)
        images = np.random.default_rng(0).random((SAMPLES, 1, *model.input_shape[1:]), np.float32) * 255
        secs: dict[str, list[float]] = {tool: [] for tool in TOOLS}
        for _ in range(arguments.rounds):
            for tool, convert in TOOLS.items():
                begin = time.perf_counter()
                convert(model, images)
                secs[tool].append(time.perf_counter() - begin)
                print(f"{name}, {tool}: {secs[tool][-1]:.1f} s", flush=True)
        medians = {tool: statistics.median(values) for tool, values in secs.items()}
        ratios = ", ".join(f"{tool} {median / medians['tfq']:.1f}x" for tool, median in medians.items())
        print(f"{name}: {ratios}", flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare calibration with TensorFlow's own calibrator: time for the same float flatbuffer and samples, in one run.

    python benchmarks/calibration.py [--rounds=3]

The models are ResNet8 with 500 samples and MobileNetV2 at 224x224 with 100. Weights and samples are random, which take
as long as real ones. The script prints ratios of the medians of --rounds rounds; each round times every method once.
It then prints the cost of one layer's sensitivity relative to an evaluation of the same 512 images by a plain loop (one
interpreter, one thread, XNNPACK), and the additional memory that calibration needs with 50 samples and with ten times
as many. The exit code is 1 if a ratio misses its bound or if memory grows with the number of samples.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfq
from tfq import tflite
from tfq.analysis import op_sensitivity
from tfq.models import MODELS
from tfq.ptq import calibration

# Method -> the speedup over TensorFlow's calibrator that it must reach.
BOUNDS = {"min_max": 4.0, "moving_average": 4.0, "percentile": 2.5, "mse": 2.5, "entropy": 0.0}
MOST_GROWTH = 1.1
# Time of a layer's sensitivity relative to an evaluation of the same images.
MOST_SENSITIVITY, SENSITIVITY_IMAGES = 1.5, 512


def resnet8() -> Any:
    from tfq.keras_bridge import import_tf_keras

    return MODELS["resnet8"](import_tf_keras())


def mobilenet_v2() -> Any:
    from tfq.keras_bridge import import_keras

    return import_keras().applications.MobileNetV2(weights=None)


CASES: dict[str, tuple[Callable[[], Any], int]] = {"ResNet8": (resnet8, 500), "MobileNetV2 @224": (mobilenet_v2, 100)}


def samples_of(model: bytes, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield random samples, generated on demand."""
    parsed = tflite.read(model)
    (tensor,) = parsed.main_subgraph.input_tensors
    for seed in range(count):
        yield {parsed.input_names[0]: np.random.default_rng(seed).uniform(0, 1, tensor.shape).astype(np.float32)}


def stock(model: bytes, samples: list[dict[str, np.ndarray]]) -> None:
    """Run TensorFlow's own calibrator as TFLiteConverter calls it."""
    from tensorflow.lite.python.optimize import calibrator

    feed = (list(sample.values()) for sample in samples)
    calibrator.Calibrator(calibrator.add_intermediate_tensors(model)).calibrate(lambda: feed)


def seconds(run: Callable[[], Any]) -> float:
    begin = time.monotonic()
    run()
    return time.monotonic() - begin


def ratios(model: bytes, count: int, rounds: int) -> tuple[float, dict[str, float]]:
    """Return (seconds of TensorFlow's calibrator, {method: speedup over it})."""
    samples = list(samples_of(model, count))
    runs: dict[str, Callable[[], Any]] = {"stock": lambda: stock(model, samples)}
    for method in BOUNDS:
        config = tfq.CalibrationConfig(method=method)
        runs[method] = lambda config=config: calibration.calibrate(model, samples, config)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    middle = {name: statistics.median(item) for name, item in times.items()}
    return middle["stock"], {name: middle["stock"] / middle[name] for name in BOUNDS}


def sensitivity_ratio(model: bytes, rounds: int) -> tuple[float, int]:
    """Return (time of one layer's sensitivity relative to an evaluation of the same images, number of layers)."""
    from ai_edge_litert.interpreter import Interpreter

    samples = list(samples_of(model, SENSITIVITY_IMAGES))
    ranges = calibration.calibrate(model, samples[:100])
    layers = len(op_sensitivity(model, ranges, samples[:1]))

    def evaluate() -> None:
        interpreter = Interpreter(model_content=model, num_threads=1)
        interpreter.allocate_tensors()
        (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
        for sample in samples:
            (values,) = sample.values()
            interpreter.set_tensor(source["index"], values)
            interpreter.invoke()
            interpreter.get_tensor(target["index"])

    times: dict[str, list[float]] = {"all": [], "one": []}
    for _ in range(rounds):
        times["all"].append(seconds(lambda: op_sensitivity(model, ranges, samples)))
        times["one"].append(seconds(evaluate))
    return statistics.median(times["all"]) / layers / statistics.median(times["one"]), layers


def peak_bytes(path: str, count: int) -> int:
    """Return the peak memory of a separate process that observes the samples, including histograms."""
    result = subprocess.run(
        [sys.executable, __file__, f"--observe={path}", f"--count={count}"], check=True, capture_output=True, text=True
    )
    return int(result.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--observe", default="", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.observe:
        with open(arguments.observe, "rb") as file:
            model = file.read()
        calibration.observe(model, samples_of(model, arguments.count))
        # Not getrusage, which also counts the parent's memory at the fork.
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(int(line.split()[1]) * 1024)
        return 0
    failed = []
    print("| model | samples | TensorFlow's calibrator | " + " | ".join(BOUNDS) + " |")
    print("|---" * (3 + len(BOUNDS)) + "|")
    for name, (build, count) in CASES.items():
        model = tfq.convert(build(), config=tfq.ConversionConfig(scheme="float32"))
        secs, result = ratios(model, count, arguments.rounds)
        print(f"| {name} | {count} | {secs:.2f} s | " + " | ".join(f"{ratio:.1f}x" for ratio in result.values()) + " |")
        failed += [
            f"{name}, {method}: {result[method]:.1f}x" for method, bound in BOUNDS.items() if result[method] < bound
        ]
        if name == "ResNet8":
            small = model
    ratio, layers = sensitivity_ratio(small, arguments.rounds)
    print(
        f"\nsensitivity of one of ResNet8's {layers} layers: {ratio:.2f}x an evaluation of {SENSITIVITY_IMAGES} images"
    )
    if ratio > MOST_SENSITIVITY:
        failed.append(f"sensitivity of a layer: {ratio:.2f}x an evaluation, expected at most {MOST_SENSITIVITY}x")
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(small)
        file.flush()
        few, many = (peak_bytes(file.name, count) for count in (50, 500))
    few_mb, many_mb = (round(size / 2**20) for size in (few, many))
    print(f"\nmemory of a process that observes ResNet8: {few_mb} MB with 50 samples, {many_mb} MB with 500")
    if many > MOST_GROWTH * few:
        failed.append(f"memory: {many / few:.2f}x with ten times as many samples")
    for message in failed:
        print(f"MISSED: {message}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

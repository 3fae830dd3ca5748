#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure the peak memory of converting ResNet50 (102 MB of weights), and how much of it is TensorFlow's.

    python benchmarks/conversion_memory.py

Each case is a new process. The peak is the largest resident set (VmHWM in /proc/self/status) of the process that
converts; children have their own. Weights and samples are random.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfq
from tfq.keras_bridge import import_tf_keras

NUM_SAMPLES = 8


def built() -> Any:
    return import_tf_keras().applications.ResNet50(weights=None)


def samples() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (NUM_SAMPLES, 224, 224, 3)).astype(np.float32)


def by_tensorflow(int8: bool) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(built())
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples())
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.convert()


def by_tfq(int8: bool) -> None:
    if int8:
        tfq.convert(built(), samples())
    else:
        tfq.convert(built(), config=tfq.ConversionConfig(scheme="float32"))


CASES: dict[str, Callable[[], Any]] = {
    "import of TensorFlow and tf_keras": import_tf_keras,
    "ResNet50 built": built,
    "float32: TFLiteConverter": lambda: by_tensorflow(False),
    "float32: tfq": lambda: by_tfq(False),
    "int8: TFLiteConverter": lambda: by_tensorflow(True),
    "int8: tfq": lambda: by_tfq(True),
}


def peak_mb() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        CASES[arguments.case]()
        print(peak_mb())
        return
    print("| | peak MB |\n|---|---|")
    for name in CASES:
        command = [sys.executable, __file__, f"--case={name}"]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        print(f"| {name} | {result.stdout.split()[-1]} |", flush=True)


if __name__ == "__main__":
    main()

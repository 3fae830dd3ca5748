#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare the time to convert MobileNetV2 0.35 @96 to full int8: tfq.convert against from_keras_model, alternately.

There are three cases: PTQ with 100 samples (bound 6x), the tfmot QAT model (8x), and the export by Int8Evaluation of
the QAT model at a later epoch, when it is already traced (15x). The outputs of both flatbuffers on 50 images must be
bit-identical. PTQ outputs may differ by one step on average, because TensorFlow's calibrator uses too wide ranges for
the inputs of some ADDs and tfq's does not. Weights are random; they do not affect the time. The exit code is 1 below a
bound or on a different output. The script takes about three minutes.

    python benchmarks/conversion.py [--rounds=1]
"""

import argparse
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfq
from tfq.backends import LocalBackend, RunRequest
from tfq.keras_bridge import import_tf_keras, import_tfmot

SHAPE = (96, 96, 3)
BOUNDS = {"PTQ": 6.0, "QAT": 8.0, "QAT, traced before": 15.0}


def stock(model, samples) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if samples is not None:
        converter.representative_dataset = lambda: ([sample] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def timed(function, *arguments):
    start = time.perf_counter()
    value = function(*arguments)
    return value, time.perf_counter() - start


def outputs_of(model: bytes, quantized_inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    return LocalBackend().assess(RunRequest(model=model, inputs=(quantized_inputs,))).computed_outputs()


def same_outputs(one: bytes, other: bytes, quantized_inputs: np.ndarray) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in zip(outputs_of(one, quantized_inputs), outputs_of(other, quantized_inputs), strict=True)
    )


def near_outputs(one: bytes, other: bytes, quantized_inputs: np.ndarray) -> bool:
    pairs = zip(outputs_of(one, quantized_inputs), outputs_of(other, quantized_inputs), strict=True)
    return all(np.abs(a.astype(np.int32) - b).mean() <= 1 for a, b in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    samples = rng.random((100, 1, *SHAPE)).astype(np.float32)
    quantized = rng.integers(-128, 128, (50, *SHAPE)).astype(np.int8)
    tf_keras, tfmot = import_tf_keras(), import_tfmot()
    plain = tf_keras.applications.MobileNetV2(SHAPE, alpha=0.35, weights=None, classes=10)
    qat = tfmot.quantization.keras.quantize_model(plain)
    qat(samples[:32, 0], training=True)
    results = []
    for _ in range(rounds):
        results += one_round(plain, qat, samples, quantized)
    failed = False
    for case, bound in BOUNDS.items():
        rows = [row for row in results if row[0] == case]
        ratio = float(np.median([slow / fast for _, slow, fast, _ in rows]))
        same = all(row[3] for row in rows)
        slow, fast = (float(np.median([row[index] for row in rows])) for index in (1, 2))
        failed |= ratio < bound or not same
        message = "outputs agree" if same else "DIFFERENT OUTPUTS"
        print(f"{case:20} stock {slow:6.2f} s  tfq {fast:5.2f} s  ratio {ratio:5.1f}x (bound {bound:g}x)  {message}")
    return 1 if failed else 0


def one_round(plain, qat, samples, quantized_inputs) -> list[tuple[str, float, float, bool]]:
    ours, fast = timed(
        tfq.convert, plain, lambda: ([sample] for sample in samples), tfq.ConversionConfig(num_calibration_samples=100)
    )
    theirs, slow = timed(stock, plain, samples)
    rows = [("PTQ", slow, fast, near_outputs(ours, theirs, quantized_inputs))]
    ours, fast = timed(tfq.convert, qat)
    theirs, slow = timed(stock, qat, None)
    rows.append(("QAT", slow, fast, same_outputs(ours, theirs, quantized_inputs)))
    traced = tfq.trace(qat)
    tfq.convert(traced)
    again, fast = timed(tfq.convert, traced)
    rows.append(("QAT, traced before", slow, fast, same_outputs(again, theirs, quantized_inputs)))
    return rows


if __name__ == "__main__":
    sys.exit(main())

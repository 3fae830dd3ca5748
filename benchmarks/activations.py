#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what each Keras 3 activation loses in int8: stock TFLiteConverter and tfq on a small trained classifier.

    python benchmarks/activations.py [--activations=relu,softplus,...] [--epochs=10]

The model has two convolutions and a dense layer, with the activation after all but the last, and is trained on the
digits. The same samples calibrate both converters. SQNR is that of the logits on the test images. The exit code is 1
if tfq's flatbuffer is not full int8, or if its SQNR is below 25 dB or more than 1 dB below stock's. There is no bound
on the SQNR of an exponential, whose single range leaves no quantized values for small numbers. One activation takes
about six seconds of CPU time.
"""

import argparse
import os
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from typing import Any

import keras
import numpy as np

import tfq
from tfq.backends import RunRequest, make_backend
from tfq.data import Split, as_split
from tfq.evaluation import decode_outputs, prepare_inputs

ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "hard_silu", "mish", "softplus"),
    *("log_sigmoid", "softsign", "tanh", "hard_tanh", "sigmoid", "hard_sigmoid", "squareplus", "exponential"),
)
BOUND_DB, MAX_LOSS_DB = 25.0, 1.0


def trained(activation: str, split: Split, epochs: int) -> Any:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input(split.inputs["x"].shape[1:])
    x = keras.layers.Rescaling(1 / 8, offset=-1)(x)
    for filters in (16, 32):
        x = keras.layers.Conv2D(filters, 3, activation=activation)(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(split.inputs["x"], split.labels, epochs=epochs, batch_size=32, verbose=0)
    return model


def stock(model: Any, samples: np.ndarray) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def measured(content: bytes, test: Split, expected: np.ndarray) -> tuple[float, float]:
    """Return (accuracy, SQNR of the logits in dB)."""
    parsed = tfq.tflite.read(content)
    request = RunRequest(model=content, inputs=prepare_inputs(parsed, test).arrays)
    [logits] = decode_outputs(parsed, make_backend("local").assess(request).computed_outputs())
    logits = logits.reshape(expected.shape)
    noise = np.square(expected - logits).sum()
    accuracy = float((logits.argmax(axis=1) == test.labels).mean())
    return accuracy, float(10 * np.log10(np.square(expected).sum() / noise))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", default=",".join(ACTIVATIONS))
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    data = tfq.DataConfig(source="digits")
    train, test = (next(as_split(tfq.load_split(data, name)).pieces()) for name in ("train", "test"))
    samples = train.take(tfq.ConversionConfig().num_calibration_samples)
    print("| | float | stock int8 | logit SQNR | tfq int8 | logit SQNR |")
    print("|---|---|---|---|---|---|")
    failed = []
    for activation in arguments.activations.split(","):
        model = trained(activation, train, arguments.epochs)
        expected = np.asarray(model(test.inputs["x"]))
        theirs, theirs_db = measured(stock(model, samples.inputs["x"]), test, expected)
        content = tfq.convert(model, samples)
        ours, ours_db = measured(content, test, expected)
        accuracy = (expected.argmax(axis=1) == test.labels).mean()
        print(
            f"| {activation} | {accuracy:.1%} | {theirs:.1%} | {theirs_db:.1f} dB | {ours:.1%} | {ours_db:.1f} dB |",
            flush=True,
        )
        report = tfq.audit(content, tfq.AuditConfig(require="full_int8"))
        after = activation != "exponential" and (ours_db < BOUND_DB or ours_db < theirs_db - MAX_LOSS_DB)
        if after or not report.ok:
            failed.append(f"{activation}: {ours_db:.1f} dB, {report.scheme}")
    for message in failed:
        print(f"MISSED: {message}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure how the compressed forms of a classifier of speech features degrade when the signal is corrupted.

    pip download --no-deps aeon
    python benchmarks/robustness_vowels.py --archive=aeon.whl --out=out/vowels [--epochs=60] [--seed=0]

The data is JapaneseVowels (nine speakers say two vowels; 12 cepstrum coefficients over at most 29 steps; 270 training
and 370 test examples) from the wheel of the Python package aeon. A small one-dimensional convolutional network is
trained, then trained again in each compressed form as in robustness_resnet8.py; the float model has the same two
trainings. Results in --out are used again.
"""

import argparse
import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from compression_training import copied, exit_with, kept_record
from robustness_resnet8 import INT4, MODELS, SPARSITY
from robustness_tables import tables_of

import tfq
from tfq.artifacts import make_out_dir, sha256_file, write_bytes, write_json

FOLDER = "aeon/datasets/data/JapaneseVowels/JapaneseVowels"
STEPS, CHANNELS, CLASSES = 29, 12, 9


def examples_of(archive: zipfile.ZipFile, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ((n, steps, channels) float32, (n,) int64); shorter series are filled with zeros."""
    series, labels, is_data = [], [], False
    for line in io.TextIOWrapper(archive.open(f"{FOLDER}_{part}.ts"), "utf-8"):
        text = line.strip()
        if is_data and text:
            *channels, label = text.split(":")
            values = np.array([[float(value) for value in channel.split(",")] for channel in channels], np.float32).T
            series.append(np.pad(values, ((0, STEPS - len(values)), (0, 0))))
            labels.append(int(label) - 1)
        is_data = is_data or text.lower() == "@data"
    return np.stack(series), np.array(labels, np.int64)


def network() -> Any:
    """Return a network of 12,000 weights."""
    from tfq.keras_bridge import import_tf_keras

    keras = import_tf_keras()
    source = keras.Input((STEPS, CHANNELS), name="features")
    values = source
    for filters, strides in ((32, 1), (48, 2), (48, 2)):
        values = keras.layers.Conv1D(filters, 3, strides=strides, padding="same", use_bias=False)(values)
        values = keras.layers.BatchNormalization()(values)
        values = keras.layers.ReLU()(values)
    values = keras.layers.GlobalAveragePooling1D()(values)
    return keras.Model(source, keras.layers.Dense(CLASSES, activation="softmax")(values))


def fit_for(x: np.ndarray, y: np.ndarray, epochs: int) -> Any:
    """Return the `fit` function of all trainings: Adam, decayed along a cosine, batches of 32."""
    from tfq.keras_bridge import import_tf_keras

    keras = import_tf_keras()

    def fit(model: Any, callbacks: list[Any]) -> None:
        steps = epochs * -(-len(x) // 32)
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps))
        model.compile(optimizer, loss="sparse_categorical_crossentropy", jit_compile=False)
        model.fit(x, y, batch_size=32, epochs=epochs, callbacks=callbacks, verbose=0)

    return fit


def build(arguments: argparse.Namespace, train: tuple[np.ndarray, np.ndarray], out: Path) -> None:
    """Train and convert the models."""
    from tfq.compression import prune_model, qat_model
    from tfq.compression.training import deterministic

    x, y = train
    fit, more = fit_for(x, y, arguments.epochs), fit_for(x, y, arguments.epochs // 2)
    samples = x[:200]
    with deterministic(arguments.seed):
        base = network()
        fit(base, [])
        trained = copied(base)
        more(trained, [])
        steps = (arguments.epochs // 2) * -(-len(x) // 32)
        pruned = prune_model(copied(base), more, tfq.PruneConfig(final_sparsity=SPARSITY, end_step=steps // 2))
        qat = qat_model(copied(base), more, tfq.QATConfig(), calibration=x)
    contents = {
        "float": tfq.convert(trained, config=tfq.ConversionConfig(scheme="float32")),
        "ptq_int8": tfq.convert(trained, samples),
        "int4": tfq.convert(trained, samples, INT4),
        "pruned80_int8": tfq.convert(pruned, samples),
        "qat_int8": tfq.convert(qat, samples),
    }
    for name, content in contents.items():
        write_bytes(out / f"{name}.tflite", content)


def main() -> int:
    arguments = parsed()
    warnings.simplefilter("once", tfq.TfqWarning)
    out = make_out_dir(arguments.out)
    settings = {"archive": sha256_file(arguments.archive), "epochs": arguments.epochs, "seed": arguments.seed}
    record = kept_record(out / "robustness.json", settings)
    if record is None:
        with zipfile.ZipFile(arguments.archive) as archive:
            train, test = (examples_of(archive, part) for part in ("TRAIN", "TEST"))
        np.savez(out / "vowels.npz", x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
        build(arguments, train, out)
        models = {name: out / f"{name}.tflite" for name in MODELS}
        asked = tfq.EvaluationConfig(robustness=tfq.RobustnessConfig(limit=0, seed=arguments.seed))
        record = {"settings": settings, **tfq.evaluate_robustness(models, test, asked, reference="float").to_dict()}
        write_json(out / "robustness.json", record)
    print(tables_of(record))
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", required=True, help="the wheel of the package aeon")
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, __file__)

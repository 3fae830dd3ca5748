# SPDX-License-Identifier: Apache-2.0
"""conversion.sampling=by_class: what the conversion calibrates on, from Python and in the record of a command."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from messages import refused

import tfq
from tfq.tflite import read


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="ones")])


@pytest.fixture(scope="module")
def data():
    # Class 1 comes last, and its values are ten times larger.
    x = np.concatenate([np.linspace(-1, 1, 4 * 300), np.linspace(-10, 10, 4 * 300)]).reshape(600, 4).astype(np.float32)
    return x, np.repeat([0, 1], 300)


def input_scale(content):
    return float(read(content).main_subgraph.input_tensors[0].scale[0])


def test_by_class_calibrates_on_classes_that_come_last(model, data):
    config = tfq.ConversionConfig(num_calibration_samples=100)
    first = tfq.convert(model, data, config=config)
    by_class = tfq.convert(model, data, config=dataclasses.replace(config, sampling="by_class"))
    assert input_scale(by_class) > 5 * input_scale(first)
    split = tfq.Split(name="train", inputs={"x": data[0]}, labels=data[1], source="arrays")
    assert tfq.convert(model, tfq.stratified(split, 100), config=config) == by_class


def test_by_class_without_labels_is_refused(model, data):
    config = tfq.ConversionConfig(num_calibration_samples=100, sampling="by_class")
    with refused(tfq.InputError, field="conversion.sampling"):
        tfq.convert(model, data[0], config=config)


def test_the_record_counts_the_examples_of_each_class(model, data, tmp_path, tfq_here):
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "d.npz", x_train=data[0], y_train=data[1])
    done = tfq_here(
        "convert", f"--model={tmp_path / 'm.keras'}", f"--data=npz:{tmp_path / 'd.npz'}", f"--out={tmp_path / 'out'}",
        "--sampling=by_class", "--num_calibration_samples=100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "convert.json").read_text())["representative_dataset"]
    assert record["sampling"] == "by_class" and record["classes"] == {"0": 50, "1": 50}

# SPDX-License-Identifier: Apache-2.0
"""TFLiteExport in the real fit of both Kerases."""

import hashlib
import json
import os

import numpy as np
import pytest

import tfq
from tfq.keras_bridge import import_keras, import_tf_keras
from tfq.models import build_digits_cnn

BOTH = [import_tf_keras, import_keras]


@pytest.fixture(scope="module")
def digits():
    config = tfq.DataConfig()
    return tfq.load_split(config, "train"), tfq.load_split(config, "val")


def fitted(keras, digits, *callbacks, epochs=4):
    train, val = digits
    keras.utils.set_random_seed(0)
    model = build_digits_cnn(keras)
    # So large a step makes the value go up and down.
    model.compile(keras.optimizers.SGD(0.4), "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = train.inputs["x"], train.labels
    validation = (val.inputs["x"], val.labels)
    fit = model.fit(x, y, epochs=epochs, verbose=0, validation_data=validation, callbacks=list(callbacks))
    return model, fit.history


def scripted(keras, values):
    """A callback that puts `values` into logs as "score", one an epoch; None leaves it out."""

    class Scripted(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if values[epoch] is not None:
                logs["score"] = values[epoch]

    return Scripted()


@pytest.mark.parametrize("keras", BOTH)
def test_the_best_epoch_by_a_value_of_int8_is_what_stands_there(keras, digits, tmp_path):
    train, val = digits
    path = tmp_path / "best.tflite"
    int8 = tfq.Int8Evaluation(val, train.inputs["x"][:50])
    export = tfq.TFLiteExport(path, train.inputs["x"][:50], monitor="val_int8_accuracy")
    _, history = fitted(keras(), digits, int8, export)
    values = history["val_int8_accuracy"]
    assert export.best == max(values)
    assert export.best_epoch == int(np.argmax(values))
    assert tfq.evaluate(path.read_bytes(), val).accuracy == max(values)
    record = json.loads((tmp_path / "best.tflite.json").read_text())
    assert record["value"] == max(values)
    assert record["epoch"] == export.best_epoch
    assert record["sha256"]["model"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["audit"]["ok"] and record["logs"]["val_int8_accuracy"] == max(values)


@pytest.mark.parametrize(
    ("mode", "values", "written"),
    [
        ("min", [3.0, 2.0, 4.0, 1.0], [0, 1, 3]),
        ("max", [3.0, 2.0, 4.0, 4.0], [0, 2]),
        ("min", [float("nan"), None, 5.0, 6.0], [2]),
        ("max", [float("inf"), 1.0, 0.5, 2.0], [1, 3]),
        ("auto", [1.0, 2.0, 0.5, 0.4], [0, 2, 3]),
    ],
)
def test_it_writes_when_the_value_is_better_than_ever_and_only_then(mode, values, written, digits, tmp_path):
    keras, epochs = import_keras(), []

    class Watched(type(tfq.TFLiteExport(tmp_path / "x.tflite"))):
        def _write(self, value):
            super()._write(value)
            epochs.append(self.best_epoch)

    export = Watched(tmp_path / "best.tflite", digits[0].inputs["x"][:50], monitor="score", mode=mode)
    fitted(keras, digits, scripted(keras, values), export)
    assert epochs == written


@pytest.mark.parametrize("keras", BOTH)
def test_a_typo_in_monitor_does_not_lose_the_model(keras, digits, tmp_path):
    export = tfq.TFLiteExport(tmp_path / "best.tflite", digits[0].inputs["x"][:50], monitor="val_acuracy")
    with pytest.warns(tfq.TfqWarning, match="did you mean 'val_accuracy'"):
        model, _ = fitted(keras(), digits, export, epochs=1)
    assert (tmp_path / "best.tflite").read_bytes() == tfq.convert(model, digits[0].inputs["x"][:50])
    assert json.loads((tmp_path / "best.tflite.json").read_text())["value"] is None


def test_what_stands_there_survives_a_disk_that_refuses(digits, tmp_path, monkeypatch):
    path = tmp_path / "best.tflite"
    path.write_bytes(b"the best of yesterday")

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    export = tfq.TFLiteExport(path, digits[0].inputs["x"][:50])
    with pytest.raises(tfq.TfqError, match="No space left"):
        fitted(import_keras(), digits, export, epochs=1)
    assert path.read_bytes() == b"the best of yesterday"
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.tflite"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"path": "best.keras"}, "ends in .tflite"), ({"path": "b.tflite", "mode": "maximum"}, "did you mean 'max'")],
)
def test_bad_arguments_are_refused_before_training(arguments, told, tmp_path):
    with pytest.raises(tfq.InputError, match=told):
        tfq.TFLiteExport(tmp_path / arguments.pop("path"), **arguments)

# SPDX-License-Identifier: Apache-2.0
"""TFLiteExport in the real fit of both Kerases."""

import hashlib
import json
import os

import numpy as np
import pytest
from messages import refused, warned
from small_models import small_classifier

import tfq
from tfq.keras_bridge import import_keras, import_tf_keras

BOTH = [import_tf_keras, import_keras]


@pytest.fixture(scope="module")
def digits():
    config = tfq.DataConfig(source="digits")
    return tfq.load_split(config, "train", limit=400), tfq.load_split(config, "val")


def fitted(keras, digits, *callbacks, epochs=4):
    train, val = digits
    model = small_classifier(keras)
    # XLA would compile for longer than this trains.
    sgd = keras.optimizers.SGD(0.4)
    model.compile(sgd, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    x, y = train.inputs["x"], train.labels
    validation = (val.inputs["x"], val.labels)
    fit = model.fit(x, y, epochs=epochs, verbose=0, validation_data=validation, callbacks=list(callbacks))
    return model, fit.history


def scripted(keras, name, values):
    """Return a callback that puts `values` into logs as `name`, one per epoch; None omits it."""

    class Scripted(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if values[epoch] is not None:
                logs[name] = values[epoch]

    return Scripted()


def spoiling(keras):
    """Return a callback that negates the head's weights in the last epoch, so that it is not the best."""

    class Spoiling(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 3:
                kernel, bias = self.model.get_layer("head").get_weights()
                self.model.get_layer("head").set_weights([-kernel, -bias])

    return Spoiling()


@pytest.mark.parametrize("keras", BOTH)
def test_the_exported_file_is_the_best_int8_epoch(keras, digits, tmp_path):
    train, val = digits
    keras = keras()
    path = tmp_path / "best.tflite"
    int8 = tfq.Int8Evaluation(val, train.inputs["x"][:50])
    export = tfq.TFLiteExport(path, train.inputs["x"][:50], monitor="val_int8_accuracy")
    _, history = fitted(keras, digits, spoiling(keras), int8, export)
    values = history["val_int8_accuracy"]
    assert values[0] < max(values) > values[-1]
    assert export.best == max(values)
    assert export.best_epoch == int(np.argmax(values))
    assert tfq.evaluate(path.read_bytes(), val).accuracy == max(values)
    record = json.loads((tmp_path / "best.tflite.json").read_text())
    assert record["value"] == max(values)
    assert record["epoch"] == export.best_epoch
    assert record["sha256"]["model"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["audit"]["ok"] and record["logs"]["val_int8_accuracy"] == max(values)


# (mode, values, the epochs in which it writes)
SCRIPTS = [
    ("min", [3.0, 2.0, 4.0, 1.0], [0, 1, 3]),
    ("max", [3.0, 2.0, 4.0, 4.0], [0, 2]),
    ("min", [float("nan"), None, 5.0, 6.0], [2]),
    ("max", [float("inf"), 1.0, 0.5, 2.0], [1, 3]),
]


def counted(monkeypatch):
    """Return the content of every conversion from now on, in order."""
    from tfq import conversion

    contents, convert = [], conversion.convert_with_record

    def count(*arguments, **named):
        result = convert(*arguments, **named)
        contents.append(result.content)
        return result

    monkeypatch.setattr(conversion, "convert_with_record", count)
    return contents


def test_both_callbacks_share_a_conversion_so_the_measured_bytes_are_written(digits, tmp_path, monkeypatch):
    train, val = digits
    x, keras, contents, seen = train.inputs["x"], import_keras(), counted(monkeypatch), []
    # Equal arrays, but not identical objects.
    int8 = tfq.Int8Evaluation(val, x[:50], metric="top1")
    export = tfq.TFLiteExport(tmp_path / "best.tflite", np.array(x[:50]), monitor="score", mode="max")
    other = tfq.TFLiteExport(
        tmp_path / "other.tflite", x[:50], monitor="score", mode="max", config=tfq.ConversionConfig(per_channel=False)
    )
    spy = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((int8.flatbuffer, (tmp_path / "best.tflite").read_bytes()))
    )
    callbacks = [scripted(keras, "score", [1.0, 2.0, 3.0]), int8, export, other, spy]
    model, _ = fitted(keras, digits, *callbacks, epochs=3)
    assert len(contents) == 6
    assert [written for _, written in seen] == [measured for measured, _ in seen] == contents[::2]
    assert len(set(contents)) == 6
    # Without a change the model is not converted again; with new weights it is.
    assert export.export() == contents[-2] and len(contents) == 6
    model.set_weights([weight * 0.5 for weight in model.get_weights()])
    assert export.export() == int8.export() != contents[-2] and len(contents) == 7
    # A second fit counts its epochs from the start and must not reuse the conversions of the first.
    x, y = train.inputs["x"], train.labels
    model.fit(x, y, epochs=1, verbose=0, callbacks=[int8])
    assert int8.flatbuffer == contents[-1] == tfq.convert(model, x[:50]) and len(contents) == 8


def test_a_monitor_that_was_measured_on_another_conversion_is_a_warning(digits, tmp_path):
    train, val = digits
    int8 = tfq.Int8Evaluation(val, train.inputs["x"][:50], limit=40)
    export = tfq.TFLiteExport(tmp_path / "best.tflite", train.inputs["x"][50:100], monitor="val_int8_accuracy")
    with warned("representative_dataset"):
        fitted(import_keras(), digits, int8, export, epochs=1)


def test_weights_changed_between_callbacks_warn_and_measured_bytes_are_written(digits, tmp_path):
    train, val = digits
    keras = import_keras()

    class Changing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights([weight * 0.9 for weight in self.model.get_weights()])

    int8 = tfq.Int8Evaluation(val, train.inputs["x"][:50], limit=40)
    export = tfq.TFLiteExport(tmp_path / "best.tflite", train.inputs["x"][:50], monitor="val_int8_accuracy")
    with warned("weights"):
        fitted(keras, digits, int8, Changing(), export, epochs=1)
    assert (tmp_path / "best.tflite").read_bytes() == int8.flatbuffer


@pytest.fixture(scope="module")
def exports(digits, tmp_path_factory):
    """Run an export for each of the scripts in one fit; return them with the epochs in which they wrote."""
    keras, directory = import_keras(), tmp_path_factory.mktemp("scripts")

    class Watched(type(tfq.TFLiteExport(directory / "x.tflite"))):
        def _write(self, value, epoch):
            super()._write(value, epoch)
            self.epochs = [*getattr(self, "epochs", []), self.best_epoch]

    callbacks = []
    for number, (mode, values, _) in enumerate(SCRIPTS):
        name, path = f"score{number}", directory / f"{number}.tflite"
        watched = Watched(path, digits[0].inputs["x"][:50], monitor=name, mode=mode)
        callbacks += [scripted(keras, name, values), watched]
    fitted(keras, digits, *callbacks)
    return callbacks[1::2]


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_it_writes_only_when_the_value_improves(number, exports):
    assert exports[number].epochs == SCRIPTS[number][2]


@pytest.mark.parametrize("keras", BOTH)
def test_a_typo_in_monitor_does_not_lose_the_model(keras, digits, tmp_path):
    export = tfq.TFLiteExport(tmp_path / "best.tflite", digits[0].inputs["x"][:50], monitor="val_acuracy", mode="max")
    with warned("'val_accuracy'"):
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
    with refused(tfq.TfqError, word="space"):
        fitted(import_keras(), digits, export, epochs=1)
    assert path.read_bytes() == b"the best of yesterday"
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.tflite"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"path": "best.keras"}, "path"),
        ({"path": "b.tflite", "mode": "maximum"}, "mode"),
        ({"path": "b.tflite", "monitor": "score"}, "mode"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments, field, tmp_path):
    with refused(tfq.InputError, field=field):
        tfq.TFLiteExport(tmp_path / arguments.pop("path"), **arguments)

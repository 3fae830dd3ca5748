# SPDX-License-Identifier: Apache-2.0
"""The table of layers before training: for either Keras, by the user's own names."""

import json

import numpy as np
import pytest
from messages import refused
from small_models import small_model

from tfq import workflows
from tfq.compression.preflight import preflight
from tfq.config import CompressionConfig, QATConfig, RunConfig
from tfq.errors import InputError
from tfq.keras_bridge import bridge, import_keras


def divided_by_batch_size():
    """Return a layer that the bridge cannot expand, because its output depends on the batch size."""
    keras = import_keras()

    class Odd(keras.layers.Layer):
        def call(self, inputs):
            return inputs / keras.ops.cast(keras.ops.shape(inputs)[0], "float32")

    return Odd(name="odd")


def verdicts(report):
    return {layer.name: (layer.prunable, layer.qat) for layer in report.layers}


def test_every_layer_has_a_row_and_text_agrees_with_dict():
    result = preflight(small_model())
    assert verdicts(result) == {
        "conv": (True, "qat"),
        "bn": (False, "qat"),
        "relu": (False, "qat"),
        "depthwise": (False, "qat"),
        "sum": (False, "qat"),
        "pool": (False, "qat"),
        "head": (True, "qat"),
    }
    assert result.ok and json.loads(json.dumps(result.to_dict()))["counts"]["prunable"] == 2
    text = result.to_text()
    assert all(f"\n{layer.name} " in text for layer in result.layers)
    assert "7 layers: 2 prunable; 7 for QAT, 0 for post-training quantization only, 0 unsupported" in text


def test_a_nested_keras_3_model_is_reported_by_its_own_names():
    keras = import_keras()
    layers = keras.layers
    inner = keras.Sequential([layers.Input((6, 8)), layers.LSTM(4, name="lstm")], name="inner")
    x = image = keras.Input((6, 2), name="series")
    x = inner(layers.Conv1D(8, 1, name="conv")(x))
    result = preflight(keras.Model(image, layers.Dense(3, name="head")(x)))
    rows = {layer.name: layer for layer in result.layers}
    assert rows["inner/lstm"].qat == "ptq_only" and "recurrent" in rows["inner/lstm"].reason
    assert rows["inner/lstm"].advice and rows["conv"].qat == rows["head"].qat == "qat"
    assert rows["head"].kind == "Dense"


def test_an_unsupported_layer_is_a_row_and_not_an_exception():
    keras = import_keras()

    x = image = keras.Input((4,), name="image")
    x = divided_by_batch_size()(keras.layers.Dense(4, name="dense")(x))
    result = preflight(keras.Model(image, x))
    assert not result.ok
    rows = {layer.name: layer for layer in result.layers}
    assert rows["odd"].qat == "unsupported" and "register" in rows["odd"].advice
    assert rows["dense"].qat != "unsupported"


def test_a_pattern_that_leaves_layers_out_is_reported():
    result = preflight(small_model(), CompressionConfig(qat=QATConfig(layers=("head",))))
    assert verdicts(result)["conv"] == (True, "ptq_only") and verdicts(result)["head"] == (True, "qat")


def test_objects_that_are_not_models_are_refused():
    with pytest.raises(InputError):
        preflight(object())


def run_config(directory, features):
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.normal(size=(24, features)).astype(np.float32) for part in ("train", "val")}
    labels = {f"y_{part}": rng.integers(0, 3, 24) for part in ("train", "val")}
    np.savez(directory / "noise.npz", **arrays, **labels)
    compression = {"qat": {"enabled": False}, "train": {"epochs": 1}}
    return RunConfig.from_dict({"data": f"npz:{directory / 'noise.npz'}", "compression": compression})


def dense_model(*layers):
    keras = import_keras()
    x = image = keras.Input((4,), name="image")
    for layer in layers:
        x = layer(x)
    return keras.Model(image, keras.layers.Dense(3, "softmax", name="head")(x))


def test_a_model_is_bridged_once_for_its_table_and_its_compression(tmp_path, monkeypatch):
    bridged = []
    rebuild = bridge.rebuild
    monkeypatch.setattr(bridge, "rebuild", lambda *provided: bridged.append(provided) or rebuild(*provided))
    compressed = workflows.compress(dense_model(), run_config(tmp_path, 4))
    assert len(bridged) == 1
    assert [layer["name"] for layer in compressed.details["preflight"]["layers"]] == ["head"]
    assert compressed.details["bridge"]["layer_map"]["head"] == ["head"]


def test_bridge_errors_show_the_table_and_data_errors_do_not(tmp_path):
    with refused(InputError, field="model", word="unsupported"):
        workflows.compress(dense_model(divided_by_batch_size()), run_config(tmp_path, 4))
    with refused(InputError, expected=(4,), got=(5,), word="'image'") as caught:
        workflows.compress(dense_model(), run_config(tmp_path, 5))
    assert "unsupported" not in str(caught.value)


def test_ops_that_would_stay_float_are_reported_by_user_layer(tmp_path):
    keras = import_keras()
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.ELU(name="bent")(layers.Conv2D(2, 3, name="conv")(image))
    x = layers.GlobalAveragePooling2D(name="pool")(keras.ops.floor(x))
    model = keras.Model(image, layers.Dense(3, name="head")(x))
    # Keras numbers the nodes of keras.ops throughout the process.
    floor = next(layer.name for layer in model.operations if type(layer).__name__ == "Floor")
    result = workflows.preflight_with_flatbuffer(model, run_config(tmp_path, 4))
    messages = {layer.name: layer.float_ops for layer in result.layers}
    assert messages == {"conv": (), "bent": ("ELU",), floor: ("FLOOR",), "pool": (), "head": ()}
    text = result.to_text()
    assert "STAYS FLOAT in an int8 .tflite: ELU" in text and "2 with float ops in an int8 .tflite" in text


def test_a_model_that_becomes_all_int8_has_no_float_report(tmp_path):
    result = workflows.preflight_with_flatbuffer(small_model(), run_config(tmp_path, 4))
    assert {layer.float_ops for layer in result.layers} == {()}
    assert "none with float ops in an int8 .tflite" in result.to_text()

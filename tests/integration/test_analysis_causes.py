# SPDX-License-Identifier: Apache-2.0
"""Known causes of int8 damage built into real models: each is found and named, and nothing else is."""

import numpy as np
import pytest
from messages import warned
from sklearn.datasets import load_digits

import tfq
from tfq.keras_bridge import deterministic, import_tf_keras

DIGITS = load_digits()
IMAGES = DIGITS.images[..., None].astype(np.float32)
CALIBRATION, OTHERS = IMAGES[:200], IMAGES[200:456]


@pytest.fixture(scope="module")
def trained():
    """Return a classifier of the digits."""
    keras = import_tf_keras()
    layers = keras.layers
    with deterministic(0):
        image = keras.Input((8, 8, 1), name="image")
        x = layers.Conv2D(12, 3, strides=2, activation="relu", name="first")(image)
        x = layers.Conv2D(16, 3, activation="relu", name="second")(x)
        model = keras.Model(image, layers.Dense(10, "softmax", name="head")(layers.Flatten(name="flat")(x)))
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(IMAGES, DIGITS.target, epochs=5, batch_size=32, verbose=0)
    return model


def findings(model, calibration=CALIBRATION):
    """Return {kind: its findings} of int8 compared with float on data that it was not calibrated with."""
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    results: dict[str, list] = {}
    for finding in tfq.analyze(tfq.convert(floating, calibration), floating, OTHERS).findings:
        results.setdefault(finding.kind, []).append(finding)
    return results


def copied(model):
    keras = import_tf_keras()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def test_a_well_calibrated_model_has_none_of_these_findings(trained):
    result = findings(trained)
    assert not {"ranges_too_narrow", "ranges_too_wide", "unequal_join", "gate_collapse", "collapse"} & result.keys()


@pytest.mark.parametrize("kind", ["normal", "uniform", "photograph sized"])
def test_noise_for_a_representative_dataset(trained, kind):
    rng = np.random.default_rng(0)
    noise = {
        "normal": rng.normal(size=CALIBRATION.shape),
        "uniform": rng.uniform(0, 16, size=CALIBRATION.shape),
        "photograph sized": rng.uniform(0, 255, size=CALIBRATION.shape),
    }[kind].astype(np.float32)
    with warned("noise"):
        result = findings(trained, noise)
    named = result.get("ranges_too_narrow", []) + result.get("ranges_too_wide", [])
    assert len(named) == 1 and "noise" in named[0].message


def test_dead_channels_are_numbered(trained):
    model = copied(trained)
    kernel, bias = model.get_layer("first").get_weights()
    kernel[..., [2, 5, 7]] = bias[[2, 5, 7]] = 0
    model.get_layer("first").set_weights([kernel, bias])
    (result,) = (item for item in findings(model)["dead_channels"] if item.label.startswith("first/"))
    assert "(2, 5, 7)" in result.message and "compression.structured_pruning.enabled" in result.message


def test_outputs_that_are_joined_a_hundred_times_apart(trained):
    keras = import_tf_keras()
    layers, features = keras.layers, trained.get_layer("flat").output
    with deterministic(0):
        small = layers.Dense(4, name="small")(features)
        large = layers.Rescaling(100.0, name="times")(layers.Dense(4, name="large")(features))
        model = keras.Model(trained.input, layers.Concatenate(name="both")([small, large]))
    (result,) = findings(model)["unequal_join"]
    assert "small/" in result.message and "separate outputs" in result.message
    assert "ranges_too_narrow" not in findings(model)


def test_a_gate_that_collapses(trained):
    """Swish of a layer with one channel far larger than the others, as in squeeze-and-excitation."""
    keras = import_tf_keras()
    layers, features = keras.layers, trained.get_layer("second").output
    with deterministic(0):
        wide = layers.Conv2D(16, 1, name="wide")
        x = wide(features)
        x = layers.Multiply(name="swish")([x, layers.Activation("sigmoid", name="gate")(x)])
        model = keras.Model(trained.input, layers.Dense(10, name="logits")(layers.Flatten()(x)))
    kernel, bias = wide.get_weights()
    kernel[..., 3] *= -400
    wide.set_weights([np.where(np.arange(16) == 3, -np.abs(kernel), kernel), bias])
    result = findings(model)
    assert {item.label.partition("/")[0] for item in result["gate_collapse"]} <= {"gate", "swish"}
    assert all("squeeze-and-excitation" in item.message for item in result["gate_collapse"])
    assert "compress" in result["gate_collapse"][0].message

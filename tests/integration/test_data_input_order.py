# SPDX-License-Identifier: Apache-2.0
"""Lists of float inputs in another order than the model's, noticed by the model's own normalization."""

import numpy as np
import pytest

import tfq
from tfq.data import input_specs, representative_samples
from tfq.data.input_order import normalizations, order_warnings
from tfq.keras_bridge import import_keras

RNG = np.random.default_rng(0)
PRESSURE = RNG.normal(1013, 8, (24, 3)).astype("float32")
AIR = RNG.normal(15, 6, (24, 3)).astype("float32")


@pytest.fixture(scope="module")
def floating():
    """Return a float file whose inputs are in the order of their names: "air" first."""
    keras = import_keras()
    inputs = {name: keras.Input((3,), name=name) for name in ("pressure", "air")}
    adapted = keras.layers.Normalization()
    adapted.adapt(PRESSURE)
    normalized = [adapted(inputs["pressure"]), keras.layers.Rescaling(1 / 20, offset=-0.5)(inputs["air"])]
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(normalized)))
    return tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))


def test_normalizations_are_those_of_the_keras_layers(floating):
    results = normalizations(floating)
    scale, offset = results["pressure"]
    np.testing.assert_allclose(PRESSURE * scale + offset, (PRESSURE - PRESSURE.mean(0)) / PRESSURE.std(0), atol=1e-3)
    np.testing.assert_allclose(results["air"], (1 / 20, -0.5), rtol=1e-6)


def test_floats_in_the_wrong_order_are_noticed_and_the_right_order_is_not(floating):
    specs = input_specs(floating)
    rows = list(zip(AIR, PRESSURE, strict=True))
    datasets = {
        "wrong": [[pressure[None], air[None]] for air, pressure in rows],
        "right": [[air[None], pressure[None]] for air, pressure in rows],
        "named": [{"pressure": air[None], "air": pressure[None]} for air, pressure in rows],
    }
    noticed = {
        name: any("exchanged" in warning for warning in representative_samples(data, specs, 24, floating).warnings)
        for name, data in datasets.items()
    }
    assert noticed == {"wrong": True, "right": False, "named": False}


@pytest.mark.parametrize(
    ("scales", "order", "is_noticed"),
    [
        ((1 / 255, 1), (1, 255), True),
        ((1 / 255, 1), (255, 1), False),
        ((1 / 255, 1 / 255), (255, 255), False),
        ((1 / 255, 1), (1, 1), False),  # wrong, but not the order
        ((1, 2), (2, 1), False),  # too near to tell
    ],
)
def test_rescaled_inputs_are_noticed_if_only_the_other_order_fits(scales, order, is_noticed):
    values = RNG.uniform(size=(12, 1, 4))
    samples = [{name: row * size for name, size in zip("ab", order, strict=True)} for row in values]
    normalized = {name: (np.asarray(scale), np.asarray(0.0)) for name, scale in zip("ab", scales, strict=True)}
    assert bool(order_warnings(samples, normalized)) is is_noticed
    assert not order_warnings(samples)  # without a normalization, nothing is known

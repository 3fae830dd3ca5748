# SPDX-License-Identifier: Apache-2.0
"""Refitting the layers after removed filters to the remaining channels."""

import numpy as np
import pytest
from messages import refused, warned

from tfq.compression.structured_pruning.prune import prune_structured
from tfq.config import StructuredPruningConfig
from tfq.errors import InputError
from tfq.keras_bridge import import_tf_keras

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(40, 8, 8, 3)).astype(np.float32)


def config(**values):
    return StructuredPruningConfig(
        enabled=True, **{"target_cost": 0.6, "channel_multiple": 4, "layers": ("first",), **values}
    )


def convolutional(**second):
    keras = import_tf_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(image)
    x = layers.Conv2D(6, 3, name="second", **second)(x)
    return keras.Model(image, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x)))


def outputs(model):
    return model.predict(IMAGES, verbose=0)


def test_what_twins_of_removed_filters_still_say_is_not_lost():
    model = convolutional()
    kernel, bias = model.get_layer("first").get_weights()
    # The last four are the first four, slightly weaker: they are removed, and no information is lost.
    kernel /= np.abs(kernel).sum((0, 1, 2))
    kernel[..., 4:], bias[4:] = 0.9 * kernel[..., :4], 0.9 * bias[:4]
    model.get_layer("first").set_weights([kernel, bias])
    expected = outputs(model)
    cut = prune_structured(model, config=config())
    assert cut.removed["first"] == (4, 8) and cut.refit == {}
    fit = prune_structured(model, config=config(), data=IMAGES)
    before, after = fit.refit["second"]
    assert before > 0.3 and after < 0.01
    spread = np.ptp(expected)
    assert np.abs(outputs(cut.model) - expected).max() > 0.1 * spread
    assert np.abs(outputs(fit.model) - expected).max() < 0.005 * spread


@pytest.mark.parametrize("second", [{}, {"strides": 2, "padding": "same"}, {"dilation_rate": 2, "use_bias": False}])
def test_kernel_and_bias_are_those_of_least_squares(second):
    model = convolutional(**second)
    result = prune_structured(model, config=config(), data=IMAGES)
    keras = import_tf_keras()
    small = result.model
    seen = keras.Model(small.inputs, small.get_layer("first").output).predict(IMAGES, verbose=0)
    expected = keras.Model(model.inputs, model.get_layer("second").output).predict(IMAGES, verbose=0)
    # Oracle: one unknown for each weight of a filter; its column is the layer's output for that weight alone.
    probe = small.get_layer("second")
    fit_weights = [np.array(weight) for weight in probe.get_weights()]
    columns = []
    for place in range(fit_weights[0][..., 0].size):
        kernel = np.zeros_like(fit_weights[0])
        kernel[(*np.unravel_index(place, kernel.shape[:-1]), 0)] = 1
        probe.set_weights([kernel, *(np.zeros_like(weight) for weight in fit_weights[1:])])
        columns.append(np.asarray(probe(seen))[..., 0].ravel())
    columns += [np.ones_like(columns[0])] * (len(fit_weights) - 1)
    solution, *_ = np.linalg.lstsq(np.stack(columns, 1).astype(np.float64), expected[..., 0].ravel(), rcond=None)
    got = np.concatenate([fit_weights[0][..., 0].ravel(), *(weight[:1] for weight in fit_weights[1:])])
    np.testing.assert_allclose(got, solution, atol=0.01 * np.abs(solution).max())


def test_a_dense_layer_is_refit_and_an_uncut_one_is_unchanged():
    keras = import_tf_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Conv2D(8, 3, strides=3, name="first")(image))
    x = layers.Dense(6, activation="relu", name="reads_it")(x)
    model = keras.Model(image, layers.Dense(5, name="head")(x))
    result = prune_structured(model, config=config(), data=IMAGES)
    assert list(result.refit) == ["reads_it"] and result.refit["reads_it"][1] < result.refit["reads_it"][0]
    for ours, theirs in zip(
        result.model.get_layer("head").get_weights(), model.get_layer("head").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert result.to_dict()["refit"]["reads_it"]["after"] == result.refit["reads_it"][1]


def test_unsuitable_data_is_refused_and_none_needed_without_refit():
    with refused(InputError, field="data", got=(9, 9, 3)):
        prune_structured(convolutional(), config=config(), data=np.zeros((4, 9, 9, 3), np.float32))
    broken = IMAGES.copy()
    broken[3, 2, 2, 1] = np.nan
    with refused(InputError, field="x[3]", got="NaN"):
        prune_structured(convolutional(), config=config(), data=broken)
    assert prune_structured(convolutional(), config=config(refit_examples=0), data=IMAGES).refit == {}


def test_a_layer_too_wide_for_least_squares_is_reported_unchanged(monkeypatch):
    monkeypatch.setattr("tfq.compression.structured_pruning.rebuild._MAX_UNKNOWNS", 36)
    with warned("'second'"):
        result = prune_structured(convolutional(), config=config(), data=IMAGES)
    assert result.refit == {}

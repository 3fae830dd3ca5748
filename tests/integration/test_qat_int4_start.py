# SPDX-License-Identifier: Apache-2.0
"""The weights that QAT with 4 bits starts from, against the outputs of the float model."""

import numpy as np
import pytest

from tfq.compression import untrained_qat_model
from tfq.compression.pruning.sparsity import measure_sparsity
from tfq.compression.training import deterministic
from tfq.config import QATConfig
from tfq.keras_bridge import import_tf_keras

RNG = np.random.default_rng(0)


def correlated_images(count=200):
    """Return smooth images: neighboring pixels have similar values, so that inputs are redundant."""
    noise = RNG.normal(size=(count, 12, 12, 3))
    for axis in (1, 2):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
    return noise.astype(np.float32) + 1.5


IMAGES = correlated_images()


def network():
    keras = import_tf_keras()
    layers = keras.layers
    with deterministic(0):
        image = keras.Input((12, 12, 3), name="image")
        x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="first")(image)
        x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
        x = layers.Conv2D(16, 3, strides=2, activation="relu", name="second")(x)
        model = keras.Model(image, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D(name="mean")(x)))
    x = np.asarray(keras.Model(image, model.get_layer("first").output)(IMAGES))
    model.get_layer("norm").moving_mean.assign(x.mean((0, 1, 2)))
    model.get_layer("norm").moving_variance.assign(x.var((0, 1, 2)))
    return model


def started(model, monkeypatch=None, int4_layers=("*",), **settings):
    """Return the model that training starts from; with `monkeypatch`, its weights are rounded to nearest."""
    if monkeypatch:
        monkeypatch.setattr("tfq.compression.qat.qat.reconstruct_weights", lambda *arguments, **settings: None)
    return untrained_qat_model(
        model, IMAGES, QATConfig(int4_layers=int4_layers, num_calibration_samples=200, **settings)
    )


def outputs(model, *names):
    """Return the outputs of layers, or of the model."""
    keras = import_tf_keras()
    by_name = {layer.name.removeprefix("quant_"): layer for layer in model.layers}
    values = keras.Model(model.inputs, [by_name[name].output for name in names] or model.outputs)(IMAGES)
    return [np.asarray(value) for value in (values if isinstance(values, list) else [values])]


def kernel(model, name):
    (layer,) = (layer for layer in model.layers if layer.name.removeprefix("quant_") == name)
    return next(weight.numpy() for weight in layer.weights if "kernel" in weight.name)


def test_the_start_is_closer_to_the_float_model_than_weights_rounded_to_nearest(monkeypatch):
    model = network()
    (expected,) = outputs(model)
    errors = [np.square(outputs(started(model, patch))[0] - expected).mean() for patch in (None, monkeypatch)]
    assert errors[0] < 0.3 * errors[1]


def test_a_layer_with_8_bits_corrects_the_errors_of_the_layers_with_4_bits():
    model = network()
    (expected,) = outputs(model)
    start = started(model, int4_layers=("!head",))
    (corrected,) = outputs(start)
    (head,) = (layer for layer in start.layers if layer.name == "quant_head")
    trained = next(weight for weight in head.weights if weight.shape == (16, 5))
    trained.assign(model.get_layer("head").kernel)
    (uncorrected,) = outputs(start)
    # The bias corrects the mean of each output in both cases.
    errors = [(got - expected).var(axis=0).sum() for got in (corrected, uncorrected)]
    assert errors[0] < 0.97 * errors[1]


def test_biases_and_moving_means_correct_the_mean_of_every_channel():
    model = network()
    start = started(model)
    for name in ("norm", "second"):
        (expected,), (values,) = outputs(model, name), outputs(start, name)
        offset = np.abs((values - expected).mean((0, 1, 2)))
        assert (offset < 0.05 * expected.std((0, 1, 2))).all(), name


def test_zeros_of_a_pruned_model_stay_and_no_weight_becomes_zero():
    model = network()
    layer = model.get_layer("second")
    values, bias = layer.get_weights()
    values[RNG.random(values.shape) < 0.5] = 0
    layer.set_weights([values, bias])
    start = started(model)
    for name in ("first", "second", "head"):
        np.testing.assert_array_equal(kernel(start, name) == 0, kernel(model, name) == 0)
    assert measure_sparsity(start) == measure_sparsity(model)


@pytest.mark.parametrize("preserves", [True, False])
def test_clustered_layers_keep_their_weights(preserves):
    model = network()
    layer = model.get_layer("second")
    values, bias = layer.get_weights()
    levels = np.array([-127, -47, 24, 65, 127], np.float32) * 1e-3  # values that int8 represents exactly
    layer.set_weights([levels[np.abs(values[..., None] - levels).argmin(axis=-1)], bias])
    start = started(model, preserve_clusters=preserves)
    assert (kernel(start, "second") == kernel(model, "second")).all() == preserves
    assert (kernel(start, "first") != kernel(model, "first")).any()


def test_depthwise_convolutions_keep_their_weights():
    keras = import_tf_keras()
    with deterministic(0):
        image = keras.Input((12, 12, 3))
        x = keras.layers.DepthwiseConv2D(3, name="depthwise")(image)
        model = keras.Model(image, keras.layers.Conv2D(4, 1, name="pointwise")(x))
    start = started(model)
    (wrapper,) = (layer for layer in start.layers if layer.name == "quant_depthwise")
    weight = next(weight.numpy() for weight in wrapper.weights if "depthwise_kernel" in weight.name)
    np.testing.assert_array_equal(weight, model.get_layer("depthwise").get_weights()[0])
    assert (kernel(start, "pointwise") != kernel(model, "pointwise")).any()


def test_examples_with_far_larger_values_do_not_decide(monkeypatch):
    model = network()
    (expected,) = outputs(model)
    usual = started(model)
    monkeypatch.setattr("test_qat_int4_start.IMAGES", np.concatenate([IMAGES[:198], 1000 * IMAGES[198:]]))
    few = started(model)
    monkeypatch.undo()
    errors = [np.square(outputs(start)[0] - expected).mean() for start in (usual, few)]
    assert errors[1] < 2 * errors[0]


def test_several_layers_of_one_pass_are_chosen_too(monkeypatch):
    model = network()
    (expected,) = outputs(model)
    monkeypatch.setattr("tfq.compression.qat.weight_start._MOST_PASSES", 1)
    together = np.square(outputs(started(model))[0] - expected).mean()
    assert together < 0.5 * np.square(outputs(started(model, monkeypatch))[0] - expected).mean()

# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: which layers are quantized, which are not, and zeros that stay zeros."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from messages import refused, warned
from small_models import fit_briefly, fit_for, noise, small_model

from tfq.compression import measure_sparsity, prune_model, qat_model
from tfq.compression.graph import cloned
from tfq.compression.output_losses import outputs_probabilities
from tfq.compression.training import deterministic, train_model
from tfq.config import DataConfig, PruneConfig, QATConfig, TrainConfig
from tfq.data import load_split
from tfq.errors import InputError, TfqError, TfqWarning
from tfq.keras_bridge import import_keras, import_tf_keras, load_model
from tfq.models import build
from tfq.workflows import save_keras

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture(scope="module")
def pruned():
    """Return the small model with half of its weights zero."""
    return prune_model(small_model(), fit_briefly, PruneConfig(frequency=1))


@pytest.fixture(scope="module")
def quantized(pruned):
    """Return the pruned model, trained with preserved zeros."""
    return qat_model(pruned, fit_for(2))


def test_every_layer_is_wrapped_and_the_input_model_is_unchanged():
    model = small_model()
    before, nodes = model.get_weights(), [len(layer.inbound_nodes) for layer in model.layers]
    quantized = qat_model(model, fit_briefly)
    names = [layer.name for layer in quantized.layers]
    assert names[:2] == ["image", "quantize_layer"] and "quant_conv" in names and "quant_head" in names
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert nodes == [len(layer.inbound_nodes) for layer in model.layers]
    assert list(measure_sparsity(quantized)) == ["conv", "depthwise", "head"]
    assert outputs_probabilities(quantized)


def test_zeros_of_a_pruned_model_stay_only_with_preserving(pruned, quantized):
    expected = pruned.get_layer("conv").get_weights()[0] == 0
    got = next(w.numpy() for w in quantized.get_layer("quant_conv").weights if w.name.endswith("kernel:0")) == 0
    np.testing.assert_array_equal(got, expected)
    assert measure_sparsity(quantized) == measure_sparsity(pruned)
    lost = qat_model(pruned, fit_for(2), QATConfig(preserve_sparsity=False))
    assert measure_sparsity(lost)["conv"] < 0.1


def test_a_zero_initialized_layer_learns_in_a_pruned_model(pruned):
    model, _ = cloned(pruned)
    model.get_layer("head").set_weights([np.zeros_like(item) for item in model.get_layer("head").get_weights()])
    trained = measure_sparsity(qat_model(model, fit_for(2)))
    assert trained["conv"] == measure_sparsity(pruned)["conv"]
    assert trained["head"] == 0


def test_zeros_that_a_fit_loses_are_an_error(pruned):
    def fit(model, callbacks):
        fit_briefly(model, callbacks)
        kernel = next(w for w in model.get_layer("quant_conv").weights if w.name.endswith("kernel:0"))
        kernel.assign_add(kernel * 0 + 1)

    with refused(TfqError, field="fit", got=("conv",), word="zeros"):
        qat_model(pruned, fit)


def used_twice():
    keras = import_tf_keras()
    layers = keras.layers
    image = keras.Input((6, 6, 2), name="image")
    twice = layers.ReLU(name="twice")  # after different layers
    x = twice(layers.Conv2D(4, 3, name="once")(twice(layers.Conv2D(2, 3, name="first")(image))))
    return keras.Model(image, layers.Dense(3, "softmax", name="head")(layers.Flatten(name="flatten")(x)))


def test_layers_left_to_the_converter_are_reported_unless_user_excluded():
    model = used_twice()
    with warned("twice"):
        quantized = qat_model(model, fit_briefly)
    assert {"twice", "quant_once", "quant_head"} <= {layer.name for layer in quantized.layers}
    with warnings.catch_warnings():
        warnings.simplefilter("error", TfqWarning)
        qat_model(model, fit_briefly, QATConfig(layers=("once", "head")))


def test_a_model_without_quantizable_layers_is_refused_with_all_reasons():
    keras = import_tf_keras()
    model = keras.Sequential([keras.layers.GRU(3, input_shape=(4, 2), name="gru")])
    with refused(
        InputError,
        field="model",
        expected="a layer for quantization-aware training",
        word="gru",
        limit="nothing-to-compress",
    ):
        qat_model(model, fit_for())


def test_a_trained_sequential_model_comes_back_from_an_h5_file(tmp_path):
    layers = import_tf_keras().layers
    model = import_tf_keras().Sequential([layers.Dense(8, "relu", input_shape=(4,)), layers.Dense(3)])
    trained = qat_model(model, fit_briefly)
    assert len(measure_sparsity(trained)) == 2
    file = save_keras(trained, tmp_path / "q.h5")
    x = noise(trained).inputs["x"]
    np.testing.assert_array_equal(load_model(file)(x), trained(x))


@pytest.mark.parametrize("fit", [lambda model, callbacks: None, lambda model, callbacks: fit_briefly(small_model())])
def test_a_fit_that_trains_nothing_or_another_model_is_an_error(fit):
    with refused(TfqError, field="fit", expected="a fit that trains the model"):
        qat_model(small_model(), fit)


def test_a_keras_3_model_is_refused():
    with refused(InputError, field="model"):
        qat_model(build("digits_cnn", import_keras()), fit_for())


@pytest.mark.filterwarnings("ignore:.*HDF5:UserWarning")
@pytest.mark.parametrize("name", ["q.h5", "q.keras"])
def test_a_pruned_qat_model_comes_back_from_its_file(quantized, tmp_path, name):
    quantized.save(tmp_path / name)
    loaded = load_model(tmp_path / name)
    x = noise(quantized).inputs["x"]
    np.testing.assert_array_equal(loaded(x), quantized(x))
    assert measure_sparsity(loaded) == measure_sparsity(quantized)


@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared")
def test_resnet8_goes_the_whole_way_for_a_few_steps():
    model = load_model(SHARED / "models" / "mlperf_tiny_resnet8_cifar10.h5")
    pruned = prune_model(model, fit_briefly, PruneConfig(final_sparsity=0.8))
    assert all(fraction == pytest.approx(0.8, abs=0.002) for fraction in measure_sparsity(pruned).values())
    assert measure_sparsity(qat_model(pruned, fit_for(spread=64.0))) == measure_sparsity(pruned)


def test_digits_lose_little_by_pruning_and_qat():
    train, test = load_split(DataConfig(source="digits"), "train"), load_split(DataConfig(source="digits"), "test")

    def accuracy(model):
        return float((np.asarray(model(test.inputs["x"])).argmax(axis=1) == test.labels).mean())

    def fit(model, callbacks):
        train_model(model, train, None, TrainConfig(epochs=2), callbacks=callbacks)

    with deterministic(1):
        model = build("digits_cnn", import_tf_keras())
    train_model(model, train, None, TrainConfig(epochs=8), seed=1)
    pruned = prune_model(model, fit)
    quantized = qat_model(pruned, fit)
    assert accuracy(model) > 0.97 and accuracy(quantized) > accuracy(model) - 0.02
    assert {name: fraction for name, fraction in measure_sparsity(quantized).items() if name != "depthwise"} == {
        "stem": 0.5,
        "conv1": 0.5,
        "pointwise": 0.5,
        "conv2": 0.5,
        "class_probabilities": 0.5,
    }


def branches(*between):
    keras = import_tf_keras()
    image = keras.Input((6, 6, 2), name="image")
    sides = [keras.layers.Conv2D(4, 3, padding="same", name=name)(image) for name in ("left", "right")]
    for layer in between:
        sides = [layer()(side) for side in sides]
    x = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.Concatenate(name="join")(sides))
    return keras.Model(image, keras.layers.Dense(3, "softmax", name="head")(x), name="branches")


def _layers(*names):
    return [getattr(import_tf_keras().layers, name) for name in names]


@pytest.mark.parametrize("between", [(), ("BatchNormalization", "ReLU")])
def test_zeros_are_kept_in_branches_that_are_joined(between):
    model = prune_model(branches(*_layers(*between)), fit_briefly, PruneConfig(frequency=1))
    kept = measure_sparsity(qat_model(model, fit_briefly))
    assert kept == pytest.approx({"left": 0.5, "right": 0.5, "head": 0.5}, abs=0.05)


def test_a_fit_that_drops_needed_callbacks_is_an_error():
    model = prune_model(branches(), fit_briefly, PruneConfig(frequency=1))
    with refused(TfqError, field="fit", expected="a fit that passes on the callbacks"):
        qat_model(model, lambda model, _: fit_briefly(model))

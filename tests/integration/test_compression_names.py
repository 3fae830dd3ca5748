# SPDX-License-Identifier: Apache-2.0
"""Names of outputs, inputs and layers through every step of compression, and losses keyed by them."""

import warnings

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import tfq
from tfq import tflite
from tfq.compression import untrained_qat_model
from tfq.compression.graph import cloned
from tfq.config import ConversionConfig, DistillationConfig, PruneConfig, QATConfig, StructuredPruningConfig
from tfq.keras_bridge import import_keras, import_tf_keras, load_model

_RNG = np.random.default_rng(0)
IMAGES = _RNG.random((32, 6, 6, 1)).astype("float32")
TARGETS = {"boxes": _RNG.random((32, 4)).astype("float32"), "scores": _RNG.integers(0, 3, 32)}
UNVERIFIED = ConversionConfig(verify=False)
DISTILLED = DistillationConfig(enabled=True)


def features(keras, name="image"):
    layers = keras.layers
    image = keras.Input((6, 6, 1), name=name)
    x = layers.Flatten(name="flat")(layers.Conv2D(4, 3, activation="relu", name="conv")(image))
    return image, layers.Dense(8, activation="relu", name="hidden")(x)


def detector(keras, *, as_dict=False):
    image, x = features(keras)
    boxes = keras.layers.Dense(4, name="boxes")(x)
    scores = keras.layers.Dense(3, activation="softmax", name="scores")(x)
    return keras.Model(image, {"scores": scores, "boxes": boxes} if as_dict else [boxes, scores])


def fit_by_name(histories):
    def fit(model, callbacks=()):
        model.compile(
            "adam",
            loss={"boxes": "mse", "scores": "sparse_categorical_crossentropy"},
            loss_weights={"boxes": 1.0, "scores": 0.5},
            metrics={"scores": "accuracy"},
            run_eagerly=True,
        )
        weights = {name: np.ones(32) for name in TARGETS}
        data = IMAGES, TARGETS, weights
        history = model.fit(
            *data[:2], sample_weight=weights, batch_size=16, verbose=0, callbacks=callbacks, validation_data=data
        )
        histories.append(set(history.history))

    return fit


def prune(model, fit, distillation=None):
    config = PruneConfig(frequency=1, distillation=distillation or DistillationConfig())
    return tfq.prune(model, fit, config)


def cluster(model, fit):
    return tfq.cluster(model, fit, tfq.ClusterConfig(number_of_clusters=4, layers=("hidden",)))


def prune_structured(model, fit):
    config = StructuredPruningConfig(target_cost=0.7, channel_multiple=1)
    return tfq.prune_structured(model, fit, config).model


def qat(model, fit):
    return tfq.qat(model, fit, calibration=IMAGES)


def distilled_qat(model, fit):
    return tfq.qat(model, fit, QATConfig(distillation=DISTILLED), calibration=IMAGES)


def distilled_prune(model, fit):
    return prune(model, fit, DISTILLED)


def signature(content):
    return Interpreter(model_content=content).get_signature_list()["serving_default"]


@pytest.fixture(scope="module")
def bridged():
    """The detector, bridged from Keras 3, by whether it returns a dict."""
    return {as_dict: tfq.to_tf_keras(detector(import_keras(), as_dict=as_dict)).model for as_dict in (False, True)}


@pytest.mark.parametrize(
    ("step", "as_dict"),
    [
        (prune, False),
        (distilled_qat, True),
        *(
            pytest.param(step, False, marks=pytest.mark.slow)
            for step in (cluster, prune_structured, qat, distilled_prune)
        ),
        pytest.param(prune_structured, True, marks=pytest.mark.slow),
    ],
)
def test_losses_metrics_and_weights_are_found_by_output_name(step, as_dict, bridged):
    histories, bridged = [], bridged[as_dict]
    trained = step(bridged, fit_by_name(histories))
    expected = {"loss", "boxes_loss", "scores_loss", "scores_accuracy"}
    assert expected | {f"val_{name}" for name in expected} <= histories[0]
    assert trained.output_names == ["boxes", "scores"]
    assert isinstance(trained.output, dict) == isinstance(bridged.output, dict)


def _with_slash(keras):
    image, x = features(keras)
    return keras.Model(image, keras.layers.Dense(4, name="head/boxes")(x))


def _input_as_output(keras):
    image, x = features(keras)
    return keras.Model(image, [keras.layers.Dense(4, name="boxes")(x), image])


def _fused_activation(keras):
    image, x = features(keras)
    convolved = keras.layers.Conv2D(4, 3, name="last")(image)
    return keras.Model(image, [x, keras.layers.Activation("relu", name="after")(convolved)])


def _nested_outputs(keras):
    image, x = features(keras)
    return keras.Model(image, {"all": [keras.layers.Dense(4, name="boxes")(x), x]})


def _activation_of_keras_3(keras):
    image, x = features(keras)
    return keras.Model(image, keras.layers.Dense(4, activation="celu", name="boxes")(x))


def _inner_model(keras):
    image, x = features(keras)
    inner = keras.Input((8,))
    return keras.Model(image, keras.Model(inner, keras.layers.Dense(3, name="scores")(inner), name="head")(x))


def _space_in_input(keras):
    image, x = features(keras, "my image")
    return keras.Model(image, x)


def _layer_named_as_a_wrapper(keras):
    image, x = features(keras)
    return keras.Model(image, keras.layers.Dense(4, name="quant_boxes")(x))


@pytest.mark.parametrize(
    ("keras", "build"),
    [
        (import_tf_keras, _with_slash),
        (import_tf_keras, _input_as_output),
        pytest.param(import_tf_keras, _fused_activation, marks=pytest.mark.slow),
        pytest.param(import_tf_keras, _nested_outputs, marks=pytest.mark.slow),
        pytest.param(import_tf_keras, _layer_named_as_a_wrapper, marks=pytest.mark.slow),
        (import_keras, _activation_of_keras_3),
        pytest.param(import_keras, _inner_model, marks=pytest.mark.slow),
        (import_keras, _space_in_input),
    ],
)
def test_a_qat_file_has_the_signature_of_the_post_training_one(keras, build):
    model = build(keras())
    start = tfq.to_tf_keras(model).model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = untrained_qat_model(start, IMAGES)
        content = tfq.convert(quantized, IMAGES, UNVERIFIED)
    assert signature(content) == signature(tfq.convert(model, IMAGES, UNVERIFIED))
    layers = tflite.read_metadata(content)["keras_layers"]
    assert layers == tflite.read_metadata(tfq.convert(start, IMAGES, UNVERIFIED))["keras_layers"]


def test_user_names_keep_layers_of_a_qat_file_float():
    quantized = untrained_qat_model(_layer_named_as_a_wrapper(import_tf_keras()), IMAGES)
    content = tfq.convert(quantized, IMAGES, ConversionConfig(float_layers=("quant_boxes",), verify=False))
    floating = [op.keras_layer for op in tflite.read(content).main_subgraph.ops if op.name == "FULLY_CONNECTED"]
    assert floating == ["hidden", "quant_boxes"]
    types = [item["dtype"] for item in Interpreter(model_content=content).get_output_details()]
    assert types == [np.float32] or tflite.read(content).main_subgraph.ops[-1].name == "QUANTIZE"


@pytest.mark.slow
def test_a_loaded_qat_model_has_the_users_output_names(tmp_path):
    quantized = untrained_qat_model(detector(import_tf_keras()), IMAGES)
    quantized.save(tmp_path / "qat.keras")
    loaded = load_model(tmp_path / "qat.keras")
    assert loaded.output_names == ["boxes", "scores"]
    # Without tfq, tf_keras names them after the wrappers; the flatbuffer still has the user's names.
    loaded.output_names = ["quant_boxes", "quant_scores"]
    assert set(signature(tfq.convert(loaded, None, UNVERIFIED))["outputs"]) == {"boxes", "scores"}


def test_a_clone_keeps_names_that_layers_do_not_have():
    model = tfq.to_tf_keras(_inner_model(import_keras())).model
    assert model.output_names == cloned(model)[0].output_names == ["head"]

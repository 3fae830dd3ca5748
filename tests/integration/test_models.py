# SPDX-License-Identifier: Apache-2.0
"""The models that tfq builds by name, in both Kerases."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from messages import refused, warned

from tfq import models
from tfq.errors import InputError, TfqWarning
from tfq.keras_bridge import import_keras, import_tf_keras, load_model

KINDS = {"tf_keras": import_tf_keras, "keras": import_keras}
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


# Published counts of the models of MLPerf Tiny: 221,794 and, trainable, 23,756 by NXP's eIQ model zoo for VWW and KWS.
# The layers of the autoencoder by hand: 640 x 128, 6 of 128 x 128, 128 x 8, 8 x 128 and 128 x 640 weights, 8 x 128 + 8
# + 640 biases, and 4 numbers for each normalized unit.
AUTOENCODER = 2 * 640 * 128 + 6 * 128 * 128 + 2 * 128 * 8 + (8 * 128 + 8 + 640) + 4 * (8 * 128 + 8)
PUBLISHED = [
    ("resnet8", (32, 32, 3), (10,), 78_666),
    ("digits_cnn", (8, 8, 1), (10,), 16_186),
    ("mobilenet_v1_025", (96, 96, 3), (2,), 221_794),
    ("ds_cnn", (49, 10, 1), (12,), 23_756 + 9 * 64 * 2),
    ("fc_autoencoder", (640,), (640,), AUTOENCODER),
]
# Models with several outputs, or one for each position.
OWN_TESTS = {"grid_detector", "small_unet"}


@pytest.mark.parametrize(("name", "shape", "output", "parameters"), PUBLISHED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_has_the_shapes_and_parameters_of_its_docstring(kind, name, shape, output, parameters):
    model = models.build(name, KINDS[kind]())
    assert model.name == name
    assert tuple(model.input_shape) == (None, *shape) and tuple(model.output_shape) == (None, *output)
    assert model.count_params() == parameters
    docstring = models.MODELS[name].__doc__
    statistics = sum(int(np.prod(weight.shape)) for weight in model.non_trainable_weights)
    assert f"{parameters:,} parameters, of which {statistics:,} are moving statistics" in re.sub(r"\s+", " ", docstring)
    outputs = np.asarray(model(np.zeros((2, *shape), "float32")))
    if name != "fc_autoencoder":
        np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)


def test_every_model_is_checked_against_a_published_count():
    assert {name for name, *_ in PUBLISHED} | OWN_TESTS == set(models.MODELS)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("resnet8", (48, 64, 1), 3),
        ("digits_cnn", (12, 9, 2), 2),
        ("mobilenet_v1_025", (64, 48, 1), 5),
        ("ds_cnn", (98, 40, 1), 35),
        ("fc_autoencoder", (64,), None),
    ],
)
def test_a_model_adapted_to_the_data_reports_the_difference(name, shape, classes):
    with warned(name) as message:
        model = models.build(name, import_tf_keras(), shape, classes)
    assert len(message) == 1
    assert tuple(model.input_shape) == (None, *shape) and model.output_shape[1] == (classes or shape[0])


def test_the_published_model_on_its_data_reports_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", TfqWarning)
        models.build("mobilenet_v1_025", import_tf_keras(), (96, 96, 3), 2)
        models.build("fc_autoencoder", import_tf_keras(), (640,), 2)


def test_data_that_a_model_cannot_take_is_refused():
    with refused(InputError, field="data", expected=(96, 96, 3), got=(640,)):
        models.build("mobilenet_v1_025", import_tf_keras(), (640,), 2)
    with refused(InputError, field="data.resize", got=(8, 8, 1)):
        models.build("MobileNetV2", import_tf_keras(), (8, 8, 1), 10)
    with refused(InputError, field="data", got=(640,), word="MobileNetV2"):
        models.build("MobileNetV2", import_tf_keras(), (640,), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_keras_applications_is_built_by_its_name(kind):
    model = models.build("keras.applications:mobilenet,alpha=0.25", KINDS[kind](), (32, 32, 3), 7)
    assert (tuple(model.input_shape), tuple(model.output_shape)) == ((None, 32, 32, 3), (None, 7))
    assert model.layers[0].name == "image"
    own = KINDS[kind]().applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=7)
    assert model.count_params() == own.count_params()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("MobileNtV2", "'MobileNetV2'"),
        ("keras.applications:MobileNtV2", "'MobileNetV2'"),
        ("ds-cnn", "'ds_cnn'"),
        ("MobileNetV2,alhpa=0.35", "'alpha'"),
        ("MobileNetV2,alpha=small", "number"),
        ("MobileNetV2,weights='imagenet'", "random"),
        ("MobileNetV2,classes=3", "data"),
    ],
)
def test_unknown_names_and_arguments_are_refused(name, word):
    with refused(InputError, field="model", word=word):
        models.build(name, import_tf_keras(), (32, 32, 3), 2)


def test_the_name_of_a_model_gives_names_of_files():
    names = ("resnet8", "MobileNetV2", "keras.applications:MobileNetV2", "MobileNetV2,alpha=0.35, dropout=0.1")
    stems = ["resnet8", "MobileNetV2", "MobileNetV2", "MobileNetV2_alpha_0.35_dropout_0.1"]
    assert [models.file_stem(name) for name in names] == stems


@pytest.mark.parametrize("name", models.MODELS)
def test_layer_names_depend_on_neither_earlier_models_nor_keras(name):
    names = [[layer.name for layer in models.build(name, KINDS[kind]()).layers] for kind in (*KINDS, *KINDS)]
    assert all(other == names[0] for other in names)


@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared")
@pytest.mark.parametrize("kind", KINDS)
def test_resnet8_computes_what_the_reference_of_mlperf_tiny_does(kind):
    reference = load_model(SHARED / "models" / "mlperf_tiny_resnet8_cifar10.h5")
    model = models.build("resnet8", KINDS[kind]())
    model.set_weights(reference.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(np.asarray(model(images)), np.asarray(reference(images)), atol=1e-5)


def test_an_unknown_name_gets_the_nearest():
    with refused(InputError, field="model", got="resnet9", word="'resnet8'"):
        models.build("resnet9", import_keras())

# SPDX-License-Identifier: Apache-2.0
"""The models that tfq builds by name, in both Kerases."""

import re
from pathlib import Path

import numpy as np
import pytest

from tfq import models
from tfq.errors import InputError
from tfq.keras_bridge import import_keras, import_tf_keras, load_model

KINDS = {"tf_keras": import_tf_keras, "keras": import_keras}
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.mark.parametrize(
    ("name", "shape", "parameters"), [("resnet8", (32, 32, 3), 78_666), ("digits_cnn", (8, 8, 1), 16_186)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_has_the_shapes_and_parameters_of_its_docstring(kind, name, shape, parameters):
    model = models.build(name, KINDS[kind]())
    assert model.name == name
    assert tuple(model.input_shape) == (None, *shape) and tuple(model.output_shape) == (None, 10)
    assert model.count_params() == parameters
    docstring = models.MODELS[name].__doc__
    statistics = sum(int(np.prod(weight.shape)) for weight in model.non_trainable_weights)
    assert f"{parameters:,} parameters, of which {statistics} are moving statistics" in re.sub(r"\s+", " ", docstring)
    outputs = np.asarray(model(np.zeros((2, *shape), "float32")))
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", models.MODELS)
def test_layer_names_do_not_depend_on_what_was_built_before_nor_on_the_keras(name):
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
    with pytest.raises(InputError, match="did you mean 'resnet8'"):
        models.build("resnet9", import_keras())

# SPDX-License-Identifier: Apache-2.0
"""The gate accepts models that compute the same, bit for bit, and nothing else."""

import numpy as np
import pytest
from messages import refused
from small_models import small_model

from tfq.compression.gate import check_same_function, random_inputs
from tfq.compression.graph import cloned
from tfq.compression.qat import qat
from tfq.errors import TfqError
from tfq.keras_bridge import import_tf_keras


def test_identity_gate_ignores_rounding_and_restores_it():
    model = small_model()
    quantized = qat.quantized(model).model
    check_same_function(model, quantized)
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    assert float(np.abs(model(x) - quantized(x)).max()) > 1e-4


@pytest.mark.parametrize("change", [1e-3, np.nan])
def test_one_changed_weight_is_another_function(change):
    model = small_model()
    other, _ = cloned(model)
    check_same_function(model, other)
    kernel, bias = other.get_layer("head").get_weights()
    kernel[0, 0] += change
    other.get_layer("head").set_weights([kernel, bias])
    with refused(TfqError, field="model", word="'small'"):
        check_same_function(model, other)


def test_an_output_of_another_shape_is_another_function():
    keras = import_tf_keras()
    x = keras.Input((4,))
    with refused(TfqError, field="model", expected=[(16, 4)], got=[(16, 2, 2)]):
        check_same_function(keras.Model(x, x), keras.Model(x, keras.layers.Reshape((2, 2))(x)))


def test_a_tolerance_is_a_share_of_the_largest_output():
    keras = import_tf_keras()
    x = keras.Input((4,))
    large = keras.Model(x, keras.layers.Rescaling(1000.0)(x))
    larger = keras.Model(x, keras.layers.Rescaling(1000.01)(x))
    check_same_function(large, larger, tolerance=1e-4)
    with refused(TfqError, field="model", word="output"):
        check_same_function(large, larger, tolerance=1e-6)


def test_whole_numbers_are_such_as_every_embedding_knows():
    keras = import_tf_keras()
    tokens = keras.Input((5,), dtype="int32")
    model = keras.Model(tokens, keras.layers.Embedding(7, 3)(tokens))
    (ids,) = random_inputs(model)
    assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < 7

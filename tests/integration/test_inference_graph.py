# SPDX-License-Identifier: Apache-2.0
"""Keras 3 models that draw random numbers: inference draws none, and random outputs are never hidden."""

import numpy as np
import pytest
from interpreted import answers_of
from messages import refused, warned

import tfq
from tfq.keras_bridge import import_keras, import_tf_keras

RNG = np.random.default_rng(0)
SEQUENCES = RNG.normal(size=(16, 4, 3)).astype("float32")
FLOAT = tfq.ConversionConfig(scheme="float32")


def model_of(layer, module=None, shape=(4, 3), **call):
    module = module or import_keras()
    inputs = module.Input(shape, name="x")
    return module.Model(inputs, layer(inputs, **call))


def recurrent(name):
    layers = import_keras().layers
    both = {"dropout": 0.3, "recurrent_dropout": 0.3}
    return {
        "SimpleRNN": lambda: layers.SimpleRNN(2, **both),
        "LSTM": lambda: layers.LSTM(2, dropout=0.3),
        "GRU": lambda: layers.GRU(2, recurrent_dropout=0.3),
        "Bidirectional": lambda: layers.Bidirectional(layers.GRU(2, **both)),
        "cells": lambda: layers.RNN([layers.LSTMCell(2, dropout=0.3), layers.GRUCell(2, **both)]),
        "TimeDistributed": lambda: layers.TimeDistributed(layers.Dropout(0.3)),
        "ConvLSTM1D": lambda: layers.ConvLSTM1D(2, 2, **both),
        "nested": lambda: import_keras().Sequential([layers.LSTM(2, **both), layers.Dropout(0.3)]),
    }[name]()


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU", "Bidirectional", "cells", "TimeDistributed", "nested"])
def test_recurrent_layers_with_dropout_compute_what_keras_predicts(name):
    model = model_of(recurrent(name))
    np.testing.assert_allclose(
        answers_of(tfq.convert(model, config=FLOAT), SEQUENCES), model.predict(SEQUENCES, verbose=0), atol=1e-5
    )


def test_a_loop_with_dropout_computes_what_keras_predicts():
    model = model_of(recurrent("ConvLSTM1D"), shape=(3, 4, 2))
    x = RNG.normal(size=(8, 3, 4, 2)).astype("float32")
    np.testing.assert_allclose(answers_of(tfq.convert(model, config=FLOAT), x), model.predict(x, verbose=0), atol=1e-5)


def test_a_model_with_dropout_converts_to_the_int8_file_of_the_model_without():
    layers = import_keras().layers
    model, without = (model_of(layers.LSTM(2, dropout=rate)) for rate in (0.3, 0.0))
    without.set_weights([value for value in model.get_weights() if value.dtype.kind == "f"])
    files = [tfq.convert(item, SEQUENCES) for item in (model, without)]
    np.testing.assert_array_equal(*(answers_of(content, SEQUENCES) for content in files))


def layer_that_draws(use, seed=True):
    """Return a Keras 3 layer that draws noise in each call, and adds it if `use(training)`."""
    keras = import_keras()

    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="noise")
            self.generator = keras.random.SeedGenerator(1) if seed else None

        def call(self, x, training=False):
            noise = keras.random.normal((3,), seed=self.generator)
            return x + noise if use(training) else 2 * x

    return Noise()


def test_noise_in_training_only_leaves_the_file_deterministic():
    model = model_of(layer_that_draws(lambda training: training))
    np.testing.assert_allclose(answers_of(tfq.convert(model, config=FLOAT), SEQUENCES), 2 * SEQUENCES, rtol=1e-6)


@pytest.mark.parametrize("seed", [True, False])
def test_random_outputs_of_keras_3_are_refused_by_layer(seed):
    model = model_of(layer_that_draws(lambda training: True, seed))
    assert not np.array_equal(model.predict(SEQUENCES, verbose=0), model.predict(SEQUENCES, verbose=0))
    with refused(tfq.InputError, field="model", got=("noise",), word="random", limit="random-outputs"):
        tfq.convert(model, SEQUENCES)


def test_dropout_that_a_layer_always_applies_is_refused():
    keras = import_keras()

    class Always(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dropout = keras.layers.Dropout(0.5, name="inner")

        def call(self, x):
            return self.dropout(x, training=True)

    with refused(tfq.InputError, field="model", got=("inner",), limit="random-outputs"):
        tfq.convert(model_of(Always()), SEQUENCES)


def test_training_true_that_keras_3_ignores_is_a_warning():
    layers = import_keras().layers
    model = model_of(layers.Dropout(0.5, name="always"), training=True)
    with warned("always"):
        content = tfq.convert(model, config=FLOAT)
    np.testing.assert_array_equal(answers_of(content, SEQUENCES), model.predict(SEQUENCES, verbose=0))
    with warned("always"):
        notes = tfq.to_tf_keras(model).notes
    assert any("always" in note for note in notes)


def test_training_true_of_tf_keras_stays_random_with_a_warning():
    module = import_tf_keras()
    model = model_of(module.layers.Dropout(0.5, name="always"), module, training=True)
    with warned("always"):
        content = tfq.convert(model, config=FLOAT)
    outputs = answers_of(content, SEQUENCES)
    assert set(np.unique(np.isclose(outputs, 0))) == {True, False}


def counter(used):
    keras = import_keras()

    class Counter(keras.layers.Layer):
        def build(self, shape):
            self.calls = self.add_weight(name="calls", shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.calls.assign_add(1.0)
            return x * self.calls if used else 2 * x

    return Counter(name="counter")


def test_a_state_that_the_outputs_depend_on_is_refused():
    with refused(tfq.InputError, field="model", got=("calls",), word="counter", limit="state"):
        tfq.convert(model_of(counter(used=True)), SEQUENCES)


def test_a_variable_update_without_effect_is_left_out_with_a_warning():
    with warned("counter"):
        content = tfq.convert(model_of(counter(used=False)), config=FLOAT)
    np.testing.assert_allclose(answers_of(content, SEQUENCES), 2 * SEQUENCES)


def test_noise_with_a_fixed_seed_becomes_a_constant():
    keras = import_keras()

    class Noise(keras.layers.Layer):
        def call(self, x):
            return x + keras.random.normal((4, 3), seed=3) + keras.random.uniform((3,), seed=4)

    model = model_of(Noise())
    expected = model.predict(SEQUENCES, verbose=0)
    np.testing.assert_allclose(answers_of(tfq.convert(model, config=FLOAT), SEQUENCES), expected, atol=1e-6)

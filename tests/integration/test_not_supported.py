# SPDX-License-Identifier: Apache-2.0
"""The statements of docs/not_supported.md that no other test covers."""

import numpy as np
import pytest
from corpus import sqnr
from messages import refused

import tfq
from tfq.keras_bridge import UnbridgeableError, import_keras, import_tf_keras

SAMPLES = np.random.default_rng(0).uniform(0.1, 1.9, (20, 8)).astype("float32")


def dense(module, **options):
    inputs = module.Input((8,), **options)
    return module.Model(inputs, module.layers.Dense(4, name="head")(inputs))


def test_models_that_keras_quantized_are_refused():
    model = dense(import_keras())
    model.quantize("int8")
    with refused(UnbridgeableError, field="model", got=("head",), limit="untranslatable-layers"):
        tfq.to_tf_keras(model)
    with refused(tfq.InputError, field="model", got=("int8",), word="head", limit="keras-quantized"):
        tfq.convert(model, SAMPLES)


def test_conversion_accepts_lora_weights_that_the_bridge_refuses():
    model = dense(import_keras())
    model.get_layer("head").enable_lora(2)
    with refused(UnbridgeableError, field="model", got=("head",), word="LoRA"):
        tfq.to_tf_keras(model)
    assert tfq.audit(tfq.convert(model, SAMPLES)).scheme == "full_int8"


@pytest.mark.parametrize("option", ["sparse", "optional"])
def test_the_bridge_refuses_sparse_and_optional_inputs(option):
    with refused(UnbridgeableError, field="model", word=option) as caught:
        tfq.to_tf_keras(dense(import_keras(), **{option: True}))
    assert set(caught.value.classes.values()) == {"InputLayer"}


def test_text_inputs_are_refused():
    keras = import_keras()
    inputs = keras.Input((1,), dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot", name="lookup")
    model = keras.Model(inputs, lookup(inputs))
    with refused(UnbridgeableError, field="model", got=("lookup",), word="StringLookup"):
        tfq.to_tf_keras(model)
    with refused(tfq.InputError, field="model", limit="text-input"):
        tfq.convert(model, np.array([["a"]] * 20))


@pytest.mark.parametrize("step", [tfq.qat, tfq.prune, tfq.cluster, tfq.prune_structured])
def test_compression_refuses_stateful_layers(step):
    module = import_tf_keras()
    inputs = module.Input((4, 3), batch_size=2)
    lstm = module.layers.Bidirectional(module.layers.LSTM(2, stateful=True, name="memory"))
    model = module.Model(inputs, module.layers.Dense(2)(lstm(inputs)))
    with refused(tfq.InputError, field="model", expected="stateful=False", word="memory", limit="stateful-rnn"):
        step(model, lambda model, callbacks: None)
    with refused(tfq.InputError, field="model", expected="stateful=False", word="memory"):
        tfq.preflight(model)


def test_conversion_needs_data_for_activation_ranges():
    with refused(tfq.InputError, field="representative_dataset", limit="no-ranges"):
        tfq.convert(dense(import_keras()))


def pooled(kind):
    """Return the pooling of windows 2x2x2 by two layers of fewer dimensions."""
    keras = import_keras()
    layers = keras.layers

    def call(x):
        x = layers.TimeDistributed(getattr(layers, f"{kind}2D")(2))(x)
        _, depth, *rest = x.shape
        x = getattr(layers, f"{kind}1D")(2)(layers.Reshape((depth, -1))(x))
        return layers.Reshape((depth // 2, *rest))(x)

    return call


def erf(o, x):
    return o.tanh(x * (1.1284 + 0.10091 * x * x))


def looped(x):
    for _ in range(3):
        x = 0.5 * x + 0.1
    return x


# Refused function -> (the alternative in not_supported.md, lowest and highest sample).
ALTERNATIVES = {
    "arccos": (lambda o, x: o.arctan2(o.sqrt(1 - x * x), x), -0.9, 0.9),
    "arccosh": (lambda o, x: o.log(x + o.sqrt(x * x - 1)), 1.1, 3.0),
    "arcsin": (lambda o, x: o.arctan2(x, o.sqrt(1 - x * x)), -0.9, 0.9),
    "arcsinh": (lambda o, x: o.log(x + o.sqrt(x * x + 1)), -2.0, 2.0),
    "arctan": (lambda o, x: o.arctan2(x, o.ones_like(x)), -2.0, 2.0),
    "arctanh": (lambda o, x: 0.5 * (o.log(1 + x) - o.log(1 - x)), -0.9, 0.9),
    "cosh": (lambda o, x: 0.5 * (o.exp(x) + o.exp(-x)), -2.0, 2.0),
    "sinh": (lambda o, x: 0.5 * (o.exp(x) - o.exp(-x)), -2.0, 2.0),
    "tan": (lambda o, x: o.sin(x) / o.cos(x), -1.0, 1.0),
    "erf": (erf, -2.0, 2.0),
    "erfc": (lambda o, x: 1 - erf(o, x), -2.0, 2.0),
    "fori_loop": (lambda o, x: looped(x), -2.0, 2.0),
    "diagonal": (lambda o, x: o.sum(x * o.eye(6), axis=-1), -2.0, 2.0),
    "MaxPooling": (lambda o, x: pooled("MaxPooling")(x), 0.0, 2.0),
    "AveragePooling": (lambda o, x: pooled("AveragePooling")(x), 0.0, 2.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_an_alternative_to_a_refused_function_is_converted(name):
    keras = import_keras()
    alternative, low, high = ALTERNATIVES[name]
    references = {
        "fori_loop": lambda x: keras.ops.fori_loop(0, 3, lambda _, value: 0.5 * value + 0.1, x),
        "diagonal": lambda x: keras.ops.diagonal(x, axis1=1, axis2=2),
        "MaxPooling": lambda x: keras.layers.MaxPooling3D(2)(x),
        "AveragePooling": lambda x: keras.layers.AveragePooling3D(2)(x),
    }
    shape = (4, 6, 6, 2) if name.endswith("Pooling") else (6, 6)
    samples = np.random.default_rng(0).uniform(low, high, (50, *shape)).astype("float32")
    inputs = keras.Input(shape)
    model = keras.Model(inputs, alternative(keras.ops, inputs))
    expected = np.asarray(references.get(name, getattr(keras.ops, name, None))(keras.ops.convert_to_tensor(samples)))
    assert sqnr(expected, np.asarray(model(samples))) > 60
    tfq.convert(model, samples, tfq.ConversionConfig(strict=True))  # the verification compares it with the model

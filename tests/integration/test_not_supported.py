# SPDX-License-Identifier: Apache-2.0
"""The statements of docs/not_supported.md that no other test covers."""

import numpy as np
import pytest
from messages import refused

import tfq
from tfq.keras_bridge import UnbridgeableError, import_keras, import_tf_keras

SAMPLES = np.random.default_rng(0).uniform(0.1, 1.9, (20, 8)).astype("float32")


def dense(module, **options):
    inputs = module.Input((8,), **options)
    return module.Model(inputs, module.layers.Dense(4, name="head")(inputs))


def mixed(module):
    module.mixed_precision.set_global_policy("mixed_float16")
    try:
        return dense(module)
    finally:
        module.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("import_module", [import_keras, import_tf_keras])
def test_conversion_refuses_subclassed_models(import_module):
    module = import_module()

    class Own(module.Model):
        def __init__(self):
            super().__init__()
            self.head = module.layers.Dense(2)

        def call(self, x):
            return self.head(x)

    model = Own()
    model(SAMPLES[:1])
    with refused(tfq.InputError, field="model"):
        tfq.convert(model, SAMPLES)


@pytest.mark.parametrize("import_module", [import_keras, import_tf_keras])
def test_conversion_refuses_mixed_precision_and_accepts_the_translated_model(import_module):
    model = mixed(import_module())
    with refused(tfq.InputError, field="model"):
        tfq.convert(model, SAMPLES)
    assert tfq.audit(tfq.convert(tfq.to_tf_keras(model).model, SAMPLES)).scheme == "full_int8"


def test_models_that_keras_quantized_are_refused():
    model = dense(import_keras())
    model.quantize("int8")
    with refused(UnbridgeableError, field="model", got=("head",)):
        tfq.to_tf_keras(model)
    with refused(tfq.InputError, field="model"):
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
    with refused(tfq.InputError, field="model"):
        tfq.convert(model, np.array([["a"]] * 20))


def test_conversion_needs_data_for_activation_ranges():
    with refused(tfq.InputError, field="representative_dataset"):
        tfq.convert(dense(import_keras()))

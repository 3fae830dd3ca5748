# SPDX-License-Identifier: Apache-2.0
"""Models in mixed precision and other float types: everything computes in float32, and the model keeps its policies.

The oracle is the float32 twin: the same architecture, built in float32, with the same weights.
"""

import warnings

import numpy as np
import pytest
from interpreted import answers_of
from messages import refused, warned

import tfq
from tfq.keras_bridge import import_keras, import_tf_keras
from tfq.keras_bridge.walk import all_layers

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(16, 6, 6, 2)).astype("float16").astype("float32")
LABELS = np.arange(16) % 3
FLOAT = tfq.ConversionConfig(scheme="float32")
BOTH = pytest.mark.parametrize("module", [import_keras, import_tf_keras], ids=["keras", "tf_keras"])


def network(module, policy, input_dtype="float32", last="float32"):
    layers = module.layers
    module.mixed_precision.set_global_policy(policy)
    try:
        inputs = module.Input((6, 6, 2), name="image", dtype=input_dtype)
        x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
        x = layers.BatchNormalization(name="norm")(x)
        x = layers.GlobalAveragePooling2D(name="pool")(layers.Rescaling(0.3, name="scale")(x))
        return module.Model(inputs, layers.Dense(3, name="head", dtype=last)(x), name="net")
    finally:
        module.mixed_precision.set_global_policy("float32")


def with_twin(module, policy, **options):
    """Return a model in `policy` and its float32 twin. Both have the same weights."""
    model, twin = network(module, policy, **options), network(module, "float32")
    weights = [np.abs(RNG.normal(size=value.shape)) + 0.1 for value in twin.get_weights()]
    model.set_weights(weights)
    twin.set_weights([np.asarray(value, "float32") for value in model.get_weights()])
    return model, twin


def policies(model):
    return [(layer.name, layer.dtype_policy, layer.compute_dtype) for layer in all_layers(model)]


@BOTH
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"])
def test_the_file_computes_what_the_float32_twin_computes(module, policy):
    model, twin = with_twin(module(), policy, last=policy)
    before, predicted = policies(model), np.asarray(model.predict(IMAGES, verbose=0), "float32")
    with warned("conv"):
        content = tfq.convert(model, config=FLOAT)
    np.testing.assert_allclose(answers_of(content, IMAGES), twin.predict(IMAGES, verbose=0), rtol=1e-5, atol=1e-6)
    assert policies(model) == before
    np.testing.assert_array_equal(np.asarray(model.predict(IMAGES, verbose=0), "float32"), predicted)
    if policy == "mixed_bfloat16":
        assert np.abs(predicted - twin.predict(IMAGES, verbose=0)).max() > 1e-3


@BOTH
def test_the_int8_file_is_the_one_of_the_float32_twin(module):
    model, twin = with_twin(module(), "mixed_float16")
    files = [tfq.convert(item, IMAGES) for item in (model, twin)]
    np.testing.assert_array_equal(*(answers_of(content, IMAGES) for content in files))
    assert tfq.audit(files[0]).scheme == "full_int8"


@BOTH
def test_a_float16_input_becomes_float32_with_a_warning(module):
    model, twin = with_twin(module(), "mixed_float16", input_dtype="float16")
    with warned("image"):
        content = tfq.convert(model, IMAGES.astype("float16"), tfq.ConversionConfig(scheme="float32"))
    np.testing.assert_allclose(answers_of(content, IMAGES), twin.predict(IMAGES, verbose=0), rtol=1e-5)
    graph = tfq.tflite.read(content).main_subgraph
    assert [graph.tensors[index].dtype for index in graph.inputs] == ["float32"]


def test_policies_are_restored_if_the_trace_fails():
    keras = import_keras()

    class Fails(keras.layers.Layer):
        fails = False

        def call(self, x):
            if self.fails:
                raise ValueError("no")
            return x

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Fails(dtype="mixed_float16")(keras.layers.Dense(3, dtype="mixed_bfloat16")(inputs)))
    before, Fails.fails = policies(model), True
    with pytest.raises(ValueError, match="no"):
        tfq.convert(model, np.ones((4, 3), "float32"))
    assert policies(model) == before


def test_casts_and_constants_of_other_float_types_become_float32():
    import tensorflow as tf

    keras, tf_keras = import_keras(), import_tf_keras()

    class Halves(keras.layers.Layer):
        def call(self, x):
            return tf.cast(tf.cast(x, tf.float16) * tf.constant(0.5, tf.float16), tf.float32) + tf.cast(
                tf.cast(x, tf.float64) * 2.0, tf.float32
            )

    inputs = keras.Input((3,))
    x = RNG.normal(size=(8, 3)).astype("float32")
    with warned("halves"):
        content = tfq.convert(keras.Model(inputs, Halves(name="halves")(inputs)), config=FLOAT)
    np.testing.assert_allclose(answers_of(content, x), 2.5 * x, rtol=1e-6)
    # The constant does not fit to a Dense that computes in float32, so the graph is changed.
    inputs = tf_keras.Input((3,))
    dense = tf_keras.layers.Dense(3, dtype="mixed_float16", name="dense")
    model = tf_keras.Model(inputs, dense(inputs) + np.float16(0.25))
    kernel, _ = dense.get_weights()
    with warned("dense"):
        content = tfq.convert(model, config=FLOAT)
    np.testing.assert_allclose(answers_of(content, x), x @ kernel + 0.25, rtol=1e-5, atol=1e-6)


@BOTH
def test_statistics_of_a_normalization_are_not_rounded(module):
    module = module()
    mean, variance = [123.68, 110.33], [3411.7, 2222.2]
    layer = module.layers.Normalization(mean=mean, variance=variance, dtype="mixed_bfloat16")
    inputs = module.Input((6, 6, 2))
    model = module.Model(inputs, module.layers.Activation("linear", dtype="float32")(layer(inputs)))
    x = np.float32(255) * IMAGES
    expected = (x - np.float32(mean)) / np.sqrt(np.float32(variance))
    np.testing.assert_allclose(answers_of(tfq.convert(model, config=FLOAT), x), expected, atol=1e-5)
    bridged = tfq.to_tf_keras(model).model
    np.testing.assert_allclose(bridged.predict(x, verbose=0), expected, atol=1e-5)


@BOTH
def test_training_with_callbacks_stays_in_mixed_precision(module):
    module = module()
    model, twin = with_twin(module, "mixed_bfloat16")
    model.compile("sgd", module.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = tfq.Int8Evaluation((IMAGES, LABELS), IMAGES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(IMAGES, LABELS, epochs=2, verbose=0, callbacks=[callback]).history
    assert len([item for item in caught if "mixed_bfloat16" in str(item.message)]) == 1
    assert str(model.get_layer("conv")(IMAGES[:1]).dtype) in ("bfloat16", "<dtype: 'bfloat16'>")
    twin.set_weights(model.get_weights())
    expected, got = twin.predict(IMAGES, verbose=0), answers_of(callback.flatbuffer, IMAGES)
    sqnr = 10 * np.log10((expected.astype("float64") ** 2).sum() / ((expected - got) ** 2).sum())
    assert history["val_int8_sqnr_db"][-1] == pytest.approx(sqnr, abs=0.1)


def fit(model, callbacks):
    module = import_tf_keras()
    model.compile("sgd", module.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IMAGES, LABELS, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize("step", [tfq.prune, tfq.qat])
def test_compression_steps_train_a_float32_copy(step):
    model, twin = with_twin(import_tf_keras(), "mixed_float16", input_dtype="float16")
    before, weights = policies(model), model.get_weights()
    with warned("mixed_float16"):
        result = step(model, fit)
    expected = step(twin, fit)
    assert {layer.compute_dtype for layer in all_layers(result)} == {"float32"}
    for got, other in zip(result.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(got, other, atol=1e-3)
    assert policies(model) == before
    for value, other in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(value, other)


def test_inner_layers_of_wrappers_are_copied_in_float32():
    layers = import_tf_keras().layers
    inputs = import_tf_keras().Input((4, 3))
    lstm = layers.Bidirectional(layers.LSTM(2, dtype="mixed_float16"), dtype="mixed_float16")
    model = import_tf_keras().Model(inputs, lstm(inputs))
    bridged = tfq.to_tf_keras(model).model
    assert {layer.compute_dtype for layer in all_layers(bridged)} == {"float32"}


@pytest.mark.parametrize("policy", ["int8_from_float32", "float8_from_mixed_bfloat16"])
def test_quantized_policies_of_keras_are_refused(policy):
    keras = import_keras()
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(4, dtype=policy, name="head")(inputs))
    with refused(tfq.InputError, field="model", got=(policy.split("_")[0],), word="head", limit="keras-quantized"):
        tfq.convert(model, np.ones((4, 8), "float32"))

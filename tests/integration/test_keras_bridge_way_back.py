# SPDX-License-Identifier: Apache-2.0
"""Trained weights return to the user's model: from the bridged model, a pruned copy, and a QAT model."""

import numpy as np
import pytest
from messages import refused

from tfq import registry
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import (
    BridgedLayer,
    Translation,
    import_keras,
    import_tf_keras,
    import_tfmot,
    return_weights,
    to_tf_keras,
)


def model_of_each_kind():
    keras = import_keras()
    layers = keras.layers
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3, name="conv")], name="inner")
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(inner(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def trained(model, *callbacks):
    rng = np.random.default_rng(0)
    model.compile("sgd", "mse", run_eagerly=True)
    x = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    model.fit(x, rng.normal(size=(16, 3)), verbose=0, callbacks=list(callbacks))
    return x


def test_the_bridged_models_own_training_returns():
    model = model_of_each_kind()
    result = to_tf_keras(model)
    before = np.asarray(model.get_layer("inner").get_layer("conv").kernel)
    x = trained(result.model)
    return_weights(result)
    assert np.abs(np.asarray(model.get_layer("inner").get_layer("conv").kernel) - before).max() > 1e-6
    np.testing.assert_allclose(model(x, training=False), result.model(x, training=False), atol=1e-6)


def test_a_pruned_copy_returns_wrapped_and_stripped():
    sparsity = import_tfmot().sparsity.keras
    model = model_of_each_kind()
    result = to_tf_keras(model)
    pruned = sparsity.prune_low_magnitude(
        result.model, pruning_schedule=sparsity.ConstantSparsity(0.5, begin_step=0, end_step=-1, frequency=1)
    )
    x = trained(pruned, sparsity.UpdatePruningStep())
    for copy in (pruned, sparsity.strip_pruning(pruned)):
        model.set_weights([array * 0 for array in model.get_weights()])
        return_weights(result, copy)
        assert np.mean(np.asarray(model.get_layer("conv").kernel) == 0) == 0.5
        np.testing.assert_allclose(model(x, training=False), copy(x, training=False), atol=1e-6)


def test_a_quantization_aware_copy_returns():
    model = model_of_each_kind()
    result = to_tf_keras(model)
    aware = import_tfmot().quantization.keras.quantize_model(result.model)
    trained(aware)
    return_weights(result, aware)
    expected = {variable.name: np.asarray(variable) for variable in aware.weights}
    np.testing.assert_array_equal(model.get_layer("conv").kernel, expected["conv/kernel:0"])
    np.testing.assert_array_equal(model.get_layer("inner").get_layer("conv").kernel, expected["inner_conv/kernel:0"])
    np.testing.assert_array_equal(model.get_layer("bn").moving_mean, expected["bn/moving_mean:0"])
    np.testing.assert_array_equal(model.get_layer("head").bias, expected["head/bias:0"])


def test_weights_of_every_order_return_where_they_came_from():
    """Each weight is changed by one in the copy, and so must be in the user's model."""
    keras, tf_keras = import_keras(), import_tf_keras()
    layers = keras.layers
    inner = keras.Sequential([keras.Input((5, 4)), layers.BatchNormalization(), layers.Conv1D(3, 2), layers.Flatten()])
    inputs = keras.Input((3, 5, 4))
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(layers.TimeDistributed(inner)(inputs))
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.SpectralNormalization(layers.Dense(4, dtype="bfloat16"))(x)
    model = keras.Model(inputs, layers.PReLU()(layers.RMSNormalization()(x)))
    result = to_tf_keras(model)
    copy = tf_keras.models.clone_model(result.model)
    copy.set_weights([array + 1 for array in result.model.get_weights()])
    before = {variable.path: np.asarray(variable.numpy(), np.float32) for variable in model.weights}
    return_weights(result, copy)
    for variable in model.weights:
        moved = np.asarray(variable.numpy(), np.float32) - before[variable.path]
        kept = variable.path.endswith("vector_u")
        np.testing.assert_allclose(moved, 0 if kept else 1, atol=0.01, err_msg=variable.path)


def test_a_flat_tf_keras_model_takes_its_weights_back_too():
    tf_keras = import_tf_keras()
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3)])
    copy = tf_keras.models.clone_model(model)
    return_weights(to_tf_keras(model), copy)
    np.testing.assert_array_equal(model.get_weights()[0], copy.get_weights()[0])


def test_copies_of_a_layer_inside_a_wrapper_must_stay_equal():
    keras = import_keras()
    shared = keras.layers.Dense(4, name="shared")
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, shared(keras.layers.TimeDistributed(shared, name="each")(inputs)))
    result = to_tf_keras(model)
    assert any("each and shared share a weight" in note for note in result.notes)
    return_weights(result)
    result.model.get_layer("shared").set_weights([array + 1 for array in shared.get_weights()])
    with refused(TfqError, field="trained", expected="equal copies of a weight"):
        return_weights(result)


def test_a_copy_without_a_layer_changes_nothing():
    model, tf_keras = model_of_each_kind(), import_tf_keras()
    result = to_tf_keras(model)
    before = model.get_weights()
    short = tf_keras.Model(result.model.input, result.model.get_layer("relu").output)
    with refused(InputError, field="trained", expected=("inner_conv", "head")):
        return_weights(result, short)
    other = tf_keras.models.clone_model(result.model, clone_function=lambda layer: wider(layer))
    with refused(TfqError, field="trained", expected=(4, 3), word="'head'"):
        return_weights(result, other)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def wider(layer):
    config = layer.get_config()
    return type(layer).from_config({**config, "units": 5} if layer.name == "head" else config)


def test_a_pair_of_translators_carries_weights_of_another_shape_both_ways():
    keras, tf_keras = import_keras(), import_tf_keras()

    class Scaled(keras.layers.Layer):
        """Multiplies x by a single number, stored as its logarithm."""

        def build(self, shape):
            self.log_scale = self.add_weight(name="log_scale", shape=())

        def call(self, x):
            return x * keras.ops.exp(self.log_scale)

    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, Scaled(name="scaled")(inputs))
    model.get_layer("scaled").log_scale.assign(0.7)
    assert to_tf_keras(model).layer_map["scaled/log_scale"] == ("scaled_log_scale",)

    def translate(layer, context):
        return Translation(
            layers=(tf_keras.layers.DepthwiseConv2D(1, use_bias=False, name=context.name),),
            forward=lambda arrays: [np.exp(arrays[0]).reshape(1, 1, 1, 1)],
            back=lambda arrays: [np.log(arrays[0]).reshape(())],
        )

    with registry.temporary():
        registry.register(BridgedLayer(name="Scaled", help="a test's", translate=translate, keras_class=Scaled))
        result = to_tf_keras(model)
    assert type(result.model.get_layer("scaled")).__name__ == "DepthwiseConv2D"
    result.model.get_layer("scaled").set_weights([np.full((1, 1, 1, 1), 3.0)])
    return_weights(result)
    assert float(model.get_layer("scaled").log_scale) == pytest.approx(np.log(3.0))

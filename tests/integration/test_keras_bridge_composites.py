# SPDX-License-Identifier: Apache-2.0
"""Composite layers of Keras 3 (user code with inner layers, weights and keras.ops) in the bridge to tf_keras."""

import keras
import numpy as np
import pytest
from keras import ops

import tfq
from tfq.keras_bridge import UnbridgeableError


class ResidualBlock(keras.layers.Layer):
    """A convolution with BatchNormalization and a factor, and a shortcut; `training` is an argument of call."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(filters, 3, padding="same", name="conv")
        self.bn = keras.layers.BatchNormalization(name="bn")
        self.shortcut = keras.layers.Conv2D(filters, 1, name="shortcut")
        self.filters = filters

    def build(self, shape):
        self.conv.build(shape)
        self.bn.build((*shape[:-1], self.filters))
        self.shortcut.build(shape)
        self.gain = self.add_weight(name="gain", shape=(self.filters,), initializer="ones")

    def call(self, x, training=False):
        y = self.bn(self.conv(x), training=training)
        return ops.relu(ops.relu(y) * self.gain + self.shortcut(x))


class Tokens(keras.layers.Layer):
    """Patches of an image with a class token and a position embedding, as vision transformers have them."""

    def build(self, shape):
        self.token = self.add_weight(name="token", shape=(1, 1, shape[-1]))
        self.positions = keras.layers.Embedding(shape[1] * shape[2] + 1, shape[-1], name="positions")
        self.positions.build(None)

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        x = ops.reshape(x, (batch, height * width, channels))
        x = ops.concatenate([ops.broadcast_to(self.token, (batch, 1, channels)), x], axis=1)
        return x + self.positions(ops.arange(height * width + 1)) + ops.zeros((batch, 1, channels))


class Attention(keras.layers.Layer):
    """Self attention with the heads merged into the batch; returns a dict."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens = Tokens(name="tokens")

    def build(self, shape):
        self.tokens.build(shape)

    def call(self, x):
        x = self.tokens(x)
        batch, length, channels = ops.shape(x)
        y = ops.transpose(ops.reshape(x, (batch, length, 2, channels // 2)), (0, 2, 1, 3))
        y = ops.reshape(y, (batch * 2, length, channels // 2))
        weights = ops.softmax(ops.matmul(y, ops.transpose(y, (0, 2, 1))))
        y = ops.transpose(ops.reshape(ops.matmul(weights, y), (batch, 2, length, channels // 2)), (0, 2, 1, 3))
        return {"tokens": ops.reshape(y, (batch, length, channels)), "weights": weights}


def with_values(model, seed=0):
    """Give a model random weights, and statistics that change its outputs."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(0.2, 0.4, variable.shape)
        variable.assign(np.abs(values) + 0.2 if "variance" in variable.path else values)
    return model


def images(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 4, 4, 3)).astype(np.float32)


def blocks():
    inputs = keras.Input((4, 4, 3))
    x = ResidualBlock(4, name="block1")(inputs)
    block = ResidualBlock(4, name="block2")
    x = block(block(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(Attention(name="attention")(x)["tokens"][:, :, None])
    return with_values(keras.Model(inputs, keras.layers.Dense(3, name="dense")(x)))


@pytest.fixture(scope="module")
def bridged():
    return tfq.to_tf_keras(blocks())


def assert_equal_outputs(result, model, inputs):
    expected = model(inputs, training=False)
    np.testing.assert_allclose(result.model(inputs, training=False), expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(np.asarray(expected), axis=0).min() > 1e-3  # the inputs matter


def test_composites_compute_the_same_for_every_batch_size(bridged):
    for count in (2, 5):
        assert_equal_outputs(bridged, bridged.source, images(count))


def test_inner_layers_have_readable_unique_names(bridged):
    assert bridged.layer_map["block1/conv"] == ("block1_conv",)
    assert bridged.layer_map["block1/gain"] == ("block1_gain",)
    assert bridged.layer_map["attention/tokens/positions"] == ("attention_tokens_positions",)
    assert {"block2_conv", "block2_bn", "block2_gain", "block2_relu"} <= set(bridged.layer_map["block2"])
    assert bridged.origins["block2_conv"] == "block2/conv"


def test_inner_batch_norm_is_trained_and_not_frozen(bridged):
    trainable = {layer.name for layer in bridged.model.layers if layer.trainable_weights}
    assert {"block1_bn", "block1_gain", "attention_tokens_token", "attention_tokens_positions"} <= trainable
    assert not bridged.notes


def test_expansion_leaves_no_nodes_in_the_users_layers(bridged):
    assert bridged.source.get_layer("block1").conv._inbound_nodes == []
    assert len(bridged.source.get_layer("block2")._inbound_nodes) == 2
    assert "compute_output_spec" not in vars(bridged.source.get_layer("attention").tokens)


def test_weights_of_a_composite_come_back():
    result = tfq.to_tf_keras(blocks())
    for index, layer in enumerate(result.model.layers):
        layer.set_weights([array + 0.01 * (index + 1) for array in layer.get_weights()])
    tfq.return_weights(result)
    assert_equal_outputs(result, result.source, images(3))


def test_a_bridged_composite_is_saved_and_loaded(bridged, tmp_path):
    bridged.model.save(tmp_path / "bridged.keras")
    loaded = tfq.load_model(tmp_path / "bridged.keras")
    np.testing.assert_array_equal(loaded(images(3)), bridged.model(images(3)))


def one_step(model, callbacks):
    model.compile("sgd", "mse")
    model.fit(images(8), np.zeros((8, 3), np.float32), batch_size=4, epochs=1, verbose=0, callbacks=callbacks)


def test_composites_are_pruned_clustered_and_quantized():
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.GlobalAveragePooling2D()(ResidualBlock(4, name="block")(inputs))
    result = tfq.to_tf_keras(with_values(keras.Model(inputs, keras.layers.Dense(3)(x))))
    assert tfq.preflight(result).ok
    pruned = tfq.prune(result.model, one_step, tfq.PruneConfig(final_sparsity=0.5, frequency=1))
    assert np.mean(pruned.get_layer("block_conv").kernel.numpy() == 0) == pytest.approx(0.5, abs=0.01)
    clustered = tfq.cluster(result.model, one_step, tfq.ClusterConfig(number_of_clusters=4))
    kernel = clustered.get_layer("block_conv").kernel.numpy()
    assert max(len(np.unique(kernel[..., channel])) for channel in range(4)) <= 4
    quantized = tfq.qat(result.model, one_step, calibration=images(8))
    assert "quant_block_gain" in {layer.name for layer in quantized.layers}
    flatbuffer = tfq.convert(quantized)
    assert tfq.audit(flatbuffer, tfq.AuditConfig(require="full_int8")).ok
    gain = result.source.get_layer("block").gain
    before = np.array(gain)
    tfq.return_weights(result, quantized)
    assert not np.array_equal(before, gain)


def test_a_padding_with_infinity_is_quantized_in_the_range_of_its_input():
    inputs = keras.Input((4, 4, 3))
    x = ops.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=float("-inf"))
    result = tfq.to_tf_keras(keras.Model(inputs, keras.layers.MaxPooling2D(3, 2)(x)))
    placements = {row.name: row.reason for row in tfq.preflight(result).layers}
    assert "scale of its input" in placements[result.layer_map[x._keras_history.operation.name][0]]


def bridge_one(layer, shape=(4, 4, 3), **options):
    inputs = keras.Input(shape)
    return tfq.to_tf_keras(with_values(keras.Model(inputs, layer(inputs, **options))))


def test_batch_norm_of_a_composite_called_for_inference_is_frozen():
    class Explicit(ResidualBlock):
        def call(self, x, training=None):
            return super().call(x, training=training)

    result = bridge_one(Explicit(4, name="block"), training=False)
    assert not result.model.get_layer("block_bn").trainable
    assert any("block/bn" in note and "frozen" in note for note in result.notes)


def test_a_part_that_only_training_has_is_reported():
    class Noisy(keras.layers.Layer):
        def call(self, x, training=None):
            return x + keras.random.normal(ops.shape(x)) if training else x * 2.0

    result = bridge_one(Noisy(name="noisy"))
    assert any(note.startswith("noisy computes something else") for note in result.notes)


def test_an_activation_function_of_the_user_is_translated():
    def doubled_tanh(x):
        return 2.0 * ops.tanh(x)

    result = bridge_one(keras.layers.Dense(2, activation=doubled_tanh, name="dense"))
    assert result.layer_map["dense"][0] == "dense"
    assert_equal_outputs(result, result.source, images(3))


def test_the_function_of_a_lambda_layer_is_translated():
    result = bridge_one(keras.layers.Lambda(lambda x: ops.tanh(x[:, :2]) + 1, name="code"))
    assert_equal_outputs(result, result.source, images(3))


def test_a_subclassed_model_inside_of_a_functional_one_is_translated():
    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.dense = keras.layers.Dense(2, name="dense")

        def call(self, x):
            return ops.mean(self.dense(x), axis=(1, 2))

    result = bridge_one(Net())
    assert result.layer_map["net/dense"] == ("net_dense",)
    assert_equal_outputs(result, result.source, images(3))


def test_a_subclass_that_changes_no_computation_is_its_base_class():
    class Wide(keras.layers.Conv2D):
        def __init__(self, **kwargs):
            super().__init__(8, 3, **kwargs)

        def get_config(self):
            return {"wide": True, **super().get_config()}

    result = bridge_one(Wide(name="wide"))
    assert type(result.model.get_layer("wide")).__name__ == "Conv2D"


def test_masks_reach_the_call_of_a_composite_and_the_layers_after_it():
    class Positions(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.embedding = keras.layers.Embedding(10, 4, name="embedding")

        def build(self, shape):
            self.embedding.build(shape)

        def call(self, ids):
            return self.embedding(ids) + 1.0

        def compute_mask(self, ids, mask=None):
            return ops.not_equal(ids, 0)

    class Masked(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.supports_masking = True

        def call(self, x, mask=None):
            return x if mask is None else x * ops.cast(mask, "float32")[..., None] - 0.5

    ids = keras.Input((6,), dtype="int32")
    outputs = keras.layers.GlobalAveragePooling1D(name="pool")(Masked(name="masked")(Positions(name="positions")(ids)))
    result = tfq.to_tf_keras(with_values(keras.Model(ids, outputs)))
    padded = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0]], np.int32)
    assert_equal_outputs(result, result.source, padded)
    assert not np.allclose(result.model(padded), result.model(np.maximum(padded, 9)))


class CallsNumPy(keras.layers.Layer):
    def call(self, x):
        return ops.convert_to_tensor(np.sin(x))

    def compute_output_shape(self, shape):
        return shape


class Random(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal((4, 4, 3), seed=self.seeds)


class ReadsInnerWeight(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) + ops.sum(self.dense.kernel)


class UsesBatchSize(keras.layers.Layer):
    def call(self, x):
        return x / ops.cast(ops.shape(x)[0], "float32")


@pytest.mark.parametrize(
    ("layer", "word"),
    [(CallsNumPy, "symbolic"), (Random, "random"), (ReadsInnerWeight, "kernel"), (UsesBatchSize, "batch size")],
)
def test_a_call_that_cannot_be_expanded_is_refused_with_the_reason(layer, word):
    with pytest.raises(UnbridgeableError) as caught:
        bridge_one(layer(name="block"))
    assert word in caught.value.problems["block"]


RESHAPES = {
    "batch": lambda x: ops.reshape(x, (ops.shape(x)[0], -1, 3)),
    "static": lambda x: ops.reshape(x, (ops.shape(x)[0], ops.shape(x)[1] * 4, 3)),
    "merged": lambda x: ops.reshape(x, (-1, ops.shape(x)[2], 3)),
    "broadcast": lambda x: ops.broadcast_to(x[:, :1], (ops.shape(x)[0], 4, 4, 3)),
    "slice": lambda x: x[:, : ops.shape(x)[1] // 2],
}


@pytest.mark.parametrize("name", RESHAPES)
def test_shapes_from_ops_shape_are_translated(name):
    inputs = keras.Input((4, 4, 3))
    result = tfq.to_tf_keras(keras.Model(inputs, RESHAPES[name](inputs)))
    values = images(2)
    expected = {
        "batch": values.reshape(2, 16, 3),
        "static": values.reshape(2, 16, 3),
        "merged": values.reshape(8, 4, 3),
        "broadcast": np.broadcast_to(values[:, :1], values.shape),
        "slice": values[:, :2],
    }
    np.testing.assert_allclose(result.model(values), expected[name])


def test_an_unknown_size_that_is_not_the_batch_is_refused():
    inputs = keras.Input((None, 3))
    outputs = ops.broadcast_to(inputs[:, :1], (1, ops.shape(inputs)[1], 3))
    with pytest.raises(UnbridgeableError) as caught:
        tfq.to_tf_keras(keras.Model(inputs, outputs))
    assert "unknown size" in next(iter(caught.value.problems.values()))


class Optional(keras.layers.Layer):
    """A dense layer that returns its input only on request."""

    def build(self, shape):
        self.dense = keras.layers.Dense(shape[-1], name="dense")
        self.dense.build(shape)

    def call(self, x, mask=None, with_input=False):
        y = self.dense(x)
        return y if mask is None else y * ops.cast(mask, "float32")[..., :1], (x if with_input else None)


class Stack(keras.layers.Layer):
    """Two `Optional` layers; the second one is called with a constant of the size of the batch."""

    def build(self, shape):
        self.parts = [Optional(name="first"), Optional(name="second")]
        for part in self.parts:
            part.build(shape)

    def call(self, x):
        causal = ops.broadcast_to(ops.tril(ops.ones((3, 3), "bool")), (ops.shape(x)[0], 3, 3))
        y, missing = self.parts[0](x)
        return y if missing is not None else self.parts[1](y, mask=causal)[0]


def test_inner_layers_may_return_none_and_read_constants_of_the_batch():
    inputs = keras.Input((3, 4))
    model = with_values(keras.Model(inputs, Stack(name="stack")(inputs)))
    bridged = tfq.to_tf_keras(model).model
    x = np.random.default_rng(2).normal(size=(5, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(bridged(x), model(x), atol=1e-5)


def test_layers_without_options_are_translated_whatever_their_dtype_policy():
    inputs, policy = keras.Input((3,)), keras.DTypePolicy("float32")
    added = keras.layers.Add(dtype=policy)([keras.layers.Dense(3)(inputs), inputs])
    model = keras.Model(inputs, keras.layers.Identity(dtype=policy)(added))
    assert tfq.to_tf_keras(model).max_difference < 1e-6

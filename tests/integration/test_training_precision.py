# SPDX-License-Identifier: Apache-2.0
"""training.dtype_policy: models train in mixed precision, and stay float32 models."""

import numpy as np
import pytest
from messages import refused, warned

import tfq
from tfq.compression.training import train_model
from tfq.data import Split
from tfq.keras_bridge import import_keras, import_tf_keras
from tfq.keras_bridge.walk import all_layers

RNG = np.random.default_rng(0)
LABELS = np.arange(24) % 3
IMAGES = (RNG.uniform(size=(24, 6, 6, 1)) * 0.2 + LABELS[:, None, None, None] / 2).astype("float32")
SPLIT = Split(inputs={"image": IMAGES}, labels=LABELS.astype("int64"), name="train", source="test")


def network(module):
    layers = module.layers
    inputs = module.Input((6, 6, 1), name="image")
    x = layers.Normalization(mean=[0.5], variance=[0.2], name="input_norm")(inputs)
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return module.Model(inputs, layers.Dense(3, name="head")(x), name="net")


def settings(policy):
    return tfq.TrainConfig(epochs=3, batch_size=8, learning_rate=0.05, dtype_policy=policy)


def recorder(module, seen):
    class Recorder(module.callbacks.Callback):
        def on_train_begin(self, logs=None):
            outputs = {layer.name: layer.compute_dtype for layer in self.model.layers}
            seen.update(outputs, optimizer=type(self.model.optimizer).__name__)

    return Recorder()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("import_module", [import_keras, import_tf_keras], ids=["keras", "tf_keras"])
def test_training_in_mixed_precision_leaves_a_float32_model(import_module, policy):
    module, seen = import_module(), {}
    module.utils.set_random_seed(0)
    model = network(module)
    history = train_model(model, SPLIT, SPLIT, settings(policy), callbacks=[recorder(module, seen)])
    compute = policy.removeprefix("mixed_")
    assert seen["conv"] == seen["norm"] == compute
    assert seen["head"] == seen["input_norm"] == "float32"
    assert ("LossScale" in seen["optimizer"]) == (policy == "mixed_float16")
    assert history["dtype_policy"] == policy
    assert history["loss_scale"] == (2**15 if policy == "mixed_float16" else None)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert {layer.compute_dtype for layer in all_layers(model)} == {"float32"}
    assert {value.dtype for value in model.get_weights()} == {np.dtype("float32")}
    assert type(model.optimizer).__name__ == "Adam"
    fresh = network(module)
    fresh.set_weights(model.get_weights())
    np.testing.assert_array_equal(fresh.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0))
    if policy == "mixed_float16":
        assert tfq.convert(model, IMAGES) == tfq.convert(fresh, IMAGES)


def test_quantization_aware_training_computes_in_float32_with_a_warning():
    histories = []

    def fit(model, callbacks):
        histories.append(train_model(model, SPLIT, None, settings("mixed_float16"), callbacks=callbacks))

    with warned("float32"):
        tfq.qat(network(import_tf_keras()), fit)
    assert histories[0]["dtype_policy"] == "float32"


def test_pruning_trains_in_mixed_precision():
    histories = []

    def fit(model, callbacks):
        histories.append(train_model(model, SPLIT, None, settings("mixed_float16"), callbacks=callbacks))

    config = tfq.PruneConfig(final_sparsity=0.5, distillation=tfq.DistillationConfig(enabled=True))
    pruned = tfq.prune(network(import_tf_keras()), fit, config)
    assert histories[0]["loss_scale"] == 2**15
    kernel = pruned.get_layer("conv").get_weights()[0]
    assert (kernel == 0).mean() == 0.5


def test_a_layer_with_float32_constants_is_refused():
    import tensorflow as tf

    tf_keras = import_tf_keras()

    class Shift(tf_keras.layers.Layer):
        def call(self, x):
            return x + tf.constant(1.0)

    inputs = tf_keras.Input((6, 6, 1), name="image")
    flat = tf_keras.layers.Flatten()(Shift()(tf_keras.layers.Conv2D(2, 3)(inputs)))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(3)(flat))
    with refused(tfq.InputError, field="training.dtype_policy", got="mixed_float16", limit="policy-constants"):
        train_model(model, SPLIT, None, settings("mixed_float16"))
    assert {layer.compute_dtype for layer in all_layers(model)} == {"float32"}
    train_model(model, SPLIT, None, settings("float32"))

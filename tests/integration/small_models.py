# SPDX-License-Identifier: Apache-2.0
"""Small models, noise to train one on, and a user's fit, shared by tests of compression and of callbacks."""

import numpy as np

from tfq.compression.training import deterministic, train_model
from tfq.config import TrainConfig
from tfq.data import Split
from tfq.keras_bridge import import_tf_keras


def noise(model, n=32, spread=1.0):
    rng = np.random.default_rng(0)
    x = rng.normal(0, spread, size=(n, *model.inputs[0].shape[1:])).astype("float32")
    labels = rng.integers(0, model.outputs[0].shape[-1], n)
    return Split(name="train", inputs={"x": x}, labels=labels, source="arrays")


def fit_for(epochs=1, spread=1.0):
    def fit(model, callbacks):
        data = noise(model, spread=spread)
        train_model(model, data, None, TrainConfig(epochs=epochs, batch_size=8), callbacks=callbacks)

    return fit


def fit_briefly(model, callbacks=()):
    """Train one epoch eagerly, for tests around training. Tracing a step in TensorFlow takes longer than running it."""
    data = noise(model)
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(data.inputs["x"], data.labels, batch_size=8, epochs=1, verbose=0, callbacks=callbacks)


def small_model(*after_input, name="small"):
    keras = import_tf_keras()
    layers = keras.layers
    with deterministic(0):
        x = image = keras.Input((6, 6, 2), name="image")
        for layer in after_input:
            x = layer(x)
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
        x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
        y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
        x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="sum")([x, y]))
        return keras.Model(image, layers.Dense(3, "softmax", name="head")(x), name=name)


def small_classifier(keras):
    """Return an uncompiled classifier of the digits in either Keras; it learns most of them in three epochs."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.9, name="bn")(x))
    return keras.Model(image, layers.Dense(10, "softmax", name="head")(layers.Flatten(name="flatten")(x)))

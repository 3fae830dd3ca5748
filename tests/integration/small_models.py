# SPDX-License-Identifier: Apache-2.0
"""A small model, noise to train it on, and a user's fit: what the compression tests share."""

import numpy as np

from tfq.config import TrainConfig
from tfq.data import Split
from tfq.keras_bridge import import_tf_keras
from tfq.training import deterministic, train_model


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

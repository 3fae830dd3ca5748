# SPDX-License-Identifier: Apache-2.0
"""An int8 model that lost its accuracy: find the cause and fix it, without training.

    python examples/lost_accuracy.py        about one minute; needs scikit-learn (pip install 'tfq[digits]')

A few channels of the trained model are made 512 times as large as the others, and the next layer's weights undo it. The
float model computes the same as before. In int8, all channels of a tensor share one scale, so that the small channels
keep only a few of 256 values. Models with folded BatchNormalization have such channels without anybody's intention:
MobileNets are known for it.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

import tfq

LOUD_CHANNELS, FACTOR = slice(0, 3), 512.0


def trained_model(x: np.ndarray, y: np.ndarray) -> keras.Model:
    """Train a classifier of 8x8 digits."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu", name="conv1"),
            keras.layers.Conv2D(24, 3, activation="relu", name="conv2"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", name="classes"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=15, batch_size=64, verbose=0)
    return model


def make_channels_uneven(model: keras.Model) -> None:
    """Multiply some channels of conv1 by FACTOR, and divide the weights of conv2 that read them by it."""
    kernel, bias = model.get_layer("conv1").get_weights()
    kernel[..., LOUD_CHANNELS] *= FACTOR
    bias[LOUD_CHANNELS] *= FACTOR
    model.get_layer("conv1").set_weights([kernel, bias])
    kernel, bias = model.get_layer("conv2").get_weights()
    kernel[:, :, LOUD_CHANNELS] /= FACTOR
    model.get_layer("conv2").set_weights([kernel, bias])


def main() -> None:
    digits = load_digits()
    x, y = digits.images[..., np.newaxis].astype(np.float32), digits.target.astype(np.int64)
    train, validation, test = (x[:1200], y[:1200]), (x[1200:1500], y[1200:1500]), (x[1500:], y[1500:])
    model = trained_model(*train)
    make_channels_uneven(model)
    float32 = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))

    # 1. Convert. The warning names the first op that lost information, the cause, and what other settings give.
    int8 = tfq.convert(model, train[0][:200])
    before = tfq.evaluate(int8, test, reference=float32)
    print(before.to_text())

    # 2. Find the cause: the error of every op, and a finding for each cause.
    print(tfq.analyze(int8, float32, test[0]).to_text())

    # 3. Fix it with the technique that the finding recommends ...
    config = tfq.ConversionConfig(techniques=("cross_layer_equalization",))
    after = tfq.evaluate(tfq.convert(model, train[0][:200], config), test, reference=float32)
    print(after.to_text())

    # ... or let a search choose the settings.
    budget = tfq.SearchConfig(budget=tfq.BudgetConfig(max_accuracy_drop=0.005))
    print(tfq.find_int8(float32, train, validation, test, budget).to_text())
    print(f"accuracy: float {before.reference_accuracy:.1%}, int8 {before.accuracy:.1%}, fixed {after.accuracy:.1%}")


if __name__ == "__main__":
    main()

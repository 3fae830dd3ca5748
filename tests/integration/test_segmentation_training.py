# SPDX-License-Identifier: Apache-2.0
"""The loss and the accuracy of a training leave out positions that are labeled -1."""

import keras
import numpy as np
import pytest
import tf_keras
from messages import refused

import tfq
from tfq.compression.training import train_model
from tfq.data import Split
from tfq.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(20, 6, 6, 2)).astype(np.float32)
MAPS = RNG.integers(0, 3, (20, 6, 6), np.int16)
MAPS[RNG.random(MAPS.shape) < 0.3] = -1
ONE_STEP = tfq.TrainConfig(epochs=1, batch_size=20, learning_rate=1e-12)


def split_of(labels):
    return Split(name="train", inputs={"x": IMAGES}, labels=labels, source="arrays")


def pixel_model(library, classes, activation):
    image = library.Input((6, 6, 2))
    return library.Model(image, library.layers.Conv2D(classes, 1, activation=activation)(image))


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_ignored_positions_count_neither_in_the_loss_nor_in_the_accuracy(library):
    model = pixel_model(library, 3, "softmax")
    probabilities = np.asarray(model.predict(IMAGES, verbose=0), np.float64)[MAPS >= 0]
    classes = MAPS[MAPS >= 0]
    history = train_model(model, split_of(MAPS), config=ONE_STEP)
    cross_entropy = -np.log(probabilities[np.arange(len(classes)), classes]).mean()
    assert history["loss"] == [pytest.approx(cross_entropy, rel=1e-5)]
    assert history["accuracy"] == [pytest.approx((probabilities.argmax(1) == classes).mean(), rel=1e-5)]


def test_an_undeclared_255_is_refused_in_a_training():
    labels = np.where(MAPS < 0, 255, MAPS)
    with refused(InputError, field="data", word="data.ignore_label=255"):
        train_model(pixel_model(keras, 3, "softmax"), split_of(labels), config=ONE_STEP)


def test_one_sigmoid_cannot_be_trained_with_ignored_positions():
    with refused(InputError, field="data", word="softmax"):
        train_model(pixel_model(keras, 1, "sigmoid"), split_of(np.minimum(MAPS, 1)), config=ONE_STEP)

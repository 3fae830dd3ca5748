#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train small models of other kinds than ResNet8 for frontier.py: a DS-CNN, a masked transformer and an autoencoder.

    pip download --no-deps aeon
    python benchmarks/frontier_models.py '--data=tfrecord:cifar10/cifar10-*' --archive=aeon.whl --out=out/models
        [--models=ds_cnn,transformer,autoencoder] [--epochs=15] [--seed=0]

`ds_cnn` is the network of MLPerf Tiny's keyword spotting, with a kernel of 3x3, on CIFAR-10. `autoencoder` is that of
its anomaly detection, on CIFAR-10's images at 16x16 pixels. `transformer` classifies the speakers of JapaneseVowels, a
data set in the Python package aeon: 12 cepstrum coefficients over 7 to 29 steps; those after the end are masked.
Each model is saved as NAME.keras in --out, and is not trained again if it is there; vowels.npz has the data of the
transformer. The CPU time is about 20 minutes, nearly all of it for the DS-CNN.
"""

import argparse
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from numpy.typing import NDArray
from robustness_vowels import CHANNELS, CLASSES, STEPS, examples_of

import tfq
from tfq.artifacts import make_out_dir
from tfq.data import Split
from tfq.keras_bridge import import_keras

WIDTH, HEADS, BLOCKS = 48, 4, 2
# Training examples of JapaneseVowels that are held back.
HELD_BACK = 54


def ds_cnn(keras: Any) -> Any:
    """Return MLPerf Tiny's DS-CNN for 32x32 images and 10 classes."""
    layers = keras.layers
    source = keras.Input((32, 32, 3), name="image")
    values = layers.Conv2D(64, 3, strides=2, padding="same", use_bias=False)(layers.Rescaling(1 / 255)(source))
    values = layers.ReLU()(layers.BatchNormalization()(values))
    for _ in range(4):
        values = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(values)
        values = layers.ReLU()(layers.BatchNormalization()(values))
        values = layers.Conv2D(64, 1, use_bias=False)(values)
        values = layers.ReLU()(layers.BatchNormalization()(values))
    return keras.Model(source, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(values)))


def autoencoder(keras: Any) -> Any:
    """Return MLPerf Tiny's autoencoder for images of 16x16 pixels, which it makes from images of 32x32."""
    layers = keras.layers
    source = keras.Input((32, 32, 3), name="image")
    values = layers.Flatten()(layers.AveragePooling2D(2)(layers.Rescaling(1 / 255)(source)))
    for width in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        values = layers.ReLU()(layers.BatchNormalization()(layers.Dense(width)(values)))
    return keras.Model(source, layers.Dense(16 * 16 * 3)(values))


def transformer(keras: Any) -> Any:
    """Return a transformer for the vowels, whose attention and mean leave masked steps out."""
    layers = keras.layers
    source = keras.Input((STEPS, CHANNELS), name="features")
    values = layers.Dense(WIDTH)(layers.Masking()(source))
    values = layers.Add()([values, layers.Embedding(STEPS, WIDTH)(np.arange(STEPS)[None])])
    for _ in range(BLOCKS):
        attended = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(values, values)
        values = layers.LayerNormalization()(layers.Add()([values, attended]))
        hidden = layers.Dense(WIDTH)(layers.Dense(2 * WIDTH, activation="relu")(values))
        values = layers.LayerNormalization()(layers.Add()([values, hidden]))
    return keras.Model(source, layers.Dense(CLASSES, activation="softmax")(layers.GlobalAveragePooling1D()(values)))


def fit(keras: Any, model: Any, x: NDArray, y: NDArray, *, loss: str, rate: float, batch: int, epochs: int) -> None:
    """Train with Adam, whose learning rate falls along a cosine."""
    steps = epochs * -(-len(x) // batch)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)), loss=loss)
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=2)


def images_of(source: str) -> tuple[NDArray, NDArray]:
    """Return the training images of CIFAR-10, (n, 32, 32, 3) uint8, and their classes."""
    train = tfq.load_split(tfq.DataConfig(source=source), "train")
    assert isinstance(train, Split)
    (images,) = train.inputs.values()
    return images, np.asarray(train.labels)


def train_ds_cnn(arguments: argparse.Namespace, keras: Any) -> Any:
    images, labels = images_of(arguments.data)
    model = ds_cnn(keras)
    both, twice = np.concatenate([images, images[:, :, ::-1]]), np.concatenate([labels, labels])  # also mirrored
    epochs = -(-arguments.epochs // 2)
    fit(keras, model, both, twice, loss="sparse_categorical_crossentropy", rate=2e-3, batch=128, epochs=epochs)
    return model


def train_autoencoder(arguments: argparse.Namespace, keras: Any) -> Any:
    images, _ = images_of(arguments.data)
    small = images.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4), dtype=np.float32) / 255
    model = autoencoder(keras)
    fit(keras, model, images, small.reshape(len(small), -1), loss="mse", rate=1e-3, batch=128, epochs=arguments.epochs)
    return model


def train_transformer(arguments: argparse.Namespace, keras: Any) -> Any:
    with zipfile.ZipFile(arguments.archive) as archive:
        (x, y), (x_test, y_test) = (examples_of(archive, part) for part in ("TRAIN", "TEST"))
    order = np.random.default_rng(arguments.seed).permutation(len(x))
    held_back, used = order[:HELD_BACK], order[HELD_BACK:]
    np.savez(
        Path(arguments.out) / "vowels.npz",
        x_train=x[used], y_train=y[used], x_val=x[held_back], y_val=y[held_back], x_test=x_test, y_test=y_test,
    )  # fmt: skip
    model = transformer(keras)
    loss = "sparse_categorical_crossentropy"
    fit(keras, model, x[used], y[used], loss=loss, rate=1e-3, batch=16, epochs=4 * arguments.epochs)
    return model


TRAININGS = {"ds_cnn": train_ds_cnn, "transformer": train_transformer, "autoencoder": train_autoencoder}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, any source of tfq's --data")
    parser.add_argument("--archive", required=True, help="the wheel of the package aeon")
    parser.add_argument("--out", required=True)
    parser.add_argument("--models", default=",".join(TRAININGS))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", tfq.TfqWarning)
    keras, out = import_keras(), make_out_dir(arguments.out)
    for name in arguments.models.split(","):
        if not (path := out / f"{name}.keras").exists():
            keras.utils.set_random_seed(arguments.seed)
            TRAININGS[name](arguments, keras).save(path)
        print(path, flush=True)


if __name__ == "__main__":
    main()

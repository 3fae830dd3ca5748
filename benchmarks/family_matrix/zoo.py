# SPDX-License-Identifier: Apache-2.0
"""The fifteen families of keras.applications, and how each is trained in a minute or two so that it means something."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

import tfq
from tfq.data import AnySplit, Split, load_split
from tfq.keras_bridge import deterministic
from tfq.training import train_model

CLASSES = 10
SEED = 0
BATCH_SIZE = 32
# A few dozen steps must bring the moving statistics to where they belong; the families come with 0.99 to 0.9997.
BATCH_NORM_MOMENTUM = 0.8

BYTES, SIGNED = (0.0, 255.0), (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one architecture wants: the range of pixels, and the highest step size that it learns with from nothing."""

    pixels: tuple[float, float] = SIGNED
    learning_rate: float = 2e-3


# Those that take bytes have a Rescaling or a Normalization of their own.
FAMILIES = {
    "MobileNet": Family(),
    "MobileNetV2": Family(),
    "MobileNetV3Small": Family(pixels=BYTES),
    "MobileNetV3Large": Family(pixels=BYTES),
    "VGG16": Family(learning_rate=1e-4),
    "ResNet50": Family(),
    "ResNet50V2": Family(),
    "DenseNet121": Family(),
    "Xception": Family(),
    "InceptionV3": Family(),
    "InceptionResNetV2": Family(),
    "NASNetMobile": Family(),
    "EfficientNetB0": Family(pixels=BYTES),
    "EfficientNetV2B0": Family(pixels=BYTES),
    "ConvNeXtTiny": Family(pixels=BYTES),
}


def build(keras: Any, name: str, size: int) -> Any:
    """The family with random weights from either Keras: (size, size, 3) in, 10 probabilities out."""
    return getattr(keras.applications, name)(weights=None, classes=CLASSES, input_shape=(size, size, 3))


def images(source: str, split: str, name: str, size: int, limit: int = 0) -> AnySplit:
    """A split as the family is fed it: (size, size, 3), grey ones in three equal channels, in the family's range.

    The range of the source itself is what its first 256 training examples hold.
    """
    config = tfq.DataConfig(source=source, resize=(size, size))
    probe = load_split(config, "train", limit=256)
    [pixels] = next(iter(probe.pieces())).inputs.values()
    darkest, brightest = float(pixels.min()), float(pixels.max())
    low, high = FAMILIES[name].pixels
    scale = (high - low) / (brightest - darkest)
    config = dataclasses.replace(config, scale=scale, offset=low - darkest * scale)
    found = load_split(config, split, limit=limit)
    if not isinstance(found, Split):
        raise tfq.InputError(
            f"{source}: {split} is too large for memory at {size}x{size}: give a smaller --train_steps"
        )
    return dataclasses.replace(found, inputs={key: _in_color(array) for key, array in found.inputs.items()})


def _in_color(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def train(model: Any, data: Any, steps: int, learning_rate: float, callbacks: Any = ()) -> None:
    """About `steps` steps of `tfq.training`, in place: the first examples once where they are enough, else again."""
    wanted = steps * BATCH_SIZE
    epochs = -(-wanted // data.num_examples)
    first = {key: array[:wanted] for key, array in data.inputs.items()}
    data = dataclasses.replace(data, inputs=first, labels=data.labels[:wanted])
    config = tfq.TrainConfig(epochs=epochs, batch_size=BATCH_SIZE, learning_rate=learning_rate)
    train_model(model, data, None, config, seed=SEED, callbacks=callbacks)


def trained(keras: Any, name: str, data: Any, size: int, steps: int) -> Any:
    """The family, built with Keras 3 from the seed and trained."""
    with deterministic(SEED):
        model = build(keras, name, size)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM
    train(model, data, steps, FAMILIES[name].learning_rate)
    return model

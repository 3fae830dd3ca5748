# SPDX-License-Identifier: Apache-2.0
"""The fifteen families of keras.applications, each trained for a minute or two so that its outputs are meaningful."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

import tfq
from tfq.compression.training import train_model
from tfq.data import AnySplit, Split, load_split
from tfq.keras_bridge import deterministic

CLASSES = 10
SEED = 0
BATCH_SIZE = 32
# The moving statistics must converge within a few dozen steps; the families come with 0.99 to 0.9997.
BATCH_NORM_MOMENTUM = 0.8

BYTES, SIGNED = (0.0, 255.0), (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Requirements of one architecture: the range of pixels, the highest learning rate that works from scratch, and the
    least height and width that keras.applications builds it for.
    """

    pixels: tuple[float, float] = SIGNED
    learning_rate: float = 2e-3
    min_size: int = 32


# Families that take bytes contain a Rescaling or a Normalization.
FAMILIES = {
    "MobileNet": Family(),
    "MobileNetV2": Family(),
    "MobileNetV3Small": Family(pixels=BYTES),
    "MobileNetV3Large": Family(pixels=BYTES),
    "VGG16": Family(learning_rate=1e-4),
    "ResNet50": Family(),
    "ResNet50V2": Family(),
    "DenseNet121": Family(),
    "Xception": Family(min_size=71),
    "InceptionV3": Family(min_size=75),
    "InceptionResNetV2": Family(min_size=75),
    "NASNetMobile": Family(),
    "EfficientNetB0": Family(pixels=BYTES),
    "EfficientNetV2B0": Family(pixels=BYTES),
    "ConvNeXtTiny": Family(pixels=BYTES),
}


def build(keras: Any, name: str, size: int) -> Any:
    """Build the family with random weights in either Keras: input (`size_of`, `size_of`, 3), output 10 logits.

    Logits, because int8 probabilities of a confident model are all at 0 or 1: their LSB says nothing about the layers
    before.
    """
    side = size_of(name, size)
    return getattr(keras.applications, name)(
        weights=None, classes=CLASSES, input_shape=(side, side, 3), classifier_activation=None
    )


def size_of(name: str, size: int) -> int:
    """Return height and width of the family's images if `size` is requested."""
    return max(size, FAMILIES[name].min_size)


def images(source: str, split: str, name: str, size: int, limit: int = 0) -> AnySplit:
    """Return a split as the family's input: (`size_of`, `size_of`, 3) in its range, gray as three equal channels.

    The range of the source is that of its first 256 training examples.
    """
    side = size_of(name, size)
    config = tfq.DataConfig(source=source, resize=(side, side))
    probe = load_split(config, "train", limit=256)
    [pixels] = next(iter(probe.pieces())).inputs.values()
    darkest, brightest = float(pixels.min()), float(pixels.max())
    low, high = FAMILIES[name].pixels
    scale = (high - low) / (brightest - darkest)
    config = dataclasses.replace(config, scale=scale, offset=low - darkest * scale)
    result = load_split(config, split, limit=limit)
    if not isinstance(result, Split):
        raise tfq.InputError(
            f"{source}: {split} is too large for memory at {side}x{side}: give a smaller --train_steps"
        )
    return dataclasses.replace(result, inputs={key: _in_color(array) for key, array in result.inputs.items()})


def _in_color(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def train(model: Any, data: Any, steps: int, learning_rate: float, callbacks: Any = ()) -> None:
    """Train in place for about `steps` steps: the first examples once, or all of them several times."""
    expected = steps * BATCH_SIZE
    epochs = max(1, round(expected / data.num_examples))
    first = {key: array[:expected] for key, array in data.inputs.items()}
    data = dataclasses.replace(data, inputs=first, labels=data.labels[:expected])
    config = tfq.TrainConfig(epochs=epochs, batch_size=BATCH_SIZE, learning_rate=learning_rate)
    train_model(model, data, None, config, seed=SEED, callbacks=callbacks)


def trained(keras: Any, name: str, data: Any, size: int, steps: int) -> Any:
    """Return the family, built with Keras 3 from the seed and trained."""
    with deterministic(SEED):
        model = build(keras, name, size)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM
    train(model, data, steps, FAMILIES[name].learning_rate)
    return model

# SPDX-License-Identifier: Apache-2.0
"""The fifteen families of keras.applications, and how each is trained in a minute or two so that it means something."""

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
# A few dozen steps must bring the moving statistics to where they belong; the families come with 0.99 to 0.9997.
BATCH_NORM_MOMENTUM = 0.8

BYTES, SIGNED = (0.0, 255.0), (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one architecture wants: the range of pixels, the highest step size that it learns with from nothing, and
    the least height and width that keras.applications builds it for."""

    pixels: tuple[float, float] = SIGNED
    learning_rate: float = 2e-3
    min_size: int = 32


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
    "Xception": Family(min_size=71),
    "InceptionV3": Family(min_size=75),
    "InceptionResNetV2": Family(min_size=75),
    "NASNetMobile": Family(),
    "EfficientNetB0": Family(pixels=BYTES),
    "EfficientNetV2B0": Family(pixels=BYTES),
    "ConvNeXtTiny": Family(pixels=BYTES),
}


def build(keras: Any, name: str, size: int) -> Any:
    """The family with random weights from either Keras: (`size_of`, `size_of`, 3) in, 10 logits out.

    Logits, for int8 probabilities are all at 0 or 1 once a model is sure: their LSB says nothing of what lies before.
    """
    side = size_of(name, size)
    return getattr(keras.applications, name)(
        weights=None, classes=CLASSES, input_shape=(side, side, 3), classifier_activation=None
    )


def size_of(name: str, size: int) -> int:
    """Height and width of the family's images where `size` is asked for."""
    return max(size, FAMILIES[name].min_size)


def images(source: str, split: str, name: str, size: int, limit: int = 0) -> AnySplit:
    """A split as the family is fed it: (`size_of`, `size_of`, 3), grey as three equal channels, in the family's range.

    The range of the source itself is what its first 256 training examples hold.
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
    """The family, built with Keras 3 from the seed and trained."""
    with deterministic(SEED):
        model = build(keras, name, size)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM
    train(model, data, steps, FAMILIES[name].learning_rate)
    return model

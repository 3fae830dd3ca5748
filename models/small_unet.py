# SPDX-License-Identifier: Apache-2.0
"""A small U-Net for images of 32 to 64 pixels."""

from types import ModuleType

from tfq.typing import KerasLayer, KerasModel, KerasTensor

_FILTERS = (16, 32, 64)


def build_small_unet(keras: ModuleType, input_shape: tuple[int, ...] = (32, 32, 1), classes: int = 11) -> KerasModel:
    """Build a U-Net of three levels that predicts a class for each pixel, uncompiled and with random weights.

    Input "image": (n, 32, 32, 1) float32. Output "class_maps": (n, 32, 32, 11), softmax over the last axis. Each level
    has two convolutions with batch normalization and ReLU. The way down uses max pooling; the way up repeats pixels,
    and joins them with the features of the same size. It has 119,115 parameters, of which
    640 are moving statistics.

    Source: Ronneberger et al. 2015, "U-Net: convolutional networks for biomedical image segmentation", with fewer
    levels and filters, same padding, batch normalization, and nearest upsampling instead of transposed convolutions.

    Args:
        keras: The module `keras` (Keras 3) or `tf_keras`.
        input_shape: The shape of one example. Height and width must be multiples of 4.
        classes: The number of classes, including the background.

    Raises:
        ValueError: Height or width is not a multiple of 4.
    """
    layers = keras.layers
    step = 2 ** (len(_FILTERS) - 1)
    if any(size % step for size in input_shape[:2]):
        raise ValueError(f"height and width must be multiples of {step}, got {input_shape[0]} x {input_shape[1]}")

    def convolution(filters: int, name: str) -> KerasLayer:
        return layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)

    def level(x: KerasTensor, filters: int, name: str) -> KerasTensor:
        for number in (1, 2):
            x = convolution(filters, f"{name}_conv{number}")(x)
            # Keras' momentum of 0.99 lags behind in the few hundred steps of such a small training.
            x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn{number}")(x)
            x = layers.ReLU(name=f"{name}_relu{number}")(x)
        return x

    image = keras.Input(input_shape, name="image")
    x, skipped = image, []
    for index, filters in enumerate(_FILTERS):
        if index:
            x = layers.MaxPooling2D(2, name=f"pool{index}")(x)
        x = level(x, filters, f"down{index}")
        skipped.append(x)
    for index in reversed(range(len(_FILTERS) - 1)):
        x = layers.UpSampling2D(2, interpolation="nearest", name=f"upsample{index}")(x)
        x = layers.Concatenate(name=f"join{index}")([x, skipped[index]])
        x = level(x, _FILTERS[index], f"up{index}")
    outputs = layers.Conv2D(classes, 1, activation="softmax", name="class_maps")(x)
    model: KerasModel = keras.Model(image, outputs, name="small_unet")
    return model

# SPDX-License-Identifier: Apache-2.0
"""MobileNetV1 with a width multiplier of 0.25, the visual wake words model of MLPerf Tiny."""

from types import ModuleType

from tfq.typing import KerasLayer, KerasModel, KerasTensor

# (filters, strides) of each block: a depthwise convolution with the strides, then a pointwise one to the filters.
_BLOCKS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *((128, 1),) * 5, (256, 2), (256, 1))


def build_mobilenet_v1_025(
    keras: ModuleType, input_shape: tuple[int, ...] = (96, 96, 3), classes: int = 2
) -> KerasModel:
    """Build MLPerf Tiny's MobileNetV1 0.25, which detects persons, uncompiled and with random weights.

    Input "image": (n, 96, 96, 3) float32; MLPerf Tiny scales pixels to 0..1. Output "class_probabilities": (n, 2),
    softmax; class 1 is a person. It has 221,794 parameters, of which 5,472 are moving statistics of BatchNormalization.
    MLPerf Tiny requires 80% top-1 accuracy. The layers have the order of the reference, so that
    `model.set_weights(reference.get_weights())` works.

    Source: github.com/mlcommons/tiny, benchmark/training/visual_wake_words/vww_model.py; Howard et al. 2017.

    Args:
        keras: The module `keras` (Keras 3) or `tf_keras`.
        input_shape: The shape of one example. Another shape changes the size of the first and the last layer.
        classes: The number of classes.
    """
    layers = keras.layers
    weights = {"kernel_initializer": "he_normal", "kernel_regularizer": keras.regularizers.L2(1e-4)}
    depthwise = {"depthwise_initializer": "he_normal", "depthwise_regularizer": keras.regularizers.L2(1e-4)}

    def unit(x: KerasTensor, layer: KerasLayer) -> KerasTensor:
        x = layers.BatchNormalization(name=f"{layer.name}_bn")(layer(x))
        return layers.Activation("relu", name=f"{layer.name}_relu")(x)

    image = keras.Input(input_shape, name="image")
    x = unit(image, layers.Conv2D(8, 3, strides=2, padding="same", name="stem", **weights))
    for block, (filters, strides) in enumerate(_BLOCKS, start=1):
        name = f"block{block}_depthwise"
        x = unit(x, layers.DepthwiseConv2D(3, strides=strides, padding="same", name=name, **depthwise))
        x = unit(x, layers.Conv2D(filters, 1, padding="same", name=f"block{block}_pointwise", **weights))
    x = layers.AveragePooling2D(tuple(x.shape[1:3]), name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(classes, activation="softmax", name="class_probabilities")(x)
    model: KerasModel = keras.Model(image, outputs, name="mobilenet_v1_025")
    return model

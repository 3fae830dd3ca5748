# SPDX-License-Identifier: Apache-2.0
"""ResNet8, the image classification model of MLPerf Tiny."""

from types import ModuleType

from tfq.typing import KerasModel, KerasTensor


def build_resnet8(keras: ModuleType, input_shape: tuple[int, ...] = (32, 32, 3), classes: int = 10) -> KerasModel:
    """Build MLPerf Tiny's ResNet8 for CIFAR-10, uncompiled and with random weights.

    Input "image": (n, 32, 32, 3) float32, raw pixels from 0 to 255. Output "class_probabilities": (n, 10), softmax. It
    has 78,666 parameters, of which 480 are moving statistics of BatchNormalization. MLPerf Tiny requires 85% top-1
    accuracy. The layers have the order of the reference, so that `model.set_weights(reference.get_weights())` works.

    Source: github.com/mlcommons/tiny, benchmark/training/image_classification/keras_model.py, resnet_v1_eembc.

    Args:
        keras: The module `keras` (Keras 3) or `tf_keras`.
        input_shape: The shape of one example. Another shape changes the size of the first and the last layer.
        classes: The number of classes.
    """
    layers = keras.layers

    def convolution(x: KerasTensor, name: str, filters: int, kernel_size: int = 3, strides: int = 1) -> KerasTensor:
        return layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(1e-4),
            name=name,
        )(x)

    def normalized(x: KerasTensor, name: str) -> KerasTensor:
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    def relu(x: KerasTensor, name: str) -> KerasTensor:
        return layers.Activation("relu", name=f"{name}_relu")(x)

    image = keras.Input(input_shape, name="image")
    x = relu(normalized(convolution(image, "stem", 16), "stem"), "stem")
    for stack, (filters, strides) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
        first, second = f"stack{stack}_conv1", f"stack{stack}_conv2"
        y = relu(normalized(convolution(x, first, filters, strides=strides), first), first)
        y = convolution(y, second, filters)
        # The shortcut is created before the second BatchNormalization, which is the reference's order of layers.
        shortcut = x if strides == 1 else convolution(x, f"stack{stack}_shortcut", filters, 1, strides)
        y = layers.Add(name=f"stack{stack}_add")([shortcut, normalized(y, second)])
        x = relu(y, f"stack{stack}")
    x = layers.AveragePooling2D(tuple(x.shape[1:3]), name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    head = layers.Dense(classes, activation="softmax", kernel_initializer="he_normal", name="class_probabilities")
    outputs = head(x)
    model: KerasModel = keras.Model(image, outputs, name="resnet8")
    return model

# SPDX-License-Identifier: Apache-2.0
"""ResNet8, the image classification model of MLPerf Tiny."""

from types import ModuleType

from tfq.typing import KerasModel, KerasTensor


def build_resnet8(keras: ModuleType, input_shape: tuple[int, ...] = (32, 32, 3), classes: int = 10) -> KerasModel:
    """MLPerf Tiny's ResNet8 for CIFAR-10, uncompiled, with random weights.

    keras: the module `keras` (3) or `tf_keras`; its model comes back.
    Input "image": (n, 32, 32, 3) float32, raw pixels 0..255. Output "class_probabilities": (n, 10), softmax.
    78,666 parameters, of which 480 are moving statistics of BatchNormalization. MLPerf Tiny wants 85% top-1 of it.
    input_shape, classes: other than these keep the layers, and change what the first and the last hold.
    Layers lie in the order of the reference, so that `model.set_weights(reference.get_weights())` fits.
    Source: github.com/mlcommons/tiny, benchmark/training/image_classification/keras_model.py, resnet_v1_eembc.
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
        # The shortcut comes before the second BatchNormalization here, for the layers to lie in the reference's order.
        shortcut = x if strides == 1 else convolution(x, f"stack{stack}_shortcut", filters, 1, strides)
        y = layers.Add(name=f"stack{stack}_add")([shortcut, normalized(y, second)])
        x = relu(y, f"stack{stack}")
    x = layers.AveragePooling2D(tuple(x.shape[1:3]), name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    head = layers.Dense(classes, activation="softmax", kernel_initializer="he_normal", name="class_probabilities")
    outputs = head(x)
    model: KerasModel = keras.Model(image, outputs, name="resnet8")
    return model

# SPDX-License-Identifier: Apache-2.0
"""DS-CNN, the keyword spotting model of MLPerf Tiny."""

from types import ModuleType

from tfq.typing import KerasLayer, KerasModel, KerasTensor

_FILTERS = 64
_BLOCKS = 4


def build_ds_cnn(keras: ModuleType, input_shape: tuple[int, ...] = (49, 10, 1), classes: int = 12) -> KerasModel:
    """Build MLPerf Tiny's DS-CNN for keyword spotting, uncompiled and with random weights.

    The classes are ten words, silence and anything else. Input "features": (n, 49, 10, 1) float32, ten MFCC of each of
    49 windows of 40 ms. Output "class_probabilities": (n, 12), softmax. It has 24,908 parameters, of which 1,152 are
    moving statistics of BatchNormalization. MLPerf Tiny requires 90% top-1 accuracy. The layers have the order of the
    reference, so that `model.set_weights(reference.get_weights())` works.

    Source: github.com/mlcommons/tiny, benchmark/training/keyword_spotting/keras_model.py; Zhang et al. 2017.

    Args:
        keras: The module `keras` (Keras 3) or `tf_keras`.
        input_shape: The shape of one example. Another shape changes the size of the last layer.
        classes: The number of classes.
    """
    layers = keras.layers
    penalty = keras.regularizers.L2(1e-4)

    def unit(x: KerasTensor, layer: KerasLayer) -> KerasTensor:
        x = layers.BatchNormalization(name=f"{layer.name}_bn")(layer(x))
        return layers.Activation("relu", name=f"{layer.name}_relu")(x)

    features = keras.Input(input_shape, name="features")
    stem = layers.Conv2D(_FILTERS, (10, 4), strides=2, padding="same", kernel_regularizer=penalty, name="stem")
    x = layers.Dropout(0.2, name="stem_dropout")(unit(features, stem))
    for block in range(1, _BLOCKS + 1):
        name = f"block{block}_depthwise"
        x = unit(x, layers.DepthwiseConv2D(3, padding="same", depthwise_regularizer=penalty, name=name))
        name = f"block{block}_pointwise"
        x = unit(x, layers.Conv2D(_FILTERS, 1, padding="same", kernel_regularizer=penalty, name=name))
    x = layers.Dropout(0.4, name="dropout")(x)
    # Half of the input, rounded down, although the stem rounds up: the reference ignores the last of 25 windows.
    pool = tuple(max(1, size // 2) for size in input_shape[:2])
    x = layers.AveragePooling2D(pool, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(classes, activation="softmax", name="class_probabilities")(x)
    model: KerasModel = keras.Model(features, outputs, name="ds_cnn")
    return model

# SPDX-License-Identifier: Apache-2.0
"""The fully connected autoencoder, the anomaly detection model of MLPerf Tiny."""

from types import ModuleType

from tfq.typing import KerasModel

_UNITS = (128, 128, 128, 128, 8, 128, 128, 128, 128)


def build_fc_autoencoder(
    keras: ModuleType, input_shape: tuple[int, ...] = (640,), classes: int | None = None
) -> KerasModel:
    """Build MLPerf Tiny's autoencoder for the sounds of a machine, uncompiled and with random weights.

    Input "features": (n, 640) float32, five windows of 128 log mel energies. Output "reconstruction": (n, 640), the
    same values, reconstructed from a bottleneck of eight. A large reconstruction error indicates an anomaly. It has
    269,992 parameters, of which 2,064 are moving statistics of BatchNormalization. MLPerf Tiny requires a ROC AUC of
    0.85, computed from the mean squared error over all windows of a sound. The layers have the order of the reference,
    so that `model.set_weights(reference.get_weights())` works.

    Source: github.com/mlcommons/tiny, benchmark/training/anomaly_detection/keras_model.py; Koizumi et al. 2019.

    Args:
        keras: The module `keras` (Keras 3) or `tf_keras`.
        input_shape: The shape of one example. Another shape changes the size of the first and the last layer.
        classes: Ignored, because the model predicts no classes.
    """
    layers = keras.layers
    x = features = keras.Input(input_shape, name="features")
    for index, units in enumerate(_UNITS, start=1):
        x = layers.Dense(units, name=f"dense{index}")(x)
        x = layers.BatchNormalization(name=f"dense{index}_bn")(x)
        x = layers.Activation("relu", name=f"dense{index}_relu")(x)
    outputs = layers.Dense(input_shape[-1], name="reconstruction")(x)
    model: KerasModel = keras.Model(features, outputs, name="fc_autoencoder")
    return model

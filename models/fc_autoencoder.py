# SPDX-License-Identifier: Apache-2.0
"""The fully connected autoencoder, the anomaly detection model of MLPerf Tiny."""

from types import ModuleType

from tfq.typing import KerasModel

_UNITS = (128, 128, 128, 128, 8, 128, 128, 128, 128)


def build_fc_autoencoder(
    keras: ModuleType, input_shape: tuple[int, ...] = (640,), classes: int | None = None
) -> KerasModel:
    """MLPerf Tiny's autoencoder of a machine's sound, uncompiled, with random weights.

    keras: the module `keras` (3) or `tf_keras`; its model comes back.
    Input "features": (n, 640) float32, five windows of 128 log mel energies. Output "reconstruction": (n, 640), the
    same values as far as eight numbers can tell them; what it tells badly is an anomaly.
    269,992 parameters, of which 2,064 are moving statistics of BatchNormalization. MLPerf Tiny wants a ROC AUC of 0.85
    of it, of the mean squared error over all windows of a sound.
    input_shape: another keeps the layers, and changes what the first and the last hold. classes: it has none.
    Layers lie in the order of the reference, so that `model.set_weights(reference.get_weights())` fits.
    Source: github.com/mlcommons/tiny, benchmark/training/anomaly_detection/keras_model.py; Koizumi et al. 2019.
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

# SPDX-License-Identifier: Apache-2.0
"""QAT models with layers that output 0: their files load and agree with the trained model."""

import numpy as np
import pytest
import tf_keras
from plain_runs import run_plainly

import tfq
from tfq.compression import qat_model

L = tf_keras.layers
X = np.random.default_rng(0).normal(size=(40, 16)).astype("float32").cumsum(1) * 0.3
always = tf_keras.initializers.Constant


def dead_branch(x):
    return L.Add()([L.Dense(8)(x), L.Dense(8, activation="relu", bias_initializer=always(-1e3))(x)])


def zero_gamma(x):
    hidden = L.Reshape((2, 2, 4))(L.Dense(16)(x))
    branch = L.BatchNormalization(gamma_initializer="zeros")(L.Conv2D(4, 1, use_bias=False)(hidden))
    return L.Flatten()(L.Add()([hidden, L.ReLU()(branch)]))


@pytest.mark.parametrize("build", [dead_branch, pytest.param(zero_gamma, marks=pytest.mark.slow)])
def test_dead_layers_agree_with_training_with_and_without_dataset(build):
    tf_keras.utils.set_random_seed(1)
    inputs = tf_keras.Input((16,), name="x")
    model = tf_keras.Model(inputs, L.Dense(3, bias_initializer=always(0.5))(build(inputs)))
    targets = model.predict(X, verbose=0) + 0.1

    def fit(model, callbacks):
        model.compile(tf_keras.optimizers.SGD(1e-4), "mse")
        model.fit(X, targets, epochs=1, verbose=0, callbacks=callbacks)

    for calibration in (None, X):
        trained = qat_model(model, fit, calibration=calibration)
        expected = trained.predict(X, verbose=0)
        for dataset in (None, X):
            content = tfq.convert(trained, dataset, tfq.ConversionConfig(verify=False))
            (result,) = run_plainly(content, {"x": X}).values()
            # One step of the output, where kernels round differently from fake quantization.
            assert np.ptp(expected) > 20 * result.scale
            assert np.abs(result.values.reshape(expected.shape) - expected).max() <= 1.01 * result.scale

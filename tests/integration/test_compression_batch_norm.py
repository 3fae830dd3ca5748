# SPDX-License-Identifier: Apache-2.0
"""BatchNormalization in QAT: its statistics move until the step that freezes them, in the user's own fit."""

import numpy as np
import pytest
from messages import refused
from small_models import noise, small_model

from tfq.compression import qat_model
from tfq.compression.qat.batch_norm import frozen_from_step
from tfq.config import QATConfig
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_tf_keras


@pytest.fixture(scope="module")
def model():
    return small_model()


def normalization(model):
    """Return the layer bn, whether QAT has wrapped it or not."""
    return next(getattr(layer, "layer", layer) for layer in model.layers if layer.name in ("bn", "quant_bn"))


class Watch:
    """Records moving mean and gamma after each step."""

    def __new__(cls, model):
        base = import_tf_keras().callbacks.Callback
        layer = normalization(model)

        class Watching(base):
            means, gammas = [layer.moving_mean.numpy()], [layer.gamma.numpy()]

            def on_train_batch_end(self, batch, logs=None):
                self.means.append(layer.moving_mean.numpy())
                self.gammas.append(layer.gamma.numpy())

            def moved(self):
                return [not np.array_equal(a, b) for a, b in zip(self.means, self.means[1:], strict=False)]

        return Watching()


def train(model, callbacks, epochs=2, **settings):
    data = noise(model)
    model.compile("adam", "sparse_categorical_crossentropy", **settings)
    # Otherwise the first step creates variables, and TensorFlow traces it twice.
    model.optimizer.build(model.trainable_variables)
    return model.fit(data.inputs["x"], data.labels, batch_size=8, epochs=epochs, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize(("step", "moving"), [(3, 3), (-1, 7), (0, 0), (100, 8)])
def test_statistics_freeze_at_the_step_and_gamma_keeps_learning(model, step, moving):
    watch = Watch(model)
    with frozen_from_step(model, step) as callbacks:
        train(model, [*callbacks, watch])
    assert watch.moved() == [True] * moving + [False] * (8 - moving)
    assert all(not np.array_equal(a, b) for a, b in zip(watch.gammas, watch.gammas[1:], strict=False))


def test_once_frozen_training_computes_what_inference_does():
    # Without quantizers, whose ranges change in training.
    model = small_model()
    x = noise(model, spread=30.0).inputs["x"]
    inference = np.asarray(model(x, training=False))
    with frozen_from_step(model, 0):
        np.testing.assert_allclose(np.asarray(model(x, training=True)), inference, rtol=1e-6)
    assert np.abs(np.asarray(model(x, training=True)) - inference).max() > 1e-3


def test_after_training_the_layers_are_what_they_were(model):
    with frozen_from_step(model, 0):
        assert "call" in vars(normalization(model))
    assert "call" not in vars(normalization(model))


def test_several_steps_in_one_execution_are_counted(model):
    watch = Watch(model)
    with frozen_from_step(model, 4) as callbacks:
        train(model, [*callbacks, watch], steps_per_execution=2)
    assert watch.moved() == [True, True, False, False]


def test_a_fit_that_drops_the_callbacks_is_an_error():
    with refused(TfqError, field="fit", word="BatchNormalization"):
        qat_model(small_model(), lambda model, callbacks: train(model, [], epochs=1, run_eagerly=True))


def test_a_fraction_of_a_training_of_unknown_length_is_refused(model):
    import tensorflow as tf

    data = noise(model)

    def generator():
        yield from zip(np.split(data.inputs["x"], 4), np.split(data.labels, 4), strict=True)

    signature = (tf.TensorSpec((None, 6, 6, 2)), tf.TensorSpec((None,), tf.int64))
    endless = tf.data.Dataset.from_generator(generator, output_signature=signature)
    model.compile("adam", "sparse_categorical_crossentropy")
    with frozen_from_step(model, 2) as callbacks:
        model.fit(endless, epochs=1, verbose=0, callbacks=callbacks)
    with (
        refused(InputError, field="compression.qat.freeze_batch_norm_step", got=-1),
        frozen_from_step(model, -1) as callbacks,
    ):
        model.fit(endless, epochs=1, verbose=0, callbacks=callbacks)


def test_a_model_without_normalization_needs_no_callback():
    keras = import_tf_keras()
    model = keras.Sequential([keras.layers.Dense(4, input_shape=(3,))])
    with frozen_from_step(model, -1) as callbacks:
        assert callbacks == []


def test_qat_uses_the_step_of_the_config():
    watches = []

    def fit(model, callbacks):
        watches.append(Watch(model))
        train(model, [*callbacks, watches[0]])

    qat_model(small_model(), fit, QATConfig(freeze_batch_norm_step=5))
    assert watches[0].moved() == [True] * 5 + [False] * 3

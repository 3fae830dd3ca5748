# SPDX-License-Identifier: Apache-2.0
"""Teachers see each example once per training: the same result as in every epoch, or the reason why not."""

import numpy as np
import pytest
from messages import refused, warned

from tfq.compression.distillation import distilled
from tfq.compression.teacher_outputs import EVERY_EPOCH, kept_outputs
from tfq.compression.training import train_model
from tfq.config import DistillationConfig, TrainConfig
from tfq.data import Split, SplitStream
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import deterministic, import_tf_keras

EXAMPLES, FEATURES, CLASSES = 70, 5, 3
DISTILLATION = DistillationConfig(enabled=True, weight=1.0)


def dense(seed, name):
    keras = import_tf_keras()
    with deterministic(seed):
        image = keras.Input((FEATURES,), name="x")
        return keras.Model(image, keras.layers.Dense(CLASSES, "softmax", name=name)(image), name=name)


def examples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return Split(name="train", inputs={"x": x}, labels=rng.integers(0, CLASSES, EXAMPLES), source="arrays")


def streamed(split, change=lambda x, reading: x):
    """Return a stream of 16 examples at a time; `change` gets the inputs of a piece and how often pieces were read."""
    readings = []

    def read(start, stop):
        for first in range(start, stop, 16):
            chosen = slice(first, min(first + 16, stop))
            readings.append(first)
            yield Split(
                name="train",
                inputs={"x": change(split.inputs["x"][chosen], len(readings))},
                labels=split.labels[chosen],
                source="stream",
            )

    return SplitStream(
        name="train", source="stream", num_examples=EXAMPLES, read=read, piece_examples=16, seekable=True
    )


def trained(data, cache_mb=512, callbacks=lambda teacher: ()):
    """Return the weights of a student after its training, and the history."""
    student, teacher = dense(1, "student"), dense(2, "teacher")
    config = TrainConfig(epochs=3, batch_size=16, learning_rate=0.05, teacher_cache_mb=cache_mb)
    with distilled(student, teacher, DISTILLATION):
        history = train_model(student, data, None, config, callbacks=callbacks(teacher))
    return np.concatenate([weight.ravel() for weight in student.get_weights()]), history


@pytest.mark.parametrize("form", [lambda split: split, streamed])
def test_kept_outputs_train_as_those_of_every_epoch(form, monkeypatch):
    kept, history = trained(form(examples()))
    computed, other = trained(form(examples()), cache_mb=0)
    np.testing.assert_allclose(kept, computed, atol=1e-5)
    assert history["distillation_loss"] == pytest.approx(other["distillation_loss"], rel=1e-4)
    assert "once" in history["teacher_outputs"] and EVERY_EPOCH in other["teacher_outputs"]
    if form is not streamed:
        return

    def of_other_examples(*arguments):
        outputs, text = kept_outputs(*arguments)
        for array in outputs.arrays[0]:
            array[:] = np.roll(array, 1, axis=0)
        return outputs, text

    monkeypatch.setattr("tfq.compression.distillation.kept_outputs", of_other_examples)
    assert np.abs(trained(form(examples()))[0] - computed).max() > 1e-2


def damaging(teacher):
    """Return a callback of a training, after whose begin the teacher has no usable weights."""

    class Damaging(import_tf_keras().callbacks.Callback):
        def on_train_begin(self, logs=None):
            teacher.set_weights([np.full(weight.shape, np.nan) for weight in teacher.get_weights()])

    return [Damaging()]


def test_a_training_with_kept_outputs_does_not_run_the_teacher():
    weights, _ = trained(examples(), callbacks=damaging)
    assert np.isfinite(weights).all()
    with refused(TfqError, field="training.learning_rate"):
        trained(examples(), callbacks=damaging, cache_mb=0)


def test_a_source_that_augments_its_examples_is_noticed():
    rng = np.random.default_rng(3)
    with warned("augmentation"):
        weights, history = trained(streamed(examples(), lambda x, _: x + rng.normal(size=x.shape).astype(np.float32)))
    assert history["teacher_outputs"].startswith(EVERY_EPOCH) and np.isfinite(weights).all()


def test_an_example_that_changes_later_ends_the_training():
    def change(x, reading):
        return x[:, ::-1].copy() if reading > 12 else x

    with refused(InputError, field="training.teacher_cache_mb"):
        trained(streamed(examples(), change))


def test_outputs_above_the_bound_are_not_kept():
    config = TrainConfig(epochs=2, batch_size=32, teacher_cache_mb=1)

    def outputs_of(size):
        import tensorflow as tf

        return lambda x: [[tf.repeat(x[:, :1], size, axis=1)]]

    fits = 1_000_000 // 4 // EXAMPLES
    outputs, text = kept_outputs(outputs_of(fits), ["x"], examples(), config)
    assert outputs.num_bytes <= 1_000_000 and "1.0" in text
    np.testing.assert_array_equal(outputs.arrays[0][0][:, -1], examples().inputs["x"][:, 0])
    with warned("teacher_cache_mb"):
        outputs, text = kept_outputs(outputs_of(fits + 1), ["x"], examples(), config)
    assert outputs is None and text.startswith(EVERY_EPOCH)


def test_one_epoch_needs_nothing_kept():
    outputs, text = kept_outputs(None, ["x"], examples(), TrainConfig(epochs=1))
    assert outputs is None and "one" in text

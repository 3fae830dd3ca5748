# SPDX-License-Identifier: Apache-2.0
"""Distillation: training towards the outputs of the float model, beside the user's own loss.

Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from tfq.config import DistillationConfig
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_tf_keras
from tfq.training import output_kind

UNUSED_TEACHER = "a teacher was given, and distillation is off: set distillation.enabled in the config"

# Below it a probability says nothing, and its logarithm has no gradient.
_SMALLEST = 1e-30


@contextlib.contextmanager
def distilled(model: Any, teacher: Any, config: DistillationConfig, what: str = "qat") -> Iterator[Any]:
    """A model of the same layers as `model` whose training step also learns from `teacher`: what fit is to train.

    model: functional or sequential tf_keras model; its layers, and with them its weights, are trained in place, and the
        teacher is no part of it. teacher: a model of the same inputs, run in inference mode on what the student sees.
    what: the step that errors name.
    In `fit` the gradient is that of (1 - weight) * the compiled loss + weight * distance. The distance of two outputs
    is temperature^2 * KL(teacher || student) of both models' softmax(logits / temperature), a mean over the batch;
    probabilities are taken back to logits by their logarithm. Outputs of no classifier (neither softmax nor sigmoid at
    the end, and no cross-entropy in compile) are held together by half their squared difference. Weights of samples
    and classes are for the compiled loss alone.
    The history and logs have it as "distillation_loss", and "loss" is the compiled one alone.
    Raises InputError where the two do not fit, and TfqError at the end where no training step went through here.
    """
    _check_fit(model, teacher, what)
    student = _distilled_class()(model.inputs, model.outputs, name=model.name)
    student.distil_from(teacher, config)
    yield student
    if not student.steps_traced:
        raise TfqError(
            f"{what}: distillation had no part in the training: fit must compile the model that it is given and call "
            "its own fit; a training loop by hand, or another model around it, does not see the teacher"
        )


@functools.cache
def _distilled_class() -> Any:
    import tensorflow as tf

    tf_keras = import_tf_keras()
    base: Any = tf_keras.Model

    class Distilled(base):
        def distil_from(self, teacher: Any, config: DistillationConfig) -> None:
            # Behind functions, out of sight of Keras: saved models, summaries and counts are the student's alone.
            mean = tf_keras.metrics.Mean(name="distillation_loss")
            self._wanted_outputs = lambda x: teacher(x, training=False)
            self._distance = lambda: mean
            self._kinds = [
                (output_kind(ours), output_kind(theirs))
                for ours, theirs in zip(self.outputs, teacher.outputs, strict=True)
            ]
            self._distillation = (config.temperature, config.weight)
            self._in_training = False
            self.steps_traced = 0

        def train_step(self, data: Any) -> Any:
            self._in_training = True
            try:
                return super().train_step(data)
            finally:
                self._in_training = False

        def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> Any:
            loss = super().compute_loss(x, y, y_pred, sample_weight)
            if not self._in_training:
                return loss
            self.steps_traced += 1
            temperature, weight = self._distillation
            wanted = tf.nest.flatten(self._wanted_outputs(x))
            distances = [
                distance(got, tf.stop_gradient(tf.cast(teacher, got.dtype)), kinds, temperature)
                for got, teacher, kinds in zip(tf.nest.flatten(y_pred), wanted, self._told_kinds(), strict=True)
            ]
            total = tf.add_n([tf.reduce_mean(each) for each in distances])
            self._distance().update_state(total)
            # As Keras does with its own losses: gradients of replicas are added up.
            total /= tf.distribute.get_strategy().num_replicas_in_sync
            return (1 - weight) * loss + weight * total

        def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
            results = super().compute_metrics(x, y, y_pred, sample_weight)
            return {**results, self._distance().name: self._distance().result()} if self._in_training else results

        def reset_metrics(self) -> None:
            super().reset_metrics()
            self._distance().reset_state()

        def _told_kinds(self) -> list[tuple[str, str]]:
            """The kinds of outputs; a last layer without activation gives logits where the loss is a cross-entropy."""
            losses = tf.nest.flatten(self.loss)
            names = [getattr(loss, "name", None) or getattr(loss, "__name__", str(loss)) for loss in losses]
            classifies = any("crossentropy" in str(name).lower() for name in names)
            told = {"linear": "logits" if classifies else "values"}
            return [(told.get(ours, ours), told.get(theirs, theirs)) for ours, theirs in self._kinds]

    return Distilled


def distance(got: Any, wanted: Any, kinds: tuple[str, str], temperature: float) -> Any:
    """How far the student's output `got` (n, ...) is from the teacher's `wanted`, same shape: (n,) and what is between.

    kinds: of both: "softmax" or "sigmoid" (probabilities), "logits", or "values" (half the squared difference).
    """
    import tensorflow as tf

    ours, theirs = kinds
    if "values" in kinds:
        return tf.reduce_mean(tf.math.squared_difference(got, wanted), axis=-1) / 2
    if "sigmoid" in kinds or got.shape[-1] == 1:
        pairs = [_two_logits(output, kind) / temperature for output, kind in ((got, ours), (wanted, theirs))]
    else:
        pairs = [_logits(output, kind) / temperature for output, kind in ((got, ours), (wanted, theirs))]
    student, teacher = (tf.nn.log_softmax(logits) for logits in pairs)
    return temperature**2 * tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1)


def _logits(output: Any, kind: str) -> Any:
    import tensorflow as tf

    return tf.math.log(tf.maximum(output, _SMALLEST)) if kind == "softmax" else output


def _two_logits(output: Any, kind: str) -> Any:
    """Of each unit's yes and no: (..., units, 2)."""
    import tensorflow as tf

    if kind == "sigmoid":
        # 1 - p is never below float32's own step under 1.
        probabilities = tf.stack([output, 1 - output], axis=-1)
        return tf.math.log(tf.maximum(probabilities, 2.0**-24))
    return tf.stack([output, tf.zeros_like(output)], axis=-1)


def _check_fit(model: Any, teacher: Any, what: str) -> None:
    """Raises InputError unless the teacher takes what the student takes, and gives what it gives."""
    for ends in ("inputs", "outputs"):
        ours, theirs = (
            [tuple(tensor.shape)[1:] for tensor in getattr(each, ends, None) or ()] for each in (model, teacher)
        )
        if ours != theirs:
            name = getattr(teacher, "name", teacher)
            raise InputError(
                f"{what}: the teacher {name!r} has {ends} of shape {theirs}, {model.name!r} has {ours}: "
                "distillation wants the float model that this one comes from"
            )

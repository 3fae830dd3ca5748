# SPDX-License-Identifier: Apache-2.0
"""Distillation: training towards the outputs of the float model, and of its layers, beside the user's own loss.

Sources: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2; of the layers Romero
et al. 2015, "FitNets: hints for thin deep nets", with the distance of Kurtic et al. 2023, "Sparse fine-tuning for
inference acceleration of large language models" (SquareHead).
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from tfq.compression.training import output_kind
from tfq.config import DistillationConfig
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_tf_keras
from tfq.patterns import check_fits, fits

# Below it a probability says nothing, and its logarithm has no gradient.
_SMALLEST = 1e-30


def refuse_unused_teacher(teacher: Any, config: DistillationConfig, step: str) -> None:
    """Raise InputError if a teacher is provided and distillation is off."""
    if teacher is not None and not config.enabled:
        raise InputError(
            f"{step}: a teacher was given, and distillation is off: set distillation.enabled in the config",
            field=f"compression.{step}.distillation.enabled",
            expected=True,
            got=False,
        )


@contextlib.contextmanager
def distilled(model: Any, teacher: Any, config: DistillationConfig, what: str = "qat") -> Iterator[Any]:
    """Within, the training step of `model` also learns from `teacher`; gives `model`, which fit is to train.

    model: functional or sequential tf_keras model. It keeps its outputs, their names and the training code of its
        class, and does not hold the teacher. Afterwards it is unchanged, apart from what fit did.
    teacher: a model of the same inputs, run in inference mode on what the student sees; or a sequence of them, an
        ensemble: the distance is the mean over all, which has the gradient of the distance to the mean of what they
        give. Layers are those of the first.
    what: the step that errors name.
    In `fit` the gradient is that of (1 - weight) * the compiled loss + weight * distance. The distance of two outputs
    is temperature^2 * KL(teacher || student) of both models' softmax(logits / temperature), a mean over the batch;
    probabilities are taken back to logits by their logarithm. Outputs of no classifier (neither softmax nor sigmoid at
    the end, and no cross-entropy in compile) are held together by half their squared difference. Weights of samples
    and classes are for the compiled loss alone. For each layer that config.layers names is added layers_weight * the
    squared difference of its output from the teacher's, as a share of the teacher's squares over the batch.
    The history and logs have them as "distillation_loss" and "distillation_layers_loss", beside the compiled "loss".
    Raises InputError where the two do not fit, or a pattern fits no layer that both have, and TfqError at the end where
    no training step went through here.
    """
    teachers = list(teacher) if isinstance(teacher, Sequence) else [teacher]
    for item in teachers:
        _check_fit(model, item, what)
    pairs = _layer_pairs(model, teachers[0], config.layers, what)
    state = _State(model, teachers, config, pairs)
    own_class: Any = type(model)
    model._distillation = state
    # Keras' own __setattr__ would track it.
    object.__setattr__(model, "__class__", _distilled_class(own_class))
    try:
        yield model
    finally:
        object.__setattr__(model, "__class__", own_class)
        del model._distillation
        model.train_function = model.test_function = None  # traced with the teacher
    if not state.steps_traced:
        raise TfqError(
            f"{what}: distillation had no part in the training: fit must compile the model that it is given and call "
            "its own fit; a training loop by hand, or another model around it, does not see the teacher",
            field="fit",
            expected="a fit of the model that it is given",
        )


class _State:
    """What the training step needs to know of the teacher, out of sight of Keras.

    Saved models, summaries and counts are the student's alone.
    """

    def __init__(
        self, model: Any, teachers: list[Any], config: DistillationConfig, pairs: list[tuple[Any, Any]]
    ) -> None:
        import tensorflow as tf

        tf_keras = import_tf_keras()
        self.kinds = [
            [
                (output_kind(ours), output_kind(theirs))
                for ours, theirs in zip(model.outputs, teacher.outputs, strict=True)
            ]
            for teacher in teachers
        ]
        self.means = [tf_keras.metrics.Mean(name="distillation_loss")]
        self.with_layers: Any = None
        if pairs:
            self.means.append(tf_keras.metrics.Mean(name="distillation_layers_loss"))
            self.with_layers, first = (
                tf_keras.Model(item.inputs, [*item.outputs, *(pair[place] for pair in pairs)])
                for place, item in enumerate((model, teachers[0]))
            )
            teachers = [first, *teachers[1:]]
        self.wanted_outputs = lambda x: [tf.nest.flatten(teacher(x, training=False)) for teacher in teachers]
        self.of_layers: list[Any] = []
        self.temperature, self.weight, self.layers_weight = config.temperature, config.weight, config.layers_weight
        self.in_training = False
        self.steps_traced = 0

    def towards_teacher(self, loss: Any, x: Any, y_pred: Any, losses: list[Any]) -> Any:
        """Return what training minimizes: `loss`, the compiled one of `losses`, and the distances to the teacher."""
        import tensorflow as tf

        self.steps_traced += 1
        outputs = tf.nest.flatten(y_pred)
        wanted = tf.nest.map_structure(tf.stop_gradient, self.wanted_outputs(x))
        distances = [
            distance(got, tf.cast(theirs, got.dtype), kinds, self.temperature)
            for of_one, of_outputs in zip(wanted, self._kinds_with(losses), strict=True)
            for got, theirs, kinds in zip(outputs, of_one[: len(outputs)], of_outputs, strict=True)
        ]
        totals = [tf.add_n([tf.reduce_mean(item) for item in distances]) / len(wanted)]
        if self.of_layers:
            pairs = zip(self.of_layers, wanted[0][len(outputs) :], strict=True)
            totals.append(tf.add_n([layer_distance(got, tf.cast(theirs, got.dtype)) for got, theirs in pairs]))
        for mean, total in zip(self.means, totals, strict=True):
            mean.update_state(total)
        # As Keras does with its own losses: gradients of replicas are added up.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        towards = (1 - self.weight) * loss + self.weight * totals[0] / replicas
        return towards + self.layers_weight * totals[1] / replicas if self.of_layers else towards

    def _kinds_with(self, losses: list[Any]) -> list[list[tuple[str, str]]]:
        """By teacher, the kinds of outputs.

        A last layer without activation gives logits where the loss is a cross-entropy.
        """
        names = [getattr(loss, "name", None) or getattr(loss, "__name__", str(loss)) for loss in losses]
        classifies = any("crossentropy" in str(name).lower() for name in names)
        linear = {"linear": "logits" if classifies else "values"}
        return [[(linear.get(ours, ours), linear.get(theirs, theirs)) for ours, theirs in item] for item in self.kinds]


@functools.cache
def _distilled_class(base: Any) -> Any:
    """Return a subclass of a model's class whose training step learns from the teacher in `_distillation` as well."""
    import tensorflow as tf

    class Distilled(base):
        _distillation: _State

        def train_step(self, data: Any) -> Any:
            self._distillation.in_training = True
            try:
                return super().train_step(data)
            finally:
                self._distillation.in_training = False

        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            state = self._distillation
            if not state.in_training or state.with_layers is None:
                return super().call(inputs, training=training, mask=mask)
            outputs = state.with_layers(inputs, training=True, mask=mask)
            state.of_layers = outputs[len(self.outputs) :]
            return tf.nest.pack_sequence_as(self.output, outputs[: len(self.outputs)])

        def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> Any:
            loss = super().compute_loss(x, y, y_pred, sample_weight)
            if not self._distillation.in_training:
                return loss
            return self._distillation.towards_teacher(loss, x, y_pred, tf.nest.flatten(self.loss))

        def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
            results = super().compute_metrics(x, y, y_pred, sample_weight)
            state = self._distillation
            means = {mean.name: mean.result() for mean in state.means} if state.in_training else {}
            return {**results, **means}

        def reset_metrics(self) -> None:
            super().reset_metrics()
            for mean in self._distillation.means:
                mean.reset_state()

    # A checkpoint that fit saves names the class that the model has after the training.
    Distilled.__name__, Distilled.__qualname__, Distilled.__module__ = base.__name__, base.__qualname__, base.__module__
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


def layer_distance(got: Any, wanted: Any) -> Any:
    """The squared difference of a layer's outputs as a share of the teacher's squares: 0 is equal, 1 as far as zero."""
    import tensorflow as tf

    squares = tf.reduce_sum(tf.square(wanted))
    return tf.reduce_sum(tf.math.squared_difference(got, wanted)) / tf.maximum(squares, _SMALLEST)


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
            [tuple(tensor.shape)[1:] for tensor in getattr(item, ends, None) or ()] for item in (model, teacher)
        )
        if ours != theirs:
            name = getattr(teacher, "name", teacher)
            raise InputError(
                f"{what}: the teacher {name!r} has {ends} of shape {theirs}, {model.name!r} has {ours}: "
                "distillation wants the float model that this one comes from",
                field="teacher",
                expected=ours,
                got=theirs,
            )


def _layer_pairs(model: Any, teacher: Any, patterns: Sequence[str], what: str) -> list[tuple[Any, Any]]:
    """(the student's output, the teacher's) of each of the teacher's layers that fit `patterns`.

    The student's has the same name, or tfmot's in front of it. Raises InputError on a pattern that fits no layer which
    both have in one shape.
    """
    if not patterns:
        return []
    students = {layer.name.removeprefix("quant_"): layer for layer in model.layers}
    reasons, pairs = {}, {}
    for layer in teacher.layers:
        ours = students.get(layer.name)
        reasons[layer.name] = _why_apart(ours, layer)
        if ours is not None and reasons[layer.name] is None and fits(layer.name, patterns):
            pairs[layer.name] = (ours.output, layer.output)
    for pattern in patterns:
        check_fits(
            f"{what}: the pattern {pattern!r} in distillation.layers",
            pattern,
            reasons,
            field=f"compression.{what}.distillation.layers",
        )
    return list(pairs.values())


def _why_apart(ours: Any, theirs: Any) -> str | None:
    """Why the outputs of two layers cannot be compared; None where they can."""
    if ours is None:
        return "the student has no layer of that name"
    if any(len(layer.inbound_nodes) != 1 or isinstance(layer.output, (list, tuple, dict)) for layer in (ours, theirs)):
        return "it is used more than once, or gives several outputs"
    shapes = [tuple(layer.output.shape)[1:] for layer in (ours, theirs)]
    return None if shapes[0] == shapes[1] else f"it gives {shapes[0]}, the float model's {shapes[1]}"

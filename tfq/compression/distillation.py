# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: the training loss includes the distance to the outputs of a teacher and of its layers.

The loss of the student is

    (1 - weight) * compiled loss + weight * D + layers_weight * L

D is the sum over the outputs, each multiplied by its weight in the compiled loss, and the mean over the batch, of

    temperature^2 * KL(softmax(teacher logits / temperature) || softmax(student logits / temperature))

for classifiers, and of half the mean squared difference for other outputs. L is the sum over the selected layers of
(squared difference from the teacher's outputs) / (squares of the teacher's outputs), both summed over the batch.

Sources: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2. For layers: Romero
et al. 2015, "FitNets: hints for thin deep nets", with the distance of Kurtic et al. 2023, "Sparse fine-tuning for
inference acceleration of large language models" (SquareHead).
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from tfq.compression.output_losses import output_kind
from tfq.compression.teacher_outputs import TeacherOutputs, kept_outputs
from tfq.config import DistillationConfig, TrainConfig
from tfq.data import AnySplit
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import deterministic, import_tf_keras
from tfq.keras_bridge.strategies import num_replicas, sum_over_replicas
from tfq.patterns import check_selection, fits

# Lower limit of probabilities and of sums of squares, which keeps logarithms and quotients finite.
_EPSILON = 1e-30


def refuse_unused_teacher(teacher: Any, config: DistillationConfig, step: str) -> None:
    """Raise InputError if a teacher is provided and distillation is off."""
    if teacher is not None and not config.enabled:
        raise InputError(
            f"{step}: a teacher was passed, but distillation is off: set distillation.enabled in the config",
            field=f"compression.{step}.distillation.enabled",
            expected=True,
            got=False,
        )


@contextlib.contextmanager
def distilled(model: Any, teacher: Any, config: DistillationConfig, step: str = "qat") -> Iterator[Any]:
    """Add distillation to the training step of a model, inside a `with` block.

    In the block, `model.fit` minimizes the loss of the module docstring. Sample weights and class weights apply to the
    compiled loss only. Probabilities are converted to logits by the logarithm. An output counts as a classifier's if it
    ends in softmax or sigmoid, or if its compiled loss is a cross-entropy. Outputs without a compiled loss are part of
    D. History and logs contain "distillation_loss" (D) and "distillation_layers_loss" (L), and the compiled loss as
    "loss".

    The model keeps its outputs, their names and the training code of its class, and does not contain the teacher.
    After the block, its class is restored.

    Args:
        model: The student, a functional or sequential tf_keras model.
        teacher: A model with the same inputs and outputs, run in inference mode on the student's inputs; or a sequence
            of models (an ensemble). The distance to an ensemble is the mean of the distances, which has the gradient
            of the distance to the mean output. The layers are those of the first teacher.
        config: The distillation settings.
        step: The compression step that errors name.

    Yields:
        `model`, to be trained.

    Raises:
        InputError: Student and teacher have different inputs or outputs, or a pattern in `config.layers` matches no
            layer that both have.
        TfqError: At the end of the block, if no training step of `model` ran.
    """
    teachers = list(teacher) if isinstance(teacher, Sequence) else [teacher]
    for item in teachers:
        _check_shapes(model, item, step)
    pairs = _layer_pairs(model, teachers[0], config.layers, step)
    state = _State(model, teachers, config, pairs)
    own_class: Any = type(model)
    model._distillation = state
    # Keras' __setattr__ would track it.
    object.__setattr__(model, "__class__", _distilled_class(own_class))
    try:
        yield model
    finally:
        object.__setattr__(model, "__class__", own_class)
        del model._distillation
        model.train_function = model.test_function = None  # they were traced with the teacher
    if not state.steps_traced:
        raise TfqError(
            f"{step}: the training did not use distillation: fit must compile the model that it receives and call its "
            "fit. A custom training loop, or another model that wraps this one, bypasses the teacher",
            field="fit",
            expected="a fit of the model that it receives",
        )


@contextlib.contextmanager
def outputs_kept(
    model: Any, train: AnySplit, config: TrainConfig, *, seed: int
) -> Iterator[tuple[TeacherOutputs | None, dict[str, str]]]:
    """Compute the outputs of the teachers of a `distilled` model for all training examples once.

    If there are outputs, `fit` needs `labels_with(y, outputs)` instead of the labels y inside of the `with` block.

    Args:
        model: The student. A model without teachers is accepted too.
        train: The training examples.
        config: The settings of the training.
        seed: Seed of the random generators, which are restored afterwards.

    Yields:
        The outputs, None if they are computed in each step; and {"teacher_outputs": sentence} for the record, empty
        without a teacher.
    """
    state = getattr(model, "_distillation", None)
    if state is None:
        yield None, {}
        return
    with deterministic(seed):
        outputs, text = kept_outputs(state.teacher_outputs, list(model.input_names), train, config)
    state.has_kept_outputs = outputs is not None
    try:
        yield outputs, {"teacher_outputs": text}
    finally:
        state.has_kept_outputs = False


def labels_with(labels: Any, outputs: Any) -> dict[str, Any]:
    """Return the labels of examples and the outputs of the teachers for them, as one structure for `fit`."""
    return {"labels": labels, "teachers": outputs}


class _State:
    """The teachers and settings that the training step uses.

    Keras does not track them, so that saved models, summaries and parameter counts contain the student only.
    """

    def __init__(
        self, model: Any, teachers: list[Any], config: DistillationConfig, pairs: list[tuple[Any, Any]]
    ) -> None:
        import tensorflow as tf

        tf_keras = import_tf_keras()
        self.kinds = [
            [
                (output_kind(output), output_kind(teacher_output))
                for output, teacher_output in zip(model.outputs, teacher.outputs, strict=True)
            ]
            for teacher in teachers
        ]
        self.means = [tf_keras.metrics.Mean(name="distillation_loss")]
        self.layers_model: Any = None
        if pairs:
            self.means.append(tf_keras.metrics.Mean(name="distillation_layers_loss"))
            self.layers_model, first = (
                tf_keras.Model(item.inputs, [*item.outputs, *(pair[index] for pair in pairs)])
                for index, item in enumerate((model, teachers[0]))
            )
            teachers = [first, *teachers[1:]]
        self.teacher_outputs = lambda x: [tf.nest.flatten(teacher(x, training=False)) for teacher in teachers]
        self.layer_outputs: list[Any] = []
        self.temperature, self.weight, self.layers_weight = config.temperature, config.weight, config.layers_weight
        self.loss_weights: Any = None
        self.in_training = False
        # Whether fit gets `labels_with` instead of the labels, and the outputs of the step's batch.
        self.has_kept_outputs = False
        self.kept_outputs: Any = None
        self.steps_traced = 0

    def total_loss(self, loss: Any, x: Any, y_pred: Any, losses: list[Any], weights: list[float]) -> Any:
        """Return the loss to minimize.

        Args:
            loss: The value of the compiled loss.
            x: Inputs of the student.
            y_pred: Its outputs.
            losses: The compiled loss function of each output; None for outputs without one.
            weights: The factor of each output's loss.
        """
        import tensorflow as tf

        self.steps_traced += 1
        outputs = tf.nest.flatten(y_pred)
        computed = self.teacher_outputs(x) if self.kept_outputs is None else self.kept_outputs
        targets = tf.nest.map_structure(tf.stop_gradient, computed)
        distances = [
            tf.reduce_mean(distance(output, tf.cast(target, output.dtype), kinds, self.temperature)) * weight
            for teacher_targets, teacher_kinds in zip(targets, self._kinds_for(losses), strict=True)
            for output, target, kinds, weight in zip(
                outputs, teacher_targets[: len(outputs)], teacher_kinds, weights, strict=True
            )
        ]
        totals = [tf.add_n(distances) / len(targets)]
        if self.layer_outputs:
            pairs = zip(self.layer_outputs, targets[0][len(outputs) :], strict=True)
            # Relative to the teacher's squares on the global batch, so that the sum over replicas is the distance.
            layers = [layer_distance(tf.cast(a, tf.float32), tf.cast(b, tf.float32)) for a, b in pairs]
            totals.append(tf.add_n(layers) * num_replicas())
        for mean, total in zip(self.means, totals, strict=True):
            mean.update_state(total)
        # Divided as Keras does with its losses, because the gradients of replicas are summed.
        replicas = num_replicas()
        result = (1 - self.weight) * loss + self.weight * totals[0] / replicas
        return result + self.layers_weight * totals[1] / replicas if self.layer_outputs else result

    def _kinds_for(self, losses: list[Any]) -> list[list[tuple[str, str]]]:
        """Return the kinds of the student's and the teacher's outputs, for each teacher.

        The output of a last layer without activation is logits if its compiled loss is a cross-entropy.
        """
        names = [str(getattr(loss, "name", None) or getattr(loss, "__name__", loss)).lower() for loss in losses]
        linear = [{"linear": "logits" if "crossentropy" in name else "values"} for name in names]
        return [
            [(own.get(a, a), own.get(b, b)) for (a, b), own in zip(item, linear, strict=True)] for item in self.kinds
        ]


def _per_output(model: Any, settings: Any, default: Any) -> list[Any]:
    """Return a setting of `compile` for each output: one for all, or a list or dict of them by output."""
    import tensorflow as tf

    if isinstance(settings, dict):
        is_dict = isinstance(model.output, dict) and len(model.output) == len(model.outputs)
        names = sorted(model.output) if is_dict and set(settings) <= set(model.output) else model.output_names
        return [settings.get(name, default) for name in names]
    if isinstance(settings, (list, tuple)) and len(flat := tf.nest.flatten(settings)) == len(model.outputs):
        return [default if setting is None else setting for setting in flat]
    return [default if settings is None else settings] * len(model.outputs)


@functools.cache
def _distilled_class(base: Any) -> Any:
    """Return a subclass of a model's class whose training step includes the distances in `_distillation`."""
    import tensorflow as tf

    class Distilled(base):
        _distillation: _State

        def compile(self, *args: Any, **kwargs: Any) -> None:
            super().compile(*args, **kwargs)
            # The fourth argument; Keras keeps it in private attributes only.
            self._distillation.loss_weights = kwargs.get("loss_weights", args[3] if len(args) > 3 else None)

        def train_step(self, data: Any) -> Any:
            state = self._distillation
            state.in_training = True
            if state.has_kept_outputs:
                x, y = data
                data, state.kept_outputs = (x, y["labels"]), y["teachers"]
            try:
                return super().train_step(data)
            finally:
                state.in_training, state.kept_outputs = False, None

        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            state = self._distillation
            if not state.in_training or state.layers_model is None:
                return super().call(inputs, training=training, mask=mask)
            outputs = state.layers_model(inputs, training=True, mask=mask)
            state.layer_outputs = outputs[len(self.outputs) :]
            return tf.nest.pack_sequence_as(self.output, outputs[: len(self.outputs)])

        def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> Any:
            loss = super().compute_loss(x, y, y_pred, sample_weight)
            if not self._distillation.in_training:
                return loss
            state = self._distillation
            weights = _per_output(self, state.loss_weights, 1.0)
            return state.total_loss(loss, x, y_pred, _per_output(self, self.loss, None), weights)

        def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
            results = super().compute_metrics(x, y, y_pred, sample_weight)
            state = self._distillation
            means = {mean.name: mean.result() for mean in state.means} if state.in_training else {}
            return {**results, **means}

        def reset_metrics(self) -> None:
            super().reset_metrics()
            for mean in self._distillation.means:
                mean.reset_state()

    # Checkpoints that fit saves must name the class that the model has after the training.
    Distilled.__name__, Distilled.__qualname__, Distilled.__module__ = base.__name__, base.__qualname__, base.__module__
    return Distilled


def distance(output: Any, target: Any, kinds: tuple[str, str], temperature: float) -> Any:
    """Return the distance between an output of the student and the teacher's.

    Args:
        output: The student's output, shape (n, ..., units).
        target: The teacher's output, same shape.
        kinds: The kinds of both: "softmax" or "sigmoid" for probabilities, "logits", or "values" for outputs that are
            compared by half their mean squared difference. Each unit of a sigmoid is a classifier of two classes.
        temperature: The logits are divided by it.

    Returns:
        Shape (n, ...), or (n, ..., units) for sigmoids and for logits with one unit.
    """
    import tensorflow as tf

    if "values" in kinds:
        return tf.reduce_mean(tf.math.squared_difference(output, target), axis=-1) / 2
    to_logits = _two_logits if "sigmoid" in kinds or output.shape[-1] == 1 else _logits
    pairs = [to_logits(value, kind) / temperature for value, kind in zip((output, target), kinds, strict=True)]
    student, teacher = (tf.nn.log_softmax(logits) for logits in pairs)
    return temperature**2 * tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1)


def layer_distance(output: Any, target: Any) -> Any:
    """Return the squared difference of a layer's outputs, divided by the sum of the teacher's squares.

    In a training step of several replicas, the divisor is the sum over all of them. Equal outputs have a distance of 0.
    The distance of zeros from the teacher's outputs is 1.
    """
    import tensorflow as tf

    squares = sum_over_replicas(tf.reduce_sum(tf.square(target)))
    return tf.reduce_sum(tf.math.squared_difference(output, target)) / tf.maximum(squares, _EPSILON)


def _logits(output: Any, kind: str) -> Any:
    import tensorflow as tf

    return tf.math.log(tf.maximum(output, _EPSILON)) if kind == "softmax" else output


def _two_logits(output: Any, kind: str) -> Any:
    """Return the logits of the two classes of each unit, shape (..., units, 2)."""
    import tensorflow as tf

    if kind == "sigmoid":
        # The limit is the spacing of float32 just below 1: a nonzero 1 - p is never smaller.
        probabilities = tf.stack([output, 1 - output], axis=-1)
        return tf.math.log(tf.maximum(probabilities, 2.0**-24))
    return tf.stack([output, tf.zeros_like(output)], axis=-1)


def _check_shapes(model: Any, teacher: Any, step: str) -> None:
    """Raise InputError unless student and teacher have inputs and outputs of the same shapes."""
    for ends in ("inputs", "outputs"):
        shapes, teacher_shapes = (
            [tuple(tensor.shape)[1:] for tensor in getattr(item, ends, None) or ()] for item in (model, teacher)
        )
        if shapes != teacher_shapes:
            name = getattr(teacher, "name", teacher)
            raise InputError(
                f"{step}: the teacher {name!r} has {ends} of shape {teacher_shapes}, but {model.name!r} has {shapes}: "
                "pass the float model that this model comes from",
                field="teacher",
                expected=shapes,
                got=teacher_shapes,
            )


def _layer_pairs(model: Any, teacher: Any, patterns: Sequence[str], step: str) -> list[tuple[Any, Any]]:
    """Return (student's output, teacher's output) of each layer of the teacher that matches a pattern.

    The student's layer has the same name, or the same name after tfmot's prefix "quant_".

    Raises:
        InputError: A pattern matches no layer that both have with outputs of the same shape.
    """
    if not patterns:
        return []
    student_layers = {layer.name.removeprefix("quant_"): layer for layer in model.layers}
    reasons, pairs = {}, {}
    for layer in teacher.layers:
        student_layer = student_layers.get(layer.name)
        reasons[layer.name] = _reason_not_comparable(student_layer, layer)
        if student_layer is not None and reasons[layer.name] is None and fits(layer.name, patterns):
            pairs[layer.name] = (student_layer.output, layer.output)
    check_selection(f"{step}: distillation.layers", patterns, reasons, field=f"compression.{step}.distillation.layers")
    return list(pairs.values())


def _reason_not_comparable(student_layer: Any, teacher_layer: Any) -> str | None:
    """Return why the outputs of two layers cannot be compared, or None if they can."""
    if student_layer is None:
        return "the student has no layer of that name"
    layers = (student_layer, teacher_layer)
    if any(len(layer.inbound_nodes) != 1 or isinstance(layer.output, (list, tuple, dict)) for layer in layers):
        return "it is called more than once, or has several outputs"
    shapes = [tuple(layer.output.shape)[1:] for layer in layers]
    return None if shapes[0] == shapes[1] else f"its output has shape {shapes[0]}, the float model's {shapes[1]}"

# SPDX-License-Identifier: Apache-2.0
"""Models from files that a student learns from while it is trained or compressed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfq import artifacts, data, evaluation, progress
from tfq.config import DistillationConfig, RunConfig, TeacherConfig
from tfq.errors import InputError, warn
from tfq.evaluation.metric import as_metric
from tfq.evaluation.metric_scores import drop_of
from tfq.workflows.models import keras_scores, load_file


@dataclass(kw_only=True)
class Lesson:
    """A student in training, and its teachers.

    Attributes:
        student: The model to train: the user's, or a copy of it in tf_keras whose weights go back to the user's.
        teachers: For each teacher its file's name, sha256, parameters, scale and offset of its inputs, the height and
            width that images are resized to for it (null: not resized), and on the val split metric, unit and accuracy
            (null without labels).
    """

    student: Any
    teachers: list[dict[str, Any]] = field(default_factory=list)


def distillation_of(config: TeacherConfig) -> DistillationConfig:
    """Return the settings of distillation from these teachers."""
    return DistillationConfig(enabled=True, temperature=config.temperature, weight=config.weight)


def load_teachers(
    config: TeacherConfig,
    run: RunConfig,
    student: Any,
    validation: data.AnySplit,
    *,
    field: str,
    allow_code: bool = False,
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the teachers as tf_keras models that take the student's inputs, and what the record says of them.

    A TfqWarning names a teacher that does not do better than guessing on the val split: most often its inputs need
    another scale. Another one says that images are resized for a teacher.

    Args:
        config: The files, and how their inputs differ from the student's.
        run: The settings of the whole command, for the data and the plugins.
        student: The tf_keras model that learns.
        validation: The val split, preprocessed for the student.
        field: The section that messages name, such as "training.teacher".
        allow_code: Whether code inside the files may run.

    Raises:
        InputError: A file is not a Keras model, it has other inputs than the student, or the number of scales or
            offsets is not that of the teachers.
    """
    models, facts = [], []
    scales, offsets = (_per_teacher(config, name, field) for name in ("scale", "offset"))
    for path, scale, offset in zip(config.files, scales, offsets, strict=True):
        if path.endswith(".tflite"):
            raise InputError(
                f"{field}={path} is a .tflite file, through which no training step can run: expected the Keras model "
                "that it was converted from",
                field=field,
                expected="a Keras model",
                got=path,
            )
        own = _in_tf_keras(load_file(path, run, allow_code=allow_code), path, field)
        resized = _resized_images(own, student, path, field)
        model = _with_inputs_of(student, own, resized, scale, offset)
        with progress.stage(f"evaluating the teacher {Path(path).name}"):
            scores = keras_scores(model, validation)
        record = {
            "file": Path(path).name,
            "sha256": artifacts.sha256_path(path),
            "parameters": int(model.count_params()),
            "scale": scale,
            "offset": offset,
            "resize": resized,
            "metric": scores["test_metric"],
            "unit": scores["test_unit"],
            "accuracy": scores["test_accuracy"],
        }
        _warn_if_guessing(record, model, field)
        models.append(model)
        facts.append(record)
    return models, facts


def _per_teacher(config: TeacherConfig, name: str, field: str) -> list[float]:
    """Return the values of a setting, one for each teacher."""
    values, count = list(getattr(config, name)), len(config.files)
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise InputError(
            f"{field}.{name} has {len(values)} values for {count} teachers: expected one for all, or one for each in "
            "their order",
            field=f"{field}.{name}",
            expected=(1, count),
            got=tuple(values),
        )
    return values


def _in_tf_keras(model: Any, path: str, field: str) -> Any:
    from tfq.keras_bridge import to_tf_keras

    if not getattr(model, "outputs", None) or not hasattr(model, "layers"):
        raise InputError(
            f"{field}={path} has no layers that a training step could run: expected a functional or sequential Keras "
            "model",
            field=field,
            expected="a Keras model",
            got=path,
        )
    result: Any = to_tf_keras(model).model
    result.trainable = False
    return result


def _order_of_inputs(student: Any, teacher: Any) -> list[int]:
    """Return the index of the student's input for each of the teacher's: by name if all names are equal, else order."""
    names, own = list(student.input_names), list(teacher.input_names)
    return [names.index(name) for name in own] if sorted(names) == sorted(own) else list(range(len(own)))


def _resized_images(teacher: Any, student: Any, path: str, field: str) -> list[int] | None:
    """Return [height, width] that images are resized to for a teacher; None if it takes the student's inputs.

    Raises:
        InputError: Its inputs have other shapes, and are not images of another size.
    """
    given, taken = ([tuple(tensor.shape)[1:] for tensor in model.inputs] for model in (student, teacher))
    if len(given) == len(taken):
        given = [given[index] for index in _order_of_inputs(student, teacher)]
        if all(data.shape_fits(one, other) for one, other in zip(given, taken, strict=True)):
            return None
    # Images have three axes: height, width, and one, three or four channels.
    is_image = len(given) == len(taken) == 1 and len(given[0]) == len(taken[0]) == 3 and given[0][2] == taken[0][2]
    if not is_image or taken[0][2] not in (1, 3, 4) or None in taken[0]:
        raise InputError(
            f"{field}={path} has inputs of shape {taken}, but the student has {given}. Only images (height, width, "
            "channels) may have another height and width. Train a teacher on the student's inputs",
            field=field,
            expected=given,
            got=taken,
            limit="teacher-inputs",
        )
    height, width = (int(side) for side in taken[0][:2])
    own = " x ".join("any" if side is None else str(side) for side in given[0][:2])
    warn(
        f"{field}: the teacher {Path(path).name} has inputs of {height} x {width} pixels (height x width), and the "
        f'student of {own}: the teacher receives images that tf.image.resize(method="bilinear") made of the student\'s'
    )
    return [height, width]


def _with_inputs_of(student: Any, teacher: Any, resize: list[int] | None, scale: float, offset: float) -> Any:
    """Return a model that has the student's inputs, and resizes and scales them before the teacher's."""
    from tfq.keras_bridge import import_tf_keras

    inputs = [(tuple(tensor.shape), tensor.dtype) for tensor in student.inputs]
    is_same = inputs == [(tuple(tensor.shape), tensor.dtype) for tensor in teacher.inputs]
    has_names = len(inputs) == 1 or list(student.input_names) == list(teacher.input_names)
    if scale == 1 and not offset and is_same and has_names:
        return teacher
    keras = import_tf_keras()
    layers = [
        keras.Input(shape[1:], name=name, dtype=dtype)
        for (shape, dtype), name in zip(inputs, student.input_names, strict=True)
    ]
    tensors = [layers[index] for index in _order_of_inputs(student, teacher)]
    if resize is not None:  # tf.image.resize without antialiasing
        tensors = [keras.layers.Resizing(*resize, interpolation="bilinear")(tensor) for tensor in tensors]
    if scale != 1 or offset:
        tensors = [keras.layers.Rescaling(scale, offset)(tensor) for tensor in tensors]
    outputs = teacher(tensors if len(tensors) > 1 else tensors[0])
    return keras.Model(layers, outputs, name=f"{teacher.name}_for_{student.name}")


def _warn_if_guessing(record: dict[str, Any], model: Any, field: str) -> None:
    classes = int(model.outputs[0].shape[-1] or 0)
    if record["metric"] != "top1" or record["accuracy"] is None or classes < 2:
        return
    if record["accuracy"] < 1.5 / classes:
        warn(
            f"{field}: the teacher {record['file']} classifies {record['accuracy']:.1%} of the val split, and guessing "
            f"would classify {1 / classes:.1%}: it teaches noise. Check that it was trained on these classes, and that "
            f"its inputs have the same preprocessing as the student's ({field}.scale, {field}.offset)"
        )


@contextlib.contextmanager
def taught(
    model: Any, config: TeacherConfig, run: RunConfig, validation: data.AnySplit, *, allow_code: bool = False
) -> Iterator[Lesson]:
    """Let `fit` of a model train towards teachers inside a `with` block; without teachers, change nothing.

    After the block, `model` has the trained weights. A Keras 3 model is trained as a copy in tf_keras.

    Args:
        model: The student, of either Keras.
        config: The teachers.
        run: The settings of the whole command.
        validation: The val split.
        allow_code: Whether code inside the files may run.

    Raises:
        InputError: A file is not a Keras model, or its inputs or outputs have other shapes than the student's.
    """
    if not config.files:
        yield Lesson(student=model)
        return
    from tfq.compression.distillation import distilled
    from tfq.keras_bridge import return_weights, to_tf_keras

    bridged = to_tf_keras(model)
    teachers, facts = load_teachers(
        config, run, bridged.model, validation, field="training.teacher", allow_code=allow_code
    )
    with distilled(bridged.model, teachers, distillation_of(config), "training") as student:
        yield Lesson(student=student, teachers=facts)
    if bridged.model is not model:
        return_weights(bridged, bridged.model)


def warn_of_worse_teachers(lesson: Lesson, model: Any, validation: data.AnySplit) -> None:
    """Warn (TfqWarning) about teachers that are worse on the val split than the trained student."""
    compared = [teacher for teacher in lesson.teachers if teacher["accuracy"] is not None]
    if not compared:
        return
    scores = keras_scores(model, validation)
    for teacher in compared:
        drop = _how_much_worse(teacher, scores["test_accuracy"])
        if teacher["metric"] == scores["test_metric"] and drop is not None and drop > 0:
            shown, own = (
                evaluation.score_text(teacher["unit"], value)
                for value in (teacher["accuracy"], scores["test_accuracy"])
            )
            warn(
                f"training.teacher: the teacher {teacher['file']} has {teacher['metric']} {shown} on the val split, "
                f"worse than its student with {own}. A better teacher, or training without it, may give more"
            )


def _how_much_worse(teacher: dict[str, Any], accuracy: float | None) -> float | None:
    metric = as_metric(teacher["metric"])
    if accuracy is None or metric is None:
        return None
    return drop_of(metric, teacher["accuracy"], accuracy)

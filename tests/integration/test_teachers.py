# SPDX-License-Identifier: Apache-2.0
"""--teacher: a student of another architecture learns from the outputs of models in files, then is pruned and QAT."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tf_keras
from messages import refused, warned

import tfq
from tfq import workflows
from tfq.config import TeacherConfig, TrainingConfig
from tfq.data import load_split
from tfq.workflows.teachers import load_teachers, taught

CLASSES, FEATURES = 4, 8


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Write examples of a linear problem, whose training labels are useless, and a teacher that solves it."""
    folder = tmp_path_factory.mktemp("teachers")
    rng = np.random.default_rng(0)
    solution = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    x = rng.normal(size=(1200, FEATURES)).astype(np.float32)
    y = (x @ solution).argmax(axis=1)
    useless = rng.integers(0, CLASSES, 600)
    np.savez(
        folder / "d.npz",
        x_train=x[:600],
        y_train=useless,
        x_val=x[600:900],
        y_val=y[600:900],
        x_test=x[900:],
        y_test=y[900:],
    )
    inputs = keras.Input((FEATURES,))
    dense = keras.layers.Dense(CLASSES, activation="softmax", name="solution")
    teacher = keras.Model(inputs, dense(keras.layers.Dropout(0.5)(inputs)), name="teacher")
    dense.set_weights([4 * solution, np.zeros(CLASSES, np.float32)])
    teacher.save(folder / "teacher.keras")
    dense.set_weights([4 * solution / 100, np.zeros(CLASSES, np.float32)])
    teacher.save(folder / "teacher_of_hundreds.keras")
    return folder


def student(keras_module):
    return keras_module.Sequential(
        [
            keras_module.Input((FEATURES,)) if keras_module is keras else keras_module.layers.Input((FEATURES,)),
            keras_module.layers.Dense(16, activation="relu"),
            keras_module.layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def config_of(problem, tmp_path, model, **teacher):
    training = TrainingConfig(epochs=4, batch_size=50, teacher=TeacherConfig(**teacher))
    path = tmp_path / ("student.h5" if model.__module__.startswith("tf_keras") else "student.keras")
    model.save(path)
    data = tfq.DataConfig(source=f"npz:{problem / 'd.npz'}")
    return tfq.RunConfig(model=str(path), data=data, training=training)


def test_a_student_learns_from_teachers_what_the_labels_do_not_say(problem, tmp_path, tfq_here):
    student(keras).save(tmp_path / "s.keras")
    useless = student(tf_keras)
    useless.save(tmp_path / "useless.h5")
    done = tfq_here(
        "train", f"--model={tmp_path / 's.keras'}", f"--data=npz:{problem / 'd.npz'}",
        f"--teacher={problem / 'teacher.keras'}", f"--teacher={tmp_path / 'useless.h5'}", "--teacher.weight=1",
        "--epochs=4", "--batch_size=50", "--learning_rate=0.05", f"--out={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["test_accuracy"] > 0.85 and "once" in record["history"]["teacher_outputs"]
    teacher, other = record["teachers"]
    assert teacher["accuracy"] == 1.0 and teacher["file"] == "teacher.keras" and teacher["parameters"] == 36
    # The teacher that is worse than its student is named in a warning.
    assert other["accuracy"] < 0.6 and "useless.h5" in done.stderr
    assert type(tfq.load_model(tmp_path / "s_trained.keras")).__module__.startswith("keras.")
    # The best linear fit to the labels says nothing: they are independent of the inputs.
    with np.load(problem / "d.npz") as arrays:
        fit = np.linalg.lstsq(arrays["x_train"], np.eye(CLASSES)[arrays["y_train"]], rcond=None)[0]
        assert ((arrays["x_test"] @ fit).argmax(axis=1) == arrays["y_test"]).mean() < 0.6


def test_a_tf_keras_student_is_trained_itself(problem, tmp_path):
    model = student(tf_keras)
    config = config_of(problem, tmp_path, model, files=(str(problem / "teacher.keras"),))
    with (
        refused(tfq.TfqError, field="fit"),  # no training step ran
        taught(model, config.training.teacher, config, load_split(config.data, "val")) as lesson,
    ):
        assert lesson.student is model


def loaded(problem, model, files, **teacher):
    """Return the teachers for a student, and what the record says of them."""
    data = tfq.DataConfig(source=f"npz:{problem / 'd.npz'}")
    config = TeacherConfig(files=tuple(map(str, files)), **teacher)
    return load_teachers(config, tfq.RunConfig(data=data), model, load_split(data, "val"), field="training.teacher")


def test_a_teacher_of_other_inputs_is_noticed_and_can_be_scaled(problem):
    files = (problem / "teacher.keras", problem / "teacher_of_hundreds.keras")
    with warned("teacher_of_hundreds.keras"):
        _, facts = loaded(problem, student(tf_keras), files, scale=(1.0, -100.0))
    assert facts[0]["accuracy"] == 1 and facts[1]["accuracy"] < 0.3
    teachers, facts = loaded(problem, student(tf_keras), files, scale=(1.0, 100.0), offset=(0.0, 0.0))
    assert [(item["accuracy"], item["scale"]) for item in facts] == [(1.0, 1.0), (1.0, 100.0)]
    x = np.load(problem / "d.npz")["x_val"]
    np.testing.assert_allclose(teachers[0](x), teachers[1](x), atol=1e-5)


@pytest.mark.parametrize("name", ["scale", "offset"])
def test_there_is_one_value_for_all_teachers_or_one_for_each(problem, name):
    files = (problem / "teacher.keras",) * 3
    with refused(tfq.InputError, field=f"training.teacher.{name}", expected=(1, 3), got=(1.0, 2.0)):
        loaded(problem, student(tf_keras), files, **{name: (1.0, 2.0)})


def images(size, channels=1):
    layers = tf_keras.layers
    image = layers.Input((size, size, channels), name=f"image_{size}")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, strides=2, activation="relu")(image))
    return tf_keras.Model(image, layers.Dense(CLASSES, "softmax")(x), name=f"of_{size}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Write images of 8 x 8 pixels as val split."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    np.savez(folder / "d.npz", x_val=rng.normal(size=(40, 8, 8, 1)).astype(np.float32), y_val=np.arange(40) % CLASSES)
    return folder


def test_images_are_resized_bilinearly_for_a_larger_teacher(pictures):
    import tensorflow as tf

    tf_keras.utils.set_random_seed(0)
    own, x = images(14), np.load(pictures / "d.npz")["x_val"]
    own.save(pictures / "large.h5")
    with warned("14"):
        (teacher,), (facts,) = loaded(pictures, images(8), [pictures / "large.h5"], scale=(3.0,))
    assert facts["resize"] == [14, 14] and teacher.inputs[0].shape[1:] == (8, 8, 1)
    resized = tf.image.resize(x, (14, 14), method="bilinear")
    np.testing.assert_allclose(teacher(x), own(3 * resized), atol=1e-6)
    assert np.abs(teacher(x) - own(3 * tf.image.resize(x, (14, 14), method="nearest"))).max() > 1e-3


def test_inputs_that_are_not_images_of_another_size_are_refused(problem, pictures):
    images(8, channels=3).save(pictures / "color.h5")
    with refused(tfq.InputError, field="training.teacher", expected=[(8, 8, 1)], limit="teacher-inputs"):
        loaded(pictures, images(8), [pictures / "color.h5"])
    wider = tf_keras.Sequential([tf_keras.layers.Input((9,)), tf_keras.layers.Dense(CLASSES)])
    wider.save(problem / "wider.h5")
    with refused(tfq.InputError, field="training.teacher", expected=[(8,)], got=[(9,)], limit="teacher-inputs"):
        loaded(problem, student(tf_keras), [problem / "wider.h5"])


def test_inputs_of_the_same_names_are_passed_by_name(tmp_path):
    def two_inputs(order):
        ends = {name: tf_keras.layers.Input((3,), name=name) for name in ("left", "right")}
        outputs = tf_keras.layers.Dense(2, "softmax", name="out")(
            tf_keras.layers.Subtract()([ends["left"], ends["right"]])
        )
        return tf_keras.Model([ends[name] for name in order], outputs)

    own = two_inputs(("right", "left"))
    own.save(tmp_path / "t.h5")
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(9, 3)).astype(np.float32) for name in ("left", "right")}
    named = {f"x_val.{name}": array for name, array in arrays.items()}
    np.savez(tmp_path / "d.npz", **named, y_val=np.arange(9) % 2)
    (teacher,), _ = loaded(tmp_path, two_inputs(("left", "right")), [tmp_path / "t.h5"])
    expected = own([arrays["right"], arrays["left"]])
    np.testing.assert_allclose(teacher([arrays["left"], arrays["right"]]), expected, atol=1e-6)


def test_a_teacher_with_other_classes_is_refused_with_both_shapes(problem, tmp_path):
    other = tf_keras.Sequential([tf_keras.layers.Input((FEATURES,)), tf_keras.layers.Dense(7, activation="softmax")])
    other.save(tmp_path / "other.h5")
    config = config_of(problem, tmp_path, student(tf_keras), files=(str(tmp_path / "other.h5"),))
    with refused(tfq.InputError, field="teacher", expected=[(4,)], got=[(7,)]):
        workflows.train(config)


def test_a_tflite_is_no_teacher(problem, tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"x")
    config = config_of(problem, tmp_path, student(tf_keras), files=(str(tmp_path / "m.tflite"),))
    with refused(tfq.InputError, field="training.teacher", got=str(tmp_path / "m.tflite")):
        workflows.train(config)


def test_pruning_and_qat_learn_from_the_teacher_too(problem, tmp_path, tfq_here):
    student(tf_keras).save(tmp_path / "s.h5")
    data = f"--data=npz:{problem / 'd.npz'}"
    done = tfq_here(
        "compress", f"--model={tmp_path / 's.h5'}", data, f"--teacher={problem / 'teacher.keras'}",
        "--teacher.weight=1", "--train.epochs=4", "--train.batch_size=50", "--train.learning_rate=0.05",
        "--prune.final_sparsity=0.3", f"--out={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "compress.json").read_text())
    assert record["teachers"][0]["accuracy"] == 1.0
    assert "distillation_loss" in record["history"]["prune"] and "distillation_loss" in record["history"]["qat"]
    done = tfq_here("convert", f"--model={tmp_path / 's_pruned_qat.h5'}", data, f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    record = tfq.evaluate(str(tmp_path / "s_pruned_qat_int8.tflite"), f"npz:{problem / 'd.npz'}")
    assert record.accuracy > 0.8


def test_a_teacher_and_distillation_from_the_own_model_exclude_each_other(problem, tmp_path):
    qat = tfq.QATConfig(distillation=tfq.DistillationConfig(enabled=True))
    teacher = TeacherConfig(files=(str(problem / "teacher.keras"),))
    config = dataclasses.replace(
        config_of(problem, tmp_path, student(tf_keras)), compression=tfq.CompressionConfig(qat=qat, teacher=teacher)
    )
    with refused(tfq.InputError, field="compression.qat.distillation.enabled"):
        workflows.compress(student(tf_keras), config)

# SPDX-License-Identifier: Apache-2.0
"""--teacher: a student of another architecture learns from the outputs of models in files, then is pruned and QAT."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tf_keras
from messages import refused

import tfq
from tfq import workflows
from tfq.config import TeacherConfig, TrainingConfig

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
    training = TrainingConfig(epochs=12, learning_rate=0.01, teacher=TeacherConfig(**teacher))
    path = tmp_path / ("student.h5" if model.__module__.startswith("tf_keras") else "student.keras")
    model.save(path)
    data = tfq.DataConfig(source=f"npz:{problem / 'd.npz'}")
    return tfq.RunConfig(model=str(path), data=data, training=training)


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_a_student_learns_from_the_teacher_what_the_labels_do_not_say(problem, tmp_path, library):
    config = config_of(problem, tmp_path, student(library), files=(str(problem / "teacher.keras"),), weight=1.0)
    model, details = workflows.train(config)
    assert details["test_accuracy"] > 0.85
    assert type(model).__module__.startswith("keras" if library is keras else "tf_keras")
    (teacher,) = details["teachers"]
    assert teacher["accuracy"] == 1.0 and teacher["file"] == "teacher.keras" and teacher["parameters"] == 36
    if library is tf_keras:
        alone = dataclasses.replace(config, training=dataclasses.replace(config.training, teacher=TeacherConfig()))
        assert workflows.train(alone)[1]["test_accuracy"] < 0.6


def test_a_teacher_of_other_inputs_is_noticed_and_can_be_scaled(problem, tmp_path):
    path = str(problem / "teacher_of_hundreds.keras")
    wrong = config_of(problem, tmp_path, student(tf_keras), files=(path,), scale=-100.0, weight=1.0)
    with pytest.warns(tfq.TfqWarning, match="teacher_of_hundreds"):
        workflows.train(wrong)
    right = config_of(problem, tmp_path, student(tf_keras), files=(path,), scale=100.0, weight=1.0)
    assert workflows.train(right)[1]["test_accuracy"] > 0.85


def test_a_teacher_worse_than_its_student_is_named(problem, tmp_path):
    useless = student(tf_keras)
    useless.save(tmp_path / "useless.h5")
    files = (str(problem / "teacher.keras"), str(tmp_path / "useless.h5"))
    config = config_of(problem, tmp_path, student(tf_keras), files=files, weight=1.0)
    with pytest.warns(tfq.TfqWarning, match=r"useless\.h5"):
        _, details = workflows.train(config)
    assert [item["file"] for item in details["teachers"]] == ["teacher.keras", "useless.h5"]


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
    student(keras).save(tmp_path / "s.keras")
    flags = [f"--data=npz:{problem / 'd.npz'}", f"--teacher={problem / 'teacher.keras'}", "--teacher.weight=1"]
    done = tfq_here(
        "train", f"--model={tmp_path / 's.keras'}", *flags, "--epochs=12", "--learning_rate=0.01", f"--out={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    done = tfq_here(
        "compress", f"--model={tmp_path / 's_trained.keras'}", *flags, "--train.epochs=3", "--train.learning_rate=0.01",
        "--prune.final_sparsity=0.3", f"--out={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "compress.json").read_text())
    assert record["teachers"][0]["accuracy"] == 1.0
    assert "distillation_loss" in record["history"]["prune"] and "distillation_loss" in record["history"]["qat"]
    done = tfq_here(
        "convert",
        f"--model={tmp_path / 's_trained_pruned_qat.h5'}",
        f"--data=npz:{problem / 'd.npz'}",
        f"--out={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    record = tfq.evaluate(str(tmp_path / "s_trained_pruned_qat_int8.tflite"), f"npz:{problem / 'd.npz'}")
    assert record.accuracy > 0.8


def test_a_teacher_and_distillation_from_the_own_model_exclude_each_other(problem, tmp_path):
    qat = tfq.QATConfig(distillation=tfq.DistillationConfig(enabled=True))
    teacher = TeacherConfig(files=(str(problem / "teacher.keras"),))
    config = dataclasses.replace(
        config_of(problem, tmp_path, student(tf_keras)), compression=tfq.CompressionConfig(qat=qat, teacher=teacher)
    )
    with refused(tfq.InputError, field="compression.qat.distillation.enabled"):
        workflows.compress(student(tf_keras), config)

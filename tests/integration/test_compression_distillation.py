# SPDX-License-Identifier: Apache-2.0
"""Distillation: the distance by NumPy, the gradient in training, and a student without traces of it."""

import numpy as np
import pytest
from messages import refused, warned
from small_models import fit_briefly, fit_for, noise, small_model

from tfq.compression import prune_model, qat_model
from tfq.compression.distillation import distance, distilled
from tfq.compression.graph import cloned
from tfq.compression.output_losses import output_kind
from tfq.compression.qat import qat
from tfq.config import DistillationConfig, PruneConfig, QATConfig
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_tf_keras


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def hinton(student, teacher, temperature):
    """Return temperature^2 * KL of the softened classes per example, by hand."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(axis=-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kinds", [("logits", "logits"), ("softmax", "softmax"), ("softmax", "logits")])
def test_the_distance_is_hintons_whether_of_logits_or_of_probabilities(temperature, kinds):
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 5, size=(6, 4)).astype("float32") for _ in range(2)]
    outputs = [softmax(item) if kind == "softmax" else item for item, kind in zip(logits, kinds, strict=True)]
    got = np.asarray(distance(*outputs, kinds, temperature))
    np.testing.assert_allclose(got, hinton(*logits, temperature), rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(np.asarray(distance(outputs[0], outputs[0], kinds[:1] * 2, temperature)), 0, atol=1e-6)


@pytest.mark.parametrize("kinds", [("sigmoid", "sigmoid"), ("logits", "logits"), ("logits", "sigmoid")])
def test_of_one_unit_the_classes_are_yes_and_no(kinds):
    logits = [np.array([[-2.0], [0.5], [3.0]], np.float32), np.array([[1.0], [0.5], [-1.0]], np.float32)]
    outputs = [1 / (1 + np.exp(-item)) if kind == "sigmoid" else item for item, kind in zip(logits, kinds, strict=True)]
    pairs = [np.concatenate([item, np.zeros_like(item)], axis=-1) for item in logits]
    got = np.asarray(distance(*outputs, kinds, 2.0))
    np.testing.assert_allclose(got.ravel(), hinton(*pairs, 2.0), rtol=1e-4, atol=1e-6)


def test_a_probability_of_zero_gives_no_infinite_gradient():
    import tensorflow as tf

    logits = tf.Variable([[0.0, 200.0, -200.0]])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(distance(tf.nn.softmax(logits), tf.constant([[1.0, 0.0, 0.0]]), ("softmax",) * 2, 4.0))
    assert np.isfinite(float(value)) and np.isfinite(np.asarray(tape.gradient(value, logits))).all()


def test_values_are_held_together_by_half_their_squared_difference():
    got, expected = np.array([[1.0, 2.0]], np.float32), np.array([[0.0, 4.0]], np.float32)
    assert np.asarray(distance(got, expected, ("values", "values"), 4.0)) == pytest.approx([(1 + 4) / 2 / 2])


def test_what_an_output_went_through_is_read_off_the_graph():
    keras = import_tf_keras()
    layers, image = keras.layers, keras.Input((4,))
    for expected, tensor in {
        "softmax": layers.Reshape((3, 1))(layers.Dense(3, "softmax")(image)),
        "sigmoid": layers.Activation("sigmoid")(layers.Dense(3)(image)),
        "linear": layers.Activation("linear")(layers.Dense(3)(image)),
        "values": layers.Dense(3, "relu")(image),
    }.items():
        assert output_kind(tensor) == expected
    assert output_kind(layers.Softmax()(image)) == "softmax"


def test_the_step_that_training_takes_is_that_of_both_losses():
    keras = import_tf_keras()
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(3, "softmax", name="head")(image))
    teacher, _ = cloned(model)
    rng = np.random.default_rng(0)
    teacher.set_weights([rng.normal(size=weight.shape) for weight in teacher.get_weights()])
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    kernel, bias = model.get_weights()
    with distilled(model, teacher, DistillationConfig(enabled=True, temperature=3.0, weight=0.25)) as student:
        student.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = student.fit(x, y, batch_size=8, epochs=1, verbose=0, validation_data=(x, y)).history
    # d cross-entropy / d logits = p - onehot; d T^2 KL / d logits = T (q_T - p_T).
    logits, theirs = x @ kernel + bias, x @ teacher.get_weights()[0] + teacher.get_weights()[1]
    hard = softmax(logits) - np.eye(3)[y]
    soft = 3.0 * (softmax(logits / 3.0) - softmax(theirs / 3.0))
    gradient = (0.75 * hard + 0.25 * soft) / 8
    np.testing.assert_allclose(model.get_weights()[0], kernel - 0.1 * x.T @ gradient, rtol=1e-3, atol=1e-5)
    assert history["distillation_loss"] == pytest.approx([hinton(logits, theirs, 3.0).mean()], rel=1e-3)
    own = -np.log(softmax(logits)[np.arange(8), y]).mean()
    assert history["loss"] == pytest.approx([own], rel=1e-3)
    assert "val_loss" in history and "val_distillation_loss" not in history


def two_dense_layers(seed):
    keras = import_tf_keras()
    image = keras.Input((4,))
    hidden = keras.layers.Dense(5, name="hidden")(image)
    model = keras.Model(image, keras.layers.Dense(3, name="head")(hidden))
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
    return model


def test_layers_that_are_named_are_drawn_towards_the_teachers():
    keras, (model, teacher) = import_tf_keras(), (two_dense_layers(0), two_dense_layers(1))
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.normal(size=(8, 3)).astype("float32")
    kernel, bias, head, _ = model.get_weights()
    # The loss has no weight, and the outputs' distance is negligible: only the layer's distance trains.
    config = DistillationConfig(enabled=True, weight=1.0, layers=("hid*",), layers_weight=1e6)
    with distilled(model, teacher, config) as student:
        student.compile(keras.optimizers.SGD(1e-7), "mse")
        history = student.fit(x, y, batch_size=8, epochs=1, verbose=0, validation_data=(x, y)).history
    theirs = x @ teacher.get_weights()[0] + teacher.get_weights()[1]
    difference = x @ kernel + bias - theirs
    squares = (theirs**2).sum()
    np.testing.assert_allclose(
        model.get_weights()[0], kernel - 0.1 * x.T @ (2 * difference / squares), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(model.get_weights()[2], head, atol=1e-5)
    assert history["distillation_layers_loss"] == pytest.approx([(difference**2).sum() / squares], rel=1e-4)
    assert "val_distillation_layers_loss" not in history


def test_layers_of_a_qat_model_are_addressed_by_their_original_names():
    config = distilling(layers=("relu",), layers_weight=0.5)
    seen = []

    def fit(model, callbacks):
        fit_briefly(model, callbacks)
        seen.extend(model.history.history)

    qat_model(small_model(), fit, config, calibration=noise(small_model()))
    assert "distillation_layers_loss" in seen


def test_a_pattern_of_incomparable_layers_is_refused_with_the_reason():
    keras = import_tf_keras()
    image = keras.Input((4,))
    wider = keras.Model(image, keras.layers.Dense(3, name="head")(keras.layers.Dense(6, name="hidden")(image)))
    student = distilled(two_dense_layers(0), wider, DistillationConfig(enabled=True, layers=("hidden",)))
    with (
        refused(InputError, field="compression.qat.distillation.layers", got="hidden", word="(6,)"),
        student,
    ):
        pass
    with refused(InputError, field="compression.prune.distillation.layers", got="hiden", word="mean"):
        prune_model(
            two_dense_layers(0),
            fit_briefly,
            PruneConfig(distillation=DistillationConfig(enabled=True, layers=("hiden",))),
        )


def test_the_student_has_the_models_layers_and_none_of_the_teachers():
    model, teacher = small_model(), small_model()
    with distilled(model, teacher, DistillationConfig(enabled=True)) as student:
        assert student.name == model.name and [*student.layers] == [*model.layers]
        assert [id(weight) for weight in student.weights] == [id(weight) for weight in model.weights]
        fit_for()(student, [])
    assert len(student.weights) == len(model.weights)
    untouched = small_model()
    assert all(np.array_equal(a, b) for a, b in zip(teacher.get_weights(), untouched.get_weights(), strict=True))


def distilling(**settings):
    return QATConfig(distillation=DistillationConfig(enabled=True, **settings))


def lesson():
    """Return a model, a teacher that mostly predicts class 1, examples, and a fit of them to class 0."""
    model, teacher = small_model(), small_model()
    head = teacher.get_layer("head")
    head.set_weights([head.get_weights()[0] * 20, np.array([-1.0, 2.0, 0.0], np.float32)])
    x = noise(model, n=64).inputs["x"]

    def fit(student, callbacks):
        keras = import_tf_keras()
        student.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
        student.fit(x, np.zeros(64, int), batch_size=16, epochs=8, verbose=0, callbacks=callbacks)

    return model, teacher, x, fit


def test_qat_with_distillation_moves_the_student_towards_the_teacher(tmp_path):
    model, teacher, x, fit = lesson()
    near = qat_model(model, fit, distilling(weight=1.0), calibration=x, teacher=teacher)
    # With this weight, nothing is learned from the labels, which are all 0.
    expected = np.asarray(teacher(x)).argmax(axis=1)
    assert (expected == 1).mean() > 0.8 and (np.asarray(near(x)).argmax(axis=1) == expected).mean() > 0.8
    plain = qat.quantized(model).model
    assert type(near) is type(plain) and near.get_config()["layers"] == plain.get_config()["layers"]
    assert [(w.name, w.shape) for w in near.weights] == [(w.name, w.shape) for w in plain.weights]
    with warned("HDF5", UserWarning):
        near.save(tmp_path / "near.h5")
    from tfq.keras_bridge import load_model

    np.testing.assert_array_equal(np.asarray(load_model(tmp_path / "near.h5")(x)), np.asarray(near(x)))


def test_pruning_with_distillation_leaves_nothing_of_the_teacher():
    model, teacher, x, fit = lesson()
    config = PruneConfig(distillation=DistillationConfig(enabled=True, weight=1.0), end_step=8, frequency=1)
    near = prune_model(model, fit, config, teacher=teacher)
    # With this weight, nothing is learned from the labels, which are all 0.
    expected = np.asarray(teacher(x)).argmax(axis=1)
    assert (expected == 1).mean() > 0.8 and (np.asarray(near(x)).argmax(axis=1) == expected).mean() > 0.8
    assert type(near) is type(model) and near.get_config()["layers"] == model.get_config()["layers"]
    kernels = (near.get_layer(name).kernel.numpy() for name in ("conv", "head"))
    assert [(kernel == 0).mean() for kernel in kernels] == pytest.approx([0.5, 0.5], abs=0.05)


def test_several_teachers_use_mean_distance_and_layers_of_the_first():
    keras, (model, *teachers) = import_tf_keras(), [two_dense_layers(seed) for seed in range(4)]
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    logits, *theirs = (item.predict(x, verbose=0) for item in (model, *teachers))
    config = DistillationConfig(enabled=True, temperature=2.0, weight=1.0, layers=("hidden",), layers_weight=0.5)
    hidden = [x @ item.get_weights()[0] + item.get_weights()[1] for item in (model, teachers[0])]
    head, bias = model.get_weights()[2:]
    with distilled(model, teachers, config) as student:
        student.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = student.fit(x, y, batch_size=8, epochs=1, verbose=0).history
    expected = np.mean([hinton(logits, item, 2.0).mean() for item in theirs])
    assert history["distillation_loss"] == pytest.approx([expected], rel=1e-3)
    message = ((hidden[0] - hidden[1]) ** 2).sum() / (hidden[1] ** 2).sum()
    assert history["distillation_layers_loss"] == pytest.approx([message], rel=1e-3)
    # The gradient is that of the distance to their average output.
    gradient = 2.0 * (softmax(logits / 2.0) - np.mean([softmax(item / 2.0) for item in theirs], axis=0)) / 8
    np.testing.assert_allclose(model.get_weights()[2], head - 0.1 * hidden[0].T @ gradient, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model.get_weights()[3], bias - 0.1 * gradient.sum(axis=0), rtol=1e-3, atol=1e-5)


def test_a_training_loop_that_ignores_the_teacher_is_an_error():
    def fit(model, callbacks):
        keras = import_tf_keras()
        fit_briefly(keras.Model(model.inputs, model.outputs), callbacks)

    with refused(TfqError, field="fit", word="distillation"):
        qat_model(small_model(), fit, distilling())


def test_a_teacher_of_another_shape_and_an_unused_one_are_refused():
    keras = import_tf_keras()
    image = keras.Input((6, 6, 2))
    other = keras.Model(image, keras.layers.Dense(5)(keras.layers.Flatten()(image)), name="other")
    with refused(InputError, field="teacher", expected=[(3,)], got=[(5,)], word="'other'"):
        qat_model(small_model(), fit_for(), distilling(), teacher=other)
    with refused(InputError, field="teacher", expected=[(3,)], got=[(5,)], word="'other'"):
        qat_model(small_model(), fit_for(), distilling(), teacher=[small_model(), other])
    with refused(InputError, field="compression.qat.distillation.enabled", expected=True):
        qat_model(small_model(), fit_for(), teacher=other)
    with refused(InputError, field="teacher", got=[(5,)], word="prune"):
        distillation = DistillationConfig(enabled=True)
        prune_model(small_model(), fit_for(), PruneConfig(distillation=distillation), teacher=other)
    with refused(InputError, field="compression.prune.distillation.enabled", expected=True):
        prune_model(small_model(), fit_for(), teacher=other)

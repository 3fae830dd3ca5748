# SPDX-License-Identifier: Apache-2.0
"""Training of models with several outputs, compared with plain Keras: losses, weights, labels, distillation."""

import json

import numpy as np
import pytest
from messages import refused

from tfq.compression import qat_model
from tfq.compression.distillation import distilled
from tfq.compression.output_losses import OutputLoss, default_loss
from tfq.compression.training import deterministic, train_model
from tfq.config import DistillationConfig, QATConfig, TrainConfig
from tfq.data import Split, SplitStream
from tfq.data.output_labels import join_labels
from tfq.errors import InputError
from tfq.keras_bridge import import_keras, import_tf_keras

KINDS = {"tf_keras": import_tf_keras, "keras": import_keras}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
KIND, BOX = RNG.integers(0, 3, 24), RNG.normal(size=(24, 2)).astype("float32")
# `fit` of one batch does not depend on the order of the examples.
SETTINGS = TrainConfig(epochs=2, batch_size=24, learning_rate=0.01)


def split(**labels):
    return Split(name="train", inputs={"x": X}, labels=join_labels(labels, "labels"), source="arrays")


def two_heads(keras, names=("kind", "box"), as_dict=False):
    with deterministic(1):
        inputs = keras.Input((4,), name="x")
        hidden = keras.layers.Dense(6, activation="relu", name="hidden")(inputs)
        kind = keras.layers.Dense(3, activation="softmax", name=names[0])(hidden)
        box = keras.layers.Dense(2, name=names[1])(hidden)
        return keras.Model(inputs, {"kind": kind, "box": box} if as_dict else [kind, box], name="heads")


def train_by_keras(keras, model, losses, factors):
    """Train two steps with Keras' own losses: the oracle of the tests."""
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 2)
    with deterministic(0):
        model.compile(
            keras.optimizers.Adam(schedule), loss=losses, loss_weights=factors, metrics=None, jit_compile=False
        )
        model.fit(X, [KIND, BOX], batch_size=24, epochs=2, verbose=0)


def assert_same_weights(one, other):
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_weights_of_outputs_train_as_plain_keras(kind):
    keras = KINDS[kind]()
    losses = [keras.losses.SparseCategoricalCrossentropy(), keras.losses.Huber()]
    plain = two_heads(keras)
    train_by_keras(keras, plain, losses, [1.0, 0.25])
    model = two_heads(keras)
    config = TrainConfig(**{**SETTINGS.to_dict(), "loss": ("box=huber",), "loss_weights": ("box=0.25",)})
    data = split(kind=np.eye(3)[KIND], box=BOX)  # one-hot rows are class numbers
    history = train_model(model, data, data, config)
    assert_same_weights(model.get_weights(), plain.get_weights())
    assert history.pop("loss_function") == {
        "kind": "sparse_categorical_crossentropy from probabilities",
        "box": "huber, weight 0.25",
    }
    names = {"loss", "kind_loss", "box_loss", "kind_accuracy", "box_mae"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert history["loss"][0] == pytest.approx(history["kind_loss"][0] + 0.25 * history["box_loss"][0], rel=1e-5)
    if kind == "tf_keras":  # negative control: another factor gives other weights
        other = two_heads(keras)
        train_model(other, data, None, SETTINGS)
        assert not np.allclose(other.get_weights()[0], plain.get_weights()[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_in_a_dict_are_trained_by_their_keys(kind):
    keras = KINDS[kind]()
    losses = [keras.losses.SparseCategoricalCrossentropy(), keras.losses.MeanSquaredError()]
    plain = two_heads(keras)
    train_by_keras(keras, plain, losses, None)
    # Each layer has the other output's name.
    model, data = two_heads(keras, ("box", "kind"), as_dict=True), split(kind=KIND, box=BOX)
    stream = SplitStream(
        name="train",
        source="arrays",
        num_examples=24,
        read=lambda start, stop: iter([data]),
        piece_examples=24,
        seekable=True,
    )
    history = train_model(model, stream, None, SETTINGS)
    for name, counterpart in (("hidden", "hidden"), ("box", "kind"), ("kind", "box")):
        assert_same_weights(model.get_layer(name).get_weights(), plain.get_layer(counterpart).get_weights())
    assert {"kind_accuracy", "box_mae"} <= set(history)


def test_an_output_without_a_loss_keeps_its_weights():
    model = two_heads(import_tf_keras())
    before = model.get_layer("box").get_weights()
    config = TrainConfig(epochs=1, loss=("box=none",))
    unnamed = Split(name="train", inputs={"x": X}, labels=KIND, source="arrays")
    history = train_model(model, unnamed, None, config)
    assert history["loss_function"]["box"] == "none"
    assert_same_weights(model.get_layer("box").get_weights(), before)


def test_labels_and_losses_that_do_not_fit_the_outputs_are_refused():
    keras = import_tf_keras()
    model, short = two_heads(keras), np.zeros((24, 3))
    cases = [
        (split(kind=KIND), {}, {"field": "data", "expected": ("kind", "box"), "got": ("kind",)}),
        (split(kind=KIND, box=BOX, pose=BOX), {}, {"field": "labels", "got": "pose"}),
        (split(kind=KIND, box=short), {"loss": ("box=huber",)}, {"field": "data", "word": "huber"}),
        (split(kind=KIND + 1, box=BOX), {}, {"field": "data", "expected": (0, 2), "got": (1, 3)}),
        (split(kind=KIND, box=BOX), {"loss": ("pose=huber",)}, {"field": "training.loss", "got": "pose=huber"}),
        (split(kind=KIND, box=BOX), {"loss_weights": ("box=x",)}, {"field": "training.loss_weights", "got": "x"}),
        (split(kind=KIND, box=BOX), {"loss": ("none",)}, {"field": "training.loss", "got": ("none",)}),
    ]
    for data, settings, error in cases:
        with refused(InputError, **error):
            train_model(model, data, None, TrainConfig(epochs=1, **settings))
    with refused(InputError, field="data", expected=("kind", "box"), word="dict", limit="output-labels"):
        train_model(model, Split(name="train", inputs={"x": X}, labels=KIND, source="arrays"))
    with refused(InputError, field="TrainConfig.loss", word="huber"):
        TrainConfig(loss=("box=hubber",))


@pytest.mark.parametrize(
    ("shape", "kind", "labels", "expected"),
    [
        ((3,), "linear", np.arange(3), "sparse_categorical_crossentropy"),
        ((3,), "linear", np.eye(3), "sparse_categorical_crossentropy"),
        ((2, 2, 3), "softmax", np.zeros((5, 2, 2), "uint8"), "sparse_categorical_crossentropy"),
        ((1,), "sigmoid", np.array([0, 1]), "binary_crossentropy"),
        ((3,), "sigmoid", np.array([[1, 1, 0]]), "binary_crossentropy"),
        ((2,), "linear", np.array([[0.5, 7.0]]), "mean_squared_error"),
        ((1,), "linear", np.array([0.5, 7.0]), "mean_squared_error"),
    ],
)
def test_the_default_loss_follows_from_the_labels(shape, kind, labels, expected):
    output = OutputLoss(output="out", loss="none", shape=shape, kind=kind)
    assert default_loss(output, labels, "data") == expected


@pytest.mark.parametrize(
    ("kind", "labels"), [("softmax", [[0.5, 7.0]]), ("linear", [[0.25, 0.75]]), ("linear", [[2, 5]])]
)
def test_labels_that_may_be_classes_or_values_need_a_loss(kind, labels):
    output = OutputLoss(output="out", loss="none", shape=(2,), kind=kind)
    with refused(InputError, field="training.loss", word="out=mean_squared_error", limit="ambiguous-labels"):
        default_loss(output, np.array(labels), "data")


def test_distillation_weighs_the_distances_like_the_losses():
    keras = import_tf_keras()
    teacher, student = two_heads(keras), two_heads(keras)
    teacher.set_weights([weight + 0.3 for weight in teacher.get_weights()])
    settings = DistillationConfig(enabled=True, weight=1.0, temperature=1.0)
    kind, box = (np.asarray(values) for values in student(X))
    kind_of_teacher, box_of_teacher = (np.asarray(values) for values in teacher(X))
    with distilled(student, teacher, settings):
        config = TrainConfig(epochs=1, batch_size=24, loss_weights=("box=0.5",))
        history = train_model(student, split(kind=KIND, box=BOX), None, config)
    divergence = float(keras.losses.KLDivergence()(kind_of_teacher, kind))
    expected = divergence + 0.5 * ((box - box_of_teacher) ** 2).mean() / 2
    assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-4)


def test_qat_trains_both_outputs_and_keeps_their_names():
    model = two_heads(import_tf_keras())
    histories = []

    def fit(qat, callbacks):
        histories.append(train_model(qat, split(kind=KIND, box=BOX), None, SETTINGS, callbacks=callbacks))

    trained = qat_model(model, fit, QATConfig(num_calibration_samples=8), calibration=X)
    assert set(histories[0]["loss_function"]) == {"kind", "box"}
    assert {"kind_loss", "box_mae"} <= set(json.loads(json.dumps(histories[0])))
    assert [tuple(output.shape) for output in trained.outputs] == [(None, 3), (None, 2)]

# SPDX-License-Identifier: Apache-2.0
"""The training loop: deterministic in either Keras, with clear errors for models that it cannot train."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from messages import refused

from tfq.compression.output_losses import outputs_probabilities
from tfq.compression.training import deterministic, train_model
from tfq.config import DataConfig, TrainConfig
from tfq.data import Split, load_split
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_keras, import_tf_keras
from tfq.models import build

KINDS = {"tf_keras": import_tf_keras, "keras": import_keras}


def dense(keras, units, activation=None, name="small"):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, activation, name="head")], name=name)


def split(labels, x=None, name="train"):
    labels = np.asarray(labels)
    x = np.random.default_rng(0).normal(size=(len(labels), 4)).astype("float32") if x is None else x
    return Split(name=name, inputs={"x": x}, labels=labels, source="arrays")


TRAIN_TWICE = """
import hashlib, sys
import numpy as np
from tfq.config import TrainConfig
from tfq.data import Split
from tfq.keras_bridge import import_keras, import_tf_keras
from tfq.models import build
from tfq.compression.training import deterministic, train_model

rng = np.random.default_rng(0)
data = Split(name="train", inputs={"x": rng.uniform(0, 16, (70, 8, 8, 1)).astype("float32")},
             labels=rng.integers(0, 10, 70), source="arrays")
np.random.rand(int(sys.argv[1])), np.random.default_rng().normal()
for make in (import_tf_keras, import_keras):
    with deterministic(5):
        model = build("digits_cnn", make())
    train_model(model, data, None, TrainConfig(epochs=1, batch_size=16), seed=5)
    print(hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest())
"""


def test_two_processes_with_one_seed_train_identical_weights(capsys, monkeypatch):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", TRAIN_TWICE, "1"]
    fresh = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300).stdout.split()
    # The other one is this process, in any earlier state.
    monkeypatch.setattr(sys, "argv", ["-c", "7"])
    exec(TRAIN_TWICE, {})
    assert len(fresh) == 2 and capsys.readouterr().out.split() == fresh


def test_another_seed_trains_other_weights():
    data = split(np.arange(40) % 3)
    trained = []
    for seed in (0, 1):
        model = dense(import_tf_keras(), 3)
        model.set_weights([np.zeros((4, 3)), np.zeros(3)])
        train_model(model, data, None, TrainConfig(epochs=1, batch_size=8), seed=seed)
        trained.append(model.get_weights()[0])
    # Same initial weights, other order of the batches.
    assert not np.array_equal(*trained)


def test_random_states_and_determinism_are_restored_after_an_error():
    import tensorflow as tf
    from tensorflow.python.framework import config as tf_config

    keras = import_keras()

    def draws():
        legacy = np.random.rand()  # noqa: NPY002 - the global generator is what is tested
        return random.random(), legacy, float(tf.random.uniform([])), float(keras.random.uniform([]))

    def start():
        keras.utils.set_random_seed(3)
        return draws()

    first, expected = start(), draws()
    assert start() == first and not tf_config.is_op_determinism_enabled()
    with pytest.raises(ZeroDivisionError), deterministic(9):
        assert tf_config.is_op_determinism_enabled()
        draws()
        raise ZeroDivisionError
    assert not tf_config.is_op_determinism_enabled()
    got = draws()
    assert got[:3] == expected[:3]
    assert got[3] == expected[3]


def test_op_determinism_that_the_user_switched_on_stays_on():
    import tensorflow as tf
    from tensorflow.python.framework import config as tf_config

    tf.config.experimental.enable_op_determinism()
    try:
        with deterministic(1):
            pass
        assert tf_config.is_op_determinism_enabled()
    finally:
        tf_config.disable_op_determinism()


def test_private_symbols_of_the_random_states_are_where_we_touch_them():
    import_keras(), import_tf_keras()
    from keras.src.backend.common import global_state
    from keras.src.random import seed_generator
    from keras.src.utils import rng_utils
    from tensorflow.python.eager import context
    from tensorflow.python.framework import config as tf_config
    from tf_keras.src import backend

    assert (rng_utils.GLOBAL_RANDOM_SEED, seed_generator.GLOBAL_SEED_GENERATOR) == (
        "global_random_seed",
        "global_seed_generator",
    )
    assert callable(global_state.get_global_attribute) and callable(global_state.set_global_attribute)
    with deterministic(4):
        assert context.context()._seed == 4 and isinstance(context.context()._rng, random.Random)
        assert isinstance(backend._SEED_GENERATOR.generator, random.Random)
    assert callable(tf_config.disable_op_determinism)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True])
def test_a_seed_that_is_none_is_refused(seed):
    with refused(InputError, field="seed", got=seed), deterministic(seed):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_and_logits_are_distinguished(kind):
    keras = KINDS[kind]()
    layers = keras.layers
    assert outputs_probabilities(dense(keras, 3, "softmax")) and outputs_probabilities(dense(keras, 1, "sigmoid"))
    assert not outputs_probabilities(dense(keras, 3)) and not outputs_probabilities(dense(keras, 1))
    # Sigmoids of several classes are not a distribution over them.
    assert not outputs_probabilities(dense(keras, 3, "sigmoid"))
    for last in (layers.Softmax(), layers.Activation("softmax")):
        assert outputs_probabilities(keras.Sequential([keras.Input((4,)), layers.Dense(3), last]))
    after = [
        keras.Input((2, 2)),
        layers.Flatten(),
        layers.Dense(4, "softmax"),
        layers.Reshape((2, 2)),
        layers.Flatten(),
    ]
    assert outputs_probabilities(keras.Sequential(after))
    assert not outputs_probabilities(keras.Sequential([*after, layers.Dense(2)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("units", "activation", "said"),
    [
        (3, "softmax", "sparse_categorical_crossentropy from probabilities"),
        (3, None, "sparse_categorical_crossentropy from logits"),
        (1, "sigmoid", "binary_crossentropy from probabilities"),
        (1, None, "binary_crossentropy from logits"),
    ],
)
def test_the_history_says_which_loss_was_used_and_holds_plain_numbers(kind, units, activation, said):
    data = split(np.arange(20) % 2)
    history = train_model(dense(KINDS[kind](), units, activation), data, data.take(10), TrainConfig(epochs=2))
    assert history.pop("loss_function") == said
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert all(len(series) == 2 for series in history.values()) and json.loads(json.dumps(history)) == history


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_what_can_be_learned(kind):
    x = np.random.default_rng(1).normal(size=(256, 4)).astype("float32")
    data = split((x[:, 0] > 0).astype(int), x)
    model = dense(KINDS[kind](), 2, "softmax")
    history = train_model(model, data, None, TrainConfig(epochs=20, batch_size=16, learning_rate=0.05))
    assert history["accuracy"][-1] > 0.97
    # The step size has decayed to 0 along the cosine.
    assert float(np.asarray(model.optimizer.learning_rate)) == pytest.approx(0, abs=1e-5)


def test_one_hot_labels_train_the_weights_of_class_numbers():
    x, config = np.random.default_rng(1).normal(size=(64, 4)).astype("float32"), TrainConfig(epochs=1, batch_size=16)
    numbers, results = np.arange(64) % 3, []
    for labels in (numbers, np.eye(3, dtype=np.float32)[numbers]):
        import_tf_keras().utils.set_random_seed(0)
        model = dense(import_tf_keras(), 3, "softmax")
        train_model(model, split(labels, x), None, config)
        results.append(model.get_weights())
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    with refused(InputError, field="labels", expected=(64, 3), got=(64, 4)):
        train_model(dense(import_tf_keras(), 3), split(np.eye(4)[np.arange(64) % 4], x))


def test_training_is_silent_in_a_pipe(capfd):
    train_model(dense(import_tf_keras(), 2), split([0, 1, 1]), None, TrainConfig(epochs=1))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("labels", "expected", "got"),
    [
        ([0, 1, 3], (0, 2), (0, 3)),
        ([-1, 1, 2], (0, 2), (-1, 2)),
        ([0.0, 1.0, 2.0], "one integer label for each example", "float64"),
        ([[0], [1], [2]], "one integer label for each example", "int64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, expected, got):
    with refused(InputError, field="data", expected=expected, got=got):
        train_model(dense(import_tf_keras(), 3), split(labels))


def test_data_that_does_not_fit_is_refused():
    model = dense(import_tf_keras(), 3)
    with refused(InputError, field="data", expected="labels", limit="training-labels"):
        train_model(model, Split(name="train", inputs={"x": np.zeros((3, 4))}, labels=None, source="arrays"))
    with refused(InputError, field="data", expected=(4,), got=(5,)):
        train_model(model, split([0, 1, 2], np.zeros((3, 5), "float32")))
    with refused(InputError, field="data", expected="finite values"):
        train_model(model, split([0, 1, 2], np.full((3, 4), np.nan, "float32")))


def test_labels_of_classes_for_an_image_are_refused():
    keras = import_tf_keras()
    inputs = keras.Input((4,))
    image = keras.Model(inputs, keras.layers.Reshape((2, 2))(inputs))
    with refused(InputError, field="data", expected="one integer label for each example", got="int64"):
        train_model(image, split([0, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_becomes_nan_is_an_error(kind):
    keras = KINDS[kind]()
    model = dense(keras, 2)
    model.set_weights([np.full((4, 2), np.nan), np.zeros(2)])
    with refused(TfqError, field="training.learning_rate", word="nan"):
        train_model(model, split([0, 1, 1]), None, TrainConfig(epochs=1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_users_callbacks_are_called(kind):
    keras, seen = KINDS[kind](), []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    train_model(dense(keras, 2), split([0, 1]), None, TrainConfig(epochs=3), callbacks=[callback])
    assert seen == [0, 1, 2]


def test_the_small_cnn_learns_the_digits():
    train, test = load_split(DataConfig(source="digits"), "train"), load_split(DataConfig(source="digits"), "test")
    with deterministic(0):
        model = build("digits_cnn", import_tf_keras())
    train_model(model, train, None, TrainConfig(epochs=12))
    accuracy = float((np.asarray(model(test.inputs["x"])).argmax(axis=1) == test.labels).mean())
    assert accuracy > 0.97

# SPDX-License-Identifier: Apache-2.0
"""Training on data that is not in memory."""

import numpy as np
import pytest
from messages import refused

from tfq import models
from tfq.compression.training import deterministic, train_model
from tfq.config import DataConfig, TrainConfig
from tfq.data import SplitStream, load_split
from tfq.errors import InputError
from tfq.keras_bridge import import_keras, import_tf_keras


def built(keras):
    with deterministic(0):
        return models.build("digits_cnn", keras)


@pytest.mark.parametrize("import_it", [import_tf_keras, import_keras])
def test_training_from_a_stream_is_reproducible_for_a_seed(monkeypatch, import_it):
    keras, config = import_it(), TrainConfig(epochs=1, learning_rate=0.005)
    # In megabytes of 30,000 bytes, train is eleven and val two, which is enough for this test.
    monkeypatch.setattr("tfq.data.loading._MEGABYTE", 30_000)
    train, val = (load_split(DataConfig(source="digits", max_memory_mb=1), split) for split in ("train", "val"))
    assert isinstance(train, SplitStream) and isinstance(val, SplitStream)
    weights, histories = [], []
    for _ in range(2):
        model = built(keras)
        histories.append(train_model(model, train, val, config, seed=3))
        weights.append(np.concatenate([weight.ravel() for weight in model.get_weights()]))
    assert histories[0] == histories[1] and np.array_equal(weights[0], weights[1])
    assert histories[0]["val_accuracy"][-1] > 0.8


def test_a_faulty_example_ends_the_training_with_its_index(tmp_path):
    x = np.zeros((5000, 8, 8, 1), np.float32)
    x[4321] = np.nan
    for labels, field, expected in (
        (np.zeros(5000, int), "x[4321]", "finite numbers"),
        (np.arange(5000), "data", (0, 9)),
    ):
        np.savez(tmp_path / "a.npz", x_train=x, y_train=labels, x_val=x[:5], y_val=labels[:5])
        train = load_split(DataConfig(source=f"npz:{tmp_path}/a.npz", max_memory_mb=1), "train")
        with refused(InputError, field=field, expected=expected):
            train_model(built(import_tf_keras()), train, None, TrainConfig(epochs=1))


def test_epochs_over_a_stream_do_not_wait_for_autotuning(monkeypatch):
    fit, datasets = import_tf_keras().Model.fit, []

    def seen(self, x, *arguments, **settings):
        datasets.extend((x, settings["validation_data"]))
        return fit(self, x, *arguments, **settings)

    monkeypatch.setattr(import_tf_keras().Model, "fit", seen)
    monkeypatch.setattr("tfq.data.loading._MEGABYTE", 30_000)
    train, val = (load_split(DataConfig(source="digits", max_memory_mb=1), split) for split in ("train", "val"))
    train_model(built(import_tf_keras()), train, val, TrainConfig(epochs=1))
    assert [dataset.options().autotune.enabled for dataset in datasets] == [False, False]

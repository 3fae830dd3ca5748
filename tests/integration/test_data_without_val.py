# SPDX-License-Identifier: Apache-2.0
"""A source without a validation split: training holds one out and records it, conversion does without."""

import warnings

import numpy as np
import pytest

from tfq import workflows
from tfq.config import DataConfig, RunConfig, TrainingConfig
from tfq.errors import TfqWarning

FLOAT = "tests/golden/digits_float32.tflite"


@pytest.fixture
def source(tmp_path):
    """50 labeled examples of 8 x 8 pixels, all in train."""
    labels = np.arange(50) % 10
    images = np.random.default_rng(0).normal(labels[:, None, None, None], 1.0, (50, 8, 8, 1)).cumsum(1).cumsum(2)
    np.savez(tmp_path / "data.npz", x_train=images.astype(np.float32), y_train=labels)
    return DataConfig(source=f"npz:{tmp_path / 'data.npz'}")


def raised(call):
    """Return the result of `call` and the messages of the warnings of tfq."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(item.message) for item in caught if issubclass(item.category, TfqWarning)]


def test_conversion_calibrates_on_all_training_examples(source, request):
    config = RunConfig(model=str(request.config.rootpath / FLOAT), data=source)
    (_, details), messages = raised(lambda: workflows.convert(workflows.load(config), config))
    assert details["representative_dataset"]["split"] == "train"
    assert details["representative_dataset"]["examples"] == 50
    assert details["data_notes"] == [] and not [message for message in messages if "val" in message.split()]


def test_training_records_the_held_out_examples_and_does_not_warn(source):
    config = RunConfig(model="digits_cnn", data=source, training=TrainingConfig(epochs=1))
    (_, details), messages = raised(lambda: workflows.train(config))
    (note,) = details["data_notes"]
    assert "the last 5 of 50" in note and not messages

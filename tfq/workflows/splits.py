# SPDX-License-Identifier: Apache-2.0
"""The splits of --data, and what records say of them."""

import warnings
from typing import Any

from tfq import artifacts, data, evaluation
from tfq.config import DataConfig, RunConfig
from tfq.errors import TfqWarning
from tfq.workflows.model_files import is_file


def load_split(config: DataConfig, split: str, *, limit: int = 0) -> data.AnySplit:
    """`tfq.data.load_split`; what the source has to say of the split (held out of train, keys ignored) is a warning."""
    return told(data.load_split(config, split, limit=limit))


def told(split: data.AnySplit) -> data.AnySplit:
    for note in split.notes:
        warnings.warn(note, TfqWarning, stacklevel=3)
    return split


def hashes(config: RunConfig, **splits: data.AnySplit | None) -> dict[str, Any]:
    """SHA-256 of the file in --model (None for a name), and of each split, preprocessed, by its name here."""
    return {
        "model": artifacts.sha256_path(config.model) if is_file(config.model) else None,
        "data": {name: split.sha256() for name, split in splits.items() if split is not None},
    }


def keras_scores(model: Any, test: data.AnySplit | None) -> dict[str, Any]:
    """What a Keras model with one output gets on the test split: None where there is none, or it has no labels."""
    from tfq.compression.training import predict, reconstructs

    if test is None:
        return {"test_metric": None, "test_accuracy": None}
    scores = evaluation.score_outputs(predict(model, test), test, reconstructs=reconstructs(model))
    return {"test_metric": scores["metric"], "test_accuracy": scores["accuracy"]}

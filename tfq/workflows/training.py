# SPDX-License-Identifier: Apache-2.0
"""Load the splits of config.data, and train a named model on them."""

from typing import Any

from tfq import artifacts, data, evaluation
from tfq.config import DataConfig, RunConfig
from tfq.errors import InputError, warn
from tfq.workflows.model_files import is_file, model_name


def load_split(config: DataConfig, split: str, *, limit: int = 0) -> data.AnySplit:
    """Load a split as `tfq.data.load_split` does, and warn of the possible problems that its source noticed."""
    return with_warnings(data.load_split(config, split, limit=limit))


def with_warnings(split: data.AnySplit) -> data.AnySplit:
    """Warn of the possible problems that the source of `split` noticed; return `split`."""
    for note in split.notes:
        warn(note)
    return split


def data_notes(*splits: data.AnySplit | None) -> list[str]:
    """Return for a record how the sources made these splits, each sentence once: "val was held out of train"."""
    return list(dict.fromkeys(note for split in splits if split is not None for note in split.information))


def hashes(config: RunConfig, **splits: data.AnySplit | None) -> dict[str, Any]:
    """SHA-256 of the file in config.model (None for a name), and of each split, preprocessed, by its name here."""
    return {
        "model": artifacts.sha256_path(config.model) if is_file(config.model) else None,
        "data": {name: split.sha256() for name, split in splits.items() if split is not None},
    }


def keras_scores(model: Any, test: data.AnySplit | None) -> dict[str, Any]:
    """What a Keras model with one output gets on the test split: None where there is none, or it has no labels."""
    from tfq.compression.training import predict, reconstructs

    if test is None:
        return {"test_metric": None, "test_unit": None, "test_accuracy": None}
    scores = evaluation.score_outputs(predict(model, test), test, reconstructs=reconstructs(model))
    name = scores["metric"]
    return {"test_metric": name, "test_unit": scores["metrics"][name]["unit"], "test_accuracy": scores["accuracy"]}


def train(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """The model that config.model names, built and trained on config.data; and what a record says of it."""
    from tfq import models
    from tfq.compression.training import deterministic, train_model
    from tfq.keras_bridge import import_keras, import_tf_keras

    model_name(config)
    if is_file(config.model):
        raise InputError(
            f"model={config.model}: train builds a model by its name, and this is a file",
            field="model",
            expected="a model's name",
            got=config.model,
        )
    training, validation = load_split(config.data, "train"), load_split(config.data, "val")
    try:
        test = load_split(config.data, "test")
    except data.MissingSplitError:
        test = None
    keras = import_keras() if config.training.keras == "keras" else import_tf_keras()
    with deterministic(config.seed):
        classes = data.count_classes([split for split in (training, validation, test) if split is not None])
        model = models.build(config.model, keras, data.example_shape(training), classes)
        history = train_model(model, training, validation, config.training, seed=config.seed)
    return model, {
        "parameters": int(model.count_params()),
        "history": history,
        "preprocessing": data.preprocessing_record(config.data),
        "data_notes": data_notes(training, validation, test),
        **keras_scores(model, test),
        "sha256": hashes(config, train=training, val=validation, test=test),
    }

# SPDX-License-Identifier: Apache-2.0
"""Train a model that tfq builds by name, or one from a file, with or without teachers."""

from typing import Any

from tfq import data, progress
from tfq.config import RunConfig
from tfq.errors import InputError
from tfq.workflows.models import (
    data_notes,
    hashes,
    is_file,
    keras_scores,
    load,
    load_split,
    model_name,
)
from tfq.workflows.teachers import taught, warn_of_worse_teachers


def trained_stem(config: RunConfig) -> str:
    """Return the stem of the file that `train` writes; that of a model from a file ends in "_trained"."""
    return f"{model_name(config)}_trained" if is_file(config.model) else model_name(config)


def train(config: RunConfig, *, allow_code: bool = False) -> tuple[Any, dict[str, Any]]:
    """Train the model of config.model on config.data; return it and details for the record.

    A model that tfq builds by name starts with random weights, one from a file with its own.

    Args:
        config: What to train, and how: config.training, config.data and config.seed.
        allow_code: As for `load`.

    Raises:
        InputError: config.model is a .tflite or no known name, or the data does not fit the model.
    """
    from tfq.compression.training import deterministic, train_model
    from tfq.keras_bridge.strategies import named_strategy

    training, validation = load_split(config.data, "train"), load_split(config.data, "val")
    try:
        test = load_split(config.data, "test")
    except data.MissingSplitError:
        test = None
    splits = [split for split in (training, validation, test) if split is not None]
    with deterministic(config.seed), named_strategy(config.training.strategy) as replicas:
        model = _untrained(config, splits, allow_code=allow_code)
        with taught(model, config.training.teacher, config, validation, allow_code=allow_code) as lesson:
            history = train_model(lesson.student, training, validation, config.training, seed=config.seed)
        warn_of_worse_teachers(lesson, model, validation)
    return model, {
        "parameters": int(model.count_params()),
        "teachers": lesson.teachers,
        "history": history,
        "replicas": replicas,
        "preprocessing": data.preprocessing_record(config.data),
        "data_notes": data_notes(training, validation, test),
        **keras_scores(model, test),
        "sha256": hashes(config, train=training, val=validation, test=test),
    }


def _untrained(config: RunConfig, splits: list[data.AnySplit], *, allow_code: bool) -> Any:
    """Return the model of a file, or build the one of that name for the data."""
    from tfq import models
    from tfq.keras_bridge import import_keras, import_tf_keras

    model_name(config)
    if is_file(config.model):
        model = load(config, allow_code=allow_code)
        if isinstance(model, bytes) or not getattr(model, "outputs", None) or not hasattr(model, "layers"):
            raise InputError(
                f"model={config.model} cannot be trained: expected a functional or sequential Keras model, or the name "
                "of a model that tfq builds",
                field="model",
                expected="a Keras model",
                got=config.model,
            )
        return model
    keras = import_keras() if config.training.keras == "keras" else import_tf_keras()
    classes = data.count_classes(splits)
    with progress.stage(f"building {config.model}"):
        return models.build(config.model, keras, data.example_shape(splits[0]), classes)

# SPDX-License-Identifier: Apache-2.0
"""A model that is named, built and trained."""

from typing import Any

from tfq import data
from tfq.config import RunConfig
from tfq.errors import InputError
from tfq.workflows.model_files import is_file, model_name
from tfq.workflows.splits import hashes, keras_scores, load_split


def train(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """The model that --model names, built and trained on --data; and what a record says of it."""
    from tfq import models
    from tfq.compression.training import deterministic, train_model
    from tfq.keras_bridge import import_keras, import_tf_keras

    model_name(config)
    if is_file(config.model):
        raise InputError(f"--model={config.model}: train builds a model by its name, and this is a file")
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
        **keras_scores(model, test),
        "sha256": hashes(config, train=training, val=validation, test=test),
    }

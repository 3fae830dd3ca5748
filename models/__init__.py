# SPDX-License-Identifier: Apache-2.0
"""Models that tfq builds by name, for either Keras. Importing this package imports no Keras and no TensorFlow."""

from typing import Any

from tfq.errors import InputError, did_you_mean
from tfq.models.digits_cnn import build_digits_cnn
from tfq.models.resnet8 import build_resnet8

MODELS = {
    "digits_cnn": build_digits_cnn,
    "resnet8": build_resnet8,
}

__all__ = ["MODELS", "build", "build_digits_cnn", "build_resnet8"]


def build(name: str, keras: Any) -> Any:
    """The model called `name`, built with the module `keras` (Keras 3 or tf_keras), uncompiled, with random weights.

    Wrap the call in `tfq.training.deterministic(seed)` for weights that a seed repeats.
    Raises InputError with the nearest name when there is none such.
    """
    if name not in MODELS:
        raise InputError(f"model {name!r} is neither a file nor a model that tfq builds: {did_you_mean(name, MODELS)}")
    return MODELS[name](keras)

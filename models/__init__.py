# SPDX-License-Identifier: Apache-2.0
"""Models that tfq builds by name, for either Keras.

Importing this package imports neither Keras nor TensorFlow.
"""

import inspect
from collections.abc import Callable, Sequence
from types import ModuleType

from tfq.errors import InputError, did_you_mean, warn
from tfq.models import applications
from tfq.models.applications import file_stem
from tfq.models.digits_cnn import build_digits_cnn
from tfq.models.ds_cnn import build_ds_cnn
from tfq.models.fc_autoencoder import build_fc_autoencoder
from tfq.models.grid_detector import build_grid_detector
from tfq.models.mobilenet_v1_025 import build_mobilenet_v1_025
from tfq.models.resnet8 import build_resnet8
from tfq.models.small_unet import build_small_unet
from tfq.typing import KerasModel

# Called as (keras, input_shape, classes). The defaults of the last two are those of the published model.
MODELS: dict[str, Callable[..., KerasModel]] = {
    "digits_cnn": build_digits_cnn,
    "ds_cnn": build_ds_cnn,
    "fc_autoencoder": build_fc_autoencoder,
    "grid_detector": build_grid_detector,
    "mobilenet_v1_025": build_mobilenet_v1_025,
    "resnet8": build_resnet8,
    "small_unet": build_small_unet,
}

__all__ = [
    "MODELS",
    "build",
    "build_digits_cnn",
    "build_ds_cnn",
    "build_fc_autoencoder",
    "build_grid_detector",
    "build_mobilenet_v1_025",
    "build_resnet8",
    "build_small_unet",
    "file_stem",
]


def build(
    name: str, keras: ModuleType, input_shape: Sequence[int] | None = None, classes: int | None = None
) -> KerasModel:
    """Build the model called `name`, uncompiled and with random weights.

    For reproducible weights, call it within `tfq.keras_bridge.deterministic(seed)`.

    Args:
        name: One of MODELS, or a model of keras.applications ("MobileNetV2", "keras.applications:MobileNetV2",
            "MobileNetV2,alpha=0.35"); not case-sensitive.
        keras: The module `keras` (Keras 3) or `tf_keras`.
        input_shape: The shape of one example of the data; None is the model's default. A TfqWarning says if a model of
            MODELS thereby differs from the published one.
        classes: The number of classes in the data, likewise.

    Raises:
        InputError: No model has this name (the message suggests the nearest one), or the model does not support this
            shape or number of classes.
    """
    if name.lower() in MODELS:
        return _published(name.lower(), keras, input_shape, classes)
    if applications.is_application(name, keras):
        return applications.build_application(name, keras, input_shape, classes)
    known = [*MODELS, *applications.names(keras)]
    message = did_you_mean(applications.plain_name(name), known)
    if message.startswith("choose"):
        message = f"choose from {', '.join(MODELS)}, or a model of keras.applications, such as MobileNetV2"
    raise InputError(
        f"model {name!r} is neither a file nor a model that tfq builds: {message}",
        field="model",
        expected=tuple(MODELS),
        got=name,
    )


def _published(name: str, keras: ModuleType, input_shape: Sequence[int] | None, classes: int | None) -> KerasModel:
    """Build a model of MODELS for the shape and the classes of the data, or those of the publication."""
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(MODELS[name]).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    }
    shape, own_shape = tuple(input_shape or defaults["input_shape"]), defaults["input_shape"]
    if len(shape) != len(own_shape) or 0 in shape:
        raise InputError(
            f"{name} expects examples of a shape like {own_shape}, the data has {shape}: reshape the data, or choose "
            "another model",
            field="data",
            expected=own_shape,
            got=shape,
        )
    count = defaults["classes"] if classes is None or defaults["classes"] is None else classes
    if (shape, count) != (own_shape, defaults["classes"]):
        warn(
            f"{name} is built for {_description(shape, count)}, as in the data; the published model is for "
            f"{_description(own_shape, defaults['classes'])}"
        )
    try:
        return MODELS[name](keras, shape, count)
    except ValueError as error:
        raise InputError(
            f"{name} cannot be built for examples of shape {shape}: {error}", field="data", got=shape
        ) from error


def _description(shape: tuple[int, ...], classes: int | None) -> str:
    return f"examples of shape {shape}" + ("" if classes is None else f" and {classes} classes")

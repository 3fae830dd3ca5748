# SPDX-License-Identifier: Apache-2.0
"""The models of keras.applications, by their names there, with random weights."""

import ast
import inspect
import re
from collections.abc import Callable, Sequence
from types import ModuleType

from tfq.errors import InputError, did_you_mean
from tfq.typing import KerasModel

_PREFIX = re.compile(r"keras\.applications[:.]", re.IGNORECASE)
# Arguments that the data determines, or that would need a download.
_DECIDED = ("include_top", "weights", "input_tensor", "input_shape", "pooling", "classes", "name")


def names(keras: ModuleType) -> list[str]:
    """Return the names of the models in keras.applications of this Keras."""
    return sorted(name for name in dir(keras.applications) if name[0].isupper())


def plain_name(name: str) -> str:
    """Return a model's name without the prefix "keras.applications:" and without arguments."""
    return _PREFIX.sub("", name, count=1).partition(",")[0].strip()


def is_application(name: str, keras: ModuleType) -> bool:
    """Check whether `name` is the name of a model in keras.applications."""
    return plain_name(name).lower() in {item.lower() for item in names(keras)}


def file_stem(name: str) -> str:
    """Return a model's name in a form for file names: "MobileNetV2,alpha=0.35" becomes "MobileNetV2_alpha_0.35"."""
    return re.sub(r"[^\w.-]+", "_", _PREFIX.sub("", name, count=1)).strip("_")


def build_application(
    name: str, keras: ModuleType, input_shape: Sequence[int] | None, classes: int | None
) -> KerasModel:
    """Build a classifier of keras.applications, uncompiled and with random weights.

    The input "image" is float32, in the units that keras.applications documents for the model. The output is a softmax.

    Args:
        name: The name in Keras, not case-sensitive, with arguments after commas ("MobileNetV2,alpha=0.35").
        keras: The module `keras` (Keras 3) or `tf_keras`.
        input_shape: (height, width, channels); None is (224, 224, 3).
        classes: The number of classes; None is ImageNet's 1000.

    Raises:
        InputError: An argument does not exist or is determined by the data, or Keras cannot build the model.
    """
    plain = plain_name(name).lower()
    function: Callable[..., KerasModel] = getattr(
        keras.applications, next(item for item in names(keras) if item.lower() == plain)
    )
    arguments = _arguments(name, function)
    shape = tuple(input_shape or (224, 224, 3))
    if len(shape) != 3:
        raise InputError(
            f"{function.__name__} expects images (height, width, channels), the data has examples of shape {shape}",
            field="data",
            expected="(height, width, channels)",
            got=shape,
        )
    try:
        # Keras would number an input without a name.
        image = keras.Input(shape, name="image")
        return function(
            weights=None,
            input_tensor=image,
            input_shape=shape,
            classes=1000 if classes is None else max(2, classes),
            **arguments,
        )
    except (ValueError, TypeError) as error:
        message = f" with {', '.join(f'{key}={value!r}' for key, value in arguments.items())}" if arguments else ""
        raise InputError(
            f"{function.__name__}{message} cannot be built for images of shape {shape}: {error}: "
            "resize them with data.resize=HEIGHT,WIDTH, or choose another model",
            field="data.resize",
            got=shape,
        ) from error


def _arguments(name: str, function: Callable[..., KerasModel]) -> dict[str, object]:
    """Return the keyword arguments in a model's name."""
    allowed = [key for key in inspect.signature(function).parameters if key not in _DECIDED]
    results: dict[str, object] = {}
    for part in name.split(",")[1:]:
        key, _, value = (word.strip() for word in part.partition("="))
        if key in _DECIDED:
            reason = "the weights are random: to use others, build and save the model in Keras"
            reason = reason if key == "weights" else "it is determined by the data"
            raise InputError(f"model={name}: {key} cannot be set, because {reason}", field="model", got=key)
        if key not in allowed:
            raise InputError(
                f"model={name}: {function.__name__} has no argument {key!r}: {did_you_mean(key, allowed)}",
                field="model",
                expected=tuple(allowed),
                got=key,
            )
        try:
            results[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise InputError(
                f"model={name}: {key}={value}: expected a number, True or False",
                field="model",
                expected="a number, True or False",
                got=value,
            ) from error
    return results

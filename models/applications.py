# SPDX-License-Identifier: Apache-2.0
"""The models of keras.applications by their names there, with random weights."""

import ast
import inspect
import re
from collections.abc import Callable, Sequence
from types import ModuleType

from tfq.errors import InputError, did_you_mean
from tfq.typing import KerasModel

_PREFIX = re.compile(r"keras\.applications[:.]", re.IGNORECASE)
# What the data decides, or would need a download or other models.
_DECIDED = ("include_top", "weights", "input_tensor", "input_shape", "pooling", "classes", "name")


def names(keras: ModuleType) -> list[str]:
    """The models that this Keras has."""
    return sorted(name for name in dir(keras.applications) if name[0].isupper())


def plain_name(name: str) -> str:
    """A model's name without "keras.applications:" before it and arguments behind it."""
    return _PREFIX.sub("", name, count=1).partition(",")[0].strip()


def is_application(name: str, keras: ModuleType) -> bool:
    """Whether `name` means a model of keras.applications."""
    return plain_name(name).lower() in {item.lower() for item in names(keras)}


def file_stem(name: str) -> str:
    """The name of a model as the beginning of a file's name: "MobileNetV2,alpha=0.35" is "MobileNetV2_alpha_0.35"."""
    return re.sub(r"[^\w.-]+", "_", _PREFIX.sub("", name, count=1)).strip("_")


def build_application(
    name: str, keras: ModuleType, input_shape: Sequence[int] | None, classes: int | None
) -> KerasModel:
    """A classifier of keras.applications, uncompiled, with random weights.

    name: as Keras spells it, in any case; after commas arguments of its own ("MobileNetV2,alpha=0.35").
    input_shape: (height, width, channels), None is (224, 224, 3). classes: None is ImageNet's 1000.
    Input "image": float32 in the units that keras.applications says for the model. Output: softmax.
    Raises InputError on arguments that there are not, that the data decides, or that Keras refuses.
    """
    wanted = plain_name(name)
    function: Callable[..., KerasModel] = getattr(
        keras.applications, next(item for item in names(keras) if item.lower() == wanted.lower())
    )
    arguments = _arguments(name, function)
    shape = tuple(input_shape or (224, 224, 3))
    if len(shape) != 3:
        raise InputError(
            f"{function.__name__} takes images (height, width, channels), the data has examples of shape {shape}",
            field="data",
            expected="(height, width, channels)",
            got=shape,
        )
    try:
        # An input of our own: Keras would number it by what was built before.
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
    """The keyword arguments behind a model's name."""
    allowed = [key for key in inspect.signature(function).parameters if key not in _DECIDED]
    results: dict[str, object] = {}
    for part in name.split(",")[1:]:
        key, _, value = (word.strip() for word in part.partition("="))
        if key in _DECIDED:
            advice = "weights stay random here: build the model in Keras, and save it" if key == "weights" else ""
            raise InputError(
                f"model={name}: {key} is not to be given: {advice or 'it comes from the data'}", field="model", got=key
            )
        if key not in allowed:
            raise InputError(
                f"model={name}: {function.__name__} takes no {key!r}: {did_you_mean(key, allowed)}",
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

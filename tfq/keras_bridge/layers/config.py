# SPDX-License-Identifier: Apache-2.0
"""Translate the config of a Keras 3 layer to that of tf_keras' layer of the same name.

Only training sees an initializer, a regularizer or a constraint: one that tf_keras lacks is left out with a note. An
option that changes the function and that tf_keras lacks raises Untranslatable.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.layers.activations import argument_for
from tfq.keras_bridge.untranslatable import Untranslatable

# Options of Keras 3 that do not change what is computed: how fast, with which random numbers, in which precision.
WITHOUT_EFFECT = {"seed", "use_cudnn", "flash_attention", "autocast", "synchronized", "dtype", "name", "trainable"}
ACTIVATIONS = ("activation", "recurrent_activation")
# Options that tf_keras' constructors take without naming them; only layers that have them say them.
TAKEN_UNNAMED = {"zero_output_for_mask", "activity_regularizer"}
NARROW = ("float16", "bfloat16", "float64")

Note = Callable[[str], None]


def translated_config(layer: Any, to: type, note: Note, also: Sequence[str] = ()) -> dict[str, Any]:
    """Keyword arguments that make a layer of the tf_keras class `to` the equal of `layer`, its name left out.

    note: called with a sentence for each thing that is left out. also: options that come as they are though `to` does
    not have them. Raises Untranslatable for another one that is not at its default and that `to` does not have.
    """
    if getattr(layer, "quantization_mode", None) is not None:
        raise Untranslatable(
            f"it was quantized by Keras itself ({layer.quantization_mode}): give the float model that it was made from"
        )
    if getattr(layer, "lora_rank", None):
        raise Untranslatable("it holds LoRA weights: give a model with them merged into the kernels")
    config = layer.get_config()
    known, defaults = _parameters(to) | TAKEN_UNNAMED | set(also), _defaults(type(layer))
    if getattr(layer, "activity_regularizer", None) is not None:
        # Keras 3.15's Dense leaves it out of its config.
        config["activity_regularizer"] = layer.activity_regularizer
    translated: dict[str, Any] = {"dtype": dtype_of(layer), "trainable": layer.trainable}
    for key, value in config.items():
        if key in ("name", "dtype", "trainable"):
            continue
        if key not in known:
            if key in WITHOUT_EFFECT or value is None or value is False or (key in defaults and value == defaults[key]):
                continue
            if key == "data_format" and value == "channels_last":
                continue
            raise Untranslatable(f"its option {key}={value!r} has no equal in tf_keras: leave it at its default")
        translated[key] = _translated_value(layer, key, value, note)
    return translated


def dtype_of(layer: Any) -> str:
    """The tf_keras dtype of a layer: integers and float32 as they are, every other float is float32."""
    dtype = layer.compute_dtype
    return "float32" if dtype in NARROW or dtype is None else dtype


def _translated_value(layer: Any, key: str, value: Any, note: Note) -> Any:
    if key in ACTIVATIONS:
        return argument_for(getattr(layer, key, None))
    for ending, room in (("_initializer", "initializers"), ("_regularizer", "regularizers")):
        if key.endswith(ending):
            return _training_object(layer, key, value, room, note)
    if key.endswith("_constraint"):
        return _training_object(layer, key, value, "constraints", note)
    return value


def _training_object(layer: Any, key: str, value: Any, room: str, note: Note) -> Any:
    """An initializer, regularizer or constraint of tf_keras, or None where there is no equal."""
    keras, tf_keras = import_keras(), import_tf_keras()
    # Attention keeps them under other names: its config has them written out.
    value = getattr(keras, room).get(getattr(layer, key, value))
    if value is None:
        return None
    name = type(value).__name__
    there = getattr(getattr(tf_keras, room), name, None)
    if getattr(getattr(keras, room), name, None) is type(value) and inspect.isclass(there):
        known = _parameters(there)
        return there(**{option: provided for option, provided in value.get_config().items() if option in known})
    if room != "initializers":  # weights are copied, so that an initializer does nothing any more
        note(f"its {key} {name} has no equal in tf_keras and is left out: only training would see it")
    return "zeros" if room == "initializers" else None


def _parameters(cls: type) -> set[str]:
    """Names that the constructor takes, also those that it hands to the classes it is made from."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def _defaults(cls: type) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base is not object and "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            defaults.update({p.name: p.default for p in parameters if p.default is not p.empty})
    return defaults

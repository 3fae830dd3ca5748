# SPDX-License-Identifier: Apache-2.0
"""Translate the config of a Keras 3 layer to the config of tf_keras' layer of the same name.

Initializers, regularizers and constraints only affect training: one that tf_keras lacks is left out with a note. An
option that changes the output and that tf_keras lacks raises Untranslatable.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.layers.activations import activation_argument
from tfq.keras_bridge.untranslatable import Untranslatable

# Options of Keras 3 that change only speed, random numbers or precision.
WITHOUT_EFFECT = {"seed", "use_cudnn", "flash_attention", "autocast", "synchronized", "dtype", "name", "trainable"}
ACTIVATIONS = ("activation", "recurrent_activation")
# Options that tf_keras' constructors accept as **kwargs. They are only in the config of layers that have them.
UNDOCUMENTED_OPTIONS = {"zero_output_for_mask", "activity_regularizer"}
OTHER_FLOATS = ("float16", "bfloat16", "float64")

Note = Callable[[str], None]


def translated_config(
    layer: Any, tf_keras_class: type, note: Note, passed_through: Sequence[str] = ()
) -> dict[str, Any]:
    """Return keyword arguments for `tf_keras_class` that make its instance equivalent to `layer`, except the name.

    Args:
        layer: A Keras 3 layer.
        tf_keras_class: The tf_keras class.
        note: Called with a sentence for each option that is left out.
        passed_through: Options that are returned unchanged although `tf_keras_class` does not have them.

    Raises:
        Untranslatable: Another option that `tf_keras_class` does not have differs from its default.
    """
    if getattr(layer, "quantization_mode", None) is not None:
        raise Untranslatable(
            f"Keras has already quantized it ({layer.quantization_mode}). Pass the float model instead"
        )
    if getattr(layer, "lora_rank", None):
        raise Untranslatable("it has LoRA weights. Merge them into the kernels first")
    config = _config_of(layer)
    known, defaults = _parameters(tf_keras_class) | UNDOCUMENTED_OPTIONS | set(passed_through), _defaults(type(layer))
    if getattr(layer, "activity_regularizer", None) is not None:
        # The config of Keras 3.15's Dense does not contain it.
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
            raise Untranslatable(f"its option {key}={value!r} has no equivalent in tf_keras. Use its default")
        translated[key] = _translated_value(layer, key, value, note)
    return translated


def _config_of(layer: Any) -> dict[str, Any]:
    """Return the config of a Keras 3 layer.

    Keras 3.15 cannot write that of a layer without options, such as Add or Identity, if it was created with a
    DTypePolicy object. Such a layer has no other config than its name, dtype and `trainable`.
    """
    try:
        config: dict[str, Any] = layer.get_config()
    except NotImplementedError:
        if _parameters(type(layer)) - _parameters(import_keras().layers.Layer):
            raise
        return {}
    return config


def dtype_of(layer: Any) -> str:
    """Return the tf_keras dtype of a layer: every float dtype becomes float32, other dtypes stay."""
    dtype = layer.compute_dtype
    return "float32" if dtype in OTHER_FLOATS or dtype is None else dtype


def _translated_value(layer: Any, key: str, value: Any, note: Note) -> Any:
    if key in ACTIVATIONS:
        return activation_argument(getattr(layer, key, None))
    for ending, module in (("_initializer", "initializers"), ("_regularizer", "regularizers")):
        if key.endswith(ending):
            return _training_object(layer, key, value, module, note)
    if key.endswith("_constraint"):
        return _training_object(layer, key, value, "constraints", note)
    return value


def _training_object(layer: Any, key: str, value: Any, module: str, note: Note) -> Any:
    """Return an initializer, regularizer or constraint of tf_keras, or None if it has no equivalent."""
    keras, tf_keras = import_keras(), import_tf_keras()
    # Attention layers have them under other attribute names, but in their config.
    value = getattr(keras, module).get(getattr(layer, key, value))
    if value is None:
        return None
    name = type(value).__name__
    tf_keras_class = getattr(getattr(tf_keras, module), name, None)
    if getattr(getattr(keras, module), name, None) is type(value) and inspect.isclass(tf_keras_class):
        known = _parameters(tf_keras_class)
        return tf_keras_class(
            **{option: provided for option, provided in value.get_config().items() if option in known}
        )
    if module != "initializers":  # an initializer has no effect, because the weights are copied
        note(f"its {key} {name} has no equivalent in tf_keras and is left out, which only affects training")
    return "zeros" if module == "initializers" else None


def _parameters(cls: type) -> set[str]:
    """Return the names of the constructor's parameters, with those of the base classes that receive its **kwargs."""
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

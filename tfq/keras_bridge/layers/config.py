# SPDX-License-Identifier: Apache-2.0
"""A layer of a nested tf_keras model, made anew for the flat one.

The config of a Keras 3 layer said in the words of tf_keras' layer of the same name.

What only training sees (an initializer, a regularizer, a constraint of the user's own) and has no equal is left out
with a note; what changes the function and has no equal raises Untranslatable.
"""

import dataclasses
import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.layers.activations import argument_for
from tfq.keras_bridge.untranslatable import Untranslatable

Arrays = list[NDArray]


@dataclass(frozen=True, kw_only=True)
class Translation:
    """What one Keras 3 layer becomes.

    layers: tf_keras layers, called one on the other's result, unless `call` says how (it takes the args and kwargs of
    the node). None at all: the layer is left out, its input being its output.
    carriers: how many of `layers`, the first ones, have the weights; 0 where these became constants. owner: the user's
    layer whose weights they are, where it is one inside the translated one. forward, back: the weights (arrays) of the
    user's layer -> those of the carriers, one carrier after the other, and the other way; None: there is one carrier
    at most, with the same weights, matched by their names.
    """

    layers: tuple[Any, ...]
    call: Callable[[tuple, dict], Any] | None = None
    carriers: int = 1
    owner: Any = None
    forward: Callable[[Arrays], Arrays] | None = None
    back: Callable[[Arrays], Arrays] | None = None

    @property
    def weighted(self) -> tuple[Any, ...]:
        """The layers that have the weights."""
        return self.layers[: self.carriers]


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a translator makes its layers: the `name` to give, to one of several `part(name)` of its own, whether it must
    be a `single` layer (it will stand inside another), and `note` for a sentence about what was left out. arguments:
    the args and kwargs, with tf_keras tensors, that the layer is called with; None: several times, or inside another.
    For a layer inside this one `inner` (by `translate`), for a model inside it `rebuild`, which is
    `tfq.keras_bridge.rebuild.rebuild`."""

    name: str
    part: Callable[[str], str]
    note: Callable[[str], None]
    translate: "Callable[[Any, Making], Translation]"
    rebuild: Callable[[Any], Any]
    translators: "Sequence[Translator]" = ()
    single: bool = False
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def inner(self, layer: Any, name: str) -> Any:
        """The single tf_keras layer for a layer that `layer` wraps."""
        translation = self.translate(layer, dataclasses.replace(self, name=name, single=True, arguments=None))
        if len(translation.layers) != 1 or translation.forward or translation.call:
            raise Untranslatable(f"it wraps a {type(layer).__name__}, which is more than one layer in tf_keras")
        return translation.layers[0]


@dataclass(frozen=True, kw_only=True)
class Translator:
    """The user's own pair for a Keras 3 layer class: see `register_translator`."""

    keras_class: type
    to_tf_keras: Callable[[Any], Any]
    weights_forward: Callable[[Arrays], Arrays] | None = field(default=None)
    weights_back: Callable[[Arrays], Arrays] | None = field(default=None)


_registered: dict[type, Translator] = {}


_lock = threading.Lock()


def register_translator(
    keras_class: type,
    *,
    to_tf_keras: Callable[[Any], Any],
    weights_forward: Callable[[Arrays], Arrays] | None = None,
    weights_back: Callable[[Arrays], Arrays] | None = None,
) -> Translator:
    """From now on `to_tf_keras` (the bridge) makes of each layer of `keras_class` what this function makes of it.

    keras_class: the Keras 3 layer class itself; a subclass of it is another class. to_tf_keras: given the user's
    layer, it gives a new tf_keras layer with a get_config(), which is renamed and called as the user's was.
    weights_forward: the layer's weights (arrays, in the order of its `get_weights()`) -> those of the tf_keras layer;
    weights_back: the other way, for the way back. Without them both have the same weights in the same order.
    Returns the pair, which `to_tf_keras(model, translators=[...])` takes as well. A second one replaces the first.
    """
    if not (inspect.isclass(keras_class) and issubclass(keras_class, import_keras().layers.Layer)):
        raise InputError(
            f"register_translator takes a Keras 3 layer class, got {keras_class!r}",
            field="keras_class",
            expected="a Keras 3 layer class",
            got=keras_class,
        )
    pair = Translator(
        keras_class=keras_class, to_tf_keras=to_tf_keras, weights_forward=weights_forward, weights_back=weights_back
    )
    with _lock:
        _registered[keras_class] = pair
    return pair


def pair_for(layer: Any, translators: Sequence[Translator]) -> Translator | None:
    """The user's pair for the layer's class: one of `translators`, else the registered one."""
    return {**_registered, **{pair.keras_class: pair for pair in translators}}.get(type(layer))


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
        return there(**{option: given for option, given in value.get_config().items() if option in known})
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

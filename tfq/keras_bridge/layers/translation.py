# SPDX-License-Identifier: Apache-2.0
"""What a translation of one layer is made of, and the user's own pairs of layers."""

import dataclasses
import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.keras_bridge.environment import import_keras
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
        raise InputError(f"register_translator takes a Keras 3 layer class, got {keras_class!r}")
    pair = Translator(
        keras_class=keras_class, to_tf_keras=to_tf_keras, weights_forward=weights_forward, weights_back=weights_back
    )
    with _lock:
        _registered[keras_class] = pair
    return pair


def pair_for(layer: Any, translators: Sequence[Translator]) -> Translator | None:
    """The user's pair for the layer's class: one of `translators`, else the registered one."""
    return {**_registered, **{pair.keras_class: pair for pair in translators}}.get(type(layer))

# SPDX-License-Identifier: Apache-2.0
"""The extension point for layers: what a Keras layer becomes in tf_keras, and how it can be compressed.

To add a layer, register one `BridgedLayer`. Quantization-aware training, pruning and structured pruning read its facts;
no other file names the layer.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tfq import registry
from tfq.errors import InputError, did_you_mean
from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.untranslatable import Untranslatable
from tfq.typing import Arrays, KerasLayer, KerasModel

QATPlacement = Literal[
    "output_only",
    "weights_and_output",
    "activation",
    "passes_range",
    "averages",
    "global_average",
    "shares_range",
    "masks",
    "makes_mask",
    "passes_mask",
    "converter",
]
StandIn = Literal["always", "swish", "image"]


@dataclass(frozen=True, kw_only=True)
class Translation:
    """The tf_keras layers that one Keras 3 layer becomes.

    Args:
        layers: tf_keras layers, called one on the other's result, unless `call` says how (it takes the args and kwargs
            of the node). None at all: the layer is left out, and its input is its output.
        call: (args, kwargs) of the user's call -> output tensors.
        carriers: How many of `layers`, the first ones, have the weights; 0 where these became constants.
        owner: The user's layer whose weights they are, where it is one inside the translated one.
        forward: The weights (arrays) of the user's layer -> those of the carriers, one carrier after the other. None:
            there is one carrier at most, with the same weights, matched by their names.
        back: The inverse of `forward`.
    """

    layers: tuple[KerasLayer, ...]
    call: Callable[[tuple[object, ...], dict[str, object]], object] | None = None
    carriers: int = 1
    owner: KerasLayer | None = None
    forward: Callable[[Arrays], Arrays] | None = None
    back: Callable[[Arrays], Arrays] | None = None

    @property
    def weighted(self) -> tuple[KerasLayer, ...]:
        """The layers that have the weights."""
        return self.layers[: self.carriers]


@dataclass(frozen=True, kw_only=True)
class Making:
    """The circumstances in which a `translate` function makes its layers.

    Args:
        name: The name to give to the layer.
        part: The names to give to several layers: `part("query")`.
        note: Takes a sentence about what was left out.
        translate: Translates a layer inside this one; see `inner`.
        rebuild: Translates a model inside this layer; `tfq.keras_bridge.rebuild.rebuild`.
        single: Whether it must be a single layer, because it will be inside another one.
        arguments: The args and kwargs, with tf_keras tensors, that the layer is called with. None: it is called several
            times, or is inside another layer.
    """

    name: str
    part: Callable[[str], str]
    note: Callable[[str], None]
    translate: "Callable[[KerasLayer, Making], Translation]"
    rebuild: Callable[[KerasModel], object]
    single: bool = False
    arguments: tuple[tuple[object, ...], dict[str, object]] | None = None

    def inner(self, layer: KerasLayer, name: str) -> KerasLayer:
        """Return the single tf_keras layer for a layer inside the translated one."""
        translation = self.translate(layer, dataclasses.replace(self, name=name, single=True, arguments=None))
        if len(translation.layers) != 1 or translation.forward or translation.call:
            raise Untranslatable(f"it wraps a {type(layer).__name__}, which is more than one layer in tf_keras")
        return translation.layers[0]


@registry.extension_point("bridged_layer")
@dataclass(frozen=True, kw_only=True)
class BridgedLayer:
    """One class of layer: its translation from Keras 3 to tf_keras, and the facts that compression needs.

    The facts describe the tf_keras class called `name`.

    Args:
        name: Name of the class, in Keras 3 and in tf_keras. Where the two differ, that of the tf_keras class.
        help: What becomes of it or, where it cannot be translated, why not and what to do.
        translate: (Keras 3 layer, Making) -> Translation, called for a built layer. Raises `Untranslatable` with the
            reason where an option cannot be expressed. None: only tf_keras has it, or it cannot be translated.
        keras_class: The Keras 3 class itself, for a layer that is not Keras' own. A subclass of it is another class.
        qat: Where quantization-aware training fakes quantization, which is where the flatbuffer has a tensor.
            "output_only": its output. "weights_and_output": `qat_weights` as well. "activation": it is an activation
            function; some of them have a fixed range. "passes_range": none, its output has its input's scale.
            "averages": the same, but it computes between the values and rounds. "global_average": the same where the
            average is of one value; its output otherwise. "shares_range": its inputs and its output have one scale.
            "masks": the scale of its input ends at masked values, and is quantized inside its stand-in.
            "makes_mask": none, its output is boolean. "passes_mask": none, its output has its input's scale and another
            mask.
            "converter": none, the converter quantizes it with representative data; `qat_reason` says why.
        qat_reason: Why quantization-aware training leaves it to the converter.
        qat_advice: What to do then, where there is more to say than "provide representative data".
        qat_weights: Attribute of a weight -> the axes of its channels. The flatbuffer has a scale for each channel.
        function: The activation function that the layer is ("softmax"), where it has no attribute `activation`.
        absorbs: What becomes part of its op when the next layer is its only reader. "scale": a factor and an offset for
            each channel. "relu": a ReLU or another clipping.
        folds_into_previous: Whether it is nothing but a factor and an offset for each channel, so that a layer that
            absorbs a "scale" can take it in.
        stand_ins: Names of classes in quantize_configs.py that replace it in quantization-aware training, because the
            flatbuffer has tensors inside it. "always"; "swish": where it ends in a swish; "image": where it is a
            multiplication and an addition over images.
        qat_tensors: Attributes of the "always" stand-in with which it calls the tensors inside it.
        random_in_training: Whether it is the identity in inference and random in training, like Dropout.
        prunable: Attributes of the weights that pruning masks, () for none; or the reason why not, as text. None: not
            known, unless a base class has the fact.
        prunable_m_by_n: Whether the last axis but one of these weights runs over the input channels, as m:n masks need.
        wraps: Attributes with the layers inside it (a layer or a list), whose prunable weights are its own.
        channels: What it does with the channels on the last axis, in structured pruning: the name of a rule in
            compression/structured_pruning/rules.py. "per_channel": works on each channel by itself, with
            `channel_weights`. "by_trial": without weights, it is tried on random data; with weights, the channels that
            it reads and makes all stay.
        channel_weights: Attributes of its weights of shape (channels,); zeros in all of them make the channel zero.
        channel_count: The option of its config that is the number of channels, if any.
    """

    name: str
    help: str
    translate: Callable[[KerasLayer, Making], Translation] | None = None
    keras_class: type | None = None
    qat: QATPlacement = "output_only"
    qat_reason: str = ""
    qat_advice: str = ""
    qat_weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    function: str = ""
    absorbs: tuple[Literal["scale", "relu"], ...] = ()
    folds_into_previous: bool = False
    stand_ins: Mapping[StandIn, str] = field(default_factory=dict)
    qat_tensors: tuple[str, ...] = ()
    random_in_training: bool = False
    prunable: tuple[str, ...] | str | None = None
    prunable_m_by_n: bool = True
    wraps: tuple[str, ...] = ()
    channels: str = "by_trial"
    channel_weights: tuple[str, ...] = ()
    channel_count: str = ""

    def __post_init__(self) -> None:
        """Check that the facts agree with each other.

        Raises:
            InputError: They do not; `field` names the fact.
        """
        if self.qat not in get_args(QATPlacement):
            raise self._wrong("qat", did_you_mean(self.qat, get_args(QATPlacement)), get_args(QATPlacement))
        if (self.qat == "weights_and_output") != bool(self.qat_weights):
            raise self._wrong("qat_weights", 'qat="weights_and_output" and qat_weights belong together', "both")
        if (self.qat == "converter") != bool(self.qat_reason):
            raise self._wrong("qat_reason", 'qat="converter" and qat_reason belong together', "both")
        if (self.channels == "per_channel") != bool(self.channel_weights):
            raise self._wrong("channel_weights", 'channels="per_channel" and channel_weights belong together', "both")
        if self.keras_class is not None and not _is_keras_layer(self.keras_class):
            raise self._wrong("keras_class", "expected a Keras 3 layer class", "a Keras 3 layer class")

    @property
    def columns(self) -> dict[str, str]:
        """The facts in the generated table of the documentation."""
        if self.wraps:
            pruned = "as the layers inside it"
        elif isinstance(self.prunable, str):
            pruned = self.prunable
        else:
            pruned = ", ".join(self.prunable or ()) or "-"
        return {
            "from Keras 3": "no" if self.translate is None else "yes",
            "QAT": self.qat,
            "pruned weights": pruned,
            "structured pruning": self.channels,
        }

    def _wrong(self, fact: str, message: str, expected: object) -> InputError:
        got = getattr(self, fact)
        return InputError(
            f"bridged_layer {self.name!r}: {fact} is {got!r}: {message}", field=fact, expected=expected, got=got
        )


def _is_keras_layer(cls: object) -> bool:
    # By its name, so that registering a layer does not import Keras.
    bases = getattr(cls, "__mro__", ())
    return any(base.__module__.startswith("keras.src.") and base.__name__ == "Layer" for base in bases)


_NOTHING_KNOWN = BridgedLayer(name="Layer", help="a class that is not registered")


def facts_of(layer: Any) -> BridgedLayer:
    """Return what is registered for the class of a tf_keras layer; without any, an object with the default facts."""
    return registry.entries(BridgedLayer).get(type(layer).__name__, _NOTHING_KNOWN)


def inherited_facts(layer: Any) -> Iterator[BridgedLayer]:
    """Yield what is registered for the class of a tf_keras layer and for its bases, nearest first.

    Another class that only shares the name of a public one of tf_keras is left out.
    """
    known, theirs = registry.entries(BridgedLayer), import_tf_keras().layers
    return (
        known[cls.__name__]
        for cls in type(layer).__mro__
        if cls.__name__ in known and getattr(theirs, cls.__name__, cls) is cls
    )


def translation_of(layer: Any) -> BridgedLayer | None:
    """Return the entry for a Keras 3 layer: the user's for its class, or tfq's for Keras' own class of that name."""
    known = registry.entries(BridgedLayer)
    own = next((entry for entry in known.values() if entry.keras_class is type(layer)), None)
    if own is not None or not type(layer).__module__.startswith("keras.src."):
        return own
    entry = known.get(type(layer).__name__)
    return entry if entry is not None and entry.keras_class is None else None

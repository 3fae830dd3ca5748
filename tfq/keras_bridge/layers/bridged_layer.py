# SPDX-License-Identifier: Apache-2.0
"""The extension point for layers: how a Keras layer is translated to tf_keras, and how it can be compressed.

To add a layer, register one `BridgedLayer`. Quantization-aware training, pruning and structured pruning read its facts.
No other file contains the layer's name.
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
        layers: tf_keras layers. Each one is called with the output of the previous one, unless `call` is set. If empty,
            the layer is removed: its output is its input.
        call: (args, kwargs) of the user's call -> output tensors.
        carriers: The number of `layers`, counted from the first, that have the weights; 0 if the weights became
            constants.
        owner: The user's layer that has the weights, if it is an inner layer of the translated one.
        forward: Weights of the user's layer -> weights of the carriers, one carrier after the other. None: there is at
            most one carrier, with the same weights, which are matched by name.
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
class TranslationContext:
    """What a `translate` function needs to know besides the layer.

    Args:
        name: The name for the layer.
        part: Returns the name for one of several layers: `part("query")`.
        note: Reports a sentence about what was left out.
        translate: Translates an inner layer; see `inner`.
        rebuild: Translates an inner model; `tfq.keras_bridge.rebuild.rebuild`.
        single: Whether the result must be a single layer, because it becomes an inner layer of another one.
        arguments: The args and kwargs of the layer's call, with tf_keras tensors. None: it is called several times, or
            is an inner layer.
    """

    name: str
    part: Callable[[str], str]
    note: Callable[[str], None]
    translate: "Callable[[KerasLayer, TranslationContext], Translation]"
    rebuild: Callable[[KerasModel], object]
    single: bool = False
    arguments: tuple[tuple[object, ...], dict[str, object]] | None = None

    def inner(self, layer: KerasLayer, name: str) -> KerasLayer:
        """Return the single tf_keras layer for an inner layer of the translated one."""
        translation = self.translate(layer, dataclasses.replace(self, name=name, single=True, arguments=None))
        if len(translation.layers) != 1 or translation.forward or translation.call:
            raise Untranslatable(
                f"it wraps a {type(layer).__name__}, which becomes more than one layer in tf_keras. Use that layer "
                "without the wrapper, or register a tfq.BridgedLayer for it"
            )
        return translation.layers[0]


@registry.extension_point("bridged_layer")
@dataclass(frozen=True, kw_only=True)
class BridgedLayer:
    """One layer class: its translation from Keras 3 to tf_keras, and the facts that compression needs.

    The facts describe the tf_keras class called `name`.

    Args:
        name: Name of the class in Keras 3 and in tf_keras. If the two differ, the name of the tf_keras class.
        help: How it is translated. If it cannot be translated, why not and what to do.
        translate: (Keras 3 layer, TranslationContext) -> Translation, called for a built layer. It raises
            `Untranslatable` with the reason if tf_keras has no equivalent of an option. None: the layer only exists in
            tf_keras, or cannot be translated.
        keras_class: The Keras 3 class, if it is not part of Keras. Subclasses need their own entry.
        qat: Where quantization-aware training inserts fake quantization, which is where the flatbuffer has a tensor.
            "output_only": its output.
            "weights_and_output": its output and `qat_weights`.
            "activation": its output; it is an activation function, some of which have a fixed range.
            "passes_range": none; its output has the scale of its input.
            "averages": its output, if its input has a learned range, because it computes new values and rounds them.
            "global_average": none if it averages one value, otherwise its output.
            "shares_range": its output; all of its inputs have the same scale as its output.
            "masks": its input, inside of the stand-in; the range of the input ends at the masked values.
            "makes_mask": none; its output is boolean.
            "passes_mask": none; its output has the scale of its input, and another mask.
            "converter": none; the converter quantizes it with representative data, and `qat_reason` says why.
        qat_reason: Why quantization-aware training leaves the layer to the converter.
        qat_advice: What the user should do then, if it is more than "provide representative data".
        qat_weights: Attribute of a weight -> the axes of its channels. The flatbuffer has a scale for each channel.
        function: The activation function that the layer computes ("softmax"), if it has no attribute `activation`.
        absorbs: Which following layers become part of its op, if they are the only consumers of its output. "scale": a
            factor and an offset for each channel. "relu": a ReLU or another clipping.
        folds_into_previous: Whether it only applies a factor and an offset for each channel, so that a layer that
            absorbs "scale" can absorb it.
        stand_ins: Names of classes in quantize_configs.py that replace it in quantization-aware training, because the
            flatbuffer has tensors inside it. "always"; "swish": if it ends in a swish; "image": if it is a
            multiplication and an addition over images.
        qat_tensors: Attributes of the "always" stand-in: functions that it calls with its inner tensors.
        random_in_training: Whether it is the identity in inference and random in training, like Dropout.
        prunable: Attributes of the weights that pruning masks, () for none; or a text that says why none. None:
            unknown, unless a base class has the fact.
        prunable_m_by_n: Whether the second to last axis of these weights is the input channels, as m:n sparsity
            requires.
        wraps: Attributes with its inner layers (a layer or a list), whose prunable weights belong to it.
        channels: How structured pruning treats the channels, which are the last axis: the name of a rule in
            compression/structured_pruning/rules.py. "per_channel": it processes each channel separately, with
            `channel_weights`. "by_trial": without weights, it is tried on random data; with weights, all channels of
            its input and output are kept.
        channel_weights: Attributes of its weights of shape (channels,). If all of them are zero for a channel, the
            channel is zero.
        channel_count: The option of its config that is the number of channels, if any.
    """

    name: str
    help: str
    translate: Callable[[KerasLayer, TranslationContext], Translation] | None = None
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
        """Check that the facts are consistent.

        Raises:
            InputError: They are not; `field` is the name of the fact.
        """
        if self.qat not in get_args(QATPlacement):
            raise self._error("qat", did_you_mean(self.qat, get_args(QATPlacement)), get_args(QATPlacement))
        if (self.qat == "weights_and_output") != bool(self.qat_weights):
            raise self._error("qat_weights", 'qat="weights_and_output" requires qat_weights, and the reverse', "both")
        if (self.qat == "converter") != bool(self.qat_reason):
            raise self._error("qat_reason", 'qat="converter" requires qat_reason, and the reverse', "both")
        if (self.channels == "per_channel") != bool(self.channel_weights):
            raise self._error(
                "channel_weights", 'channels="per_channel" requires channel_weights, and the reverse', "both"
            )
        if self.keras_class is not None and not _is_keras_layer(self.keras_class):
            raise self._error("keras_class", "expected a Keras 3 layer class", "a Keras 3 layer class")

    @property
    def columns(self) -> dict[str, str]:
        """The facts as columns of the generated table in docs/layers.md."""
        if self.wraps:
            pruned = "those of its inner layers"
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

    def _error(self, fact: str, message: str, expected: object) -> InputError:
        got = getattr(self, fact)
        return InputError(
            f"bridged_layer {self.name!r}: {fact} is {got!r}: {message}", field=fact, expected=expected, got=got
        )


def _is_keras_layer(cls: object) -> bool:
    # Compares names, so that registering a layer does not import Keras.
    bases = getattr(cls, "__mro__", ())
    return any(base.__module__.startswith("keras.src.") and base.__name__ == "Layer" for base in bases)


_UNREGISTERED = BridgedLayer(name="Layer", help="a class that is not registered")


def facts_of(layer: Any) -> BridgedLayer:
    """Return the entry for the class of a tf_keras layer; an entry with the default facts if there is none."""
    return registry.entries(BridgedLayer).get(type(layer).__name__, _UNREGISTERED)


def inherited_facts(layer: Any) -> Iterator[BridgedLayer]:
    """Yield the entries for the class of a tf_keras layer and for its base classes, nearest first.

    A class that has the name of a public tf_keras class, but is another class, is skipped.
    """
    entries, public = registry.entries(BridgedLayer), import_tf_keras().layers
    return (
        entries[cls.__name__]
        for cls in type(layer).__mro__
        if cls.__name__ in entries and getattr(public, cls.__name__, cls) is cls
    )


def translation_of(layer: Any) -> BridgedLayer | None:
    """Return the entry for a Keras 3 layer: the user's for its class, or tfq's for the Keras class of that name."""
    entries = registry.entries(BridgedLayer)
    own = next((entry for entry in entries.values() if entry.keras_class is type(layer)), None)
    if own is not None or not type(layer).__module__.startswith("keras.src."):
        return own
    entry = entries.get(type(layer).__name__)
    return entry if entry is not None and entry.keras_class is None else None

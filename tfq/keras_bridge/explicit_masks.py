# SPDX-License-Identifier: Apache-2.0
"""Turn the implicit masks of Keras (Embedding(mask_zero=True), Masking) into tensors of the rebuilt graph.

Both Keras versions attach a mask to a tensor as an attribute. tfmot's wrapper drops it, so quantization-aware training
would leave out every layer that the mask passes through. If attention is masked, the rebuilt model computes the mask
from the input of the Embedding or Masking layer, and passes it to attention as an argument. A layer that uses a mask
differently (a recurrent layer, a masked average) and an output of the model receive it as an implicit mask again
(`WithMask`).

Keras 3's MultiHeadAttention deletes the masks of its inputs when it runs. Layers that read these tensors later (a
residual Add, and all that follow) therefore have no mask, although the symbolic tensors do. A layer with one input and
an argument `mask` still receives it, because the functional graph recorded it as that argument. Read in keras 3.15.1.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.layers.bridged_layer import Translation
from tfq.keras_bridge.layers.tfq_layers import tfq_layer_classes
from tfq.keras_bridge.operations.keras_operation import is_graph_tensor
from tfq.keras_bridge.walk import Call, is_model

# Attention layers, which take masks as arguments.
ATTENTION = ("GroupedQueryAttention", "MultiHeadAttention")
# Arguments of attention that have masks. If no key is passed, the key is the value.
_MASKED_ARGUMENTS = ("query", "value", "key")
# Merging layers that pass on a mask if all of their inputs have it.
_MERGING = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")


class ExplicitMasks:
    """The masks of one graph while it is rebuilt."""

    def __init__(
        self,
        calls: Sequence[Call],
        num_calls: Mapping[int, int] | None = None,
        part_name: Callable[[Any, str], str] = lambda layer, part: part,
        known: Mapping[int, Any] | None = None,
        is_expanded: Callable[[Any], bool] = lambda layer: False,
    ) -> None:
        """Find the layers whose masks have to become tensors.

        Args:
            calls: The calls of the user's graph, in execution order. If empty, all masks stay implicit.
            num_calls: id of a layer -> the number of its calls in the complete model.
            part_name: (layer, part) -> the name of a layer that is added for one of the user's layers.
            known: id of one of the user's tensors -> its mask in the bridged model.
            is_expanded: Whether the `call` of a layer is translated, which reads masks as tensors.
        """
        self._part_name, self._is_expanded = part_name, is_expanded
        is_read = any(
            (type(call.operation).__name__ in ATTENTION or is_expanded(call.operation))
            and _with_implicit_mask(self.tensors_of(call))
            for call in calls
        )
        self._mask_sources = _mask_sources(calls, num_calls or {}) if is_read else set()
        # id of one of the user's tensors -> its mask in the bridged model, and ids of tensors whose mask Keras 3 has
        # deleted
        self._masks: dict[int, Any] = dict(known or {})
        self._deleted: set[int] = set()

    def starts_at(self, layer: Any) -> bool:
        """Check whether the mask that a layer creates becomes a tensor."""
        return id(layer) in self._mask_sources

    def arguments(self, call: Call) -> dict[str, Any]:
        """Return the masks of the inputs of an attention layer, by argument name."""
        if type(call.operation).__name__ not in ATTENTION:
            return {}
        arguments = {**dict(zip(_MASKED_ARGUMENTS, call.args, strict=False)), **call.kwargs}
        live = {name: id(tensor) for name, tensor in arguments.items() if id(tensor) not in self._deleted}
        masks = {f"{name}_mask": self._masks.get(live.get(name, 0)) for name in _MASKED_ARGUMENTS}
        return {name: mask for name, mask in masks.items() if mask is not None}

    def passes_through(self, call: Call) -> bool:
        """Check whether a layer only passes on the mask that all of its inputs have."""
        layer, masked = call.operation, _with_implicit_mask(self.tensors_of(call))
        if not masked or not isinstance(layer, _layer_classes()):
            return True  # an operation of Keras 3 does not pass on a mask
        if type(layer).__name__ in ATTENTION:
            return not self.live(masked)
        if is_model(layer) or "mask" in inspect.signature(layer.call).parameters:
            return False
        if not _with_implicit_mask(call.outputs):
            return True
        masks = {id(self._masks.get(id(tensor))) for tensor in masked}
        is_plain = any(type(layer).compute_mask is cls.compute_mask for cls in _layer_classes())
        return len(masks) == 1 and (is_plain or type(layer).__name__ in _MERGING)

    @staticmethod
    def tensors_of(call: Call) -> list[Any]:
        """Return the user's tensors that a call reads."""
        import tensorflow as tf

        leaves = tf.nest.flatten((list(call.args), dict(call.kwargs)))
        return [leaf for leaf in leaves if is_graph_tensor(leaf) or isinstance(leaf, import_keras().KerasTensor)]

    def follow(self, call: Call, bridged: Mapping[int, Any]) -> list[Any]:
        """Record the masks of a call's outputs, and return the layers that compute a new mask.

        Args:
            call: The call.
            bridged: id of one of the user's tensors -> the tensor of the bridged model.
        """
        layer, outputs, tensors = call.operation, _with_implicit_mask(call.outputs), self.tensors_of(call)
        if self.starts_at(layer):
            masking = type(layer).__name__ == "Masking"
            value = float(np.asarray(layer.mask_value)) if masking else 0
            name = self._part_name(layer, "mask")
            built = tfq_layer_classes().PaddingMask(value=value, any_channel=masking, name=name)
            self._masks |= dict.fromkeys(map(id, outputs), built(bridged[id(tensors[0])]))
            return [built]
        if self._is_expanded(layer):
            for tensor in outputs:
                mask = bridged.get(id(tensor._keras_mask))
                if mask is not None:
                    self._masks[id(tensor)] = mask
            return []
        if not self._masks:
            return []
        if self._loses_mask(call):
            self._deleted |= set(map(id, outputs))
        if self.arguments(call) or self.passes_through(call):
            for tensor in _with_implicit_mask(tensors)[:1]:
                if id(tensor) in self._masks:
                    self._masks |= dict.fromkeys(map(id, outputs), self._masks[id(tensor)])
        if type(layer).__name__ == "MultiHeadAttention" and isinstance(layer, import_keras().layers.Layer):
            self._deleted |= set(map(id, tensors))
        return []

    def _loses_mask(self, call: Call) -> bool:
        """Check whether the outputs have no mask because masks of inputs were deleted."""
        masked = _with_implicit_mask(self.tensors_of(call))
        if type(call.operation).__name__ in ATTENTION:
            masked = masked[:1]  # the query's, which Keras passes on to the output
        return len(self.live(masked)) < len(masked)

    def live(self, tensors: Sequence[Any]) -> list[Any]:
        """Return those of the user's tensors that have a mask when the model runs."""
        return [tensor for tensor in _with_implicit_mask(tensors) if id(tensor) not in self._deleted]

    def implicit(self, tensors: Sequence[Any], bridged: dict[int, Any], layer: Any) -> tuple[dict[int, Any], list[Any]]:
        """Return `bridged` with implicit masks on the user's `tensors`, and the layers that were added for `layer`."""
        changed, added = dict(bridged), []
        for tensor in {id(tensor): tensor for tensor in tensors if id(tensor) in self._masks}.values():
            built = tfq_layer_classes().WithMask(name=self._part_name(layer, "with_mask"))
            changed[id(tensor)] = built([bridged[id(tensor)], self._masks[id(tensor)]])
            added.append(built)
        return changed, added


def without_mask(translation: Translation, name: str) -> Translation:
    """Return the translation of a layer that creates a mask, without the mask.

    name: the name of a layer that removes the mask.
    """
    layer: Any = translation.layers[0]
    if type(layer).__name__ == "Embedding":
        plain = import_tf_keras().layers.Embedding.from_config({**layer.get_config(), "mask_zero": False})
        return dataclasses.replace(translation, layers=(plain,))
    return dataclasses.replace(translation, layers=(layer, tfq_layer_classes().WithMask(name=name)))


def _mask_sources(calls: Sequence[Call], num_calls: Mapping[int, int]) -> set[int]:
    """Return the ids of the layers that create a mask, are called once, and have an input without a mask."""
    return {
        id(call.operation)
        for call in calls
        if type(call.operation).__name__ in ("Embedding", "Masking")
        and type(call.operation).__module__.startswith(("keras.src.", "tf_keras."))
        and _with_implicit_mask(call.outputs)
        and not _with_implicit_mask(ExplicitMasks.tensors_of(call))
        and num_calls[id(call.operation)] == 1
    }


def _with_implicit_mask(tensors: Sequence[Any]) -> list[Any]:
    return [tensor for tensor in tensors if getattr(tensor, "_keras_mask", None) is not None]


def _layer_classes() -> tuple[Any, Any]:
    return import_keras().layers.Layer, import_tf_keras().layers.Layer

# SPDX-License-Identifier: Apache-2.0
"""Make the implicit masks of Keras (Embedding(mask_zero=True), Masking) tensors of the rebuilt graph.

Both Keras let a mask travel as an attribute of a tensor. tfmot's wrapper drops it, so quantization-aware training would
leave out every layer that it passes through. Where attention is masked, the rebuilt model computes the mask from what
the Embedding or Masking layer reads, and gives it to attention as an argument. A layer that does other things with a
mask (a recurrent layer, a masked average) and an output of the model get it back as an implicit one (`WithMask`).

Keras 3's MultiHeadAttention deletes the masks of its inputs when it runs, so that what reads these tensors after it (a
residual Add, and all that follows) has none, although the symbolic tensors have. A layer with one input and an argument
`mask` still gets it, because the functional graph recorded it as that argument. Read in keras 3.15.1.
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
# Arguments of attention that have masks; a key that is not given is the value.
_MASKED = ("query", "value", "key")
# Merging layers that pass a mask on where all of their inputs have it.
_MERGING = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")


class ExplicitMasks:
    """The masks of one graph while it is rebuilt.

    Args:
        calls: Of the user's graph, in running order; none: all masks stay implicit.
        times: id of a layer -> how often it is called in the whole model.
        part_name: (layer, part) -> the name for a layer that is added for one of the user's.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        times: Mapping[int, int] | None = None,
        part_name: Callable[[Any, str], str] = lambda layer, part: part,
    ) -> None:
        self._part_name = part_name
        is_read = any(type(call.operation).__name__ in ATTENTION and _masked(self.tensors_of(call)) for call in calls)
        self._sources = _sources(calls, times or {}) if is_read else set()
        # id of one of the user's tensors -> our mask of it; ids of those whose mask Keras 3 has deleted when it runs
        self._masks: dict[int, Any] = {}
        self._deleted: set[int] = set()

    def starts_at(self, layer: Any) -> bool:
        """Check whether the mask that the layer makes becomes a tensor."""
        return id(layer) in self._sources

    def arguments(self, call: Call) -> dict[str, Any]:
        """Return our masks of what an attention layer is called with, by the name of their argument."""
        if type(call.operation).__name__ not in ATTENTION:
            return {}
        given = {**dict(zip(_MASKED, call.args, strict=False)), **call.kwargs}
        live = {name: id(tensor) for name, tensor in given.items() if id(tensor) not in self._deleted}
        found = {f"{name}_mask": self._masks.get(live.get(name, 0)) for name in _MASKED}
        return {name: mask for name, mask in found.items() if mask is not None}

    def passes_through(self, call: Call) -> bool:
        """Check whether the layer does nothing with a mask but to pass on that of all its inputs."""
        layer, masked = call.operation, _masked(self.tensors_of(call))
        if not masked or not isinstance(layer, _layer_classes()):
            return True  # a mask ends at an operation of Keras 3
        if type(layer).__name__ in ATTENTION:
            return not self.live(masked)
        if is_model(layer) or "mask" in inspect.signature(layer.call).parameters:
            return False
        if not _masked(call.outputs):
            return True
        own = {id(self._masks.get(id(tensor))) for tensor in masked}
        is_plain = any(type(layer).compute_mask is cls.compute_mask for cls in _layer_classes())
        return len(own) == 1 and (is_plain or type(layer).__name__ in _MERGING)

    @staticmethod
    def tensors_of(call: Call) -> list[Any]:
        """Return the user's tensors that a call reads."""
        import tensorflow as tf

        leaves = tf.nest.flatten((list(call.args), dict(call.kwargs)))
        return [leaf for leaf in leaves if is_graph_tensor(leaf) or isinstance(leaf, import_keras().KerasTensor)]

    def follow(self, call: Call, ours: Mapping[int, Any]) -> list[Any]:
        """Take note of the masks of a call's outputs; return the layers that compute a new one.

        ours: id of one of the user's tensors -> our tensor.
        """
        layer, outputs, tensors = call.operation, _masked(call.outputs), self.tensors_of(call)
        if self.starts_at(layer):
            masking = type(layer).__name__ == "Masking"
            value = float(np.asarray(layer.mask_value)) if masking else 0
            name = self._part_name(layer, "mask")
            built = tfq_layer_classes().PaddingMask(value=value, any_channel=masking, name=name)
            self._masks |= dict.fromkeys(map(id, outputs), built(ours[id(tensors[0])]))
            return [built]
        if not self._sources:
            return []
        if self._loses_mask(call):
            self._deleted |= set(map(id, outputs))
        if self.arguments(call) or self.passes_through(call):
            for tensor in _masked(tensors)[:1]:
                if id(tensor) in self._masks:
                    self._masks |= dict.fromkeys(map(id, outputs), self._masks[id(tensor)])
        if type(layer).__name__ == "MultiHeadAttention" and isinstance(layer, import_keras().layers.Layer):
            self._deleted |= set(map(id, tensors))
        return []

    def _loses_mask(self, call: Call) -> bool:
        """Check whether the outputs have no mask because those of inputs were deleted."""
        masked = _masked(self.tensors_of(call))
        if type(call.operation).__name__ in ATTENTION:
            masked = masked[:1]  # the query's; Keras gives the output that one
        return len(self.live(masked)) < len(masked)

    def live(self, tensors: Sequence[Any]) -> list[Any]:
        """Return those of the user's tensors that have a mask when the model runs."""
        return [tensor for tensor in _masked(tensors) if id(tensor) not in self._deleted]

    def implicit(self, tensors: Sequence[Any], ours: dict[int, Any], layer: Any) -> tuple[dict[int, Any], list[Any]]:
        """Return `ours` with implicit masks on the user's `tensors`, and the layers that were added for `layer`."""
        changed, added = dict(ours), []
        for tensor in {id(tensor): tensor for tensor in tensors if id(tensor) in self._masks}.values():
            built = tfq_layer_classes().WithMask(name=self._part_name(layer, "with_mask"))
            changed[id(tensor)] = built([ours[id(tensor)], self._masks[id(tensor)]])
            added.append(built)
        return changed, added


def without_mask(translation: Translation, name: str) -> Translation:
    """Return the translated source of a mask without that mask; `name`: for a layer that ends it."""
    layer: Any = translation.layers[0]
    if type(layer).__name__ == "Embedding":
        plain = import_tf_keras().layers.Embedding.from_config({**layer.get_config(), "mask_zero": False})
        return dataclasses.replace(translation, layers=(plain,))
    return dataclasses.replace(translation, layers=(layer, tfq_layer_classes().WithMask(name=name)))


def _sources(calls: Sequence[Call], times: Mapping[int, int]) -> set[int]:
    """Return the ids of the layers, called once, that make a mask of an input without one."""
    return {
        id(call.operation)
        for call in calls
        if type(call.operation).__name__ in ("Embedding", "Masking")
        and type(call.operation).__module__.startswith(("keras.src.", "tf_keras."))
        and _masked(call.outputs)
        and not _masked(ExplicitMasks.tensors_of(call))
        and times[id(call.operation)] == 1
    }


def _masked(tensors: Sequence[Any]) -> list[Any]:
    return [tensor for tensor in tensors if getattr(tensor, "_keras_mask", None) is not None]


def _layer_classes() -> tuple[Any, Any]:
    return import_keras().layers.Layer, import_tf_keras().layers.Layer

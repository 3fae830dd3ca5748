# SPDX-License-Identifier: Apache-2.0
"""Decide where fake quantization is placed: exactly where the flatbuffer will have a quantized tensor.

The placement follows from the graph. There is no tensor in the flatbuffer between a convolution, its
BatchNormalization and its ReLU. Pooling, padding and reshaping keep the scale of their input. Sigmoid, tanh and softmax
have fixed output ranges (TFLite 8-bit quantization specification).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.compression.qat.layer_facts import (
    activation_name,
    clips,
    interpolates,
    is_fusable_relu,
    is_real,
    is_rescaling,
    is_swish,
    keras_tensors,
    kind,
    normalizes_last_axis,
    only_reader,
    operation_of,
    preserves_range,
    relu_cap,
    scale_and_offset,
)
from tfq.keras_bridge import import_tf_keras
from tfq.keras_bridge.layers.bridged_layer import BridgedLayer, facts_of

OBSERVED = "observed"

_BY_CONVERTER = "the converter quantizes it with the representative dataset"

_FIXED = {
    "sigmoid": [0.0, 255 / 256],
    "softmax": [0.0, 255 / 256],
    "tanh": [-1.0, 127 / 128],
    "log_softmax": [-255 / 16, 0.0],
}
# Operations that compute exactly one of these functions.
_FUNCTIONS = {
    **dict.fromkeys(("nn.Softmax", "nn.softmax"), "softmax"),
    **dict.fromkeys(("nn.LogSoftmax", "nn.log_softmax"), "log_softmax"),
    "math.sigmoid": "sigmoid",
    "math.tanh": "tanh",
}
# The flatbuffer has a tensor before these activations, so fake quantization is placed there as well.
_QUANTIZED_BEFORE = frozenset(("softmax", "sigmoid", "tanh", "gelu"))


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The fake quantization of one layer.

    Attributes:
        config: Arguments of LayerQuantizeConfig; None if the layer needs no fake quantization.
        stand_in: Name of the class in keras_bridge/quantize_configs.py that replaces the layer's class; empty for
            none.
        why: What is quantized, in words.
    """

    config: dict[str, Any] | None = None
    stand_in: str = ""
    why: str = ""


def placements(model: Any) -> dict[str, Placement | str]:
    """Return, for each layer except inputs, its Placement, or the reason why only the converter quantizes it.

    Args:
        model: A clone (`graph.cloned`), whose layers are not connected to any other model.
    """
    graph = _Graph(model)
    return {layer.name: graph.place(layer) for layer in graph.layers}


def quantized_inputs(model: Any, placed: Mapping[str, Placement | str]) -> frozenset[str]:
    """Return the names of the Input layers to fake-quantize: float inputs that a fake-quantized layer reads.

    Args:
        model: The argument of `placements`.
        placed: Its result.
    """

    def is_read(layer: Any) -> bool:
        for node in layer.outbound_nodes:
            place = placed.get(node.outbound_layer.name)
            if isinstance(place, Placement) and (place.config or is_read(node.outbound_layer)):
                return True
        return False

    inputs = [layer for layer in model.layers if isinstance(layer, import_tf_keras().layers.InputLayer)]
    return frozenset(layer.name for layer in inputs if is_real(layer.output) and is_read(layer))


class _Graph:
    def __init__(self, model: Any) -> None:
        tf_keras = import_tf_keras()
        self.layers = [layer for layer in model.layers if not isinstance(layer, tf_keras.layers.InputLayer)]
        self._model_class = tf_keras.Model
        self._outputs = {id(tensor) for tensor in model.outputs}
        histories = [tensor._keras_history for tensor in model.outputs]
        self._output_layers = {history.layer.name for history in histories}
        self._output_calls = {(history.layer.name, history.node_index) for history in histories}
        self._in_hard_swish = {
            inner.name for layer in self.layers if kind(layer) == "Multiply" for inner in self._hard_swish(layer)
        }

    def place(self, layer: Any) -> Placement | str:
        reason = self._reason_to_skip(layer)
        if reason:
            return reason
        if layer.name in self._in_hard_swish:
            return Placement(why="part of the HARD_SWISH op that follows")
        if facts_of(layer).qat == "makes_mask":
            return Placement(why="a mask, which has no range")
        if preserves_range(layer):
            if interpolates(layer) and self._has_observed_range(layer):
                return Placement(config={"output": OBSERVED}, why="its output, in the range of its input")
            return Placement(why="its output has the scale of its input")
        if self._is_fused_into_reader(layer):
            return self._weighted(layer, None, "its output is quantized after the layer that follows")
        return self._with_output(layer, facts_of(layer))

    def _with_output(self, layer: Any, facts: BridgedLayer) -> Placement:
        if facts.qat == "masks":
            config: dict[str, Any] = {"tensors": dict.fromkeys(facts.qat_tensors, OBSERVED)}
            return Placement(config=config, stand_in=facts.stand_ins["always"], why="its input with masked values")
        function = _FUNCTIONS.get(operation_of(layer)) or facts.function
        activation = function or activation_name(layer)
        is_last = layer.name in self._output_layers
        if function or facts.qat == "activation":
            if activation in _FIXED:
                output = None if is_last else _FIXED[activation]
                return Placement(config={"output": output} if output else None, why="its range is fixed")
            if is_swish(layer):
                config = {"output": OBSERVED, "tensors": {"gate": _FIXED["sigmoid"]}}
                return Placement(config=config, stand_in="SwishActivation", why="its output and its sigmoid")
            return Placement(config={"output": OBSERVED}, why="its output")
        if activation in _QUANTIZED_BEFORE and facts.qat_weights:
            fixed = None if is_last else _FIXED.get(activation or "")
            return self._weighted(layer, fixed, f"its kernel, and around its {activation}", activation=True)
        return self._weighted(layer, OBSERVED, "its output")

    def _weighted(self, layer: Any, output: Any, why: str, *, activation: bool = False) -> Placement:
        facts = facts_of(layer)
        weights = {name: list(axes) for name, axes in facts.qat_weights.items()}
        stand_in = facts.stand_ins.get("always", "")
        if "image" in facts.stand_ins and self._is_multiplied_and_added(layer):
            stand_in = facts.stand_ins["image"]
        if not weights and output is None and not activation:
            return Placement(stand_in=stand_in, why=why)
        config: dict[str, Any] = {"weights": weights, "activation": activation, "output": output}
        description = f"its kernel, {why}" if weights and not activation else why
        if "swish" in facts.stand_ins and is_swish(layer):
            config["tensors"] = {"pre_activation": OBSERVED, "gate": _FIXED["sigmoid"]}
            stand_in = facts.stand_ins["swish"]
            return Placement(config=config, stand_in=stand_in, why=f"{description}, and around its swish")
        if facts.qat_tensors:
            config["tensors"] = dict.fromkeys(facts.qat_tensors, OBSERVED)
        return Placement(config=config, stand_in=stand_in, why=description)

    def _is_multiplied_and_added(self, layer: Any) -> bool:
        """Check whether the layer would become two ops (MUL and ADD) on images in the flatbuffer."""
        shape = layer.inbound_nodes[0].keras_inputs[0].shape
        if len(shape) != 4 or shape[-1] is None or any(self._fused_before(layer)):
            return False
        if kind(layer) == "Rescaling":
            return bool(np.ndim(layer.scale) < 2 and np.any(np.not_equal(layer.scale, 1)) and np.any(layer.offset))
        over_channels = normalizes_last_axis(layer) or (kind(layer) == "Normalization" and not layer.axis)
        return over_channels and not getattr(layer, "invert", False)

    def _has_observed_range(self, layer: Any) -> bool:
        """Check whether the layer's input has a range that is observed in training, not a fixed one."""
        return all(self._is_observed(node.inbound_layers) for node in layer.inbound_nodes)

    def _is_observed(self, before: Any) -> bool:
        if isinstance(before, import_tf_keras().layers.InputLayer):
            return is_real(before.output)
        if preserves_range(before) and not self._reason_to_skip(before):
            return self._has_observed_range(before)
        place = self.place(before)
        return isinstance(place, Placement) and (place.config or {}).get("output") == OBSERVED

    def _reason_to_skip(self, layer: Any) -> str | None:
        if isinstance(layer, self._model_class):
            return "it is a nested model: flatten it with keras_bridge.to_tf_keras"
        facts = facts_of(layer)
        if facts.qat == "converter":
            return f"{facts.qat_reason}: {_BY_CONVERTER}"
        if reason := self._reason_to_skip_calls(layer):
            return reason
        reasons = (self._reason_to_skip_call(node, facts) for node in layer.inbound_nodes)
        return next((reason for reason in reasons if reason), None)

    def _reason_to_skip_calls(self, layer: Any) -> str | None:
        """Return why the calls of a layer cannot have one range, or None."""
        nodes = layer.inbound_nodes
        if len(nodes) == 1 or clips(layer):
            return None
        if len(set(self._fused_before(layer))) > 1 or len(set(self._fused_after(layer))) > 1:
            return f"it is called {len(nodes)} times, and TFLite fuses only some of the calls: {_BY_CONVERTER}"
        has_own_range = not preserves_range(layer) or interpolates(layer)
        if has_own_range and not layer.weights and not self._reads_same_layers(layer):
            return f"it is called {len(nodes)} times after different layers, with different ranges: {_BY_CONVERTER}"
        return None

    def _reads_same_layers(self, layer: Any) -> bool:
        """Check whether all calls of a layer read the same layers, as in a shared nested model.

        The inputs of a model count as one layer, because they are what a nested model is called with.
        """
        input_class = import_tf_keras().layers.InputLayer

        def sources(node: Any) -> list[int]:
            layers = [tensor._keras_history.layer for tensor in node.keras_inputs]
            return [0 if isinstance(source, input_class) else id(source) for source in layers]

        first, *others = map(sources, layer.inbound_nodes)
        return all(other == first for other in others)

    def _reason_to_skip_call(self, node: Any, facts: BridgedLayer) -> str | None:
        if len(node.call_args) != 1 or keras_tensors(node.call_kwargs):
            return f"it has several input arguments: {_BY_CONVERTER}"
        outputs = keras_tensors(node.outputs)
        if len(outputs) != 1 or not (is_real(outputs[0]) or facts.qat == "makes_mask"):
            return "it has several outputs, which have no common range, or an integer output"
        if facts.qat != "passes_mask" and any(
            getattr(tensor, "_keras_mask", None) is not None for tensor in (*keras_tensors(node.call_args), *outputs)
        ):
            return f"a mask passes through it, which tfmot's wrapper would drop: {_BY_CONVERTER}"
        return None

    def _is_fused_into_reader(self, layer: Any) -> bool:
        """Check whether TFLite fuses each call of this layer with its only reader, without a tensor between them."""
        return all(self._fused_after(layer))

    def _fused_before(self, layer: Any) -> list[bool]:
        """Return, for each call of a layer, whether TFLite fuses the layer before it with this call."""
        befores = [node.inbound_layers for node in layer.inbound_nodes]
        return [not isinstance(item, (list, tuple)) and self._is_fused_into_reader(item) for item in befores]

    def _fused_after(self, layer: Any) -> list[bool]:
        """Return, for each call of a layer, whether TFLite fuses this call with its only reader."""
        readers: list[list[Any]] = [[] for _ in layer.inbound_nodes]
        for node in {id(node): node for node in layer.outbound_nodes}.values():
            for tensor in node.keras_inputs:
                if tensor._keras_history.layer is layer:
                    readers[tensor._keras_history.node_index].append(node.outbound_layer)
        return [
            len(items) == 1 and (layer.name, index) not in self._output_calls and self._is_fused_with(layer, items[0])
            for index, items in enumerate(readers)
        ]

    def _is_fused_with(self, layer: Any, reader: Any) -> bool:
        """Check whether TFLite fuses a call of `layer` with `reader`, the only layer that reads this call."""
        if activation_name(layer) not in (None, "linear"):
            return False
        if facts_of(reader).qat == "masks":
            return True
        absorbs = facts_of(layer).absorbs
        is_affine = facts_of(reader).folds_into_previous or scale_and_offset(reader) is not None
        if is_affine and "scale" in absorbs:
            return not hasattr(reader, "axis") or normalizes_last_axis(reader)
        is_fusable = is_fusable_relu(reader) or (clips(reader) and not self._reason_to_skip(reader))
        return is_fusable and "relu" in absorbs

    def _only_reader(self, layer: Any) -> Any:
        return None if layer.name in self._output_layers else only_reader(layer)

    def _hard_swish(self, multiply: Any) -> list[Any]:
        """Return the layers of x * relu6(x + 3) / 6 without the last, if `multiply` is the last; otherwise []."""
        inputs = multiply.inbound_nodes[0].inbound_layers
        if not isinstance(inputs, (list, tuple)) or len(inputs) != 2 or not self._reads_same_layers(multiply):
            return []
        for source, sixth in (inputs, inputs[::-1]):
            relu = self._previous(sixth) if is_rescaling(sixth, 1 / 6, 0) else None
            is_relu6 = relu is not None and is_fusable_relu(relu) and relu_cap(relu) == 6
            shifted = self._previous(relu) if is_relu6 else None
            if shifted is None or not is_rescaling(shifted, 1, 3) or self._previous(shifted, alone=False) is not source:
                continue
            if all(_is_of_one_call(node, source, sixth) for node in multiply.inbound_nodes):
                return [shifted, relu, sixth]
        return []

    def _previous(self, layer: Any, *, alone: bool = True) -> Any:
        """Return the only layer that feeds this one, or None. With `alone`, nothing else may read that layer."""
        before = layer.inbound_nodes[0].inbound_layers if layer.inbound_nodes else ()
        if isinstance(before, (list, tuple)) or any(node.inbound_layers is not before for node in layer.inbound_nodes):
            return None
        return None if alone and self._only_reader(before) is not layer else before


def _is_of_one_call(node: Any, source: Any, sixth: Any) -> bool:
    """Check whether both factors of a multiplication come from the same call of `source`, one through three layers."""
    calls = {tensor._keras_history.layer: tensor._keras_history.node_index for tensor in node.keras_inputs}
    layer, index = sixth, calls[sixth]
    for _ in range(3):
        layer, index, _ = layer.inbound_nodes[index].keras_inputs[0]._keras_history
    return layer is source and index == calls[source]

# SPDX-License-Identifier: Apache-2.0
"""tfmot's mistakes fixed from outside, for as long as a context lasts; and its 8-bit scheme with fewer rewrites.

Every private symbol of tfmot touched here was read in tensorflow-model-optimization 0.8.1:
`ModelTransformer._get_layers`, `SeparableConvQuantize.replacement`, the transform `InputLayerQuantize` and
`Default8BitQuantizeScheme`. A test asks for each of them, and shows that stock tfmot fails.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from tfq.keras_bridge import import_tfmot

_KERAS = "tensorflow_model_optimization.python.core.quantization.keras"


def _module(name: str) -> Any:
    import_tfmot()
    return importlib.import_module(f"{_KERAS}.{name}")


@contextlib.contextmanager
def repaired() -> Iterator[None]:
    """Within, tfmot keeps the order of a layer's inputs, and names the halves of a separable convolution after it.

    Stock, `_get_layers` gives a layer's inputs in the order of the config, and a matched Concatenate is then rewired in
    that order: another function, without a word. And the halves of a SeparableConv2D name themselves "conv2d_7": where
    the model has such a layer already, rebuilding it from its config never ends.
    After, tfmot is what it was.
    """
    transformer = _module("graph_transformations.model_transformer").ModelTransformer
    separable = _module("default_8bit.default_8bit_transforms").SeparableConvQuantize
    before = [(transformer, "_get_layers", transformer._get_layers), (separable, "replacement", separable.replacement)]
    try:
        transformer._get_layers = _layers_in_order
        separable.replacement = _naming_the_halves(separable.replacement)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _layers_in_order(self: Any, layer_names: list[str]) -> list[Any]:
    by_name = {layer["config"]["name"]: layer for layer in self._config["layers"]}
    return [by_name[name] for name in dict.fromkeys(layer_names) if name in by_name]


def _naming_the_halves(replacement: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @functools.wraps(replacement)
    def named(self: Any, match_layer: Any) -> Any:
        separable = match_layer.layer["config"]["name"]
        replaced = replacement(self, match_layer)
        if replaced is match_layer:
            return replaced
        for node, half in ((replaced.input_layers[0], "depthwise"), (replaced, "pointwise")):
            node.layer["name"] = node.layer["config"]["name"] = f"{separable}_{half}"
        return replaced

    return named


def leave_frozen_weights() -> None:
    """From now on, tfmot's wrapper of a frozen layer (trainable=False) has no trainable weights.

    Stock, `QuantizeWrapperV2.trainable_weights` has the kernel of a frozen layer, and training changes it.
    """
    wrapper: Any = _module("quantize_wrapper").QuantizeWrapperV2
    if isinstance(vars(wrapper)["trainable_weights"], _OfTrainable):
        return
    trainable, frozen = wrapper.trainable_weights, wrapper.non_trainable_weights

    def all_weights(self: Any) -> list[Any]:
        return [] if self.layer.trainable else list(trainable.fget(self))

    def frozen_weights(self: Any) -> list[Any]:
        return list(self._dedup_weights([*all_weights(self), *frozen.fget(self)]))

    wrapper.trainable_weights = _OfTrainable(lambda self: trainable.fget(self) if self.layer.trainable else [])
    wrapper.non_trainable_weights = _OfTrainable(frozen_weights)


class _OfTrainable(property):
    """A property that `leave_frozen_weights` has put in place of tfmot's."""


def regularize_activities(model: Any) -> None:
    """Give the wrappers of a QAT model the activity regularizers of the layers inside them.

    Stock, the wrapper calls the layer's `call`, past Keras' own `__call__`, which is what regularizes activities.
    """
    wrapper: Any = _module("quantize_wrapper").QuantizeWrapper
    for layer in model.layers:
        regularizer = getattr(layer.layer, "_activity_regularizer", None) if isinstance(layer, wrapper) else None
        if regularizer is not None:
            layer._activity_regularizer = regularizer
            layer.layer._losses = []  # symbolic ones, of the graph that tfmot took the layer out of


def selective_scheme(quantized_inputs: frozenset[str]) -> Any:
    """tfmot's 8-bit scheme for a model of which each layer to be quantized was annotated with a config of its own.

    Of its rewrites one is left: a QuantizeLayer behind an Input. tfmot itself puts none where a layer without fake
    quantization, a ZeroPadding2D say, reads the Input first. The others decide where ranges are not wanted
    (between convolution, normalization and ReLU; before Concatenate), and in doing so drop the fake quantization of
    kernels: qat/placement.py decides that by the graph. They also take most of the time.
    quantized_inputs: names of the Input layers that get one.
    """
    scheme: Any = _module("default_8bit.default_8bit_quantize_scheme").Default8BitQuantizeScheme
    registry: Any = _module("default_8bit.default_8bit_quantize_registry").Default8BitQuantizeRegistry
    layout: Any = _module("quantize_layout_transform").QuantizeLayoutTransform
    transformer = _module("graph_transformations.model_transformer").ModelTransformer
    transforms = _module("default_8bit.default_8bit_transforms")

    class SelectiveLayout(layout):
        def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> Any:
            if not quantized_inputs:  # to tfmot, no candidates are all
                return model, layer_quantize_map
            candidates = set(quantized_inputs)
            return transformer(model, [transforms.InputLayerQuantize()], candidates, layer_quantize_map).transform()

    class NothingByDefault(registry):
        def supports(self, layer: Any) -> bool:
            return False

    class SelectiveScheme(scheme):
        def get_layout_transformer(self) -> Any:
            return SelectiveLayout()

        def get_quantize_registry(self) -> Any:
            return NothingByDefault()

    return SelectiveScheme()

# SPDX-License-Identifier: Apache-2.0
"""Fixes of bugs in tfmot, by replacing its functions, and its 8-bit scheme with fewer graph transforms.

The private symbols of tfmot that are used here were read in tensorflow-model-optimization 0.8.1:
`ModelTransformer._get_layers`, `SeparableConvQuantize.replacement`, the transform `InputLayerQuantize` and
`Default8BitQuantizeScheme`. Tests check that they exist, and that unmodified tfmot fails.
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
def fixed_transforms() -> Iterator[None]:
    """Fix two bugs of tfmot's graph transforms inside a `with` block.

    - In unmodified tfmot, `_get_layers` returns the inputs of a layer in the order of the model's config, and a matched
      Concatenate is rewired in that order, which silently changes the function. The fix keeps the order of the inputs.
    - The two parts of a SeparableConv2D get automatic names such as "conv2d_7". If the model already has a layer of
      that name, rebuilding the model never ends. The fix derives the names from the separable convolution.
    """
    transformer = _module("graph_transformations.model_transformer").ModelTransformer
    separable = _module("default_8bit.default_8bit_transforms").SeparableConvQuantize
    before = [(transformer, "_get_layers", transformer._get_layers), (separable, "replacement", separable.replacement)]
    try:
        transformer._get_layers = _layers_in_order
        separable.replacement = _with_names_of_parts(separable.replacement)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _layers_in_order(self: Any, layer_names: list[str]) -> list[Any]:
    by_name = {layer["config"]["name"]: layer for layer in self._config["layers"]}
    return [by_name[name] for name in dict.fromkeys(layer_names) if name in by_name]


def _with_names_of_parts(replacement: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @functools.wraps(replacement)
    def named(self: Any, match_layer: Any) -> Any:
        separable = match_layer.layer["config"]["name"]
        replaced = replacement(self, match_layer)
        if replaced is match_layer:
            return replaced
        for node, part in ((replaced.input_layers[0], "depthwise"), (replaced, "pointwise")):
            node.layer["name"] = node.layer["config"]["name"] = f"{separable}_{part}"
        return replaced

    return named


def leave_frozen_weights() -> None:
    """Patch tfmot's wrapper, so that it has no trainable weights if its layer is frozen (trainable=False).

    In unmodified tfmot, `QuantizeWrapperV2.trainable_weights` contains the kernel of a frozen layer, and training
    changes it. The patch stays for the life of the process.
    """
    wrapper: Any = _module("quantize_wrapper").QuantizeWrapperV2
    if isinstance(vars(wrapper)["trainable_weights"], _FixedProperty):
        return
    trainable, frozen = wrapper.trainable_weights, wrapper.non_trainable_weights

    def all_weights(self: Any) -> list[Any]:
        return [] if self.layer.trainable else list(trainable.fget(self))

    def frozen_weights(self: Any) -> list[Any]:
        return list(self._dedup_weights([*all_weights(self), *frozen.fget(self)]))

    wrapper.trainable_weights = _FixedProperty(lambda self: trainable.fget(self) if self.layer.trainable else [])
    wrapper.non_trainable_weights = _FixedProperty(frozen_weights)


class _FixedProperty(property):
    """A property with which `leave_frozen_weights` replaced one of tfmot."""


def regularize_activities(model: Any) -> None:
    """Set the activity regularizers of wrapped layers on their wrappers in a QAT model.

    In unmodified tfmot, the wrapper calls the layer's `call` instead of Keras' `__call__`, which applies them.
    """
    wrapper: Any = _module("quantize_wrapper").QuantizeWrapper
    for layer in model.layers:
        regularizer = getattr(layer.layer, "_activity_regularizer", None) if isinstance(layer, wrapper) else None
        if regularizer is not None:
            layer._activity_regularizer = regularizer
            layer.layer._losses = []  # symbolic losses of the graph before tfmot's rewrite


def selective_scheme(quantized_inputs: frozenset[str]) -> Any:
    """Return tfmot's 8-bit scheme, for a model in which each layer to quantize is annotated with a config.

    The only graph transform that remains inserts a QuantizeLayer after an Input. (tfmot inserts none if the Input is
    read by a layer without fake quantization, such as ZeroPadding2D.) The other transforms remove ranges between
    convolution, normalization and ReLU and before Concatenate. They also drop the fake quantization of kernels, and
    take most of the time. Instead, qat/placement.py decides from the graph where fake quantization is placed.

    Args:
        quantized_inputs: Names of the Input layers that get a QuantizeLayer.
    """
    scheme: Any = _module("default_8bit.default_8bit_quantize_scheme").Default8BitQuantizeScheme
    registry: Any = _module("default_8bit.default_8bit_quantize_registry").Default8BitQuantizeRegistry
    layout: Any = _module("quantize_layout_transform").QuantizeLayoutTransform
    transformer = _module("graph_transformations.model_transformer").ModelTransformer
    transforms = _module("default_8bit.default_8bit_transforms")

    class SelectiveLayout(layout):
        def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> Any:
            if not quantized_inputs:  # tfmot takes an empty set of candidates as all layers
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

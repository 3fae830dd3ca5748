# SPDX-License-Identifier: Apache-2.0
"""All private symbols of tfmot and tf_keras that compression uses, except those that `tfmot_fixes` replaces.

They were read in tensorflow-model-optimization 0.8.1 and tf_keras 2.21.0. A test checks that each of them exists.
"""

import contextlib
import importlib
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tfq.keras_bridge import import_tfmot

_CORE = "tensorflow_model_optimization.python.core"


def _module(name: str) -> ModuleType:
    import_tfmot()
    return importlib.import_module(f"{_CORE}.{name}")


def is_graph_model(model: Any) -> bool:
    """Check whether a tf_keras model is functional or a built sequential model, which its graph of layers defines."""
    return bool(getattr(model, "_is_graph_network", False))


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationQuantizer:
    """A quantizer of activations in a QAT model, and its range variables.

    Attributes:
        layer: Name of its layer.
        quantizer: tfmot's quantizer.
        ranges: "min_var" and "max_var", scalar variables, of each range. There are two ranges if it quantizes before
            and after an activation function.
        is_moving_average: Whether it estimates ranges by moving averages.
        owner: Object that holds the quantizer.
        attribute: Name of the owner's attribute that is the quantizer, or a list with it.
    """

    layer: str
    quantizer: Any
    ranges: tuple[dict[str, Any], ...]
    is_moving_average: bool
    owner: Any
    attribute: str

    def replace(self, other: Any) -> None:
        """Use the quantizer `other` instead."""
        setattr(self.owner, self.attribute, [other] if self.attribute == "_output_quantizers" else other)


def activation_quantizers(model: Any) -> list[ActivationQuantizer]:
    """Return all quantizers of activations that estimate a range, in layer order, without those of fixed ranges."""
    wrapper = _module("quantization.keras.quantize_wrapper").QuantizeWrapper
    places: list[tuple[str, Any, str, Any, tuple[Any, ...]]] = []
    for layer in model.layers:
        if isinstance(layer, _module("quantization.keras.quantize_layer").QuantizeLayer) and layer.quantizer:
            places.append((layer.name, layer, "quantizer", layer.quantizer, (layer.quantizer_vars,)))
        elif isinstance(layer, wrapper):
            for quantizers in layer._quantize_activations:
                ranges = tuple(getattr(quantizers, f"_{side}_activation_vars", {}) for side in ("pre", "post"))
                places.append((layer.name, quantizers, "quantizer", quantizers.quantizer, ranges))
            if layer._output_quantizers:
                quantizer = layer._output_quantizers[0]
                places.append((layer.name, layer, "_output_quantizers", quantizer, (layer._output_quantizer_vars,)))
    average = _module("quantization.keras.quantizers").MovingAverageQuantizer
    return [
        ActivationQuantizer(
            layer=name,
            quantizer=quantizer,
            ranges=learned,
            is_moving_average=isinstance(quantizer, average),
            owner=owner,
            attribute=attribute,
        )
        for name, owner, attribute, quantizer, ranges in places
        if (learned := tuple(pair for pair in ranges if isinstance(pair, dict) and "min_var" in pair))
    ]


@contextlib.contextmanager
def shapes_of_wrapped_layers() -> Iterator[None]:
    """Give the symbolic outputs of a wrapper the shape of its layer's outputs, inside a `with` block.

    tf_keras finds the shape by a call in a graph, which takes a third of the time to wrap a model. The n-th call of a
    wrapper has the shape of the n-th call of its layer. A wrapper that gets a mask is called in a graph nevertheless.
    """
    from tf_keras.src import backend
    from tf_keras.src.engine import keras_tensor

    wrapper: Any = _module("quantization.keras.quantize_wrapper").QuantizeWrapperV2
    by_call = wrapper._infer_output_signature

    def output_signature(self: Any, inputs: Any, args: Any, kwargs: Any, input_masks: Any) -> Any:
        node = self.layer.inbound_nodes[len(self.inbound_nodes)]
        output = node.outputs
        if input_masks is not None or type(output) is not keras_tensor.KerasTensor or hasattr(output, "_keras_mask"):
            return by_call(self, inputs, args, kwargs, input_masks)
        with backend.name_scope(self._name_scope()):
            self._maybe_build(inputs)
        self._set_save_spec(inputs, args, kwargs)
        return keras_tensor.KerasTensor(output.type_spec, name=output.name)

    try:
        wrapper._infer_output_signature = output_signature
        yield
    finally:
        del wrapper._infer_output_signature


def quantize_layer() -> Any:
    """Return a new layer that quantizes an input of the model, as tfmot's 8-bit scheme inserts it."""
    quantizer = _module("quantization.keras.quantizers").AllValuesQuantizer(
        num_bits=8, per_axis=False, symmetric=False, narrow_range=False
    )
    return _module("quantization.keras.quantize_layer").QuantizeLayer(quantizer)


def quantize_wrapper(layer: Any, config: Any) -> Any:
    """Return a new wrapper that quantizes a layer by a QuantizeConfig, as quantize_apply creates it.

    Args:
        layer: A layer that was called, because the wrapper computes its output shape from the shape of its input.
        config: The QuantizeConfig.
    """
    return _module("quantization.keras.quantize_wrapper").QuantizeWrapperV2(layer, config)


def wrapped(layer: Any) -> Any:
    """Return the layer inside a wrapper of a QAT model, or `layer` if it is not wrapped."""
    return layer.layer if hasattr(layer, "quantize_config") else layer


def without_autograph(function: Callable[..., Any], layers: Iterable[Any]) -> Callable[..., Any]:
    """Return a version of `function` that TensorFlow's AutoGraph does not convert, if that is safe.

    AutoGraph converts control flow on tensors. It takes a third of the time to build and trace a QAT model, and the
    layers of Keras, tfmot and tfq do not need it. Layers and activations of the user may need it: `function` is then
    returned unchanged.

    Args:
        function: A function that calls `layers` in a graph.
        layers: The layers, wrapped or not.
    """
    import tensorflow as tf

    objects = [item for layer in map(wrapped, layers) for item in (type(layer), getattr(layer, "activation", None))]
    known = all(
        item is None or getattr(item, "__module__", "").partition(".")[0] in ("tf_keras", "tensorflow", "tfq")
        for item in objects
    )
    if not known:
        return function
    do_not_convert = tf.autograph.experimental.do_not_convert
    if isinstance(function, types.MethodType):
        # The method of a wrapped function has no parameter `self`, which model.save (to a SavedModel) would bind.
        return types.MethodType(do_not_convert(function.__func__), function.__self__)
    return do_not_convert(function)


def output_range(layer: Any) -> tuple[float, float] | None:
    """Return (minimum, maximum) of the output's fake quantization of a layer in a QAT model; None without one."""
    quantizer = (getattr(layer, "_output_quantizers", None) or [None])[0]
    if isinstance(quantizer, _module("quantization.keras.quantizers").FixedQuantizer):
        return float(quantizer.init_min), float(quantizer.init_max)
    variables = output_variables(layer)
    return None if variables is None else ends_of(variables)


def output_variables(layer: Any) -> dict[str, Any] | None:
    """Return the variables "min_var" and "max_var" of `output_range`; None if there is no range or it is fixed."""
    result: Any = None
    if isinstance(layer, _module("quantization.keras.quantize_layer").QuantizeLayer):
        result = layer.quantizer_vars
    elif isinstance(layer, _module("quantization.keras.quantize_wrapper").QuantizeWrapper):
        if layer._output_quantizers:
            result = layer._output_quantizer_vars
        else:
            quantizers = [
                item for item in layer._quantize_activations if item is getattr(layer.layer, "activation", None)
            ]
            result = getattr(quantizers[0], "_post_activation_vars", None) if quantizers else None
    return result if result and "min_var" in result else None


def inner_range(layer: Any, attribute: str) -> tuple[float, float] | None:
    """Return (minimum, maximum) of the range that the quantizer in an attribute of the wrapped layer keeps, or None."""
    variables = getattr(getattr(layer.layer, attribute, None), "_post_activation_vars", None)
    return ends_of(variables) if variables and "min_var" in variables else None


def ends_of(variables: dict[str, Any]) -> tuple[float, float]:
    """Return (minimum, maximum) of an activation range."""
    return float(variables["min_var"].numpy()), float(variables["max_var"].numpy())


def assign_ends(variables: dict[str, Any], low: Any, high: Any) -> None:
    """Set a range of activations or of a weight."""
    variables["min_var"].assign(low)
    variables["max_var"].assign(high)


def weight_ranges(model: Any) -> list[tuple[str, Any, Any, dict[str, Any]]]:
    """Return (layer, weight, quantizer, variables) of each quantized weight in a QAT model.

    quantizer(weight, True, weights=variables) updates the range. The variables include "min_var" and "max_var", which
    are scalars or have one value per channel.
    """
    return [(layer.name, *quantizers) for layer in model.layers for quantizers in getattr(layer, "_weight_vars", ())]


def moving_average_quantize() -> Callable[[Any, Any, dict[str, Any], Any], Any]:
    """Return a function that runs a training step of a MovingAverageQuantizer with any decay, not the fixed 0.999.

    Its arguments are the quantizer, the tensor, the quantizer's variables, and the decay (a scalar tensor).
    """
    quantize = _module("quantization.keras.quant_ops").MovingAvgQuantize

    def step(quantizer: Any, inputs: Any, variables: dict[str, Any], decay: Any) -> Any:
        return quantize(
            inputs,
            variables["min_var"],
            variables["max_var"],
            ema_decay=decay,
            is_training=True,
            num_bits=quantizer.num_bits,
            per_channel=quantizer.per_axis,
            symmetric=quantizer.symmetric,
            narrow_range=quantizer.narrow_range,
        )

    return step


def fake_quantize() -> Callable[[Any, Any, Any, Any], Any]:
    """Return a function that fake-quantizes a tensor to a range as a quantizer does, without changing its variables.

    Its arguments are the quantizer, the tensor, and the ends of the range (scalar tensors).
    """
    quant_ops = _module("quantization.keras.quant_ops")

    def fake_quantized(quantizer: Any, inputs: Any, low: Any, high: Any) -> Any:
        return quant_ops._FakeQuantWithMinMaxVars(
            inputs, low, high, quantizer.per_axis, quantizer.num_bits, quantizer.narrow_range
        )

    return fake_quantized


@contextlib.contextmanager
def fake_quant_as_identity() -> Iterator[None]:
    """Disable fake quantization in eager calls of QAT models, inside a `with` block.

    It stays enabled in tf.functions that were traced before.
    """
    quant_ops = _module("quantization.keras.quant_ops")
    names = ("_FakeQuantWithMinMaxVars", "FixedQuantize")
    before = {name: getattr(quant_ops, name) for name in names}
    try:
        for name in names:
            setattr(quant_ops, name, lambda inputs, *args, **kwargs: inputs)
        yield
    finally:
        for name, function in before.items():
            setattr(quant_ops, name, function)


@contextlib.contextmanager
def automatic_names_from_zero(avoid: Iterable[str]) -> Iterator[None]:
    """Restart the numbering of automatic layer names, without the names in `avoid`, inside a `with` block.

    tfmot creates layers with automatic names (quantize_layer, the two parts of a SeparableConv2D). The names should not
    depend on what the process built before. If a name is taken, tfmot rebuilds the model in an endless loop.
    """
    from tf_keras.src import backend

    counters = backend.get_default_graph_uid_map()
    before = dict(counters)
    counters.clear()
    try:
        for name in avoid:
            prefix, _, number = name.rpartition("_")
            for key, used in ((name, 0), (prefix, int(number) if number.isdecimal() else -1)):
                counters["", key] = max(counters["", key], used + 1)
        yield
    finally:
        counters.clear()
        counters.update(before)

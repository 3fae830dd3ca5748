# SPDX-License-Identifier: Apache-2.0
"""BatchNormalization folded into the Dense layer before it, once it has done its work in training.

Behind a convolution the converter does so itself, also with a fake-quantized kernel: it has a scale for each channel.
A Dense kernel has one scale for all of it, which a factor for each unit would undo, so the converter leaves it float.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.graph import cloned
from tfq.errors import TfqError
from tfq.keras_bridge import import_tf_keras


def fold_dense_normalizations(model: Any) -> Any:
    """`model`, or an equal new one, where each BatchNormalization behind a linear Dense alone is part of that Dense.

    kernel * g and (bias - mean) * g + beta, with g = gamma / sqrt(variance + epsilon) and the moving statistics; zeros
    of the kernel stay zero. The other layers keep their names and weights.
    """
    # A clone has no other graph than its own, so its nodes tell who feeds whom.
    clone, _ = cloned(model)
    dense_of = {layer.name: dense.name for layer in clone.layers if (dense := _dense_before(layer)) is not None}
    if not dense_of:
        return model
    folded = _rebuilt(clone, dense_of)
    normalizations = {dense: clone.get_layer(name) for name, dense in dense_of.items()}
    for layer in folded.layers:
        old = clone.get_layer(layer.name)
        weights = old.get_weights()
        layer.set_weights(_folded(weights, normalizations[layer.name]) if layer.name in normalizations else weights)
    return folded


def fold_quantized(trained: Any, model: Any, quantize: Callable[[Any], Any]) -> Any:
    """`trained`, or an equal quantization-aware model where each Dense has taken in the normalization behind it.

    trained: quantize(model) after its training: layer `x` of `model` is `quant_x`. The ranges of activations go over as
    they were learned; that of a kernel, where tfmot gives it one, is set anew. Not compiled.
    """
    template = fold_dense_normalizations(model)
    if template is model:
        return trained
    kept = {layer.name for layer in template.layers}
    clone, _ = cloned(model)
    behind = {
        dense.name: layer.name
        for layer in clone.layers
        if layer.name not in kept and (dense := _dense_before(layer)) is not None
    }
    folded = quantize(template)
    for layer in folded.layers:
        source = trained.get_layer(layer.name)
        name = layer.layer.name if hasattr(layer, "layer") else layer.name
        if name not in behind:
            layer.set_weights(source.get_weights())
            continue
        normalization = trained.get_layer(f"quant_{behind[name]}")
        values = _by_name(source)
        kernel, bias = _folded([values[name] for name in ("kernel", "bias") if name in values], normalization.layer)
        bound = np.asarray(np.abs(kernel).max())
        values |= {"kernel": kernel, "bias": bias, "kernel_min": -bound, "kernel_max": bound}
        ranges = _by_name(normalization)
        if not {"output_min", "output_max"} <= set(ranges):
            raise TfqError(
                f"layer {normalization.name!r} has no output range after quantization-aware training, wanted "
                f"output_min and output_max, got {', '.join(ranges)}: it is not "
                "quantized by tfmot's default 8-bit scheme"
            )
        values |= {f"post_activation_{end}": ranges[f"output_{end}"] for end in ("min", "max")}
        layer.set_weights([values[_short(weight)] for weight in layer.weights])
    return folded


def _by_name(layer: Any) -> dict[str, NDArray]:
    return {_short(weight): value for weight, value in zip(layer.weights, layer.get_weights(), strict=True)}


def _short(weight: Any) -> str:
    """A weight's own name: `kernel` of "quant_dense1/kernel:0"."""
    return weight.name.rpartition("/")[2].partition(":")[0].removeprefix("quant_")


def _dense_before(layer: Any) -> Any:
    """The linear Dense that feeds this BatchNormalization, and nothing else; None where there is none such."""
    layers = import_tf_keras().layers
    if type(layer) is not layers.BatchNormalization or len(layer.inbound_nodes) != 1:
        return None
    before = layer.inbound_nodes[0].inbound_layers
    is_alone = type(before) is layers.Dense and len(before.inbound_nodes) == len(before.outbound_nodes) == 1
    is_last_axis = is_alone and list(np.atleast_1d(layer.axis)) in ([len(before.output.shape) - 1], [-1])
    return before if is_last_axis and before.activation is import_tf_keras().activations.linear else None


def _rebuilt(model: Any, dense_of: dict[str, str]) -> Any:
    """A model of new layers without the normalizations; what took their output takes that of their Dense."""
    config = model.get_config()
    layers = [layer for layer in config["layers"] if layer["config"]["name"] not in dense_of]
    for layer in layers:
        if layer["config"]["name"] in dense_of.values():
            layer["config"]["use_bias"] = True
    config = {**_rewired(config, dense_of), "layers": _rewired(layers, dense_of)}
    own = {type(layer).__name__: type(layer) for layer in model.layers}
    return model.__class__.from_config(config, custom_objects=own)


def _rewired(value: Any, dense_of: dict[str, str]) -> Any:
    """The config with each [layer, node, tensor, ...] that means a normalization meaning its Dense."""
    if isinstance(value, dict):
        return {key: _rewired(each, dense_of) for key, each in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) >= 3 and isinstance(value[0], str) and value[0] in dense_of and isinstance(value[1], int):
        return type(value)([dense_of[value[0]], *value[1:]])
    return type(value)(_rewired(each, dense_of) for each in value)


def _folded(weights: list[NDArray], normalization: Any) -> list[NDArray]:
    """Kernel and bias of a Dense with what comes behind it in them, in float64 until the end."""
    kernel = weights[0].astype(np.float64)
    bias = weights[1].astype(np.float64) if len(weights) > 1 else np.zeros(kernel.shape[-1])
    factor = 1 / np.sqrt(np.asarray(normalization.moving_variance, np.float64) + normalization.epsilon)
    if normalization.scale:
        factor = factor * np.asarray(normalization.gamma, np.float64)
    bias = (bias - np.asarray(normalization.moving_mean, np.float64)) * factor
    if normalization.center:
        bias = bias + np.asarray(normalization.beta, np.float64)
    return [(kernel * factor).astype(np.float32), bias.astype(np.float32)]

# SPDX-License-Identifier: Apache-2.0
"""How many weights are exactly zero: in a Keras model, and in the flatbuffer that was made of it."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from tfq.auditing import Weight, audit_model
from tfq.compression.graph import named_layers
from tfq.keras_bridge import import_tf_keras, model_kind
from tfq.tflite import Tensor, constant_values, read

# The matrices that a product is made with. Biases and normalization are not counted: no pruning touches them.
KERNELS = frozenset(("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings"))
_BY_INPUT = ("CONV_2D", "FULLY_CONNECTED")


def measure_sparsity(model: Any) -> dict[str, float]:
    """Layer name -> fraction of exact zeros in its kernels, of either Keras' model, in layer order.

    Layers without a kernel are left out; what a custom layer lists in `get_prunable_weights()` counts as one. A layer
    of a model inside the model is "inner/layer". A layer that pruning or QAT has wrapped is called by the name that it
    had before ("conv1", not "quant_conv1").
    """
    model_kind(model)
    fractions: dict[str, float] = {}
    for name, layer in named_layers(model):
        kernels = {id(weight): np.asarray(weight) for weight in kernels_of(layer)}
        size = sum(kernel.size for kernel in kernels.values())
        if size:
            zeros = sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels.values())
            fractions[name_before(name, layer)] = zeros / size
    return fractions


def sparsity_in_flatbuffer(model: bytes) -> dict[str, float | None]:
    """Keras layer -> fraction of its weights that are exactly 0 in a `.tflite`; None where they cannot be counted.

    A quantized weight is zero where its code is the zero point. Rounding makes small weights zero as well, so that a
    dense int8 model has some zeros already. A layer inside a model goes by its own name ("conv" of "inner/conv"), and a
    weight that no layer is known of by its tensor's. Cannot be counted: weights stored sparse, or below 8 bits.
    """
    counted: dict[str, list[Weight]] = {}
    for weight in audit_model(model).weights:
        counted.setdefault(weight.keras_layer or weight.tensor, []).append(weight)
    return {name: _fraction(weights) for name, weights in counted.items()}


def groups_in_flatbuffer(model: bytes, m: int, n: int) -> dict[str, float]:
    """Keras layer -> share of the groups of `n` weights along the last axis with at least `m` zeros, in a `.tflite`.

    The last axis of the weights of CONV_2D (outputs, height, width, inputs) and FULLY_CONNECTED (outputs, inputs) is
    that of the input channels: n weights in a row as they are stored, which is what 2:4 kernels want. What is left
    behind the last whole group may keep n - m weights. Other ops are left out, and what cannot be read as numbers.
    """
    kept: dict[str, list[bool]] = {}
    for weight, tensor in stored_weights(model):
        if weight.op not in _BY_INPUT:
            continue
        zero_point = tensor.zero_point[0] if tensor.zero_point else 0
        is_zero = constant_values(model, tensor).reshape(-1, tensor.shape[-1]) == zero_point
        groups = [is_zero[:, start : start + n] for start in range(0, tensor.shape[-1], n)]
        holds = [(~group).sum(axis=1) <= n - m for group in groups]
        kept.setdefault(weight.keras_layer or weight.tensor, []).extend(np.concatenate(holds).tolist())
    return {name: float(np.mean(item)) for name, item in kept.items()}


def stored_weights(model: bytes) -> Iterator[tuple[Weight, Tensor]]:
    """The weights of a `.tflite` whose values can be read as numbers, each with its tensor."""
    parsed = read(model)
    tensors = {tensor.name: tensor for graph in parsed.subgraphs for tensor in graph.tensors if tensor.is_constant}
    yield from ((item, tensors[item.tensor]) for item in audit_model(model).weights if item.zeros is not None)


def keep_zeros(model: Any, layers: Collection[str]) -> Any:
    """A tf_keras callback that puts the weights which are zero now back to zero after every step.

    layers: whose kernels these are, by their names in `measure_sparsity`.

    tfmot's prune-preserving scheme does it with a mask inside the layer, but its own layout transforms take the mask
    away from a layer that feeds a Concatenate, or a ReLU without normalization between (measured on 0.8.1).
    """
    import tensorflow as tf

    chosen = [layer for name, layer in named_layers(model) if name_before(name, layer) in layers]
    kernels = [kernel for layer in chosen for kernel in kernels_of(layer)]
    masks = [tf.cast(kernel != 0, kernel.dtype) for kernel in kernels]

    class KeepZeros(import_tf_keras().callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            for kernel, mask in zip(kernels, masks, strict=True):
                kernel.assign(kernel * mask)

    return KeepZeros()


def name_before(name: str, layer: Any) -> str:
    """What the layer that `named_layers` gives was called before pruning or QAT wrapped it."""
    return name.removesuffix(layer.name) + layer.layer.name if _is_wrapper(layer) else name


def kernels_of(layer: Any) -> list[Any]:
    """The kernels of a layer by their names, whatever QAT has put around it, and what a custom one says it has."""
    inner = layer.layer if _is_wrapper(layer) else layer
    message = list(inner.get_prunable_weights()) if hasattr(inner, "get_prunable_weights") else []
    seen = {id(weight) for weight in message}
    named = (weight for weight in layer.weights if _last_part(weight.name) in KERNELS)
    return [*message, *(weight for weight in named if id(weight) not in seen)]


def _last_part(name: str) -> str:
    return name.split(":")[0].rpartition("/")[2]


def _is_wrapper(layer: Any) -> bool:
    return type(layer).__name__ in ("PruneLowMagnitude", "QuantizeWrapper", "QuantizeWrapperV2")


def _fraction(weights: list[Weight]) -> float | None:
    zeros = [weight.zeros for weight in weights]
    values = sum(weight.values for weight in weights)
    return sum(item for item in zeros if item is not None) / values if None not in zeros and values else None

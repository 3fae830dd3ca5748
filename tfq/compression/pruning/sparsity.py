# SPDX-License-Identifier: Apache-2.0
"""Measure sparsity, the fraction of weights that are exactly zero, in Keras models and in `.tflite` files."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.auditing import Weight, audit_model
from tfq.compression.graph import named_layers
from tfq.compression.pruning.mask_shapes import block_sums, reason_against_blocks
from tfq.keras_bridge import import_tf_keras, model_kind
from tfq.tflite import Tensor, constant_values, read

# The names of kernel weights. Biases and normalization parameters are never pruned, and are not counted.
KERNELS = frozenset(("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings"))
_BY_INPUT = ("CONV_2D", "FULLY_CONNECTED")


def measure_sparsity(model: Any) -> dict[str, float]:
    """Return the fraction of exact zeros in the kernels of each layer, in layer order.

    Args:
        model: Keras 3 or tf_keras model.

    Returns:
        Layer -> fraction of zeros. Layers without a kernel are left out. The weights that a custom layer lists in
        `get_prunable_weights()` count as kernels. A layer of a nested model is "inner/layer". A layer that pruning or
        QAT has wrapped has its original name ("conv1", not "quant_conv1").
    """
    model_kind(model)
    fractions: dict[str, float] = {}
    for name, layer in named_layers(model):
        kernels = {id(weight): np.asarray(weight) for weight in kernels_of(layer)}
        size = sum(kernel.size for kernel in kernels.values())
        if size:
            zeros = sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels.values())
            fractions[unwrapped_name(name, layer)] = zeros / size
    return fractions


def sparsity_in_flatbuffer(model: bytes) -> dict[str, float | None]:
    """Return the fraction of exact zeros in the weights of each Keras layer of a `.tflite`.

    A quantized weight is zero if its integer equals the zero point. Rounding to integers makes small weights zero, so
    that a dense int8 model has some zeros as well.

    Args:
        model: Contents of a `.tflite` file.

    Returns:
        Layer -> fraction of zeros; None if they cannot be counted, because weights are stored in a sparse format or
        in fewer than 8 bits. A layer of a nested model has its own name ("conv" for "inner/conv"). A weight of an
        unknown layer has the name of its tensor.
    """
    counted: dict[str, list[Weight]] = {}
    for weight in audit_model(model).weights:
        counted.setdefault(weight.keras_layer or weight.tensor, []).append(weight)
    return {name: _fraction(weights) for name, weights in counted.items()}


def m_by_n_groups_in_flatbuffer(model: bytes, m: int, n: int) -> dict[str, float]:
    """Return the fraction of groups of `n` weights with at least `m` zeros, for each Keras layer of a `.tflite`.

    Groups run along the last axis of the weights of CONV_2D (outputs, height, width, inputs) and FULLY_CONNECTED
    (outputs, inputs). This is the axis of the input channels, on which 2:4 sparse kernels need contiguous groups.
    An incomplete last group may keep n - m weights.

    Args:
        model: Contents of a `.tflite` file.
        m: Number of zeros per group.
        n: Size of a group.

    Returns:
        Layer -> fraction of its groups. Other ops, and weights whose values cannot be read, are left out.
    """
    groups_by_layer: dict[str, list[bool]] = {}
    for weight, tensor in stored_weights(model):
        if weight.op not in _BY_INPUT:
            continue
        zero_point = tensor.zero_point[0] if tensor.zero_point else 0
        is_zero = constant_values(model, tensor).reshape(-1, tensor.shape[-1]) == zero_point
        groups = [is_zero[:, start : start + n] for start in range(0, tensor.shape[-1], n)]
        is_sparse = [(~group).sum(axis=1) <= n - m for group in groups]
        groups_by_layer.setdefault(weight.keras_layer or weight.tensor, []).extend(np.concatenate(is_sparse).tolist())
    return {name: float(np.mean(item)) for name, item in groups_by_layer.items()}


def zero_blocks_in_flatbuffer(model: bytes, height: int, width: int) -> dict[str, float]:
    """Return the fraction of zero blocks of `height` inputs and `width` outputs, for each layer of a `.tflite`.

    Args:
        model: Contents of a `.tflite` file.
        height: Number of consecutive inputs at one tap; 0 for all inputs at all taps.
        width: Number of consecutive outputs; 0 for all.

    Returns:
        Layer -> fraction of its blocks. Other ops than CONV_2D and FULLY_CONNECTED, weights whose values cannot be
        read, and weights that such blocks do not divide are left out.
    """
    zeros: dict[str, list[NDArray]] = {}
    for weight, tensor in stored_weights(model):
        if weight.op not in _BY_INPUT:
            continue
        zero_point = tensor.zero_point[0] if tensor.zero_point else 0
        is_used = np.moveaxis(constant_values(model, tensor) != zero_point, 0, -1)  # (..., inputs, outputs)
        if reason_against_blocks(is_used.shape, (height, width)) is None:
            is_zero = block_sums(is_used.astype(np.int64), (height, width)) == 0
            zeros.setdefault(weight.keras_layer or weight.tensor, []).append(is_zero.ravel())
    return {name: float(np.concatenate(items).mean()) for name, items in zeros.items()}


def measure_zero_blocks(model: Any, height: int, width: int) -> dict[str, float]:
    """Return the fraction of zero blocks of `height` inputs and `width` outputs, for each layer of a model.

    Args:
        model: Keras 3 or tf_keras model.
        height: As in `zero_blocks_in_flatbuffer`.
        width: As there.

    Returns:
        Layer -> fraction of its blocks. Layers with a kernel that such blocks do not divide are left out.
    """
    fractions = {}
    for name, layer in named_layers(model):
        kernels = [np.asarray(kernel) for kernel in kernels_of(layer)]
        if kernels and not any(reason_against_blocks(kernel.shape, (height, width)) for kernel in kernels):
            zeros = [block_sums(np.abs(kernel), (height, width)).ravel() == 0 for kernel in kernels]
            fractions[unwrapped_name(name, layer)] = float(np.concatenate(zeros).mean())
    return fractions


def stored_weights(model: bytes) -> Iterator[tuple[Weight, Tensor]]:
    """Yield each weight of a `.tflite` whose values can be read, with its tensor."""
    parsed = read(model)
    tensors = {tensor.name: tensor for graph in parsed.subgraphs for tensor in graph.tensors if tensor.is_constant}
    yield from ((item, tensors[item.tensor]) for item in audit_model(model).weights if item.zeros is not None)


def sparsity_preserving_callback(model: Any, layers: Collection[str]) -> Any:
    """Return a tf_keras callback that resets all weights that are zero now to zero after every training step.

    tfmot's prune-preserving scheme uses a mask inside the layer instead. In tfmot 0.8.1 its own layout transforms
    remove this mask from a layer that feeds a Concatenate, or feeds a ReLU without a normalization in between.

    Args:
        model: The tf_keras model to train.
        layers: Names, as in `measure_sparsity`, of the layers whose kernels keep their zeros.
    """
    import tensorflow as tf

    chosen = [layer for name, layer in named_layers(model) if unwrapped_name(name, layer) in layers]
    kernels = [kernel for layer in chosen for kernel in kernels_of(layer)]
    masks = [tf.cast(kernel != 0, kernel.dtype) for kernel in kernels]

    class PreserveSparsity(import_tf_keras().callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            for kernel, mask in zip(kernels, masks, strict=True):
                kernel.assign(kernel * mask)

    return PreserveSparsity()


def unwrapped_name(name: str, layer: Any) -> str:
    """Return the name that a layer had before pruning or QAT wrapped it.

    Args:
        name: The name from `named_layers`, with the names of nested models.
        layer: The layer, wrapped or not.
    """
    return name.removesuffix(layer.name) + layer.layer.name if _is_wrapper(layer) else name


def kernels_of(layer: Any) -> list[Any]:
    """Return the kernels of a layer, wrapped or not: those with known names, and those a custom layer lists."""
    inner = layer.layer if _is_wrapper(layer) else layer
    declared = list(inner.get_prunable_weights()) if hasattr(inner, "get_prunable_weights") else []
    seen = {id(weight) for weight in declared}
    named = (weight for weight in layer.weights if _last_part(weight.name) in KERNELS)
    return [*declared, *(weight for weight in named if id(weight) not in seen)]


def _last_part(name: str) -> str:
    return name.split(":")[0].rpartition("/")[2]


def _is_wrapper(layer: Any) -> bool:
    return type(layer).__name__ in ("PruneLowMagnitude", "QuantizeWrapper", "QuantizeWrapperV2")


def _fraction(weights: list[Weight]) -> float | None:
    zeros = [weight.zeros for weight in weights]
    values = sum(weight.values for weight in weights)
    return sum(item for item in zeros if item is not None) / values if None not in zeros and values else None

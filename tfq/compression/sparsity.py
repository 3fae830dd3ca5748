# SPDX-License-Identifier: Apache-2.0
"""How many weights are exactly zero."""

from typing import Any

import numpy as np

from tfq.compression.graph import named_layers
from tfq.keras_bridge import import_tf_keras, model_kind

# The matrices that a product is made with. Biases and normalization are not counted: no pruning touches them.
KERNELS = frozenset(("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings"))


def measure_sparsity(model: Any) -> dict[str, float]:
    """Layer name -> fraction of exact zeros in its kernels, of either Keras' model, in layer order.

    Layers without a kernel are left out; a layer of a model inside the model is "inner/layer". A layer that pruning
    or QAT has wrapped is called by the name that it had before ("conv1", not "quant_conv1").
    """
    model_kind(model)
    fractions: dict[str, float] = {}
    for name, layer in named_layers(model):
        kernels = {id(weight): np.asarray(weight) for weight in layer.weights if _last_part(weight.name) in KERNELS}
        size = sum(kernel.size for kernel in kernels.values())
        if size:
            around, _, _ = name.rpartition("/")
            inner = getattr(layer, "layer", layer).name if _is_wrapper(layer) else layer.name
            zeros = sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels.values())
            fractions[f"{around}/{inner}" if around else inner] = zeros / size
    return fractions


def keep_zeros(model: Any) -> Any:
    """A tf_keras callback that puts the weights of `model` which are zero now back to zero after every step.

    tfmot's prune-preserving scheme does it with a mask inside the layer, but its own layout transforms take the mask
    away from a layer that feeds a Concatenate, or a ReLU without normalization between (measured on 0.8.1).
    """
    import tensorflow as tf

    kernels = [
        weight for _, layer in named_layers(model) for weight in layer.weights if _last_part(weight.name) in KERNELS
    ]
    masks = [tf.cast(kernel != 0, kernel.dtype) for kernel in kernels]

    class KeepZeros(import_tf_keras().callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            for kernel, mask in zip(kernels, masks, strict=True):
                kernel.assign(kernel * mask)

    return KeepZeros()


def _last_part(name: str) -> str:
    return name.split(":")[0].rpartition("/")[2]


def _is_wrapper(layer: Any) -> bool:
    return type(layer).__name__ in ("PruneLowMagnitude", "QuantizeWrapper", "QuantizeWrapperV2")

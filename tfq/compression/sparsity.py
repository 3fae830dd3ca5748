# SPDX-License-Identifier: Apache-2.0
"""How many weights are exactly zero."""

from typing import Any

import numpy as np

from tfq.compression.graph import named_layers
from tfq.keras_bridge import model_kind

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


def _last_part(name: str) -> str:
    return name.split(":")[0].rpartition("/")[2]


def _is_wrapper(layer: Any) -> bool:
    return type(layer).__name__ in ("PruneLowMagnitude", "QuantizeWrapper", "QuantizeWrapperV2")

# SPDX-License-Identifier: Apache-2.0
"""How many codes the weights of each layer have in the flatbuffer: what clustering has left there."""

import numpy as np

from tfq.compression.pruning.sparsity import stored_weights
from tfq.tflite import constant_values


def codes_in_flatbuffer(model: bytes) -> dict[str, int]:
    """Keras layer -> how many different integers its weights have in a quantized `.tflite`, all channels together.

    A layer inside a model goes by its own name, and a weight that no layer is known of by its tensor's; of a layer with
    several kernels the most. Left out: float weights, and what is stored sparse.
    """
    found: dict[str, int] = {}
    for weight, tensor in stored_weights(model):
        if weight.dtype.startswith("int"):
            name = weight.keras_layer or weight.tensor
            found[name] = max(found.get(name, 0), int(np.unique(constant_values(model, tensor)).size))
    return found

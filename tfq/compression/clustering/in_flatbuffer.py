# SPDX-License-Identifier: Apache-2.0
"""How many codes the weights of each layer have in the flatbuffer: what clustering has left there."""

import numpy as np

from tfq.flatbuffer import audit_model, constant_values, read


def codes_in_flatbuffer(model: bytes) -> dict[str, int]:
    """Keras layer -> how many different integers its weights have in a quantized `.tflite`, all channels together.

    A layer inside a model goes by its own name, and a weight that no layer is known of by its tensor's; of a layer with
    several kernels the most. Left out: float weights, and what is stored sparse.
    """
    parsed = read(model)
    tensors = {tensor.name: tensor for graph in parsed.subgraphs for tensor in graph.tensors if tensor.is_constant}
    found: dict[str, int] = {}
    for weight in audit_model(model).weights:
        if weight.zeros is None or not weight.dtype.startswith("int"):
            continue
        name = weight.keras_layer or weight.tensor
        codes = np.unique(constant_values(model, tensors[weight.tensor])).size
        found[name] = max(found.get(name, 0), int(codes))
    return found

# SPDX-License-Identifier: Apache-2.0
"""A flatbuffer with two convolutions, by default strided 1x1 ones."""

import numpy as np
from ai_edge_litert import schema_py_generated as generated
from built_models import Call, T, build
from one_op_models import options


def model(strides=(2, 3), size=7, dtype="int8", kernel=1, weights="int8") -> bytes:
    """Return two convolutions of one input, and their sum."""
    height, width = (-(-(size - kernel + 1) // stride) for stride in strides)
    values = np.random.default_rng(0).integers(-127, 128, (3, kernel, kernel, 2))
    scale = 0.1 if dtype == "int8" else None
    tensors = {
        "x": T(dtype, (1, size, size, 2), scale),
        "w": T(weights, values.shape, 0.02 if weights == "int8" else None, values=values.astype(weights)),
        "b": T("int32", (3,), 0.002, values=np.array([5, -700, 900], np.int32))
        if dtype == "int8"
        else T("float32", (3,), values=np.ones(3, np.float32)),
        **dict.fromkeys(("p", "q", "y"), T(dtype, (1, height, width, 3), scale and 0.3)),
    }
    convolution = options("Conv2D", strideH=strides[0], strideW=strides[1], dilationHFactor=1, dilationWFactor=1)
    convolution.padding = generated.Padding.VALID
    calls = [
        Call("CONV_2D", ["x", "w", "b"], ["p"], convolution, 3),
        Call("CONV_2D", ["x", "w", "b"], ["q"], convolution, 3),
        Call("ADD", ["p", "q"], ["y"], options("Add"), 2),
    ]
    return build(tensors, calls, ["x"], ["y"])

# SPDX-License-Identifier: Apache-2.0
"""Arithmetic and activations of `keras.ops` that an ordinary tf_keras layer computes, depending on their arguments."""

import math
from collections.abc import Callable
from typing import Any

from tfq.keras_bridge.operations.keras_operation import Call, LayerCall, is_graph_tensor, scalar_constant


def _merged(call: Call, layer: str, left: Any, right: Any) -> LayerCall:
    """Return a merging layer for two tensors; tf_keras requires equal ranks, dtypes and batch sizes."""
    if not (is_graph_tensor(left) and is_graph_tensor(right)) or left is right:
        return None
    if left.dtype != right.dtype or not left.dtype.is_floating or left.shape.rank is None:
        return None
    if left.shape.rank != right.shape.rank or left.shape.rank < 2 or left.shape[0] != right.shape[0]:
        return None
    return getattr(call.layers, layer)(name=call.name), [left, right]


def _scaled(call: Call, x: str, scale: float | None, offset: float | None) -> LayerCall:
    if scale is None or offset is None or not call.is_float(x) or not (math.isfinite(scale) and math.isfinite(offset)):
        return None
    return call.layers.Rescaling(scale, offset=offset, name=call.name), call[x]


def _add(call: Call) -> LayerCall:
    for x, constant_name in (("x1", "x2"), ("x2", "x1")):
        if (constant_value := scalar_constant(call[constant_name])) is not None:
            return _scaled(call, x, 1.0, constant_value)
    return _merged(call, "Add", call["x1"], call["x2"])


def _subtract(call: Call) -> LayerCall:
    if (constant_value := scalar_constant(call["x2"])) is not None:
        return _scaled(call, "x1", 1.0, -constant_value)
    if (constant_value := scalar_constant(call["x1"])) is not None:
        return _scaled(call, "x2", -1.0, constant_value)
    return _merged(call, "Subtract", call["x1"], call["x2"])


def _multiply(call: Call) -> LayerCall:
    for x, constant_name in (("x1", "x2"), ("x2", "x1")):
        if (constant_value := scalar_constant(call[constant_name])) is not None:
            return _scaled(call, x, constant_value, 0.0)
    return _merged(call, "Multiply", call["x1"], call["x2"])


def _divide(call: Call) -> LayerCall:
    constant_value = scalar_constant(call["x2"])
    return None if not constant_value else _scaled(call, "x1", 1.0 / constant_value, 0.0)


def _negative(call: Call) -> LayerCall:
    return _scaled(call, "x", -1.0, 0.0)


def _extreme(layer: str) -> Callable[[Call], LayerCall]:
    def translate(call: Call) -> LayerCall:
        for x, constant_name in (("x1", "x2"), ("x2", "x1")):
            if layer == "Maximum" and scalar_constant(call[constant_name]) == 0 and call.is_float(x):
                return call.layers.ReLU(name=call.name), call[x]
        return _merged(call, layer, call["x1"], call["x2"])

    return translate


def _clip(call: Call) -> LayerCall:
    low, high = scalar_constant(call["x_min"]), scalar_constant(call["x_max"])
    if low != 0 or high is None or high <= 0 or not call.is_float("x"):
        return None
    return call.layers.ReLU(max_value=high, name=call.name), call["x"]


def _activation(function: str) -> Callable[[Call], LayerCall]:
    def translate(call: Call) -> LayerCall:
        return (call.layers.Activation(function, name=call.name), call["x"]) if call.is_float("x") else None

    return translate


def _relu(max_value: float | None) -> Callable[[Call], LayerCall]:
    def translate(call: Call) -> LayerCall:
        return (call.layers.ReLU(max_value=max_value, name=call.name), call["x"]) if call.is_float("x") else None

    return translate


def _leaky_relu(call: Call) -> LayerCall:
    if not call.is_float("x") or call["negative_slope"] < 0:
        return None
    return call.layers.LeakyReLU(alpha=float(call["negative_slope"]), name=call.name), call["x"]


def _elu(call: Call) -> LayerCall:
    return (call.layers.ELU(alpha=float(call["alpha"]), name=call.name), call["x"]) if call.is_float("x") else None


def _gelu(call: Call) -> LayerCall:
    # tf_keras' "gelu" is the exact function. The approximation becomes a KerasOperation.
    return None if call["approximate"] else _activation("gelu")(call)


def _softmax(call: Call) -> LayerCall:
    rank = call.rank("x")
    if rank < 2 or call["axis"] not in (-1, rank - 1):
        return None
    return _activation("softmax")(call)


def _same(call: Call) -> LayerCall:
    """Return the identity for a copy, or for a cast to the dtype that the tensor already has."""
    dtype = call.values.get("dtype")
    if not call.is_float("x") or dtype not in (None, call["x"].dtype.name) or call.values.get("sparse"):
        return None
    return call.layers.Activation("linear", name=call.name), call["x"]


ELEMENTWISE: dict[str, Callable[[Call], LayerCall]] = {
    "core.Cast": _same,
    "core.ConvertToTensor": _same,
    "nn.Elu": _elu,
    "nn.Gelu": _gelu,
    "nn.LeakyRelu": _leaky_relu,
    "nn.Relu": _relu(None),
    "nn.Relu6": _relu(6.0),
    "nn.Selu": _activation("selu"),
    "nn.Sigmoid": _activation("sigmoid"),
    "nn.Silu": _activation("swish"),
    "nn.Softmax": _softmax,
    "nn.Softplus": _activation("softplus"),
    "nn.Softsign": _activation("softsign"),
    "numpy.Add": _add,
    "numpy.Clip": _clip,
    "numpy.Copy": _same,
    "numpy.Divide": _divide,
    "numpy.Exp": _activation("exponential"),
    "numpy.Maximum": _extreme("Maximum"),
    "numpy.Minimum": _extreme("Minimum"),
    "numpy.Multiply": _multiply,
    "numpy.Negative": _negative,
    "numpy.Subtract": _subtract,
    "numpy.Tanh": _activation("tanh"),
    "numpy.TrueDivide": _divide,
}

# SPDX-License-Identifier: Apache-2.0
"""Rewrite int8 average pools for targets that round them differently from TFLite.

The mean of an even number of integers can lie halfway between two integers. TFLite rounds it away from the quantized
value 0. LiteRT's GPU accelerator (2.3.0) computes in float32, where noise decides: it rounds about half of these means
to the other side. In MLPerf Tiny's ResNet8 this is 1% of all means, and the following layers amplify it.

A DEPTHWISE_CONV_2D with equal weights computes the same mean. Its scale is larger by a factor of 1 + epsilon, and its
bias makes the quantized value 0 the center of the scaling. So a mean that lies halfway moves away from 0 by at least
epsilon / 2, and any rounding gives TFLite's result. Other means keep their results: they are at least 1 / N from the
next halfway point, and move by less. XNNPACK's results are the same to the bit. TFLite's builtin kernels round twice,
so a mean of 0.5 or -0.5 may get a result that differs by 1.
"""

from typing import Any

import numpy as np

from tfq import tflite
from tfq.conversion.graph_editing import add_constant, name_of, new_op, scale_of, sizes_of
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES

# The largest windows. A mean that lies halfway moves by about 0.47 / (127 * N), which is 3.1e-5 for 120 values.
# XNNPACK's float32 arithmetic rounds four times, by at most 128.5 * 2**-24 each, which is 3.06e-5 together.
MOST_VALUES = 120
_WEIGHT, _SHIFT = 127, 0.95
# From this version on, DEPTHWISE_CONV_2D has an int8 kernel.
_INT8_VERSION = 3


def with_exact_average_pools(model: bytes) -> bytes:
    """Return the flatbuffer with a DEPTHWISE_CONV_2D instead of each int8 AVERAGE_POOL_2D that may round differently.

    Pools of an odd number of values stay, because their means never lie halfway. Pools with padding stay, because
    their windows have different sizes, and so do those of more than `MOST_VALUES` values.

    Args:
        model: A flatbuffer from any tool.
    """
    if "AVERAGE_POOL_2D" not in tflite.operator_names(model):
        return model
    edited = tflite.unpack(model)
    places = [
        (graph, place)
        for graph in edited.subgraphs
        for place, op in enumerate(graph.operators or [])
        if tflite.operator_name(edited, op) == "AVERAGE_POOL_2D" and _may_round_differently(graph, op)
    ]
    for graph, place in places:
        graph.operators[place] = _convolution(edited, graph, graph.operators[place])
    if not places:
        return model
    tflite.remove_unused_operator_codes(edited)
    return tflite.pack(edited, len(model))


def _may_round_differently(graph: Any, op: Any) -> bool:
    source, output, options = int(op.inputs[0]), int(op.outputs[0]), op.builtinOptions
    if any(graph.tensors[index].type != TENSOR_TYPES.index("int8") for index in (source, output)):
        return False
    quantizations = [graph.tensors[index].quantization for index in (source, output)]
    if any(entry is None or entry.scale is None or len(entry.scale) != 1 for entry in quantizations):
        return False
    if scale_of(graph, source) != scale_of(graph, output):
        return False
    sizes, results = sizes_of(graph.tensors[source]), sizes_of(graph.tensors[output])
    windows = zip(
        sizes[1:3],
        results[1:3],
        (options.filterHeight, options.filterWidth),
        (options.strideH, options.strideW),
        strict=True,
    )
    has_padding = any(
        min(size, result) < 1 or (result - 1) * stride + window > size for size, result, window, stride in windows
    )
    number = options.filterHeight * options.filterWidth
    return number % 2 == 0 and number <= MOST_VALUES and not has_padding


def bias_and_factor(number: int, zero_point: int) -> tuple[int, float]:
    """Return the bias of the convolution, and its factor in quantized values.

    The result is `zero_point + factor * (127 * sum(q - zero_point) + bias)`.

    Args:
        number: How many values a window has.
        zero_point: Zero point of the input and the output.
    """
    bias = int(np.sign(zero_point)) * max(min(abs(zero_point), 1), int(_SHIFT * abs(zero_point)))
    # t is epsilon in units of 1 / (127 * number). Below 0.99, no other mean crosses a halfway point. If bias /
    # zero_point is t, the center of the scaling is exactly 0. For a zero point of 1 or -1, it is at -0.05 or 0.05.
    t = min(bias / zero_point, _SHIFT) if zero_point else _SHIFT
    return bias, 1 / (_WEIGHT * number - t)


def _convolution(edited: Any, graph: Any, op: Any) -> Any:
    from ai_edge_litert import schema_py_generated as generated

    source, pool = int(op.inputs[0]), op.builtinOptions
    scale, zero_point = scale_of(graph, source)
    channels = sizes_of(graph.tensors[source])[3]
    bias, factor = bias_and_factor(pool.filterHeight * pool.filterWidth, zero_point)
    shape = (1, pool.filterHeight, pool.filterWidth, channels)
    weights = add_constant(edited, graph, np.full(shape, _WEIGHT), np.int8)
    biases = add_constant(edited, graph, np.full(channels, bias), np.int32)
    for index, step, axis in ((weights, factor, 3), (biases, factor * scale, 0)):
        parameters = graph.tensors[index].quantization = generated.QuantizationParametersT()
        parameters.scale, parameters.zeroPoint = [float(np.float32(step))] * channels, [0] * channels
        parameters.quantizedDimension = axis
        graph.tensors[index].name = f"{name_of(graph, int(op.outputs[0]))}/{'weights' if axis else 'bias'}"
    options = generated.DepthwiseConv2DOptionsT()
    options.padding, options.strideH, options.strideW = generated.Padding.VALID, pool.strideH, pool.strideW
    options.fusedActivationFunction = pool.fusedActivationFunction
    options.depthMultiplier = options.dilationHFactor = options.dilationWFactor = 1
    kind = generated.BuiltinOptions.DepthwiseConv2DOptions
    result = new_op(edited, "DEPTHWISE_CONV_2D", [source, weights, biases], int(op.outputs[0]), kind, options)
    result.opcodeIndex = tflite.operator_code(edited, OPERATORS.index("DEPTHWISE_CONV_2D"), _INT8_VERSION)
    return result

# SPDX-License-Identifier: Apache-2.0
"""The audit's list of weights, compared with the flatbuffer as read by the generated schema."""

import math

import numpy as np
import pytest
from golden_models import NAMES, changed, golden, unpacked

from tfq.auditing import audit_model

KEYS = {"tensor", "keras_layer", "op", "dtype", "bytes", "values", "zeros", "channels", "scales"}


def weights(content: bytes) -> list[dict]:
    return audit_model(content).to_dict()["weights"]


def test_layers_types_and_sizes_are_in_the_order_of_ops():
    result = weights(golden("digits_int8"))
    assert all(set(weight) == KEYS for weight in result)
    assert [(w["keras_layer"], w["op"], w["values"], w["channels"], w["scales"]) for w in result] == [
        ("conv1", "CONV_2D", 108, 12, 12),
        ("depthwise", "DEPTHWISE_CONV_2D", 108, 12, 12),
        ("pointwise", "CONV_2D", 144, 12, 12),
        ("conv2", "CONV_2D", 1296, 12, 12),
        ("logits", "FULLY_CONNECTED", 480, 10, 10),
    ]
    assert all(w["bytes"] == w["values"] and w["dtype"] == "int8" for w in result)


@pytest.mark.parametrize(
    ("name", "dtype", "width"),
    [
        ("digits_float32", "float32", 4),
        ("digits_float16", "float16", 2),
        ("digits_weight_only_int8", "int8", 1),
        ("digits_dynamic_all", "int8", 1),
    ],
)
def test_stored_weights_count_wherever_a_dequantize_stands(name, dtype, width):
    result = weights(golden(name))
    assert [(w["dtype"], w["bytes"]) for w in result] == [(dtype, width * n) for n in (108, 108, 144, 1296, 480)]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_the_buffers(name):
    model = unpacked(golden(name))
    sizes = {
        tensor.name.decode(): len(model.buffers[tensor.buffer].data)
        for graph in model.subgraphs
        for tensor in graph.tensors
        if model.buffers[tensor.buffer].data is not None
    }
    for weight in weights(golden(name)):
        assert weight["bytes"] == sizes[weight["tensor"]]


def _conv2(model):
    return next(tensor for tensor in model.subgraphs[0].tensors if list(tensor.shape) == [12, 3, 3, 12])


def test_zeros_are_the_values_equal_to_the_zero_point():
    def change(model):
        tensor = _conv2(model)
        quantized = np.arange(1296).reshape(12, 108) % 7 - 3
        model.buffers[tensor.buffer].data = quantized.astype(np.int8).view(np.uint8).ravel()

    def off_zero(model):
        change(model)
        _conv2(model).quantization.zeroPoint = [2] * 12

    expected = sum(number % 7 == 3 for number in range(1296))
    conv2 = next(w for w in weights(changed(golden("digits_int8"), change)) if w["keras_layer"] == "conv2")
    assert conv2["zeros"] == expected
    conv2 = next(w for w in weights(changed(golden("digits_int8"), off_zero)) if w["keras_layer"] == "conv2")
    assert conv2["zeros"] == sum(number % 7 == 5 for number in range(1296))


def test_zeros_of_a_damaged_weight_are_unknown_not_none_at_all():
    def cut(model):
        tensor = _conv2(model)
        model.buffers[tensor.buffer].data = model.buffers[tensor.buffer].data[:100]

    conv2 = next(w for w in weights(changed(golden("digits_int8"), cut)) if w["keras_layer"] == "conv2")
    assert (conv2["zeros"], conv2["bytes"], conv2["values"]) == (None, 100, math.prod((12, 3, 3, 12)))


def test_overlapping_weights_are_read_in_proportion_to_the_file():
    def share(model):
        graph = model.subgraphs[0]
        graph.operators = [graph.operators[4]] + [_copy(graph, graph.operators[4]) for _ in range(200)]

    def _copy(graph, op):
        tensor = graph.tensors[int(op.inputs[1])]
        graph.tensors.append(tensor)
        new = type(op)()
        new.opcodeIndex, new.outputs, new.builtinOptionsType = op.opcodeIndex, op.outputs, 0
        new.inputs = [int(op.inputs[0]), len(graph.tensors) - 1, int(op.inputs[2])]
        return new

    content = changed(golden("digits_int8"), share)
    result = weights(content)
    assert len(result) == 201
    assert sum(weight["bytes"] for weight in result if weight["zeros"] is not None) <= 2 * len(content)
    assert result[-1]["zeros"] is None

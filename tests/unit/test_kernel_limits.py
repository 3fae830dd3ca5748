# SPDX-License-Identifier: Apache-2.0
"""Ranges of dead layers against the limits of integer kernels, on the golden CNN and changed copies of it."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from built_models import Call, T, build, constant
from golden_models import changed, golden

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.conversion.bias_scales import with_bias_headroom
from tfq.ptq.calibration import with_kernel_limits

MODEL = golden("digits_float32")
GRAPH = tflite.read(MODEL).main_subgraph
STEPS = {"int8": 255, "int16x8": 65534}
FLOATS = [index for op in GRAPH.ops for index in (*op.inputs, *op.outputs) if index != tflite.ABSENT]
ACTIVATIONS = {
    (0, index): (-1.0, 2.0)
    for index in FLOATS
    if GRAPH.tensors[index].dtype == "float32" and not GRAPH.tensors[index].is_constant
}
CONV = next(op for op in GRAPH.ops if op.name == "CONV_2D")
OTHER = {"digits": ACTIVATIONS}


def limited(scheme, ranges):
    return with_kernel_limits(MODEL, ranges, scheme)


def scale(ends, scheme):
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    return (2 * max(-low, high) if scheme == "int16x8" else high - low) / STEPS[scheme]


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_healthy_ranges_stay_as_they_are(scheme):
    assert limited(scheme, ACTIVATIONS) == (ACTIVATIONS, ())


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("narrow", [0.0, 1e-12])
def test_every_scale_is_within_the_limits_when_everything_is_dead(scheme, narrow):
    ranges, _ = limited(scheme, dict.fromkeys(ACTIVATIONS, (0.0, narrow)))
    assert all(scale(ends, scheme) > 0 for ends in ranges.values())
    for op in GRAPH.ops:
        out = scale(ranges[0, op.outputs[0]], scheme)
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            weights, bias = (tflite.constant_values(MODEL, GRAPH.tensors[index]) for index in op.inputs[1:3])
            step = scale(ranges[0, op.inputs[0]], scheme) * float(np.abs(weights).max()) / 127
            assert scheme != "int8" or step / out < 2**8
            assert np.abs(bias).max() / step < 2**31
        if op.name in ("ADD", "SUB"):
            read = [scale(ranges[0, index], scheme) for index in op.inputs if (0, index) in ranges]
            assert max(read) / out < (2**19 if scheme == "int8" else 2**14)


def test_a_dead_layer_is_named_once_and_minimally_widened():
    dead = {**ACTIVATIONS, (0, CONV.outputs[0]): (0.0, 0.0)}
    ranges, layers = limited("int8", dead)
    assert layers == (GRAPH.layers_by_output[CONV.outputs[0]],)
    weights = tflite.constant_values(MODEL, GRAPH.tensors[CONV.inputs[1]])
    ratio = 3 / 255 * float(np.abs(weights).max()) / 127 / scale(ranges[0, CONV.outputs[0]], "int8")
    assert 64 <= ratio < 256 or scale(ranges[0, CONV.outputs[0]], "int8") < 3 / 255  # by the bias of the next layer
    changed_keys = {key for key in ranges if ranges[key] != ACTIVATIONS[key]}
    assert (0, CONV.outputs[0]) in changed_keys and len(changed_keys) < 4


def test_a_layer_whose_tanh_is_always_zero_is_named_with_the_range_that_the_op_fixes():
    names = ("x", "model/dense/BiasAdd", "model/dense/Tanh", "model/multiply/mul")
    tensors = {name: T("float32", (1, 6)) for name in names} | {"weights": constant(np.zeros((6, 6)))}
    calls = [
        Call("FULLY_CONNECTED", ["x", "weights", None], names[1:2], generated.FullyConnectedOptionsT()),
        Call("TANH", names[1:2], names[2:3]),
        Call("MUL", [names[2], "x"], names[3:], generated.MulOptionsT()),
    ]
    model = build(tensors, calls, ["x"], names[3:])
    ranges = {(0, 0): (-1.0, 2.0), (0, 1): (0.0, 0.0), (0, 2): (0.0, 0.0), (0, 3): (0.0, 0.0)}
    for gate in ((0.0, 0.0), (-1.0, 127 / 128)):
        assert with_kernel_limits(model, {**ranges, (0, 2): gate}, "int8")[1] == ("dense", "multiply")


def test_an_always_zero_input_is_named_and_gets_a_range():
    ranges, layers = limited("int16x8", {**ACTIVATIONS, (0, GRAPH.inputs[0]): (0.0, 0.0)})
    assert GRAPH.tensors[GRAPH.inputs[0]].name in layers and ranges[0, GRAPH.inputs[0]][1] > 0


def test_only_channels_whose_bias_overflows_get_another_weight():
    weights, bias = (CONV.inputs[place] for place in (1, 2))
    config = ConversionConfig(quantizer="litert")
    assert with_bias_headroom(MODEL, ACTIVATIONS, config) is MODEL

    def prune(model):
        for index, pick in ((weights, slice(0, 1)), (bias, slice(0, 1))):
            tensor = model.subgraphs[0].tensors[index]
            values = np.array(model.buffers[tensor.buffer].data, np.uint8).view(np.float32).reshape(tensor.shape)
            values[pick] = 0.0 if index == weights else 0.5
            model.buffers[tensor.buffer].data = values.reshape(-1).view(np.uint8)

    pruned = changed(MODEL, prune)
    result = with_bias_headroom(pruned, ACTIVATIONS, config)
    before, after = (
        tflite.constant_values(data, tflite.read(data).main_subgraph.tensors[weights]) for data in (pruned, result)
    )
    assert np.count_nonzero(before != after) == 1
    assert 0.5 / (3 / 255 * np.abs(after[0]).max() / 127) < 2**31

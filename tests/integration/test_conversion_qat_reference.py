# SPDX-License-Identifier: Apache-2.0
"""The reference of a QAT model's int8 file: a flatbuffer that rounds as the model does."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from small_models import fit_briefly, noise, small_model

import tfq
from tfq import tflite
from tfq.config import ConversionConfig
from tfq.conversion.freeze import flatbuffer_with_ranges, flatbuffer_with_rounding, graph_without_weight_fake_quant
from tfq.conversion.tracing import trace


@pytest.fixture(scope="module")
def trained():
    model = small_model()
    images = noise(model, 64).inputs["x"]
    return tfq.qat(model, fit_briefly, calibration=images), images


def outputs(content, images):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (input_details,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in images:
        if input_details["dtype"] is np.int8:
            scale, zero = input_details["quantization"]
            image = np.clip(np.rint(image / scale) + zero, -128, 127)
        interpreter.set_tensor(input_details["index"], image[None].astype(input_details["dtype"]))
        interpreter.invoke()
        values = interpreter.get_tensor(result["index"])[0].astype(np.float32)
        scale, zero = result["quantization"]
        rows.append((values - zero) * scale if result["dtype"] is np.int8 else values)
    return np.array(rows)


def decibels(expected, got):
    return 10 * np.log10(np.var(expected) / np.mean((expected - got) ** 2))


def test_only_the_reference_rounds_as_keras_does(trained):
    model, images = trained
    traced = trace(model, 1)
    reference = flatbuffer_with_rounding(traced)
    floating, _ = flatbuffer_with_ranges(traced, graph_without_weight_fake_quant(traced)[0])
    expected, rounded = model(images, training=False).numpy(), outputs(reference, images)
    # Rounding flips where float32 sums in another order, which moves single values by a step.
    assert decibels(expected, rounded) > decibels(expected, outputs(floating, images)) + 6
    int8 = outputs(tfq.convert(model, None, ConversionConfig(verify=False)), images)
    assert decibels(rounded, int8) > decibels(outputs(floating, images), int8)
    graph = tflite.read(reference).main_subgraph
    kernels = [graph.tensors[index] for op in graph.ops if "CONV" in op.name for index in op.inputs[1:2]]
    assert {kernel.dtype for kernel in kernels} == {"float32"} and all(kernel.is_constant for kernel in kernels)

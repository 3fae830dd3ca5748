# SPDX-License-Identifier: Apache-2.0
"""Post-training techniques on layers with constant inputs, equal scales and channels of zeros.

Oracle: the float model's own outputs.
"""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import tfq
from tfq import quant_math, tflite
from tfq.keras_bridge import import_tf_keras

keras = import_tf_keras()
RNG = np.random.default_rng(0)


def outputs(content, inputs):
    """Return the real outputs of an int8 model."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (entry,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for array in inputs:
        interpreter.set_tensor(entry["index"], quant_math.quantize(array[None], *entry["quantization"]))
        interpreter.invoke()
        results.append(interpreter.get_tensor(output["index"])[0])
    return quant_math.dequantize(np.array(results), *output["quantization"])


@pytest.mark.parametrize("technique", ["gptq", "reconstruction"])
@pytest.mark.parametrize("int4_layers", [(), ("*",)])
def test_a_channel_that_is_constant_on_all_data_is_rounded(technique, int4_layers):
    entry = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(4, 3, activation="relu", name="first")
    hidden = keras.layers.DepthwiseConv2D(3, bias_initializer="random_normal")(first(entry))
    model = keras.Model(entry, keras.layers.GlobalAveragePooling2D()(hidden))
    kernel, bias = first.get_weights()
    kernel[..., 2], bias[2] = 0, 0.7
    first.set_weights([kernel, bias])
    inputs = RNG.random((32, 8, 8, 3)).astype(np.float32)
    content = tfq.convert(model, inputs, tfq.ConversionConfig(techniques=(technique,), int4_layers=int4_layers))
    expected = model.predict(inputs, verbose=0)
    assert np.abs(outputs(content, inputs) - expected).max() < 0.15 * np.ptp(expected)


def test_channels_of_equal_scales_keep_a_scale_each():
    model = keras.Sequential([keras.layers.Conv2D(8, 3, input_shape=(6, 6, 4)), keras.layers.GlobalAveragePooling2D()])
    kernel, bias = model.layers[0].get_weights()
    model.layers[0].set_weights([np.where(RNG.random(kernel.shape) < 0.5, -0.5, 0.5), bias])
    inputs = RNG.normal(size=(32, 6, 6, 4)).astype(np.float32)
    content = tfq.convert(model, inputs, tfq.ConversionConfig(int4_layers=("*",)))
    (weights,) = (tensor for tensor in tflite.read(content).main_subgraph.tensors if tensor.dtype == "int4")
    assert len(weights.scale) == len(weights.zero_point) == 8
    expected = model.predict(inputs, verbose=0)
    assert np.abs(outputs(content, inputs) - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.parametrize("techniques", [(), ("gptq",), ("reconstruction",)])
def test_the_bias_of_a_channel_of_zero_weights_is_kept_with_4_bits(techniques):
    model = keras.Sequential([keras.layers.Dense(4, input_shape=(16,))])
    kernel = RNG.normal(size=(16, 4)).astype(np.float32) * 0.001
    kernel[:, 0] = 0
    model.layers[0].set_weights([kernel, np.array([0.3, 0.1, 0, 0.2], np.float32)])
    inputs = (RNG.random((64, 16)) * 255).astype(np.float32)
    content = tfq.convert(model, inputs, tfq.ConversionConfig(int4_layers=("*",), techniques=techniques))
    np.testing.assert_allclose(outputs(content, inputs)[:, 0], 0.3, atol=0.01)

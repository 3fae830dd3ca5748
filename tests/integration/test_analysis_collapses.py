# SPDX-License-Identifier: Apache-2.0
"""Models that collapse in int8: the analysis names the op, the cause and the remedy.

Oracle: a plain interpreter that preserves all tensors shows that the named op is where the loss is.
"""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import tfq
from tfq import quant_math, tflite

RNG = np.random.default_rng(0)


def converted(model, data, **settings):
    """Return (float flatbuffer, int8 one), calibrated with all of `data`."""
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    return floating, tfq.convert(floating, data, tfq.ConversionConfig(verify=False, **settings))


def stock(model, data):
    """Return the flatbuffer that TensorFlow's own converter creates; int8 if there is data."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if data is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in data)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def signal_to_error(floating, quantized, data, op_index):
    """Return the SQNR of an op's output in dB, about the mean; its tensor has the same name in both files."""
    name = next(op for op in tflite.read(quantized).main_subgraph.ops if op.index == op_index).outputs[0]
    name = tflite.read(quantized).main_subgraph.tensors[name].name
    values = [np.stack([values_of(content, sample, name) for sample in data]) for content in (floating, quantized)]
    noise = ((values[0] - values[1]) ** 2).mean()
    return 10 * np.log10(values[0].var() / noise)


def values_of(content, sample, name):
    interpreter = Interpreter(model_content=content, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    scale, zero_point = entry["quantization"]
    fed = quant_math.quantize(sample[None], scale, zero_point) if scale else sample[None]
    interpreter.set_tensor(entry["index"], fed)
    interpreter.invoke()
    details = next(item for item in interpreter.get_tensor_details() if item["name"] == name)
    scale, zero_point = details["quantization"]
    values = interpreter.get_tensor(details["index"])
    return quant_math.dequantize(values, scale, zero_point) if scale else values


def findings(floating, quantized, data):
    return tfq.analyze(quantized, floating, data, tfq.AnalysisConfig(histograms=False)).findings


def test_only_the_logarithm_of_a_log_power_front_end_is_named():
    import keras

    class LogPower(keras.layers.Layer):
        def call(self, values):
            return keras.ops.log(keras.ops.square(values) * 2.0 + 1e-9) * 0.1 - 0.3

    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 1), name="image")
    x = keras.layers.Conv2D(8, 3, activation="relu", name="a")(image)
    x = keras.layers.Conv2D(4, 3, name="b")(LogPower(name="logpower")(x))
    loud = np.linspace(0.01, 1, 16)[None, :, None, None]
    data = (RNG.normal(0, 1, (24, 16, 16, 1)) * loud).astype(np.float32)
    floating, quantized = converted(keras.Model(image, x), data)
    first = findings(floating, quantized, data)[0]
    assert first.kind == "wide_dynamic_range" and first.label == f"logpower/LOG (#{first.op_index})"
    assert "conversion.float_layers=logpower" in first.message
    assert signal_to_error(floating, quantized, data[:8], first.op_index) < 10
    before = first.op_index - 1
    assert signal_to_error(floating, quantized, data[:8], before) > 20


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "softmax"])
def test_a_join_is_named_through_the_requantizing_op(activation):
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(4)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(image)
    boxes = layers.Rescaling(300.0, name="pixels")(layers.Conv2D(4, 1, name="box")(x))
    scores = layers.Activation(activation, name="score")(layers.Conv2D(3, 1, name="classes")(x))
    both = layers.Concatenate(name="pred")([layers.Reshape((49, 4))(boxes), layers.Reshape((49, 3))(scores)])
    data = RNG.uniform(size=(16, 16, 16, 3)).astype(np.float32)
    floating, quantized = converted(keras.Model(image, layers.Permute((2, 1))(both)), data)
    (result,) = (item for item in findings(floating, quantized, data) if item.kind == "unequal_join")
    assert result.label == f"pred/CONCATENATION (#{result.op_index})"
    assert "score/" in result.message and "box/" in result.message
    (join,) = tfq.analyze(quantized, floating, data).joins
    assert min(join.num_values.values()) < 16 and join.ratio > 100


def test_an_input_of_many_scales_is_named_with_its_columns():
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(1)
    columns = np.logspace(-1, 2, 12)
    data = (RNG.normal(size=(100, 12)) * columns).astype(np.float32)
    table = keras.Input((12,), name="table")
    normalization = layers.Normalization(name="norm")
    normalization.adapt(data)
    model = keras.Model(table, layers.Dense(1)(layers.Dense(32, activation="relu", name="h")(normalization(table))))
    floating, quantized = converted(model, data)
    result = findings(floating, quantized, data)
    assert [item.kind for item in result if "range" in item.kind or "gate" in item.kind] == []
    (named,) = (item for item in result if item.kind == "mixed_input_scales")
    assert named.label == "input 'table'" and "0 (" in named.message and "11 (" not in named.message
    assert "int16x8" in named.message and "dynamic_range" in named.message
    first = tfq.analyze(quantized, floating, data).ops[0]
    scale, zero_point = (tflite.read(quantized).main_subgraph.input_tensors[0].scale[0], first.zero_point)
    rounded = quant_math.dequantize(quant_math.quantize(data[:64], scale, zero_point), scale, zero_point)
    expected = 10 * np.log10(data[:64].var(axis=0) / ((rounded - data[:64]) ** 2).mean(axis=0))
    np.testing.assert_allclose(first.channel_sqnr_db, expected, atol=0.01)


def test_a_layer_without_output_is_dead_and_no_collapse():
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    live = layers.Conv2D(8, 3, activation="relu", name="live")(image)
    bias = keras.initializers.Constant(-50.0)
    gone = layers.Conv2D(8, 3, activation="relu", name="gone", bias_initializer=bias)(image)
    data = RNG.normal(size=(16, 8, 8, 3)).astype(np.float32)
    floating, quantized = converted(keras.Model(image, layers.Concatenate()([live, gone])), data)
    result = {item.kind: item for item in findings(floating, quantized, data)}
    assert result["dead"].label.startswith("gone/") and not {"collapse", "dead_channels"} & result.keys()


def test_one_scale_for_uneven_depthwise_weights_is_named():
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 8), name="image")
    depthwise = layers.DepthwiseConv2D(3, name="depthwise")
    x = layers.BatchNormalization(name="bn")(depthwise(image))
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.ReLU()(x))))
    kernel, *rest = depthwise.get_weights()
    depthwise.set_weights([kernel * np.logspace(-3, 0, 8)[:, None], *rest])
    data = RNG.normal(size=(16, 8, 8, 8)).astype(np.float32)
    floating, quantized = converted(model, data, per_channel=False)
    (result,) = (item for item in findings(floating, quantized, data) if item.kind == "weights")
    assert result.label.startswith("depthwise/") and "conversion.per_channel" in result.message
    floating, quantized = converted(model, data)
    assert not [item for item in findings(floating, quantized, data) if item.kind == "weights"]


@pytest.mark.parametrize("added", [True, False])
def test_a_mask_in_a_file_of_another_converter_is_named(added):
    import keras

    layers, ops = keras.layers, keras.ops
    keras.utils.set_random_seed(1)
    tokens = keras.Input((8, 16), batch_size=1, name="tokens")
    query, key = (layers.Dense(16, name=name)(tokens) for name in ("query", "key"))
    scores = layers.Dot((2, 2), name="scores")([query, key])
    mask = np.triu(np.ones((8, 8), np.float32), 1)
    scores = scores + mask * -1e9 if added else ops.where(mask > 0, np.float32(-1e9), scores)
    model = keras.Model(tokens, layers.Dot((2, 1))([layers.Softmax(name="softmax")(scores), tokens]))
    data = RNG.normal(size=(16, 8, 16)).astype(np.float32)

    floating, quantized = stock(model, None), stock(model, data)
    kinds = [item.kind for item in findings(floating, quantized, data)]
    assert kinds[0] == "mask_constant" and "gate_collapse" not in kinds and "collapse" not in kinds


def test_ids_that_another_converter_quantized_are_named_at_the_lookup():
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(1)
    ids = keras.Input((20,), batch_size=1, name="ids")
    x = layers.Embedding(2000, 8, name="embedding")(ids)
    model = keras.Model(ids, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    data = RNG.integers(0, 2000, (16, 20)).astype(np.float32)
    (first, *_) = findings(stock(model, None), stock(model, data), data)
    assert first.kind == "index_quantized" and "/GATHER" in first.label and "int32" in first.message

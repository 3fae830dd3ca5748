# SPDX-License-Identifier: Apache-2.0
"""A QAT model has the ranges and biases of its flatbuffer, so that both round equally."""

import warnings

import numpy as np
import pytest

import tfq
from tfq import tflite
from tfq.compression import qat_parity, untrained_qat_model
from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat import grids
from tfq.compression.training import deterministic
from tfq.keras_bridge import import_tf_keras

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def images(n=64):
    """Return images of whole pixels in [-1, 1] with black and white, whose range has its zero between two steps."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3))
    pixels[:, 0, 0] = (0, 128, 255)
    return (pixels / 127.5 - 1).astype(np.float32)


def normalized(x, name, **settings):
    return import_tf_keras().layers.BatchNormalization(name=f"{name}_bn", **settings)(x)


@pytest.fixture(scope="module")
def model():
    """Return a model with every origin of a bias: its own, a normalization with and without beta, an offset, none."""
    keras = import_tf_keras()
    layers = keras.layers
    with deterministic(0):
        x = image = keras.Input((16, 16, 3), name="image")
        x = layers.ReLU(name="relu")(normalized(layers.Conv2D(8, 3, use_bias=False, name="stem")(x), "stem"))
        x = layers.ZeroPadding2D(name="pad")(x)
        x = normalized(layers.DepthwiseConv2D(3, 2, name="depthwise")(x), "depthwise", center=False)
        x = normalized(layers.SeparableConv2D(8, 3, padding="same", name="separable")(x), "separable", scale=False)
        y = layers.Conv2D(8, 1, activation="relu", name="biased")(layers.MaxPooling2D(2, 1, "same", name="largest")(x))
        x = layers.ReLU(name="alone_relu")(normalized(layers.Add(name="sum")([x, y]), "alone"))
        x = layers.ReLU(6.0, name="shifted")(
            layers.Rescaling(1.0, 3.0, name="shift")(layers.Conv2D(8, 1, name="gate")(x))
        )
        x = layers.Conv2D(8, 1, use_bias=False, name="unbiased")(x)
        model = keras.Model(image, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D(name="pool")(x)))
    random = np.random.default_rng(1)
    for layer in model.layers:
        if "bias" in [weight.name.rpartition("/")[2][:4] for weight in layer.weights] or layer.name.endswith("_bn"):
            weights = layer.get_weights()
            one_axis = [np.ndim(weight) == 1 for weight in weights]
            layer.set_weights(
                [
                    random.uniform(0.5, 1.5, weight.shape) if is_one else weight
                    for weight, is_one in zip(weights, one_axis, strict=True)
                ]
            )
    return model


@pytest.fixture(scope="module")
def quantized(model):
    return untrained_qat_model(model, images())


def converted(quantized):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfq.TfqWarning)  # of few samples
        return tfq.convert(quantized, images())


def distances(quantized):
    """Return {layer whose output ends the op: largest distance of its bias from the flatbuffer's, in steps}.

    The bias of the QAT model is its output for zeros without any rounding.
    """
    content = converted(quantized)
    graph = tflite.read(content).main_subgraph
    ops = {op.outputs[0]: op for op in graph.ops if op.name in WEIGHTED and len(op.inputs) == 3}
    results = {}
    for layer in qat_parity(quantized, content, images()).layers:
        if layer.tensor not in ops:
            continue
        bias = graph.tensors[ops[layer.tensor].inputs[2]]
        expected = tflite.constant_values(content, bias).ravel() * np.asarray(bias.scale, np.float64)
        names = {item.name.removeprefix("quant_"): item for item in quantized.layers}
        own = [names[name] for name in layer.layers if name not in ("pad", "largest")]
        own = [item for item in own if not isinstance(getattr(item, "layer", item), import_tf_keras().layers.ReLU)]
        x = np.zeros((1, *own[0].input.shape[1:]), np.float32)
        with tfmot_symbols.fake_quant_as_identity():
            for item in own:
                x = item(x, training=False)
        got = np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1])[0]
        results[own[0].name.removeprefix("quant_")] = np.max(np.abs(got - expected) / np.asarray(bias.scale))
    return results


def test_biases_are_whole_steps_of_the_accumulator(quantized, monkeypatch, model):
    result = distances(quantized)
    assert set(result) >= {"stem", "depthwise", "biased", "alone_bn", "gate", "head"}
    assert max(result.values()) < 0.05, result
    monkeypatch.setattr(grids, "round_biases", lambda model: None)
    without = distances(untrained_qat_model(model, images()))
    assert set(without) == set(result) and without.pop("unbiased", 0.0) == 0.0
    assert all(0.2 < steps < 0.55 for steps in without.values()), without


def test_a_range_with_zero_between_two_steps_matches_the_flatbuffer(quantized):
    low, high = tfmot_symbols.output_range(quantized.layers[1])
    tensor = tflite.read(converted(quantized)).main_subgraph.input_tensors[0]
    scale, zero_point = tensor.scale[0], tensor.zero_point[0]
    assert (low, high) == pytest.approx(((-128 - zero_point) * scale, (127 - zero_point) * scale), rel=1e-6)
    # For given quantized values, fake quantization computes the same real values.
    reals = (np.arange(-128, 128, dtype=np.float32) - zero_point) * np.float32(scale)
    rounded = np.asarray(quantized.layers[1](np.broadcast_to(reals[:, None, None, None], (256, 16, 16, 3))))
    np.testing.assert_allclose(rounded[:, 0, 0, 0], reals, atol=1e-6)


def test_rounded_ranges_round_as_before_and_stay():
    keras = import_tf_keras()
    image = keras.Input((4, 4, 2), name="image")
    model = keras.Model(image, keras.layers.Conv2D(3, 1, name="conv")(image))
    x = np.random.default_rng(0).uniform(-1, 1, (512, 4, 4, 2)).astype(np.float32)
    quantized = untrained_qat_model(model, x)
    before = np.asarray(quantized(x))
    ends = [tfmot_symbols.output_range(layer) for layer in quantized.layers]
    grids.round_ranges(quantized)
    assert [tfmot_symbols.output_range(layer) for layer in quantized.layers] == [
        end if end is None else pytest.approx(end, rel=1e-6) for end in ends
    ]
    np.testing.assert_allclose(np.asarray(quantized(x)), before, atol=1e-6)


def test_the_flatbuffer_rounds_as_the_qat_model_does(quantized):
    result = qat_parity(quantized, converted(quantized), images())
    weighted = [layer for layer in result.layers if layer.op in WEIGHTED]
    assert len(weighted) >= 8
    assert all(layer.local_mean_lsb < 1e-3 for layer in weighted), result.to_text()
    assert result.logit_sqnr_db > 40

# SPDX-License-Identifier: Apache-2.0
"""Selective QAT: fake quantization is where the flatbuffer has a tensor, and the flatbuffer is all int8."""

import functools
import warnings
from collections import Counter

import numpy as np
import pytest
from messages import refused, warned

import tfq
from tfq import tflite
from tfq.backends import RunRequest
from tfq.backends.local import LocalBackend
from tfq.compression import qat_parity
from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.graph import cloned
from tfq.compression.qat import qat
from tfq.compression.qat.placement import placements
from tfq.compression.qat.qat import untrained_qat_model
from tfq.compression.qat.ranges import ema_ranges
from tfq.compression.training import deterministic
from tfq.config import AuditConfig, ConversionConfig, QATConfig
from tfq.errors import InputError
from tfq.keras_bridge import import_tf_keras, load_model

FLOAT_ENDS = {"inference_input_type": "float32", "inference_output_type": "float32"}


def images(n=48, size=16):
    """Return waves of random direction, frequency and color, so that images differ by more than noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size][..., None] / size
    waves = rng.uniform(-9, 9, (2, n, 1, 1, 3))
    content = np.sin(waves[0] * x + waves[1] * y + rng.uniform(0, 6, (n, 1, 1, 3))) + rng.uniform(-1, 1, (n, 1, 1, 3))
    return (content + rng.normal(0, 0.1, (n, size, size, 3))).astype(np.float32)


def hard_swish(x, name):
    """Return x * relu6(x + 3) / 6, spelled out as in keras.applications."""
    layers = import_tf_keras().layers
    gate = layers.ReLU(6.0, name=f"{name}_relu6")(layers.Rescaling(1.0, 3.0, name=f"{name}_shift")(x))
    return layers.Multiply(name=name)([x, layers.Rescaling(1 / 6, name=f"{name}_sixth")(gate)])


def normalized(x, name):
    return import_tf_keras().layers.BatchNormalization(name=f"{name}_bn")(x)


def of_mobilenet_v3(x):
    layers = import_tf_keras().layers
    x = layers.Rescaling(0.5, 0.1, name="rescale")(x)
    x = hard_swish(normalized(layers.Conv2D(8, 3, 2, "same", use_bias=False, name="stem")(x), "stem"), "swish")
    x = layers.ReLU(name="relu")(normalized(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x), "depth"))
    gate = layers.Conv2D(4, 1, activation="swish", name="squeeze")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="excite")(gate)
    y = normalized(layers.Conv2D(8, 1, name="project")(layers.Multiply(name="gated")([x, gate])), "project")
    return layers.Activation("swish", name="last_swish")(layers.Add(name="sum")([x, y]))


def of_convolutions_joined(x):
    layers = import_tf_keras().layers
    x = layers.ReLU(name="relu")(normalized(layers.Conv2D(8, 3, 2, name="stem")(x), "stem"))
    y = layers.Activation("relu", name="pre")(normalized(x, "alone"))
    y = layers.Conv2D(4, 3, padding="same", name="grown")(y)
    pooled = layers.AveragePooling2D(3, 1, "same", name="average")(x)
    x = layers.Concatenate(name="joined")([layers.ReLU(name="fused")(y), x, pooled])
    y = normalized(layers.SeparableConv2D(20, 3, padding="same", use_bias=False, name="separable")(x), "separable")
    return layers.Add(name="sum")([layers.MaxPooling2D(3, 1, "same", name="largest")(y), x])


def of_convnext(x):
    layers = import_tf_keras().layers
    x = layers.Normalization(mean=[0.1, 0.0, 0.2], variance=[0.5, 0.6, 0.7], name="normalize")(x)
    x = layers.LayerNormalization(epsilon=1e-6, name="first_norm")(layers.Conv2D(8, 4, 4, name="patches")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.Activation("gelu", name="gelu")(layers.Dense(16, name="wide")(y))
    return layers.Add(name="sum")([x, layers.Dense(8, name="narrow")(y)])


def of_the_rest(x):
    layers = import_tf_keras().layers
    x = layers.LeakyReLU(name="leaky")(layers.Conv2D(4, 3, 2, "same", name="conv")(x))
    x = layers.Conv2DTranspose(4, 3, 2, "same", name="transposed")(x)
    x = layers.Activation("tanh", name="tanh")(layers.UpSampling2D(name="up")(layers.MaxPooling2D(name="down")(x)))
    x = layers.ReLU(name="relu")(normalized(layers.Conv1D(8, 3, name="conv1d")(layers.Reshape((16, 64))(x)), "conv1d"))
    x = layers.Dense(12, name="dense")(layers.Flatten()(x))
    x = layers.ReLU(name="dense_relu")(normalized(x, "dense"))
    x = layers.Average(name="mean")([x, layers.Dense(12, activation="tanh", name="bounded")(x)])
    return layers.Activation("hard_sigmoid", name="hard")(x)


# Layers of a factor and an offset that no convolution before them absorbs.
CONVOLVED = {"of_mobilenet_v3": 1, "of_convolutions_joined": 1, "of_convnext": 1}
BLOCKS = {block.__name__: block for block in (of_mobilenet_v3, of_convolutions_joined, of_convnext, of_the_rest)}


def model_of(block, last="logits"):
    keras = import_tf_keras()
    with deterministic(3):
        image = keras.Input((16, 16, 3), name="image")
        x = block(image)
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x) if len(x.shape) == 4 else x
        model = keras.Model(image, keras.layers.Dense(5, name=last)(x), name=block.__name__)
    normalizations = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    for layer in normalizations:
        layer.momentum = 0.0
    model(images(), training=True)
    for layer in normalizations:
        layer.momentum = 0.99
    return model


def with_ranges(quantized, x):
    """Set ranges from one batch, without changing BatchNormalization."""
    normalizations = [layer for layer in quantized.submodules if type(layer).__name__ == "BatchNormalization"]
    for layer in normalizations:
        layer.trainable = False
    with ema_ranges(quantized):
        quantized(x, training=True)
    for layer in normalizations:
        layer.trainable = True
    return quantized


@functools.cache
def prepared(block):
    """Return the model of a block, the result of `annotate`, and that with ranges."""
    model = model_of(block)
    result = qat.quantized(model)
    return model, result, with_ranges(result.model, images())


def run(model, x):
    return LocalBackend().assess(RunRequest(model=model, inputs=(x,))).outputs[0]


def sqnr_db(expected, got):
    signal = expected - expected.mean(axis=0)
    return 10 * np.log10(np.mean(signal**2) / np.mean((expected - got) ** 2))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_flatbuffer_is_all_int8_and_computes_what_the_model_does(name):
    x = images()
    model, result, quantized = prepared(BLOCKS[name])
    assert result.skipped == {}
    config = ConversionConfig(**FLOAT_ENDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfq.TfqWarning)  # of few samples
        converted, after_training = (tfq.convert(item, x, config) for item in (quantized, model))
    report = tfq.audit(converted, AuditConfig(require="full_int8", **FLOAT_ENDS))
    assert report.ok, report.to_text()
    # Fake quantization where the flatbuffer has no tensor would prevent ops from being fused.
    expected, got = (Counter(item.op_counts) for item in (tfq.audit(after_training), report))
    for counts in (expected, got):
        counts["ADD or SUB"] = counts.pop("ADD", 0) + counts.pop("SUB", 0)
    convolved = got["DEPTHWISE_CONV_2D"] - expected["DEPTHWISE_CONV_2D"]
    assert convolved == CONVOLVED.get(name, 0)
    assert got == expected + Counter({"DEPTHWISE_CONV_2D": convolved}) - Counter(
        {"MUL": convolved, "ADD or SUB": convolved}
    )
    assert sqnr_db(np.asarray(quantized(x)), run(converted, x)) > 20


def rescaled(x):
    return import_tf_keras().layers.Rescaling(0.5, -1.0, name="affine")(x)


def normalized_by_adapted_statistics(x):
    layer = import_tf_keras().layers.Normalization(name="affine")
    layer.adapt(images() * 3 - 1)
    return layer(x)


def normalized_by_one_mean(x):
    return import_tf_keras().layers.Normalization(axis=None, mean=0.5, variance=0.1, name="affine")(x)


def normalized_by_batches(x):
    return import_tf_keras().layers.BatchNormalization(name="affine")(import_tf_keras().layers.MaxPooling2D()(x))


AFFINE = (rescaled, normalized_by_adapted_statistics, normalized_by_one_mean, normalized_by_batches)


@pytest.mark.parametrize("affine", AFFINE, ids=lambda affine: affine.__name__)
def test_a_factor_and_an_offset_are_one_convolution_that_rounds_once(affine, tmp_path):
    def block(x):
        return import_tf_keras().layers.Conv2D(8, 3, activation="relu", name="conv")(affine(x))

    x = images()
    _, _, quantized = prepared(block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfq.TfqWarning)  # of few samples
        converted = tfq.convert(quantized, x)
    counts = tfq.audit(converted, AuditConfig(require="full_int8")).op_counts
    assert counts["DEPTHWISE_CONV_2D"] == 1
    assert not {"MUL", "ADD", "SUB", "DIV"} & set(counts)
    [layer] = [item for item in qat_parity(quantized, converted, x).layers if item.op == "DEPTHWISE_CONV_2D"]
    assert (layer.layer, layer.departs) == ("affine", None)
    assert layer.local_sqnr_db > 50
    quantized.save(tmp_path / "quantized.h5", include_optimizer=False)
    np.testing.assert_array_equal(load_model(tmp_path / "quantized.h5")(x), quantized(x))


@pytest.mark.parametrize("affine", AFFINE, ids=lambda affine: affine.__name__)
def test_a_model_is_fitted_by_batches_that_tell_no_shape(affine):
    tf_keras, x = import_tf_keras(), images()
    _, _, quantized = prepared(affine)

    class Batches(tf_keras.utils.Sequence):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return x[:8], np.asarray(quantized(x[:8]))

    quantized.compile("sgd", "mse")
    quantized.fit(Batches(), verbose=0)


def test_a_swish_is_rounded_where_the_flatbuffer_rounds_it(tmp_path):
    def block(x):
        layers = import_tf_keras().layers
        x = layers.Activation("swish", name="alone")(normalized(layers.Conv2D(8, 3, name="stem")(x), "stem"))
        x = layers.DepthwiseConv2D(3, activation="swish", name="depthwise")(x)
        gate = layers.Conv2D(4, 1, activation="swish", name="squeeze")(layers.GlobalAveragePooling2D(keepdims=True)(x))
        x = layers.Multiply(name="gated")([x, layers.Conv2D(8, 1, activation="sigmoid", name="excite")(gate)])
        return layers.Dense(6, activation="swish", name="wide")(x)

    x = images()
    _, _, quantized = prepared(block)
    converted = tfq.convert(quantized)
    counts = tfq.audit(converted, AuditConfig(require="full_int8")).op_counts
    assert counts["LOGISTIC"] == 5 and counts["MUL"] == 5
    result = qat_parity(quantized, converted, x)
    assert all(layer.fake_quantized and layer.departs is None for layer in result.layers), result.to_text()
    # If only the sigmoid is not rounded, SQNR is already 38 dB after the first.
    assert all(layer.local_sqnr_db > 60 for layer in result.layers if layer.op in ("LOGISTIC", "MUL"))
    quantized.save(tmp_path / "quantized.h5", include_optimizer=False)
    np.testing.assert_array_equal(load_model(tmp_path / "quantized.h5")(x), quantized(x))


def test_a_user_function_called_swish_is_not_confused_with_kerass():
    import tensorflow as tf

    def swish(x):
        return x * tf.sigmoid(1.7 * x)

    def stand_in(activation):
        def block(x):
            return import_tf_keras().layers.Conv2D(4, 3, activation=activation, name="conv")(x)

        return placements(model_of(block))["conv"].stand_in

    assert [stand_in(item) for item in ("swish", tf.nn.silu, swish)] == ["SwishConv2D", "SwishConv2D", ""]


@pytest.mark.parametrize("first", ["ZeroPadding2D", "MaxPooling2D"])
def test_an_input_read_by_an_unquantized_layer_is_fake_quantized(first):
    def block(x):
        layers = import_tf_keras().layers
        return layers.Conv2D(8, 3, activation="relu", name="conv")(getattr(layers, first)(name="first")(x))

    _, _, quantized = prepared(block)
    [fake_quantized] = [layer for layer in quantized.layers if type(layer).__name__ == "QuantizeLayer"]
    low, high = images().min(), images().max()
    # tfmot keeps the widest range that it saw, and rounds it so that zero is exact.
    step = (high - low) / 255
    np.testing.assert_allclose(fake_quantized(images(2)), images(2), atol=0.51 * step)
    assert len(np.unique(np.asarray(fake_quantized(images())))) <= 256


def test_an_input_read_only_by_converter_layers_is_not_fake_quantized():
    result = qat.quantized(model_of(of_convolutions_joined), QATConfig(layers=("grown",)))
    assert not any(type(layer).__name__ == "QuantizeLayer" for layer in result.model.layers)


def test_learned_ranges_are_those_of_the_flatbuffer():
    x = images()
    _, _, quantized = prepared(of_convolutions_joined)
    expected = {"quant_stem_bn": None, "quant_joined": None, "quant_sum": None}
    for layer in quantized.layers:
        for weight in layer.weights:
            if layer.name in expected and weight.name.endswith("output_max:0"):
                expected[layer.name] = float(weight) - float(
                    next(w for w in layer.weights if w.name.endswith("output_min:0"))
                )
    # The normalization has none: its range is taken after the ReLU, which the convolution also absorbs.
    assert expected.pop("quant_stem_bn") is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfq.TfqWarning)
        graph = tflite.read(tfq.convert(quantized, x)).main_subgraph
    for name, width in expected.items():
        scales = {tensor.scale[0] for tensor in graph.tensors if f"{name}/" in tensor.name and len(tensor.scale) == 1}
        assert any(scale == pytest.approx(width / 255, rel=1e-3) for scale in scales), name


def test_all_kinds_of_kernels_have_a_scale_per_channel():
    _, _, quantized = prepared(of_convnext)
    channels = {
        layer.name: tuple(next(w for w in layer.weights if w.name.endswith("kernel_max:0")).shape)
        for layer in quantized.layers
        if any(w.name.endswith("kernel_max:0") for w in layer.weights)
    }
    assert channels == {
        "quant_patches": (8,),
        "quant_depthwise": (8,),
        "quant_wide": (16,),
        "quant_narrow": (8,),
        "quant_logits": (5,),
    }


def test_layers_are_chosen_by_pattern_and_the_rest_is_calibrated():
    x = images()
    result = qat.quantized(model_of(of_convolutions_joined), QATConfig(layers=("grown", "sep*")))
    assert result.skipped["stem"] == "no pattern in layers matches its name"
    wrapped = {layer.name for layer in result.model.layers if layer.name.startswith("quant_")}
    assert wrapped == {"quant_grown", "quant_separable", "quant_separable_bn"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfq.TfqWarning)
        converted = tfq.convert(with_ranges(result.model, x), x)
    assert tfq.audit(converted, AuditConfig(require="full_int8")).ok
    with warned("stem"):
        tfq.convert(result.model)
    with refused(InputError, field="compression.qat.layers", got="separabel", word="'separable'"):
        qat.quantized(model_of(of_convolutions_joined), QATConfig(layers=("separabel",)))


def test_what_the_wrapper_would_change_is_left_alone_with_a_reason():
    keras = import_tf_keras()
    layers = keras.layers
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(9, 4, mask_zero=True, name="masked")(tokens)
    x = layers.SimpleRNN(4, return_sequences=True, name="recurrent")(x)
    shared = layers.Dense(4, name="shared")
    y = layers.MultiHeadAttention(2, 4, name="attention")(layers.Conv1D(4, 1, name="conv")(x), x)
    y = layers.Add(name="sum")([shared(y), shared(x)])
    model = keras.Model(tokens, layers.Dense(2, name="head")(layers.Flatten(name="flatten")(y)))
    result = qat.quantized(model)
    expected = {"masked": "mask", "recurrent": "recurrent", "attention": "splits", "shared": "mask"}
    assert set(expected) <= set(result.skipped)
    assert all(word in result.skipped[name] for name, word in expected.items())
    assert "quant_head" in {layer.name for layer in result.model.layers}
    assert not any("quantize_layer" in layer.name for layer in result.model.layers)  # after integers


def test_a_fixed_range_is_where_the_flatbuffer_fixes_it():
    model = model_of(of_mobilenet_v3)
    result = placements(cloned(model)[0])
    assert result["excite"].config["output"] == [0.0, 255 / 256]
    keras = import_tf_keras()
    x = keras.Input((4,))
    outputs = keras.layers.Dense(2, activation="sigmoid", name="last")(x)
    assert placements(keras.Model(x, outputs))["last"].config["output"] is None


def test_a_quantization_aware_model_comes_back_from_its_file(tmp_path):
    x = images(8)
    _, _, quantized = prepared(of_convolutions_joined)
    with warned("HDF5", UserWarning):
        quantized.save(tmp_path / "q.h5")
    np.testing.assert_array_equal(load_model(tmp_path / "q.h5")(x), quantized(x))


def test_control_flow_on_tensors_that_a_user_has_written_is_followed():
    import tensorflow as tf

    keras = import_tf_keras()
    keras.utils.set_random_seed(0)

    class HalvedWhereBright(keras.layers.Layer):
        def call(self, inputs):
            if tf.reduce_max(inputs) > 2.0:
                inputs = 0.5 * inputs
            return inputs

    inputs = keras.Input((8, 8, 3))
    x = HalvedWhereBright(name="halved")(keras.layers.Conv2D(4, 3, name="conv")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.Flatten()(x)))
    quantized = untrained_qat_model(model, images(32, 8))
    assert "quant_halved" in {layer.name for layer in quantized.layers}
    for brightness in (0.1, 1.0):
        data = brightness * images(32, 8)
        expected = model.predict(data, verbose=0)
        np.testing.assert_allclose(quantized.predict(data, verbose=0), expected, atol=0.05 * np.ptp(expected) + 0.02)


def test_a_sequential_model_is_taken():
    layers = import_tf_keras().layers
    model = import_tf_keras().Sequential([layers.Dense(8, "relu", input_shape=(4,)), layers.Dense(3)])
    result = qat.quantized(model)
    assert result.skipped == {} and len(tfmot_symbols.weight_ranges(result.model)) == 2


def test_nothing_to_quantize_is_an_error():
    keras = import_tf_keras()
    x = keras.Input((4,))
    with refused(InputError, field="model", expected="a layer for quantization-aware training"):
        qat.quantized(keras.Model(x, keras.layers.Reshape((2, 2))(x)))


def test_zeros_stay_zeros_after_fake_quantization():
    model = model_of(of_convnext)
    kernel, bias = model.get_layer("wide").get_weights()
    model.get_layer("wide").set_weights([np.where(np.abs(kernel) < 0.3, 0, kernel), bias])
    quantized = qat.quantized(model).model
    for name, weight, quantizer, variables in tfmot_symbols.weight_ranges(quantized):
        if name == "quant_wide":
            assert np.all(np.asarray(quantizer(weight, True, weights=variables))[np.asarray(weight) == 0] == 0)

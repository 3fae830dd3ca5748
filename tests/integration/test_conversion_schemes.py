# SPDX-License-Identifier: Apache-2.0
"""Every scheme on a small model of both Kerases, compared with TensorFlow's own converter and the interpreter."""

import functools
import warnings

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from messages import refused, warned
from stock_calibrator import use_stock_ranges

import tfq
from tfq import auditing, tflite
from tfq.conversion.targeting import warn_of_target
from tfq.keras_bridge import import_keras, import_tf_keras, import_tfmot

KERASES = {"tf_keras": import_tf_keras, "keras": import_keras}
# Largest difference from the float model for outputs that are probabilities.
TOLERANCES = {
    "float32": 1e-6,
    "float16": 1e-3,
    "weight_only_int8": 0.02,
    "weight_only_int4": 0.2,
    "weight_only_int2": 0.6,
    "dynamic_range": 0.03,
    "int16x8": 0.02,
    "int8": 0.06,
}


def small_model(keras):
    """Return a model with every kind of weight; all except the dense one have 1,024 values or more."""
    layers = keras.layers
    x = image = keras.Input((16, 16, 4), name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(32, 3, padding="same", name="conv")(x))
    y = layers.DepthwiseConv2D(6, padding="same", name="depthwise")(x)
    x = layers.Add(name="add")([x, y])
    x = layers.Conv2DTranspose(32, 2, strides=2, name="transposed")(x)
    x = layers.Flatten(name="flatten")(layers.AveragePooling2D(8, name="pool")(x))
    x = layers.Dense(64, activation="relu", name="dense")(x)
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="class")(x), name="net")
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(0, 0.1, weight.shape) for weight in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (24, 16, 16, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def models():
    return {name: small_model(keras()) for name, keras in KERASES.items()}


@pytest.fixture(scope="module")
def traces(models):
    return {name: tfq.trace(model) for name, model in models.items()}


@pytest.fixture(scope="module")
def floating(traces) -> bytes:
    return tfq.convert(traces["tf_keras"], config=tfq.ConversionConfig(scheme="float32"))


def convert(model, samples, **settings) -> bytes:
    config = tfq.ConversionConfig(num_calibration_samples=len(samples), **settings)
    return tfq.convert(model, samples if config.needs_ranges else None, config)


def run(content: bytes, samples: np.ndarray, *, xnnpack: bool = True) -> tuple[np.ndarray, list[str]]:
    """Return (real outputs, names of the ops that no delegate runs), using only LiteRT's interpreter."""
    resolver = OpResolverType.BUILTIN if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    (source,), (sink,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in samples:
        if source["dtype"] != np.float32:
            scale, zero_point = source["quantization"]
            limits = np.iinfo(source["dtype"])
            sample = np.clip(np.rint(sample / scale) + zero_point, limits.min, limits.max)
        interpreter.set_tensor(source["index"], sample[None].astype(source["dtype"]))
        interpreter.invoke()
        output = interpreter.get_tensor(sink["index"])
        if sink["dtype"] != np.float32:
            output = (output.astype(np.float32) - sink["quantization"][1]) * sink["quantization"][0]
        outputs.append(output)
    nodes = interpreter._get_ops_details()
    return np.concatenate(outputs), [node["op_name"] for node in nodes if node["op_name"] == "DELEGATE"]


@pytest.fixture(scope="module")
def stock(models, samples):
    """Return {scheme: the result of TensorFlow's own converter for the tf_keras model}."""
    return functools.cache(lambda scheme: stock_conversion(models["tf_keras"], samples, scheme))


def stock_conversion(model, samples, scheme: str) -> bytes:
    import tensorflow as tf

    function = tf.function(lambda x: model(x, training=False), autograph=False)
    traced = function.get_concrete_function(tf.TensorSpec((1, 16, 16, 4)))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme == "int16x8":
        operators = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [operators]
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.inference_input_type = converter.inference_output_type = tf.int16
    return bytes(converter.convert())


@pytest.mark.parametrize("scheme", tfq.config.SCHEMES)
@pytest.mark.parametrize("keras", KERASES)
def test_every_scheme_has_its_types_and_computes_the_models_outputs(keras, scheme, models, traces, samples):
    content = convert(traces[keras], samples, scheme=scheme)
    required = "full_int8" if scheme == "int8" else scheme
    report = tfq.audit(content, tfq.AuditConfig(require=required))
    assert report.ok, report.to_text()
    expected = np.asarray(models[keras](samples))
    for xnnpack in (True, False):
        outputs, _ = run(content, samples, xnnpack=xnnpack)
        assert np.abs(outputs - expected).max() < TOLERANCES[scheme]
    assert tflite.read(content).input_names == ("image",)


@pytest.mark.parametrize("scheme", tfq.config.SCHEMES)
def test_float_bytes_convert_to_what_their_model_converts_to(scheme, traces, floating, samples):
    assert convert(floating, samples, scheme=scheme) == convert(traces["tf_keras"], samples, scheme=scheme)


def constants_of(content: bytes, dtype: str) -> dict[tuple, tuple]:
    """Return {shape of each constant of that dtype: (its quantized values, its scales)}."""
    tensors = [tensor for tensor in tflite.read(content).main_subgraph.tensors if tensor.dtype == dtype]
    constants = [tensor for tensor in tensors if tensor.is_constant and len(tensor.shape) > 1]
    return {tensor.shape: (tflite.constant_values(content, tensor), tensor.scale) for tensor in constants}


@pytest.mark.parametrize(
    ("scheme", "dtype"), [("dynamic_range", "int8"), ("float16", "float16"), ("weight_only_int8", "int8")]
)
def test_weights_are_those_that_tensorflows_converter_stores(scheme, dtype, stock, traces, samples):
    # TensorFlow has no weight_only_int8, but its dynamic-range weights are the same numbers.
    theirs = constants_of(stock("dynamic_range" if dtype == "int8" else scheme), dtype)
    ours = constants_of(convert(traces["tf_keras"], samples, scheme=scheme), dtype)
    assert len(theirs) == (4 if dtype == "int8" else 5)
    for shape, (values, scales) in theirs.items():
        np.testing.assert_array_equal(ours[shape][0], values)
        assert ours[shape][1] == scales


def test_the_weights_of_other_models_differ(models, traces, samples):
    other = small_model(import_tf_keras())
    other.set_weights([weight * 1.01 for weight in other.get_weights()])
    ours = constants_of(convert(other, samples, scheme="dynamic_range"), "int8")
    theirs = constants_of(convert(traces["tf_keras"], samples, scheme="dynamic_range"), "int8")
    assert not any(ours[shape][1] == theirs[shape][1] for shape in ours)


@pytest.mark.parametrize("scheme", ["float16", "int16x8"])
def test_outputs_are_those_of_tensorflows_converter_to_the_bit(scheme, stock, traces, samples, monkeypatch):
    use_stock_ranges(monkeypatch)
    ours, _ = run(convert(traces["tf_keras"], samples, scheme=scheme), samples)
    theirs, _ = run(stock(scheme), samples)
    np.testing.assert_array_equal(ours, theirs)


def test_weight_only_computes_what_float_computes_on_rounded_weights(models, traces, samples):
    rounded = small_model(import_tf_keras())
    weights = []
    for weight in models["tf_keras"].get_weights():
        axis = {"(3, 3, 4, 32)": 3, "(6, 6, 32, 1)": 2, "(2, 2, 32, 32)": 2}.get(str(weight.shape), 1)
        if weight.ndim > 1:
            axes = tuple(other for other in range(weight.ndim) if other != axis)
            scale = np.float32(np.abs(weight).max(axis=axes, keepdims=True) / 127)
            weight = np.rint(weight / scale) * scale
        weights.append(weight)
    rounded.set_weights(weights)
    outputs, _ = run(convert(traces["tf_keras"], samples, scheme="weight_only_int8"), samples)
    np.testing.assert_allclose(outputs, np.asarray(rounded(samples)), atol=1e-6)


def delegated(content: bytes, samples: np.ndarray) -> tuple[int, int]:
    record = tfq.evaluate(content, samples[:2], tfq.EvaluationConfig(num_runs=0))
    return record.delegated_ops, record.total_ops


@pytest.mark.parametrize("scheme", ["dynamic_range", "float16", "weight_only_int8", "float32"])
def test_xnnpack_takes_every_op_of_the_schemes_with_float_activations(scheme, stock, traces, samples):
    taken, total = delegated(convert(traces["tf_keras"], samples, scheme=scheme), samples)
    assert taken == total
    # The hybrid depthwise convolution of TensorFlow's converter is left.
    if scheme == "dynamic_range":
        taken, total = delegated(stock(scheme), samples)
        assert taken < total


@pytest.mark.parametrize(
    ("settings", "granularity", "dense"),
    [
        ({"per_channel_dense": False}, "mixed", "per_tensor"),
        ({"per_channel": False}, "per_tensor", "per_tensor"),
    ],
)
@pytest.mark.parametrize("scheme", ["int8", "int16x8", "dynamic_range", "weight_only_int8"])
def test_granularity_is_as_asked_and_computes_the_same(scheme, settings, granularity, dense, models, traces, samples):
    if scheme == "int16x8" and not settings.get("per_channel", True):
        with refused(
            tfq.InputError, field="conversion.per_channel", expected=True, word="depthwise", limit="int16-per-tensor"
        ):
            convert(traces["tf_keras"], samples, scheme=scheme, **settings)
        return
    content = convert(traces["tf_keras"], samples, scheme=scheme, **settings)
    report = tfq.audit(content)
    assert (report.granularity, report.dense_granularity) == (granularity, dense)
    expected = np.asarray(models["tf_keras"](samples))
    for xnnpack in (True, False):
        outputs, _ = run(content, samples, xnnpack=xnnpack)
        assert np.abs(outputs - expected).max() < 2 * TOLERANCES[scheme]


@pytest.mark.parametrize("types", [("int16", "float32"), ("float32", "int16"), ("float32", "float32")])
def test_int16x8_has_the_types_that_are_asked_for(types, traces, samples):
    settings = {"inference_input_type": types[0], "inference_output_type": types[1]}
    content = convert(traces["tf_keras"], samples, scheme="int16x8", **settings)
    report = tfq.audit(content, tfq.AuditConfig(require="int16x8", **settings))
    assert report.ok, report.to_text()
    assert (report.input_types, report.output_types) == ((types[0],), (types[1],))


@pytest.mark.parametrize("target", ["xnnpack", "tflm", "nnapi", "edgetpu"])
def test_a_conversion_for_a_target_meets_it_without_a_warning(target, traces, samples):
    with warnings.catch_warnings():
        warnings.simplefilter("error", tfq.TfqWarning)
        warnings.filterwarnings("ignore", message=".*looks like random noise")  # which it is
        warnings.filterwarnings("ignore", message=".*deprecates NNAPI")
        content = convert(traces["tf_keras"], samples, target=target)
    config = tfq.AuditConfig(require=target)
    assert auditing.require(tfq.audit(content, config), config).ok


def test_an_op_missing_on_the_target_is_a_warning_with_layer(samples):
    keras = import_tf_keras()
    x = image = keras.Input((16, 16, 4), name="image")
    x = keras.layers.ELU(name="elu")(keras.layers.Conv2D(4, 3, name="conv")(x))
    model = keras.Model(image, keras.layers.Conv2D(2, 3, name="last")(x))
    with warned("(elu)"):
        convert(model, samples, target="edgetpu")


def test_a_dynamic_batch_is_refused_by_a_target_and_not_without(floating, traces, samples):
    with refused(tfq.InputError, field="conversion.batch_size", expected=1, got=0):
        tfq.convert(traces["tf_keras"].model, samples, tfq.ConversionConfig(target="tflm", batch_size=0))


@pytest.fixture(scope="module")
def aware(samples):
    """Return a quantization-aware model of layers that tfmot supports."""
    keras = import_tf_keras()
    x = image = keras.Input((16, 16, 4), name="image")
    x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(x)
    x = keras.layers.Flatten(name="flatten")(keras.layers.MaxPooling2D(4, name="pool")(x))
    model = keras.Model(image, keras.layers.Dense(3, name="class")(x))
    model = import_tfmot().quantization.keras.quantize_model(model)
    model(samples, training=True)
    return tfq.trace(model)


@pytest.mark.parametrize("scheme", ["int16x8", "dynamic_range", "float16", "weight_only_int8"])
def test_a_quantization_aware_model_is_int8_alone(scheme, aware, samples):
    with refused(tfq.InputError, field="conversion.scheme", expected="int8", got=scheme, limit="qat-scheme"):
        convert(aware, samples, scheme=scheme)


def test_fake_quantization_decides_the_granularity(aware):
    report = tfq.audit(tfq.convert(aware, config=tfq.ConversionConfig(per_channel_dense=False)))
    assert (report.granularity, report.dense_granularity) == ("mixed", "per_tensor")
    with refused(tfq.InputError, field="conversion.per_channel", expected=True, got=False, limit="qat-scheme"):
        tfq.convert(aware, config=tfq.ConversionConfig(per_channel=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error", tfq.TfqWarning)
        warnings.filterwarnings("ignore", message=".*deprecates NNAPI")
        tfq.convert(aware, config=tfq.ConversionConfig(target="nnapi"))
    with pytest.warns(tfq.TfqWarning, match="xnnpack"):
        warn_of_target(tfq.convert(aware), tfq.ConversionConfig(target="nnapi"))


def test_an_embedding_is_stored_small_and_reads_back(samples):
    keras = import_keras()
    tokens = keras.Input((8,), dtype="int32", name="tokens")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(100, 64, name="embedding")(tokens))
    model = keras.Model(tokens, keras.layers.Dense(32, name="head")(x))
    ids = np.random.default_rng(0).integers(0, 100, (10, 8)).astype(np.int32)
    floating = len(tfq.convert(model, config=tfq.ConversionConfig(scheme="float32")))
    for scheme, tolerance in (("float16", 1e-3), ("weight_only_int8", 5e-3), ("dynamic_range", 0.02)):
        content = tfq.convert(model, config=tfq.ConversionConfig(scheme=scheme))
        assert tfq.audit(content, tfq.AuditConfig(require=scheme)).ok
        backend = Interpreter(model_content=content).get_signature_runner("serving_default")
        outputs = np.concatenate([next(iter(backend(tokens=row[None]).values())) for row in ids])
        np.testing.assert_allclose(outputs, np.asarray(model(ids)), atol=tolerance)
        assert len(content) < (0.6 if scheme == "float16" else 0.4) * floating


def test_the_private_wrapper_of_tensorflow_is_where_it_was():
    from tensorflow.lite.python.optimize import _pywrap_tensorflow_lite_calibration_wrapper as wrapper

    assert callable(wrapper.CalibrationWrapper.QuantizeModel)

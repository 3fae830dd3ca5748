# SPDX-License-Identifier: Apache-2.0
"""The frozen path compared with TensorFlow's own conversion: bit-identical results."""

import numpy as np
import pytest
from messages import refused, warned
from stock_calibrator import stock_ranges, use_stock_ranges

import tfq
from tfq import auditing, tflite
from tfq.backends import LocalBackend, RunRequest
from tfq.conversion import trace
from tfq.data import input_specs
from tfq.keras_bridge import import_keras, import_tf_keras, import_tfmot
from tfq.ptq import calibration


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 16, (40, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized_inputs() -> np.ndarray:
    return np.random.default_rng(2).integers(-128, 128, (64, 8, 8, 1)).astype(np.int8)


def small_model(keras, name="net"):
    inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.ReLU(name="relu")(x)
    y = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = keras.layers.Add(name="add")([x, y])
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(10, activation="softmax", name="class")(x)
    model = keras.Model(inputs, outputs, name=name)
    rng = np.random.default_rng(3)
    model.set_weights(
        [rng.uniform(0.1, 0.9, w.shape) if w.ndim == 1 else rng.normal(0, 0.5, w.shape) for w in model.get_weights()]
    )
    return model


def quantization_aware(samples):
    tfmot = import_tfmot()
    model = tfmot.quantization.keras.quantize_model(small_model(import_tf_keras()))
    for _ in range(3):
        model(samples, training=True)
    return model


def stock(model, samples, input_type="int8", output_type="int8") -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if samples is not None:
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.dtypes.as_dtype(input_type)
    converter.inference_output_type = tf.dtypes.as_dtype(output_type)
    return bytes(converter.convert())


def outputs_of(model: bytes, quantized_inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    return LocalBackend().assess(RunRequest(model=model, inputs=(quantized_inputs,))).outputs


def same(one: bytes, other: bytes, quantized_inputs: np.ndarray) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in zip(outputs_of(one, quantized_inputs), outputs_of(other, quantized_inputs), strict=True)
    )


@pytest.mark.parametrize("keras", [import_tf_keras, import_keras])
def test_ptq_with_stock_ranges_computes_what_stock_conversion_computes(keras, samples, quantized_inputs, monkeypatch):
    use_stock_ranges(monkeypatch)
    model = small_model(keras())
    assert same(tfq.convert(model, samples), stock(model, samples), quantized_inputs)


def test_min_max_equals_stocks_except_for_inputs_of_an_add(samples):
    floating = tfq.convert(small_model(import_tf_keras()), config=tfq.ConversionConfig(scheme="float32"))
    feed = [{"image": sample[None]} for sample in samples]
    extremes = tfq.CalibrationConfig(method="min_max")
    ours, theirs = calibration.calibrate(floating, feed, extremes).values, stock_ranges(floating, feed).values
    graph = tflite.read(floating).main_subgraph
    (add,) = (op for op in graph.ops if op.name == "ADD")
    assert ours.keys() == theirs.keys()
    for (subgraph, tensor), ends in ours.items():
        low, high = theirs[subgraph, tensor]
        near = 1e-5 * (high - low)
        if tensor in add.inputs:
            assert low - near <= ends[0] and ends[1] <= high + near
        else:
            assert ends == pytest.approx((low, high), abs=near)


def test_qat_computes_what_stock_conversion_computes_and_needs_no_dataset(samples, quantized_inputs):
    model = quantization_aware(samples)
    ours = tfq.convert(model)
    assert same(ours, stock(model, None), quantized_inputs)
    assert tfq.audit(ours, tfq.AuditConfig(require="full_int8")).ok


def test_the_comparison_sees_other_weights(samples, quantized_inputs):
    model = small_model(import_tf_keras())
    before = tfq.convert(model, samples)
    model.set_weights([weight * 1.5 for weight in model.get_weights()])
    assert not same(before, tfq.convert(model, samples), quantized_inputs)


def test_tensors_that_the_model_captures_become_constants_not_inputs(samples):
    import tensorflow as tf

    tf_keras = import_tf_keras()
    mask = tf.constant(np.float32([0.0, 1.0, 0.0]))
    inputs = tf_keras.Input((3,), name="x")
    model = tf_keras.Model(
        inputs, tf_keras.layers.Dense(2, name="out")(tf_keras.layers.Lambda(lambda x: x * mask)(inputs))
    )
    converted = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    assert len(tflite.read(converted).subgraphs[0].inputs) == 1
    feed = np.float32([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(outputs_of(converted, feed)[0], np.asarray(model(feed)), atol=1e-6)


def test_a_trace_exports_the_weights_of_now(samples):
    model = quantization_aware(samples)
    traced = trace(model)
    first = tfq.convert(traced)
    assert tfq.convert(traced) == first
    for layer in model.layers:
        if layer.name == "quant_conv":
            layer.set_weights([weight * 0.5 if weight.ndim == 4 else weight for weight in layer.get_weights()])
    second = tfq.convert(traced)
    assert second != first
    assert second == tfq.convert(trace(model))


def test_two_conversions_of_one_model_are_the_same_bytes(samples):
    model = small_model(import_tf_keras())
    assert tfq.convert(model, samples) == tfq.convert(trace(model), samples)


def test_float_bytes_convert_to_what_their_model_converts_to(samples, quantized_inputs):
    model = small_model(import_tf_keras())
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    assert same(tfq.convert(floating, samples), tfq.convert(model, samples), quantized_inputs)


def test_the_float_flatbuffer_computes_what_the_model_computes(samples):
    model = small_model(import_keras())
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    outputs = outputs_of(floating, samples)[0]
    np.testing.assert_allclose(outputs, np.asarray(model(samples)), atol=1e-5)


@pytest.mark.parametrize("kind", ["ptq", "qat"])
@pytest.mark.parametrize("types", [("uint8", "float32"), ("float32", "uint8"), ("float32", "float32")])
def test_input_and_output_types_are_as_asked(kind, types, samples):
    config = tfq.ConversionConfig(inference_input_type=types[0], inference_output_type=types[1])
    model = small_model(import_tf_keras()) if kind == "ptq" else quantization_aware(samples)
    converted = tfq.convert(model, samples if kind == "ptq" else None, config)
    graph = tflite.read(converted).subgraphs[0]
    assert graph.tensors[graph.inputs[0]].dtype == types[0]
    assert graph.tensors[graph.outputs[0]].dtype == types[1]
    asked = tfq.AuditConfig(require="full_int8", inference_input_type=types[0], inference_output_type=types[1])
    assert tfq.audit(converted, asked).ok
    assert not tfq.audit(converted, tfq.AuditConfig(require="full_int8")).ok


def two_inputs(keras):
    left = keras.Input((4,), name="a_left")
    right = keras.Input((3,), name="b_right")
    joined = keras.layers.Concatenate(name="joined")([left, right])
    return keras.Model(
        {"a_left": left, "b_right": right},
        {"sum": keras.layers.Dense(2, name="sum")(joined), "product": keras.layers.Dense(5, name="product")(joined)},
    )


@pytest.mark.parametrize("keras", [import_tf_keras, import_keras])
def test_the_signature_bears_the_models_own_names(keras, samples):
    from ai_edge_litert.interpreter import Interpreter

    converted = tfq.convert(small_model(keras()), samples)
    backend = Interpreter(model_content=converted).get_signature_runner("serving_default")
    assert list(backend.get_input_details()) == ["image"]
    assert list(backend.get_output_details()) == ["class"]


@pytest.mark.parametrize("keras", [import_tf_keras, import_keras])
def test_dict_inputs_and_outputs_keep_their_names_and_values(keras):
    from ai_edge_litert.interpreter import Interpreter

    model = two_inputs(keras())
    rng = np.random.default_rng(0)
    feeds = {
        "a_left": rng.normal(size=(30, 4)).astype(np.float32),
        "b_right": rng.normal(size=(30, 3)).astype(np.float32),
    }
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    backend = Interpreter(model_content=floating).get_signature_runner("serving_default")
    message = backend(**{name: value[:1] for name, value in feeds.items()})
    expected = model({name: value[:1] for name, value in feeds.items()})
    assert set(message) == {"sum", "product"}
    for name, value in message.items():
        np.testing.assert_allclose(value, np.asarray(expected[name]), atol=1e-5)
    converted = tfq.convert(model, feeds)
    assert tfq.audit(converted, tfq.AuditConfig(require="full_int8")).ok


@pytest.mark.parametrize("keras", [import_tf_keras, import_keras])
def test_a_sequential_model_converts_and_its_signature_bears_its_names(keras, samples):
    keras = keras()
    layers = [keras.Input((8, 8, 1), name="image"), keras.layers.Flatten(), keras.layers.Dense(4, name="class")]
    model = keras.Sequential(layers)
    converted = tfq.convert(model, samples)
    assert tfq.audit(converted, tfq.AuditConfig(require="full_int8")).ok
    parsed = tflite.read(converted)
    assert (parsed.input_names, parsed.output_names) == (("image",), ("class",))
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    np.testing.assert_allclose(outputs_of(floating, samples)[0], np.asarray(model(samples)), atol=1e-4)


def test_token_ids_of_any_integer_type_calibrate():
    keras = import_keras()
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(20, 4)(tokens))
    model = keras.Model(tokens, keras.layers.Dense(2)(x))
    ids = np.random.default_rng(0).integers(0, 20, (30, 5))
    converted = [tfq.convert(model, ids.astype(dtype)) for dtype in (np.int32, np.int16, np.float32)]
    assert converted[0] == converted[1] == converted[2]
    with refused(tfq.InputError, word="int32"):
        tfq.convert(model, ids + 0.5)
    wide = tfq.convert(model, ids, tfq.ConversionConfig(scheme="int16x8"))
    assert tfq.audit(wide, tfq.AuditConfig(require="int16x8")).ok


@pytest.mark.parametrize("keras", [import_tf_keras, import_keras])
def test_recurrent_layers_are_unrolled_only_where_ranges_are_needed(keras):
    keras = keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    cells = [layers.LSTMCell(4), layers.GRUCell(3)]
    recurrent = (
        layers.LSTM(5, return_sequences=True),
        layers.Bidirectional(layers.GRU(4, return_sequences=True)),
        layers.RNN(cells, return_sequences=True),
        layers.SimpleRNN(5),
    )
    model = keras.Sequential([keras.Input((3, 3)), *recurrent])
    x = np.random.default_rng(0).normal(size=(40, 3, 3)).astype(np.float32)
    expected = np.asarray(model(x))
    converted = tfq.convert(model, x, tfq.ConversionConfig(verify=False))  # random weights: 17 dB
    assert "WHILE" not in {op.name for op in tflite.read(converted).main_subgraph.ops}
    assert auditing.audit_model(converted).scheme == "full_int8"
    assert not model.layers[0].unroll
    np.testing.assert_array_equal(model(x), expected)
    loops = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    assert "WHILE" in {op.name for op in tflite.read(loops).main_subgraph.ops}
    np.testing.assert_allclose(outputs_of(loops, x)[0], expected, atol=1e-5)


def test_a_masked_recurrent_layer_is_unrolled_with_its_mask():
    keras = import_keras()
    keras.utils.set_random_seed(0)
    words = keras.Input((7,), dtype="int32", name="words")
    embedded = keras.layers.Embedding(20, 4, mask_zero=True)(words)
    model = keras.Model(words, keras.layers.Dense(3)(keras.layers.GRU(6)(embedded)))
    ids = np.random.default_rng(0).integers(0, 20, (40, 7)).astype(np.int32)
    ids[::2, 3:] = 0
    converted = tfq.convert(model, ids)
    assert auditing.audit_model(converted).scheme == "full_int8"
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    assert tfq.evaluate(converted, ids, tfq.EvaluationConfig(num_runs=0), reference=floating).output_sqnr_db > 20


def test_loops_and_stateful_layers_are_refused_by_name():
    keras = import_tf_keras()
    layers = keras.layers
    volume = keras.Sequential([keras.Input((4, 6, 6, 2)), layers.ConvLSTM2D(3, 3, name="memory")])
    with refused(tfq.InputError, field="model", word="(memory)", limit="control-flow"):
        tfq.convert(volume, np.ones((8, 4, 6, 6, 2), np.float32))
    stateful = keras.Sequential([keras.Input((4, 3), batch_size=1), layers.GRU(5, stateful=True, name="memory")])
    for scheme in ("int8", "dynamic_range"):
        with refused(tfq.InputError, field="model", expected="stateful=False", got=("memory",), limit="stateful-rnn"):
            tfq.convert(stateful, np.ones((8, 4, 3), np.float32), tfq.ConversionConfig(scheme=scheme))


def test_an_unrolled_lstm_is_full_int8_and_reproducible():
    """For these bytes, TensorFlow's quantizer alone left a SPLIT of the gates in float every third time."""
    keras = import_tf_keras()
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(30, 8, 4)).astype(np.float32)
    recurrent = keras.Sequential([keras.Input((8, 4)), keras.layers.LSTM(8, unroll=True), keras.layers.Dense(3)])
    floating = tfq.convert(recurrent, config=tfq.ConversionConfig(scheme="float32"))
    converted = {tfq.convert(floating, x) for _ in range(8)}
    assert len(converted) == 1
    assert auditing.audit_model(converted.pop()).scheme == "full_int8"


def test_batch_is_fixed_to_1_and_dynamic_only_on_request(samples):
    model = small_model(import_tf_keras())
    fixed = tflite.read(tfq.convert(model, samples)).subgraphs[0]
    assert fixed.tensors[fixed.inputs[0]].shape == (1, 8, 8, 1)
    dynamic = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32", batch_size=0))
    graph = tflite.read(dynamic).subgraphs[0]
    assert graph.tensors[graph.inputs[0]].shape_signature[0] == -1
    eight = tflite.read(tfq.convert(model, config=tfq.ConversionConfig(scheme="float32", batch_size=8))).subgraphs[0]
    assert eight.tensors[eight.inputs[0]].shape[0] == 8


def test_every_form_of_representative_dataset_gives_the_same_flatbuffer(samples):
    import tensorflow as tf

    model = small_model(import_tf_keras())
    traced = trace(model)
    forms = {
        "array": samples,
        "callable of lists": lambda: ([sample[None]] for sample in samples),
        "tf.data": tf.data.Dataset.from_tensor_slices(samples).batch(7),
        "signature": {"serving_default": [{"image": sample[None]} for sample in samples]},
    }
    converted = {name: tfq.convert(traced, form) for name, form in forms.items()}
    assert {name: content == converted["array"] for name, content in converted.items()} == dict.fromkeys(forms, True)


@pytest.mark.parametrize(
    ("dataset", "word"),
    [
        (None, "representative_dataset"),
        (np.zeros((0, 8, 8, 1), np.float32), "empty"),
        (np.zeros((20, 8, 8, 3), np.float32), "shape"),
        (np.full((20, 8, 8, 1), np.nan, np.float32), "NaN"),
        (lambda: iter([]), "empty"),
    ],
)
def test_a_bad_representative_dataset_is_an_input_error(dataset, word):
    with refused(tfq.InputError, word=word) as caught:
        tfq.convert(small_model(import_tf_keras()), dataset)
    assert caught.value.field.startswith("representative_dataset")


def test_too_few_or_constant_samples_warn(samples):
    model = small_model(import_tf_keras())
    with warned("40"):
        tfq.convert(model, samples, tfq.ConversionConfig(num_calibration_samples=100))
    with warned("everywhere"):
        tfq.convert(model, np.ones((20, 8, 8, 1), np.float32), tfq.ConversionConfig(num_calibration_samples=20))


def test_another_batch_size_than_that_of_the_model_is_refused():
    tf_keras = import_tf_keras()
    batched = tf_keras.Sequential([tf_keras.Input((3,), batch_size=4), tf_keras.layers.Dense(2)])
    with refused(tfq.InputError, field="conversion.batch_size", expected=4, got=1, limit="batch-size"):
        tfq.convert(batched, np.zeros((8, 3)))


def test_an_op_that_tflite_lacks_is_named():
    import tensorflow as tf

    tf_keras = import_tf_keras()

    class Unique(tf_keras.layers.Layer):
        def call(self, x):
            return tf.linalg.eigh(x)[0]

    inputs = tf_keras.Input((3, 3))
    model = tf_keras.Model(inputs, Unique()(inputs))
    with refused(tfq.InputError, field="model", word="SelfAdjointEigV2"):
        tfq.convert(model, np.eye(3, dtype=np.float32)[None].repeat(12, 0))


def test_an_int8_flatbuffer_is_not_converted_again(samples):
    converted = tfq.convert(small_model(import_tf_keras()), samples)
    with refused(tfq.InputError, field="model", expected="float32", got="full_int8"):
        tfq.convert(converted, samples)


def test_the_record_in_the_flatbuffer_names_layers_and_preprocessing(samples):
    messages = {"resize": [], "scale": 0.0625, "offset": 0.0}
    converted = tfq.convert(small_model(import_tf_keras()), samples, preprocessing=messages)
    metadata = tflite.read_metadata(converted)
    assert metadata["preprocessing"] == messages
    layers = {op.keras_layer for op in tflite.read(converted).subgraphs[0].ops}
    assert {"depthwise", "add", "pool", "class"} <= layers


def test_input_specs_are_the_signatures(samples):
    (spec,) = input_specs(tfq.convert(small_model(import_tf_keras()), samples))
    assert (spec.name, spec.shape, spec.dtype) == ("image", (1, 8, 8, 1), np.int8)


def test_the_private_symbols_of_tensorflow_are_where_they_were():
    import inspect

    from tensorflow.lite.python import lite
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize import calibrator
    from tensorflow.python.framework import convert_to_constants

    assert callable(convert_to_constants._FunctionConverterDataInEager._build_tensor_data)
    assert callable(convert_to_constants._replace_variables_by_constants)
    assert "_freeze_concrete_function" in inspect.getsource(lite.TFLiteConverterV2.__mro__[1].convert)
    assert {"input_data_type", "output_data_type"} <= set(inspect.signature(mlir_quantize).parameters)
    assert callable(calibrator.add_intermediate_tensors)
    assert callable(calibrator.Calibrator.calibrate)

# SPDX-License-Identifier: Apache-2.0
"""Ops without an int8 form in TensorFlow are converted to int8, and the float function stays unchanged."""

import warnings

import numpy as np
import pytest

import tfq
from tfq import auditing, tflite
from tfq.backends import LocalBackend, RunRequest
from tfq.conversion.graph_rewrites import with_int8_kernels, with_quantizable_ops
from tfq.keras_bridge import import_keras, import_tf_keras

SHAPE = (6, 6, 4)
FLOAT_ENDS = {"inference_input_type": "float32", "inference_output_type": "float32"}


def images(count=40):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def squared(x):
    return import_keras().ops.square(x)


def negated(x):
    return import_keras().ops.negative(x)


def group_normalized(x):
    return import_keras().layers.GroupNormalization(2)(x)


def selected_by_a_condition(x):
    ops = import_keras().ops
    return x * ops.cast(ops.any(ops.not_equal(x, 100.0), axis=-1, keepdims=True), "float32")


def split_in_equal_parts(x):
    ops = import_keras().ops
    gate, carried = ops.split(x, 2, axis=-1)
    return ops.concatenate([ops.sigmoid(gate), ops.tanh(carried), carried], axis=-1)


def split_at_places(x):
    ops = import_keras().ops
    parts = ops.split(x, [1, 3], axis=-1)
    return ops.concatenate([ops.relu(parts[2]), parts[0], ops.tanh(parts[1])], axis=-1)


def unpacked(x):
    ops = import_keras().ops
    rows = ops.unstack(x, SHAPE[0], axis=1)
    return ops.stack([ops.tanh(rows[3]), rows[5], ops.relu(rows[0])], axis=1)


FORMS = {squared: "SQUARE", negated: "NEG", group_normalized: "SQUARE"}
FORMS |= {split_in_equal_parts: "SPLIT", split_at_places: "SPLIT_V", unpacked: "UNPACK"}


def model_of(block):
    keras = import_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, keras.layers.Conv2D(3, 1)(block(keras.layers.Conv2D(4, 1)(inputs))))


def ran(model, x):
    return LocalBackend().assess(RunRequest(model=model, inputs=(x,))).outputs[0]


def op_names(model):
    return [op.name for op in tflite.read(model).main_subgraph.ops]


def converted(model, x, **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfq.TfqWarning)  # of few samples
        return tfq.convert(model, x, tfq.ConversionConfig(**config))


def sqnr_db(expected, got):
    return 10 * np.log10(np.mean((expected - expected.mean(axis=0)) ** 2) / np.mean((expected - got) ** 2))


@pytest.mark.parametrize("block", FORMS, ids=lambda block: block.__name__)
def test_rewritten_float_is_bit_identical_and_int8_is_all_int8(block):
    x, model = images(), model_of(block)
    floating = converted(model, None, scheme="float32")
    assert FORMS[block] in op_names(floating)
    rewritten = with_quantizable_ops(floating)
    assert FORMS[block] not in op_names(rewritten)
    np.testing.assert_array_equal(ran(rewritten, x), ran(floating, x))
    quantized = converted(model, x, **FLOAT_ENDS)
    audit = tfq.AuditConfig(require="full_int8", **FLOAT_ENDS)
    assert tfq.audit(quantized, audit).ok
    assert sqnr_db(ran(floating, x), ran(quantized, x)) > 25


def test_parts_of_a_split_are_cut_out_by_xnnpack():
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=converted(model_of(split_in_equal_parts), images()))
    interpreter.allocate_tensors()
    details = interpreter._get_ops_details()
    delegated = [op for op in details if op["op_name"] == "DELEGATE"]
    assert len(delegated) == 1 and sum(op["op_name"] == "SLICE" for op in details) == 2
    assert delegated[0]["outputs"].tolist() == [interpreter.get_output_details()[0]["index"]]


@pytest.mark.parametrize("block", [split_in_equal_parts, split_at_places, unpacked], ids=lambda block: block.__name__)
def test_an_open_batch_stays_open_where_parts_are_cut_out(block):
    floating = converted(model_of(block), None, scheme="float32", batch_size=0)
    rewritten = with_quantizable_ops(floating)
    assert rewritten != floating
    np.testing.assert_array_equal(ran(rewritten, images(5)), ran(floating, images(5)))


def test_a_file_with_only_old_operator_fields_is_rewritten():
    edited = tflite.unpack(converted(model_of(squared), None, scheme="float32"))
    for code in edited.operatorCodes:
        code.deprecatedBuiltinCode, code.builtinCode = code.builtinCode, 0
    old = tflite.pack(edited, 10_000)
    rewritten = with_quantizable_ops(old)
    assert ("SQUARE" in op_names(old), "SQUARE" in op_names(rewritten)) == (True, False)
    np.testing.assert_array_equal(ran(rewritten, images()), ran(old, images()))


def test_a_condition_becomes_a_choice_between_one_and_zero():
    x, model = images(), model_of(selected_by_a_condition)
    x[::2, :3] = 0
    floating = converted(model, None, scheme="float32")
    rewritten = with_quantizable_ops(floating)
    assert ("CAST" in op_names(floating), "CAST" in op_names(rewritten)) == (True, False)
    np.testing.assert_array_equal(ran(rewritten, x), ran(floating, x))


def test_another_power_and_whole_numbers_stay_as_they_are():
    ops = import_keras().ops
    floating = converted(model_of(lambda x: ops.power(ops.abs(x), 3.0)), None, scheme="float32")
    rewritten = with_quantizable_ops(floating)
    assert sorted(op_names(rewritten)) == sorted(op_names(floating))
    np.testing.assert_array_equal(ran(rewritten, images()), ran(floating, images()))


@pytest.mark.parametrize("is_trained", [False, True], ids=["post_training", "quantization_aware"])
def test_an_int8_elu_is_within_one_step_of_its_float_island(is_trained, monkeypatch):
    tf_keras, x = import_tf_keras(), images()
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    inputs = layers.Input(SHAPE)
    shared = layers.Conv2D(4, 3, activation="elu", name="first")(inputs)
    model = tf_keras.Model(inputs, layers.Add()([layers.Activation("elu", name="second")(shared), shared]))

    def fit(trained, callbacks):
        trained.compile("sgd", "mse")
        trained.fit(x, model.predict(x, verbose=0), callbacks=callbacks, verbose=0)

    result = tfq.qat(model, fit, calibration=x) if is_trained else model
    quantized = converted(result, x)
    report = tfq.audit(quantized, tfq.AuditConfig(require="full_int8"))
    assert report.ok, report.to_text()
    parsed = tflite.read(quantized)
    layers_of = [op.keras_layer for op in parsed.main_subgraph.ops if op.name == "ELU"]
    assert layers_of == ["first", "second"]
    assert parsed.signatures[0].outputs
    monkeypatch.setattr("tfq.conversion.int8_forms.with_int8_kernels", lambda model: model)
    island = converted(result, x)
    assert auditing.audit_model(island).scheme == "mixed"
    quantized_values = np.random.default_rng(1).integers(-128, 128, (256, *SHAPE)).astype(np.int8)
    difference = ran(quantized, quantized_values).astype(int) - ran(island, quantized_values)
    assert np.abs(difference).max() <= 1


def test_an_op_whose_float_output_leaves_the_model_stays_in_float():
    tf_keras = import_tf_keras()
    inputs = tf_keras.Input(SHAPE)
    model = tf_keras.Model(inputs, tf_keras.layers.Activation("elu")(tf_keras.layers.Conv2D(4, 1)(inputs)))
    quantized = converted(model, images(), **FLOAT_ENDS)
    assert op_names(quantized)[-1] == "ELU"
    assert with_int8_kernels(quantized) == quantized


def chosen_exponential(x):
    ops = import_keras().ops
    return ops.where(x > 0, x, 2.0 * (ops.exp(x) - 1.0))


def of_below_on_the_left(x):
    ops = import_keras().ops
    return ops.where(x <= 0, (ops.exp(x) - 1.0) / 2.0, x)


BOUNDED = ["softplus", "mish", "log_sigmoid", "selu", "celu", chosen_exponential, of_below_on_the_left]


def wide_model(activation):
    """Return a model whose activation has inputs from about -20 to 20."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, kernel_initializer=keras.initializers.RandomNormal(0, 0.8), name="wide")(inputs)
    x = keras.layers.Activation(activation)(x) if isinstance(activation, str) else activation(x)
    return keras.Model(inputs, keras.layers.Conv2D(3, 1)(x))


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("activation", BOUNDED, ids=lambda item: getattr(item, "__name__", item))
def test_a_masked_exponential_does_not_widen_the_range_of_used_values(activation, scheme):
    x, model = images(200), wide_model(activation)
    expected = np.asarray(model(x))
    floating = converted(model, None, scheme="float32")
    assert "EXP" in op_names(floating)
    np.testing.assert_allclose(
        ran(with_quantizable_ops(floating), x), expected, atol=1e-6 * np.abs(expected).max(), rtol=0
    )
    quantized = converted(model, x, scheme=scheme, **FLOAT_ENDS)
    if scheme == "int8":  # TensorFlow's quantizer has no comparison of 16 bits
        assert tfq.audit(quantized, tfq.AuditConfig(require="full_int8", **FLOAT_ENDS)).ok
    assert sqnr_db(expected, ran(quantized, x)) > 28


def test_softplus_has_a_value_where_the_exponential_itself_would_have_none():
    keras = import_keras()
    x = keras.Input((3,))
    floating = converted(keras.Model(x, keras.ops.softplus(x)), None, scheme="float32")
    provided = np.array([[-200.0, 0.0, 200.0]], np.float32)
    assert np.isinf(ran(floating, provided)[0, 2])
    np.testing.assert_allclose(ran(with_quantizable_ops(floating), provided), [[0, np.log(2), 200]], rtol=1e-6)


def other_logarithms(x):
    ops = import_keras().ops
    power = ops.exp(x)
    return ops.log(2.0 + power) + ops.log(1.0 + ops.exp(-x)) * power + ops.where(x > 1, x, ops.exp(x))


def test_exponentials_that_are_used_beyond_that_stay_as_they_are():
    x = images()
    floating = converted(model_of(other_logarithms), None, scheme="float32")
    rewritten = with_quantizable_ops(floating)
    assert op_names(rewritten).count("EXP") == op_names(floating).count("EXP") - 1  # softplus(-x) alone
    np.testing.assert_allclose(ran(rewritten, x), ran(floating, x), rtol=1e-5, atol=1e-5)


def by_halves(x):
    ops = import_keras().ops
    return 0.2 * ops.minimum(x, 0.0) + ops.relu(x)


def test_a_minimum_does_not_cut_from_its_input_what_others_read():
    x, model = images(200), wide_model(by_halves)
    expected, quantized = np.asarray(model(x)), converted(model, x, **FLOAT_ENDS)
    assert sqnr_db(expected, ran(quantized, x)) > 28
    [wide] = [op for op in tflite.read(quantized).main_subgraph.ops if op.keras_layer == "wide"]
    tensor = tflite.read(quantized).main_subgraph.tensors[wide.outputs[0]]
    assert (127 - tensor.zero_point[0]) * tensor.scale[0] > 10


def test_a_minimum_that_alone_reads_its_input_keeps_the_narrow_range():
    x, model = images(200), wide_model(lambda x: import_keras().ops.minimum(x, 0.5))
    quantized = converted(model, x, **FLOAT_ENDS)
    [wide] = [op for op in tflite.read(quantized).main_subgraph.ops if op.keras_layer == "wide"]
    tensor = tflite.read(quantized).main_subgraph.tensors[wide.outputs[0]]
    assert (127 - tensor.zero_point[0]) * tensor.scale[0] == pytest.approx(0.5, abs=tensor.scale[0])


@pytest.mark.parametrize("activation", ["softplus", "selu"])
def test_a_soft_activation_of_a_qat_model_is_as_trained(activation):
    tf_keras, x = import_tf_keras(), images(200)
    tf_keras.utils.set_random_seed(0)
    inputs = tf_keras.Input(SHAPE)
    y = tf_keras.layers.Conv2D(4, 3, activation=activation, kernel_initializer="random_normal", name="soft")(8 * inputs)
    model = tf_keras.Model(inputs, tf_keras.layers.Conv2D(3, 1, name="head")(y))

    def fit(trained, callbacks):
        trained.compile("sgd", "mse")
        trained.fit(x, model.predict(x, verbose=0), callbacks=callbacks, verbose=0)

    trained = tfq.qat(model, fit, calibration=x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfq.TfqWarning)
        quantized = tfq.convert(trained, x)
    assert tfq.audit(quantized, tfq.AuditConfig(require="full_int8")).ok
    parity = tfq.qat_parity(trained, quantized, x)
    assert parity.outputs[0].logit_sqnr_db > 28
    assert not any("EXP" in layer.op for layer in parity.departures)

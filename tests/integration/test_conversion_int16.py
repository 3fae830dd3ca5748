# SPDX-License-Identifier: Apache-2.0
"""int16x8: ops without int16 kernel, or with scales that lose the function, agree with Keras or are float islands.

Each file runs in a child, because a faulty file may abort the process.
"""

import multiprocessing

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import ops

import tfq
from tfq.conversion import quantize
from tfq.errors import TfqWarning
from tfq.quant_math import sqnr_db

L = keras.layers
X = np.kron(np.random.default_rng(0).uniform(0.2, 1.8, (24, 4, 4, 4)), np.ones((1, 2, 2, 1))).astype("float32")

MODELS = {
    "layer_normalization": lambda x: L.LayerNormalization()(x),
    "unit_normalization": lambda x: L.UnitNormalization()(x - 1.0),
    "rms_normalization": lambda x: L.RMSNormalization()(x - 1.1),
    "squared_difference": lambda x: ops.square(x - 1.0),
    "prelu_after_relu": lambda x: L.PReLU(alpha_initializer=keras.initializers.Constant(0.3))(L.ReLU()(x)),
    "prelu": lambda x: L.PReLU(alpha_initializer=keras.initializers.Constant(0.3))(x - 1.0),
    "elu": lambda x: L.ELU()(x - 1.0),
    "rsqrt": ops.rsqrt,
    "sqrt": ops.sqrt,
    "sum": lambda x: ops.sum(x, axis=-1),
    "sum_of_squares": lambda x: ops.sum(x * x, axis=-1, keepdims=True),
    "far_minimum": lambda x: ops.minimum(x, 1e6),
    "far_maximum": lambda x: ops.maximum(x, -1e6),
    "log_softmax": ops.log_softmax,
    "equal_biases": lambda x: L.Conv2D(4, 1, bias_initializer=keras.initializers.Constant(0.3))(
        L.DepthwiseConv2D(1, bias_initializer=keras.initializers.Constant(0.3))(x * 0.01)
    ),
    "split": lambda x: ops.split(x, 2, axis=-1)[1],
    "padded": lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=0.7),
    "selected": lambda x: ops.where(x > 1.0, x, ops.tanh(x)),
    "selected_constant": lambda x: ops.where(x > 1.2, x, 0.4),
    "compared_and_added": lambda x: ops.soft_shrink(x - 1.0),
    "greatest": lambda x: ops.top_k(x, 2)[0] + 0.5 * x[..., :2],
    "cast_condition": lambda x: x * ops.cast(x > 1.0, "float32"),
    "scattered": lambda x: ops.scatter_update(x, np.array([[0, 3], [0, 1]]), x[0, 4:6] * 0.5),
}
# Ops that TensorFlow's quantizer gets wrong without the rewriting.
WRONG = ("layer_normalization", "squared_difference", "sum", "far_minimum", "equal_biases")
# Ops whose operands TensorFlow's quantizer gives other types or scales than the kernels need.
UNFIT = ("padded", "selected", "compared_and_added", "greatest", "cast_condition")


def model_of(name):
    keras.utils.set_random_seed(1)
    inputs = keras.Input(X.shape[1:], name="x")
    return keras.Model(inputs, MODELS[name](inputs))


def converted(model, quantizer="tensorflow"):
    config = tfq.ConversionConfig(
        scheme="int16x8",
        quantizer=quantizer,
        verify=False,
        calibration=tfq.CalibrationConfig(method="min_max"),
    )
    return tfq.convert(model, X, config)


def _child(pipe, content):
    runner = Interpreter(model_content=content, num_threads=1)
    runner.allocate_tensors()
    (input_details,), (result,) = runner.get_input_details(), runner.get_output_details()
    rows = []
    for sample in X:
        steps = np.rint(sample / input_details["quantization"][0])
        runner.set_tensor(input_details["index"], np.clip(steps, -32768, 32767)[None].astype(np.int16))
        runner.invoke()
        rows.append(runner.get_tensor(result["index"]).astype(np.float32) * result["quantization"][0])
    pipe.send(np.concatenate(rows))


def sqnr(model, content):
    """Return the SQNR against Keras in dB; None if the file fails or ends the process."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(there, content))
    child.start()
    there.close()
    try:
        return sqnr_db(model.predict(X, batch_size=1, verbose=0), here.recv())
    except EOFError:
        return None
    finally:
        child.join()


@pytest.mark.parametrize("name", MODELS)
def test_int16x8_agrees_with_keras(name):
    model = model_of(name)
    for quantizer in ("tensorflow", "litert"):
        result = sqnr(model, converted(model, quantizer))
        assert result is not None and result > 40, (quantizer, result)


@pytest.mark.parametrize("name", WRONG)
def test_without_the_rewriting_int16x8_is_wrong(name, monkeypatch):
    monkeypatch.setattr(quantize, "with_int16_forms", lambda model, ranges: (model, ranges))
    model = model_of(name)
    result = sqnr(model, converted(model))
    assert result is None or result < 30


@pytest.mark.parametrize("name", UNFIT)
def test_without_fitting_operands_int16x8_is_wrong(name, monkeypatch):
    monkeypatch.setattr(quantize, "with_int16_types", lambda model: model)
    model = model_of(name)
    result = sqnr(model, converted(model))
    assert result is None or result < 30


def test_a_constant_of_zeros_has_the_data_of_int16():
    inputs = keras.Input(X.shape[1:])
    content = converted(keras.Model(inputs, L.PReLU(shared_axes=[1, 2])(L.Conv2D(8, 1, activation="relu")(inputs))))
    assert tfq.audit(content, tfq.AuditConfig(require="int16x8")).ok


def test_scatter_in_int16_does_not_run(monkeypatch):
    monkeypatch.setattr(quantize, "float_only_ops", lambda model: [])
    model = model_of("scattered")
    assert sqnr(model, converted(model)) is None


def test_a_warning_and_the_audit_name_float_ops_of_int16x8():
    with pytest.warns(TfqWarning) as caught:
        content = converted(model_of("selected"))
    assert any("GREATER" in str(item.message) for item in caught)
    report = tfq.audit(content, tfq.AuditConfig(require="int16x8"))
    assert not report.ok and any("GREATER" in item.message for item in report.findings)


def test_the_audit_names_a_float_op_at_the_edge():
    content = converted(model_of("elu"))
    report = tfq.audit(content, tfq.AuditConfig(require="int16x8"))
    assert not report.ok and any("ELU" in item.message for item in report.findings)
    graph = tfq.audit(content)
    assert graph.scheme == report.scheme


def test_int16x8_constants_of_zeros_have_a_scale_and_no_old_runtime_version_stays():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(X.shape[1:])
    model = keras.Model(inputs, L.PReLU()(L.ReLU()(inputs)))  # its slopes are 0 before training
    content = tfq.convert(model, X, tfq.ConversionConfig(scheme="int16x8", verify=False))
    assert tfq.audit(content, tfq.AuditConfig(require="int16x8")).ok
    assert b"min_runtime_version" in tfq.convert(model, X, tfq.ConversionConfig(scheme="float32"))
    assert b"min_runtime_version" not in content

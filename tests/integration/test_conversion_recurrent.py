# SPDX-License-Identifier: Apache-2.0
"""Fused recurrent ops of a float .tflite: int8, a float island, or a refusal. Oracles: Keras, and the float op."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from built_models import Call, T, build, constant
from interpreted import answers_of, sqnr_db
from messages import refused, warned

import tfq
from tfq.errors import InputError
from tfq.ptq import calibration

UNITS, FEATURES, STEPS = 5, 6, 8
DATA = np.random.default_rng(1).normal(size=(120, STEPS, FEATURES)).astype("float32").cumsum(1) / 3


def weights(*shape, around=0.0):
    return constant(around + weights.rng.normal(size=shape) * 0.4)


@pytest.fixture(autouse=True)
def _same_weights_in_every_test():
    weights.rng = np.random.default_rng(0)


def one_op(name, inputs, output, options, shape=(1, STEPS, FEATURES)):
    """Return a flatbuffer of one op. inputs: its tensors in order after the first, None for omitted ones."""
    tensors = {"x": T("float32", shape)} | {f"t{slot}": tensor for slot, tensor in enumerate(inputs) if tensor}
    places = ["x", *(f"t{slot}" if tensor else None for slot, tensor in enumerate(inputs))]
    tensors["y"] = T("float32", output)
    return build(tensors, [Call(name, places, ["y"], options)], ["x"], ["y"])


def state(*shape):
    return T("float32", shape, is_state=True)


def options(kind, **values):
    result = getattr(generated, f"{kind}OptionsT")()
    for name, value in {"fusedActivationFunction": generated.ActivationFunctionType.TANH, **values}.items():
        setattr(result, name, value)
    return result


def gates(units, recurrent, projection=None):
    peepholes, biases = [None] * 3, [weights(units) for _ in range(4)]
    inner = [weights(units, FEATURES) for _ in range(4)] + [weights(units, recurrent) for _ in range(4)]
    return [*inner, *peepholes, *biases, projection, None]


def lstm(layer_normalization=False, projected=False):
    width = 3 if projected else UNITS
    inputs = gates(UNITS, width, weights(width, UNITS) if projected else None)
    inputs += [state(1, width), state(1, UNITS)]
    inputs += [weights(UNITS, around=1.0) if layer_normalization else None for _ in range(4)]
    kind = options("UnidirectionalSequenceLSTM")
    return one_op("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, (1, STEPS, width), kind)


def single_step_lstm():
    inputs = [*gates(UNITS, UNITS), state(1, UNITS), state(1, UNITS)]
    return one_op("LSTM", inputs, (1, UNITS), options("LSTM"), (1, FEATURES))


def bidirectional_lstm():
    inputs = [*gates(UNITS, UNITS), *gates(UNITS, UNITS), *(state(1, UNITS) for _ in range(4)), *[None] * 9]
    kind = options("BidirectionalSequenceLSTM", mergeOutputs=True, timeMajor=False)
    return one_op("BIDIRECTIONAL_SEQUENCE_LSTM", inputs, (1, STEPS, 2 * UNITS), kind)


def rnn():
    inputs = [weights(UNITS, FEATURES), weights(UNITS, UNITS), weights(UNITS), state(1, UNITS)]
    return one_op("UNIDIRECTIONAL_SEQUENCE_RNN", inputs, (1, STEPS, UNITS), options("SequenceRNN"))


def svdf():
    inputs = [weights(UNITS, FEATURES), weights(UNITS, STEPS), weights(UNITS), state(1, UNITS * STEPS)]
    kind = options("SVDF", rank=1, fusedActivationFunction=generated.ActivationFunctionType.RELU)
    return one_op("SVDF", inputs, (1, UNITS), kind, (1, FEATURES))


INT8_FORM = {
    "lstm": lstm,
    "layer_normalization": lambda: lstm(layer_normalization=True),
    "projection": lambda: lstm(projected=True),
    "svdf": svdf,
}
FLOAT_ONLY = {"rnn": rnn, "bidirectional_lstm": bidirectional_lstm, "single_step_lstm": single_step_lstm}


def data_for(content):
    return DATA if len(tfq.tflite.read(content).main_subgraph.input_tensors[0].shape) == 3 else DATA[:, 0]


def converted(content, **config):
    return tfq.convert(content, data_for(content)[:80], tfq.ConversionConfig(**config))


def agreement(content, expected):
    data = data_for(expected)[80:]
    return sqnr_db(answers_of(expected, data), answers_of(content, data))


@pytest.mark.parametrize("name", INT8_FORM)
def test_ops_with_an_int8_kernel_use_it_and_agree_with_float(name):
    model = INT8_FORM[name]()
    content = converted(model)
    assert tfq.audit(content, tfq.AuditConfig(require="full_int8")).ok
    assert agreement(content, model) > 28


def test_a_float_state_or_weight_of_a_fused_lstm_fails_the_audit():
    content = converted(lstm())
    for slot in (0, 1, 18, 19):  # data, a weight, the output state, the int16 cell state
        edited = tfq.tflite.unpack(content)
        graph = edited.subgraphs[0]
        (op,) = (op for op in graph.operators if len(op.inputs) > 18)
        graph.tensors[int(op.inputs[slot])].type = generated.TensorType.FLOAT32
        kinds = {finding.kind for finding in tfq.audit(tfq.tflite.pack(edited, 9999), execute=False).failures}
        assert kinds & {"float_op", "hybrid_op"}, slot


@pytest.mark.parametrize("name", FLOAT_ONLY)
def test_ops_without_an_int8_kernel_stay_float_and_are_named(name):
    model = FLOAT_ONLY[name]()
    (op,) = tfq.tflite.read(model).main_subgraph.ops
    with warned(word=op.name):
        content = converted(model)
    assert agreement(content, model) > 30
    assert not tfq.audit(content, tfq.AuditConfig(require="full_int8")).ok


@pytest.mark.parametrize("name", [*INT8_FORM, *FLOAT_ONLY])
def test_int16x8_refuses_them_by_name(name):
    model = (INT8_FORM | FLOAT_ONLY)[name]()
    (op,) = tfq.tflite.read(model).main_subgraph.ops
    with refused(InputError, field="conversion.scheme", got="int16x8", word=op.name, limit="int16-recurrent"):
        converted(model, scheme="int16x8")


@pytest.mark.parametrize("name", ["lstm", "svdf", "rnn", "bidirectional_lstm"])
def test_litert_quantizer_leaves_them_float_and_they_are_named(name):
    model = (INT8_FORM | FLOAT_ONLY)[name]()
    (op,) = tfq.tflite.read(model).main_subgraph.ops
    with warned(word=op.name):
        content = converted(model, quantizer="litert")
    assert agreement(content, model) > 30


@pytest.fixture(scope="module")
def keras_lstm(tmp_path_factory):
    """Return (a tf_keras model, its flatbuffer as the converter fuses it)."""
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input((STEPS, FEATURES), name="x", batch_size=1)
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="y")(tf_keras.layers.LSTM(6)(x)))
    call = tf.function(lambda value: model(value, training=False))
    signature = call.get_concrete_function(tf.TensorSpec([1, STEPS, FEATURES], tf.float32))
    # Not the model: that would also save a function for each way to call each of its layers.
    module, folder = tf.Module(), str(tmp_path_factory.mktemp("lstm"))
    module.weights = model.weights
    tf.saved_model.save(module, folder, signatures=signature)
    return model, tf.lite.TFLiteConverter.from_saved_model(folder).convert()


@pytest.mark.parametrize("config", [{}, {"target": "tflm"}, {"techniques": ("bias_correction",)}], ids=str)
def test_a_fused_keras_lstm_is_full_int8_and_predicts_as_keras(keras_lstm, config):
    model, floating = keras_lstm
    content = converted(floating, **config)
    assert tfq.audit(content, tfq.AuditConfig(require="full_int8")).ok
    assert sqnr_db(model.predict(DATA[80:], verbose=0, batch_size=1), answers_of(content, DATA[80:])) > 30


def test_without_the_ops_inner_tensors_the_file_does_not_run(keras_lstm, monkeypatch):
    _, floating = keras_lstm
    monkeypatch.setattr(calibration, "with_intermediate_tensors", lambda model: model)
    content = converted(floating)
    with pytest.raises((RuntimeError, ValueError)):
        answers_of(content, DATA[:1])

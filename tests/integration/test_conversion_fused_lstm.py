# SPDX-License-Identifier: Apache-2.0
"""LSTM layers of Keras as TFLite's fused op. Oracles: Keras, and a plain interpreter that never resets its states."""

import keras
import numpy as np
import pytest
import tf_keras
from interpreted import answers_of, run_in_batches, sqnr_db
from messages import refused, warned

import tfq
from tfq.conversion import (
    convert,
    convert_with_record,
    int8_forms,
    recurrent_layers,
    recurrent_record,
    recurrent_text,
)
from tfq.conversion.recurrent_layers import (
    MAX_UNROLLED_STEPS,
    LSTMForm,
    RecurrentLayer,
    lstm_form,
    warn_of_unrolled,
)

STEPS, FEATURES = MAX_UNROLLED_STEPS + 1, 4
DATA = np.tanh(np.random.default_rng(3).normal(size=(60, STEPS, FEATURES)).cumsum(1) / 3).astype("float32")
# The calibration data includes the test samples. Otherwise the outputs of some weights are clipped, and the clipping
# hides the errors that these tests look for.
CALIBRATION, TEST = DATA, DATA[40:]
FUSED = "UNIDIRECTIONAL_SEQUENCE_LSTM"


def build(library, layer, steps=STEPS):
    """Return a model of `layer(layers, x)`, with weights that make every gate matter."""
    library.utils.set_random_seed(0)
    x = library.Input((steps, FEATURES), name="x")
    model = library.Model(x, layer(library.layers, x))
    random = np.random.default_rng(5)
    model.set_weights([(w + random.normal(size=w.shape) * 0.3).astype(w.dtype) for w in model.get_weights()])
    return model


def both_directions(layers, x):
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True, dropout=0.1), name="both")(x)
    return layers.Dense(3, name="head")(layers.LSTM(4, use_bias=False, name="memory")(x))


def names(content):
    return [op.name for op in tfq.tflite.read(content).main_subgraph.ops]


@pytest.fixture(scope="module", params=[keras, tf_keras], ids=["keras", "tf_keras"])
def converted(request):
    """Return (a model of three LSTM directions, its int8 conversion with the default settings)."""
    model = build(request.param, both_directions)
    return model, convert_with_record(model, CALIBRATION)


@pytest.fixture(scope="module")
def short():
    """Return a model of few steps, in which a state that is not reset changes the outputs."""
    return build(keras, lambda layers, x: layers.LSTM(3, return_sequences=True, name="memory")(x), steps=3)


def test_long_lstms_are_fused_full_int8_and_predict_as_keras(converted):
    model, result = converted
    assert {layer.form for layer in result.recurrent} == {"fused"} and len(result.recurrent) == 3
    assert tfq.audit(result.content, tfq.AuditConfig(require="full_int8")).ok
    assert sqnr_db(model.predict(TEST, verbose=0), answers_of(result.content, TEST)) > 28
    assert "memory" in {op.keras_layer for op in tfq.tflite.read(result.content).main_subgraph.ops}


def test_repeated_inferences_are_independent_without_a_reset(converted):
    _, result = converted
    np.testing.assert_array_equal(run_in_batches(result.content, TEST, 1), answers_of(result.content, TEST))


@pytest.mark.parametrize("scheme", ["int8", "float32", "dynamic_range"])
def test_without_the_state_reset_an_inference_depends_on_the_previous(short, scheme, monkeypatch):
    settings, data = tfq.ConversionConfig(scheme=scheme, lstm="fused"), CALIBRATION[:, :3]
    content = tfq.convert(short, data, settings)
    assert FUSED in names(content)
    np.testing.assert_array_equal(run_in_batches(content, TEST[:, :3], 1), answers_of(content, TEST[:, :3]))
    assert sqnr_db(short.predict(TEST[:, :3], verbose=0), answers_of(content, TEST[:, :3])) > 28
    monkeypatch.setattr(convert, "with_state_resets", lambda model: model)
    content = tfq.convert(short, data, settings)
    assert sqnr_db(answers_of(content, TEST[:, :3]), run_in_batches(content, TEST[:, :3], 1)) < 20


def test_a_large_state_is_reset_exactly(short):
    content = tfq.convert(short, CALIBRATION[:, :3], tfq.ConversionConfig(lstm="fused", verify=False))
    loud = np.concatenate([np.full((1, 3, FEATURES), 100, "float32"), TEST[:, :3]])
    np.testing.assert_array_equal(run_in_batches(content, loud, 1), answers_of(content, loud))


def test_an_analysis_names_the_layer_and_leaves_out_the_reset(short):
    floating = tfq.convert(short, config=tfq.ConversionConfig(scheme="float32", lstm="fused"))
    content = tfq.convert(short, CALIBRATION[:, :3], tfq.ConversionConfig(lstm="fused", verify=False))
    errors = tfq.analyze(content, floating, TEST[:, :3]).ops
    assert [(item.layer, item.op) for item in errors if item.op == FUSED] == [("memory", FUSED)]


def test_without_equal_scales_a_bidirectional_lstm_is_wrong(monkeypatch):
    model = build(keras, lambda layers, x: layers.Bidirectional(layers.LSTM(4))(x), steps=8)
    monkeypatch.setattr(int8_forms, "with_lstm_state_scales", lambda content: content)
    content = tfq.convert(model, CALIBRATION[:, :8], tfq.ConversionConfig(lstm="fused", verify=False))
    assert sqnr_db(model.predict(TEST[:, :8], verbose=0), answers_of(content, TEST[:, :8])) < 25


def test_fixed_batches_are_fused_and_conversions_are_reproducible(short):
    settings = tfq.ConversionConfig(batch_size=2, lstm="fused")
    content = tfq.convert(short, CALIBRATION[:, :3], settings)
    assert content == tfq.convert(short, CALIBRATION[:, :3], settings) and FUSED in names(content)
    assert sqnr_db(short.predict(TEST[:, :3], verbose=0), run_in_batches(content, TEST[:, :3], 2)) > 28


def initial_state(layers, x):
    return layers.LSTM(3)(x, initial_state=[x[:, 0, :3], x[:, 1, :3]])


REASONS = {
    "relu": lambda layers, x: layers.LSTM(3, activation="relu")(x),
    "return_state": lambda layers, x: layers.LSTM(3, return_state=True)(x)[0],
    "mask": lambda layers, x: layers.LSTM(3)(layers.Masking()(x)),
    "initial_state": initial_state,
    "GRU": lambda layers, x: layers.GRU(3)(x),
}


@pytest.mark.parametrize(
    ("library", "reason"),
    [*((keras, reason) for reason in REASONS), (tf_keras, "mask"), (tf_keras, "initial_state")],
)
def test_what_the_fused_op_cannot_do_is_unrolled_with_the_reason(library, reason):
    (layer,) = tfq.trace(build(library, REASONS[reason], steps=4), lstm=LSTMForm(form="fused")).recurrent
    assert layer.form == "unrolled" and not layer.can_be_fused
    assert reason in layer.reason
    assert layer.steps == 4


def test_auto_chooses_by_the_number_of_steps_and_a_fixed_batch(short, monkeypatch):
    assert [layer.form for layer in tfq.trace(short).recurrent] == ["unrolled"]
    monkeypatch.setattr(recurrent_layers, "MAX_UNROLLED_STEPS", 2)
    assert [layer.form for layer in tfq.trace(short).recurrent] == ["fused"]
    assert [layer.form for layer in tfq.trace(short, 0).recurrent] == ["unrolled"]  # a dynamic batch


@pytest.mark.parametrize(
    "settings",
    [{"scheme": "int16x8"}, {"quantizer": "litert"}, {"batch_size": 0}, {"target": "nnapi"}],
    ids=str,
)
def test_settings_without_the_fused_op_unroll_and_refuse_to_fuse(settings):
    assert lstm_form(tfq.ConversionConfig(**settings)).form == "unrolled"
    with refused(tfq.InputError, field="conversion.lstm", got="fused", word=str(next(iter(settings.values())))):
        lstm_form(tfq.ConversionConfig(**settings, lstm="fused"))


@pytest.mark.parametrize(("target", "form"), [("tflm", "fused"), ("edgetpu", "fused"), ("xnnpack", "unrolled")])
def test_auto_fuses_for_targets_that_have_the_op(target, form):
    assert lstm_form(tfq.ConversionConfig(target=target)).form == form
    assert lstm_form(tfq.ConversionConfig(target=target, lstm="fused")).form == "fused"


def test_a_trace_is_traced_again_if_a_conversion_needs_another_form(short):
    trace = tfq.trace(short, lstm=LSTMForm(form="fused"))
    assert trace.has_fused_lstm
    content = tfq.convert(trace, CALIBRATION[:, :3], tfq.ConversionConfig(scheme="int16x8"))
    assert tfq.audit(content, tfq.AuditConfig(require="int16x8")).ok


def test_the_record_has_the_form_and_the_cost_of_each_layer(short):
    rows, texts = [], []
    for form in ("fused", "unrolled"):
        result = convert_with_record(short, CALIBRATION[:, :3], tfq.ConversionConfig(lstm=form, verify=False))
        rows += recurrent_record(result.content, result.recurrent)
        texts.append(recurrent_text(result.recurrent))
    fused, unrolled = rows
    assert (fused["layer"], fused["form"], fused["kernel"], fused["ops"]) == ("memory", "fused", "builtin", 2)
    assert (unrolled["form"], unrolled["steps"], unrolled["kernel"]) == ("unrolled", 3, None)
    assert "memory" in texts[0] and texts[1] == ""
    assert fused["unrolled"] == unrolled["unrolled"]
    assert fused["unrolled"]["ops"] == pytest.approx(unrolled["ops"], rel=0.3)
    assert fused["unrolled"]["bytes"] == pytest.approx(len(result.content), rel=0.5)


def test_many_unrolled_steps_are_warned_about_with_the_remedy():
    facts = {"layer": "memory", "kind": "GRU", "form": "unrolled", "reason": "none", "can_be_fused": False}
    with warned(word="memory"):
        warn_of_unrolled([RecurrentLayer(steps=MAX_UNROLLED_STEPS + 1, **facts)], LSTMForm(), 1000)
    lstm = RecurrentLayer(steps=MAX_UNROLLED_STEPS + 1, **{**facts, "kind": "LSTM", "can_be_fused": True})
    with warned(word="conversion.lstm=fused"):
        warn_of_unrolled([lstm], LSTMForm(form="unrolled"), 1000)
    warn_of_unrolled([lstm], LSTMForm(form="unrolled", is_requested=True), 1000)
    warn_of_unrolled([RecurrentLayer(steps=MAX_UNROLLED_STEPS, **facts)], LSTMForm(), 1000)

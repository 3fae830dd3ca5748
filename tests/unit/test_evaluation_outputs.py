# SPDX-License-Identifier: Apache-2.0
"""Outputs that agreement and metrics use: models with boxes, logits and several outputs."""

import dataclasses

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from golden_models import changed, golden
from messages import refused, warned
from sklearn.datasets import load_digits

from tfq.config import EvaluationConfig, RequireConfig
from tfq.errors import InputError, RequirementError
from tfq.evaluation import as_metric, check_requirements, evaluate_model, missed_requirements, reference_outputs

QUICK = EvaluationConfig(num_runs=0)
IMAGES, LABELS = load_digits(return_X_y=True)
X, Y = IMAGES[:60].reshape(-1, 8, 8, 1).astype(np.float32), LABELS[:60]
pytestmark = pytest.mark.filterwarnings("ignore::tfq.errors.TfqWarning")


def before_softmax(*, then_softmax):
    """Return a change that makes the logits the first output; the softmax is the second, or no output."""

    def change(model):
        graph = model.subgraphs[0]
        logits = graph.operators[-1].inputs[0]
        graph.outputs = [logits, graph.operators[-1].outputs[0]] if then_softmax else [logits]
        model.signatureDefs = []
        if not then_softmax:
            graph.operators = graph.operators[:-1]

    return change


LOGITS, FLOAT_LOGITS = (
    changed(golden(name), before_softmax(then_softmax=False)) for name in ("digits_int8", "digits_float32")
)
TWO, FLOAT_TWO = (
    changed(golden(name), before_softmax(then_softmax=True)) for name in ("digits_int8", "digits_float32")
)


def plain(model):
    """Return the outputs of a plain interpreter as an array of real values for each output."""
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    (source,), results = interpreter.get_input_details(), []
    for example in X:
        scale, zero = source["quantization"]
        quantized = example if not scale else np.clip(np.round(example / scale) + zero, -128, 127)
        interpreter.set_tensor(source["index"], quantized[None].astype(source["dtype"]))
        interpreter.invoke()
        row = []
        for sink in interpreter.get_output_details():
            values, (scale, zero) = interpreter.get_tensor(sink["index"])[0], sink["quantization"]
            row.append((values.astype(np.float64) - zero) * scale if scale else values)
        results.append(row)
    return [np.array(column) for column in zip(*results, strict=True)]


def same_class(model, reference, output):
    return np.mean(plain(model)[output].argmax(axis=1) == plain(reference)[output].argmax(axis=1))


def test_logits_predict_classes_only_by_labels_or_metric():
    bare = evaluate_model(LOGITS, X, QUICK, reference=FLOAT_LOGITS)
    assert bare.agreement is None and "top1" in bare.agreement_reason
    assert bare.output_sqnr_db > 20
    expected = same_class(LOGITS, FLOAT_LOGITS, 0)
    rows = np.eye(10, dtype=np.float32)[Y]
    for labels, metric in ((Y, ""), (rows, ""), (None, "top1")):
        data = X if labels is None else (X, labels)
        record = evaluate_model(
            LOGITS, data, dataclasses.replace(QUICK, metric=(metric,) if metric else ()), reference=FLOAT_LOGITS
        )
        assert record.agreement == expected, (metric, labels)
    own = evaluate_model(LOGITS, (X, Y), QUICK, reference=FLOAT_LOGITS, metric=lambda outputs, labels: 1.0)
    assert own.agreement == expected


@pytest.mark.parametrize("labels", ["values", "none"])
def test_a_regression_has_no_agreement_but_its_sqnr(labels):
    data = X if labels == "none" else (X, np.random.default_rng(0).normal(size=(60, 10)).astype(np.float32))
    for metric in (None, "mae", lambda outputs, labels: 1.0):
        record = evaluate_model(LOGITS, data, QUICK, reference=FLOAT_LOGITS, metric=metric)
        assert record.agreement is None and record.agreement_reason
        (output,) = record.outputs
        assert output["agreement"] is None and output["agreement_reason"] == record.agreement_reason
        assert output["sqnr_db"] == record.output_sqnr_db and output["sqnr_db_reason"] is None


def test_min_agreement_without_classes_names_what_to_use():
    config = EvaluationConfig(num_runs=0, require=RequireConfig(min_agreement=0.0))
    record = evaluate_model(LOGITS, X, config, reference=FLOAT_LOGITS)
    with refused(RequirementError, word="evaluation.require.min_sqnr_db"):
        check_requirements(record, config.require)
    softmax = evaluate_model(golden("digits_int8"), X, config, reference=golden("digits_float32"))
    assert missed_requirements(softmax, config.require) == []


def test_min_sqnr_db_bounds_the_worst_output():
    record = evaluate_model(TWO, X, QUICK, reference=FLOAT_TWO)
    signal, noise = (
        np.array([np.sum(values**2) for values in of])
        for of in (plain(FLOAT_TWO), [a - b for a, b in zip(plain(FLOAT_TWO), plain(TWO), strict=True)])
    )
    worst = (10 * np.log10(signal / noise)).min()
    assert record.output_sqnr_db == pytest.approx(worst, abs=1e-3)
    assert missed_requirements(record, RequireConfig(min_sqnr_db=worst - 0.1)) == []
    (missed,) = missed_requirements(record, RequireConfig(min_sqnr_db=worst + 0.1))
    assert "sqnr_db" in missed
    same = evaluate_model(TWO, X, QUICK, reference=TWO)
    assert missed_requirements(same, RequireConfig(min_sqnr_db=200)) == []
    alone = evaluate_model(TWO, X, QUICK)
    assert len(missed_requirements(alone, RequireConfig(min_sqnr_db=0))) == 1


def test_the_class_output_of_several_is_scored():
    probabilities = plain(TWO)[1]
    record = evaluate_model(TWO, (X, Y), QUICK, reference=FLOAT_TWO)
    assert record.accuracy == np.mean(probabilities.argmax(axis=1) == Y)
    assert record.agreement == same_class(TWO, FLOAT_TWO, 1)
    assert [output["agreement"] is None for output in record.outputs] == [True, False]
    assert any(record.outputs[1]["name"] in warning for warning in record.warnings)


def test_the_output_can_be_chosen_by_name_or_number():
    name = evaluate_model(TWO, X, QUICK).outputs[0]["name"]
    for output in ("0", name):
        config = dataclasses.replace(QUICK, output=output)
        record = evaluate_model(TWO, (X, Y), config, reference=FLOAT_TWO)
        assert record.accuracy == np.mean(plain(TWO)[0].argmax(axis=1) == Y)
        assert record.agreement == record.outputs[0]["agreement"] == same_class(TWO, FLOAT_TWO, 0)
    mae = evaluate_model(
        TWO, (X, np.eye(10)[Y]), dataclasses.replace(QUICK, output="1", metric=("mae",)), reference=FLOAT_TWO
    )
    assert mae.accuracy == pytest.approx(np.abs(plain(TWO)[1] - np.eye(10)[Y]).mean())
    function = evaluate_model(
        TWO, (X, Y), dataclasses.replace(QUICK, output="1"), metric=lambda outputs, labels: float(outputs.sum())
    )
    assert function.accuracy == pytest.approx(plain(TWO)[1].sum(), rel=1e-6)


def test_an_output_that_is_not_there_is_refused():
    with refused(InputError, field="evaluation.output", got="score"):
        evaluate_model(TWO, (X, Y), dataclasses.replace(QUICK, output="score"))
    with refused(InputError, field="evaluation.output", got="2"):
        evaluate_model(TWO, (X, Y), dataclasses.replace(QUICK, output="2"))
    both = dataclasses.replace(as_metric("top1"), outputs=(0, 1))
    with refused(InputError, field="evaluation.output", got="1"):
        evaluate_model(TWO, (X, Y), dataclasses.replace(QUICK, output="1"), metric=both)


def test_several_outputs_of_numbers_are_not_scored_by_the_default():
    def twice(model):
        before_softmax(then_softmax=False)(model)
        graph = model.subgraphs[0]
        graph.outputs = [graph.operators[-1].inputs[0], *graph.outputs]

    record = evaluate_model(changed(golden("digits_float32"), twice), (X, Y), QUICK)
    assert record.accuracy is None and "evaluation.output" in record.accuracy_reason


def test_agreement_of_several_outputs_is_the_lowest():
    def twice(model):
        before_softmax(then_softmax=True)(model)
        graph = model.subgraphs[0]
        graph.outputs = [graph.outputs[1], graph.outputs[1]]

    model = changed(golden("digits_int8"), twice)
    floating = reference_outputs(changed(golden("digits_float32"), twice), X)
    shuffled = dataclasses.replace(floating, outputs=(floating.outputs[0], floating.outputs[1][:, ::-1]))
    record = evaluate_model(model, X, QUICK, reference=shuffled)
    first, second = (output["agreement"] for output in record.outputs)
    assert record.agreement == second < first


def test_a_warning_names_the_output_scored_by_default():
    with warned("evaluation.output"):
        evaluate_model(TWO, (X, Y), QUICK)

# SPDX-License-Identifier: Apache-2.0
"""Metrics compared with scikit-learn and by hand, custom metrics, and their meaning in a record."""

import dataclasses

import numpy as np
import pytest
from golden_models import changed, golden
from messages import refused
from metric_examples import CLASS_LABELS, TIED_SCORES
from sklearn.metrics import mean_absolute_error as sklearn_mae
from sklearn.metrics import roc_auc_score, top_k_accuracy_score
from test_evaluation_record import RECORD

from tfq import registry
from tfq.config import EvaluationConfig, RequireConfig
from tfq.data import Split
from tfq.errors import InputError
from tfq.evaluation import (
    as_metric,
    check_metric,
    evaluate_model,
    mean_absolute_error,
    missed_requirements,
    reference_outputs,
    roc_auc,
    score_outputs,
    top1,
    topk,
)

INT8, FLOAT = golden("digits_int8"), golden("digits_float32")
QUICK = EvaluationConfig(num_runs=0)
RNG = np.random.default_rng(0)


def split(x, labels=None):
    return Split(name="test", inputs={"x": np.asarray(x)}, labels=labels, source="arrays")


@pytest.mark.parametrize("k", [2, 5, 9])
def test_topk_is_that_of_scikit_learn(k):
    outputs, labels = RNG.normal(size=(300, 10)), RNG.integers(0, 10, 300)
    assert topk(outputs, labels, k) == top_k_accuracy_score(labels, outputs, k=k, labels=range(10))


def test_ties_of_topk_go_to_the_lower_class():
    outputs, labels = RNG.integers(-128, -120, (500, 10)).astype(np.int8), RNG.integers(0, 10, 500)
    assert topk(outputs, labels, 1) == top1(outputs, labels)
    same = np.zeros((2, 7), np.float32)
    assert topk(same, np.array([4, 5])) == 0.5


def test_top5_of_five_classes_is_refused_for_it_says_nothing():
    with refused(InputError, field="outputs", expected=6, got=5):
        topk(np.zeros((3, 5)), np.array([0, 1, 2]))


@pytest.mark.parametrize("levels", [3, 20, 10**9])
def test_roc_auc_is_that_of_scikit_learn_with_ties_and_without(levels):
    scores = RNG.integers(0, levels, 400).astype(np.float32)
    labels = (RNG.random(400) + scores / levels > 0.9).astype(int)
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert roc_auc(-scores, labels) == pytest.approx(1 - roc_auc(scores, labels), abs=1e-12)


def test_roc_auc_by_hand():
    # The pairs (positive, negative) are 3 > 1, 3 > 2, 2 > 1, and 2 = 2, which counts half.
    assert roc_auc(np.array([1.0, 2, 2, 3]), np.array([0, 0, 1, 1])) == 3.5 / 4
    assert roc_auc(np.zeros(4), np.array([True, False, True, False])) == 0.5


@pytest.mark.parametrize(
    ("labels", "expected", "got"),
    [
        ([0, 0, 0], (0, 1), 0),
        ([0, 1, 2], (0, 1), 2),
        ([0, 1], (3,), (2,)),
        ([[0, 1], [1, 1], [1, 0]], (3,), (3, 2)),
    ],
)
def test_labels_that_have_no_roc_are_refused(labels, expected, got):
    with refused(InputError, field="labels", expected=expected, got=got):
        roc_auc(np.array([0.1, 0.2, 0.3]), np.array(labels))


def test_mean_absolute_error_is_that_of_scikit_learn_in_any_shape():
    outputs, labels = RNG.normal(size=(40, 6)).astype(np.float32), RNG.normal(size=(40, 6))
    expected = sklearn_mae(labels, outputs)
    assert mean_absolute_error(outputs, labels) == pytest.approx(expected, abs=1e-12)
    assert mean_absolute_error(outputs.reshape(40, 2, 3, 1), labels.reshape(40, 2, 3)) == pytest.approx(expected)
    assert mean_absolute_error(np.array([[1.0], [2]]), np.array([2, 4])) == 1.5
    with refused(InputError, field="labels", expected=(40, 6), got=(40,)):
        mean_absolute_error(outputs, labels[:, 0])
    with refused(InputError, field="labels", expected="finite numbers"):
        mean_absolute_error(outputs, np.where(labels > 2, np.nan, labels) * np.nan)


def reconstruction():
    """Return (inputs, outputs, labels): one error per example, larger for the anomalous ones except in one pair."""
    inputs = RNG.normal(size=(6, 20)).astype(np.float32)
    errors = np.array([0.1, 0.2, 0.45, 0.4, 0.5, 0.6])
    return inputs, (inputs + errors[:, None]).astype(np.float32), np.array([0, 0, 0, 1, 1, 1])


def test_an_autoencoder_is_scored_by_the_error_of_its_reconstruction():
    inputs, outputs, labels = reconstruction()
    scores = score_outputs(outputs, split(inputs, labels), reconstructs=True)
    assert (scores["metric"], scores["accuracy"]) == ("roc_auc", pytest.approx(8 / 9))
    assert scores["scores"] == {"roc_auc": scores["accuracy"], "mae": pytest.approx(0.375, abs=1e-6)}
    assert "no classes" in scores["agreement_reason"] or "no reference" in scores["agreement_reason"]


def test_an_autoencoder_without_anomaly_labels_reports_error_and_missing_labels():
    inputs, outputs, _ = reconstruction()
    bare = score_outputs(outputs, split(inputs), reconstructs=True)
    assert (bare["accuracy"], bare["accuracy_reason"]) == (None, "the data has no labels")
    assert bare["scores"] == {"mae": pytest.approx(0.375, abs=1e-6)}
    asked = score_outputs(outputs, split(inputs), reconstructs=True, metric="mae")
    assert asked["accuracy"] == pytest.approx(0.375, abs=1e-6)
    digits = score_outputs(outputs, split(inputs, np.arange(6)), reconstructs=True)
    assert "anomalous" in digits["accuracy_reason"]
    denoised = score_outputs(outputs, split(inputs, outputs + 1), reconstructs=True, metric="mae")
    assert denoised["accuracy"] == pytest.approx(1, abs=1e-6)


def test_roc_auc_of_classifiers_takes_the_score_of_class_1():
    labels = RNG.integers(0, 2, 50)
    one = RNG.random((50, 1))
    expected = roc_auc_score(labels, one[:, 0])
    data = split(one, labels)
    assert score_outputs(one, data, reconstructs=False, metric="roc_auc")["accuracy"] == pytest.approx(expected)
    two = np.concatenate([1 - one, one], axis=1)
    assert score_outputs(two, data, reconstructs=False, metric="roc_auc")["accuracy"] == pytest.approx(expected)
    logits = RNG.normal(0, 3, (50, 2))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = roc_auc_score(labels, softmax[:, 1])
    for two in (logits, softmax):
        assert score_outputs(two, data, reconstructs=False, metric="roc_auc")["accuracy"] == pytest.approx(expected)
    assert roc_auc_score(labels, logits[:, 1]) != pytest.approx(expected)
    with refused(InputError, field="outputs", got=(50, 3)):
        score_outputs(RNG.random((50, 3)), data, reconstructs=False, metric="roc_auc")


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images[:60].reshape(-1, 8, 8, 1).astype(np.float32), labels[:60]


def test_a_record_has_top1_top5_and_latency_statistics(digits):
    record = evaluate_model(INT8, digits, EvaluationConfig(num_runs=4, warmup_runs=0))
    assert record.scores == {"top1": record.accuracy, "top5": record.scores["top5"]}
    assert record.accuracy <= record.scores["top5"] <= 1
    assert min(record.latency_mean_ms, record.latency_first_ms) > 0 and record.latency_std_ms >= 0
    assert f"top5         {record.scores['top5']:.2%}" in record.to_text()
    asked = evaluate_model(INT8, digits, EvaluationConfig(num_runs=0, metric=("top5",)))
    assert (asked.metric, asked.accuracy) == ("top5", record.scores["top5"])
    assert (asked.latency_mean_ms, asked.latency_std_ms, asked.latency_first_ms) == (None, None, None)


def without_its_softmax_and_with_the_input_of_its_output(model):
    """One fully connected 64 -> 10 cannot reconstruct, so the input itself is the output."""
    graph = model.subgraphs[0]
    graph.outputs = list(graph.inputs)


def test_a_reconstructing_flatbuffer_is_recognized_and_scored_against_its_input(digits):
    x, _ = digits
    model = changed(FLOAT, without_its_softmax_and_with_the_input_of_its_output)
    record = evaluate_model(model, (x, np.arange(60) % 2), QUICK, reference=model)
    assert (record.metric, record.accuracy, record.accuracy_drop) == ("roc_auc", 0.5, 0)
    assert record.scores["mae"] == 0
    assert record.agreement is None and "reconstructs" in record.agreement_reason


def test_the_drop_of_an_error_metric_is_its_increase(digits):
    x, y = digits
    expected = np.eye(10)[y]
    config = EvaluationConfig(num_runs=0, metric=("mae",))
    reference = dataclasses.replace(reference_outputs(FLOAT, x), outputs=(expected.astype(np.float32),))
    record = evaluate_model(INT8, (x, expected), config, reference=reference)
    assert record.metrics["mae"]["direction"] == "lower" and record.reference_accuracy == 0
    assert record.accuracy_drop == record.accuracy > 0
    assert record.agreement is None and "mae" in record.agreement_reason
    bound = record.accuracy / 2
    assert missed_requirements(record, RequireConfig(max_accuracy_drop=bound))[0].startswith("accuracy_drop is ")
    assert missed_requirements(record, RequireConfig(max_accuracy_drop=record.accuracy)) == []


def test_a_lowest_accuracy_of_an_error_is_refused_before_the_work():
    config = EvaluationConfig(metric=("mae",), require=RequireConfig(min_accuracy=0.5))
    with refused(InputError, field="evaluation.require.min_accuracy", got=0.5, word="mae"):
        check_metric(config)
    with refused(InputError, field="evaluation.require.min_accuracy", got=0.5):
        evaluate_model(INT8, np.zeros((2, 8, 8, 1)), config)
    record = dataclasses.replace(RECORD, metric="mae", metrics={"mae": as_metric("mae").facts()}, accuracy=3.0)
    (missed,) = missed_requirements(record, config.require)
    assert "lower" in missed


@pytest.mark.parametrize(("name", "nearest"), [("top_1", "'top1'"), ("rocauc", "'roc_auc'"), ("quux", "choose")])
def test_an_unknown_metric_gets_the_nearest(name, nearest):
    choices = registry.names("metric")
    with refused(InputError, expected=choices, got=name, word=nearest):
        EvaluationConfig(metric=(name,))
    with refused(InputError, field="evaluation.metric", expected=choices, got=name, word=nearest):
        as_metric(name)
    with refused(InputError, field="metric", got=7):
        as_metric(7)


def test_every_metric_is_known_by_its_own_name():
    assert registry.names("metric")[:2] == ("top1", "top5")
    assert [as_metric(name).name for name in registry.names("metric")] == list(registry.names("metric"))
    assert as_metric("") is as_metric(None) is None


def test_position_metrics_compare_every_position():
    """The expected values are counted by hand."""
    labels = np.array([[[0, 1], [1, 2]], [[2, 2], [0, 0]]], np.uint8)
    numbers = np.array([[[0, 1], [2, 2]], [[2, 0], [0, 0]]], np.int8)
    overlaps = [3 / 4, 1 / 2, 2 / 4]  # of the classes 0, 1 and 2
    scores = np.eye(3)[numbers]
    for outputs, form in [
        (numbers, labels),
        (scores, labels),
        (scores, labels[..., None]),
        (scores, np.eye(3)[labels]),
    ]:
        assert as_metric("pixel_accuracy").compute((outputs,), form) == 6 / 8
        assert as_metric("mean_iou").compute((outputs,), form) == pytest.approx(np.mean(overlaps))
    masks = np.array([[0.9, 0.2], [0.6, 0.5]])
    assert as_metric("pixel_accuracy").compute((masks,), np.array([[1, 0], [0, 0]], bool)) == 3 / 4
    with refused(InputError, field="labels", got=3, limit="ignored-labels"):
        as_metric("mean_iou").compute((scores,), labels + 1)
    with refused(InputError, field="labels", got=(2, 1, 2)):
        as_metric("mean_iou").compute((scores,), labels[:, :1])


def test_the_interval_of_a_fraction_is_that_of_wilson():
    # Oracle: statsmodels' proportion_confint(7, 10, method="wilson"), and its bounds for 0 and 10 of 10.
    for correct, interval in [(7, (0.396779, 0.892209)), (0, (0.0, 0.277535)), (10, (0.722465, 1.0))]:
        state = {"correct": np.asarray(correct), "examples": np.asarray(10)}
        assert as_metric("top1").interval(state) == pytest.approx(interval, abs=1e-5)
    assert as_metric("mae").interval({"errors": np.ones(3)}) is None


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "field"),
    [
        ("top1", np.zeros((3, 2, 2)), np.zeros(3, int), "outputs"),
        ("top1", np.zeros((3, 4)), np.array([0, 1, 4]), "labels"),
        ("top5", np.zeros((3, 5)), np.zeros(3, int), "outputs"),
        ("roc_auc", np.full((3, 3), np.nan), np.array([0, 1, 1]), "outputs"),
        ("roc_auc", np.zeros((3, 1)), np.array([0, 1, 2]), "labels"),
        ("mae", np.zeros((3, 2)), np.zeros(3), "labels"),
        ("mae", np.full((3, 2), np.nan), np.zeros((3, 2)), "outputs"),
    ],
)
def test_a_contract_is_checked_before_anything_is_computed(name, outputs, labels, field):
    def never(state, outputs, labels):
        raise AssertionError("it was computed")

    metric = dataclasses.replace(as_metric(name), update=never)
    with pytest.raises(InputError) as caught:
        metric.state_of((outputs,), labels)
    assert caught.value.field == field and caught.value.expected is not None and caught.value.got is not None


def test_a_metric_looks_at_the_outputs_that_it_names(digits):
    second = dataclasses.replace(as_metric("top1"), outputs=(1,))
    outputs, labels = TIED_SCORES, CLASS_LABELS
    assert second.compute((outputs * 0, outputs), labels) == top1(outputs, labels) != top1(outputs * 0, labels)
    with refused(InputError, field="outputs", expected=(1,), got=1):
        evaluate_model(INT8, digits, QUICK, metric=second)


@pytest.mark.parametrize(("field", "value"), [("direction", "up"), ("unit", "percent")])
def test_a_metric_with_wrong_facts_is_refused(field, value):
    with refused(InputError, field=field, got=value):
        dataclasses.replace(as_metric("top1"), **{field: value})


def wrong_ones(outputs, labels):
    return int((outputs.argmax(1) != labels).sum())


wrong_ones.direction = "lower"


def test_a_function_may_be_the_metric_and_declare_its_direction(digits):
    x, y = digits
    record = evaluate_model(INT8, (x, y), QUICK, reference=FLOAT, metric=wrong_ones)
    assert record.accuracy == round(60 * (1 - evaluate_model(INT8, (x, y), QUICK).accuracy))
    assert record.accuracy_drop == record.accuracy - record.reference_accuracy
    assert (record.metric, record.metrics["wrong_ones"]["direction"]) == ("wrong_ones", "lower")
    assert record.accuracy_difference is None and "wrong_ones" in record.accuracy_difference_reason
    assert "no interval" in record.to_text()


def test_a_metric_without_direction_has_neither_drop_nor_bound(digits):
    record = evaluate_model(INT8, digits, QUICK, reference=FLOAT, metric=lambda outputs, labels: 1)
    assert (record.accuracy, record.reference_accuracy, record.accuracy_drop) == (1, 1, None)
    assert "declare" in record.skipped["accuracy_drop"]
    for bound in (RequireConfig(min_accuracy=0.5), RequireConfig(max_accuracy_drop=0.1)):
        config = EvaluationConfig(num_runs=0, require=bound)
        with refused(InputError, field="direction", expected=("higher", "lower")):
            evaluate_model(INT8, digits, config, metric=lambda outputs, labels: 1)


def root_mean_squared_error(outputs, labels):
    return float(np.sqrt(np.mean((outputs - np.eye(10)[labels]) ** 2)))


root_mean_squared_error.direction = "lower"


def test_a_bound_on_a_custom_error_fails_if_it_grows(digits):
    x, y = digits
    worse = dataclasses.replace(reference_outputs(FLOAT, x), outputs=(np.eye(10, dtype=np.float32)[y],))
    config = EvaluationConfig(num_runs=0, require=RequireConfig(max_accuracy_drop=1e-6))
    record = evaluate_model(INT8, digits, config, reference=worse, metric=root_mean_squared_error)
    assert record.reference_accuracy == 0 < record.accuracy == record.accuracy_drop
    assert len(missed_requirements(record, config.require)) == 1
    same = evaluate_model(INT8, digits, config, reference=INT8, metric=root_mean_squared_error)
    assert missed_requirements(same, config.require) == []


def test_a_bound_on_a_recorded_metric_without_direction_is_missed():
    record = dataclasses.replace(RECORD, metric="own", metrics={"own": {"direction": None}}, accuracy=0.9)
    (missed,) = missed_requirements(record, RequireConfig(min_accuracy=0.5))
    assert "declared" in missed
    known = dataclasses.replace(record, metrics={"own": {"direction": "higher"}})
    assert missed_requirements(known, RequireConfig(min_accuracy=0.5)) == []


def leaves(outputs, labels):
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("function", "got", "word"),
    [
        (lambda outputs, labels: outputs[10**9], "IndexError", "test_evaluation_scores.py"),
        (lambda outputs: 1, "TypeError", "given"),
        (leaves, "SystemExit", "leaves"),
        (lambda outputs, labels: None, None, "NoneType"),
        (lambda outputs, labels: float("inf"), float("inf"), "finite"),
        (lambda outputs, labels: 10**400, "int", "largest"),
    ],
)
def test_a_function_that_fails_or_returns_no_finite_number_is_refused(digits, function, got, word):
    with refused(InputError, field="metric", got=got, word=word):
        evaluate_model(INT8, digits, QUICK, metric=function)


def scribbles(outputs, labels):
    outputs[:] = labels[:] = 0
    return 1


def test_a_function_that_writes_into_its_arguments_changes_no_other_number(digits):
    x, y = digits
    plain, labels = evaluate_model(INT8, (x, y), QUICK, reference=FLOAT), y.copy()
    scribbled = evaluate_model(INT8, (x, y), QUICK, reference=FLOAT, metric=scribbles)
    assert (scribbled.accuracy, scribbled.agreement) == (1, plain.agreement)
    assert scribbled.output_sqnr_db == plain.output_sqnr_db is not None
    np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize("metric", ["", "top1", "roc_auc"])
def test_a_drop_in_points_is_refused_for_fraction_metrics(metric):
    with refused(InputError, field="evaluation.require.max_accuracy_drop", expected=0.5, got=2.0, word="0.02"):
        check_metric(EvaluationConfig(metric=(metric,) if metric else (), require=RequireConfig(max_accuracy_drop=2)))


def test_a_drop_may_exceed_1_for_a_metric_with_unit():
    check_metric(EvaluationConfig(metric=("mae",), require=RequireConfig(max_accuracy_drop=2)))

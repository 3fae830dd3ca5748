# SPDX-License-Identifier: Apache-2.0
"""Metrics of classes, probabilities and values, compared with scikit-learn and with NumPy written differently."""

import math

import numpy as np
import pytest
from messages import refused
from sklearn import metrics as sk

from tfq.errors import InputError
from tfq.evaluation import (
    as_metric,
    average_precision,
    expected_calibration_error,
    negative_log_likelihood,
)

RNG = np.random.default_rng(3)
LABELS = RNG.integers(0, 6, 400)
LOGITS = (RNG.normal(size=(400, 6)) + 1.5 * np.eye(6)[LABELS]).astype(np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
MULTI = RNG.random((400, 6)) < 0.3
SIGMOIDS = np.clip(MULTI * 0.4 + RNG.random((400, 6)) * 0.6, 0, 1).astype(np.float32)


def value(name, outputs, labels):
    return as_metric(name).compute((np.asarray(outputs),), np.asarray(labels))


def table(name, outputs, labels):
    metric = as_metric(name)
    return metric.table_of(metric.state_of((np.asarray(outputs),), np.asarray(labels)))


@pytest.mark.parametrize(
    ("name", "oracle"), [("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)]
)
def test_precision_recall_and_f1_are_those_of_scikit_learn(name, oracle):
    predicted = LOGITS.argmax(axis=1)
    assert value(name, LOGITS, LABELS) == pytest.approx(oracle(LABELS, predicted, average="macro"), abs=1e-12)
    assert value(name, LOGITS, np.eye(6)[LABELS]) == value(name, LOGITS, LABELS)
    # Class 5 has no label and is predicted; class 0 has labels and is never predicted.
    few = np.minimum(LABELS, 4)
    shifted = LOGITS - 100 * np.eye(6)[0]
    expected = oracle(few, shifted.argmax(axis=1), average="macro", zero_division=0)
    assert value(name, shifted, few) == pytest.approx(expected, abs=1e-12)
    one = SIGMOIDS[:, :1]
    expected = oracle(MULTI[:, 0], one[:, 0] > 0.5, average="macro")
    assert value(name, one, MULTI[:, 0].astype(int)) == pytest.approx(expected, abs=1e-12)
    expected = oracle(MULTI, SIGMOIDS > 0.5, average="macro")
    assert value(name, SIGMOIDS, MULTI.astype(np.float32)) == pytest.approx(expected, abs=1e-12)


def test_the_table_of_top1_lists_the_figures_of_each_class():
    own = table("top1", LOGITS, LABELS)
    precision, recall, f1, support = sk.precision_recall_fscore_support(LABELS, LOGITS.argmax(axis=1))
    assert own.rows == tuple("012345")
    columns = dict(zip(own.columns, own.values.T, strict=True))
    for name, expected in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        assert columns[name] == pytest.approx(expected, abs=1e-12)
    unpredicted = table("top1", np.zeros((2, 3), np.float32), np.array([0, 2])).to_dict()
    assert unpredicted["rows"] == ["0", "2"] and unpredicted["values"][1][2] is None


def test_class_numbers_far_beyond_the_labels_need_no_memory():
    assert value("top1", np.array([[2**40], [1]]), np.array([1, 1])) == 0.5


def test_independent_labels_need_probabilities():
    with refused(InputError, field="outputs", expected="[0, 1]"):
        value("f1", LOGITS, MULTI)
    with refused(InputError, field="labels", expected=(400, 6), got=(400, 5)):
        value("f1", SIGMOIDS, MULTI[:, :5])


def test_areas_of_several_classes_are_the_means_of_scikit_learn():
    expected = sk.roc_auc_score(LABELS, PROBABILITIES, multi_class="ovr", average="macro")
    assert value("roc_auc", PROBABILITIES, LABELS) == pytest.approx(expected, abs=1e-12)
    assert value("roc_auc", LOGITS, LABELS) == pytest.approx(expected, abs=1e-6)
    assert value("roc_auc", SIGMOIDS, MULTI) == pytest.approx(sk.roc_auc_score(MULTI, SIGMOIDS), abs=1e-12)
    one_hot = np.eye(6)[LABELS]
    assert value("pr_auc", PROBABILITIES, LABELS) == pytest.approx(
        sk.average_precision_score(one_hot, PROBABILITIES), abs=1e-12
    )
    assert value("pr_auc", SIGMOIDS, MULTI) == pytest.approx(sk.average_precision_score(MULTI, SIGMOIDS), abs=1e-12)
    by_class = table("roc_auc", PROBABILITIES, LABELS).values[:, 1]
    assert by_class[2] == pytest.approx(sk.roc_auc_score(LABELS == 2, PROBABILITIES[:, 2]), abs=1e-12)


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_average_precision_is_that_of_scikit_learn_with_ties(levels):
    scores = RNG.integers(0, levels, 300)
    labels = (RNG.random(300) + scores / levels > 1).astype(int)
    assert average_precision(scores, labels) == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)


def test_classes_without_labels_are_left_out_of_areas_and_named():
    metric, few = as_metric("roc_auc"), np.minimum(LABELS, 3)
    state = metric.state_of((PROBABILITIES,), few)
    assert metric.note_of(state).startswith("2 of 6 classes")
    expected = np.mean([sk.roc_auc_score(few == index, PROBABILITIES[:, index]) for index in range(4)])
    assert metric.value_of(state) == pytest.approx(expected, abs=1e-12)
    with refused(InputError, field="labels", expected="several classes"):
        value("roc_auc", PROBABILITIES, np.zeros(400, int))


def slow_calibration_error(probabilities, labels, bins=15):
    """Compute the error of Guo et al. 2017, bin by bin."""
    confidence, total = probabilities.max(axis=1).astype(np.float64), 0.0
    right = probabilities.argmax(axis=1) == labels
    for index in range(bins):
        inside = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        if inside.any():
            total += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_error_is_that_of_the_paper():
    expected = slow_calibration_error(PROBABILITIES, LABELS)
    assert expected_calibration_error(PROBABILITIES, LABELS) == pytest.approx(expected, abs=1e-12)
    assert expected_calibration_error(LOGITS, LABELS) == pytest.approx(expected, abs=1e-6)
    sigmoid = SIGMOIDS[:, 0]
    two = np.stack([1 - sigmoid, sigmoid], axis=1)
    expected = slow_calibration_error(two, MULTI[:, 0])
    assert expected_calibration_error(sigmoid[:, None], MULTI[:, 0].astype(int)) == pytest.approx(expected, abs=1e-6)
    assert as_metric("ece").note_of({"outputs": LOGITS, "labels": LABELS}) is not None
    bins = table("ece", PROBABILITIES, LABELS)
    assert bins.values[:, 0].sum() == 400


def test_outputs_that_are_no_probabilities_are_refused():
    for outputs in (LOGITS[:, :1] * 9, SIGMOIDS):
        with refused(InputError, field="outputs"):
            expected_calibration_error(outputs, np.zeros(400, int))
    with refused(InputError, field="outputs"):
        value("nll", LABELS[:, None], LABELS)


def test_likelihood_is_that_of_scikit_learn():
    expected = sk.log_loss(LABELS, PROBABILITIES.astype(np.float64))
    assert negative_log_likelihood(PROBABILITIES, LABELS) == pytest.approx(expected, abs=1e-6)
    assert negative_log_likelihood(LOGITS, LABELS) == pytest.approx(expected, abs=1e-6)


def test_a_quantized_probability_of_0_counts_as_half_a_step_and_is_named():
    quantized = np.round(PROBABILITIES * 256) / 256
    quantized[0] = [0, 0.5, 0.5, 0, 0, 0]
    labels = np.where(np.arange(400) == 0, 0, LABELS)
    metric = as_metric("nll")
    state = metric.state_of((quantized,), labels)
    own = np.maximum(quantized[np.arange(400), labels], 1 / 512)
    assert metric.value_of(state) == pytest.approx(-np.log(own).mean(), abs=1e-12)
    assert "0.00195" in metric.note_of(state)


def test_errors_of_values_are_those_of_scikit_learn():
    labels = RNG.normal(size=(50, 3)) * [1, 10, 0.1]
    outputs = (labels + RNG.normal(size=(50, 3)) * [0.5, 2, 0.2]).astype(np.float32)
    expected = math.sqrt(sk.mean_squared_error(labels, outputs))
    assert value("rmse", outputs, labels) == pytest.approx(expected, abs=1e-12)
    assert value("r2", outputs, labels) == pytest.approx(sk.r2_score(labels, outputs), abs=1e-9)
    labels[:, 2] = 0.1
    assert value("r2", outputs, labels) == pytest.approx(sk.r2_score(labels[:, :2], outputs[:, :2]), abs=1e-9)
    metric = as_metric("r2")
    assert metric.note_of(metric.state_of((outputs,), labels)).startswith("1 of 3")
    with refused(InputError, field="labels"):
        value("r2", outputs[:, 2], labels[:, 2])

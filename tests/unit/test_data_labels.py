# SPDX-License-Identifier: Apache-2.0
"""One-hot labels wherever class numbers are accepted, and labels that only resemble them."""

import numpy as np
import pytest
from golden_models import golden
from messages import refused

from tfq.config import EvaluationConfig
from tfq.data import Split, class_labels, count_classes, diagnose, is_one_hot, without_one_hot
from tfq.errors import InputError
from tfq.evaluation import evaluate_model, roc_auc, score_outputs, top1, topk
from tfq.search import find_int8
from tfq.search.criterion import AGREEMENT, choose_criterion

INT8, FLOAT = golden("digits_int8"), golden("digits_float32")
RNG = np.random.default_rng(0)
NUMBERS = RNG.integers(0, 10, 60)
X = RNG.random((60, 8, 8, 1)).astype(np.float32)
DTYPES = [np.float32, np.float64, np.int64, np.uint8, bool]


def split(labels, x=X):
    return Split(name="test", inputs={"x": x}, labels=labels, source="arrays")


def one_hot(numbers, dtype=np.float32, classes=10):
    return np.eye(classes, dtype=dtype)[numbers]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_rows_are_the_class_numbers_that_they_encode(dtype):
    assert is_one_hot(one_hot(NUMBERS, dtype))
    assert class_labels(one_hot(NUMBERS, dtype), "labels").tolist() == NUMBERS.tolist()
    outputs = RNG.random((60, 10))
    assert top1(outputs, one_hot(NUMBERS, dtype)) == top1(outputs, NUMBERS)
    assert topk(outputs, one_hot(NUMBERS, dtype)) == topk(outputs, NUMBERS)
    assert count_classes([split(one_hot([0, 1] * 30, dtype))]) == 10
    assert diagnose(split(one_hot(NUMBERS, dtype))).to_dict() == diagnose(split(NUMBERS)).to_dict()


@pytest.mark.parametrize(
    "labels",
    [
        np.full((4, 3), 1 / 3, np.float32),
        one_hot([0, 1, 2, 0], classes=3) * 0.9 + 0.1 / 3,
        np.ones((4, 3), int),
        np.zeros((4, 3), int),
        -one_hot([0, 1, 2, 0], classes=3),
        one_hot([0, 1, 2, 0], classes=3) * 2,
        np.where(one_hot([0, 1, 2, 0], classes=3), 1, np.nan),
    ],
    ids=["uniform", "smoothed", "several", "none", "negative", "two", "NaN"],
)
def test_rows_that_are_not_one_hot_are_not_classes(labels):
    assert not is_one_hot(labels) and without_one_hot(labels) is labels
    with refused(InputError, field="labels[0]", expected="class numbers or one-hot rows"):
        class_labels(labels, "labels")


def test_the_first_row_that_is_not_one_hot_is_named():
    labels = one_hot([0, 1, 2, 0], classes=3)
    labels[2] = 0.5
    with refused(InputError, field="labels[12]", word="0.5"):
        class_labels(labels, "labels", 10)


def test_an_evaluation_is_the_same_with_one_hot_labels():
    quick = EvaluationConfig(num_runs=0)
    numbers = evaluate_model(INT8, split(NUMBERS), quick, reference=FLOAT)
    rows = evaluate_model(INT8, split(one_hot(NUMBERS)), quick, reference=FLOAT)
    assert rows.accuracy is not None
    assert rows.to_dict() == numbers.to_dict()


def test_one_hot_rows_of_another_number_of_classes_are_refused():
    with refused(InputError, field="labels", expected=(60, 10), got=(60, 12)):
        evaluate_model(INT8, split(one_hot(NUMBERS, classes=12)), EvaluationConfig(num_runs=0))


def test_soft_labels_are_left_to_metrics_that_take_them():
    outputs, soft = RNG.random((60, 10)), one_hot(NUMBERS) * 0.9 + 0.01
    scores = score_outputs(outputs, split(soft), reconstructs=False)
    assert scores["accuracy"] is None and "float32" in scores["accuracy_reason"]
    error = score_outputs(outputs, split(soft), reconstructs=False, metric="mae")
    assert error["accuracy"] == pytest.approx(np.abs(outputs - soft).mean())
    one = score_outputs(outputs, split(one_hot(NUMBERS)), reconstructs=False, metric="mae")
    assert one["accuracy"] == pytest.approx(np.abs(outputs - one_hot(NUMBERS)).mean())


def test_roc_auc_takes_one_hot_rows_of_two_classes():
    scores, labels = RNG.random(60), NUMBERS % 2
    assert roc_auc(scores, one_hot(labels, classes=2)) == roc_auc(scores, labels)
    outputs = np.stack([1 - scores, scores], axis=1)
    assert score_outputs(outputs, split(one_hot(labels, classes=2)), reconstructs=False, metric="roc_auc")[
        "accuracy"
    ] == roc_auc(scores, labels)


@pytest.mark.parametrize("labels", [RNG.normal(size=60), one_hot(NUMBERS) * 0.9 + 0.01], ids=["values", "soft"])
def test_a_search_with_labels_that_are_no_classes_goes_by_agreement(labels):
    criterion = choose_criterion(FLOAT, [split(labels)], 20.0)
    assert criterion.kind == AGREEMENT and "not class numbers" in criterion.reason


def test_a_search_refuses_labels_outside_the_models_classes():
    data = split(NUMBERS + 5)
    with refused(InputError, field="labels"):
        find_int8(FLOAT, data, data, data)

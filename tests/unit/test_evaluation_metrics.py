# SPDX-License-Identifier: Apache-2.0
"""Top-1, agreement and percentiles, by hand."""

import numpy as np
import pytest
from messages import refused

from tfq.errors import InputError
from tfq.evaluation import agreement, latency_percentiles, predicted_classes, top1

OUTPUTS = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]], np.float32)


def test_top1_counts_the_examples_whose_largest_output_is_their_label():
    assert top1(OUTPUTS, np.array([1, 0, 2, 0])) == 1.0
    assert top1(OUTPUTS, np.array([1, 0, 0, 1])) == 0.5
    assert top1(OUTPUTS, np.array([0, 2, 0, 2])) == 0.0


def test_a_tie_goes_to_the_lower_class():
    assert predicted_classes(OUTPUTS).tolist() == [1, 0, 2, 0]
    assert predicted_classes(np.full((2, 5), 3, np.int8)).tolist() == [0, 0]


def test_axes_of_length_one_do_not_matter():
    assert predicted_classes(OUTPUTS.reshape(4, 1, 1, 3)).tolist() == [1, 0, 2, 0]
    assert top1(OUTPUTS, np.array([[1], [0], [2], [0]])) == 1.0


def test_one_real_number_an_example_is_the_probability_of_class_1():
    probabilities = np.array([0.0, 0.5, 0.51, 1.0], np.float32)
    assert predicted_classes(probabilities).tolist() == [0, 0, 1, 1]
    assert top1(probabilities[:, None], np.array([0, 1, 1, 1])) == 0.75


def test_one_integer_an_example_is_the_class_itself():
    classes = np.array([7, 0, 1], np.int64)
    assert predicted_classes(classes).tolist() == [7, 0, 1]
    assert top1(classes[:, None], np.array([7, 1, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("outputs", "labels", "word"),
    [
        (OUTPUTS, [1, 0, 3, 9], "2"),
        (OUTPUTS, [1, -1, 0, 0], "-1"),
        (OUTPUTS, [1, 0, 2], "3"),
        (OUTPUTS, [0.0, 1.0, 2.0, 0.0], "integer"),
        (OUTPUTS, np.eye(4, 3, dtype=int), "one-hot"),
        (OUTPUTS, np.eye(4, dtype=int), "4"),
        (OUTPUTS, np.eye(3)[[0, 1, 2, 0]] * 0.9 + 0.1 / 3, "Soft"),
        (OUTPUTS[:, :1], [0, 1, 2, 0], "2"),
        (OUTPUTS.reshape(2, 2, 3), [0, 1], "class"),
        (np.where(OUTPUTS == 0.9, np.nan, OUTPUTS), [1, 0, 2, 0], "NaN"),
        (OUTPUTS[:0], [], "example"),
    ],
)
def test_labels_and_outputs_that_do_not_fit_are_refused(outputs, labels, word):
    with refused(InputError, word=word):
        top1(outputs, np.array(labels))


@pytest.mark.parametrize(
    ("outputs", "labels", "field", "expected", "got"),
    [
        (OUTPUTS, [1, 0, 3, 9], "labels", "0 to 2", 3),
        (OUTPUTS, [1, 0, 2], "labels", 4, 3),
        (OUTPUTS[:, :1], [0, 1, 2, 0], "labels", "0 to 1", 2),
        (OUTPUTS.reshape(2, 2, 3), [0, 1], "outputs", "(n, classes)", (2, 2, 3)),
        (OUTPUTS[:0], [], "outputs", "(n, classes)", (0, 3)),
    ],
)
def test_the_error_says_what_does_not_fit(outputs, labels, field, expected, got):
    with refused(InputError, field=field, expected=expected, got=got):
        top1(outputs, np.array(labels))


def test_agreement_is_the_fraction_of_equal_top1_without_labels():
    other = OUTPUTS.copy()
    other[0] = [0.8, 0.1, 0.1]
    assert agreement(OUTPUTS, OUTPUTS * 100) == 1.0
    assert agreement(OUTPUTS, other) == 0.75
    with refused(InputError, field="outputs", expected=(3, 3), got=(4, 3)):
        agreement(OUTPUTS, OUTPUTS[:3])


def test_percentiles_are_those_of_the_sorted_times():
    times = np.arange(101.0)[::-1]  # 0 to 100: the percentile is the number itself
    assert latency_percentiles(times) == {"latency_p50_ms": 50.0, "latency_p90_ms": 90.0, "latency_p99_ms": 99.0}
    assert latency_percentiles([2.0]) == {"latency_p50_ms": 2.0, "latency_p90_ms": 2.0, "latency_p99_ms": 2.0}


@pytest.mark.parametrize("times", [[], [1.0, float("nan")], [-1.0], [[1.0]]])
def test_times_that_are_none_are_refused(times):
    with refused(InputError, word="expected"):
        latency_percentiles(times)

# SPDX-License-Identifier: Apache-2.0
"""The output that a search compares with the labels, and models that it cannot score."""

import numpy as np
import pytest
from golden_models import changed, golden
from messages import refused
from test_evaluation_outputs import FLOAT_LOGITS, FLOAT_TWO, TWO, X, Y, before_softmax, plain

from tfq import tflite
from tfq.data import Split
from tfq.errors import InputError
from tfq.evaluation.metric import Metric, as_metric
from tfq.search.criterion import _within, choose_criterion, classes_of, labels_of, metric_criterion

FLOAT = golden("digits_float32")
DATA = Split(name="val", inputs={"x": X}, labels=Y, source="arrays")


def test_the_class_output_is_compared_with_the_labels():
    criteria = [choose_criterion(model, [DATA], 20.0) for model in (FLOAT, FLOAT_LOGITS, FLOAT_TWO)]
    assert [(item.kind, item.output) for item in criteria] == [("accuracy", 0), ("accuracy", 0), ("accuracy", 1)]
    assert classes_of(TWO, DATA, 1).tolist() == plain(TWO)[1].argmax(axis=1).tolist()
    assert labels_of(DATA, tflite.read(FLOAT_TWO), 1).tolist() == Y.tolist()


def twice(model):
    before_softmax(then_softmax=True)(model)
    graph = model.subgraphs[0]
    graph.outputs = [graph.outputs[1], graph.outputs[1]]


def reconstructing(model):
    graph = model.subgraphs[0]
    graph.outputs, model.signatureDefs = list(graph.inputs), []


BARE = Split(name="val", inputs={"x": X}, labels=None, source="arrays")
VALUES = Split(name="val", inputs={"x": X}, labels=np.linspace(0, 1, len(X)), source="arrays")


@pytest.mark.parametrize(
    ("model", "data", "kind"),
    [
        (FLOAT, BARE, "agreement"),
        (FLOAT, VALUES, "agreement"),
        (FLOAT_TWO, BARE, "agreement"),
        (FLOAT_LOGITS, BARE, "sqnr"),
        (changed(FLOAT, twice), DATA, "sqnr"),
        (changed(FLOAT, reconstructing), DATA, "sqnr"),
    ],
    ids=["no labels", "values", "two outputs", "logits", "two classes", "autoencoder"],
)
def test_models_without_fitting_labels_are_compared_with_float(model, data, kind):
    criterion = choose_criterion(model, [data], 20.0)
    assert criterion.kind == kind and criterion.reason and criterion.note
    assert criterion.right(model, model, data).all()


def test_sqnr_counts_the_examples_with_a_small_error():
    """The first half of the examples gets an error of -19 dB of the variance, the second one of -21 dB."""
    values = np.random.default_rng(0).normal(size=(10, 50))
    levels = np.where(np.arange(10) < 5, 10 ** (-19 / 20), 10 ** (-21 / 20))[:, None] * values.std()
    assert _within([values + levels], [values], 20.0).tolist() == [False] * 5 + [True] * 5


def test_wrong_class_labels_are_refused():
    with refused(InputError, field="labels", got=10):
        choose_criterion(FLOAT, [Split(name="val", inputs={"x": X}, labels=Y + 7, source="arrays")], 20.0)


def test_one_hot_labels_are_the_same_classes():
    rows = Split(name="val", inputs={"x": X}, labels=np.eye(10, dtype=np.float32)[Y], source="arrays")
    parsed = tflite.read(FLOAT)
    assert labels_of(rows, parsed, 0).tolist() == labels_of(DATA, parsed, 0).tolist()


def test_a_metric_compares_models_by_its_value_and_a_paired_interval():
    criterion, by_labels = (
        metric_criterion(as_metric("top1"), FLOAT, [DATA], 20.0),
        choose_criterion(FLOAT, [DATA], 20.0),
    )
    assert (criterion.kind, criterion.title, by_labels.kind) == ("metric", "top-1", "accuracy")
    int8 = golden("digits_int8")
    samples = [(item.sample(int8, FLOAT, DATA), item.sample(FLOAT, FLOAT, DATA)) for item in (criterion, by_labels)]
    assert samples[0][0].value == samples[1][0].value == by_labels.right(int8, FLOAT, DATA).mean()
    chosen, other = (own.minus(base) for own, base in samples)
    assert (chosen.difference, chosen.low, chosen.high) == (other.difference, other.low, other.high)


def test_a_metric_that_cannot_rank_models_is_refused():
    metric = Metric.from_function(lambda outputs, labels: 0.5, name="half", unit="score")
    with refused(InputError, field="search.metric", word="half"):
        metric_criterion(metric, FLOAT, [DATA], 20.0)
    unlabeled = Split(name="val", inputs={"x": X}, labels=None, source="arrays")
    with refused(InputError, field="search.metric", word="labels"):
        metric_criterion(as_metric("top1"), FLOAT, [unlabeled], 20.0)

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
from tfq.search import find_int8
from tfq.search.record import classes_of, labels_of, scored_output

FLOAT = golden("digits_float32")
DATA = Split(name="val", inputs={"x": X}, labels=Y, source="arrays")


def test_the_class_output_is_compared_with_the_labels():
    assert [scored_output(model, DATA, "search") for model in (FLOAT, FLOAT_LOGITS, FLOAT_TWO)] == [0, 0, 1]
    assert classes_of(TWO, DATA, 1).tolist() == plain(TWO)[1].argmax(axis=1).tolist()
    assert labels_of(DATA, "search", tflite.read(FLOAT_TWO), 1).tolist() == Y.tolist()


def twice(model):
    before_softmax(then_softmax=True)(model)
    graph = model.subgraphs[0]
    graph.outputs = [graph.outputs[1], graph.outputs[1]]


def reconstructing(model):
    graph = model.subgraphs[0]
    graph.outputs, model.signatureDefs = list(graph.inputs), []


@pytest.mark.parametrize(
    ("change", "got"), [(twice, 2), (reconstructing, "a reconstruction")], ids=["two classes", "autoencoder"]
)
def test_a_model_whose_classes_are_not_known_is_refused(change, got):
    with refused(InputError, field="model", got=got):
        find_int8(changed(FLOAT, change), DATA, DATA, DATA)


def test_one_hot_labels_are_the_same_classes():
    rows = Split(name="val", inputs={"x": X}, labels=np.eye(10, dtype=np.float32)[Y], source="arrays")
    parsed = tflite.read(FLOAT)
    assert labels_of(rows, "search", parsed, 0).tolist() == labels_of(DATA, "search", parsed, 0).tolist()

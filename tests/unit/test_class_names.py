# SPDX-License-Identifier: Apache-2.0
"""Names of classes in the tables, matrices, texts and pages of an evaluation, and numbers where they are unknown."""

import json

import metric_examples
import numpy as np
import pytest
from golden_models import golden
from messages import refused
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix

from tfq import tflite
from tfq.analysis import explain
from tfq.config import EvaluationConfig, ExplainConfig
from tfq.data import Split
from tfq.errors import InputError
from tfq.evaluation import MetricTable, as_metric, evaluate_model
from tfq.evaluation.class_names import class_names_by_output
from tfq.evaluation.record_tables import metric_tables
from tfq.report.page import page_of
from tfq.tflite.model_metadata import AssociatedFile, ModelMetadata, SubGraphMetadata, TensorMetadata

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = load_digits()
SETTINGS = EvaluationConfig(num_runs=0, metric=("f1", "ece"))


def examples(names=(), count=300):
    x = DIGITS.images[-count:, ..., None].astype(np.float32)
    return Split(name="test", inputs={"x": x}, labels=DIGITS.target[-count:], source="arrays", class_names=names)


def with_labels(content, names):
    """Return a model with a label file for its output."""
    file = AssociatedFile(name="labels.txt", type="TENSOR_AXIS_LABELS")
    graph = SubGraphMetadata(
        input_tensor_metadata=(TensorMetadata(name="image"),),
        output_tensor_metadata=(TensorMetadata(name="probabilities", associated_files=(file,)),),
    )
    labels = "\n".join(names).encode()
    return tflite.write_model_metadata(content, ModelMetadata(subgraph_metadata=(graph,)), {"labels.txt": labels})


@pytest.fixture(scope="module")
def record():
    return evaluate_model(golden("digits_int8"), examples(NAMES), SETTINGS, reference=golden("digits_float32"))


def table(**changes):
    values = {"rows": ("all", "0", "1", "3"), "columns": ("a",), "values": np.zeros((4, 1)), "classes": (None, 0, 1, 3)}
    return MetricTable(**{**values, **changes})


def test_rows_of_classes_get_names_and_others_stay():
    assert table().with_names(("cat", "dog")).rows == ("all", "cat", "dog", "3")
    assert table().with_names(("cat", "", "x", "owl")).rows == ("all", "cat", "1", "owl")
    assert table(classes=()).with_names(("cat", "dog")).rows == table().rows
    assert table().with_names(()).rows == table().rows


def test_names_that_are_not_unique_keep_their_numbers():
    assert table().with_names(("bat", "all", "x", "bat")).rows == ("all", "bat (0)", "all (1)", "bat (3)")


def test_a_table_with_too_few_classes_is_refused():
    with refused(InputError, field="classes", expected=4, got=1):
        table(classes=(0,))


def test_the_record_has_names_and_numbers(record):
    own = record.metrics["f1"]["table"]
    assert own["rows"] == list(NAMES) and own["classes"] == list(range(10))
    assert record.metrics["f1"]["reference_table"]["rows"] == list(NAMES)
    assert record.metrics["ece"]["table"]["classes"] is None
    assert record.classes["confusion"]["names"] == list(NAMES) == record.classes["name"]


def test_the_text_has_the_tables_and_the_most_frequent_confusions(record):
    text = record.to_text()
    assert all(name in text for name in NAMES) and "support" in text
    truth = DIGITS.target[-300:]
    outputs = []
    evaluate_model(
        golden("digits_int8"), examples(), SETTINGS, metric=lambda values, labels: outputs.append(values) or 0
    )
    matrix = confusion_matrix(truth, outputs[0].argmax(axis=1)) * (1 - np.eye(10, dtype=int))
    label, answer = np.unravel_index(matrix.argmax(), matrix.shape)
    assert f"{NAMES[label]} as {NAMES[answer]}: {matrix.max()} " in text


def test_the_page_and_its_matrix_have_names(record):
    page = page_of({"command": "evaluate", "evaluation": record.to_dict(), "config": {}, "file": "digits.tflite"})
    ticks = page[page.index("Confusion matrix") :]
    assert "8 eight" in page and ">eight</text>" in ticks


def test_unknown_names_are_numbers():
    record = evaluate_model(golden("digits_int8"), examples(), SETTINGS)
    assert record.metrics["f1"]["table"]["rows"] == [str(number) for number in range(10)]
    assert record.classes["confusion"]["names"] is None
    json.dumps(record.to_dict())


def test_the_label_file_of_the_model_names_classes_unless_the_data_does():
    model = with_labels(golden("digits_int8"), [f"label {number}" for number in range(10)])
    assert evaluate_model(model, examples(), SETTINGS).metrics["f1"]["table"]["rows"][3] == "label 3"
    assert class_names_by_output(model, examples(NAMES)) == [NAMES]


def test_long_tables_show_the_rows_that_differ_most():
    values, other = np.tile([5.0, 0.5], (40, 1)), np.tile([5.0, 0.5], (40, 1))
    other[[3, 33], 1] = 0.9
    both = [
        MetricTable(
            rows=tuple(map(str, range(40))), classes=tuple(range(40)), columns=("n", "f1"), values=array, counts=("n",)
        ).to_dict()
        for array in (values, other)
    ]
    (shown,) = metric_tables({"f1": {"table": both[0], "reference_table": both[1]}})
    rows = {row[0]: row[1:] for row in shown.rows}
    assert len(rows) == 12 and "40 rows" in shown.caption
    assert rows["33"] == ["5", "50.00% (90.00%)"] and "3" in rows


def test_metrics_with_the_same_table_share_it():
    labels = np.arange(30) % 3
    outputs = (np.eye(3)[labels].astype(np.float32),)
    metrics = {name: as_metric(name) for name in ("precision", "recall")}
    facts = {
        name: {"table": metric.table_of(metric.state_of(outputs, labels)).to_dict(), "reference_table": None}
        for name, metric in metrics.items()
    }
    (shown,) = metric_tables(facts)
    assert shown.caption.startswith("precision, recall")


def test_the_targets_of_maps_have_names():
    config = ExplainConfig(limit=2, pictures=0)
    explained = explain(golden("digits_int8"), golden("digits_float32"), examples(NAMES, 2), config)
    assert [item.target_name for item in explained.examples] == [NAMES[item.target] for item in explained.examples]
    assert explained.examples[0].target_name in explained.to_text()
    without = explain(golden("digits_int8"), golden("digits_float32"), examples((), 2), config)
    assert without.examples[0].target_name is None


@pytest.mark.parametrize("name", metric_examples.EXAMPLES)
def test_every_metric_names_its_classes_and_nothing_else(name):
    metric, (outputs, labels) = as_metric(name), metric_examples.EXAMPLES[name]
    own = metric.table_of(metric.state_of(outputs, labels))
    if own is None:
        return
    # Rows that are not classes: all classes together, positions to ignore, bins of confidence.
    others = [row for row in own.rows if not row.isdigit()]
    assert (not own.classes) == (len(others) == len(own.rows))
    for row, number, named in zip(
        own.rows, own.classes, own.with_names([f"c{i}" for i in range(20)]).rows, strict=False
    ):
        assert (number, named) == ((None, row) if row in others else (int(row), f"c{row}"))
    assert {"coco_map": ["all"], "dice": ["ignored"], "f1": []}.get(name, others) == others

# SPDX-License-Identifier: Apache-2.0
"""Every metric that two evaluations have: values, stored intervals and paired differences, without a verdict."""

import copy
import json

import numpy as np
import pytest
from golden_models import golden
from sklearn.datasets import load_digits

from tfq import comparison
from tfq.comparison import gate
from tfq.comparison.metric_changes import changes_from_reference
from tfq.config import EvaluationConfig
from tfq.data import Split
from tfq.evaluation import evaluate_model
from tfq.evaluation.metric import Metric
from tfq.report.markdown import markdown_of

COUNT = 200
SETTINGS = EvaluationConfig(num_runs=0, metric=("top1", "f1", "ece", "nll"))


def data():
    digits = load_digits()
    x = digits.images[-COUNT:, ..., None].astype(np.float32)
    return Split(name="test", inputs={"x": x}, labels=digits.target[-COUNT:], source="arrays")


def evaluated(model, metric=None):
    """Return a record of the model, as `tfq evaluate` writes it."""
    split = data()
    result = evaluate_model(golden(model), split, SETTINGS, reference=golden("digits_float32"), metric=metric)
    config = {"model": f"{model}.tflite", "evaluation": SETTINGS.to_dict(), "data": {}}
    record = {
        "command": "evaluate", "cpu": None, "packages": {}, "config": config, "evaluation": result.to_dict(),
        "portability": {"rows": {}}, "digest": {},
        "sha256": {"model": model, "reference": "float", "data": {"test": split.sha256()}},
    }  # fmt: skip
    return json.loads(json.dumps(record))


@pytest.fixture(scope="module")
def records():
    return [evaluated(model) for model in ("digits_int8_per_tensor", "digits_int8")]


def changes(new, old):
    (model,) = comparison.gate_records(new, old).models
    return {change.name: change for change in model.metrics}


def test_every_metric_has_both_values_and_their_stored_intervals(records):
    old, new = records
    result = changes(new, old)
    assert set(result) == {"top1", "f1", "ece", "nll", "top5"}
    for name, change in result.items():
        for value, interval, record in (
            (change.old, change.old_interval, old),
            (change.new, change.new_interval, new),
        ):
            facts = record["evaluation"]["metrics"][name]
            assert (value, list(interval)) == (facts["value"], facts["interval"])


def test_differences_are_those_of_an_evaluation_with_the_other_model_as_reference(records):
    direct = evaluate_model(golden("digits_int8"), data(), SETTINGS, reference=golden("digits_int8_per_tensor"))
    for name, change in changes(records[1], records[0]).items():
        expected = direct.metrics[name]["difference"]
        assert change.difference.paired and change.reason is None
        assert change.difference.value == pytest.approx(expected["difference"], abs=1e-6)
        assert (change.difference.low, change.difference.high) == pytest.approx(
            (expected["low"], expected["high"]), abs=1e-5
        )


def test_the_text_and_the_page_show_them(records):
    result = comparison.gate_records(records[1], records[0])
    text = comparison.to_text(result)
    table = text[text.index("Metrics, with 95% intervals:") :]
    low, high = records[1]["evaluation"]["metrics"]["f1"]["interval"]
    assert f"({low:.4f} to {high:.4f})" in table and "not paired" not in table
    page = markdown_of({"command": "compare", "config": {}, "gate": result.to_dict()})
    assert "Every metric that both records have" in page and f"({low:.4f} to {high:.4f})" in page


def test_verdicts_do_not_depend_on_the_table(records, monkeypatch):
    old, new = records
    before = comparison.gate_records(new, old)
    monkeypatch.setattr(gate, "metric_changes", lambda *models, **settings: ())
    after = comparison.gate_records(new, old)
    assert before.models[0].metrics and not after.models[0].metrics
    assert (before.models[0].figures, before.failures) == (after.models[0].figures, after.failures)


def test_a_metric_that_only_one_record_has_is_left_out(records):
    old, new = records[0], copy.deepcopy(records[1])
    del new["evaluation"]["metrics"]["nll"]
    assert set(changes(new, old)) == {"top1", "f1", "ece", "top5"}


def test_other_examples_give_unpaired_intervals(records):
    old, new = (copy.deepcopy(record) for record in records)
    old["sha256"]["data"]["test"] = "other"
    change = changes(new, old)["f1"]
    assert not change.difference.paired
    paired = changes(records[1], records[0])["f1"].difference
    assert change.difference.high - change.difference.low > 1.5 * (paired.high - paired.low)
    assert "not paired" in comparison.to_text(comparison.gate_records(new, old))


def test_a_metric_without_an_interval_has_the_reason():
    metric = Metric.from_function(lambda outputs, labels: outputs.max(), name="largest", direction="higher")
    records = [evaluated(model, metric) for model in ("digits_int8", "digits_float32")]
    result = comparison.gate_records(*records)
    (change,) = result.models[0].metrics
    assert change.difference.low is None and "declares neither" in change.reason
    assert "No interval of largest: largest declares neither" in comparison.to_text(result)


def test_two_files_show_every_metric_with_its_paired_interval():
    evaluation = evaluate_model(
        golden("digits_int8"), data(), EvaluationConfig(num_runs=0), reference=golden("digits_float32")
    )
    text = comparison.outputs_text(evaluation)
    assert "top1" in text and "top5" in text and "points (" in text
    low = evaluation.metrics["top1"]["difference"]["low"]
    assert f"({100 * low:+.2f} to" in text
    assert [change.name for change in changes_from_reference(evaluation.to_dict())] == ["top1", "top5"]

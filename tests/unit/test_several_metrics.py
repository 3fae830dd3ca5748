# SPDX-License-Identifier: Apache-2.0
"""Several metrics in one evaluation: records, paired intervals, bounds, the page, and the size of a record."""

import json

import numpy as np
import pytest
from golden_models import golden
from messages import refused
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix, f1_score

from tfq.config import EvaluationConfig, RequireConfig
from tfq.errors import InputError
from tfq.evaluation import as_metric, check_metric, evaluate_model, missed_requirements
from tfq.evaluation.class_differences import MAX_CONFUSED, confusion_of
from tfq.evaluation.metric import Metric
from tfq.evaluation.metric_scores import Scored, score_metrics
from tfq.evaluation.per_example import MAX_BYTES, ExampleResults, OutputResults
from tfq.report.page import page_of

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def record():
    digits = load_digits()
    x = (digits.images[1400:, :, :, None] / 16).astype(np.float32)
    config = EvaluationConfig(num_runs=0, metric=("top1", "f1", "ece"))
    return evaluate_model(golden("digits_int8"), (x, digits.target[1400:]), config, reference=golden("digits_float32"))


def test_the_first_metric_is_the_main_one_and_all_have_paired_intervals(record):
    assert (record.metric, list(record.scores)) == ("top1", ["top1", "f1", "ece", "top5"])
    for facts in record.metrics.values():
        assert facts["difference"]["low"] <= facts["difference"]["difference"] <= facts["difference"]["high"]
        assert facts["value"] - facts["reference"] == pytest.approx(facts["difference"]["difference"])
    assert record.metrics["f1"]["difference"]["method"] == "bootstrap"


def test_bounds_on_single_metrics_are_checked(record):
    bounds = RequireConfig(metrics=("f1>=0.5", "f1>=0.9999", "drop:ece<=0", "mae<=1"))
    names = {sentence.split()[0] for sentence in missed_requirements(record, bounds)}
    assert {"f1", "max_mae"} <= names <= {"f1", "ece_drop", "max_mae"}
    for text in ("f1", "f1>0.5", "f1>=x", "drop:f1>=1"):
        with refused(InputError, field="evaluation.require.metrics", got=text):
            check_metric(EvaluationConfig(require=RequireConfig(metrics=(text,))))


def test_the_page_shows_metrics_classes_and_the_confusion_matrix(record):
    page = page_of({"command": "evaluate", "evaluation": record.to_dict(), "config": {}, "file": "digits.tflite"})
    assert "Confusion matrix" in page and "ECE in detail" in page and "<svg" in page


def test_a_confusion_matrix_is_that_of_scikit_learn():
    truth, answer, other = RNG.integers(0, 5, (3, 300))
    result = confusion_of(truth, answer, other)
    assert result["matrix"] == confusion_matrix(truth, answer).tolist()
    assert result["reference_matrix"] == confusion_matrix(truth, other).tolist()
    first = result["pairs"][0]
    off_diagonal = confusion_matrix(truth, answer) * (1 - np.eye(5, dtype=int))
    assert first["count"] == off_diagonal.max() == off_diagonal[first["label"], first["class"]]
    many = np.arange(MAX_CONFUSED + 1)
    assert confusion_of(many, many[::-1])["matrix"] is None


def test_the_bootstrap_interval_of_a_difference_is_paired_and_narrow():
    labels = RNG.integers(0, 4, 600)
    outputs = (RNG.normal(size=(600, 4)) + np.eye(4)[labels]).astype(np.float32)
    other = (outputs + RNG.normal(size=outputs.shape) * 0.1).astype(np.float32)
    (score,) = score_metrics(
        [Scored(metric=as_metric("f1"), outputs=(outputs,), labels=labels, reference=((other,), labels))]
    )
    drawn = np.random.default_rng(1).integers(0, 600, (1000, 600))
    values = [
        f1_score(labels[i], outputs[i].argmax(1), average="macro")
        - f1_score(labels[i], other[i].argmax(1), average="macro")
        for i in drawn[:300]
    ]
    expected = np.quantile(values, (0.025, 0.975))
    assert (score.difference.low, score.difference.high) == pytest.approx(expected, abs=0.006)
    assert score.difference.high - score.difference.low < (score.interval[1] - score.interval[0]) / 2


def test_results_larger_than_the_cap_leave_out_outputs_and_keep_metrics():
    count = 400_000
    noise = RNG.normal(size=count).astype(np.float16)
    outputs = {str(index): OutputResults(noise_db=noise) for index in range(2)}
    results = ExampleResults(num_examples=count, scores={"top1": RNG.random(count) < 0.5}, outputs=outputs).to_dict()
    assert len(json.dumps(results)) < MAX_BYTES + 1000
    assert "1,000,000 bytes" in results["left_out"]
    assert set(ExampleResults.from_dict(results).scores) == {"top1"}


def test_the_interval_of_a_mean_is_students_or_wilsons():
    labels = RNG.integers(0, 4, 60)
    outputs = (RNG.normal(size=(60, 4)) + np.eye(4)[labels]).astype(np.float32)
    right = Metric(
        name="right", help="", direction="higher", update=lambda state, outputs, labels: {}, finish=lambda state: 0.5,
        examples=lambda outputs, labels: outputs[0].argmax(axis=1) == labels,
    )  # fmt: skip
    losses, own, top1 = score_metrics(
        [
            Scored(metric=metric, outputs=(outputs,), labels=labels)
            for metric in (as_metric("nll"), right, as_metric("top1"))
        ]
    )
    expected = stats.ttest_1samp(losses.scores, 0).confidence_interval(0.95)
    assert losses.interval == pytest.approx((expected.low, expected.high), rel=1e-3)
    assert own.interval == top1.interval is not None


def test_a_record_says_which_metrics_cannot_be_paired_and_why():
    labels = RNG.integers(0, 10, 30)
    data = (RNG.normal(size=(30, 8, 8, 1)).astype(np.float32), labels)
    largest = Metric.from_function(lambda outputs, labels: outputs.max(), name="largest", direction="higher")
    config = EvaluationConfig(num_runs=0)
    record = evaluate_model(golden("digits_int8"), data, config, metric=[largest, "f1"])
    results = ExampleResults.from_dict(record.per_example)
    assert set(results.replicates) == {"f1"} and "declares neither" in results.unpaired["largest"]

# SPDX-License-Identifier: Apache-2.0
"""The metrics against scikit-learn and by hand, a user's own, and what they mean in a record."""

import dataclasses
import sys

import numpy as np
import pytest
from golden_models import changed, golden
from sklearn.metrics import mean_absolute_error as sklearn_mae
from sklearn.metrics import roc_auc_score, top_k_accuracy_score
from test_evaluation_record import RECORD

from tfq.config import EvaluationConfig, RequireConfig
from tfq.data import Split
from tfq.errors import InputError
from tfq.evaluation import (
    METRICS,
    check_metric,
    choose_metric,
    evaluate_model,
    mean_absolute_error,
    metric_sha256,
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


def test_ties_of_topk_go_to_the_lower_class_so_that_top_of_one_is_top1():
    outputs, labels = RNG.integers(-128, -120, (500, 10)).astype(np.int8), RNG.integers(0, 10, 500)
    assert topk(outputs, labels, 1) == top1(outputs, labels)
    same = np.zeros((2, 7), np.float32)
    assert topk(same, np.array([4, 5])) == 0.5


def test_top5_of_five_classes_is_refused_for_it_says_nothing():
    with pytest.raises(InputError, match="wants more than 5 classes, the model has 5"):
        topk(np.zeros((3, 5)), np.array([0, 1, 2]))


@pytest.mark.parametrize("levels", [3, 20, 10**9])
def test_roc_auc_is_that_of_scikit_learn_with_ties_and_without(levels):
    scores = RNG.integers(0, levels, 400).astype(np.float32)
    labels = (RNG.random(400) + scores / levels > 0.9).astype(int)
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert roc_auc(-scores, labels) == pytest.approx(1 - roc_auc(scores, labels), abs=1e-12)


def test_roc_auc_by_hand():
    # Of the pairs (positive, negative): 3 > 1, 3 > 2, 2 > 1, and 2 = 2, which counts half.
    assert roc_auc(np.array([1.0, 2, 2, 3]), np.array([0, 0, 1, 1])) == 3.5 / 4
    assert roc_auc(np.zeros(4), np.array([True, False, True, False])) == 0.5


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 0, 0], "both labels 0 and 1: all 3 here are 0"),
        ([0, 1, 2], "label of example 2 is 2: roc_auc wants 0"),
        ([0, 1], r"labels of shape \(2,\) for 3 examples"),
        ([[0, 1], [0, 1], [1, 0]], r"labels of shape \(3, 2\)"),
    ],
)
def test_labels_that_have_no_roc_are_refused(labels, told):
    with pytest.raises(InputError, match=told):
        roc_auc(np.array([0.1, 0.2, 0.3]), np.array(labels))


def test_mean_absolute_error_is_that_of_scikit_learn_in_any_shape():
    outputs, labels = RNG.normal(size=(40, 6)).astype(np.float32), RNG.normal(size=(40, 6))
    wanted = sklearn_mae(labels, outputs)
    assert mean_absolute_error(outputs, labels) == pytest.approx(wanted, abs=1e-12)
    assert mean_absolute_error(outputs.reshape(40, 2, 3, 1), labels.reshape(40, 2, 3)) == pytest.approx(wanted)
    assert mean_absolute_error(np.array([[1.0], [2]]), np.array([2, 4])) == 1.5
    with pytest.raises(InputError, match=r"outputs of shape \[40, 6\] and labels of shape \[40\]"):
        mean_absolute_error(outputs, labels[:, 0])
    with pytest.raises(InputError, match="no finite number"):
        mean_absolute_error(outputs, np.where(labels > 2, np.nan, labels) * np.nan)


def reconstruction():
    """(inputs, outputs, labels): an error of each example, larger for the anomalous ones but for one pair."""
    inputs = RNG.normal(size=(6, 20)).astype(np.float32)
    errors = np.array([0.1, 0.2, 0.45, 0.4, 0.5, 0.6])
    return inputs, (inputs + errors[:, None]).astype(np.float32), np.array([0, 0, 0, 1, 1, 1])


def test_an_autoencoder_is_scored_by_the_error_of_its_reconstruction():
    inputs, outputs, labels = reconstruction()
    scores = score_outputs(outputs, split(inputs, labels), reconstructs=True)
    assert (scores["metric"], scores["accuracy"]) == ("roc_auc", pytest.approx(8 / 9))
    assert scores["scores"] == {"roc_auc": scores["accuracy"], "mae": pytest.approx(0.375, abs=1e-6)}
    assert "no classes" in scores["agreement_reason"] or "no reference" in scores["agreement_reason"]


def test_an_autoencoder_without_labels_of_anomalies_has_its_error_and_says_what_is_missing():
    inputs, outputs, _ = reconstruction()
    bare = score_outputs(outputs, split(inputs), reconstructs=True)
    assert (bare["accuracy"], bare["accuracy_reason"]) == (None, "the data has no labels")
    assert bare["scores"] == {"mae": pytest.approx(0.375, abs=1e-6)}
    asked = score_outputs(outputs, split(inputs), reconstructs=True, metric="mae")
    assert asked["accuracy"] == pytest.approx(0.375, abs=1e-6)
    digits = score_outputs(outputs, split(inputs, np.arange(6)), reconstructs=True)
    assert "wants labels 0 (normal) and 1 (anomalous), these are 0, 1, 2, 3, 4" in digits["accuracy_reason"]
    denoised = score_outputs(outputs, split(inputs, outputs + 1), reconstructs=True, metric="mae")
    assert denoised["accuracy"] == pytest.approx(1, abs=1e-6)


def test_roc_auc_of_classifiers_takes_the_score_of_class_1():
    labels = RNG.integers(0, 2, 50)
    one = RNG.random((50, 1))
    wanted = roc_auc_score(labels, one[:, 0])
    data = split(one, labels)
    assert score_outputs(one, data, reconstructs=False, metric="roc_auc")["accuracy"] == pytest.approx(wanted)
    two = np.concatenate([1 - one, one], axis=1)
    assert score_outputs(two, data, reconstructs=False, metric="roc_auc")["accuracy"] == pytest.approx(wanted)
    logits = RNG.normal(0, 3, (50, 2))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = roc_auc_score(labels, softmax[:, 1])
    for two in (logits, softmax):
        assert score_outputs(two, data, reconstructs=False, metric="roc_auc")["accuracy"] == pytest.approx(wanted)
    assert roc_auc_score(labels, logits[:, 1]) != pytest.approx(wanted)
    with pytest.raises(InputError, match="wants one score an example: the model gives 3"):
        score_outputs(RNG.random((50, 3)), data, reconstructs=False, metric="roc_auc")


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images[:60].reshape(-1, 8, 8, 1).astype(np.float32), labels[:60]


def test_a_record_holds_top5_beside_top1_and_moments_of_the_latency(digits):
    record = evaluate_model(INT8, digits, EvaluationConfig(num_runs=4, warmup_runs=0))
    assert record.scores == {"top1": record.accuracy, "top5": record.scores["top5"]}
    assert record.accuracy <= record.scores["top5"] <= 1
    assert min(record.latency_mean_ms, record.latency_first_ms) > 0 and record.latency_std_ms >= 0
    assert f"top5         {record.scores['top5']:.2%}" in record.to_text()
    asked = evaluate_model(INT8, digits, EvaluationConfig(num_runs=0, metric="top5"))
    assert (asked.metric, asked.accuracy) == ("top5", record.scores["top5"])
    assert (asked.latency_mean_ms, asked.latency_std_ms, asked.latency_first_ms) == (None, None, None)


def without_its_softmax_and_with_the_input_of_its_output(model):
    """One fully connected 64 -> 10 cannot reconstruct: the input itself is the output."""
    graph = model.subgraphs[0]
    graph.outputs = list(graph.inputs)


def test_a_flatbuffer_that_reconstructs_is_known_and_scored_against_its_input(digits):
    x, _ = digits
    model = changed(FLOAT, without_its_softmax_and_with_the_input_of_its_output)
    record = evaluate_model(model, (x, np.arange(60) % 2), QUICK, reference=model)
    assert (record.metric, record.accuracy, record.accuracy_drop) == ("roc_auc", 0.5, 0)
    assert record.scores["mae"] == 0
    assert record.agreement is None and "reconstructs its input" in record.agreement_reason


def test_of_an_error_lower_is_better_and_the_drop_is_how_much_worse_it_is(digits):
    x, y = digits
    wanted = np.eye(10)[y]
    config = EvaluationConfig(num_runs=0, metric="mae")
    reference = dataclasses.replace(reference_outputs(FLOAT, x), outputs=(wanted.astype(np.float32),))
    record = evaluate_model(INT8, (x, wanted), config, reference=reference)
    assert record.lower_is_better and record.reference_accuracy == 0
    assert record.accuracy_drop == record.accuracy > 0
    assert record.agreement is None and record.agreement_reason == "mae goes by values, not by classes"
    bound = record.accuracy / 2
    assert missed_requirements(record, RequireConfig(max_accuracy_drop=bound))[0].startswith("accuracy_drop is ")
    assert missed_requirements(record, RequireConfig(max_accuracy_drop=record.accuracy)) == []


def test_a_lowest_accuracy_of_an_error_is_refused_before_the_work():
    config = EvaluationConfig(metric="mae", require=RequireConfig(min_accuracy=0.5))
    with pytest.raises(
        InputError, match=r"min_accuracy=0\.5 with evaluation.metric=mae: it is an error, where lower is better"
    ):
        check_metric(config)
    with pytest.raises(InputError, match="lower is better"):
        evaluate_model(INT8, np.zeros((2, 8, 8, 1)), config)
    record = dataclasses.replace(RECORD, metric="mae", lower_is_better=True, accuracy=3.0)
    assert missed_requirements(record, config.require) == [
        "min_accuracy 0.5 cannot be checked: mae is an error, where lower is better"
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [("top_1", "did you mean 'top1'"), ("rocauc", "did you mean 'roc_auc'"), ("f1", "choose from .*MODULE:FUNCTION")],
)
def test_an_unknown_metric_gets_the_nearest(name, told):
    with pytest.raises(InputError, match=f"evaluation.metric={name}: {told}"):
        check_metric(EvaluationConfig(metric=name))


def test_every_metric_is_known_by_its_own_name():
    assert {name: choose_metric(name).name for name in METRICS} == {name: name for name in METRICS}
    assert choose_metric("") is None


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory; what is imported from it is forgotten after."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


OWN = """
import helper_of_mine
def wrong_ones(outputs, labels):
    return helper_of_mine.count(outputs.argmax(1) != labels)
wrong_ones.lower_is_better = True
def broken(outputs, labels):
    return outputs[10**9]
def nothing(outputs, labels): pass
def not_a_number(outputs, labels): return float("nan")
def too_large(outputs, labels): return 10**400
def of_one(outputs): return 1
def leaves(outputs, labels): raise SystemExit(0)
def scribbles(outputs, labels):
    outputs[:] = labels[:] = 0
    return 1
def late(outputs, labels):
    import imported_late
    return imported_late.ONE
number = 3
"""


def test_a_users_function_is_imported_from_the_current_directory(here, digits):
    (here / "tfq_test_metrics.py").write_text(OWN)
    (here / "helper_of_mine.py").write_text("def count(found): return int(found.sum())")
    (here / "imported_late.py").write_text("ONE = 1")
    x, y = digits
    path = list(sys.path)
    record = evaluate_model(INT8, (x, y), EvaluationConfig(num_runs=0, metric="tfq_test_metrics:wrong_ones"))
    assert record.accuracy == round(60 * (1 - evaluate_model(INT8, (x, y), QUICK).accuracy))
    assert (record.metric, record.lower_is_better) == ("tfq_test_metrics:wrong_ones", True)
    assert evaluate_model(INT8, (x, y), QUICK, metric="tfq_test_metrics:late").accuracy == 1
    assert sys.path == path
    for name, told in [
        ("broken", r"metric tfq_test_metrics:broken failed: IndexError: .* \(tfq_test_metrics.py, line 7\)"),
        ("nothing", "gave NoneType None: wanted one number"),
        ("not_a_number", "gave nan: wanted a finite number"),
        ("too_large", "gave a int beyond the largest float: wanted a number"),
        ("of_one", "failed: TypeError: .* were given$"),
        ("leaves", r"failed: SystemExit: 0 \(tfq_test_metrics.py, line 12\)"),
    ]:
        with pytest.raises(InputError, match=told):
            evaluate_model(INT8, (x, y), QUICK, metric=f"tfq_test_metrics:{name}")


def test_a_users_function_that_writes_into_what_it_gets_changes_no_other_number(here, digits):
    (here / "tfq_test_metrics.py").write_text(OWN)
    (here / "helper_of_mine.py").write_text("count = sum")
    x, y = digits
    plain, labels = evaluate_model(INT8, (x, y), QUICK, reference=FLOAT), y.copy()
    scribbled = evaluate_model(INT8, (x, y), QUICK, reference=FLOAT, metric="tfq_test_metrics:scribbles")
    assert (scribbled.accuracy, scribbled.agreement) == (1, plain.agreement)
    assert scribbled.output_sqnr_db == plain.output_sqnr_db is not None
    np.testing.assert_array_equal(y, labels)


def test_a_users_function_that_cannot_be_had_is_refused_before_the_work(here):
    (here / "tfq_test_metrics.py").write_text("def macro_f1(outputs, labels): return 1\nnumber = 3\n")
    (here / "tfq_test_fails.py").write_text("x = 1\nraise RuntimeError('no GPU')\n")
    (here / "tfq_test_exits.py").write_text("raise SystemExit(0)\n")
    (here / "tfq_test_syntax.py").write_text("def f(:\n")
    (here / "tfq_test_needs.py").write_text("import a_package_that_nobody_has\n")
    for name, told in [
        ("tfq_test_metric:macro_f1", "no module 'tfq_test_metric' in .*did you mean 'tfq_test_metrics'"),
        ("tfq_test_metrics:macro_fl", "macro_fl is not there in tfq_test_metrics: did you mean 'macro_f1'"),
        ("tfq_test_metrics:number", "number is no function in tfq_test_metrics"),
        ("tfq_test_metrics:", "wanted MODULE:FUNCTION"),
        ("../x:y", "wanted MODULE:FUNCTION"),
        ("tfq_test_fails:f", r"importing tfq_test_fails failed: RuntimeError: no GPU \(tfq_test_fails.py, line 2\)"),
        ("tfq_test_exits:f", r"importing tfq_test_exits failed: SystemExit: 0 \(tfq_test_exits.py, line 1\)"),
        ("tfq_test_syntax:f", r"failed: SyntaxError: invalid syntax \(tfq_test_syntax.py, line 1\)$"),
        ("tfq_test_needs:f", "tfq_test_needs imports 'a_package_that_nobody_has', which is not installed"),
    ]:
        with pytest.raises(InputError, match=told):
            check_metric(EvaluationConfig(metric=name))


def test_another_file_of_a_users_function_has_another_hash(here):
    (here / "tfq_test_metrics.py").write_text("def f(outputs, labels): return 1\n")
    first = metric_sha256("tfq_test_metrics:f")
    (here / "tfq_test_metrics.py").write_text("def f(outputs, labels): return 2\n")
    assert metric_sha256("tfq_test_metrics:f") != first
    assert metric_sha256("top1") is metric_sha256("") is None


@pytest.mark.parametrize("metric", ["", "top1", "roc_auc"])
def test_a_drop_in_points_is_refused_where_the_metric_is_a_fraction(metric):
    with pytest.raises(InputError, match=r"2 points are 0\.02"):
        check_metric(EvaluationConfig(metric=metric, require=RequireConfig(max_accuracy_drop=2)))


def test_a_drop_may_exceed_1_where_the_metric_has_a_unit_of_its_own():
    check_metric(EvaluationConfig(metric="mae", require=RequireConfig(max_accuracy_drop=2)))

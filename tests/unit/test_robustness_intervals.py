# SPDX-License-Identifier: Apache-2.0
"""Intervals on corrupted inputs of metrics that are not means over the examples, against a bootstrap by hand."""

from pathlib import Path

import numpy as np
import pytest

import tfq
from tfq import registry
from tfq.evaluation.paired import resampled_weights
from tfq.robustness import runs
from tfq.robustness.corruption import Corruption, corrupt
from tfq.robustness.statistic import Statistic, average, minus

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = {"float": GOLDEN / "digits_float32.tflite", "int8": GOLDEN / "digits_int8.tflite"}
NUM_EXAMPLES = 24
# Fewer than by default, to save time.
NUM_DRAWS = 100
CONDITIONS = (("gaussian_noise", 4), ("gaussian_noise", 5), ("translation", 4), ("translation", 5))


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "num_draws", lambda work: NUM_DRAWS)
        yield


def config():
    names = ("gaussian_noise", "translation")
    settings = tfq.RobustnessConfig(
        limit=NUM_EXAMPLES, input_range=(0, 16), corruptions=names, severities=(4, 5), degraded_examples=0
    )
    return tfq.EvaluationConfig(robustness=settings)


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("sklearn")
    split = next(iter(tfq.load_split(tfq.DataConfig(source="digits"), "test", limit=NUM_EXAMPLES).pieces()))
    ((name, inputs),) = split.inputs.items()
    return tfq.Split(name="test", inputs={name: inputs}, labels=split.labels, source="arrays")


@pytest.fixture(scope="module")
def outputs(data):
    """Return {model: {condition: (n, 10) probabilities}} from one inference at a time; the clean ones under None."""
    from ai_edge_litert.interpreter import Interpreter

    ((_, inputs),) = data.inputs.items()
    versions = {None: inputs}
    for name, level in CONDITIONS:
        known = registry.get(Corruption, name)
        versions[name, level] = corrupt(inputs, known, level, limits=(0, 16), parameter_set="cifar10_c")
    results = {}
    for model, file in MODELS.items():
        interpreter = Interpreter(str(file))
        interpreter.allocate_tensors()
        results[model] = {key: np.stack([infer(interpreter, x) for x in array]) for key, array in versions.items()}
    return results


def infer(interpreter, example):
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    (scale, zero_point), (out_scale, out_zero) = source["quantization"], sink["quantization"]
    if scale:
        example = np.clip(np.rint(example / np.float32(scale) + zero_point), -128, 127).astype(np.int8)
    interpreter.set_tensor(source["index"], example[None])
    interpreter.invoke()
    values = interpreter.get_tensor(sink["index"])[0].astype(np.float64)
    return (values - out_zero) * out_scale if out_scale else values


def drawn_examples():
    """Return the indices of the examples of each draw."""
    return [np.repeat(np.arange(NUM_EXAMPLES), weights) for weights in resampled_weights(NUM_EXAMPLES, NUM_DRAWS)]


def calibration_error(probabilities, labels):
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for low in range(15):
        chosen = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if chosen.any():
            total += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    return total


def macro_f1(probabilities, labels):
    predicted, values = probabilities.argmax(axis=1), []
    for number in range(10):
        hits = np.sum((predicted == number) & (labels == number))
        both = np.sum(predicted == number) + np.sum(labels == number)
        if both:
            values.append(2 * hits / both)
    return np.mean(values)


def mean_iou(probabilities, labels):
    """Read the ten outputs as ten positions of two classes."""
    predicted, truth = probabilities > 0.5, labels == 1
    parts = [(predicted == which, truth == which) for which in (False, True)]
    return np.mean([np.sum(a & b) / np.sum(a | b) for a, b in parts if np.any(a | b)])


def by_hand(measure, outputs, labels):
    """Return {model: (clean, mean over the conditions)} of each draw, (draws,)."""
    draws = drawn_examples()
    return {
        model: (
            np.array([measure(of_model[None][chosen], labels[chosen]) for chosen in draws]),
            np.mean(
                [[measure(of_model[key][chosen], labels[chosen]) for chosen in draws] for key in CONDITIONS], axis=0
            ),
        )
        for model, of_model in outputs.items()
    }


@pytest.fixture(scope="module")
def errors(outputs, data):
    return by_hand(calibration_error, outputs, data.labels)


def ends(estimate):
    return pytest.approx((estimate.low, estimate.high), abs=1e-6)


def percentiles(values):
    return tuple(np.percentile(values, (2.5, 97.5)))


def test_calibration_error_has_the_interval_of_a_bootstrap_by_hand(data, outputs, errors):
    record = tfq.evaluate_robustness(MODELS, data, config(), reference="float")
    for model in MODELS:
        result, (clean, mean) = record.model(model), errors[model]
        assert result.clean_ece.value == pytest.approx(calibration_error(outputs[model][None], data.labels))
        assert percentiles(clean) == ends(result.clean_ece)
        assert percentiles(mean) == ends(result.ece)
    increases = {model: mean - clean for model, (clean, mean) in errors.items()}
    assert percentiles(increases["int8"] - increases["float"]) == ends(record.model("int8").extra_ece)
    assert record.ece_reason is None and record.model("float").extra_ece.value is None
    assert all(item.ece.low is not None for item in (*record.corruptions, *record.conditions))


@pytest.fixture(scope="module")
def record_of_f1(data):
    return tfq.evaluate_robustness(MODELS, data, config(), reference="float", metric="f1")


@pytest.mark.parametrize(("name", "measure"), [("f1", macro_f1), ("mean_iou", mean_iou)])
def test_metric_without_scores_of_examples_has_paired_intervals(name, measure, data, outputs, record_of_f1):
    labels, record = data.labels, record_of_f1
    if name == "mean_iou":
        labels = np.eye(10, dtype=np.int64)[data.labels]
        split = tfq.Split(name="test", inputs=data.inputs, labels=labels, source="arrays")
        record = tfq.evaluate_robustness(MODELS, split, config(), reference="float", metric=name)
    draws = by_hand(measure, outputs, labels)
    result, (clean, mean) = record.model("int8"), draws["int8"]
    assert percentiles(mean) == ends(result.mean)
    assert percentiles(clean - mean) == ends(result.drop)
    base_clean, base_mean = draws["float"]
    assert percentiles((clean - mean) - (base_clean - base_mean)) == ends(result.extra_drop)
    assert record.interval_reason is None


def whole_images(outputs):
    """Decode one box for each example: the whole image, with the class and the score of the largest output."""
    (values,) = outputs
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(values), 1, 1))
    classes, scores = values.argmax(axis=1)[:, None], values.max(axis=1)[:, None]
    return tfq.Detections(boxes=boxes, classes=classes, scores=scores)


def test_average_precision_has_the_interval_of_images_that_are_repeated(data, outputs):
    metric = tfq.detection_metric(whole_images, name="whole_images", iou_threshold="0.5")
    labels = np.zeros((NUM_EXAMPLES, 1, 6), np.float32)
    labels[:, 0, 0], labels[:, 0, 3:5] = data.labels, 1
    split = tfq.Split(name="test", inputs=data.inputs, labels=labels, source="arrays")
    record = tfq.evaluate_robustness({"float": MODELS["float"]}, split, config(), metric=metric)
    clean = outputs["float"][None].astype(np.float32)
    draws = [metric.compute((clean[chosen],), labels[chosen]) for chosen in drawn_examples()]
    assert percentiles(draws) == ends(record.model("float").clean)
    assert record.interval_reason is None and record.model("float").drop.low is not None


def test_draws_of_models_that_are_not_paired_have_a_wider_difference(errors):
    # The comparison with the bootstrap by hand notices draws that differ between the models.
    paired = errors["int8"][1] - errors["float"][1]
    unpaired = errors["int8"][1] - np.random.default_rng(0).permutation(errors["float"][1])
    assert np.ptp(percentiles(unpaired)) > 2 * np.ptp(percentiles(paired))


def test_conditions_that_run_one_by_one_give_the_same_record(data, record_of_f1, monkeypatch):
    one = record_of_f1
    monkeypatch.setattr(runs, "MAX_KEPT_BYTES", 2 * NUM_EXAMPLES * 10 * 4)
    other = tfq.evaluate_robustness(MODELS, data, config(), reference="float", metric="f1")
    assert (one.models, one.conditions) == (other.models, other.conditions)


def test_outputs_that_do_not_fit_into_memory_give_no_interval_but_the_reason(data, monkeypatch):
    monkeypatch.setattr(runs, "MAX_KEPT_BYTES", 1000)
    record = tfq.evaluate_robustness(MODELS, data, config(), metric="f1")
    result = record.model("int8")
    assert result.mean.value is not None and result.mean.low is None and result.ece.low is None
    assert "limit" in record.interval_reason and "limit" in record.ece_reason


def test_function_as_a_metric_has_no_interval_but_the_reason(data):
    def spread(outputs, labels):
        return float(np.std(outputs))

    record = tfq.evaluate_robustness(MODELS, data, config(), metric=spread)
    assert record.model("int8").mean.low is None and "resampled" in record.interval_reason


def test_few_examples_give_no_interval_but_the_reason(data):
    few = tfq.Split(
        name="test", inputs={key: value[:6] for key, value in data.inputs.items()}, labels=data.labels[:6], source="a"
    )
    record = tfq.evaluate_robustness(MODELS, few, config())
    assert record.model("int8").ece.low is None
    assert "only 6 examples" in record.ece_reason and "only 6 examples" in record.interval_reason


def test_mean_and_difference_of_draws_are_those_of_each_draw():
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(3, 200))
    parts = [Statistic(value=float(row.mean()), num_examples=50, draws=row) for row in arrays]
    result = minus(average(parts[:2]), parts[2])
    expected = (arrays[0] + arrays[1]) / 2 - arrays[2]
    assert percentiles(expected) == ends(result.estimate()[0])


@pytest.mark.parametrize("value", [-3.0, 0.0, 3.0])
def test_an_interval_contains_its_number(value):
    draws = np.random.default_rng(0).uniform(-1, 1, size=400)
    estimate, _ = Statistic(value=value, num_examples=50, draws=draws).estimate()
    low, high = percentiles(draws)
    assert (estimate.low, estimate.high) == pytest.approx((min(low, value), max(high, value)))


def test_a_mean_with_a_missing_number_is_missing():
    assert average([Statistic(value=1.0, num_examples=5), None]) is None
    assert minus(None, Statistic(value=1.0, num_examples=5)) is None


def test_draws_that_are_often_undefined_give_no_interval_but_the_reason():
    draws = np.where(np.arange(100) < 20, np.nan, 1.0)
    estimate, reason = Statistic(value=1.0, num_examples=50, draws=draws).estimate()
    assert estimate.low is None and "20 of 100 resamples" in reason

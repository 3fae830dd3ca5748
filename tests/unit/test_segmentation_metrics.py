# SPDX-License-Identifier: Apache-2.0
"""Mean IoU, Dice and pixel accuracy against scikit-learn and loops over the classes, with positions to ignore."""

import numpy as np
import pytest
from messages import refused
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score

from tfq.data import Split
from tfq.errors import InputError
from tfq.evaluation import as_metric
from tfq.evaluation.scores import choose_metrics, compute_scores

CLASSES = 5
NAMES = ("pixel_accuracy", "mean_iou", "dice")


def scene(seed, ignored=0.2, n=12):
    """Return logits and masks in which class 3 has no label and class 4 does not occur at all."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 3, (n, 6, 7))
    logits = rng.normal(size=(n, 6, 7, CLASSES)) + 1.5 * np.eye(CLASSES)[masks]
    logits[..., 4] = -9
    masks[rng.random(masks.shape) < ignored] = -1
    return logits.astype(np.float32), masks


def oracle(name, predicted, masks):
    kept = masks != -1
    truth, answer = masks[kept], predicted[kept]
    if name == "pixel_accuracy":
        return accuracy_score(truth, answer)
    # The mean over the classes that occur in the labels or the predictions, which is scikit-learn's default.
    score = jaccard_score if name == "mean_iou" else f1_score
    return score(truth, answer, average="macro")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ignored", [0, 0.2, 0.95])
def test_segmentation_metrics_equal_scikit_learn(name, ignored):
    logits, masks = scene(1, ignored)
    expected = pytest.approx(oracle(name, logits.argmax(-1), masks), abs=1e-12)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    softmax = exponentials / exponentials.sum(-1, keepdims=True)
    forms = (logits, softmax, logits.argmax(-1).astype(np.uint8), np.rint(logits * 10).astype(np.int8))
    for outputs in forms[:3]:
        assert as_metric(name).compute((outputs,), masks) == expected
    quantized = oracle(name, forms[3].argmax(-1), masks)
    assert as_metric(name).compute((forms[3],), masks[..., None]) == pytest.approx(quantized, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_sigmoid_channel_is_two_classes(name):
    rng = np.random.default_rng(2)
    masks = rng.integers(-1, 2, (9, 4, 4)).astype(np.int16)
    outputs = rng.random((9, 4, 4, 1), np.float32)
    expected = oracle(name, (outputs[..., 0] > 0.5).astype(int), masks)
    assert as_metric(name).compute((outputs,), masks) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_states_of_parts_merge_to_the_same_value_and_table(name):
    metric, (logits, masks) = as_metric(name), scene(3)
    masks[4:6] = -1  # a part without any label
    states = [metric.state_of((logits[i : i + 2],), masks[i : i + 2]) for i in range(0, 12, 2)]
    merged = states[0]
    for state in states[1:]:
        merged = metric.merge(merged, state)
    assert metric.value_of(merged) == metric.compute((logits,), masks)
    whole = metric.table_of(metric.state_of((logits,), masks)).to_dict()
    assert metric.table_of(merged).to_dict() == whole


@pytest.mark.parametrize("name", NAMES)
def test_resampled_values_equal_those_of_repeated_examples(name):
    metric, (logits, masks) = as_metric(name), scene(4)
    weights = np.random.default_rng(5).multinomial(12, [1 / 12] * 12)
    repeated = np.repeat(np.arange(12), weights)
    expected = oracle(name, logits[repeated].argmax(-1), masks[repeated])
    assert metric.resampler((logits,), masks)(weights) == pytest.approx(expected, abs=1e-12)
    masks[3] = -1
    only_ignored = np.eye(12, dtype=np.int64)[3]
    assert np.isnan(metric.resampler((logits,), masks)(only_ignored))


def test_table_has_the_figures_of_each_class_and_the_ignored_pixels():
    logits, masks = scene(6)
    table = as_metric("mean_iou").table_of(as_metric("mean_iou").state_of((logits,), masks))
    kept = masks != -1
    matrix = confusion_matrix(masks[kept], logits.argmax(-1)[kept], labels=range(4)).astype(float)
    assert table.rows == ("0", "1", "2", "3", "ignored")  # class 4 occurs nowhere
    assert (table.columns, table.counts) == (("IoU", "Dice", "precision", "recall", "pixels"), ("pixels",))
    hits, labeled, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        expected = [
            hits / (labeled + predicted - hits),
            2 * hits / (labeled + predicted),
            hits / predicted,
            hits / labeled,
            labeled,
        ]
    np.testing.assert_allclose(table.values[:4], np.stack(expected, 1), rtol=1e-12)
    assert table.values[4, 4] == (~kept).sum() and np.isnan(table.values[4, :4]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("as_classes", [False, True])
def test_an_undeclared_255_is_an_error_that_names_the_setting(name, as_classes):
    logits, masks = scene(7, ignored=0)
    masks = masks.astype(np.uint8)
    masks[2, 0, :3] = 255
    outputs = logits.argmax(-1).astype(np.int32) if as_classes else logits
    with refused(InputError, field="labels", got=255, limit="ignored-labels", word="data.ignore_label=255"):
        as_metric(name).compute((outputs,), masks)


def test_bad_segmentation_outputs_and_labels_are_refused():
    metric, (logits, masks) = as_metric("dice"), scene(8)
    with refused(InputError, field="labels", got=(12, 12, 14), word="data.label_resize"):
        metric.compute((logits,), masks.repeat(2, 1).repeat(2, 2))
    with refused(InputError, field="labels", got=-2):
        metric.compute((logits,), np.where(masks == 1, -2, masks))
    with refused(InputError, field="outputs", got=300):
        metric.compute((np.full(masks.shape, 300),), masks)
    with refused(InputError, field="data.ignore_label"):
        metric.compute((logits,), np.full_like(masks, -1))


def test_the_agreement_of_sigmoid_masks_is_that_of_their_pixels():
    rng = np.random.default_rng(5)
    values, expected = rng.uniform(size=(2, 6, 8, 8, 1))
    labels = rng.integers(0, 2, (6, 8, 8))
    data = Split(name="test", inputs={"x": np.zeros((6, 8, 8, 1))}, labels=labels, source="arrays")
    metric = as_metric("mean_iou")
    choice = choose_metrics([metric], ["mask"], [False], reconstructs=False, output="")
    scores = compute_scores((values,), [expected], data, choice, reconstructs=False, names=["mask"])
    assert scores["agreement"] == pytest.approx(((values > 0.5) == (expected > 0.5)).mean())
    # What reading the width as classes would give.
    assert scores["agreement"] != pytest.approx((values[..., 0].argmax(-1) == expected[..., 0].argmax(-1)).mean())


@pytest.mark.parametrize(
    ("labels", "name"), [(np.zeros((6, 8, 8), np.int64), "mean_iou"), (np.zeros((6, 2, 9)), "coco_map")]
)
def test_a_missing_accuracy_names_the_metric_for_the_labels(labels, name):
    values = np.random.default_rng(0).uniform(size=(6, 8, 8, 3))
    data = Split(name="test", inputs={"x": np.zeros((6, 8, 8, 1))}, labels=labels, source="arrays")
    choice = choose_metrics([], ["maps"], [False], reconstructs=False, output="")
    scores = compute_scores((values,), None, data, choice, reconstructs=False, names=["maps"])
    assert scores["accuracy"] is None and name in scores["accuracy_reason"]

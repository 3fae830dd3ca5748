# SPDX-License-Identifier: Apache-2.0
"""Outputs to boxes, non-maximum suppression, labels of boxes, and the matching of both, without TensorFlow."""

import itertools

import numpy as np
import pytest
from messages import refused

import tfq
from tfq.data.box_labels import check_box_labels, pad_boxes
from tfq.evaluation.detection.coco import figures, match, weighted_map
from tfq.evaluation.detection.decoding import convention_of, decode_op, decode_outputs_by_shape
from tfq.evaluation.detection.suppression import box_iou

IMAGES, ROWS = 6, 8


def random_boxes(rng, *shape):
    corners = np.sort(rng.random((*shape, 2, 2)), axis=-2)
    return corners.reshape(*shape, 4)


@pytest.fixture
def op_outputs():
    """Return boxes, classes, scores and counts of six images."""
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.random((IMAGES, ROWS)), axis=1)
    return random_boxes(rng, IMAGES, ROWS), rng.integers(0, 3, (IMAGES, ROWS)).astype(float), scores, np.arange(2.0, 8)


@pytest.fixture
def labels():
    rng = np.random.default_rng(1)
    rows = [np.column_stack([rng.integers(0, 3, k), random_boxes(rng, k), np.zeros((k, 2))]) for k in range(IMAGES)]
    return pad_boxes(
        [np.concatenate([row[:, :6], np.full((len(row), 1), 50.0)], axis=1) for row in rows], 6, [(40, 60)] * 6
    )


def test_box_iou_equals_counted_pixels():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (9, 2, 2))
    boxes = np.sort(corners, axis=1).reshape(9, 4)
    masks = np.zeros((9, 12, 12), bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    for first, second in itertools.product(range(9), repeat=2):
        union = (masks[first] | masks[second]).sum()
        expected = (masks[first] & masks[second]).sum() / union if union else 0
        assert box_iou(boxes[first][None], boxes[second][None])[0, 0] == pytest.approx(expected)


def test_suppression_keeps_boxes_that_no_better_one_overlaps():
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 60), np.round(rng.random(60), 1)
    kept = tfq.non_max_suppression(boxes, scores, iou_threshold=0.3, max_detections=100)
    expected: list[int] = []
    for index in sorted(range(60), key=lambda index: (-scores[index], index)):
        if all(box_iou(boxes[index][None], boxes[other][None])[0, 0] <= 0.3 for other in expected):
            expected.append(index)
    assert kept.tolist() == expected
    assert 5 < len(kept) < 60
    assert tfq.non_max_suppression(boxes, scores, iou_threshold=0.3, max_detections=4).tolist() == expected[:4]
    with pytest.raises(tfq.InputError, match="iou_threshold"):
        tfq.non_max_suppression(boxes, scores, iou_threshold=50)


def test_every_order_of_the_detection_op_is_recognized(op_outputs):
    reference = decode_op(*op_outputs)
    for order in itertools.permutations(range(4)):
        outputs = tuple(op_outputs[index] for index in order)
        roles = convention_of(outputs)
        assert [order[roles[name]] for name in ("boxes", "classes", "scores", "counts")] == [0, 1, 2, 3]
        decoded = decode_outputs_by_shape(outputs)
        assert np.array_equal(decoded.boxes, reference.boxes) and np.array_equal(decoded.classes, reference.classes)
    assert (reference.classes >= 0).sum(axis=1).tolist() == op_outputs[3].tolist()


def test_outputs_that_may_be_classes_or_scores_are_an_error(op_outputs):
    boxes, classes, _, counts = op_outputs
    with pytest.raises(tfq.InputError) as caught:
        convention_of((boxes, classes % 2, 1 - classes % 2, counts))
    assert caught.value.expected == "classes and scores"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda boxes: boxes * 320, "pixels"),
        (lambda boxes: boxes[..., [2, 3, 0, 1]], "ymin"),
        (lambda boxes: np.where(boxes > 0.9, np.nan, boxes), "NaN"),
    ],
)
def test_boxes_of_another_convention_are_an_error(op_outputs, labels, change, word):
    boxes, *others = op_outputs
    metric = tfq.registry.get(tfq.Metric, "coco_map")
    assert 0 <= metric.compute(op_outputs, labels) <= 1
    with refused(tfq.InputError, field="outputs", word=word):
        metric.compute((change(boxes), *others), labels)


def test_logits_are_not_taken_for_scores():
    boxes = random_boxes(np.random.default_rng(0), 2, 5)
    with pytest.raises(tfq.InputError, match="sigmoid"):
        tfq.decode_raw(boxes, np.random.default_rng(1).normal(size=(2, 5, 3)))


def test_raw_outputs_are_suppressed_within_each_class():
    boxes = np.asarray([[[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.48], [0.6, 0.6, 0.9, 0.9]]])
    scores = np.asarray([[[0.9, 0.0], [0.8, 0.7], [0.005, 0.4]]])
    found = tfq.decode_raw(boxes, scores, max_detections=4)
    assert found.classes.tolist() == [[0, 1, 1, -1]]
    assert found.scores.tolist() == [[0.9, 0.7, 0.4, 0]]
    assert found.boxes[0, 1].tolist() == [0, 0, 0.5, 0.48]


def test_four_classes_are_not_taken_for_boxes():
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 3, 20), rng.random((3, 20, 4))
    assert convention_of((scores, boxes)) == {"boxes": 1, "scores": 0}
    with refused(tfq.InputError, got=((3, 20, 4), (3, 20, 4))):
        convention_of((boxes, boxes))


@pytest.mark.parametrize("shapes", [[(2, 10)], [(2, 5, 4), (2, 6, 3)], [(2, 5, 3), (2, 5), (2, 5), (2,)]])
def test_unknown_outputs_are_an_error_with_their_shapes(shapes):
    with pytest.raises(tfq.InputError) as caught:
        decode_outputs_by_shape(tuple(np.zeros(shape) for shape in shapes))
    assert caught.value.got == tuple(shapes)


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ((1, 0, 0), 0.5, "whole"),
        ((1, 0, 3), 320.0, "pixels"),
        ((1, 0, 5), 0.3, "is_crowd"),
        ((1, 0, 1), np.nan, "NaN"),
        ((1, 0, 8), 0.0, "size"),
    ],
)
def test_invalid_labels_are_an_error_with_the_example(labels, place, value, word):
    check_box_labels(labels)
    labels[place] = value
    with refused(tfq.InputError, field="labels[1]", word=word):
        check_box_labels(labels)
    with pytest.raises(tfq.InputError, match="max_boxes"):
        check_box_labels(labels[:, 0])


def test_merged_states_are_one_state(op_outputs, labels):
    metric = tfq.registry.get(tfq.Metric, "coco_map")
    whole = metric.state_of(op_outputs, labels)
    parts = [metric.state_of(tuple(o[part] for o in op_outputs), labels[part]) for part in (slice(0, 1), slice(1, 6))]
    merged = metric.merge(*parts)
    assert all(np.array_equal(merged[name], whole[name]) for name in whole)


def test_weights_are_repeated_images(op_outputs, labels):
    boxes, classes, scores, counts = op_outputs
    found = decode_op(boxes, classes, np.round(scores, 1), counts)  # with equal scores
    matches = match(found, labels)
    compute = weighted_map(matches, slice(None))
    assert compute(np.ones(IMAGES, int)) == pytest.approx(np.mean(figures(matches)[1][:, 0]), abs=1e-12)
    for seed in range(20):
        weights = np.random.default_rng(seed).integers(0, 4, IMAGES)
        weights[5] += not weights[1:].any()
        chosen = np.repeat(np.arange(IMAGES), weights)
        repeated = tfq.Detections(boxes=found.boxes[chosen], scores=found.scores[chosen], classes=found.classes[chosen])
        _, values = figures(match(repeated, labels[chosen]))
        assert compute(weights) == pytest.approx(np.mean(values[:, 0]), abs=1e-12)


def test_labels_without_areas_have_no_figures_by_size(op_outputs, labels):
    found = decode_op(*op_outputs)
    _, with_areas = figures(match(found, labels))
    _, without = figures(match(found, labels[..., :6]))
    np.testing.assert_allclose(without[:, :3], with_areas[:, :3], atol=1e-12)
    assert np.isnan(without[:, 3:6]).all() and not np.isnan(with_areas[:, 3:6]).all()


def test_labels_without_any_box_are_an_error(op_outputs, labels):
    labels[..., 0] = -1
    with refused(tfq.InputError, field="labels", got=0):
        tfq.registry.get(tfq.Metric, "coco_map").compute(op_outputs, labels)


def test_a_decode_function_makes_a_metric(op_outputs, labels):
    def decode(outputs):
        boxes, classes, scores = outputs
        return tfq.Detections(boxes=boxes[..., [1, 0, 3, 2]], scores=scores, classes=classes)

    boxes, classes, scores, _ = op_outputs
    metric, full = tfq.detection_metric(decode, name="mine"), np.full(IMAGES, float(ROWS))
    expected = tfq.registry.get(tfq.Metric, "coco_map").compute((boxes, classes, scores, full), labels)
    assert metric.compute((boxes[..., [1, 0, 3, 2]], classes, scores), labels) == expected
    at_half = tfq.detection_metric(decode, name="mine50", iou_threshold="0.5")
    assert at_half.compute((boxes[..., [1, 0, 3, 2]], classes, scores), labels) >= expected
    wrong = tfq.detection_metric(lambda outputs: outputs, name="wrong")
    with pytest.raises(tfq.InputError, match=r"tfq\.Detections"):
        wrong.compute(op_outputs, labels)
    with pytest.raises(tfq.InputError, match="iou_threshold"):
        tfq.detection_metric(decode, name="mine", iou_threshold="0.6")

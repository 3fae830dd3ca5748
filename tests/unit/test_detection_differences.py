# SPDX-License-Identifier: Apache-2.0
"""Images in which two detectors find different boxes: agreement, boxes without counterpart, pictures."""

import base64
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

import tfq
from tfq.data import Split
from tfq.data.box_labels import pad_boxes
from tfq.evaluation.detection.decoding import Detections
from tfq.evaluation.detection.differences import MIN_IOU, MIN_SCORE, SIDE, differing_boxes
from tfq.evaluation.pictures import GAP, outlined
from tfq.report.examples_content import examples_of_pair
from tfq.report.markdown import markdown_of
from tfq.report.page import page_of

LEFT, RIGHT, SHIFTED = (0.1, 0.1, 0.5, 0.5), (0.5, 0.5, 0.9, 0.9), (0.1, 0.2, 0.5, 0.6)
BLUE, ORANGE = (80, 170, 255), (255, 140, 20)


def detections(*images):
    """Return Detections of images, each a list of (class, score, box)."""
    size = max(map(len, images), default=0) or 1
    boxes, scores, classes = np.zeros((len(images), size, 4)), np.zeros((len(images), size)), None
    classes = np.full((len(images), size), -1)
    for place, image in enumerate(images):
        for row, (number, score, box) in enumerate(image):
            boxes[place, row], scores[place, row], classes[place, row] = box, score, number
    return Detections(boxes=boxes, scores=scores, classes=classes)


def differences(reference, model, limit=12, labels=None, channels=3, names=("cat", "dog")):
    count = len(reference)
    images = np.full((count, 16, 16, channels), 0.5, np.float32)
    images[:, :8] = 1
    data = Split(name="test", inputs={"x": images}, labels=None, source="arrays", class_names=names)
    found = {0: detections(*reference), 1: detections(*model)}
    outputs = [(np.full((count, 1), place),) for place in found]
    return differing_boxes(outputs[1], outputs[0], labels, data, lambda output: found[int(output[0][0, 0])], limit)


def iou(one, other):
    """Return the IoU of two boxes, from the areas of their grid of 1/1000."""
    masks = np.zeros((2, 1000, 1000), bool)
    for mask, box in zip(masks, (one, other), strict=True):
        top, left, bottom, right = (round(1000 * value) for value in box)
        mask[top:bottom, left:right] = True
    return (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


def test_equal_boxes_agree_and_are_not_listed():
    result = differences([[(0, 0.9, LEFT), (1, 0.8, RIGHT)]], [[(1, 0.7, RIGHT), (0, 0.95, LEFT)]])
    assert (result["kind"], result["count"], result["agreement"], result["examples"]) == ("boxes", 0, 1.0, [])


def test_the_agreement_is_the_mean_overlap_of_boxes_and_counterparts():
    reference = [(0, 0.9, LEFT), (1, 0.8, RIGHT)]
    result = differences([reference], [[(0, 0.9, SHIFTED)]])
    (item,) = result["examples"]
    assert item["agreement"] == pytest.approx(2 * iou(LEFT, SHIFTED) / 3)
    assert (item["reference_boxes"], item["boxes"], item["unmatched"], result["count"]) == (2, 1, 1, 1)
    assert item["differing"] == [{"by": "reference", "class": 1, "name": "dog", "score": 0.8, "other_score": None}]
    json.dumps(result, allow_nan=False)


def test_boxes_of_different_classes_are_no_counterparts():
    result = differences([[(0, 0.9, LEFT)]], [[(1, 0.6, LEFT)]])
    (item,) = result["examples"]
    assert (item["agreement"], item["unmatched"]) == (0, 2)
    assert [(box["by"], box["name"]) for box in item["differing"]] == [("reference", "cat"), ("model", "dog")]


def test_a_score_just_below_the_bound_is_shown_with_the_other():
    low, high = MIN_SCORE - 0.01, MIN_SCORE + 0.01
    result = differences([[(0, high, LEFT)]], [[(0, low, LEFT)]])
    (box,) = result["examples"][0]["differing"]
    assert (box["score"], box["other_score"]) == pytest.approx((high, low))
    assert differences([[(0, low, LEFT)]], [[]])["examples"] == []


def test_boxes_without_area_are_left_out():
    empty = [(0, 0.9, (0.5, 0.1, 0.5, 0.5)), (1, 0.8, (0.6, 0.1, 0.2, 0.5))]
    assert differences([[(0, 0.9, LEFT), *empty]], [[(0, 0.9, LEFT)]])["agreement"] == 1


def test_each_box_has_one_counterpart():
    twice = [(0, 0.9, LEFT), (0, 0.8, SHIFTED)]
    result = differences([twice], [[(0, 0.9, LEFT)]])
    (item,) = result["examples"]
    assert item["unmatched"] == 1 and item["agreement"] == pytest.approx(2 / 3)


def test_images_with_the_lowest_agreement_come_first():
    model = [[(0, 0.9, LEFT)], [(0, 0.9, SHIFTED)], [(0, 0.9, RIGHT)], []]
    result = differences([[(0, 0.9, LEFT)]] * 4, model, limit=3)
    assert [item["index"] for item in result["examples"]] == [2, 3, 1]
    assert result["count"] == 2
    assert result["agreement"] == pytest.approx((1 + iou(LEFT, SHIFTED)) / 4)


def test_the_pairs_have_the_largest_overlaps():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = rng.uniform(0, 0.3, (2, 3, 2))
        boxes = np.round(np.concatenate([corners, corners + 0.5], axis=-1), 3)
        one, other = ([(0, 0.9 - 0.1 * row, tuple(box)) for row, box in enumerate(image)] for image in boxes)
        result = differences([one], [other])
        # Oracle: take the best remaining pair until none reaches the bound.
        ious = {(a, b): iou(boxes[0, a], boxes[1, b]) for a, b in itertools.product(range(3), range(3))}
        total = 0.0
        while ious and max(ious.values()) >= MIN_IOU:
            (a, b), value = max(ious.items(), key=lambda item: item[1])
            total += value
            ious = {pair: v for pair, v in ious.items() if pair[0] != a and pair[1] != b}
        assert result["agreement"] == pytest.approx(2 * total / 6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_shows_labels_both_models_and_their_overlay(channels):
    labels = pad_boxes([np.asarray([[1, *RIGHT, 0, 9]], float)], 2, [(16, 16)])
    result = differences([[(0, 0.9, LEFT)]], [[(0, 0.9, SHIFTED)]], labels=labels, channels=channels)
    (item,) = result["examples"]
    assert result["panels"] == ["label", "reference", "model", "both"] and item["labels"] == 1
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["picture"]))))
    assert pixels.shape == (SIDE, 4 * SIDE + 3 * GAP, 3)
    parts = [pixels[:, place * (SIDE + GAP) :][:, :SIDE] for place in range(4)]
    colors = {entry["text"]: tuple(bytes.fromhex(entry["color"][1:])) for entry in result["legend"]}
    for part, box, color in (
        (parts[0], RIGHT, colors["1 dog"]),
        (parts[1], LEFT, colors["0 cat"]),
        (parts[2], SHIFTED, colors["0 cat"]),
        (parts[3], SHIFTED, ORANGE),
    ):
        drawn = (part == color).all(axis=-1)
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        ends = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
        np.testing.assert_allclose(ends, np.multiply(box, SIDE), atol=1)
        assert not drawn[rows[0] + 8 : rows[-1] - 8, columns[0] + 8 : columns[-1] - 8].any()
    assert (parts[3] == BLUE).all(axis=-1).any()


def test_boxes_without_counterpart_have_a_thick_border():
    result = differences([[(0, 0.9, LEFT), (0, 0.8, RIGHT)]], [[(0, 0.9, LEFT)]])
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(result["examples"][0]["picture"]))))[:, :SIDE]
    color = tuple(bytes.fromhex(result["legend"][0]["color"][1:]))
    row = (pixels[round(0.3 * SIDE)] == color).all(axis=-1), (pixels[round(0.7 * SIDE)] == color).all(axis=-1)
    assert 0 < row[0].sum() < row[1].sum()


@pytest.mark.parametrize("box", [(-1, -1, 2, 2), (0.999, 0.999, 1, 1), (0.5, 0.5, 0.5, 0.5), (1, 1, 1, 1)])
def test_boxes_at_the_edge_of_an_image_are_drawn(box):
    pixels = np.zeros((10, 20, 3), np.uint8)
    outlined(pixels, np.asarray(box, float), (9, 9, 9), 2)
    assert (pixels == 9).any()


def test_inputs_that_are_no_images_have_a_reason():
    data = Split(name="test", inputs={"x": np.zeros((1, 7), np.float32)}, labels=None, source="arrays")
    found = [detections([(0, 0.9, LEFT)]), detections([])]
    outputs = ((np.zeros((1, 1)),), (np.ones((1, 1)),))
    result = differing_boxes(*outputs, None, data, lambda output: found[int(output[0][0, 0])], 12)
    assert result["picture_reason"] and result["examples"][0]["picture"] is None


def test_an_evaluation_of_a_detector_lists_images(monkeypatch):
    """The metric brings the function that decodes boxes, so that a user's detector has pictures too."""
    metric = tfq.detection_metric(lambda outputs: detections([(0, 0.9, LEFT)]), name="mine")
    assert metric.detections((np.zeros((1, 2)),)).scores.tolist() == [[0.9]]


def test_the_page_names_boxes_that_only_one_model_finds():
    boxes = [(0, 0.9, LEFT), *((1, 0.8 - 0.02 * row, (0.05 * row, 0.8, 0.05 * row + 0.04, 0.9)) for row in range(10))]
    result = differences([boxes], [[(0, 0.9, LEFT), (1, 0.2, boxes[1][2])]])
    record = {"command": "evaluate", "evaluation": {"compared": 1, "differing_examples": result}, "config": {}}
    text, page = markdown_of(record), page_of(record)
    assert "1 dog: float 0.8, model 0.2; 1 dog: float 0.78, model none" in text and "and 2 more" in text
    assert "at least 0.3" in text and page.count("<img ") == 1 and "the float model&#x27;s boxes" in page
    section = examples_of_pair({"compared": 1, "differing_examples": result}, reference="A", model="B")
    assert "1 dog: A 0.8, B 0.2" in section.tables[0].rows[0][-1]

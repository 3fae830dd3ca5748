# SPDX-License-Identifier: Apache-2.0
"""COCO's mean average precision and the COCO source, against pycocotools on the same annotation file."""

import numpy as np
import pytest
from coco_oracle import class_precision, evaluate, twelve
from detection_scenes import digit_patches, photo_patches, simulated_detections, varied_scenes, write_coco

import tfq
from tfq.evaluation.detection.coco import FIGURES, figures


def as_outputs(detections, labels):
    """Return the outputs of TFLite's detection op for detections in pixels."""
    rows = max(len(item) for item in detections) or 1
    boxes, classes, scores = (np.zeros((len(labels), rows, *tail)) for tail in ((4,), (), ()))
    for image, items in enumerate(detections):
        height, width = labels[image, 0, -2:]
        for row, (number, (x, y, w, h), score) in enumerate(items):
            boxes[image, row] = y / height, x / width, (y + h) / height, (x + w) / width
            classes[image, row], scores[image, row] = number, score
    return boxes, classes, scores, np.asarray([len(item) for item in detections], float)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, request):
    """Return (annotation file, detections, labels that the source reads) of 50 scenes."""
    rng = np.random.default_rng(0)
    photos = photo_patches(rng.integers(0, 256, (20, 32, 32, 3)), np.arange(20) % 10)
    generated = varied_scenes(50, digit_patches(slice(0, 200)) + photos)
    path = write_coco(generated, tmp_path_factory.mktemp("scenes"))
    split = tfq.load_split(tfq.DataConfig(source=f"coco:{path}", resize=(32, 32)), "test")
    return path, simulated_detections(generated), split


def test_map_equals_pycocotools(scenes):
    path, detections, split = scenes
    outputs = as_outputs(detections, split.labels)
    oracle = evaluate(path, detections)
    for place, name in enumerate(("coco_map", "coco_ap50", "coco_ap75")):
        metric = tfq.registry.get(tfq.Metric, name)
        assert metric.compute(outputs, split.labels) == pytest.approx(oracle.stats[place], abs=1e-6)
    state = tfq.registry.get(tfq.Metric, "coco_map").state_of(outputs, split.labels)
    numbers, values = figures(state)
    np.testing.assert_allclose(np.nanmean(values[:, :12], axis=0), twelve(oracle), atol=1e-6)
    by_class = class_precision(oracle)
    assert list(numbers) == list(by_class)
    np.testing.assert_allclose(values[:, FIGURES.index("AP")], list(by_class.values()), atol=1e-6)


def test_map_differs_from_pycocotools_for_other_detections(scenes):
    path, detections, split = scenes
    outputs = as_outputs(detections, split.labels)
    outputs[0][:, :, 2] += 0.01
    value = tfq.registry.get(tfq.Metric, "coco_map").compute(outputs, split.labels)
    assert abs(value - evaluate(path, detections).stats[0]) > 1e-4


def test_the_source_returns_images_and_boxes(scenes):
    path, _, split = scenes
    assert split.inputs["x"].shape == (50, 32, 32, 3)
    assert split.labels.shape[2] == 9
    assert split.class_names[:2] == ("class 0", "class 1")
    from pycocotools.coco import COCO

    truth = COCO(str(path))
    for label, identity in zip(split.labels, sorted(truth.imgs), strict=True):
        image, entries = truth.imgs[identity], truth.loadAnns(truth.getAnnIds(identity))
        rows = label[label[:, 0] >= 0]
        assert (label[:, -2:] == [image["height"], image["width"]]).all()
        expected = [[entry["bbox"][1], entry["bbox"][0], *entry["bbox"][3:1:-1]] for entry in entries]
        pixels = rows[:, 1:5] * np.tile(label[0, -2:], 2)
        pixels[:, 2:] -= pixels[:, :2]
        np.testing.assert_allclose(pixels, np.reshape(expected, (-1, 4)), atol=1e-9)
        assert [entry["iscrowd"] for entry in entries] == rows[:, 5].tolist()
        assert [entry["area"] for entry in entries] == rows[:, 6].tolist()
        assert [(entry["category_id"] - 5) / 2 for entry in entries] == rows[:, 0].tolist()

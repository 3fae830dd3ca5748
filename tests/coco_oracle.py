# SPDX-License-Identifier: Apache-2.0
"""COCO's own evaluation code, as an oracle."""

import contextlib
import io
from pathlib import Path

import numpy as np
from detection_scenes import category_id
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def evaluate(annotations: Path, detections: list[list[tuple[int, list[float], float]]]) -> COCOeval:
    """Return pycocotools' evaluation of detections, in the order of the images in the annotation file."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        results = [
            {"image_id": image, "category_id": category_id(number), "bbox": box, "score": score}
            for image, rows in zip(sorted(truth.imgs), detections, strict=True)
            for number, box, score in rows
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def class_precision(evaluation: COCOeval) -> dict[int, float]:
    """Return AP by class for the classes that have boxes."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    values = {index: float(precision[:, :, index].mean()) for index in range(precision.shape[2])}
    return {index: value for index, value in values.items() if precision[0, 0, index] > -1}


def twelve(evaluation: COCOeval) -> np.ndarray:
    """Return COCO's twelve figures, NaN for those without boxes."""
    return np.where(evaluation.stats < 0, np.nan, evaluation.stats)


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

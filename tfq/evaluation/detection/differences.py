# SPDX-License-Identifier: Apache-2.0
"""Images in which a detector and its reference find different boxes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.data import AnySplit
from tfq.data.box_labels import PADDING
from tfq.evaluation.classes import class_text
from tfq.evaluation.detection.decoding import Detections
from tfq.evaluation.detection.suppression import box_iou
from tfq.evaluation.example_images import images_of
from tfq.evaluation.metric import class_name
from tfq.evaluation.pictures import (
    Color,
    Pixels,
    brightness,
    class_color,
    color_text,
    encoded,
    fitted,
    outlined,
    rgb,
    side_by_side,
)

# Boxes with a lower score are not compared: a detector returns many of them, and apps show none.
MIN_SCORE = 0.3
# Two boxes of one class are the same object if their IoU is at least this.
MIN_IOU = 0.5
# The longer side of a part of a picture, in pixels.
SIDE = 128
_MOST_BOXES = 8
_ORDER = "by the agreement of the boxes, the lowest first"
_REFERENCE: tuple[Color, str] = ((80, 170, 255), "the reference's boxes")
_MODEL: tuple[Color, str] = ((255, 140, 20), "the model's boxes")
_MOST_COLORS = 28


@dataclass(frozen=True, kw_only=True, eq=False)
class _Boxes:
    """The boxes of one image, by descending score: (m, 4), (m,) and (m,)."""

    boxes: NDArray
    scores: NDArray
    classes: NDArray

    def shown(self) -> "_Boxes":
        chosen = self.scores >= MIN_SCORE
        return _Boxes(boxes=self.boxes[chosen], scores=self.scores[chosen], classes=self.classes[chosen])


def differing_boxes(
    outputs: tuple[NDArray, ...],
    expected: tuple[NDArray, ...],
    labels: NDArray | None,
    data: AnySplit,
    decode: Callable[[tuple[NDArray, ...]], Detections],
    limit: int,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the images for which the boxes of a detector agree least with those of its reference.

    Boxes with an area, and with a score of at least `min_score`, are compared. Pairs of boxes of one class with an IoU
    of at least `min_iou` are formed, the largest IoU first. The agreement of an image is the sum of the IoUs of both
    boxes of each pair, divided by the number of boxes of both models: 1 if all boxes are equal, 0 if none has a
    counterpart, and 1 without any box.

    The result has the `kind` "boxes", `count` of the images with a box without counterpart, the mean `agreement`, the
    `order`, and `examples`: up to `limit` of the images whose agreement is below 1, each with its `index` in the data,
    `agreement`, the number of `labels` (null without), `reference_boxes` and `boxes`, how many of them are `unmatched`,
    and `differing`: boxes without counterpart, each with its `by` ("reference" or "model"), `class`, `name`, `score`,
    and `other_score`: the highest score that the other model has for the class there, null if it has none. The parts
    of a `picture` are named in `panels`: the labels, the reference's boxes, the model's, and both; boxes without
    counterpart have a thick border. `picture_reason` and `legend` are as in `differing_positions`.

    Args:
        outputs: The real values of all outputs of the model, (n, ...) each.
        expected: The reference's.
        labels: The n labels, see `tfq.data.box_labels`; None if there are none.
        data: The examples.
        decode: outputs -> `Detections`.
        limit: The largest number of images.
        names: The names of class 0, 1, ...; None for those of `data`.
        limit: The largest number of examples.
    """
    names = data.class_names if names is None else names
    models = [_images(decode(item)) for item in (expected, outputs)]
    pairs = [_pairs(*(item.shown() for item in images)) for images in zip(*models, strict=True)]
    shown = [[item.shown() for item in images] for images in models]
    counts = np.array([[len(item.scores) for item in images] for images in shown]).T
    totals = counts.sum(axis=1)
    sums = np.array([2 * sum(iou for _, _, iou in items) for items in pairs])
    agreement = np.divide(sums, totals, out=np.ones(len(totals)), where=totals > 0)
    unmatched = totals - 2 * np.array([len(items) for items in pairs])
    order = np.argsort(agreement, kind="stable")[:limit]
    chosen = [int(index) for index in order if agreement[index] < 1]
    images, picture_reason = images_of(data, chosen)
    pictures: list[str | None] = [None] * len(chosen)
    legend: list[dict[str, str]] = []
    if images is not None:
        scenes = [
            [*([] if labels is None else [_labeled(labels[index])]), shown[0][index], shown[1][index]]
            for index in chosen
        ]
        pictures, legend = _pictures(images, scenes, [pairs[index] for index in chosen], names)
    return {
        "kind": "boxes",
        "count": int((unmatched > 0).sum()),
        "agreement": float(agreement.mean()),
        "min_score": MIN_SCORE,
        "min_iou": MIN_IOU,
        "order": _ORDER,
        "picture_reason": picture_reason,
        "panels": [*([] if labels is None else ["label"]), "reference", "model", "both"],
        "legend": legend,
        "examples": [
            {
                "index": index,
                "agreement": float(agreement[index]),
                "labels": None if labels is None else int((labels[index, :, 0] != PADDING).sum()),
                "reference_boxes": int(counts[index, 0]),
                "boxes": int(counts[index, 1]),
                "unmatched": int(unmatched[index]),
                "differing": _differing(models[0][index], models[1][index], pairs[index], names),
                "picture": pictures[place],
            }
            for place, index in enumerate(chosen)
        ],
    }


def _images(detections: Detections) -> list[_Boxes]:
    results = []
    for boxes, scores, classes in zip(detections.boxes, detections.scores, detections.classes, strict=True):
        rows = np.flatnonzero((classes >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1))
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        results.append(_Boxes(boxes=boxes[rows], scores=scores[rows], classes=classes[rows].astype(np.int64)))
    return results


def _same_class_iou(one: _Boxes, other: _Boxes) -> NDArray[np.float64]:
    """Return the IoU of all pairs, (boxes of one, boxes of the other); 0 for different classes."""
    return np.where(one.classes[:, None] == other.classes[None], box_iou(one.boxes, other.boxes), 0)


def _pairs(reference: _Boxes, model: _Boxes) -> list[tuple[int, int, float]]:
    """Return the boxes that belong together as (place in reference, place in model, IoU), the largest IoU first."""
    ious = _same_class_iou(reference, model)
    results = []
    while ious.size and ious.max() >= MIN_IOU:
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        results.append((int(row), int(column), float(ious[row, column])))
        ious[row], ious[:, column] = 0, 0
    return results


def _differing(
    reference: _Boxes, model: _Boxes, pairs: list[tuple[int, int, float]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the boxes without counterpart, the most certain first, at most `_MOST_BOXES`."""
    results = []
    for by, own, other, side in (("reference", reference, model, 0), ("model", model, reference, 1)):
        is_near = _same_class_iou(own, other) >= MIN_IOU
        matched = {pair[side] for pair in pairs}
        for place in range(len(own.shown().scores)):
            if place in matched:
                continue
            near = other.scores[is_near[place]]
            number = int(own.classes[place])
            results.append(
                {
                    "by": by,
                    "class": number,
                    "name": class_name(number, names),
                    "score": float(own.scores[place]),
                    "other_score": float(near.max()) if len(near) else None,
                }
            )
    return sorted(results, key=lambda item: -float(str(item["score"])))[:_MOST_BOXES]


def _labeled(rows: NDArray) -> _Boxes:
    rows = rows[rows[:, 0] != PADDING]
    return _Boxes(boxes=rows[:, 1:5], scores=np.ones(len(rows)), classes=rows[:, 0].astype(np.int64))


def _pictures(
    images: NDArray, scenes: list[list[_Boxes]], pairs: list[list[tuple[int, int, float]]], names: Sequence[str]
) -> tuple[list[str | None], list[dict[str, str]]]:
    """Return a picture of each image, and the legend. scenes: (labels,) the reference's boxes, the model's."""
    present = sorted({int(number) for scene in scenes for boxes in scene for number in boxes.classes})
    # Class 0 is an object here, and not the background.
    are_few = not present or present[-1] < _MOST_COLORS
    colors = {number: class_color(1 + (number if are_few else place)) for place, number in enumerate(present)}
    pictures: list[str | None] = []
    for image, scene, matches in zip(brightness(images), scenes, pairs, strict=True):
        pixels = rgb(image * 0.6, *fitted(image.shape, SIDE))
        matched = [*[None] * (len(scene) - 2), {pair[0] for pair in matches}, {pair[1] for pair in matches}]
        parts = [_drawn(pixels, boxes, colors, places) for boxes, places in zip(scene, matched, strict=True)]
        parts.append(_overlaid(pixels, scene[-2], scene[-1]))
        pictures.append(encoded(side_by_side(parts)))
    legend = [(colors[number], class_text(number, class_name(number, names))) for number in present]
    return pictures, [{"color": color_text(color), "text": text} for color, text in (*legend, _REFERENCE, _MODEL)]


def _drawn(pixels: Pixels, boxes: _Boxes, colors: dict[int, Color], matched: set[int] | None) -> Pixels:
    """Return a copy with boxes, the most certain on top. Those that are not in `matched` have a thick border."""
    result = pixels.copy()
    for place in reversed(range(len(boxes.boxes))):
        is_thick = matched is not None and place not in matched
        outlined(result, boxes.boxes[place], colors[int(boxes.classes[place])], 4 if is_thick else 2)
    return result


def _overlaid(pixels: Pixels, reference: _Boxes, model: _Boxes) -> Pixels:
    result = pixels.copy()
    for boxes, color, thickness in ((reference, _REFERENCE[0], 3), (model, _MODEL[0], 1)):
        for box in boxes.boxes:
            outlined(result, box, color, thickness)
    return result

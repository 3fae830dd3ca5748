# SPDX-License-Identifier: Apache-2.0
"""From a detector's outputs to boxes: those of TFLite's detection op, or arrays of boxes and scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.detection.suppression import non_max_suppression

EXPECTED = (
    "two outputs, boxes (n, anchors, 4) and scores (n, anchors, classes); or the four of TFLite's detection op, boxes "
    "(n, m, 4), classes (n, m), scores (n, m) and counts (n,), in any order"
)
# The settings of `decode_raw` if none are chosen.
IOU_THRESHOLD, SCORE_THRESHOLD, MAX_DETECTIONS = 0.5, 0.01, 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """The boxes that a detector finds in n images, up to m in each.

    Args:
        boxes: (n, m, 4) floats: ymin, xmin, ymax, xmax, as fractions of the image's height and width.
        scores: (n, m) floats, higher for more certain ones.
        classes: (n, m) whole numbers from 0 on; -1 marks rows without a detection.

    Raises:
        InputError: The shapes do not fit each other, or a value cannot be right: NaN, a class that is not a whole
            number, coordinates in pixels, or another order of the coordinates. The message says which.
    """

    boxes: NDArray
    scores: NDArray
    classes: NDArray

    def __post_init__(self) -> None:
        """Check shapes and values."""
        shapes = (self.boxes.shape, self.scores.shape, self.classes.shape)
        if len(shapes[1]) != 2 or shapes[0] != (*shapes[1], 4) or shapes[2] != shapes[1]:
            raise InputError(
                f"detections: boxes, scores and classes have the shapes {', '.join(map(str, map(list, shapes)))}, "
                "expected (n, m, 4), (n, m) and (n, m)",
                field="outputs",
                expected="(n, m, 4), (n, m), (n, m)",
                got=shapes,
            )
        _check_values(self.boxes, self.scores, self.classes)


Decoder = Callable[[tuple[NDArray[Any], ...]], Detections]


def _check_values(boxes: NDArray, scores: NDArray, classes: NDArray) -> None:
    valid = classes >= 0
    if not np.isfinite(boxes[valid]).all() or not np.isfinite(scores[valid]).all() or np.isnan(classes).any():
        example = int(np.argmax((valid & ~(np.isfinite(boxes).all(axis=-1) & np.isfinite(scores))).any(axis=1)))
        raise InputError(
            f"the detections of example {example} contain NaN or infinity. Check the model's weights and inputs",
            field="outputs",
            expected="finite numbers",
            got=float("nan"),
        )
    if (classes != np.rint(classes)).any():
        index = tuple(np.argwhere(classes != np.rint(classes))[0])
        raise InputError(
            f"the class of detection {index[1]} of example {index[0]} is {classes[index]:g}, expected a whole number. "
            "Check the order of the outputs, or decode them with a function of your own (docs/detection.md)",
            field="outputs",
            expected="whole numbers",
            got=float(classes[index]),
        )
    if not valid.any():
        return
    corners = boxes[valid]
    if np.mean((np.abs(corners) > 2).any(axis=-1)) > 0.5:
        raise InputError(
            f"most boxes are outside of the image: they extend to {np.abs(corners).max():g}, expected fractions of the "
            "height and width in [0, 1]. If these are pixels, divide them in a decode function (docs/detection.md)",
            field="outputs",
            expected="[0, 1]",
            got=float(np.abs(corners).max()),
        )
    inverted = np.mean((corners[:, 2] < corners[:, 0]) | (corners[:, 3] < corners[:, 1]))
    if inverted > 0.5:
        raise InputError(
            f"{inverted:.0%} of the boxes have ymax < ymin or xmax < xmin, expected ymin, xmin, ymax, xmax. If they "
            "are centers and sizes, or have another order, convert them in a decode function (docs/detection.md)",
            field="outputs",
            expected=("ymin", "xmin", "ymax", "xmax"),
            got=corners[0].tolist(),
        )


def decode_outputs_by_shape(outputs: tuple[NDArray[Any], ...]) -> Detections:
    """Return the detections of outputs whose meaning follows from their number and shapes; see `convention_of`.

    Args:
        outputs: All outputs of the model, real values.

    Raises:
        InputError: The outputs have none of the known forms, or their values do not fit.
    """
    roles = convention_of(outputs)
    arrays = {role: outputs[index] for role, index in roles.items()}
    if "counts" in arrays:
        return decode_op(arrays["boxes"], arrays["classes"], arrays["scores"], arrays["counts"])
    return decode_raw(arrays["boxes"], arrays["scores"])


def convention_of(outputs: Sequence[NDArray]) -> dict[str, int]:
    """Return the index of the output for each role: boxes and scores; classes and counts of TFLite's detection op.

    Exporters order the four outputs of TFLite's detection op in different ways. Boxes and counts have
    distinct shapes. Classes are whole numbers, and scores are in [0, 1].

    Raises:
        InputError: The outputs have none of the known forms, or two of them could be the same.
    """
    shapes = [np.shape(output) for output in outputs]
    if len(shapes) == 2:
        return _raw_roles(outputs)
    boxes = [index for index, shape in enumerate(shapes) if len(shape) == 3 and shape[2] == 4]
    if len(shapes) != 4 or len(boxes) != 1:
        raise _unknown(shapes)
    n, m = shapes[boxes[0]][:2]
    counts = [index for index, shape in enumerate(shapes) if shape == (n,) or (shape == (n, 1) and m != 1)]
    rows = [index for index, shape in enumerate(shapes) if shape == (n, m) and index not in counts]
    if len(counts) != 1 or len(rows) != 2:
        raise _unknown(shapes)
    could_be_classes = [bool((outputs[index] == np.rint(outputs[index])).all()) for index in rows]
    could_be_scores = [bool(((outputs[index] >= 0) & (outputs[index] <= 1)).all()) for index in rows]
    forward, backward = could_be_classes[0] and could_be_scores[1], could_be_classes[1] and could_be_scores[0]
    if not forward and not backward:
        raise InputError(
            f"outputs {rows[0]} and {rows[1]}: expected one with whole class numbers and one with scores in [0, 1]. "
            "Decode the outputs with a function of your own (docs/detection.md)",
            field="outputs",
            expected="classes and scores",
            got=shapes,
        )
    if forward and backward and (not could_be_classes[0] or not np.array_equal(outputs[rows[0]], outputs[rows[1]])):
        raise InputError(
            f"outputs {rows[0]} and {rows[1]} could both be the classes and the scores: all values are 0 or 1. Decode "
            "the outputs with a function of your own (docs/detection.md)",
            field="outputs",
            expected="classes and scores",
            got=shapes,
        )
    classes, scores = rows if forward else rows[::-1]
    return {"boxes": boxes[0], "classes": classes, "scores": scores, "counts": counts[0]}


def _raw_roles(outputs: Sequence[NDArray]) -> dict[str, int]:
    shapes = [np.shape(output) for output in outputs]
    if any(len(shape) != 3 for shape in shapes) or shapes[0][:2] != shapes[1][:2]:
        raise _unknown(shapes)
    candidates = [index for index, shape in enumerate(shapes) if shape[2] == 4]
    if len(candidates) == 2:  # four classes
        candidates = [index for index in candidates if _are_ordered(outputs[index])]
    if len(candidates) != 1:
        raise _unknown(shapes)
    return {"boxes": candidates[0], "scores": 1 - candidates[0]}


def _are_ordered(boxes: NDArray) -> bool:
    return bool(np.mean((boxes[..., 2] >= boxes[..., 0]) & (boxes[..., 3] >= boxes[..., 1])) > 0.9)


def _unknown(shapes: Sequence[tuple[int, ...]]) -> InputError:
    return InputError(
        f"the model has the outputs {', '.join(str(list(shape)) for shape in shapes)}, expected {EXPECTED}. Decode "
        "other outputs with a function of your own (docs/detection.md)",
        field="outputs",
        expected=EXPECTED,
        got=tuple(shapes),
    )


def decode_op(boxes: NDArray, classes: NDArray, scores: NDArray, counts: NDArray) -> Detections:
    """Return the detections of TFLite's op TFLite_Detection_PostProcess, which has applied NMS.

    Args:
        boxes: (n, m, 4).
        classes: (n, m).
        scores: (n, m).
        counts: (n,) or (n, 1): how many of the m rows are detections; the others may contain anything.

    Raises:
        InputError: As for `Detections`, or a count is not in [0, m].
    """
    counts = np.asarray(counts).reshape(-1)
    if len(counts) != len(boxes) or (counts < 0).any() or (counts > boxes.shape[1]).any():
        raise InputError(
            f"the counts are {counts.min():g} to {counts.max():g}, expected 0 to {boxes.shape[1]} detections",
            field="outputs",
            expected=(0, boxes.shape[1]),
            got=(float(counts.min()), float(counts.max())),
        )
    is_row = np.arange(boxes.shape[1]) < np.rint(counts)[:, None]
    return Detections(
        boxes=np.where(is_row[..., None], boxes, 0),
        scores=np.where(is_row, scores, 0),
        classes=np.where(is_row, classes, -1),
    )


def decode_raw(
    boxes: NDArray,
    scores: NDArray,
    *,
    iou_threshold: float = IOU_THRESHOLD,
    score_threshold: float = SCORE_THRESHOLD,
    max_detections: int = MAX_DETECTIONS,
) -> Detections:
    """Return detections by non-maximum suppression within each class.

    Args:
        boxes: (n, anchors, 4): ymin, xmin, ymax, xmax as fractions of the image.
        scores: (n, anchors, classes) in [0, 1], without a class for the background.
        iou_threshold: As for `non_max_suppression`.
        score_threshold: Boxes whose score for a class is lower are left out for it.
        max_detections: How many detections to keep in an image, of all classes; COCO uses up to 100.

    Returns:
        (n, max_detections) rows, by descending score; of equal scores, the lower class and anchor first.

    Raises:
        InputError: As for `Detections`, or scores are outside of [0, 1].
    """
    boxes, scores = np.asarray(boxes), np.asarray(scores)
    if scores.size and not (scores.min() >= -1e-6 and scores.max() <= 1 + 1e-6):
        raise InputError(
            f"the scores are {scores.min():g} to {scores.max():g}, expected [0, 1]. If these are logits, apply a "
            "sigmoid or softmax in the model or in a decode function (docs/detection.md)",
            field="outputs",
            expected=(0, 1),
            got=(float(scores.min()), float(scores.max())),
        )
    n, _, num_classes = scores.shape
    found = Detections(boxes=boxes, scores=scores.max(axis=2), classes=scores.argmax(axis=2))  # for its checks
    results = (np.zeros((n, max_detections, 4)), np.zeros((n, max_detections)), np.full((n, max_detections), -1))
    for image in range(n):
        rows = []
        for number in range(num_classes):
            chosen = np.flatnonzero(scores[image, :, number] >= score_threshold)
            kept = non_max_suppression(
                found.boxes[image, chosen],
                scores[image, chosen, number],
                iou_threshold=iou_threshold,
                max_detections=max_detections,
            )
            rows += [(scores[image, index, number], number, index) for index in chosen[kept]]
        rows = sorted(rows, key=lambda row: (-row[0], row[1], row[2]))[:max_detections]
        for place, (score, number, index) in enumerate(rows):
            results[0][image, place] = boxes[image, index]
            results[1][image, place] = score
            results[2][image, place] = number
    return Detections(boxes=results[0], scores=results[1], classes=results[2])

# SPDX-License-Identifier: Apache-2.0
"""Boxes: intersection over union, and non-maximum suppression."""

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError


def box_iou(boxes: NDArray, others: NDArray, is_crowd: NDArray | None = None) -> NDArray[np.float64]:
    """Return the intersection over union of all pairs of boxes.

    Args:
        boxes: (a, 4): ymin, xmin, ymax, xmax.
        others: (b, 4).
        is_crowd: (b,) booleans; for a crowd, the intersection is divided by the area of the first box alone, as COCO
            does. None: there is no crowd.

    Returns:
        (a, b), in [0, 1]; 0 for two boxes without area.
    """
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = np.maximum(bottom_right - top_left, 0).prod(axis=-1)
    areas, other_areas = (np.maximum(array[:, 2:] - array[:, :2], 0).prod(axis=-1) for array in (boxes, others))
    union = areas[:, None] + other_areas[None] - intersection
    if is_crowd is not None:
        union = np.where(is_crowd[None], areas[:, None], union)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def non_max_suppression(
    boxes: NDArray, scores: NDArray, *, iou_threshold: float = 0.5, max_detections: int = 100
) -> NDArray[np.int64]:
    """Return the boxes that remain if each removes those of a lower score that it overlaps.

    Greedy: the box with the highest score is kept, and all others whose IoU with it exceeds `iou_threshold` are
    removed; then the same for the next one. If scores are equal, the first box is taken first.

    Examples:
        >>> kept = tfq.non_max_suppression(boxes, scores, iou_threshold=0.5)
        >>> boxes[kept], scores[kept]

    Args:
        boxes: (m, 4) floats: ymin, xmin, ymax, xmax.
        scores: (m,) floats.
        iou_threshold: In [0, 1].
        max_detections: How many boxes to keep at most.

    Returns:
        The indices of the boxes that remain, by descending score.

    Raises:
        InputError: The shapes do not fit, or the threshold is not in [0, 1].
    """
    boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores)
    if boxes.shape != (len(scores), 4) or scores.ndim != 1:
        raise InputError(
            f"non_max_suppression: boxes {list(boxes.shape)} and scores {list(scores.shape)}, expected (m, 4) and (m,)",
            field="boxes",
            expected="(m, 4) and (m,)",
            got=(boxes.shape, scores.shape),
        )
    if not 0 <= iou_threshold <= 1:
        raise InputError(
            f"iou_threshold={iou_threshold}: expected a number in [0, 1]",
            field="iou_threshold",
            expected="[0, 1]",
            got=iou_threshold,
        )
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(left) and len(kept) < max_detections:
        first, left = left[0], left[1:]
        kept.append(int(first))
        left = left[box_iou(boxes[first][None], boxes[left])[0] <= iou_threshold]
    return np.asarray(kept, np.int64)

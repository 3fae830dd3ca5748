# SPDX-License-Identifier: Apache-2.0
"""The labels of object detection: the boxes of each image, as one array for all images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError

# The columns of a box. The first six are required. Coordinates are fractions of the image's height and width, as in
# TFLite's detection op. The last three are in pixels of the original image, before any resizing: COCO's area ranges
# are defined in them. All rows of an image have the same image_height and image_width, rows of padding too.
BOX_COLUMNS = ("class", "ymin", "xmin", "ymax", "xmax", "is_crowd", "area", "image_height", "image_width")
REQUIRED_COLUMNS = 6
PADDING = -1.0
# A labeled box may end a pixel outside of its image, which is a few percent of a small one.
_MARGIN = 0.1


def pad_boxes(rows: Sequence[NDArray], max_boxes: int, sizes: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Return the labels of several images.

    Args:
        rows: For each image its boxes, (boxes, 7): all columns of `BOX_COLUMNS` but the last two.
        max_boxes: How many rows each image gets, >= 1; the rows after its boxes have class -1.
        sizes: (height, width) of each original image, in pixels.

    Returns:
        (images, max_boxes, 9).
    """
    labels = np.zeros((len(rows), max_boxes, len(BOX_COLUMNS)))
    labels[..., 0] = PADDING
    for label, boxes, size in zip(labels, rows, sizes, strict=True):
        label[: len(boxes), : boxes.shape[1]] = boxes
        label[:, -2:] = size
    return labels


def are_box_labels(labels: NDArray) -> bool:
    """Check whether an array has the form of box labels; `check_box_labels` checks the values."""
    columns = labels.shape[2] if labels.ndim == 3 else 0
    is_form = columns in (REQUIRED_COLUMNS, len(BOX_COLUMNS)) and labels.dtype.kind == "f"
    return is_form and bool((labels[..., 5] == labels[..., 5].astype(bool)).all())


def check_box_labels(labels: NDArray) -> None:
    """Check the labels of object detection.

    Raises:
        InputError: Their shape is not (n, max_boxes, 6) or (n, max_boxes, 9), or a value is invalid. The message has
            the index of the first such example.
    """
    if (
        labels.ndim != 3
        or labels.shape[2] not in (REQUIRED_COLUMNS, len(BOX_COLUMNS))
        or labels.dtype.kind not in "fiu"
    ):
        raise InputError(
            f"the labels are {labels.dtype} {list(labels.shape)}, expected boxes: (n, max_boxes, 6) or "
            f"(n, max_boxes, 9) with the columns {', '.join(BOX_COLUMNS)}. The source coco:ANNOTATIONS.json has "
            "such labels",
            field="labels",
            expected="(n, max_boxes, 6 or 9)",
            got=labels.shape,
        )
    is_box = labels[..., 0] != PADDING
    coordinates = labels[..., 1:5]
    problems = {
        "NaN or infinity": ~np.isfinite(labels).all(axis=-1),
        "a class that is not a whole number >= 0, or -1 for padding": is_box
        & ((labels[..., 0] < 0) | (labels[..., 0] != np.rint(labels[..., 0]))),
        "coordinates outside of [0, 1]; divide pixels by the image's height and width": is_box
        & ((coordinates < -_MARGIN) | (coordinates > 1 + _MARGIN)).any(axis=-1),
        "ymax < ymin or xmax < xmin": is_box
        & ((coordinates[..., 2] < coordinates[..., 0]) | (coordinates[..., 3] < coordinates[..., 1])),
        "is_crowd other than 0 and 1": is_box & (labels[..., 5] != 0) & (labels[..., 5] != 1),
    }
    if labels.shape[2] == len(BOX_COLUMNS):
        problems["an image size below 1 pixel"] = (labels[..., -2:] < 1).any(axis=-1)
    for problem, bad in problems.items():
        if bad.any():
            example, box = np.argwhere(bad)[0]
            raise InputError(
                f"box {box} of example {example} has {problem} ({int(bad.sum()):,} of {bad.size:,} rows)",
                field=f"labels[{example}]",
                expected=", ".join(BOX_COLUMNS),
                got=labels[example, box].tolist(),
            )

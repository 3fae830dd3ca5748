# SPDX-License-Identifier: Apache-2.0
"""COCO's mean average precision: the matching of detections with labeled boxes, and precision at fixed recalls.

The rules are those of the COCO challenge (cocodataset.org/#detection-eval), as its reference implementation
pycocotools applies them. For each class and each image, detections are taken by descending score, at most 100. At each
of the ten IoU thresholds 0.5, 0.55 ... 0.95, a detection matches the labeled box with the largest IoU that is not yet
matched. Crowds may be matched by several detections; a detection that matches a crowd, or a box outside of the area
range, counts neither as right nor as wrong, and so does an unmatched detection outside of the area range. The average
precision is the mean of the interpolated precision at the recalls 0, 0.01 ... 1, and AP is its mean over the thresholds
and the classes that have labeled boxes.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq.data.box_labels import BOX_COLUMNS, PADDING
from tfq.evaluation.detection.decoding import Detections
from tfq.evaluation.detection.suppression import box_iou
from tfq.evaluation.metric import State

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = (1, 10, 100)
# In pixels of the original image.
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
# COCO's twelve figures, and the number of labeled boxes that are not crowds.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", "boxes")
_BITS = (1 << np.arange(len(IOU_THRESHOLDS))).astype(np.uint16)
_AREA_BITS = (1 << np.arange(len(AREA_RANGES))).astype(np.uint8)
# Normalized coordinates times the image size are rounded to this many decimals of a pixel, so that boxes that were
# whole pixels, or had the decimals of an annotation file, have these coordinates again.
_PIXEL_DECIMALS = 6


def match(detections: Detections, labels: NDArray) -> State:
    """Return the matches of detections with labeled boxes, as arrays that can be concatenated.

    Args:
        detections: Of n images.
        labels: (n, max_boxes, 6 or 9), see `tfq.data.box_labels`.

    Returns:
        For each image `num_detections` and `num_boxes`; for each detection its `class`, `score`, `rank` (from 0, among
        those of its image and class) and, for each area range, the IoU thresholds at which it `matched` or is `ignored`
        as bits; for each labeled box its `box_class` and the area ranges in which it is `counted`, as bits.
    """
    parts: list[list[NDArray]] = []
    per_image = np.zeros((len(labels), 2), np.int64)
    for image, rows in enumerate(labels):
        found, sides = detections.classes[image], rows[0, -2:] if labels.shape[2] == len(BOX_COLUMNS) else None
        truths = rows[rows[:, 0] != PADDING]
        valid = np.flatnonzero(found >= 0)
        boxes, scores = detections.boxes[image, valid], detections.scores[image, valid]
        for number in np.union1d(found[valid], truths[:, 0]):
            mine = found[valid] == number
            result = _match_class(boxes[mine], scores[mine], truths[truths[:, 0] == number], sides)
            class_column = np.full(len(result.scores), number, np.int32)
            box_column = np.full(len(result.counted), number, np.int32)
            ranks = np.arange(len(result.scores), dtype=np.uint8)
            row = [class_column, result.scores, ranks, result.matched, result.ignored, box_column, result.counted]
            parts.append(row)
            per_image[image] += len(class_column), len(box_column)
    return {
        "num_detections": per_image[:, 0],
        "num_boxes": per_image[:, 1],
        **{
            name: np.concatenate([empty, *arrays])
            for (name, empty), arrays in zip(_EMPTY, _columns(parts), strict=True)
        },
    }


_EMPTY = (
    ("class", np.empty(0, np.int32)),
    ("score", np.empty(0)),
    ("rank", np.empty(0, np.uint8)),
    ("matched", np.empty((0, len(AREA_RANGES)), np.uint16)),
    ("ignored", np.empty((0, len(AREA_RANGES)), np.uint16)),
    ("box_class", np.empty(0, np.int32)),
    ("counted", np.empty(0, np.uint8)),
)


def _columns(parts: list[list[NDArray]]) -> Iterator[list[NDArray]]:
    for index in range(len(_EMPTY)):
        yield [row[index] for row in parts]


@dataclass(frozen=True, eq=False)
class _Matches:
    scores: NDArray
    matched: NDArray
    ignored: NDArray
    counted: NDArray


def _match_class(boxes: NDArray, scores: NDArray, truths: NDArray, sides: NDArray | None) -> _Matches:
    """Match the detections of one class in one image.

    Args:
        boxes: (d, 4).
        scores: (d,).
        truths: (g, 6 or 9).
        sides: The image's height and width in pixels; None if they are not known, so that there are no areas.
    """
    order = np.argsort(-scores, kind="stable")[: MAX_DETECTIONS[-1]]
    boxes, targets, is_crowd = boxes[order].astype(np.float64), truths[:, 1:5].astype(np.float64), truths[:, 5] != 0
    limits = np.asarray(list(AREA_RANGES.values()))
    out_of_range = np.zeros((len(limits), len(boxes)), bool)
    not_counted = np.repeat(is_crowd[None], len(limits), axis=0)
    if sides is None:
        not_counted[1:] = True
    else:
        factors = np.concatenate([sides, sides]).astype(np.float64)
        boxes, targets = (np.round(array * factors, _PIXEL_DECIMALS) for array in (boxes, targets))
        # As in the reference implementation, a box with ymax < ymin or xmax < xmin has a negative area, which no range
        # contains.
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        out_of_range = (areas < limits[:, :1]) | (areas > limits[:, 1:])
        not_counted |= (truths[:, 6] < limits[:, :1]) | (truths[:, 6] > limits[:, 1:])
    ious = box_iou(boxes, targets, is_crowd)
    is_matched = np.zeros((len(boxes), len(limits), len(IOU_THRESHOLDS)), bool)
    is_ignored = np.repeat(out_of_range.T[..., None], len(IOU_THRESHOLDS), axis=2)
    if len(targets):
        _match_greedily(ious, is_crowd, not_counted, is_matched, is_ignored)
    return _Matches(
        scores=scores[order].astype(np.float64),
        matched=(is_matched * _BITS).sum(axis=2, dtype=np.uint16),
        ignored=(is_ignored * _BITS).sum(axis=2, dtype=np.uint16),
        counted=(~not_counted.T * _AREA_BITS).sum(axis=1, dtype=np.uint8),
    )


def _match_greedily(
    ious: NDArray, is_crowd: NDArray, not_counted: NDArray, is_matched: NDArray, is_ignored: NDArray
) -> None:
    """Fill the flags of the detections, in order, for all area ranges and thresholds at once.

    Args:
        ious: (d, g).
        is_crowd: (g,).
        not_counted: (areas, g).
        is_matched: (d, areas, thresholds), all False.
        is_ignored: (d, areas, thresholds), True where an unmatched detection is ignored.
    """
    num_areas, num_boxes = not_counted.shape
    # As in the reference implementation: a threshold of 1 would accept equal boxes in spite of rounding.
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    is_free = np.ones((num_areas, len(thresholds), num_boxes), bool)
    areas, places = np.meshgrid(range(num_areas), range(len(thresholds)), indexing="ij")
    for index in np.flatnonzero((ious >= thresholds[0]).any(axis=1)):
        candidates = (is_free | is_crowd) & (ious[index] >= thresholds[:, None])
        # Boxes that count come first; of equal IoUs the last one.
        preference = np.where(candidates, ious[index] + 2 * ~not_counted[:, None], -1.0)
        best = num_boxes - 1 - preference[..., ::-1].argmax(axis=-1)
        hit = candidates.any(axis=-1)
        is_matched[index] = hit
        is_ignored[index] = np.where(hit, not_counted[areas, best], is_ignored[index])
        is_free[areas[hit], places[hit], best[hit]] = False


@dataclass(frozen=True, eq=False)
class _Sorted:
    """The detections of a state by class, and in each class by descending score, earlier images first.

    Args:
        state: The state.
        order: The detections' indices in the state.
        image: The image of each of them.
        group_starts: The start of each group of detections of one class, score and image.
        box_image: The image of each labeled box.
        classes: The classes that have labeled boxes that count.
    """

    state: State
    order: NDArray
    image: NDArray
    group_starts: NDArray
    box_image: NDArray
    classes: NDArray


def _sort(state: State) -> _Sorted:
    image = np.repeat(np.arange(len(state["num_detections"])), state["num_detections"])
    order = np.lexsort((state["rank"], image, -state["score"], state["class"]))
    keys = [array[order] for array in (state["class"], state["score"], image)]
    is_start = np.ones(len(order), bool)
    if len(order):
        is_start[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return _Sorted(
        state=state,
        order=order,
        image=image[order],
        group_starts=np.flatnonzero(is_start),
        box_image=np.repeat(np.arange(len(state["num_boxes"])), state["num_boxes"]),
        classes=np.unique(state["box_class"][(state["counted"] & 1) != 0]),
    )


def _repeated(data: _Sorted, weights: NDArray) -> NDArray[np.int64]:
    """Return the places in `data.order` of the detections if each image occurs `weights` times in succession.

    A group of equal scores in one image is repeated as a whole, which is the order of a stable sort.
    """
    sizes = np.diff(np.append(data.group_starts, len(data.order)))
    lengths = sizes * weights[data.image[data.group_starts]]
    group = np.repeat(np.arange(len(sizes)), lengths)
    place = np.arange(len(group)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return data.group_starts[group] + place % sizes[group]


def _flags(values: NDArray) -> NDArray[np.bool_]:
    return (values[:, None] & _BITS) != 0


def average_precision(right: NDArray, wrong: NDArray, num_boxes: int) -> NDArray[np.float64]:
    """Return the average precision at each IoU threshold, for one class.

    Args:
        right: (d, thresholds) booleans of the detections by descending score: which are matched and count.
        wrong: (d, thresholds) which are not matched and count.
        num_boxes: The number of labeled boxes that count, >= 1.

    Returns:
        (thresholds,), each the mean over the 101 recalls of the largest precision at this recall or a higher one.
    """
    num_wrong = np.cumsum(wrong, axis=0)
    # Precision is highest just after a right detection, so that only these count: rows of the n-th one, by threshold.
    place, threshold = np.nonzero(right)
    rank = np.cumsum(right, axis=0)[place, threshold]
    precision = np.zeros((num_boxes, right.shape[1]))
    precision[rank - 1, threshold] = rank / (rank + num_wrong[place, threshold] + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    values: NDArray[np.float64] = envelope[_rows_of_recalls(num_boxes)].mean(axis=0)
    return values


@functools.lru_cache(maxsize=4096)
def _rows_of_recalls(num_boxes: int) -> NDArray[np.int64]:
    """Return for each of the 101 recalls how many right detections reach it, minus 1."""
    return np.maximum(np.searchsorted(np.arange(num_boxes + 1) / num_boxes, RECALLS), 1) - 1


def figures(state: State) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return COCO's figures for each class.

    Args:
        state: A result of `match`, or several of them concatenated.

    Returns:
        (classes,) the classes that have labeled boxes that count, and (classes, 13) their `FIGURES`; NaN where no
        labeled box is in the area range. The mean over the classes, without NaN, is the figure of the whole.
    """
    data = _sort(state)
    values = np.full((len(data.classes), len(FIGURES)), np.nan)
    sorted_classes = state["class"][data.order]
    for row, number in zip(values, data.classes, strict=True):
        mine = data.order[slice(*np.searchsorted(sorted_classes, [number, number + 1]))]
        is_box = state["box_class"] == number
        for area in range(len(AREA_RANGES)):
            num_boxes = int(np.count_nonzero(state["counted"][is_box] & _AREA_BITS[area]))
            if not num_boxes:
                continue
            matched, ignored = _flags(state["matched"][mine, area]), _flags(state["ignored"][mine, area])
            precision = average_precision(matched & ~ignored, ~matched & ~ignored, num_boxes)
            recalls = [
                (matched & ~ignored)[state["rank"][mine] < limit].sum(axis=0).mean() / num_boxes
                for limit in MAX_DETECTIONS
            ]
            if area:
                row[2 + area], row[8 + area] = precision.mean(), recalls[-1]
            else:
                row[:3], row[6:9], row[-1] = (precision.mean(), precision[0], precision[5]), recalls, num_boxes
    return data.classes.astype(np.int64), values


def mean_figures(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return COCO's figures of all classes together.

    Args:
        values: (classes, 13), the second result of `figures`.

    Returns:
        (13,) the means over the classes that have boxes in the area range, NaN if none has; and the sum of the boxes.
    """
    is_known = ~np.isnan(values)
    counts = is_known.sum(axis=0)
    sums = np.where(is_known, values, 0).sum(axis=0)
    means = np.divide(sums, counts, out=np.full(len(FIGURES), np.nan), where=counts > 0)
    means[-1] = sums[-1]
    return means


def weighted_map(state: State, thresholds: slice) -> Callable[[NDArray[np.int64]], float]:
    """Return a function of the images' weights that gives the mean average precision if each occurs so often.

    Args:
        state: A result of `match` for n images.
        thresholds: Which of the IoU thresholds count.

    Returns:
        (n,) whole numbers -> the mean over thresholds and classes; NaN if no labeled box is left.
    """
    data = _sort(state)
    matched, ignored = (_flags(state[name][data.order, 0])[:, thresholds] for name in ("matched", "ignored"))
    right, wrong, sorted_classes = matched & ~ignored, ~matched & ~ignored, state["class"][data.order]
    is_counted = (state["counted"] & 1) != 0
    place_of_class = np.searchsorted(data.classes, state["box_class"][is_counted])
    box_image = data.box_image[is_counted]

    def compute(weights: NDArray[np.int64]) -> float:
        weights = np.asarray(weights)
        num_boxes = np.bincount(place_of_class, weights[box_image], minlength=len(data.classes))
        chosen = _repeated(data, weights)
        starts = np.searchsorted(sorted_classes[chosen], data.classes)
        stops = np.searchsorted(sorted_classes[chosen], data.classes, side="right")
        drawn_right, drawn_wrong = right[chosen], wrong[chosen]
        results = [
            average_precision(drawn_right[start:stop], drawn_wrong[start:stop], int(count)).mean()
            for start, stop, count in zip(starts, stops, num_boxes, strict=True)
            if count
        ]
        return float(np.mean(results)) if results else float("nan")

    return compute

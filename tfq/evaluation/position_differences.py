# SPDX-License-Identifier: Apache-2.0
"""Where a model and its reference predict different classes for positions, such as the pixels of a segmentation."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.data import AnySplit
from tfq.data.label_maps import IGNORED
from tfq.errors import InputError
from tfq.evaluation.classes import class_text, predicted
from tfq.evaluation.example_images import images_of
from tfq.evaluation.metric import class_name
from tfq.evaluation.metrics import squeezed_shape
from tfq.evaluation.pictures import (
    WHITE,
    Color,
    Pixels,
    any_nearest,
    brightness,
    class_color,
    color_text,
    encoded,
    fitted,
    nearest,
    painted,
    rgb,
    side_by_side,
)
from tfq.evaluation.position_metrics import classes_of_positions

# The longer side of a part of a picture, in pixels.
SIDE = 96
# Examples whose classes are in memory at a time.
_PIECE = 64
_MOST_CHANGES = 3
# Classes from 0 on have a color each if there are at most as many.
_MOST_COLORS = 29
_ORDER = "by the fraction of positions with the same class, the lowest first"
# Where the classes differ: the color and the text of the legend.
_ONLY_REFERENCE, _ONLY_MODEL, _NEITHER = 1, 2, 3
_DIFFERENCES: dict[int, tuple[Color, str]] = {
    _ONLY_REFERENCE: ((230, 40, 40), "only the reference is right"),
    _ONLY_MODEL: ((40, 170, 80), "only the model is right"),
    _NEITHER: ((240, 170, 30), "both are wrong, or there is no label"),
}
_UNLABELED: Color = (WHITE, WHITE, WHITE)


def position_classes(values: NDArray, labels: NDArray | None) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the predicted class of each position, (n, positions), and the labeled one; -1 to ignore it.

    Args:
        values: The model's real values, (n, ...).
        labels: The n labels. They say which axis has the classes. Without labels, or if they do not fit, it is the last
            one that is longer than 1.
    """
    if labels is not None:
        try:
            answer, truth, _ = classes_of_positions(values, labels)
        except InputError:
            pass
        else:
            return answer, truth
    return predicted(values), None


def position_agreement(values: NDArray, expected: NDArray, labels: NDArray | None) -> float:
    """Return the fraction of positions for which two models predict the same class, in [0, 1].

    Args:
        values: The model's real values, (n, ...).
        expected: The reference's, of the same shape.
        labels: As in `position_classes`.
    """
    same = total = 0
    for piece in _pieces(len(values)):
        own = None if labels is None else labels[piece]
        equal = position_classes(values[piece], own)[0] == position_classes(expected[piece], own)[0]
        same, total = same + int(equal.sum()), total + equal.size
    return same / total


def differing_positions(
    values: NDArray,
    expected: NDArray,
    labels: NDArray | None,
    data: AnySplit,
    limit: int,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the examples for which the classes of most positions differ from those of the reference.

    The result has the `kind` "positions", `count` of the examples with a differing position, their `order`, and
    `examples`: up to `limit` of them, each with its `index` in the data, the number of `positions` and of `differing`
    ones, their `agreement` (a fraction), the fractions of labeled positions that are right (`accuracy` and
    `reference_accuracy`, null without labels), the most frequent `changes` (`reference_class`, `class`, `count`), and a
    `picture` of several parts, whose names are in `panels`: the input, the labels, the reference's classes, the
    model's, and where these two differ. It is null for inputs that are not images or outputs that are not maps
    (`picture_reason`). `legend` has the `color` ("#rrggbb") and `text` of what is in the pictures.

    Args:
        values: The model's real values, (n, ...).
        expected: The reference's.
        labels: The n labels of this output; None if there are none.
        data: The examples.
        limit: The largest number of examples.
        names: The names of class 0, 1, ...; None for those of `data`.
    """
    differing = np.concatenate([_differing(values, expected, labels, piece) for piece in _pieces(len(values))])
    order = np.argsort(-differing, kind="stable")[:limit]
    chosen = order[differing[order] > 0]
    result = {
        "kind": "positions",
        "count": int((differing > 0).sum()),
        "order": _ORDER,
        "picture_reason": None,
        "panels": [],
        "legend": [],
        "examples": [],
    }
    names = data.class_names if names is None else names
    return {**result, **_listed(values, expected, labels, data, chosen, names)} if len(chosen) else result


def _listed(
    values: NDArray,
    expected: NDArray,
    labels: NDArray | None,
    data: AnySplit,
    chosen: NDArray[np.int64],
    names: Sequence[str],
) -> dict[str, Any]:
    """Return the fields of `differing_positions` about single examples. chosen: their indices, at least one."""
    truths = None if labels is None else labels[chosen]
    answers, truth = position_classes(values[chosen], truths)
    references, _ = position_classes(expected[chosen], truths)
    shape, positions = _map_shape(values, answers.shape[1]), answers.shape[1]
    images, picture_reason = images_of(data, chosen)
    if len(shape) != 2:
        images, picture_reason = None, f"the output has {len(shape)} axes of positions, expected height and width"
    pictures: list[str | None] = [None] * len(chosen)
    legend: list[dict[str, str]] = []
    if images is not None:
        maps = [None if item is None else item.reshape(-1, *shape) for item in (truth, references, answers)]
        pictures, legend = _pictures(images, maps, names)
    examples = []
    for place, index in enumerate(chosen):
        answer, reference = answers[place], references[place]
        differing = int((answer != reference).sum())
        examples.append(
            {
                "index": int(index),
                "positions": positions,
                "differing": differing,
                "agreement": 1 - differing / positions,
                "accuracy": None if truth is None else _right(answer, truth[place]),
                "reference_accuracy": None if truth is None else _right(reference, truth[place]),
                "changes": _changes(reference, answer, names),
                "picture": pictures[place],
            }
        )
    return {
        "picture_reason": picture_reason,
        "panels": ["input", *([] if truth is None else ["label"]), "reference", "model", "difference"],
        "legend": legend,
        "examples": examples,
    }


def _pieces(count: int) -> list["slice[int, int, None]"]:
    return [slice(start, min(count, start + _PIECE)) for start in range(0, count, _PIECE)]


def _differing(
    values: NDArray, expected: NDArray, labels: NDArray | None, piece: "slice[int, int, None]"
) -> NDArray[np.int64]:
    own = None if labels is None else labels[piece]
    answer, reference = (position_classes(item[piece], own)[0] for item in (values, expected))
    return np.asarray((answer != reference).sum(axis=1), np.int64)


def _map_shape(values: NDArray, positions: int) -> tuple[int, ...]:
    """Return the shape of the positions of an example, without the axis of the classes."""
    sizes = squeezed_shape(values)[1:]
    return sizes if int(np.prod(sizes)) == positions else sizes[:-1]


def _right(classes: NDArray[np.int64], truth: NDArray[np.int64]) -> float | None:
    is_counted = truth != IGNORED
    return float((classes == truth)[is_counted].mean()) if is_counted.any() else None


def _changes(
    reference: NDArray[np.int64], answer: NDArray[np.int64], names: Sequence[str]
) -> list[dict[str, int | str | None]]:
    places = np.flatnonzero(reference != answer)
    pairs = Counter(zip(reference[places].tolist(), answer[places].tolist(), strict=True))
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [
        {
            "reference_class": before,
            "reference_name": class_name(before, names),
            "class": after,
            "name": class_name(after, names),
            "count": count,
        }
        for (before, after), count in ordered[:_MOST_CHANGES]
    ]


def _pictures(
    images: NDArray, maps: list[NDArray[np.int64] | None], names: Sequence[str]
) -> tuple[list[str | None], list[dict[str, str]]]:
    """Return a picture of each example, and the legend. maps: labels, the reference's classes, the model's."""
    truth, reference, answer = maps
    assert reference is not None and answer is not None
    drawn = [item for item in maps if item is not None]
    present = sorted({int(number) for item in drawn for number in np.unique(item)} - {IGNORED})
    are_few = present[-1] < _MOST_COLORS
    colors = {number: class_color(number if are_few else place) for place, number in enumerate(present)}
    colors[IGNORED] = _UNLABELED
    height, width = fitted(images.shape[1:], SIDE)
    light = brightness(images)
    pictures: list[str | None] = []
    kinds: set[int] = set()
    for place, image in enumerate(light):
        own = None if truth is None else truth[place]
        kind = _difference_kinds(reference[place], answer[place], own)
        kinds |= {int(number) for number in np.unique(kind)} - {0}
        shown = [nearest(item[place], height, width) for item in drawn]
        pixels = rgb(image, height, width)
        parts = [pixels, *(painted(item, colors) for item in shown), _marked(pixels, kind)]
        pictures.append(encoded(side_by_side(parts)))
    legend = [(colors[number], class_text(number, class_name(number, names))) for number in present]
    if truth is not None and (truth == IGNORED).any():
        legend.append((_UNLABELED, "no label"))
    legend += [_DIFFERENCES[kind] for kind in sorted(kinds)]
    return pictures, [{"color": color_text(color), "text": text} for color, text in legend]


def _difference_kinds(
    reference: NDArray[np.int64], answer: NDArray[np.int64], truth: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    kinds = np.where(reference != answer, _NEITHER, 0)
    if truth is not None:
        kinds[(kinds > 0) & (reference == truth)] = _ONLY_REFERENCE
        kinds[(kinds > 0) & (answer == truth)] = _ONLY_MODEL
    return kinds


def _marked(pixels: Pixels, kinds: NDArray[np.int64]) -> Pixels:
    """Return a dark gray copy of an image, with the positions that differ in the color of their kind."""
    gray = pixels.mean(axis=2, keepdims=True) * 0.35 + 30
    result = np.repeat(np.rint(gray).astype(np.uint8), 3, axis=2)
    # The most important kind last, so that it stays visible where several positions share a pixel.
    for kind in sorted(_DIFFERENCES, reverse=True):
        result[any_nearest(kinds == kind, *pixels.shape[:2])] = _DIFFERENCES[kind][0]
    return result

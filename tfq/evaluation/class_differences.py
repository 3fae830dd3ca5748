# SPDX-License-Identifier: Apache-2.0
"""Where a model and its reference predict different classes: figures of each class, and single examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.data import AnySplit
from tfq.errors import InputError
from tfq.evaluation.classes import predicted
from tfq.evaluation.example_images import images_of
from tfq.evaluation.metric import class_name
from tfq.evaluation.metrics import checked_labels, is_probability
from tfq.evaluation.pictures import thumbnails

NO_CLASS_LABELS = "there are no class labels"
_ORDER = "first those that only the reference classifies correctly, then by the change of the reference's score"


def classes_of(values: NDArray) -> NDArray[np.int64]:
    """Return the predicted class of each example, (n,).

    Args:
        values: Real values of an output that predicts a class, (n, ...).

    Raises:
        InputError: The output predicts several classes for an example, such as one for each pixel.
    """
    classes = predicted(values).reshape(len(values), -1)
    if classes.shape[1] != 1:
        raise InputError(
            f"the output predicts {classes.shape[1]:,} classes for each example", expected=1, got=classes.shape[1]
        )
    return classes[:, 0]


def class_figures(
    values: NDArray, expected: NDArray | None, labels: NDArray | None, names: tuple[str, ...]
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the figures of each class that occurs in the labels; or None and the reason.

    The result has lists of one length: `class`, `name` (null without names), `examples`, `correct` and
    `reference_correct` (null without a reference), which are numbers of examples. `confusion` is the confusion matrix,
    see `confusion_of`.

    Args:
        values: The model's real values, (n, ...).
        expected: The reference's.
        labels: The n labels of this output.
        names: The names of class 0, 1, ...; may be empty.
    """
    if labels is None:
        return None, NO_CLASS_LABELS
    try:
        truth = checked_labels(labels, values)
        answers = [classes_of(values), *([] if expected is None else [classes_of(expected)])]
    except InputError as error:
        return None, str(error)
    classes, examples = np.unique(truth, return_counts=True)
    places = np.searchsorted(classes, truth)
    correct = [np.bincount(places[answer == truth], minlength=len(classes)).tolist() for answer in answers]
    return {
        "class": classes.tolist(),
        "name": [class_name(int(number), names) for number in classes] if names else None,
        "examples": examples.tolist(),
        "correct": correct[0],
        "reference_correct": correct[1] if len(correct) > 1 else None,
        "confusion": confusion_of(truth, answers[0], answers[1] if len(answers) > 1 else None, names),
    }, None


# More classes have no whole matrix: a picture of it would show nothing, and a record would grow with its square.
MAX_CONFUSED = 50
_MOST_PAIRS = 30


def confusion_of(
    truth: NDArray[np.int64],
    answer: NDArray[np.int64],
    reference: NDArray[np.int64] | None = None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a confusion matrix as JSON values.

    `classes` are those that occur, and `names` their names (null without names). `matrix` has a row for each label and
    a column for each prediction, in numbers of examples, and `reference_matrix` is that of the reference (null without
    one). For more than `MAX_CONFUSED` classes both are null for a `reason`. `pairs` are the most frequent confusions,
    by the examples of the model: `label`, `class`, `count` and `reference_count`.

    Args:
        truth: (n,) the labels.
        answer: (n,) the classes that the model predicts.
        reference: (n,) those of the reference.
        names: The names of class 0, 1, ...; may be empty.
    """
    answers = [answer, *([] if reference is None else [reference])]
    classes = np.unique(np.concatenate([truth, *answers]))
    size = len(classes)
    cells = [np.searchsorted(classes, truth) * size + np.searchsorted(classes, item) for item in answers]
    is_small = size <= MAX_CONFUSED
    matrices = [np.bincount(item, minlength=size**2).reshape(size, size).tolist() for item in cells if is_small]
    wrong, counts = np.unique(cells[0][truth != answer], return_counts=True)
    order = np.lexsort((wrong, -counts))[:_MOST_PAIRS]
    return {
        "classes": classes.tolist(),
        "names": [class_name(int(number), names) for number in classes] if names else None,
        "matrix": matrices[0] if matrices else None,
        "reference_matrix": matrices[1] if len(matrices) > 1 else None,
        "reason": None if is_small else f"{size:,} classes; a matrix is kept for up to {MAX_CONFUSED}",
        "pairs": [
            {
                "label": int(classes[wrong[index] // size]),
                "class": int(classes[wrong[index] % size]),
                "count": int(counts[index]),
                "reference_count": None if reference is None else int((cells[1] == wrong[index]).sum()),
            }
            for index in order
        ],
    }


def differing_examples(
    values: NDArray,
    expected: NDArray,
    labels: NDArray | None,
    data: AnySplit,
    limit: int,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Any] | None, str | None]:
    """Return examples for which the model and its reference predict different classes; or None and the reason.

    The result has the `kind` "classes", `count` of the differing examples, their `order`, and `examples`: up to `limit`
    of them, each with its `index` in the data, `label`, `class` and `score` of the model and of the reference, and a
    `picture`: a PNG file in base64, null for inputs that are not images (`picture_reason`). A score is the real value
    of the output for the predicted class (1 minus it for class 0 of a sigmoid), null if the output is the class number.

    Args:
        values: The model's real values, (n, ...).
        expected: The reference's.
        labels: The n labels of this output; None if there are none, or if they are not classes.
        data: The examples.
        limit: The largest number of examples.
        names: The names of class 0, 1, ...; None for those of `data`.
    """
    try:
        answer, reference = classes_of(values), classes_of(expected)
        truth = None if labels is None else checked_labels(labels, values)
    except InputError as error:
        return None, str(error)
    scores, reference_scores = _scores(values, answer), _scores(expected, reference)
    different = np.flatnonzero(answer != reference)
    lost = np.zeros(len(answer), bool) if truth is None else (reference == truth)
    change = np.nan_to_num(np.abs(reference_scores - _scores(values, reference)))
    different = different[np.lexsort((different, -change[different], ~lost[different]))]
    chosen = different[:limit]
    pictures, picture_reason = _pictures(data, chosen)
    names = data.class_names if names is None else names
    return {
        "kind": "classes",
        "count": len(different),
        "order": _ORDER,
        "picture_reason": picture_reason,
        "examples": [
            {
                "index": int(index),
                "label": None if truth is None else int(truth[index]),
                "class": int(answer[index]),
                "score": _number(scores[index]),
                "reference_class": int(reference[index]),
                "reference_score": _number(reference_scores[index]),
                "names": {
                    str(number): class_name(number, names) for number in _classes(index, truth, answer, reference)
                }
                if names
                else {},
                "picture": picture,
            }
            for index, picture in zip(chosen, pictures, strict=True)
        ],
    }, None


def _classes(index: int, *arrays: NDArray | None) -> list[int]:
    return sorted({int(array[index]) for array in arrays if array is not None})


def _scores(values: NDArray, classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the value of the output for one class of each example; NaN if the output is the class number itself."""
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    if is_probability(values):
        return np.where(classes == 1, flat[:, 0], 1 - flat[:, 0])
    if flat.shape[1] == 1:
        return np.full(len(flat), np.nan)
    return np.asarray(flat[np.arange(len(flat)), classes])


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _pictures(data: AnySplit, indices: NDArray[np.int64]) -> tuple[list[str | None], str | None]:
    """Return a picture of each example; or None for each, and why."""
    images, reason = images_of(data, indices)
    return ([None] * len(indices), reason) if images is None else (list(thumbnails(images)), None)

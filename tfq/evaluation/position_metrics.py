# SPDX-License-Identifier: Apache-2.0
"""Metrics of models that predict a class for each position, such as the pixels of a segmentation.

Positions that are labeled `IGNORED` (-1) count nowhere: not in the numbers of labeled, predicted or correct positions.
The setting `data.ignore_label` names the value that a data set uses for them, such as 255.

All numbers follow from three counts of each class, which are added over the examples: `labeled` positions, `predicted`
positions, and `correct` ones, which are both. With these, IoU (the Jaccard index) is correct / (labeled + predicted -
correct), Dice (F1) is 2 correct / (labeled + predicted).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tfq.data.label_maps import IGNORED
from tfq.data.split import is_one_hot
from tfq.errors import InputError
from tfq.evaluation.metric import Contract, Metric, MetricTable, Outputs, State, Weights, add_states
from tfq.evaluation.metrics import SIGMOID_THRESHOLD, check_no_nan, squeezed_shape
from tfq.registry import register


def classes_of_positions(outputs: NDArray, labels: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64], int | None]:
    """Return the predicted and the labeled class of each position, both (n, positions), and the number of classes.

    Args:
        outputs: (n, ..., classes) numbers, the largest of which is the class; (n, ...) integer class numbers; or
            (n, ...) real probabilities of class 1.
        labels: (n, ...) integers, one for each position; axes of length 1 do not matter; -1 marks positions to
            ignore. Or one-hot, like the outputs.

    Returns:
        The number of classes is None if the outputs are class numbers.

    Raises:
        InputError: The shapes do not fit, or a label or a predicted class is not one of the classes.
    """
    check_no_nan(outputs, "the output")
    shape, label_shape = squeezed_shape(outputs), squeezed_shape(labels)
    n, classes, is_number = len(outputs), None, outputs.dtype.kind in "iub"
    if labels.dtype.kind not in "iub" and not (labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels))):
        raise InputError(
            f"the labels are {labels.dtype}, expected an integer class for each position. Choose another metric for "
            "values, such as mae",
            field="labels",
            expected="integers",
            got=str(labels.dtype),
        )
    if is_number and shape == label_shape:
        predicted = outputs.reshape(n, -1).astype(np.int64)
    elif shape[:-1] == label_shape and len(shape) > 1:
        classes = shape[-1]
        predicted = outputs.reshape(n, -1, classes).argmax(axis=-1)
    elif not is_number and shape == label_shape:
        rows = labels.reshape(-1, shape[-1]) if len(shape) > 2 else labels.reshape(n, -1)
        if len(shape) > 2 and is_one_hot(rows):
            classes, labels = shape[-1], rows.argmax(axis=1)
            predicted = outputs.reshape(n, -1, classes).argmax(axis=-1)
        else:
            classes, predicted = 2, (outputs.reshape(n, -1) > SIGMOID_THRESHOLD).astype(np.int64)
    else:
        raise InputError(
            f"outputs of shape {list(outputs.shape)} and labels of shape {list(labels.shape)} do not fit, expected one "
            "label for each position of the output. If the output is smaller than the maps, set data.label_resize to "
            "its height,width",
            field="labels",
            expected=shape if is_number else shape[:-1],
            got=labels.shape,
        )
    flat = labels.reshape(n, -1).astype(np.int64)
    highest = classes or _MAX_POSITION_CLASSES
    _check_range(flat, highest, "labels", "label", lowest=IGNORED)
    if classes is None:
        _check_range(predicted, highest, "outputs", "output")
    return predicted, flat, classes


# Class numbers as outputs do not say how many classes there are. 255 is not one of them: masks of 8 bits have it where
# there is no label.
_MAX_POSITION_CLASSES = 255


def _check_range(values: NDArray[np.int64], classes: int, field: str, what: str, lowest: int = 0) -> None:
    """Raise InputError with the first example that has a value outside of `lowest` to `classes` - 1."""
    is_bad = (values < lowest) | (values >= classes)
    if not is_bad.any():
        return
    index = int(is_bad.any(axis=1).argmax())
    value = int(values[index][is_bad[index]][0])
    advice = ""
    if field == "labels":
        count = int((values == value).sum())
        advice = (
            f" ({count:,} of {values.size:,} positions). If {value} marks positions to ignore, set "
            f"data.ignore_label={value}, or use {IGNORED} for them in arrays. If it is a class, renumber the classes"
        )
    raise InputError(
        f"the {what} of example {index} contains {value}, expected classes from 0 to {classes - 1}{advice}",
        field=field,
        expected=f"0 to {classes - 1}",
        got=value,
        limit="ignored-labels",
    )


def _check_positions(outputs: Outputs, labels: NDArray) -> None:
    classes_of_positions(outputs[0], labels)


POSITIONS = Contract(
    outputs="(n, ..., classes), or (n, ...) class numbers or probabilities of class 1",
    labels="(n, ...) integers in [0, classes), one for each position, -1 to ignore it, or one-hot like the outputs",
    predicts="positions",
    check=_check_positions,
)
_COUNTS = ("correct", "predicted", "labeled")


def _counts(outputs: Outputs, labels: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the counts of each example, (n, 3, classes) in the order of `_COUNTS`, and its ignored positions, (n,)."""
    predicted, labeled, classes = classes_of_positions(outputs[0], labels)
    size, n = classes or _MAX_POSITION_CLASSES, len(labeled)
    is_counted = labeled != IGNORED
    # One count for all examples: the classes of example i are numbered from i * size on.
    first = np.arange(n)[:, None] * size
    chosen = (labeled + first, is_counted & (labeled == predicted)), (predicted + first, is_counted)
    counts = [
        np.bincount(places[mask], minlength=n * size).reshape(n, size)
        for places, mask in (*chosen, (labeled + first, is_counted))
    ]
    return np.stack(counts, axis=1), (~is_counted).sum(axis=1)


def _add_counts(state: State, outputs: Outputs, labels: NDArray) -> State:
    counts, num_ignored = _counts(outputs, labels)
    summed = dict(zip(_COUNTS, counts.sum(axis=0), strict=True))
    return add_states(state, {**summed, "ignored": np.asarray(num_ignored.sum())})


def _labeled_counts(state: State) -> tuple[NDArray[np.int64], ...]:
    if not state["labeled"].any():
        raise InputError(
            f"all {int(state['ignored']):,} positions of the examples are marked to be ignored, so there is nothing to "
            "count. Check data.ignore_label",
            field="data.ignore_label",
            expected="at least one labeled position",
            got=IGNORED,
        )
    return tuple(state[name] for name in _COUNTS)


def _accuracy(correct: NDArray, predicted: NDArray, labeled: NDArray) -> float:
    return float(correct.sum() / labeled.sum()) if labeled.any() else float("nan")


def _mean_iou(correct: NDArray, predicted: NDArray, labeled: NDArray) -> float:
    return _mean_ratio(correct, labeled + predicted - correct)


def _mean_dice(correct: NDArray, predicted: NDArray, labeled: NDArray) -> float:
    return _mean_ratio(2 * correct, labeled + predicted)


def _mean_ratio(part: NDArray, whole: NDArray) -> float:
    """Return the mean ratio of the classes that occur in the labels or in the predictions; NaN if none does."""
    occurs = whole > 0
    return float(np.mean(part[occurs] / whole[occurs])) if occurs.any() else float("nan")


def _table(state: State) -> MetricTable:
    """Return the figures of each class that occurs, and the number of ignored positions in the last row, if any."""
    correct, predicted, labeled = (np.asarray(state[name], np.float64) for name in _COUNTS)
    occurs = np.flatnonzero(labeled + predicted)
    wholes = (labeled + predicted - correct, (labeled + predicted) / 2, predicted, labeled)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [correct / whole for whole in wholes]
    values = np.stack([*ratios, labeled], axis=1)[occurs]
    rows = tuple(str(number) for number in occurs)
    classes: tuple[int | None, ...] = tuple(map(int, occurs))
    if int(state["ignored"]):
        rows, classes = (*rows, "ignored"), (*classes, None)
        values = np.concatenate([values, [[np.nan] * len(wholes) + [float(state["ignored"])]]])
    columns = ("IoU", "Dice", "precision", "recall", "pixels")
    return MetricTable(rows=rows, columns=columns, values=values, unit="score", counts=("pixels",), classes=classes)


def _resampled(measure: Callable[[NDArray, NDArray, NDArray], float]) -> Callable[..., Callable[[Weights], float]]:
    """Return `Metric.resampled` of a metric that `measure` computes from the counts of each class."""

    def prepare(outputs: Outputs, labels: NDArray) -> Callable[[Weights], float]:
        counts, _ = _counts(outputs, labels)
        flat = counts[:, :, counts.any(axis=(0, 1))].astype(np.float64)
        shape = flat.shape[1:]
        flat = flat.reshape(len(flat), -1)
        return lambda weights: measure(*(weights @ flat).reshape(shape))

    return prepare


def _are_maps(labels: NDArray) -> bool:
    """Check whether labels are integers with at least two positions for each example."""
    return labels.dtype.kind in "iu" and labels.ndim > 2 and int(np.prod(labels.shape[1:])) > 1


def _metric(
    name: str,
    title: str,
    measure: Callable[[NDArray, NDArray, NDArray], float],
    help: str,
    unit: str,
    reported_with: tuple[str, ...],
    suits: Callable[[NDArray], bool] = lambda labels: False,
) -> Metric:
    return Metric(
        name=name,
        help=help,
        title=title,
        direction="higher",
        unit=unit,
        contract=POSITIONS,
        update=_add_counts,
        finish=lambda state: measure(*_labeled_counts(state)),
        resampled=_resampled(measure),
        table=_table,
        reported_with=reported_with,
        suits=suits,
    )


register(
    _metric(
        "pixel_accuracy",
        "pixel accuracy",
        _accuracy,
        "fraction of the labeled positions (pixels, time steps) whose label has the largest output",
        "fraction",
        (),
    )
)
register(
    _metric(
        "mean_iou",
        "mean IoU",
        _mean_iou,
        "mean over the classes of intersection over union (the Jaccard index) of predicted and labeled positions",
        "score",
        ("pixel_accuracy",),
        _are_maps,
    )
)
register(
    _metric(
        "dice",
        "Dice",
        _mean_dice,
        "mean over the classes of the Dice coefficient (F1) of predicted and labeled positions",
        "score",
        ("pixel_accuracy", "mean_iou"),
    )
)

# SPDX-License-Identifier: Apache-2.0
"""Metrics of models that predict a class for each position, such as the pixels of a segmentation."""

import numpy as np
from numpy.typing import NDArray

from tfq.data.split import is_one_hot
from tfq.errors import InputError
from tfq.evaluation.metric import Contract, Metric, Outputs, State, add_states
from tfq.evaluation.metrics import SIGMOID_THRESHOLD, check_no_nan, count_correct, fraction, squeezed_shape
from tfq.registry import register


def classes_of_positions(outputs: NDArray, labels: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64], int | None]:
    """Return the predicted and the labeled class of each position, both (n, positions), and the number of classes.

    Args:
        outputs: (n, ..., classes) real values; (n, ...) class numbers; or (n, ...) probabilities of class 1.
        labels: (n, ...) integers, one for each position; axes of length 1 do not matter. Or one-hot, like the outputs.

    Returns:
        The number of classes is None if the outputs are class numbers.

    Raises:
        InputError: The shapes do not fit, or a label is not one of the classes.
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
    elif not is_number and shape[:-1] == label_shape and len(shape) > 1:
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
            "label for each position of the output",
            field="labels",
            expected=shape if is_number else shape[:-1],
            got=labels.shape,
        )
    flat = labels.reshape(n, -1).astype(np.int64)
    highest = classes or _MAX_POSITION_CLASSES
    bad = ((flat < 0) | (flat >= highest)).any(axis=1)
    if bad.any():
        index = int(bad.argmax())
        values = flat[index][(flat[index] < 0) | (flat[index] >= highest)]
        raise InputError(
            f"the labels of example {index} contain {values[0]}, expected classes from 0 to {highest - 1}. Renumber "
            "the classes. If the value marks positions to ignore, use a metric of your own",
            field="labels",
            expected=f"0 to {highest - 1}",
            got=int(values[0]),
            limit="ignored-labels",
        )
    return predicted, flat, classes


_MAX_POSITION_CLASSES = 256


def _check_positions(outputs: Outputs, labels: NDArray) -> None:
    classes_of_positions(outputs[0], labels)


POSITIONS = Contract(
    outputs="(n, ..., classes), or (n, ...) class numbers or probabilities of class 1",
    labels="(n, ...) integers in [0, classes), one for each position, or one-hot like the outputs",
    predicts="positions",
    check=_check_positions,
)


def _correct_positions(outputs: Outputs, labels: NDArray) -> NDArray[np.bool_]:
    predicted, expected, _ = classes_of_positions(outputs[0], labels)
    return predicted == expected


def _add_overlaps(state: State, outputs: Outputs, labels: NDArray) -> State:
    predicted, expected, classes = classes_of_positions(outputs[0], labels)
    size = classes or _MAX_POSITION_CLASSES
    counts = [
        np.bincount(np.clip(values, 0, size - 1).ravel(), minlength=size)
        for values in (predicted[predicted == expected], predicted, expected)
    ]
    return add_states(state, {"both": counts[0], "either": counts[1] + counts[2] - counts[0]})


def _mean_overlap(state: State) -> float:
    occurs = state["either"] > 0
    return float(np.mean(state["both"][occurs] / state["either"][occurs]))


register(
    Metric(
        name="pixel_accuracy",
        help="fraction of positions (pixels, time steps) whose label has the largest output",
        title="pixel accuracy",
        direction="higher",
        unit="fraction",
        contract=POSITIONS,
        update=count_correct(_correct_positions),
        finish=fraction,
        examples=lambda outputs, labels: _correct_positions(outputs, labels).mean(axis=1),
    )
)
register(
    Metric(
        name="mean_iou",
        help="mean over the classes of intersection over union of predicted and labeled positions",
        title="mean IoU",
        direction="higher",
        unit="score",
        contract=POSITIONS,
        update=_add_overlaps,
        finish=_mean_overlap,
        reported_with=("pixel_accuracy",),
    )
)

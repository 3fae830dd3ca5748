# SPDX-License-Identifier: Apache-2.0
"""Precision, recall and F1 of models that predict a class, or several independent labels, for each example."""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.class_counts import add_counts, class_counts, class_table, macro_average
from tfq.evaluation.metric import Contract, Metric, MetricTable, Outputs, State, Weights
from tfq.evaluation.metrics import CLASSES, SIGMOID_THRESHOLD, check_no_nan, checked_labels, predicted_classes
from tfq.registry import register

_COUNTS = ("hits", "predicted", "support")


def is_label_matrix(labels: NDArray) -> bool:
    """Check whether labels are (n, labels >= 2) of zeros and ones: one-hot rows, or independent labels."""
    is_matrix = labels.ndim == 2 and labels.shape[1] >= 2 and labels.dtype.kind in "iufb"
    return is_matrix and bool(((labels == 0) | (labels == 1)).all())


def are_independent(labels: NDArray) -> bool:
    """Check whether labels are a matrix of zeros and ones in which a row has no or several ones."""
    return is_label_matrix(labels) and bool((labels.sum(axis=1) != 1).any())


def check_independent(values: NDArray, labels: NDArray) -> None:
    """Check outputs (n, labels) of independent labels.

    Raises:
        InputError: They have another shape than the labels, or contain NaN or values outside of [0, 1].
    """
    check_no_nan(values, "the output")
    flat = values.reshape(len(values), -1)
    if flat.shape != labels.shape:
        raise InputError(
            f"outputs of shape {list(values.shape)} and independent labels of shape {list(labels.shape)} differ, "
            "expected one label for each output value",
            field="labels",
            expected=flat.shape,
            got=labels.shape,
        )
    outside = (flat < 0) | (flat > 1)
    if outside.any():
        raise InputError(
            f"an output is {flat[outside][0]:g}, but outputs for independent labels must be probabilities in [0, 1]. "
            "End the model with a sigmoid, or choose another metric",
            field="outputs",
            expected="[0, 1]",
            got=float(flat[outside][0]),
        )


def _check(outputs: Outputs, labels: NDArray) -> None:
    if are_independent(labels):
        check_independent(outputs[0], labels)
    else:
        CLASSES.check(outputs, labels)


CLASSES_OR_LABELS = Contract(
    outputs=f"{CLASSES.outputs}; or (n, labels) probabilities of independent labels",
    labels=f"{CLASSES.labels}; or (n, labels) zeros and ones, several ones in a row",
    predicts="any",
    check=_check,
)


def _update(state: State, outputs: Outputs, labels: NDArray) -> State:
    """Add the counts of both readings of zeros and ones: all rows together decide whether they are one-hot."""
    (values,) = outputs
    counts: dict[str, NDArray] = {}
    if not are_independent(labels):
        counts.update(class_counts(checked_labels(labels, values), predicted_classes(values)))
    if is_label_matrix(labels) and labels.size == values.size:
        flat = values.reshape(labels.shape)
        by_label = _label_counts(flat > SIGMOID_THRESHOLD, labels == 1, np.ones(len(labels), np.int64))
        counts.update({f"label_{name}": value for name, value in by_label.items()})
        counts["independent"] = np.asarray(int(are_independent(labels)))
        counts["outside"] = np.asarray(int(((flat < 0) | (flat > 1)).sum()))
    return add_counts(state, counts)


def _label_counts(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], weights: Weights) -> dict[str, NDArray]:
    parts = {"hits": predicted & truth, "predicted": predicted, "support": truth}
    return {name: weights @ values.astype(np.int64) for name, values in parts.items()}


def _counts(state: State) -> State:
    if not state.get("independent", 0):
        return state
    if state["outside"]:
        raise InputError(
            f"{int(state['outside']):,} output values are outside of [0, 1], but outputs for independent labels must "
            "be probabilities. End the model with a sigmoid, or choose another metric",
            field="outputs",
            expected="[0, 1]",
            got=int(state["outside"]),
        )
    return {name: state[f"label_{name}"] for name in _COUNTS}


def _finish(figure: str, state: State) -> float:
    return macro_average(_counts(state), figure)


def _table(state: State) -> MetricTable:
    return class_table(_counts(state))


def _resampled(figure: str, outputs: Outputs, labels: NDArray) -> Callable[[Weights], float]:
    (values,) = outputs
    if are_independent(labels):
        predicted, truth = values.reshape(labels.shape) > SIGMOID_THRESHOLD, labels == 1
        return lambda weights: macro_average(_label_counts(predicted, truth, weights), figure)
    classes, truth_classes = predicted_classes(values), checked_labels(labels, values)
    known, classes = np.unique(np.concatenate([classes, truth_classes]), return_inverse=True)
    classes, truth_classes = np.split(classes, 2)
    hits = classes == truth_classes

    def measure(weights: Weights) -> float:
        parts = {"hits": (classes[hits], weights[hits]), "predicted": (classes, weights)}
        parts["support"] = truth_classes, weights
        return macro_average({name: np.bincount(own, some, len(known)) for name, (own, some) in parts.items()}, figure)

    return measure


for _name, _what in (
    ("precision", "fraction of the examples predicted as a class that have it as their label"),
    ("recall", "fraction of the examples of a class that are predicted as it"),
    ("f1", "harmonic mean of the precision and the recall of a class"),
):
    register(
        Metric(
            name=_name,
            help=f"{_what}; the mean over the classes (macro)",
            title={"f1": "F1"}.get(_name, _name),
            direction="higher",
            unit="score",
            contract=CLASSES_OR_LABELS,
            update=_update,
            merge=add_counts,
            finish=functools.partial(_finish, _name),
            table=_table,
            resampled=functools.partial(_resampled, _name),
        )
    )

# SPDX-License-Identifier: Apache-2.0
"""Metrics of how well scores rank examples: the areas under the ROC curve and under the precision-recall curve."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfq.data.split import without_one_hot
from tfq.errors import InputError
from tfq.evaluation.class_metrics import are_independent, check_independent
from tfq.evaluation.metric import (
    Contract,
    Metric,
    MetricTable,
    Outputs,
    Reconstruction,
    State,
    Weights,
    concatenate_states,
)
from tfq.evaluation.metrics import CLASSES, check_no_nan, checked_labels, squared_error
from tfq.evaluation.probabilities import class_probabilities
from tfq.registry import register

# More values than this get no bootstrap: on one core it would take minutes.
MAX_RESAMPLED_VALUES = 1_000_000


def roc_auc(scores: NDArray, labels: NDArray) -> float:
    """Return the area under the ROC curve: how often a positive example has a higher score than a negative one.

    Ties count half, as in the statistic of Mann and Whitney (1947).

    Args:
        scores: (n,) real numbers, higher for positive.
        labels: (n,), 0 (negative) or 1 (positive), at least one of each.

    Raises:
        InputError: A score is NaN, a label is not 0 or 1, or all labels are the same.
    """
    return _binary_area("roc_auc", scores, labels)


def average_precision(scores: NDArray, labels: NDArray) -> float:
    """Return the average precision: the area under the precision-recall curve as a sum of steps.

    It is the sum of (recall_i - recall_(i-1)) * precision_i over the distinct scores as thresholds, without
    interpolation, as in scikit-learn.

    Args:
        scores: (n,) real numbers, higher for positive.
        labels: (n,), 0 (negative) or 1 (positive), at least one of each.

    Raises:
        InputError: As for `roc_auc`.
    """
    return _binary_area("pr_auc", scores, labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranking:
    """Examples in the order of falling scores.

    Attributes:
        order: (n,) the indices of the examples.
        starts: The place in this order where each group of equal scores starts.
        positive: (n,) whether an example is positive, in this order.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    positive: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: NDArray, positive: NDArray[np.bool_]) -> "_Ranking":
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
        return cls(order=order, starts=starts, positive=positive[order])

    def groups(self, weights: Weights) -> tuple[NDArray, NDArray]:
        """Return the weights of the positive and of the negative examples in each group of equal scores."""
        own = weights[self.order]
        positive = np.add.reduceat(own * self.positive, self.starts)
        return positive, np.add.reduceat(own, self.starts) - positive

    def roc_auc(self, weights: Weights) -> float:
        """Return the area under the ROC curve; NaN without examples of both kinds."""
        positive, negative = self.groups(weights)
        num_positive, num_negative = int(positive.sum()), int(negative.sum())
        if not num_positive or not num_negative:
            return float("nan")
        below = num_negative - np.cumsum(negative)
        return float(np.sum(positive * (below + negative / 2))) / (num_positive * num_negative)

    def pr_auc(self, weights: Weights) -> float:
        """Return the average precision; NaN without examples of both kinds."""
        positive, negative = self.groups(weights)
        num_positive = int(positive.sum())
        if not num_positive or not negative.any():
            return float("nan")
        hits = np.cumsum(positive)
        precision = hits / np.maximum(hits + np.cumsum(negative), 1)
        return float(np.sum(positive * precision)) / num_positive


Area = Literal["roc_auc", "pr_auc"]
_MEASURES: dict[Area, Callable[[_Ranking, Weights], float]] = {"roc_auc": _Ranking.roc_auc, "pr_auc": _Ranking.pr_auc}


def _binary_area(area: Area, scores: NDArray, labels: NDArray) -> float:
    scores, labels = np.asarray(scores), np.asarray(labels)
    check_no_nan(scores, "the score")
    positive = binary_labels(labels, len(scores))
    if positive.all() or not positive.any():
        only = int(positive.all())
        raise InputError(
            f"{area} needs examples of both labels 0 and 1, but all {len(scores):,} labels are {only}. Use examples "
            "of both",
            field="labels",
            expected=(0, 1),
            got=only,
        )
    return _MEASURES[area](_Ranking.of(scores, positive), np.ones(len(scores), np.int64))


def binary_labels(labels: NDArray, n: int) -> NDArray[np.bool_]:
    """Return labels 0 and 1, (n,) of any numeric type or one-hot rows (n, 2), as booleans (n,).

    Raises:
        InputError: There are other labels, or another number of labels.
    """
    if labels.ndim == 2 and labels.shape[1] == 2:
        labels = without_one_hot(labels)
    flat = labels.reshape(len(labels), -1) if labels.ndim else labels.reshape(1, 1)
    if flat.shape != (n, 1):
        raise InputError(
            f"labels of shape {labels.shape} for {n:,} examples, expected shape ({n},) with 0 or 1 each",
            field="labels",
            expected=(n,),
            got=labels.shape,
        )
    flat = flat[:, 0]
    other = (flat != 0) & (flat != 1)
    if other.any():
        index = int(other.argmax())
        raise InputError(
            f"the label of example {index} is {flat[index]}, expected 0 (negative, normal) or 1 (positive, anomalous)",
            field="labels",
            expected=(0, 1),
            got=flat[index].item(),
        )
    return flat == 1


def positive_scores(outputs: NDArray) -> NDArray:
    """Return the (n,) scores of class 1.

    The score is the only output of an example; the second of two probabilities (>= 0, with sums within 0.02 of 1); or
    the second minus the first of two logits, which ranks examples as their softmax does.

    Raises:
        InputError: An example has more than two outputs.
    """
    flat = np.asarray(outputs).reshape(len(outputs), -1)
    if flat.shape[1] > 2:
        raise InputError(
            f"the model has {flat.shape[1]} output values per example, but this metric needs a score: one output, two "
            "classes, or a model that reconstructs its input. Choose another metric",
            field="outputs",
            expected="(n,), (n, 1) or (n, 2)",
            got=np.shape(outputs),
        )
    if flat.shape[1] == 2:
        first, second = flat.astype(np.float64).T
        # Two int8 probabilities add up to 1 within one step of 1/256.
        if (flat < 0).any() or (np.abs(first + second - 1) > 0.02).any():
            return second - first
    return flat[:, -1]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Columns:
    """The scores of each class, or of class 1 of two.

    Attributes:
        names: The numbers of the classes.
        scores: (n, classes).
        positive: (n, classes) whether an example has this class.
        note: How the scores were read.
    """

    names: tuple[str, ...]
    scores: NDArray
    positive: NDArray[np.bool_]
    note: str | None = None

    @classmethod
    def of(cls, outputs: NDArray, labels: NDArray) -> "_Columns":
        """Return those classes of which there are positive and negative examples."""
        flat, note = outputs.reshape(len(outputs), -1), None
        if are_independent(labels):
            check_independent(outputs, labels)
            scores, positive = flat, labels == 1
        elif flat.shape[1] <= 2:
            scores, positive = positive_scores(outputs)[:, None], binary_labels(labels, len(flat))[:, None]
            return cls(names=("1",), scores=scores, positive=positive)
        else:
            scores, note = class_probabilities(outputs)
            positive = checked_labels(labels, outputs)[:, None] == np.arange(flat.shape[1])
        (usable,) = np.nonzero(positive.any(axis=0) & ~positive.all(axis=0))
        left_out = positive.shape[1] - len(usable)
        notes = [note] if note else []
        if left_out:
            notes.append(f"{left_out:,} of {positive.shape[1]:,} classes do not have both kinds of examples: left out")
        return cls(
            names=tuple(str(index) for index in usable),
            scores=scores[:, usable],
            positive=positive[:, usable],
            note="; ".join(notes) or None,
        )

    def rankings(self) -> list[_Ranking]:
        return [_Ranking.of(scores, positive) for scores, positive in zip(self.scores.T, self.positive.T, strict=True)]


def _check_scores(outputs: Outputs, labels: NDArray) -> None:
    (values,) = outputs
    check_no_nan(values, "the score")
    if are_independent(labels):
        check_independent(values, labels)
    elif values.size > 2 * len(values):
        CLASSES.check(outputs, labels)
    else:
        binary_labels(labels, len(values))


def _why_not_two_classes(outputs: Outputs, labels: NDArray) -> str | None:
    labels = without_one_hot(labels)
    values = np.unique(labels)
    if labels.size == len(labels) and np.array_equal(values, [0, 1]):
        return None
    shown = ", ".join(str(value) for value in values[:5])
    return f"the ROC AUC of a reconstruction needs labels 0 (normal) and 1 (anomalous), got {shown}"


SCORES = Contract(
    outputs="(n,) or (n, 1) scores of class 1, (n, 2) probabilities or logits; (n, classes) probabilities or logits; "
    "or (n, labels) probabilities of independent labels",
    labels="(n,), each 0 or 1; class numbers (n,); one-hot rows; or (n, labels) zeros and ones",
    predicts="score",
    check=_check_scores,
    unsuited=_why_not_two_classes,
)


def _keep_scores(state: State, outputs: Outputs, labels: NDArray) -> State:
    # Keep all outputs: all examples together decide whether they are probabilities.
    flat = outputs[0].reshape(len(outputs[0]), -1)
    return concatenate_states(state, {"outputs": flat, "labels": labels})


def _values(area: Area, columns: _Columns) -> list[float]:
    ones = np.ones(len(columns.scores), np.int64)
    return [_MEASURES[area](ranking, ones) for ranking in columns.rankings()]


def _finish(area: Area, state: State) -> float:
    columns = _Columns.of(state["outputs"], state["labels"])
    if columns.names == ("1",):
        return _binary_area(area, columns.scores[:, 0], columns.positive[:, 0])
    if not columns.names:
        raise InputError(
            f"{area} needs examples of at least two classes, but all {len(columns.scores):,} labels are the same. Use "
            "examples of several",
            field="labels",
            expected="several classes",
            got=1,
        )
    return float(np.mean(_values(area, columns)))


def _resampled(area: Area, outputs: Outputs, labels: NDArray) -> Callable[[Weights], float] | None:
    columns = _Columns.of(outputs[0], labels)
    if columns.scores.size > MAX_RESAMPLED_VALUES:
        return None
    rankings, compute = columns.rankings(), _MEASURES[area]

    def measure(weights: Weights) -> float:
        values = np.array([compute(ranking, weights) for ranking in rankings])
        return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")

    return measure


def _table(area: Area, title: str, state: State) -> MetricTable | None:
    columns = _Columns.of(state["outputs"], state["labels"])
    if len(columns.names) < 2:
        return None
    support = columns.positive.sum(axis=0)
    return MetricTable(
        rows=columns.names,
        columns=("support", title),
        values=np.stack([support, _values(area, columns)], axis=1).astype(np.float64),
        unit="score",
        counts=("support",),
        classes=tuple(map(int, columns.names)),
    )


_AREAS: tuple[tuple[Area, str, str, Reconstruction | None], ...] = (
    (
        "roc_auc",
        "ROC AUC",
        "area under the ROC curve of the score of class 1, or of an autoencoder's reconstruction error; for several "
        "classes or labels the mean of each against the rest",
        Reconstruction(error=squared_error, against="labels", default=True),
    ),
    (
        "pr_auc",
        "PR AUC",
        "average precision, the area under the precision-recall curve, of the score of class 1; for several classes or "
        "labels the mean of each against the rest",
        None,
    ),
)
for _name, _title, _help, _reconstruction in _AREAS:
    register(
        Metric(
            name=_name,
            help=_help,
            title=_title,
            direction="higher",
            unit="score",
            contract=SCORES,
            update=_keep_scores,
            finish=functools.partial(_finish, _name),
            merge=concatenate_states,
            resampled=functools.partial(_resampled, _name),
            table=functools.partial(_table, _name, _title),
            note=lambda state: _Columns.of(state["outputs"], state["labels"]).note,
            reconstruction=_reconstruction,
        )
    )

# SPDX-License-Identifier: Apache-2.0
"""Count examples by class: states that merge exactly, and precision, recall and F1 of each class."""

import numpy as np
from numpy.typing import NDArray

from tfq.evaluation.metric import MetricTable, State

# Larger class numbers, which only a model that computes class numbers can predict, are not counted by class.
MAX_CLASSES = 1 << 16
COLUMNS = ("support", "predicted", "precision", "recall", "f1")


def class_counts(truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> State:
    """Return the counts of n examples by class: `hits`, `predicted` and `support`, (classes,) int64 each.

    Args:
        truth: (n,) the classes of the labels.
        predicted: (n,) the predicted classes. Numbers below 0 or from `MAX_CLASSES` on are wrong, and
            counted for no class.
    """
    parts = {"hits": truth[truth == predicted], "predicted": predicted, "support": truth}
    known = {name: values[(values >= 0) & (values < MAX_CLASSES)] for name, values in parts.items()}
    size = 1 + max((int(values.max(initial=-1)) for values in known.values()), default=-1)
    return {name: np.bincount(values, minlength=size) for name, values in known.items()}


def add_counts(a: State, b: State) -> State:
    """Merge two states by adding the arrays of the same name; the shorter of two (classes,) is padded with zeros."""
    return {**a, **b, **{name: _sum(a[name], b[name]) for name in a.keys() & b.keys()}}


def _sum(a: NDArray, b: NDArray) -> NDArray:
    if not a.ndim:
        return np.asarray(a + b)
    size = max(len(a), len(b))
    return np.asarray(np.pad(a, (0, size - len(a))) + np.pad(b, (0, size - len(b))))


def ratios(counts: State) -> dict[str, NDArray[np.float64]]:
    """Return the precision, recall and F1 of each class; NaN where nothing is predicted or labeled.

    Args:
        counts: `hits`, `predicted` and `support`, (..., classes) each.
    """
    hits, predicted, support = (np.asarray(counts[name], np.float64) for name in ("hits", "predicted", "support"))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "precision": hits / predicted,
            "recall": hits / support,
            "f1": 2 * hits / (predicted + support),
        }


def macro_average(counts: State, figure: str) -> float:
    """Return the mean of "precision", "recall" or "f1" over the classes that occur in the labels or the predictions.

    As in scikit-learn, a precision or recall that is not defined for such a class counts as 0.
    """
    occurs = (counts["predicted"] + counts["support"]) > 0
    return float(np.mean(np.nan_to_num(ratios(counts)[figure][occurs]))) if occurs.any() else float("nan")


def class_table(counts: State) -> MetricTable:
    """Return support, predicted examples, precision, recall and F1 of each class that occurs."""
    (rows,) = np.nonzero((counts["predicted"] + counts["support"]) > 0)
    figures = {**{name: np.asarray(counts[name], np.float64) for name in ("support", "predicted")}, **ratios(counts)}
    return MetricTable(
        rows=tuple(str(row) for row in rows),
        columns=COLUMNS,
        values=np.stack([figures[name][rows] for name in COLUMNS], axis=1),
        counts=("support", "predicted"),
        classes=tuple(map(int, rows)),
    )

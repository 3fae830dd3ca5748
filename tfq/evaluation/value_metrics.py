# SPDX-License-Identifier: Apache-2.0
"""Metrics of regressions besides the mean absolute error: root mean squared error and R2."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.metric import Metric, Outputs, State, Weights, concatenate_states
from tfq.evaluation.metrics import VALUES
from tfq.registry import register


def _squared_errors(outputs: Outputs, labels: NDArray) -> NDArray[np.float64]:
    """Return the (n, values) squared errors."""
    errors = outputs[0].reshape(labels.shape).astype(np.float64) - labels
    return np.square(errors).reshape(len(labels), -1)


def _resampled_rmse(outputs: Outputs, labels: NDArray) -> Callable[[Weights], float]:
    squares = _squared_errors(outputs, labels).mean(axis=1)
    return lambda weights: math.sqrt(weights @ squares / weights.sum())


register(
    Metric(
        name="rmse",
        help="root mean squared error against labels of the output's shape",
        title="RMSE",
        direction="lower",
        unit="label_unit",
        contract=VALUES,
        # Keep the errors, so that the mean is rounded in the same way for any pieces.
        update=lambda state, outputs, labels: concatenate_states(
            state, {"squares": _squared_errors(outputs, labels).mean(axis=1)}
        ),
        merge=concatenate_states,
        finish=lambda state: math.sqrt(state["squares"].mean()),
        resampled=_resampled_rmse,
    )
)


def _keep_values(state: State, outputs: Outputs, labels: NDArray) -> State:
    values = labels.reshape(len(labels), -1).astype(np.float64)
    return concatenate_states(state, {"squares": _squared_errors(outputs, labels), "labels": values})


def _determination(squares: NDArray[np.float64], labels: NDArray[np.float64]) -> Callable[[Weights], float]:
    """Return weights -> R2, the mean over the output values whose labels differ; NaN if there are none."""
    centered = labels - labels.mean(axis=0)

    def measure(weights: Weights) -> float:
        count = weights.sum()
        mean = weights @ centered / count
        variances = weights @ np.square(centered) / count - mean**2
        # The rounding of the subtraction, for labels that are constant among the drawn examples.
        varies = variances > 1e-12 * np.square(centered).max(initial=0)
        if not varies.any():
            return math.nan
        return float(np.mean(1 - (weights @ squares)[varies] / count / variances[varies]))

    return measure


def _r2(state: State) -> float:
    result = _determination(state["squares"], state["labels"])(np.ones(len(state["labels"]), np.int64))
    if math.isnan(result):
        raise InputError(
            "r2 compares errors with the variance of the labels, but all labels of an output value are the same. Use "
            "more examples, or another metric, such as rmse",
            field="labels",
            expected="labels that differ",
            got=0,
        )
    return result


def _constant_note(state: State) -> str | None:
    constant = int((np.ptp(state["labels"], axis=0) == 0).sum())
    total = state["labels"].shape[1]
    return f"{constant:,} of {total:,} output values have constant labels and are left out" if constant else None


register(
    Metric(
        name="r2",
        help="coefficient of determination: 1 - squared errors / variance of the labels; mean over the output values",
        title="R2",
        direction="higher",
        unit="none",
        contract=VALUES,
        update=_keep_values,
        merge=concatenate_states,
        finish=_r2,
        resampled=lambda outputs, labels: _determination(
            _squared_errors(outputs, labels), labels.reshape(len(labels), -1).astype(np.float64)
        ),
        note=_constant_note,
    )
)

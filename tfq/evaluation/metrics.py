# SPDX-License-Identifier: Apache-2.0
"""The built-in metrics, which compare outputs with labels.

To add one, create a `Metric` and pass it to `register`, here or in a plugin. The object has everything that
evaluations, bounds, records and reports need. Importing this module starts no interpreter.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tfq.data.split import check_width, class_labels, is_one_hot
from tfq.errors import InputError
from tfq.evaluation.class_counts import add_counts, class_counts, class_table
from tfq.evaluation.metric import (
    Contract,
    Metric,
    Outputs,
    Reconstruction,
    State,
    add_states,
    concatenate_states,
)
from tfq.registry import register

SIGMOID_THRESHOLD = 0.5
SIGMOID_NOTE = (
    "the model has one output value per example: it is used as the probability of class 1, which is predicted above 0.5"
)
# The quantile of the normal distribution for a confidence of 95%.
_QUANTILE = 1.959964


def has_classes(outputs: NDArray) -> bool:
    """Check whether `outputs` (n, ...) can predict one class per example: at most one other axis is longer than 1."""
    sizes = [size for size in outputs.shape[1:] if size != 1]
    return len(sizes) <= 1 and 0 not in sizes


def is_probability(outputs: NDArray) -> bool:
    """Check whether `outputs` are one real number per example, which is used as the probability of class 1."""
    return outputs.size == len(outputs) and outputs.dtype.kind == "f"


def predicted_classes(outputs: NDArray) -> NDArray[np.int64]:
    """Return the (n,) classes of `outputs` (n, ...): the largest value, with ties going to the lower class.

    One real number per example is a probability: class 1 above 0.5, else class 0. One integer per example is the class
    itself, as in a model that ends with an argmax.

    Raises:
        InputError: A value is NaN, or an example does not have one class.
    """
    outputs = np.asarray(outputs)
    if not outputs.ndim or not outputs.size:
        raise InputError(
            f"outputs of shape {outputs.shape} are empty, expected at least one example with at least one value",
            field="outputs",
            expected="(n, classes)",
            got=outputs.shape,
        )
    check_no_nan(outputs, "the output")
    if not has_classes(outputs):
        raise InputError(
            f"outputs of shape {outputs.shape} do not predict one class per example, expected (n, classes). Choose "
            "another metric",
            field="outputs",
            expected="(n, classes)",
            got=outputs.shape,
        )
    flat = outputs.reshape(len(outputs), -1)
    if is_probability(outputs):
        return (flat[:, 0] > SIGMOID_THRESHOLD).astype(np.int64)
    return flat.argmax(axis=1) if flat.shape[1] > 1 else flat[:, 0].astype(np.int64)


def checked_labels(labels: NDArray, outputs: NDArray) -> NDArray[np.int64]:
    """Return `labels`, class numbers (n,) or one-hot rows (n, classes), as int64 (n,).

    Raises:
        InputError: They have another form or length, or are not classes of `outputs`.
    """
    checked = class_labels(np.asarray(labels), "labels")
    if len(checked) != len(outputs):
        raise InputError(
            f"expected one label for each of {len(outputs):,} examples, got {len(checked):,} labels",
            field="labels",
            expected=len(outputs),
            got=len(checked),
        )
    size = outputs.size // len(outputs)
    classes = 2 if is_probability(outputs) else size
    if size > 1 or classes == 2:
        check_width(np.asarray(labels), classes, "labels")
    if (size > 1 or classes == 2) and checked.max(initial=0) >= classes:
        index = int((checked >= classes).argmax())
        raise InputError(
            f"the label of example {index} is {checked[index]}, but the model has {classes} classes, so labels must be "
            f"0 to {classes - 1}. Check that the model and the data belong together",
            field="labels",
            expected=f"0 to {classes - 1}",
            got=int(checked[index]),
        )
    return checked


def check_no_nan(values: NDArray, what: str) -> None:
    """Raise InputError with the first example whose values contain NaN."""
    if values.dtype.kind == "f":
        values = np.atleast_1d(values)
        bad = np.isnan(values).reshape(len(values), -1).any(axis=1)
        if bad.any():
            raise InputError(
                f"{what} is NaN for example {int(bad.argmax())} ({int(bad.sum()):,} of {len(values):,} examples), so "
                "nothing can be compared. Check the model's weights and inputs",
                field="outputs",
                expected="numbers",
                got=float("nan"),
            )


def _check_classes(outputs: Outputs, labels: NDArray, at_least: int = 1) -> None:
    (values,) = outputs
    predicted_classes(values)  # for its checks
    classes = values.size // len(values)
    if classes < at_least:
        raise InputError(
            f"the model has {classes} classes, but this metric needs at least {at_least}: with fewer, it is always 1. "
            "Choose another metric",
            field="outputs",
            expected=at_least,
            got=classes,
        )
    checked_labels(labels, values)


def _why_no_classes(outputs: Outputs, labels: NDArray) -> str | None:
    if labels.dtype.kind == "f" and not is_one_hot(labels):
        return (
            f"the labels are {labels.dtype} {list(labels.shape)}, not class numbers. Choose another metric "
            "(evaluation.metric), such as mae"
        )
    return None if has_classes(outputs[0]) else why_no_single_class(outputs[0])


def why_no_single_class(outputs: NDArray) -> str:
    """Return the reason why metrics of classes cannot be computed for these outputs."""
    return (
        f"the first output, {list(outputs.shape)}, does not predict one class per example. Choose evaluation.metric, "
        "such as pixel_accuracy for maps of classes"
    )


CLASSES = Contract(
    outputs="(n, classes), or (n,) probabilities of class 1 or class numbers",
    labels="(n,) integers in [0, classes), or one-hot rows (n, classes)",
    predicts="classes",
    check=_check_classes,
    unsuited=_why_no_classes,
)


def top1(outputs: NDArray, labels: NDArray) -> float:
    """Return the fraction of examples whose predicted class is their label, in [0, 1].

    Args:
        outputs: (n, classes), or (n,) or (n, 1) probabilities or class numbers.
        labels: (n,) integers in [0, classes), or one-hot rows (n, classes).

    Raises:
        InputError: Labels have another length, are out of range or not integers, or as for `predicted_classes`.
    """
    return TOP1.compute((np.asarray(outputs),), np.asarray(labels))


def topk(outputs: NDArray, labels: NDArray, k: int = 5) -> float:
    """Return the fraction of examples whose label is among the `k` classes with the largest outputs, in [0, 1].

    Ties go to the lower class, so that k = 1 is top-1.

    Args:
        outputs: (n, classes), with more than k classes.
        labels: (n,) integers in [0, classes), or one-hot rows (n, classes).
        k: The number of classes.

    Raises:
        InputError: As for `top1`, and if there are at most k classes.
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    _check_classes((outputs,), labels, k + 1)
    return float(np.mean(_among_largest((outputs,), labels, k)))


def _is_correct(outputs: Outputs, labels: NDArray) -> NDArray[np.bool_]:
    return predicted_classes(outputs[0]) == checked_labels(labels, outputs[0])


def _among_largest(outputs: Outputs, labels: NDArray, k: int = 5) -> NDArray[np.bool_]:
    flat = outputs[0].reshape(len(outputs[0]), -1)
    label_column = checked_labels(labels, outputs[0])[:, None]
    label_output = np.take_along_axis(flat, label_column, axis=1)
    ranked_higher = (flat > label_output) | ((flat == label_output) & (np.arange(flat.shape[1]) < label_column))
    return ranked_higher.sum(axis=1) < k


def count_correct(examples: Callable[[Outputs, NDArray], NDArray]) -> Callable[[State, Outputs, NDArray], State]:
    """Return an update that counts all examples and the correct ones."""

    def update(state: State, outputs: Outputs, labels: NDArray) -> State:
        is_correct = examples(outputs, labels)
        return add_states(state, {"correct": np.asarray(is_correct.sum()), "examples": np.asarray(is_correct.size)})

    return update


def _count_classes(state: State, outputs: Outputs, labels: NDArray) -> State:
    """Count correct examples, and all by class, for the table."""
    counted = count_correct(_is_correct)({}, outputs, labels)
    by_class = class_counts(checked_labels(labels, outputs[0]), predicted_classes(outputs[0]))
    return add_counts(state, {**counted, **by_class})


def fraction(state: State) -> float:
    """Return the fraction of correct examples of a state with the counts `correct` and `examples`."""
    return int(state["correct"]) / int(state["examples"])


def wilson_interval(state: State) -> tuple[float, float] | None:
    """Return the 95% score interval of a fraction for a state with the counts `correct` and `examples`.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.
    """
    is_correct, count = int(state["correct"]), int(state["examples"])
    if not count:
        return None
    fraction, square = is_correct / count, _QUANTILE**2
    center = (fraction + square / (2 * count)) / (1 + square / count)
    reach = _QUANTILE * np.sqrt(fraction * (1 - fraction) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, float(center - reach)), min(1.0, float(center + reach))


TOP1 = register(
    Metric(
        name="top1",
        help="fraction of examples whose label has the largest output; a tie counts for the lower class",
        title="top-1",
        direction="higher",
        unit="fraction",
        contract=CLASSES,
        update=_count_classes,
        merge=add_counts,
        finish=fraction,
        examples=_is_correct,
        table=class_table,
        interval=wilson_interval,
        default=True,
    )
)
register(
    Metric(
        name="top5",
        help="fraction of examples whose label is among the five largest outputs; for more than five classes",
        title="top-5",
        direction="higher",
        unit="fraction",
        contract=dataclasses.replace(
            CLASSES,
            outputs="(n, classes), at least 6 classes",
            check=lambda outputs, labels: _check_classes(outputs, labels, 6),
        ),
        update=count_correct(_among_largest),
        finish=fraction,
        examples=_among_largest,
        interval=wilson_interval,
        reported_with=("top1",),
    )
)


def squared_error(outputs: NDArray, inputs: NDArray) -> NDArray[np.float64]:
    """Return the (n,) mean squared differences of outputs and inputs, both (n, ...)."""
    return np.mean(_difference(outputs, inputs) ** 2, axis=1)


def absolute_error(outputs: NDArray, inputs: NDArray) -> NDArray[np.float64]:
    """Return the (n,) mean absolute differences of outputs and inputs, both (n, ...)."""
    return np.mean(_difference(outputs, inputs), axis=1)


def _difference(outputs: NDArray, inputs: NDArray) -> NDArray[np.float64]:
    if outputs.shape != inputs.shape:
        raise InputError(
            f"outputs of shape {list(outputs.shape)} do not reconstruct inputs of shape {list(inputs.shape)}",
            field="outputs",
            expected=inputs.shape,
            got=outputs.shape,
        )
    return np.abs(outputs.reshape(len(outputs), -1).astype(np.float64) - inputs.reshape(len(inputs), -1))


def mean_absolute_error(outputs: NDArray, labels: NDArray) -> float:
    """Return the mean of |outputs - labels| over all values, in the unit of the labels.

    Raises:
        InputError: The shapes differ by more than axes of length 1, or labels are NaN or infinite.
    """
    return MAE.compute((np.asarray(outputs),), np.asarray(labels))


def _check_values(outputs: Outputs, labels: NDArray) -> None:
    (values,) = outputs
    check_no_nan(values, "the output")
    if squeezed_shape(values) != squeezed_shape(labels):
        raise InputError(
            f"outputs of shape {list(values.shape)} and labels of shape {list(labels.shape)} differ, expected one "
            "label for each output value",
            field="labels",
            expected=values.shape,
            got=labels.shape,
        )
    if labels.dtype.kind not in "fiub" or not np.isfinite(labels).all():
        raise InputError(
            f"the labels ({labels.dtype}) contain NaN, infinity or values that are not numbers. Fix or remove them",
            field="labels",
            expected="finite numbers",
            got=str(labels.dtype),
        )


def squeezed_shape(array: NDArray) -> tuple[int, ...]:
    """Return the shape of `array` (n, ...) without axes of length 1, except the first."""
    return (len(array), *(size for size in array.shape[1:] if size != 1))


VALUES = Contract(
    outputs="(n, ...) real numbers",
    labels="(n, ...) finite numbers, one for each output value; axes of length 1 do not matter",
    predicts="values",
    check=_check_values,
)


def _absolute_errors(outputs: Outputs, labels: NDArray) -> NDArray[np.float64]:
    return np.abs(outputs[0].reshape(labels.shape).astype(np.float64) - labels)


MAE = register(
    Metric(
        name="mae",
        help="mean absolute error against labels of the output's shape, or of an autoencoder against its input",
        title="MAE",
        direction="lower",
        unit="label_unit",
        contract=VALUES,
        # Keep all errors, so that the mean is rounded in the same way for any pieces.
        update=lambda state, outputs, labels: concatenate_states(state, {"errors": _absolute_errors(outputs, labels)}),
        finish=lambda state: float(np.mean(state["errors"])),
        merge=concatenate_states,
        examples=lambda outputs, labels: _absolute_errors(outputs, labels).reshape(len(labels), -1).mean(axis=1),
        reconstruction=Reconstruction(error=absolute_error, against="zero", reported_with=("roc_auc",)),
    )
)

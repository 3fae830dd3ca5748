# SPDX-License-Identifier: Apache-2.0
"""The metrics of tfq: how good outputs are against labels.

To add one, make a `Metric` and pass it to `register`, here or in a plugin. The object carries everything that
evaluations, bounds, records and reports need to know about it. Importing this module starts no interpreter.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tfq.data.split import check_width, class_labels, is_one_hot, without_one_hot
from tfq.errors import InputError
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
SIGMOID_NOTE = "the model has one output value for an example: read as the probability of class 1, chosen above 0.5"
# The quantile of the normal distribution for a confidence of 95%.
_QUANTILE = 1.959964


def has_classes(outputs: NDArray) -> bool:
    """Return whether `outputs` (n, ...) give each example one class: at most one other axis is longer than 1."""
    sizes = [size for size in outputs.shape[1:] if size != 1]
    return len(sizes) <= 1 and 0 not in sizes


def is_probability(outputs: NDArray) -> bool:
    """Return whether `outputs` are one real number an example, which is read as the probability of class 1."""
    return outputs.size == len(outputs) and outputs.dtype.kind == "f"


def predicted_classes(outputs: NDArray) -> NDArray[np.int64]:
    """Return the (n,) classes of `outputs` (n, ...): the first of the largest values, so ties go to the lower class.

    One real number an example is a probability: class 1 above 0.5, else 0. One integer an example is the class itself,
    of a model that ends in an argmax.

    Raises:
        InputError: NaN, or an example has no one class.
    """
    outputs = np.asarray(outputs)
    if not outputs.ndim or not outputs.size:
        raise InputError(
            f"outputs of shape {outputs.shape}: expected at least one example, and a value for each",
            field="outputs",
            expected="(n, classes)",
            got=outputs.shape,
        )
    check_no_nan(outputs, "the output")
    if not has_classes(outputs):
        raise InputError(
            f"outputs of shape {outputs.shape} give an example no one class: expected (n, classes), or another metric",
            field="outputs",
            expected="(n, classes)",
            got=outputs.shape,
        )
    flat = outputs.reshape(len(outputs), -1)
    if is_probability(outputs):
        return (flat[:, 0] > SIGMOID_THRESHOLD).astype(np.int64)
    return flat.argmax(axis=1) if flat.shape[1] > 1 else flat[:, 0].astype(np.int64)


def checked_labels(labels: NDArray, outputs: NDArray) -> NDArray[np.int64]:
    """Return `labels`, class numbers (n,) or one-hot rows (n, classes), as int64 (n,), each a class of `outputs`.

    Raises:
        InputError: They are not, with index, value and the number of classes.
    """
    checked = class_labels(np.asarray(labels), "labels")
    if len(checked) != len(outputs):
        raise InputError(
            f"{len(checked):,} labels for {len(outputs):,} examples: expected one label for each",
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
            f"label of example {index} is {checked[index]}, and the model has {classes} classes: expected 0 to "
            f"{classes - 1}: is this the data that the model was made for?",
            field="labels",
            expected=f"0 to {classes - 1}",
            got=int(checked[index]),
        )
    return checked


def check_no_nan(values: NDArray, what: str) -> None:
    """Raise InputError with the first example whose values hold NaN."""
    if values.dtype.kind == "f":
        bad = np.isnan(values).reshape(len(values), -1).any(axis=1)
        if bad.any():
            raise InputError(
                f"{what} is NaN for example {int(bad.argmax())} ({int(bad.sum()):,} of {len(values):,} examples): the "
                "model computes no number there, so nothing can be compared",
                field="outputs",
                expected="numbers",
                got=float("nan"),
            )


def _check_classes(outputs: Outputs, labels: NDArray, at_least: int = 1) -> None:
    (values,) = outputs
    predicted_classes(values)  # for what it refuses
    classes = values.size // len(values)
    if classes < at_least:
        raise InputError(
            f"expected at least {at_least} classes, the model has {classes}: the metric would be 1 whatever it does",
            field="outputs",
            expected=at_least,
            got=classes,
        )
    checked_labels(labels, values)


def _no_classes(outputs: Outputs, labels: NDArray) -> str | None:
    if labels.dtype.kind == "f" and not is_one_hot(labels):
        return f"the labels are {labels.dtype} {list(labels.shape)}, no class numbers: give metric=, such as mae"
    return None if has_classes(outputs[0]) else no_one_class(outputs[0])


def no_one_class(outputs: NDArray) -> str:
    """Return the reason why nothing that goes by classes can be computed from these outputs."""
    return f"the first output, {list(outputs.shape)}, gives an example no one class: give metric="


CLASSES = Contract(
    outputs="(n, classes), or (n,) probabilities of class 1 or class numbers",
    labels="(n,) integers in [0, classes), or one-hot rows (n, classes)",
    goes_by="classes",
    check=_check_classes,
    unsuited=_no_classes,
)


def top1(outputs: NDArray, labels: NDArray) -> float:
    """Return the fraction of examples whose predicted class is their label, in [0, 1].

    Args:
        outputs: (n, classes), or (n,) or (n, 1) probabilities or class numbers.
        labels: (n,) integers in [0, classes), or one-hot rows (n, classes).

    Raises:
        InputError: Labels of another length, out of range or not integer, or what `predicted_classes` refuses.
    """
    return TOP1.compute((np.asarray(outputs),), np.asarray(labels))


def topk(outputs: NDArray, labels: NDArray, k: int = 5) -> float:
    """Return the fraction of examples whose label is among the `k` classes with the largest outputs, in [0, 1].

    Ties go to the lower class, so that k = 1 is top-1.

    Args:
        outputs: (n, classes), more than k of them.
        labels: (n,) integers in [0, classes), or one-hot rows (n, classes).
        k: The number of classes.

    Raises:
        InputError: As `top1`, and if there are no more than k classes.
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    _check_classes((outputs,), labels, k + 1)
    return float(np.mean(_among_largest((outputs,), labels, k)))


def _right(outputs: Outputs, labels: NDArray) -> NDArray[np.bool_]:
    return predicted_classes(outputs[0]) == checked_labels(labels, outputs[0])


def _among_largest(outputs: Outputs, labels: NDArray, k: int = 5) -> NDArray[np.bool_]:
    flat = outputs[0].reshape(len(outputs[0]), -1)
    own_class = checked_labels(labels, outputs[0])[:, None]
    own = np.take_along_axis(flat, own_class, axis=1)
    before = (flat > own) | ((flat == own) & (np.arange(flat.shape[1]) < own_class))
    return before.sum(axis=1) < k


def _counting(examples: Callable[[Outputs, NDArray], NDArray]) -> Callable[[State, Outputs, NDArray], State]:
    """Return an update that counts the examples and those that are right."""

    def update(state: State, outputs: Outputs, labels: NDArray) -> State:
        right = examples(outputs, labels)
        return add_states(state, {"correct": np.asarray(right.sum()), "examples": np.asarray(right.size)})

    return update


def _fraction(state: State) -> float:
    return int(state["correct"]) / int(state["examples"])


def wilson_interval(state: State) -> tuple[float, float] | None:
    """Return the 95% score interval of a fraction, of a state with the counts `correct` and `examples`.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.
    """
    right, count = int(state["correct"]), int(state["examples"])
    if not count:
        return None
    fraction, square = right / count, _QUANTILE**2
    center = (fraction + square / (2 * count)) / (1 + square / count)
    reach = _QUANTILE * np.sqrt(fraction * (1 - fraction) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, float(center - reach)), min(1.0, float(center + reach))


TOP1 = register(
    Metric(
        name="top1",
        help="fraction of examples whose label has the largest output; a tie counts for the lower class",
        word="top-1",
        direction="higher",
        unit="fraction",
        contract=CLASSES,
        update=_counting(_right),
        finish=_fraction,
        examples=_right,
        interval=wilson_interval,
        default=True,
    )
)
register(
    Metric(
        name="top5",
        help="fraction of examples whose label is among the five largest outputs; for more than five classes",
        word="top-5",
        direction="higher",
        unit="fraction",
        contract=dataclasses.replace(
            CLASSES,
            outputs="(n, classes), at least 6 classes",
            check=lambda outputs, labels: _check_classes(outputs, labels, 6),
        ),
        update=_counting(_among_largest),
        finish=_fraction,
        examples=_among_largest,
        interval=wilson_interval,
        accompanies=("top1",),
    )
)


def roc_auc(scores: NDArray, labels: NDArray) -> float:
    """Return the area under the ROC curve: how often a positive example scores above a negative one; ties count half.

    Computed from the sum of ranks (Mann and Whitney 1947), where equal scores have their mean rank.

    Args:
        scores: (n,) real numbers, higher for positive.
        labels: (n,), 0 negative or 1 positive, at least one of each.

    Raises:
        InputError: NaN among the scores, other labels, or only one of the two.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    check_no_nan(scores, "the score")
    positive = binary_labels(labels, len(scores))
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        only = 1 if num_positive else 0
        raise InputError(
            f"roc_auc expects examples of both labels 0 and 1: all {len(scores):,} here are {only}",
            field="labels",
            expected=(0, 1),
            got=only,
        )
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    above = float(ranks[positive].sum()) - num_positive * (num_positive + 1) / 2
    return above / (num_positive * num_negative)


def binary_labels(labels: NDArray, n: int) -> NDArray[np.bool_]:
    """Return (n,) booleans of labels 0 and 1 of any numeric type, (n,), or one-hot rows (n, 2).

    Raises:
        InputError: Other labels, or of another number.
    """
    if labels.ndim == 2 and labels.shape[1] == 2:
        labels = without_one_hot(labels)
    flat = labels.reshape(len(labels), -1) if labels.ndim else labels.reshape(1, 1)
    if flat.shape != (n, 1):
        raise InputError(
            f"labels of shape {labels.shape} for {n:,} examples: expected (n,), each 0 or 1",
            field="labels",
            expected=(n,),
            got=labels.shape,
        )
    flat = flat[:, 0]
    other = (flat != 0) & (flat != 1)
    if other.any():
        index = int(other.argmax())
        raise InputError(
            f"label of example {index} is {flat[index]}: expected 0 (normal) or 1 (anomalous)",
            field="labels",
            expected=(0, 1),
            got=flat[index].item(),
        )
    return flat == 1


def positive_scores(outputs: NDArray) -> NDArray:
    """Return the (n,) scores of class 1.

    These are the one output of an example; of two probabilities (>= 0, sums within 0.02 of 1) the second; of two logits
    the second minus the first, which ranks as their softmax. Raises InputError on more outputs.
    """
    flat = np.asarray(outputs).reshape(len(outputs), -1)
    if flat.shape[1] > 2:
        raise InputError(
            f"expected one score for each example, the model has {flat.shape[1]} output values (a model with one "
            "output, with two classes, or one that reconstructs its input has a score): choose another metric",
            field="outputs",
            expected="(n,), (n, 1) or (n, 2)",
            got=np.shape(outputs),
        )
    if flat.shape[1] == 2:
        first, second = flat.astype(np.float64).T
        # int8 probabilities of two classes add up to 1 within one step of 1/256.
        if (flat < 0).any() or (np.abs(first + second - 1) > 0.02).any():
            return second - first
    return flat[:, -1]


def _check_scores(outputs: Outputs, labels: NDArray) -> None:
    check_no_nan(positive_scores(outputs[0]), "the score")
    binary_labels(labels, len(outputs[0]))


def _no_two_classes(outputs: Outputs, labels: NDArray) -> str | None:
    labels = without_one_hot(labels)
    values = np.unique(labels)
    if labels.size == len(labels) and np.array_equal(values, [0, 1]):
        return None
    shown = ", ".join(str(value) for value in values[:5])
    return f"the ROC AUC of a reconstruction needs labels 0 (normal) and 1 (anomalous), these are {shown}"


SCORES = Contract(
    outputs="(n,) or (n, 1) scores of class 1, or (n, 2) probabilities or logits",
    labels="(n,), each 0 or 1, or one-hot rows (n, 2)",
    goes_by="score",
    check=_check_scores,
    unsuited=_no_two_classes,
)


def squared_error(outputs: NDArray, inputs: NDArray) -> NDArray[np.float64]:
    """Return the (n,) mean squared difference of each example's output from its input, both (n, ...)."""
    return np.mean(_difference(outputs, inputs) ** 2, axis=1)


def absolute_error(outputs: NDArray, inputs: NDArray) -> NDArray[np.float64]:
    """Return the (n,) mean absolute difference of each example's output from its input, both (n, ...)."""
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


def _keep_scores(state: State, outputs: Outputs, labels: NDArray) -> State:
    # Both outputs of two: whether they are probabilities is decided over all examples.
    flat = outputs[0].reshape(len(outputs[0]), -1)
    return concatenate_states(state, {"outputs": flat, "labels": binary_labels(labels, len(flat))})


register(
    Metric(
        name="roc_auc",
        help="area under the ROC curve of the score of class 1, or of an autoencoder's reconstruction error",
        word="ROC AUC",
        direction="higher",
        unit="score",
        contract=SCORES,
        update=_keep_scores,
        finish=lambda state: roc_auc(positive_scores(state["outputs"]), state["labels"]),
        merge=concatenate_states,
        reconstruction=Reconstruction(error=squared_error, against="labels", default=True),
    )
)


def mean_absolute_error(outputs: NDArray, labels: NDArray) -> float:
    """Return the mean of |outputs - labels| over all values, in the labels' unit; axes of length 1 do not matter.

    Raises:
        InputError: The shapes differ otherwise, or labels are NaN or infinite.
    """
    return MAE.compute((np.asarray(outputs),), np.asarray(labels))


def _check_values(outputs: Outputs, labels: NDArray) -> None:
    (values,) = outputs
    check_no_nan(values, "the output")
    if _squeezed(values) != _squeezed(labels):
        raise InputError(
            f"outputs of shape {list(values.shape)} and labels of shape {list(labels.shape)}: expected a label for "
            "each output value",
            field="labels",
            expected=values.shape,
            got=labels.shape,
        )
    if labels.dtype.kind not in "fiub" or not np.isfinite(labels).all():
        raise InputError(
            f"the labels ({labels.dtype}) contain NaN, infinity or something that is no number: fix or remove them",
            field="labels",
            expected="finite numbers",
            got=str(labels.dtype),
        )


def _squeezed(array: NDArray) -> tuple[int, ...]:
    return (len(array), *(size for size in array.shape[1:] if size != 1))


VALUES = Contract(
    outputs="(n, ...) real numbers",
    labels="(n, ...) finite numbers, one for each output value; axes of length 1 do not matter",
    goes_by="values",
    check=_check_values,
)


def _absolute_errors(outputs: Outputs, labels: NDArray) -> NDArray[np.float64]:
    return np.abs(outputs[0].reshape(labels.shape).astype(np.float64) - labels)


MAE = register(
    Metric(
        name="mae",
        help="mean absolute error against labels of the output's shape, or of an autoencoder against its input",
        word="MAE",
        direction="lower",
        unit="label_unit",
        contract=VALUES,
        # All errors are kept, so that the mean rounds in the same way whatever the pieces.
        update=lambda state, outputs, labels: concatenate_states(state, {"errors": _absolute_errors(outputs, labels)}),
        finish=lambda state: float(np.mean(state["errors"])),
        merge=concatenate_states,
        examples=lambda outputs, labels: _absolute_errors(outputs, labels).reshape(len(labels), -1).mean(axis=1),
        reconstruction=Reconstruction(error=absolute_error, against="zero", accompanies=("roc_auc",)),
    )
)

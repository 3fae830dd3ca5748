# SPDX-License-Identifier: Apache-2.0
"""What outputs are worth: against labels, against the inputs, and beside another model's outputs."""

import numpy as np
from numpy.typing import NDArray

from tfq.data.split import class_labels
from tfq.errors import InputError

SIGMOID_THRESHOLD = 0.5
SIGMOID_NOTE = "the model has one output value for an example: read as the probability of class 1, chosen above 0.5"


def has_classes(outputs: NDArray) -> bool:
    """Whether `outputs` (n, ...) give each example one class: at most one of its other axes is longer than 1."""
    sizes = [size for size in outputs.shape[1:] if size != 1]
    return len(sizes) <= 1 and 0 not in sizes


def is_probability(outputs: NDArray) -> bool:
    """Whether `outputs` are one real number an example, which is read as the probability of class 1."""
    return outputs.size == len(outputs) and outputs.dtype.kind == "f"


def predicted_classes(outputs: NDArray) -> NDArray[np.int64]:
    """(n,) classes of `outputs` (n, ...): the first of the largest values, so ties go to the lower class.

    One real number an example is a probability: class 1 above 0.5, else 0. One integer an example is the class itself,
    of a model that ends in an argmax. Raises InputError on NaN, and where an example has no one class.
    """
    outputs = np.asarray(outputs)
    if not outputs.ndim or not outputs.size:
        raise InputError(f"outputs of shape {outputs.shape}: wanted at least one example, and a value for each")
    check_no_nan(outputs, "the output")
    if not has_classes(outputs):
        raise InputError(
            f"outputs of shape {outputs.shape} give an example no one class: wanted (n, classes), or metric="
        )
    flat = outputs.reshape(len(outputs), -1)
    if is_probability(outputs):
        return (flat[:, 0] > SIGMOID_THRESHOLD).astype(np.int64)
    return flat.argmax(axis=1) if flat.shape[1] > 1 else flat[:, 0].astype(np.int64)


def top1(outputs: NDArray, labels: NDArray) -> float:
    """Share of examples whose predicted class is their label, in [0, 1].

    outputs: (n, classes), or (n,) or (n, 1) probabilities or class numbers. labels: (n,) integers in [0, classes).
    Raises InputError on labels of another length, out of range or not integer, and as `predicted_classes` does.
    """
    outputs = np.asarray(outputs)
    return float(np.mean(predicted_classes(outputs) == checked_labels(labels, outputs)))


def topk(outputs: NDArray, labels: NDArray, k: int = 5) -> float:
    """Share of examples whose label is among the `k` classes with the largest outputs, in [0, 1].

    outputs: (n, classes), more than k of them. labels: (n,) integers in [0, classes). Ties go to the lower class, so
    that k = 1 is top-1. Raises InputError as `top1` does, and where k classes are all there are.
    """
    outputs = np.asarray(outputs)
    predicted_classes(outputs)  # for what it refuses
    flat = outputs.reshape(len(outputs), -1)
    classes = flat.shape[1]
    if classes <= k:
        raise InputError(f"top{k} wants more than {k} classes, the model has {classes}: it would be 1 whatever it does")
    labels = checked_labels(labels, outputs)[:, None]
    own = np.take_along_axis(flat, labels, axis=1)
    before = (flat > own) | ((flat == own) & (np.arange(classes) < labels))
    return float(np.mean(before.sum(axis=1) < k))


def roc_auc(scores: NDArray, labels: NDArray) -> float:
    """Area under the ROC curve: how often a positive example scores above a negative one, a tie counting half.

    scores: (n,) real numbers, higher for positive. labels: (n,), 0 negative or 1 positive, at least one of each.
    By the sum of ranks (Mann and Whitney 1947), equal scores sharing their mean rank. Raises InputError otherwise.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    check_no_nan(scores, "the score")
    positive = binary_labels(labels, len(scores))
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        only = 1 if num_positive else 0
        raise InputError(f"roc_auc wants examples of both labels 0 and 1: all {len(scores):,} here are {only}")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    above = float(ranks[positive].sum()) - num_positive * (num_positive + 1) / 2
    return above / (num_positive * num_negative)


def binary_labels(labels: NDArray, n: int) -> NDArray[np.bool_]:
    """(n,) booleans of labels 0 and 1, in whatever type of number. Raises InputError on others and another length."""
    flat = labels.reshape(len(labels), -1) if labels.ndim else labels.reshape(1, 1)
    if flat.shape != (n, 1):
        raise InputError(f"labels of shape {labels.shape} for {n:,} examples: wanted (n,), each 0 or 1")
    flat = flat[:, 0]
    other = (flat != 0) & (flat != 1)
    if other.any():
        index = int(other.argmax())
        raise InputError(f"label of example {index} is {flat[index]}: roc_auc wants 0 (normal) and 1 (anomalous)")
    return flat == 1


def positive_scores(outputs: NDArray) -> NDArray:
    """(n,) scores of class 1: the one output of an example; of two probabilities (>= 0, sums within 0.02 of 1) the
    second; of two logits the second above the first, which ranks as their softmax. Raises InputError on more.
    """
    flat = np.asarray(outputs).reshape(len(outputs), -1)
    if flat.shape[1] > 2:
        raise InputError(
            f"roc_auc wants one score an example: the model gives {flat.shape[1]} (one output, two classes, or a model "
            "that reconstructs its input have one): choose another evaluation.metric"
        )
    if flat.shape[1] == 2:
        first, second = flat.astype(np.float64).T
        # int8 probabilities of two classes add up to 1 within one step of 1/256.
        if (flat < 0).any() or (np.abs(first + second - 1) > 0.02).any():
            return second - first
    return flat[:, -1]


def mean_absolute_error(outputs: NDArray, labels: NDArray) -> float:
    """Mean of |outputs - labels| over all values, in the labels' own unit; axes of length 1 do not matter.

    Raises InputError where the shapes differ otherwise, and on labels that are NaN or infinite.
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    check_no_nan(outputs, "the output")
    if _squeezed(outputs) != _squeezed(labels):
        raise InputError(
            f"mae: outputs of shape {list(outputs.shape)} and labels of shape {list(labels.shape)}: wanted a label for "
            "each output value"
        )
    if labels.dtype.kind not in "fiub" or not np.isfinite(labels).all():
        raise InputError(f"mae: the labels ({labels.dtype}) hold what is no finite number: mend or leave them out")
    return float(np.mean(np.abs(outputs.reshape(labels.shape).astype(np.float64) - labels)))


def _squeezed(array: NDArray) -> tuple[int, ...]:
    return (len(array), *(size for size in array.shape[1:] if size != 1))


def reconstruction_errors(outputs: NDArray, inputs: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) mean squared and (n,) mean absolute difference of each example's output from its input, both (n, ...)."""
    if outputs.shape != inputs.shape:
        raise InputError(
            f"outputs of shape {list(outputs.shape)} are no reconstruction of inputs of {list(inputs.shape)}"
        )
    difference = np.abs(outputs.reshape(len(outputs), -1).astype(np.float64) - inputs.reshape(len(inputs), -1))
    return np.mean(difference**2, axis=1), np.mean(difference, axis=1)


def agreement(outputs: NDArray, reference: NDArray) -> float:
    """Share of examples with the same predicted class in both (n, classes), in [0, 1]. Raises as `top1` does."""
    outputs, reference = np.asarray(outputs), np.asarray(reference)
    if outputs.shape != reference.shape:
        raise InputError(f"agreement: outputs of shapes {outputs.shape} and {reference.shape}: wanted one shape")
    return float(np.mean(predicted_classes(outputs) == predicted_classes(reference)))


def checked_labels(labels: NDArray, outputs: NDArray) -> NDArray[np.int64]:
    """`labels` as int64 (n,), each a class of `outputs`. Raises InputError otherwise, with index, value and classes."""
    checked = class_labels(np.asarray(labels), "labels")
    if len(checked) != len(outputs):
        raise InputError(f"{len(checked):,} labels for {len(outputs):,} examples: wanted one label for each")
    size = outputs.size // len(outputs)
    classes = 2 if is_probability(outputs) else size
    if (size > 1 or classes == 2) and checked.max(initial=0) >= classes:
        index = int((checked >= classes).argmax())
        raise InputError(
            f"label of example {index} is {checked[index]}, and the model tells {classes} classes apart: wanted 0 to "
            f"{classes - 1}: is this the data that the model was made for?"
        )
    return checked


def check_no_nan(values: NDArray, what: str) -> None:
    """Raises InputError with the first example whose values hold NaN."""
    if values.dtype.kind == "f":
        bad = np.isnan(values).reshape(len(values), -1).any(axis=1)
        if bad.any():
            raise InputError(
                f"{what} is NaN for example {int(bad.argmax())} ({int(bad.sum()):,} of {len(values):,} examples): the "
                "model computes no number there, so nothing can be compared"
            )

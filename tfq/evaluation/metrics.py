# SPDX-License-Identifier: Apache-2.0
"""What outputs are worth: top-1 against labels, agreement with another model's outputs."""

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

# SPDX-License-Identifier: Apache-2.0
"""Decide which outputs predict a class, and measure how often two models predict the same one."""

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.metrics import SIGMOID_THRESHOLD, check_no_nan
from tfq.tflite import Op, Subgraph

# Ops that do not move values along the last axis longer than 1.
_PASS_ON = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST")
# The largest deviation from 1 of the sum of a row of float probabilities.
_SUM_TOLERANCE = 1e-3


def is_class_vector(graph: Subgraph, output: int, values: NDArray) -> bool:
    """Check whether an output predicts a class for each example, by the graph and by its values.

    It does in four cases. All other outputs are treated as plain values: boxes and other regressions, independent
    labels (one sigmoid each), reconstructions, masks of sigmoids, and logits, which look like a regression in the file.
    Callers that know more, such as class labels, use `tfq.evaluation.scores.why_no_class`.

    1. (n, ..., classes) with classes >= 2, computed by a SOFTMAX or LOG_SOFTMAX over the last axis. Further axes are
       positions with a class each, such as the pixels of a segmentation. Axes of length 1 at the end do not count.
    2. The same shape with at least 2 rows, all values >= 0, and every row's sum within 0.001 of 1: probabilities that
    other
       ops compute, such as a softmax in several ops or the mean of several softmaxes.
    3. A single value per example that a LOGISTIC computes: the probability of class 1 of two.
    4. Integers that ARG_MAX or ARG_MIN computes: class numbers.

    QUANTIZE, DEQUANTIZE, CAST and ops that only reshape may follow that op.

    Args:
        graph: The subgraph of the output, in the float or the int8 model.
        output: The tensor index of the output.
        values: The output's real values on n examples, (n, ...). Use the float model's if there is one, because int8
            probabilities may not add up to 1.
    """
    if not values.ndim or not values.size:
        return False
    op, tensor_index = _producer(graph, output)
    if values.dtype.kind in "iub":
        return op is not None and op.name in ("ARG_MAX", "ARG_MIN")
    if op is not None and op.name == "LOGISTIC":
        return values.size == len(values)
    classes = num_classes(values)
    if classes < 2:
        return False
    if op is not None and op.name in ("SOFTMAX", "LOG_SOFTMAX"):
        return graph.tensors[tensor_index].shape[-1:] == (classes,)
    rows = values.reshape(-1, classes)
    return len(rows) >= 2 and bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())


def num_classes(values: NDArray) -> int:
    """Return the length of the last axis of `values` (n, ...) that is longer than 1; 1 if only n is."""
    sizes = [size for size in values.shape[1:] if size != 1]
    return sizes[-1] if sizes else 1


def class_text(number: object, name: object) -> str:
    """Return the number of a class with its name: "3 cat"; "3 (2)" if the name is a number; "3" without a name."""
    text, label = str(number), "" if name is None else str(name)
    if not label or label == text:
        return text
    return f"{text} ({label})" if label.isdigit() else f"{text} {label}"


def predicted(values: NDArray) -> NDArray[np.int64]:
    """Return the predicted classes, (n,) or (n, positions). Ties go to the lower class.

    The class is the index of the largest value along the last axis longer than 1. Without such an axis, a real number
    above 0.5 is class 1. Integers are class numbers.

    Raises:
        InputError: The values contain NaN.
    """
    values = np.asarray(values)
    check_no_nan(values, "the output")
    if values.dtype.kind in "iub":
        return values.reshape(len(values), -1).astype(np.int64)
    classes = num_classes(values)
    if classes == 1:
        return (values.reshape(len(values), -1) > SIGMOID_THRESHOLD).astype(np.int64)
    return values.reshape(len(values), -1, classes).argmax(axis=-1)


def agreement(outputs: NDArray, reference: NDArray) -> float:
    """Return the fraction of examples (and positions) for which both models predict the same class, in [0, 1].

    Args:
        outputs: Real values of an output that predicts a class, (n, classes) or (n, ..., classes); see `predicted`.
        reference: The other model's values, of the same shape.

    Raises:
        InputError: The shapes differ, or a value is NaN.
    """
    outputs, reference = np.asarray(outputs), np.asarray(reference)
    if outputs.shape != reference.shape:
        raise InputError(
            f"agreement needs outputs of one shape, got {outputs.shape} and {reference.shape}. Compare models with the "
            "same outputs",
            field="outputs",
            expected=reference.shape,
            got=outputs.shape,
        )
    return float(np.mean(predicted(outputs) == predicted(reference)))


def _producer(graph: Subgraph, tensor: int) -> tuple[Op | None, int]:
    """Return the op that computes a tensor's values (None for an input) and the tensor that it writes."""
    while (op := graph.producers.get(tensor)) is not None and op.name in _PASS_ON:
        tensor = op.inputs[0]
    return op, tensor

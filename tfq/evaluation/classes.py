# SPDX-License-Identifier: Apache-2.0
"""Which outputs say a class, and how often two models say the same one."""

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.metrics import SIGMOID_THRESHOLD, check_no_nan
from tfq.tflite import Op, Subgraph

# Ops that change no value's place along the last axis longer than 1.
_PASS_ON = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST")
# By how much a row of float probabilities may miss a sum of 1.
_SUM_TOLERANCE = 1e-3


def is_class_vector(graph: Subgraph, output: int, values: NDArray) -> bool:
    """Return whether an output says a class for each example, judged by the graph and by its values.

    It does in four cases. Anything else is taken for numbers: boxes and other regressions, scores that are not
    exclusive (a sigmoid for each of several labels), a reconstruction, a mask of sigmoids, and logits, which cannot be
    told from a regression by the file alone. What else is known, such as class labels, is up to the caller:
    `tfq.evaluation.scores.say_classes` adds it.

    1. (n, ..., classes), classes >= 2: a SOFTMAX or LOG_SOFTMAX over this last axis computes it. Further axes are
       positions, such as the pixels of a segmentation, with a class each. Axes of length 1 at the end do not count.
    2. The same shape, at least 2 rows, all values >= 0 and every row's sum within 0.001 of 1: probabilities that
       other ops compute, such as a softmax in parts or the mean of several.
    3. One value in all for each example that a LOGISTIC computes: the probability of class 1 of two.
    4. Integers that ARG_MAX or ARG_MIN computes: class numbers.

    QUANTIZE, DEQUANTIZE, CAST and ops that only reshape may stand between the op and the output.

    Args:
        graph: The subgraph that the output belongs to, of the float or of the int8 model.
        output: The tensor index of the output.
        values: Its real numbers on n examples, (n, ...); of the float model if there is one, as int8 probabilities
            need not add up to 1.
    """
    if not values.ndim or not values.size:
        return False
    op, made = _producer(graph, output)
    if values.dtype.kind in "iub":
        return op is not None and op.name in ("ARG_MAX", "ARG_MIN")
    if op is not None and op.name == "LOGISTIC":
        return values.size == len(values)
    classes = num_classes(values)
    if classes < 2:
        return False
    if op is not None and op.name in ("SOFTMAX", "LOG_SOFTMAX"):
        return graph.tensors[made].shape[-1:] == (classes,)
    rows = values.reshape(-1, classes)
    return len(rows) >= 2 and bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())


def num_classes(values: NDArray) -> int:
    """Return the length of the last axis of `values` (n, ...) that is longer than 1; 1 if no axis but n is."""
    sizes = [size for size in values.shape[1:] if size != 1]
    return sizes[-1] if sizes else 1


def predicted(values: NDArray) -> NDArray[np.int64]:
    """Return the classes that `values` say, (n,) or (n, positions): ties go to the lower class.

    The largest along the last axis longer than 1; if there is none, class 1 for a real number above 0.5. Integers are
    class numbers.

    Raises:
        InputError: The values hold NaN.
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
    """Return the fraction of examples (and positions) with the same class in both, in [0, 1].

    Args:
        outputs: Real numbers of an output that says a class, (n, classes) or (n, ..., classes); see `predicted`.
        reference: Those of the other model, of the same shape.

    Raises:
        InputError: The shapes differ, or NaN.
    """
    outputs, reference = np.asarray(outputs), np.asarray(reference)
    if outputs.shape != reference.shape:
        raise InputError(
            f"agreement: outputs of shapes {outputs.shape} and {reference.shape}: expected one shape",
            field="outputs",
            expected=reference.shape,
            got=outputs.shape,
        )
    return float(np.mean(predicted(outputs) == predicted(reference)))


def _producer(graph: Subgraph, tensor: int) -> tuple[Op | None, int]:
    """Return the op that computes a tensor's values, and the tensor that it writes; None for an input's values."""
    while (op := graph.producers.get(tensor)) is not None and op.name in _PASS_ON:
        tensor = op.inputs[0]
    return op, tensor

# SPDX-License-Identifier: Apache-2.0
"""Read outputs as probabilities of classes."""

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.metrics import check_no_nan, is_probability

_TOLERANCE = 0.02
LOGITS_NOTE = "the outputs are read as logits, because some are outside of [0, 1]: their softmax is used"


def class_probabilities(outputs: NDArray) -> tuple[NDArray[np.float64], str | None]:
    """Return the probabilities of the classes, (n, classes), and a note if they were computed from logits.

    One real number per example is the probability of class 1. Several are probabilities if all examples' values are
    in [0, 1] and the mean of their sums is at most 1.02, plus half a step of int8 for each class. The sum may be
    smaller, because quantization rounds small probabilities to 0. They are logits if a value is outside of [0, 1].

    Args:
        outputs: (n, ...) real values, of all examples.

    Raises:
        InputError: The outputs are neither, or contain NaN.
    """
    check_no_nan(outputs, "the output")
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    is_inside = bool(((flat >= 0) & (flat <= 1 + 1e-6)).all())
    if is_probability(outputs):
        if not is_inside:
            raise _neither(outputs, "one output value per example that is outside of [0, 1]")
        flat = np.minimum(flat, 1)
        return np.concatenate([1 - flat, flat], axis=1), None
    classes = flat.shape[1]
    if classes < 2 or outputs.dtype.kind in "iub":
        raise _neither(outputs, f"{outputs.dtype} outputs of shape {list(outputs.shape)}, such as class numbers")
    if not is_inside:
        shifted = np.exp(flat - flat.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True), LOGITS_NOTE
    if flat.sum(axis=1).mean() > 1 + _TOLERANCE + classes / 512:
        raise _neither(outputs, f"values in [0, 1] whose sum is {flat.sum(axis=1).mean():.3g} in the mean")
    return np.minimum(flat, 1), None


def _neither(outputs: NDArray, what: str) -> InputError:
    return InputError(
        f"the model has {what}, which is neither a probability of each class nor logits. End the model with a softmax "
        "(or a sigmoid), or choose another metric",
        field="outputs",
        expected="(n, classes) probabilities or logits, or (n,) probabilities of class 1",
        got=outputs.shape,
    )

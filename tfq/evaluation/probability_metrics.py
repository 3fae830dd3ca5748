# SPDX-License-Identifier: Apache-2.0
"""Metrics of the predicted probabilities: expected calibration error and negative log-likelihood."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tfq.evaluation.metric import Contract, Metric, MetricTable, Outputs, State, Weights, concatenate_states
from tfq.evaluation.metrics import CLASSES, checked_labels
from tfq.evaluation.probabilities import class_probabilities
from tfq.registry import register

NUM_BINS = 15
_EDGES = np.linspace(0, 1, NUM_BINS + 1)
PROBABILITIES = Contract(
    outputs="(n, classes) probabilities or logits, or (n,) probabilities of class 1",
    labels=CLASSES.labels,
    predicts="classes",
    check=CLASSES.check,
    unsuited=CLASSES.unsuited,
)


def keep_outputs(state: State, outputs: Outputs, labels: NDArray) -> State:
    """Keep outputs and class numbers: all examples together decide whether the outputs are logits."""
    return concatenate_states(state, {"outputs": outputs[0], "labels": checked_labels(labels, outputs[0])})


def _confidences(outputs: NDArray, labels: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Return for each example the confidence in the predicted class, whether it is right, and the number of its bin."""
    probabilities, _ = class_probabilities(outputs)
    confidence, classes = probabilities.max(axis=1), probabilities.argmax(axis=1)
    bins = np.clip(np.digitize(confidence, _EDGES, right=True) - 1, 0, NUM_BINS - 1)
    return confidence, classes == checked_labels(labels, outputs), bins


def _binned(outputs: NDArray, labels: NDArray) -> Callable[[Weights], NDArray[np.float64]]:
    """Return weights -> (3, bins): the examples, and the sums of correctness and of confidence, of each bin."""
    confidence, is_right, bins = _confidences(outputs, labels)

    def counts(weights: Weights) -> NDArray[np.float64]:
        sums = (weights, weights * is_right, weights * confidence)
        return np.stack([np.bincount(bins, values, NUM_BINS) for values in sums])

    return counts


def _error(counts: NDArray[np.float64]) -> float:
    return float(np.abs(counts[1] - counts[2]).sum() / counts[0].sum())


def expected_calibration_error(outputs: NDArray, labels: NDArray) -> float:
    """Return the expected calibration error with 15 bins of equal width, in [0, 1].

    It is the mean over the examples of |accuracy - mean confidence| of their bin (i/15, (i+1)/15], where the confidence
    is the probability of the predicted class.
    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML.

    Args:
        outputs: (n, classes) probabilities or logits, or (n,) probabilities of class 1.
        labels: (n,) integers in [0, classes), or one-hot rows (n, classes).

    Raises:
        InputError: Outputs and labels do not fit each other, or the outputs are neither probabilities nor logits.
    """
    return ECE.compute((np.asarray(outputs),), np.asarray(labels))


def _reliability(state: State) -> MetricTable:
    """Return the examples, accuracy and mean confidence of each bin with examples: a reliability diagram."""
    num, right, confidence = _binned(state["outputs"], state["labels"])(np.ones(len(state["labels"]), np.int64))
    (used,) = np.nonzero(num)
    return MetricTable(
        rows=tuple(f"confidence {_EDGES[index]:.2f} to {_EDGES[index + 1]:.2f}" for index in used),
        columns=("examples", "accuracy", "confidence"),
        values=np.stack([num, right / np.maximum(num, 1), confidence / np.maximum(num, 1)], axis=1)[used],
        counts=("examples",),
    )


def _resampled_error(outputs: Outputs, labels: NDArray) -> Callable[[Weights], float]:
    counts = _binned(outputs[0], labels)
    return lambda weights: _error(counts(weights))


def _note(state: State) -> str | None:
    return class_probabilities(state["outputs"])[1]


ECE = register(
    Metric(
        name="ece",
        help="expected calibration error: difference of confidence and accuracy, in 15 bins of equal width",
        title="ECE",
        direction="lower",
        unit="score",
        contract=PROBABILITIES,
        update=keep_outputs,
        merge=concatenate_states,
        finish=lambda state: _error(
            _binned(state["outputs"], state["labels"])(np.ones(len(state["labels"]), np.int64))
        ),
        resampled=_resampled_error,
        table=_reliability,
        note=_note,
    )
)


def _losses(outputs: NDArray, labels: NDArray) -> tuple[NDArray[np.float64], str | None]:
    """Return the (n,) negative logarithms of the probabilities of the labels, and a note."""
    probabilities, note = class_probabilities(outputs)
    own = np.take_along_axis(probabilities, checked_labels(labels, outputs)[:, None], axis=1)[:, 0]
    is_zero = own <= 0
    if is_zero.any():
        positive = probabilities[probabilities > 0]
        floor = float(positive.min()) / 2 if positive.size else 0.5
        own = np.where(is_zero, floor, own)
        note = (
            f"the probability of the label is 0 for {int(is_zero.sum()):,} of {len(own):,} examples: {floor:.3g} is "
            "used, half of the smallest positive probability, which is half a step of a quantized output"
        )
    return -np.log(own), note


def negative_log_likelihood(outputs: NDArray, labels: NDArray) -> float:
    """Return the mean of -ln(probability of the label), in nats.

    A probability of 0, to which quantization rounds small values, counts as half of the smallest positive probability
    among the outputs: half a step of a quantized output. Otherwise a single one would make the result infinite.

    Args:
        outputs: (n, classes) probabilities or logits, or (n,) probabilities of class 1.
        labels: (n,) integers in [0, classes), or one-hot rows (n, classes).

    Raises:
        InputError: As `expected_calibration_error`.
    """
    return NLL.compute((np.asarray(outputs),), np.asarray(labels))


NLL = register(
    Metric(
        name="nll",
        help="negative log-likelihood: mean of -ln(probability of the label); a probability of 0 counts as half a step "
        "of the output",
        title="NLL",
        direction="lower",
        unit="none",
        contract=PROBABILITIES,
        update=keep_outputs,
        merge=concatenate_states,
        finish=lambda state: float(_losses(state["outputs"], state["labels"])[0].mean()),
        examples=lambda outputs, labels: _losses(outputs[0], labels)[0],
        note=lambda state: _losses(state["outputs"], state["labels"])[1],
    )
)

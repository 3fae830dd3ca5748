# SPDX-License-Identifier: Apache-2.0
"""Which metric a model is held to, and the numbers that it gets: the model's own and its reference's."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import EvaluationConfig
from tfq.data.split import AnySplit
from tfq.errors import InputError, did_you_mean
from tfq.evaluation.metrics import (
    agreement,
    has_classes,
    mean_absolute_error,
    positive_scores,
    reconstruction_errors,
    roc_auc,
    top1,
    topk,
)
from tfq.evaluation.user_metric import call_metric, load_metric
from tfq.tflite import Model

NO_LABELS = "the data has no labels"
NO_REFERENCE = "no reference model was given"
RECONSTRUCTS = "the model reconstructs its input, and tells no classes apart"
_TOP5_CLASSES = 5
_PASS_ON = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_DECIDES = ("SOFTMAX", "LOG_SOFTMAX", "ARG_MAX", "ARG_MIN", "ONE_HOT")


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a model computed on n examples, and what it is held against.

    outputs: real numbers, (n, ...) each. labels: (n, ...) or None. squared_errors, absolute_errors: (n,) of a model
    that reconstructs its input, between the two; else None.
    """

    outputs: tuple[NDArray, ...]
    labels: NDArray | None
    squared_errors: NDArray | None = None
    absolute_errors: NDArray | None = None

    @property
    def reconstructs(self) -> bool:
        return self.squared_errors is not None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to score.

    score: Answers -> float. lower_is_better: an error. of_classes: it goes by classes, so that agreement has a meaning.
    """

    name: str
    score: Callable[[Answers], float]
    lower_is_better: bool = False
    of_classes: bool = True


def _top1(answers: Answers) -> float:
    return top1(answers.outputs[0], _labels(answers))


def _top5(answers: Answers) -> float:
    return topk(answers.outputs[0], _labels(answers), 5)


def _roc_auc(answers: Answers) -> float:
    errors = answers.squared_errors
    return roc_auc(positive_scores(answers.outputs[0]) if errors is None else errors, _labels(answers))


def _mae(answers: Answers) -> float:
    """Against the labels; of a model that reconstructs its input and has no labels of that shape, against the input."""
    labels, errors = answers.labels, answers.absolute_errors
    if errors is not None and (labels is None or labels.shape != answers.outputs[0].shape):
        return float(np.mean(errors))
    return mean_absolute_error(answers.outputs[0], _labels(answers))


def _labels(answers: Answers) -> NDArray:
    if answers.labels is None:
        raise InputError(NO_LABELS)
    return answers.labels


METRICS = {
    "top1": Metric(name="top1", score=_top1),
    "top5": Metric(name="top5", score=_top5),
    "roc_auc": Metric(name="roc_auc", score=_roc_auc),
    "mae": Metric(name="mae", score=_mae, lower_is_better=True, of_classes=False),
}


def choose_metric(metric: Any) -> Metric | None:
    """The metric that is asked for: a name of METRICS, MODULE:FUNCTION, a callable(outputs, labels) -> float, or
    nothing ("" or None), which is None. A callable with an attribute `lower_is_better` is an error where that is true.

    Raises InputError on an unknown name, with the nearest, and where a function cannot be had.
    """
    if metric is None or metric == "":
        return None
    if isinstance(metric, Metric):
        return metric
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    if isinstance(metric, str):
        if metric in METRICS:
            return METRICS[metric]
        if ":" not in metric:
            raise InputError(f"evaluation.metric={metric}: {did_you_mean(metric, [*METRICS, 'MODULE:FUNCTION'])}")
        metric = load_metric(metric)
    if not callable(metric):
        raise InputError(f"metric {metric!r}: wanted a name, MODULE:FUNCTION or a function of outputs and labels")
    function = metric

    def score(answers: Answers) -> float:
        outputs = answers.outputs[0] if len(answers.outputs) == 1 else answers.outputs
        return call_metric(function, name, outputs, _labels(answers))

    return Metric(name=name, score=score, lower_is_better=bool(getattr(metric, "lower_is_better", False)))


# Metrics that lie between 0 and 1.
SHARES = ("top1", "top5", "roc_auc")


def check_metric(config: EvaluationConfig) -> None:
    """Before long work: raises InputError on a metric that there is not, and on bounds that mean nothing for it."""
    check_bounds(config, choose_metric(config.metric))


def check_bounds(config: EvaluationConfig, metric: Metric | None) -> None:
    """Raises InputError where `config.require` bounds what the metric does not give."""
    if metric is not None and metric.lower_is_better and config.require.min_accuracy is not None:
        raise InputError(
            f"min_accuracy={config.require.min_accuracy:g} with evaluation.metric={metric.name}: it is an error, where "
            "lower is better: bound max_accuracy_drop, by how much it may exceed the reference's, or use another metric"
        )
    drop = config.require.max_accuracy_drop
    if drop is not None and drop > 1 and (metric is None or metric.name in SHARES):
        raise InputError(
            f"max_accuracy_drop={drop:g}: wanted a fraction, at most 1: {drop:g} points are {drop / 100:g}"
        )


def reconstructs(model: Model) -> bool:
    """Whether the one output has the shape of the one input, more than one value an example, and no softmax made it."""
    graph = model.main_subgraph
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return False
    source, sink = graph.input_tensors[0], graph.output_tensors[0]
    shapes = [tensor.shape_signature[1:] for tensor in (source, sink)]
    is_real = all(tensor.is_quantized or tensor.dtype.startswith("float") for tensor in (source, sink))
    if not is_real or shapes[0] != shapes[1] or all(size == 1 for size in shapes[0]):
        return False
    makers = {index: op for op in graph.ops for index in op.outputs}
    index = sink.index
    while index in makers and makers[index].name in _PASS_ON:
        index = makers[index].inputs[0]
    return index not in makers or makers[index].name not in _DECIDES


def answers_of(outputs: tuple[NDArray, ...], data: AnySplit, *, reconstructs: bool) -> Answers:
    """The outputs of a model on `data` (a Split, or a stream of them), with what they are held against."""
    if not reconstructs:
        # A stream remembers its labels from when it was run; its examples would have to be decoded again.
        return Answers(outputs=outputs, labels=data.all_labels())
    pieces = list(_labels_and_errors(outputs, data, reconstructs))
    labels = [labels for labels, _ in pieces if labels is not None]
    errors = [errors for _, errors in pieces if errors is not None]
    return Answers(
        outputs=outputs,
        labels=np.concatenate(labels) if labels else None,
        squared_errors=np.concatenate([squared for squared, _ in errors]) if errors else None,
        absolute_errors=np.concatenate([absolute for _, absolute in errors]) if errors else None,
    )


def _labels_and_errors(
    outputs: tuple[NDArray, ...], data: AnySplit, reconstructs: bool
) -> Iterator[tuple[NDArray | None, tuple[NDArray, NDArray] | None]]:
    start = 0
    for piece in data.pieces():
        end = start + piece.num_examples
        errors = None
        if reconstructs:
            (inputs,) = piece.inputs.values()
            errors = reconstruction_errors(outputs[0][start:end], inputs)
        yield piece.labels, errors
        start = end


def score_answers(answers: Answers, expected: list[NDArray] | None, data: Any, metric: Metric | None) -> dict[str, Any]:
    """The fields of an EvaluationRecord that tell how good the model is, and why one of them is not there.

    expected: the reference's outputs on the same data. Top-1, top-5 and agreement are of the first output.
    """
    chosen = metric or METRICS["roc_auc" if answers.reconstructs else "top1"]
    reason = _unscored(answers, metric)
    accuracy = reference_accuracy = drop = None
    if reason is None:
        accuracy = chosen.score(answers)
    if accuracy is not None and expected is not None:
        theirs = dataclasses.replace(answers, outputs=tuple(expected))
        if answers.reconstructs:
            theirs = answers_of(theirs.outputs, data, reconstructs=True)
        reference_accuracy = chosen.score(theirs)
        drop = accuracy - reference_accuracy if chosen.lower_is_better else reference_accuracy - accuracy
    no_agreement = NO_REFERENCE if expected is None else _without_classes(answers, chosen, metric)
    return {
        "metric": chosen.name,
        "lower_is_better": chosen.lower_is_better,
        "accuracy": accuracy,
        "accuracy_reason": reason,
        "reference_accuracy": reference_accuracy,
        "accuracy_drop": drop,
        "scores": _scores(answers, chosen, accuracy),
        "agreement": agreement(answers.outputs[0], expected[0]) if expected and no_agreement is None else None,
        "agreement_reason": no_agreement,
    }


def score_outputs(outputs: NDArray, data: Any, *, reconstructs: bool, metric: Any = None) -> dict[str, Any]:
    """{"metric", "accuracy", "accuracy_reason", "scores", ...} of one output (n, ...) of any model, without a
    reference.

    data: a Split of the same n examples. metric: as `choose_metric` takes it.
    """
    return score_answers(answers_of((outputs,), data, reconstructs=reconstructs), None, data, choose_metric(metric))


def _unscored(answers: Answers, metric: Metric | None) -> str | None:
    """Why there is no accuracy, or None. What was asked for by name is not refused here: its own error says more."""
    labels, outputs = answers.labels, answers.outputs[0]
    if metric is not None:
        from_input = metric is METRICS["mae"] and answers.reconstructs
        return NO_LABELS if labels is None and not from_input else None
    if labels is None:
        return NO_LABELS
    if answers.reconstructs:
        found = np.unique(labels)
        if labels.size != len(labels) or not np.array_equal(found, [0, 1]):
            told = ", ".join(str(value) for value in found[:5])
            return f"the ROC AUC of a reconstruction wants labels 0 (normal) and 1 (anomalous), these are {told}"
        return None
    if labels.dtype.kind == "f":
        return f"the labels are {labels.dtype}, no class numbers: give metric=, such as mae"
    return None if has_classes(outputs) else _no_one_class(outputs)


def _without_classes(answers: Answers, chosen: Metric, metric: Metric | None) -> str | None:
    """Why agreement, which goes by classes, has no meaning here; or None."""
    by_name = metric is METRICS["top1"] or metric is METRICS["top5"]
    if answers.reconstructs and not by_name:
        return RECONSTRUCTS
    if not chosen.of_classes:
        return f"{chosen.name} goes by values, not by classes"
    return None if has_classes(answers.outputs[0]) else _no_one_class(answers.outputs[0])


def _no_one_class(outputs: NDArray) -> str:
    return f"the first output, {list(outputs.shape)}, gives an example no one class: give metric="


def _scores(answers: Answers, chosen: Metric, accuracy: float | None) -> dict[str, float]:
    """The metric, and what stands beside it: top-5 of many classes, the mean absolute error of a reconstruction."""
    found = {} if accuracy is None else {chosen.name: accuracy}
    beside = None
    if answers.reconstructs and chosen.name in ("roc_auc", "mae"):
        beside = "mae"
    elif chosen.name == "top1" and accuracy is not None and answers.outputs[0][0].size > _TOP5_CLASSES:
        beside = "top5"
    if beside is not None and beside not in found:
        found[beside] = METRICS[beside].score(answers)
    return found

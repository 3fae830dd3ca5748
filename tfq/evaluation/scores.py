# SPDX-License-Identifier: Apache-2.0
"""Which metric a model is held to, and the numbers that it gets: the model's own and its reference's."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.config import EvaluationConfig
from tfq.config.base import check_fraction
from tfq.data.split import AnySplit
from tfq.errors import InputError
from tfq.evaluation.classes import agreement
from tfq.evaluation.metric import BOUNDED_UNITS, Metric, Outputs, State, as_metric
from tfq.evaluation.metrics import has_classes, no_one_class
from tfq.tflite import Model

NO_LABELS = "the data has no labels"
NO_REFERENCE = "no reference model was given"
RECONSTRUCTS = "the model reconstructs its input, and tells no classes apart"
_PASS_ON = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_DECIDES = ("SOFTMAX", "LOG_SOFTMAX", "ARG_MAX", "ARG_MIN", "ONE_HOT")


def default_metric(*, reconstructs: bool) -> Metric:
    """Return the metric that is used if none is chosen; reconstructs: of a model that reconstructs its input."""
    for metric in registry.entries(Metric).values():
        if metric.reconstruction is not None and metric.reconstruction.default if reconstructs else metric.default:
            return metric
    raise AssertionError("no metric is the default")


def accompanying_metrics(chosen: Metric, *, reconstructs: bool) -> list[Metric]:
    """Return the registered metrics that are reported next to `chosen`."""
    results = []
    for metric in registry.entries(Metric).values():
        names = metric.accompanies
        if reconstructs and metric.reconstruction is not None:
            names = (*names, *metric.reconstruction.accompanies)
        if chosen.name in names and metric is not chosen:
            results.append(metric)
    return results


def check_metric(config: EvaluationConfig) -> None:
    """Raise InputError, before long work, on a metric that does not exist and on bounds that mean nothing for it."""
    check_bounds(config, as_metric(config.metric))


def check_bounds(config: EvaluationConfig, metric: Metric | None) -> None:
    """Raise InputError if `config.require` bounds what the metric does not give. metric: None is the default one."""
    lowest, drop = config.require.min_accuracy, config.require.max_accuracy_drop
    if metric is not None and metric.direction is None and (lowest is not None or drop is not None):
        raise InputError(
            f"metric {metric.name} does not declare whether higher or lower is better, so no bound on it can be "
            "checked: pass a tfq.Metric with a direction, or set the function's attribute `direction`",
            field="direction",
            expected=("higher", "lower"),
            got=None,
        )
    if metric is not None and metric.direction == "lower" and lowest is not None:
        raise InputError(
            f"evaluation.require.min_accuracy={lowest:g} with evaluation.metric={metric.name}: lower is better for "
            "this metric: bound max_accuracy_drop, by how much it may exceed the reference's, or use another metric",
            field="evaluation.require.min_accuracy",
            expected="a metric whose direction is higher",
            got=lowest,
        )
    if drop is not None and (metric is None or metric.unit in BOUNDED_UNITS):
        check_fraction("evaluation.require.max_accuracy_drop", drop)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a model computed on n examples, and what it is held against.

    outputs: real numbers, (n, ...) each. labels: (n, ...) or None. reconstructs: the model reconstructs its input.
    errors: {a metric's error of a reconstruction: (n,)}, of the metrics that `answers_of` was given.
    """

    outputs: Outputs
    labels: NDArray | None
    reconstructs: bool = False
    errors: dict[Callable[..., NDArray], NDArray] = field(default_factory=dict)

    def shown_to(self, metric: Metric) -> tuple[Outputs, NDArray | None]:
        """Return the outputs and labels that a metric scores: of a reconstruction, its errors where it goes by them."""
        rule = metric.reconstruction
        if not self.reconstructs or rule is None:
            return self.outputs, self.labels
        errors = self.errors[rule.error]
        if rule.against == "labels":
            return (errors,), self.labels
        if self.labels is None or self.labels.shape != self.outputs[0].shape:
            return (errors,), np.zeros(len(errors))
        return self.outputs, self.labels

    def score(self, metric: Metric) -> tuple[float, State]:
        """Return the metric's number and its state; raises InputError if there are no labels or they do not fit."""
        outputs, labels = self.shown_to(metric)
        if labels is None:
            raise InputError(NO_LABELS, field="labels", expected=metric.contract.labels, got=None)
        state = metric.state_of(outputs, labels)
        return metric.value_of(state), state


def answers_of(outputs: Outputs, data: AnySplit, *, reconstructs: bool, metrics: list[Metric]) -> Answers:
    """Return the outputs of a model on `data` (a Split, or a stream of them), with what they are held against."""
    rules = [metric.reconstruction.error for metric in metrics if metric.reconstruction is not None]
    if not reconstructs or not rules:
        # A stream remembers its labels from when it was run; its examples would have to be decoded again.
        return Answers(outputs=outputs, labels=data.all_labels(), reconstructs=reconstructs)
    labels: list[NDArray] = []
    errors: dict[Callable[..., NDArray], list[NDArray]] = {rule: [] for rule in rules}
    start = 0
    for piece in data.pieces():
        end = start + piece.num_examples
        (inputs,) = piece.inputs.values()
        for rule, result in errors.items():
            result.append(rule(outputs[0][start:end], inputs))
        labels += [] if piece.labels is None else [piece.labels]
        start = end
    return Answers(
        outputs=outputs,
        labels=np.concatenate(labels) if labels else None,
        reconstructs=True,
        errors={rule: np.concatenate(result) for rule, result in errors.items()},
    )


def score_answers(
    outputs: Outputs, expected: list[NDArray] | None, data: Any, metric: Metric | None, *, reconstructs: bool
) -> dict[str, Any]:
    """Return the fields of an EvaluationRecord that say how good the model is, and why one of them is missing.

    Agreement is of the first output.

    Args:
        outputs: Of the model on `data`, real numbers.
        expected: The reference's outputs on the same data.
        data: A Split of the same n examples, or a stream.
        metric: None is the default for this kind of model and of labels.
        reconstructs: Whether the model reconstructs its input.
    """
    chosen = metric or default_metric(reconstructs=reconstructs)
    companions = accompanying_metrics(chosen, reconstructs=reconstructs)
    answers = answers_of(outputs, data, reconstructs=reconstructs, metrics=[chosen, *companions])
    reason = _unscored(answers, chosen, is_default=metric is None)
    metrics, scores = {chosen.name: {**chosen.facts(), "interval": None}}, {}
    accuracy = reference_accuracy = drop = None
    for item in (chosen, *companions):
        if reason is None if item is chosen else _fits(answers, item, accuracy is not None):
            scores[item.name], state = answers.score(item)
            interval = item.interval(state)
            metrics[item.name] = {**item.facts(), "interval": None if interval is None else list(interval)}
        accuracy = scores.get(chosen.name)
    if accuracy is not None and expected is not None:
        theirs = answers_of(tuple(expected), data, reconstructs=reconstructs, metrics=[chosen])
        reference_accuracy, _ = theirs.score(chosen)
        drop = _drop(chosen, accuracy, reference_accuracy)
    no_agreement = NO_REFERENCE if expected is None else _without_classes(answers, chosen, is_default=metric is None)
    return {
        "metric": chosen.name,
        "metrics": metrics,
        "accuracy": accuracy,
        "accuracy_reason": reason,
        "reference_accuracy": reference_accuracy,
        "accuracy_drop": drop,
        "scores": scores,
        "agreement": agreement(outputs[0], expected[0]) if expected and no_agreement is None else None,
        "agreement_reason": no_agreement,
    }


def score_outputs(outputs: NDArray, data: Any, *, reconstructs: bool, metric: Any = None) -> dict[str, Any]:
    """{"metric", "accuracy", "accuracy_reason", "scores", ...} of one output (n, ...) of any model, without a
    reference.

    data: a Split of the same n examples. metric: as `as_metric` takes it.
    """
    return score_answers((outputs,), None, data, as_metric(metric), reconstructs=reconstructs)


def _drop(metric: Metric, ours: float, theirs: float) -> float | None:
    if metric.direction is None:
        return None
    return ours - theirs if metric.direction == "lower" else theirs - ours


def _unscored(answers: Answers, chosen: Metric, *, is_default: bool) -> str | None:
    """Return why there is no accuracy, or None. A metric chosen by name is not refused here: its error says more."""
    outputs, labels = answers.shown_to(chosen)
    if labels is None:
        return NO_LABELS
    return chosen.contract.unsuited(chosen.select(outputs), labels) if is_default else None


def _fits(answers: Answers, metric: Metric, is_scored: bool) -> bool:
    """Return whether a metric that accompanies another can be computed.

    is_scored: whether that other metric was computed; the error of a reconstruction does not depend on it.
    """
    outputs, labels = answers.shown_to(metric)
    by_error = answers.reconstructs and metric.reconstruction is not None
    if labels is None or not (is_scored or by_error):
        return False
    try:
        metric.contract.check(metric.select(outputs), labels)
    except InputError:
        return False
    return True


def _without_classes(answers: Answers, chosen: Metric, *, is_default: bool) -> str | None:
    """Return why agreement, which goes by classes, has no meaning here; or None."""
    goes_by = chosen.contract.goes_by
    if answers.reconstructs and (is_default or goes_by != "classes"):
        return RECONSTRUCTS
    if goes_by == "values":
        return f"{chosen.name} goes by values, not by classes"
    return None if has_classes(answers.outputs[0]) else no_one_class(answers.outputs[0])

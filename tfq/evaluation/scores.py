# SPDX-License-Identifier: Apache-2.0
"""Which metric a model is held to, and the numbers that it gets: the model's own and its reference's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.config import EvaluationConfig
from tfq.config.base import check_fraction
from tfq.data.split import AnySplit
from tfq.errors import InputError, did_you_mean
from tfq.evaluation.classes import agreement, num_classes
from tfq.evaluation.metric import BOUNDED_UNITS, Metric, Outputs, State, as_metric
from tfq.evaluation.metrics import checked_labels, has_classes, no_one_class
from tfq.evaluation.paired import paired_difference
from tfq.tflite import Model

NO_LABELS = "the data has no labels"
NO_REFERENCE = "no reference model was given"
RECONSTRUCTS = "the model reconstructs its input, and tells no classes apart"
NOT_A_CLASS = (
    "nothing shows that this output says a class: no softmax or argmax computes it, no metric of classes scores it; "
    "its SQNR stands; if these are logits, choose evaluation.metric=top1"
)
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
    index = sink.index
    while (op := graph.producers.get(index)) is not None and op.name in _PASS_ON:
        index = op.inputs[0]
    return op is None or op.name not in _DECIDES


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


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The metric that a model is held to.

    Args:
        metric: With the outputs that it looks at in this model.
        is_default: Whether it was not chosen by the user.
        output: The index of the output in `evaluation.output`; None if that is empty.
        reason: Why the default metric cannot be computed, whatever the labels; None if it can.
    """

    metric: Metric
    is_default: bool
    output: int | None = None
    reason: str | None = None

    def looks_at(self, output: int) -> bool:
        """Return whether the metric looks at an output, by its index."""
        return self.metric.outputs is None or output in self.metric.outputs


def choose_metric(
    metric: Metric | None, names: Sequence[str], class_outputs: Sequence[bool], *, reconstructs: bool, output: str = ""
) -> Choice:
    """Return the metric for a model, and which of its outputs that looks at.

    If neither a metric nor an output is chosen and the model has several outputs, the default metric looks at the
    first if it says a class, else at the only one that does. If none or several others do, it is not computed.

    Args:
        metric: The user's; None is the default for this kind of model.
        names: Of the outputs.
        class_outputs: Whether each says a class, as `is_class_vector` judges it.
        reconstructs: Whether the model reconstructs its input.
        output: `evaluation.output`.

    Raises:
        InputError: There is no such output, or the metric looks at several outputs and `output` names one.
    """
    chosen = metric or default_metric(reconstructs=reconstructs)
    if output:
        index = _output_index(output, names)
        if chosen.outputs is not None and len(chosen.outputs) > 1:
            raise InputError(
                f"evaluation.output={output}: metric {chosen.name} looks at the outputs {list(chosen.outputs)}: leave "
                "evaluation.output empty",
                field="evaluation.output",
                expected="",
                got=output,
            )
        return Choice(metric=replace(chosen, outputs=(index,)), is_default=metric is None, output=index)
    chosen.check_outputs(len(names))
    if metric is not None or len(names) == 1 or class_outputs[0]:
        return Choice(metric=chosen, is_default=metric is None)
    others = [index for index, says_class in enumerate(class_outputs) if says_class]
    if len(others) == 1:
        return Choice(metric=replace(chosen, outputs=(others[0],)), is_default=True)
    found = "several outputs say" if others else f"none of the {len(names)} outputs is known to say"
    return Choice(
        metric=chosen, is_default=True, reason=f"{found} a class: choose evaluation.output, or evaluation.metric"
    )


def _output_index(output: str, names: Sequence[str]) -> int:
    if output in names:
        return list(names).index(output)
    if output.isdigit() and int(output) < len(names):
        return int(output)
    raise InputError(
        f"evaluation.output={output}: the model has no such output: {did_you_mean(output, names)}",
        field="evaluation.output",
        expected=tuple(names),
        got=output,
    )


def score_answers(
    outputs: Outputs,
    expected: Sequence[NDArray] | None,
    data: AnySplit,
    choice: Choice,
    *,
    reconstructs: bool,
    class_outputs: Sequence[bool] = (False,),
) -> dict[str, Any]:
    """Return the fields of an EvaluationRecord that say how good the model is, and why one of them is missing.

    Args:
        outputs: Of the model on `data`, real numbers.
        expected: The reference's outputs on the same data.
        data: A Split of the same n examples, or a stream.
        choice: The metric.
        reconstructs: Whether the model reconstructs its input.
        class_outputs: Whether each output says a class, as `is_class_vector` judges it.
    """
    chosen = choice.metric
    companions = [
        replace(item, outputs=chosen.outputs) if item.outputs == (0,) else item
        for item in accompanying_metrics(chosen, reconstructs=reconstructs)
    ]
    answers = answers_of(outputs, data, reconstructs=reconstructs, metrics=[chosen, *companions])
    reason = _unscored(answers, choice)
    metrics, scores = {chosen.name: {**chosen.facts(), "interval": None}}, {}
    accuracy = reference_accuracy = drop = difference = None
    no_difference = reason or NO_REFERENCE
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
        difference, no_difference = _paired(chosen, answers, theirs)
    return {
        "metric": chosen.name,
        "metrics": metrics,
        "accuracy": accuracy,
        "accuracy_reason": reason,
        "reference_accuracy": reference_accuracy,
        "accuracy_drop": drop,
        "accuracy_difference": difference,
        "accuracy_difference_reason": None if difference else no_difference,
        "scores": scores,
        **_agreements(answers, expected, choice, class_outputs, is_scored=accuracy is not None),
    }


def _agreements(
    answers: Answers, expected: Sequence[NDArray] | None, choice: Choice, class_outputs: Sequence[bool], is_scored: bool
) -> dict[str, Any]:
    """Return `agreement` and `agreement_reason`, and in `outputs` the same of each output."""
    reasons: list[str | None] = [NO_REFERENCE] * len(answers.outputs)
    values: list[float | None] = [None] * len(answers.outputs)
    if expected is not None:
        reasons = [
            no_class(answers, choice, index, says_class, is_scored=is_scored)
            for index, says_class in enumerate(class_outputs)
        ]
        pairs = zip(answers.outputs, expected, reasons, strict=True)
        values = [agreement(output, other) if reason is None else None for output, other, reason in pairs]
    # Of the chosen output; else of the worst, as for SQNR.
    counted = range(len(values)) if choice.output is None else [choice.output]
    known = [value for index in counted if (value := values[index]) is not None]
    looked_at = next((index for index in counted if choice.looks_at(index)), 0)
    return {
        "agreement": min(known, default=None),
        "agreement_reason": None if known else reasons[looked_at],
        "outputs": [
            {"agreement": value, "agreement_reason": reason} for value, reason in zip(values, reasons, strict=True)
        ],
    }


def no_class(answers: Answers, choice: Choice, output: int, says_class: bool, *, is_scored: bool) -> str | None:
    """Return why an output is not known to say a class, so that agreement has no meaning for it; None if it does.

    What the user says of an output goes before what the file shows: the chosen metric scores values or classes, or the
    labels are class numbers of this output. Logits count if one of these two says so.

    Args:
        answers: Outputs and labels.
        choice: The metric.
        output: The index of the output.
        says_class: What `is_class_vector` says of the output.
        is_scored: Whether the metric was computed, so that the labels fit it.
    """
    metric, values = choice.metric, answers.outputs[output]
    goes_by, looks = metric.contract.goes_by, choice.looks_at(output)
    if answers.reconstructs and (choice.is_default or goes_by != "classes"):
        return RECONSTRUCTS
    if looks and goes_by == "values":
        return f"{metric.name} goes by values, not by classes"
    if says_class:
        return None
    if looks and goes_by == "classes" and (is_scored or not choice.is_default):
        return None if has_classes(values) else no_one_class(values)
    if looks and goes_by == "score" and is_scored and num_classes(values) == 2:
        return None
    is_only = len(answers.outputs) == 1 or choice.output == output
    if looks and goes_by == "any" and is_only and _are_classes_of(answers.labels, values):
        return None
    return NOT_A_CLASS


def _are_classes_of(labels: NDArray | None, values: NDArray) -> bool:
    """Return whether labels are class numbers or one-hot rows that fit an output (n, classes)."""
    if labels is None or not has_classes(values) or num_classes(values) < 2:
        return False
    try:
        checked_labels(labels, values)
    except InputError:
        return False
    return True


def score_outputs(outputs: NDArray, data: Any, *, reconstructs: bool, metric: Any = None) -> dict[str, Any]:
    """Return what `score_answers` does for one output (n, ...) of any model, without a reference.

    Args:
        outputs: Real numbers.
        data: A Split of the same n examples, or a stream.
        reconstructs: Whether the model reconstructs its input.
        metric: As `as_metric` takes it.
    """
    choice = choose_metric(as_metric(metric), ("output",), (False,), reconstructs=reconstructs)
    return score_answers((outputs,), None, data, choice, reconstructs=reconstructs)


def _paired(metric: Metric, answers: Answers, theirs: Answers) -> tuple[dict[str, Any] | None, str]:
    """Return the record of `paired_difference` of two models, or None and why there is none."""
    if metric.examples is None:
        return None, f"{metric.word or metric.name} is not a mean over the examples"
    correct = []
    for model in (answers, theirs):
        outputs, labels = model.shown_to(metric)
        correct.append(np.asarray(metric.examples(metric.select(outputs), np.asarray(labels))))
    if any(values.dtype.kind != "b" or values.ndim != 1 for values in correct):
        return None, f"{metric.word or metric.name} does not say of each example whether it is right"
    return paired_difference(*correct).to_dict(), ""


def _drop(metric: Metric, ours: float, theirs: float) -> float | None:
    if metric.direction is None:
        return None
    return ours - theirs if metric.direction == "lower" else theirs - ours


def _unscored(answers: Answers, choice: Choice) -> str | None:
    """Return why there is no accuracy, or None. A metric chosen by name is not refused here: its error says more."""
    outputs, labels = answers.shown_to(choice.metric)
    if labels is None:
        return NO_LABELS
    if not choice.is_default or choice.reason is not None:
        return choice.reason
    return choice.metric.contract.unsuited(choice.metric.select(outputs), labels)


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

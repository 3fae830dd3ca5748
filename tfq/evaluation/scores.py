# SPDX-License-Identifier: Apache-2.0
"""Choose the metric of a model, and compute it for the model and its reference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.config import EvaluationConfig
from tfq.config.base import check_fraction
from tfq.data.output_labels import labeled_outputs, labels_of_output
from tfq.data.split import AnySplit
from tfq.errors import InputError, did_you_mean
from tfq.evaluation.class_names import names_of_output
from tfq.evaluation.classes import agreement, num_classes, predicted
from tfq.evaluation.metric import BOUNDED_UNITS, Metric, Outputs, as_metrics
from tfq.evaluation.metric_bounds import metric_bounds
from tfq.evaluation.metric_scores import MetricScore, Scored, missing_facts, score_metrics
from tfq.evaluation.metrics import checked_labels, has_classes, why_no_single_class
from tfq.evaluation.per_example import ExampleResults, OutputResults, noise_db, smallest_classes
from tfq.evaluation.position_differences import position_agreement
from tfq.evaluation.record import NO_REFERENCE
from tfq.tflite import Model

NO_LABELS = "the data has no labels"
RECONSTRUCTS = "the model reconstructs its input and does not predict a class"
NOT_A_CLASS = (
    "this output is not known to predict a class: no softmax or argmax computes it, and the metric does not use "
    "classes. If it contains logits, set evaluation.metric=top1. Its SQNR is computed in any case"
)
_PASS_ON = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_DECIDES = ("SOFTMAX", "LOG_SOFTMAX", "ARG_MAX", "ARG_MIN", "ONE_HOT")


def default_metric(*, reconstructs: bool) -> Metric:
    """Return the metric to use if the user chose none.

    Args:
        reconstructs: Whether the model reconstructs its input.
    """
    for metric in registry.entries(Metric).values():
        if metric.reconstruction is not None and metric.reconstruction.default if reconstructs else metric.default:
            return metric
    raise AssertionError("no metric is the default")


def metric_for_labels(labels: NDArray | None) -> Metric | None:
    """Return the registered metric that is meant for labels that the default metric cannot score; None if none is.

    Args:
        labels: (n, ...), or None.
    """
    if labels is None or labeled_outputs(labels):
        return None
    return next((metric for metric in registry.entries(Metric).values() if metric.suits(labels)), None)


def additional_metrics(chosen: Metric, *, reconstructs: bool) -> list[Metric]:
    """Return the registered metrics that are reported with `chosen`."""
    results = []
    for metric in registry.entries(Metric).values():
        names = metric.reported_with
        if reconstructs and metric.reconstruction is not None:
            names = (*names, *metric.reconstruction.reported_with)
        if chosen.name in names and metric is not chosen:
            results.append(metric)
    return results


def check_metric(config: EvaluationConfig) -> None:
    """Check the metric and its bounds before long work.

    Raises:
        InputError: There is no such metric, or a bound does not apply to it.
    """
    check_bounds(config, next(iter(as_metrics(config.metric)), None))


def check_bounds(config: EvaluationConfig, metric: Metric | None) -> None:
    """Raise InputError if `config.require` has a bound that does not apply to `metric` (None: the default one)."""
    metric_bounds(config.require.metrics)  # for its checks
    lowest, drop = config.require.min_accuracy, config.require.max_accuracy_drop
    if metric is not None and metric.direction is None and (lowest is not None or drop is not None):
        raise InputError(
            f"metric {metric.name} does not declare whether higher or lower values are better, so a bound on it "
            "cannot be checked. Pass a tfq.Metric with a direction, or set the attribute `direction` of the function",
            field="direction",
            expected=("higher", "lower"),
            got=None,
        )
    if metric is not None and metric.direction == "lower" and lowest is not None:
        raise InputError(
            f"evaluation.require.min_accuracy={lowest:g} does not apply to evaluation.metric={metric.name}, because "
            "lower values are better. Use evaluation.require.max_accuracy_drop, which limits by how much the "
            "value may exceed the reference's, or another metric",
            field="evaluation.require.min_accuracy",
            expected="a metric whose direction is higher",
            got=lowest,
        )
    if drop is not None and (metric is None or metric.unit in BOUNDED_UNITS):
        check_fraction("evaluation.require.max_accuracy_drop", drop)


def reconstructs(model: Model) -> bool:
    """Check whether the only output has the shape of the only input, several values, and no softmax or argmax."""
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
class Predictions:
    """The outputs of a model on n examples, and the labels to compare them with.

    Args:
        outputs: Real values, (n, ...) each.
        labels: (n, ...) or None.
        reconstructs: Whether the model reconstructs its input.
        names: The names of the outputs, for labels of several outputs.
        errors: {function of a metric's `Reconstruction`: its errors, (n,)}.
    """

    outputs: Outputs
    labels: NDArray | None
    reconstructs: bool = False
    names: Sequence[str] = ()
    errors: dict[Callable[..., NDArray], NDArray] = field(default_factory=dict)

    def for_metric(self, metric: Metric) -> tuple[Outputs, NDArray | None]:
        """Return the outputs and labels that a metric scores. For reconstructions these may be errors."""
        reconstruction = metric.reconstruction
        if not self.reconstructs or reconstruction is None:
            if labeled_outputs(self.labels) and metric.outputs is not None and len(metric.outputs) == 1:
                assert self.labels is not None
                return self.outputs, labels_of_output(self.labels, self.names[metric.outputs[0]])
            return self.outputs, self.labels
        errors = self.errors[reconstruction.error]
        if reconstruction.against == "labels":
            return (errors,), self.labels
        if self.labels is None or self.labels.shape != self.outputs[0].shape:
            return (errors,), np.zeros(len(errors))
        return self.outputs, self.labels


def predictions_of(
    outputs: Outputs, data: AnySplit, *, reconstructs: bool, metrics: list[Metric], names: Sequence[str] = ()
) -> Predictions:
    """Return the outputs of a model on `data`, with the labels and the reconstruction errors for `metrics`."""
    error_functions = [metric.reconstruction.error for metric in metrics if metric.reconstruction is not None]
    if not reconstructs or not error_functions:
        # A stream has stored its labels while the model ran, so its examples need not be decoded again.
        return Predictions(outputs=outputs, labels=data.all_labels(), reconstructs=reconstructs, names=names)
    labels: list[NDArray] = []
    errors: dict[Callable[..., NDArray], list[NDArray]] = {function: [] for function in error_functions}
    start = 0
    for piece in data.pieces():
        end = start + piece.num_examples
        (inputs,) = piece.inputs.values()
        for function, result in errors.items():
            result.append(function(outputs[0][start:end], inputs))
        labels += [] if piece.labels is None else [piece.labels]
        start = end
    return Predictions(
        outputs=outputs,
        labels=np.concatenate(labels) if labels else None,
        reconstructs=True,
        errors={function: np.concatenate(result) for function, result in errors.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The metrics that a model is evaluated with.

    Args:
        metric: The main metric, with the outputs that it uses in this model.
        is_default: Whether the user did not choose it.
        output: The index of the output in `evaluation.output`; None if that is empty.
        reason: Why the default metric cannot be computed for any labels; None if it can.
        others: The other metrics that the user chose.
    """

    metric: Metric
    is_default: bool
    others: tuple[Metric, ...] = ()
    output: int | None = None
    reason: str | None = None

    def uses(self, output: int) -> bool:
        """Check whether the metric uses an output, by its index."""
        return self.metric.outputs is None or output in self.metric.outputs


def choose_metrics(
    metrics: Sequence[Metric], names: Sequence[str], class_outputs: Sequence[bool], *, reconstructs: bool, output: str
) -> Choice:
    """Return the main metric for a model, the first of `metrics` or the default one, and the others.

    Args:
        metrics: The user's metrics; may be empty.
        names: The names of the outputs.
        class_outputs: As in `choose_metric`, like the other arguments.
        reconstructs: Whether the model reconstructs its input.
        output: `evaluation.output`.

    Raises:
        InputError: As `choose_metric`, for each of them.
    """
    choices = [
        choose_metric(metric, names, class_outputs, reconstructs=reconstructs, output=output)
        for metric in metrics or (None,)
    ]
    return replace(choices[0], others=tuple(item.metric for item in choices[1:]))


def choose_metric(
    metric: Metric | None, names: Sequence[str], class_outputs: Sequence[bool], *, reconstructs: bool, output: str = ""
) -> Choice:
    """Return the metric for a model, and which outputs it uses.

    If the user chooses neither a metric nor an output, and the model has several outputs, the default metric uses the
    first one if that predicts a class, else the only one that does. If none or several of the others do, it is not
    computed.

    Args:
        metric: The user's metric; None for the default of this kind of model.
        names: The names of the outputs.
        class_outputs: For each output whether it predicts a class, see `is_class_vector`.
        reconstructs: Whether the model reconstructs its input.
        output: `evaluation.output`.

    Raises:
        InputError: There is no such output, or the metric uses several outputs and `output` names one.
    """
    chosen = metric or default_metric(reconstructs=reconstructs)
    if output:
        index = _output_index(output, names)
        if chosen.outputs is not None and len(chosen.outputs) > 1:
            raise InputError(
                f"evaluation.output={output} cannot be used with metric {chosen.name}, which uses the outputs "
                f"{list(chosen.outputs)}. Leave evaluation.output empty",
                field="evaluation.output",
                expected="",
                got=output,
            )
        return Choice(metric=replace(chosen, outputs=(index,)), is_default=metric is None, output=index)
    chosen.check_outputs(len(names))
    if metric is not None or len(names) == 1 or class_outputs[0]:
        return Choice(metric=chosen, is_default=metric is None)
    others = [index for index, predicts_class in enumerate(class_outputs) if predicts_class]
    if len(others) == 1:
        return Choice(metric=replace(chosen, outputs=(others[0],)), is_default=True)
    problem = "several outputs predict" if others else f"none of the {len(names)} outputs is known to predict"
    return Choice(
        metric=chosen, is_default=True, reason=f"{problem} a class. Set evaluation.output or evaluation.metric"
    )


def _output_index(output: str, names: Sequence[str]) -> int:
    if output in names:
        return list(names).index(output)
    if output.isdigit() and int(output) < len(names):
        return int(output)
    raise InputError(
        f"evaluation.output={output}: the model does not have this output; {did_you_mean(output, names)}",
        field="evaluation.output",
        expected=tuple(names),
        got=output,
    )


def compute_scores(
    outputs: Outputs,
    expected: Sequence[NDArray] | None,
    data: AnySplit,
    choice: Choice,
    *,
    reconstructs: bool,
    class_outputs: Sequence[bool] = (False,),
    names: Sequence[str] = (),
    class_names: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Return the fields of an EvaluationRecord about accuracy and agreement, with the reasons for missing ones.

    Args:
        outputs: The model's outputs on `data`, as real values.
        expected: The reference's outputs on the same data.
        data: The n examples, as a `Split` or a stream.
        choice: The metrics.
        reconstructs: Whether the model reconstructs its input.
        class_outputs: For each output whether it predicts a class, see `is_class_vector`.
        names: The names of the outputs, for labels of several outputs.
        class_names: For each output the names of its classes, see `class_names_by_output`; empty for those of `data`.
    """
    class_names = class_names or [data.class_names] * len(outputs)
    chosen, companions = choice.metric, _companions(choice, reconstructs=reconstructs)
    requested = [chosen, *choice.others]
    everything = [*requested, *companions]
    predictions = predictions_of(outputs, data, reconstructs=reconstructs, metrics=everything, names=names)
    reference = None
    if expected is not None:
        reference = predictions_of(tuple(expected), data, reconstructs=reconstructs, metrics=everything, names=names)
    reason = _why_unscored(predictions, choice)
    items = (
        requested if reason is None else [item for item in choice.others if predictions.for_metric(item)[1] is not None]
    )
    items = [*items, *(item for item in companions if _can_score(predictions, item, reason is None))]
    results = {
        score.metric.name: score for score in score_metrics([_scored(item, predictions, reference) for item in items])
    }
    main, is_scored = results.get(chosen.name), chosen.name in results
    difference = None if main is None else main.difference
    agreements = _agreements(predictions, expected, choice, class_outputs, is_scored=is_scored)
    return {
        "metric": chosen.name,
        "metrics": {
            item.name: results[item.name].facts(names_of_output(class_names, item.outputs))
            if item.name in results
            else missing_facts(item, reason or NO_LABELS)
            for item in everything
            if item.name in results or item in requested
        },
        "accuracy": None if main is None else main.value,
        "accuracy_reason": reason,
        "reference_accuracy": None if main is None else main.reference,
        "accuracy_drop": None if main is None else main.drop,
        "accuracy_difference": None if difference is None else difference.to_dict(),
        "accuracy_difference_reason": reason if main is None else main.difference_reason,
        "scores": {name: score.value for name, score in results.items()},
        **agreements,
        "per_example": _per_example(predictions, expected, choice, class_outputs, results),
    }


def _companions(choice: Choice, *, reconstructs: bool) -> list[Metric]:
    """Return the metrics that are reported with those that the user chose, for the output of the main metric."""
    requested = (choice.metric, *choice.others)
    results: dict[str, Metric] = {}
    for metric in requested:
        for item in additional_metrics(metric, reconstructs=reconstructs):
            own = replace(item, outputs=metric.outputs) if item.outputs == (0,) else item
            results.setdefault(item.name, own)
    return [item for name, item in results.items() if name not in [metric.name for metric in requested]]


def _scored(metric: Metric, predictions: Predictions, reference: Predictions | None) -> Scored:
    outputs, labels = predictions.for_metric(metric)
    assert labels is not None
    other = None
    if reference is not None:
        other_outputs, other_labels = reference.for_metric(metric)
        assert other_labels is not None
        other = other_outputs, other_labels
    return Scored(metric=metric, outputs=outputs, labels=labels, reference=other)


def _per_example(
    predictions: Predictions,
    expected: Sequence[NDArray] | None,
    choice: Choice,
    class_outputs: Sequence[bool],
    results: Mapping[str, MetricScore],
) -> dict[str, Any]:
    """Return `EvaluationRecord.per_example`."""
    outputs, is_scored = {}, choice.metric.name in results
    names = predictions.names or [str(index) for index in range(len(predictions.outputs))]
    for index, (name, values, is_class) in enumerate(zip(names, predictions.outputs, class_outputs, strict=False)):
        other = None if expected is None else expected[index]
        classes = None
        if has_classes(values) and why_no_class(predictions, choice, index, is_class, is_scored=is_scored) is None:
            classes = predicted(values).reshape(-1)
        outputs[name] = OutputResults(
            predicted=None if classes is None or classes.min() < 0 else smallest_classes(classes),
            agrees=None if classes is None or other is None else classes == predicted(other).reshape(-1),
            noise_db=None if other is None else noise_db(other, values),
        )
    scores = {name: score.scores for name, score in results.items() if score.scores is not None}
    return ExampleResults(
        num_examples=len(predictions.outputs[0]),
        scores={name: own if own.dtype.kind == "b" else own.astype(np.float32) for name, own in scores.items()},
        replicates={name: score.replicates for name, score in results.items() if score.replicates is not None},
        unpaired={name: score.unpaired for name, score in results.items() if score.unpaired is not None},
        outputs=outputs,
    ).to_dict()


def _agreements(
    predictions: Predictions,
    expected: Sequence[NDArray] | None,
    choice: Choice,
    class_outputs: Sequence[bool],
    is_scored: bool,
) -> dict[str, Any]:
    """Return `agreement` and `agreement_reason`, and in `outputs` the same for each output."""
    reasons: list[str | None] = [NO_REFERENCE] * len(predictions.outputs)
    values: list[float | None] = [None] * len(predictions.outputs)
    if expected is not None:
        reasons = [
            why_no_class(predictions, choice, index, predicts_class, is_scored=is_scored)
            for index, predicts_class in enumerate(class_outputs)
        ]
        values = [
            agreement_of_output(predictions, other, choice, index, is_scored=is_scored) if reason is None else None
            for index, (other, reason) in enumerate(zip(expected, reasons, strict=True))
        ]
    # The agreement of the chosen output, else of the worst one, as for SQNR.
    counted = range(len(values)) if choice.output is None else [choice.output]
    known = [value for index in counted if (value := values[index]) is not None]
    looked_at = next((index for index in counted if choice.uses(index)), 0)
    return {
        "agreement": min(known, default=None),
        "agreement_reason": None if known else reasons[looked_at],
        "outputs": [
            {"agreement": value, "agreement_reason": reason} for value, reason in zip(values, reasons, strict=True)
        ],
    }


def agreement_of_output(
    predictions: Predictions, expected: NDArray, choice: Choice, output: int, *, is_scored: bool
) -> float:
    """Return the fraction of examples or positions for which an output predicts the same class as another run.

    Args:
        predictions: The outputs of a model, and the labels, which say where the classes are in a map.
        expected: This output of the other run.
        choice: The metrics.
        output: The index of the output.
        is_scored: Whether the main metric was computed, so that the labels fit it.
    """
    values = predictions.outputs[output]
    if not labels_positions(choice, output, is_scored=is_scored) or values.shape != expected.shape:
        return agreement(values, expected)
    return position_agreement(values, expected, predictions.for_metric(choice.metric)[1])


def labels_positions(choice: Choice, output: int, *, is_scored: bool) -> bool:
    """Check whether the labels have a class for each position of an output, because the main metric uses them so."""
    return choice.metric.contract.predicts == "positions" and choice.uses(output) and is_scored


def agreement_of(
    predictions: Predictions,
    expected: Sequence[NDArray],
    choice: Choice,
    class_outputs: Sequence[bool],
    *,
    is_scored: bool,
) -> tuple[float | None, str | None]:
    """Return `agreement` and `agreement_reason` of an EvaluationRecord.

    Args:
        predictions: The outputs of a model.
        expected: Those of another run on the same examples.
        choice: The metrics.
        class_outputs: For each output whether it predicts a class.
        is_scored: Whether the main metric was computed.
    """
    result = _agreements(predictions, expected, choice, class_outputs, is_scored)
    return result["agreement"], result["agreement_reason"]


def why_no_class(
    predictions: Predictions, choice: Choice, output: int, predicts_class: bool, *, is_scored: bool
) -> str | None:
    """Return why an output is not known to predict a class, so that it has no agreement; None if it does.

    The user's information has priority over the file: the chosen metric scores values or classes, or the labels are
    class numbers of this output. This is how logits count.

    Args:
        predictions: Outputs and labels.
        choice: The metric.
        output: The index of the output.
        predicts_class: The result of `is_class_vector` for the output.
        is_scored: Whether the metric was computed, so that the labels fit it.
    """
    metric, values = choice.metric, predictions.outputs[output]
    predicts, is_used = metric.contract.predicts, choice.uses(output)
    if predictions.reconstructs and (choice.is_default or predicts != "classes"):
        return RECONSTRUCTS
    if is_used and predicts == "values":
        return f"{metric.name} compares values, not classes"
    if predicts_class:
        return None
    if is_used and predicts == "positions" and is_scored:
        return None
    if is_used and predicts == "classes" and (is_scored or not choice.is_default):
        return None if has_classes(values) else why_no_single_class(values)
    if is_used and predicts == "score" and is_scored and num_classes(values) == 2:
        return None
    is_only = len(predictions.outputs) == 1 or choice.output == output
    if is_used and predicts == "any" and is_only and _are_classes_of(predictions.labels, values):
        return None
    return NOT_A_CLASS


def _are_classes_of(labels: NDArray | None, values: NDArray) -> bool:
    """Check whether labels are class numbers or one-hot rows that fit an output (n, classes)."""
    if labels is None or not has_classes(values) or num_classes(values) < 2:
        return False
    try:
        checked_labels(labels, values)
    except InputError:
        return False
    return True


def _why_unscored(predictions: Predictions, choice: Choice) -> str | None:
    """Return why there is no accuracy, or None. A metric that the user chose is computed, and may raise an error."""
    outputs, labels = predictions.for_metric(choice.metric)
    if labels is None:
        return NO_LABELS
    return why_unsuited(choice, outputs, labels)


def why_unsuited(choice: Choice, outputs: Outputs, labels: NDArray) -> str | None:
    """Return why the main metric is not computed for these outputs and labels, or None. A chosen metric may raise.

    Args:
        choice: The metrics.
        outputs: All outputs of the model, real values.
        labels: The labels.
    """
    if not choice.is_default:
        return choice.reason
    reason = choice.reason or choice.metric.contract.unsuited(choice.metric.select(outputs), labels)
    suited = metric_for_labels(labels)
    if reason is None or suited is None:
        return reason
    return f"the labels are not one class for each example. Set evaluation.metric, for labels like these {suited.name}"


def _can_score(predictions: Predictions, metric: Metric, is_scored: bool) -> bool:
    """Check whether a metric that is reported with another can be computed.

    Args:
        predictions: Outputs and labels.
        metric: The metric.
        is_scored: Whether the other metric was computed. The error of a reconstruction does not depend on it.
    """
    outputs, labels = predictions.for_metric(metric)
    by_error = predictions.reconstructs and metric.reconstruction is not None
    if labels is None or not (is_scored or by_error):
        return False
    try:
        metric.contract.check(metric.select(outputs), labels)
    except InputError:
        return False
    return True

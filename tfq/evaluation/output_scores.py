# SPDX-License-Identifier: Apache-2.0
"""Score each output of a model that has separate labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.data import AnySplit, check_output_names, is_one_hot, labeled_outputs, labels_of_output
from tfq.errors import InputError, did_you_mean
from tfq.evaluation.class_names import names_of_output
from tfq.evaluation.metric import Metric, MetricChoice, as_metric, as_metrics
from tfq.evaluation.metric_scores import Scored, score_metrics
from tfq.evaluation.scores import Choice, choose_metrics, compute_scores, default_metric


def metrics_of_outputs(settings: Sequence[str], names: Sequence[str]) -> dict[str, tuple[Metric, ...]]:
    """Return {output: metrics} of `evaluation.output_metrics`, whose entries are OUTPUT=METRIC.

    The first entry of an output is its main metric.

    Raises:
        InputError: An entry has another form or occurs twice, or there is no such output or metric.
    """
    results: dict[str, tuple[Metric, ...]] = {}
    for setting in settings:
        output, _, name = setting.rpartition("=")
        if output not in names:
            raise InputError(
                f"evaluation.output_metrics={setting}: expected OUTPUT=METRIC with an output of the model; "
                f"{did_you_mean(output, names)}",
                field="evaluation.output_metrics",
                expected=tuple(names),
                got=setting,
            )
        metric = registry.get(Metric, name, field="evaluation.output_metrics")
        if metric.name in [item.name for item in results.get(output, ())]:
            raise InputError(
                f"evaluation.output_metrics names {setting} twice. Name each metric of an output once",
                field="evaluation.output_metrics",
                expected="different metrics",
                got=setting,
            )
        results[output] = (*results.get(output, ()), metric)
    return results


def choose_for_labels(
    labels: NDArray,
    names: Sequence[str],
    outputs: Sequence[NDArray],
    metrics: Mapping[str, Sequence[Metric]],
    chosen: Sequence[Metric],
    output: str,
) -> tuple[Choice, dict[str, tuple[Metric, ...]]]:
    """Return the metrics of the whole record, and the metrics of each output with labels.

    The metrics of an output are those of `metrics`, else those of `chosen` that accept its labels, else the metric that
    its labels fit: top1 for class numbers, pixel_accuracy for maps of classes, mae for values. The record has the
    metrics of `output`, else those of the first output that `chosen` fits, else of the first one with labels.

    Args:
        labels: A structured array, see `tfq.data.output_labels`.
        names: The names of the outputs.
        outputs: Their real values.
        metrics: The result of `metrics_of_outputs`.
        chosen: `evaluation.metric`; may be empty.
        output: `evaluation.output`.

    Raises:
        InputError: The model lacks a labeled output, or a metric of `chosen` accepts the labels of no output.
    """
    check_output_names(labels, names)
    results: dict[str, tuple[Metric, ...]] = {}
    for name in (name for name in names if name in labeled_outputs(labels)):
        own = labels_of_output(labels, name)
        assert own is not None
        values, index = outputs[names.index(name)], names.index(name)
        accepted = list(metrics.get(name) or [item for item in chosen if _accepts(item, values, own)])
        accepted = accepted or [item for item in _fitting(own) if _accepts(item, values, own)][:1]
        if accepted:
            results[name] = tuple(replace(item, outputs=(index,)) for item in accepted)
    used = {item.name for items in results.values() for item in items}
    unused = next((item for item in chosen if item.name not in used), None)
    if unused is not None and not metrics:
        raise InputError(
            f"evaluation.metric={unused.name} accepts the labels of none of the outputs "
            f"{', '.join(labeled_outputs(labels))}. Choose a metric for each with evaluation.output_metrics",
            field="evaluation.metric",
            expected=unused.contract.labels,
            got=unused.name,
        )
    position = names.index(output) if output in names else int(output) if output.isdigit() else None
    fits = [name for name, items in results.items() if chosen and items[0].name == chosen[0].name]
    first = next(iter(fits or results), names[0]) if position is None else names[position]
    main, *others = results.get(first) or [replace(default_metric(reconstructs=False), outputs=(names.index(first),))]
    reason = None if first in results else f"no metric accepts the labels of {first!r}. Set evaluation.output_metrics"
    return (
        Choice(metric=main, is_default=not chosen, others=tuple(others), output=position, reason=reason),
        results,
    )


def _fitting(labels: NDArray) -> list[Metric]:
    is_class = labels.dtype.kind in "iub" or is_one_hot(labels)
    names = ("top1", "pixel_accuracy", "mae") if is_class else ("mae",)
    return [metric for name in names if (metric := as_metric(name)) is not None]


def _accepts(metric: Metric, values: NDArray, labels: NDArray) -> bool:
    try:
        metric.contract.check((values,), labels)
    except InputError:
        return False
    return True


def scores_of_outputs(
    metrics: Mapping[str, Sequence[Metric]],
    labels: NDArray,
    names: Sequence[str],
    outputs: Sequence[NDArray],
    expected: Sequence[NDArray] | None,
    class_names: Sequence[Sequence[str]] = (),
) -> list[dict[str, Any]]:
    """Return the scores of each output; {} for those without labels.

    They are metric, unit, direction, accuracy, reference_accuracy and accuracy_drop of its main metric, and in
    `metrics` an entry for each of its metrics, as in `EvaluationRecord.metrics`.

    Args:
        metrics: The result of `choose_for_labels`.
        labels: The labels of all outputs.
        names: The names of the outputs.
        outputs: Their real values.
        expected: The values of the reference; None without one.
        class_names: For each output the names of its classes; may be empty.
    """
    results: list[dict[str, Any]] = []
    for name in names:
        own = labels_of_output(labels, name)
        if name not in metrics or own is None:
            results.append({})
            continue
        reference = None if expected is None else (tuple(expected), own)
        scores = score_metrics(
            [Scored(metric=item, outputs=tuple(outputs), labels=own, reference=reference) for item in metrics[name]]
        )
        main = scores[0]
        results.append(
            {
                "metric": main.metric.name,
                "unit": main.metric.unit,
                "direction": main.metric.direction,
                "accuracy": main.value,
                "reference_accuracy": main.reference,
                "accuracy_drop": main.drop,
                "metrics": {
                    score.metric.name: score.facts(names_of_output(class_names, score.metric.outputs))
                    for score in scores
                },
            }
        )
    return results


def score_outputs(
    outputs: NDArray | Sequence[NDArray],
    data: AnySplit,
    *,
    reconstructs: bool,
    metric: MetricChoice = None,
    names: Sequence[str] = ("output",),
    class_outputs: Sequence[bool] = (False,),
) -> dict[str, Any]:
    """Return the fields of `compute_scores` for the outputs of any model, without a reference.

    With labels for several outputs, `by_output` has the fields of `scores_of_outputs` for each name.

    Args:
        outputs: Real values, (n, ...); a sequence of them for several outputs.
        data: The n examples, as a `Split` or a stream.
        reconstructs: Whether the model reconstructs its input.
        metric: As for `as_metrics`.
        names: The names of the outputs.
        class_outputs: For each output whether it predicts a class.
    """
    outputs = (outputs,) if isinstance(outputs, np.ndarray) else tuple(outputs)
    chosen, labels, by_output = as_metrics(metric), data.all_labels(), {}
    if labels is not None and labeled_outputs(labels):
        choice, metrics = choose_for_labels(labels, names, outputs, {}, chosen, "")
        class_names = [data.class_names] * len(outputs)
        scored = scores_of_outputs(metrics, labels, names, outputs, None, class_names)
        by_output = dict(zip(names, scored, strict=True))
    else:
        choice = choose_metrics(chosen, names, class_outputs, reconstructs=reconstructs, output="")
    scores = compute_scores(
        outputs, None, data, choice, reconstructs=reconstructs, class_outputs=class_outputs, names=names
    )
    return {**scores, "by_output": by_output}

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
from tfq.evaluation.metric import Metric, as_metric
from tfq.evaluation.scores import Choice, choose_metric, compute_scores, drop_of


def metrics_of_outputs(settings: Sequence[str], names: Sequence[str]) -> dict[str, Metric]:
    """Return {output: metric} of `evaluation.output_metrics`, whose entries are OUTPUT=METRIC.

    Raises:
        InputError: An entry has another form, or there is no such output or metric.
    """
    results = {}
    for setting in settings:
        output, _, metric = setting.rpartition("=")
        if output not in names:
            raise InputError(
                f"evaluation.output_metrics={setting}: expected OUTPUT=METRIC with an output of the model; "
                f"{did_you_mean(output, names)}",
                field="evaluation.output_metrics",
                expected=tuple(names),
                got=setting,
            )
        results[output] = registry.get(Metric, metric, field="evaluation.output_metrics")
    return results


def choose_for_labels(
    labels: NDArray,
    names: Sequence[str],
    outputs: Sequence[NDArray],
    metrics: Mapping[str, Metric],
    chosen: Metric | None,
    output: str,
) -> tuple[Choice, dict[str, Metric]]:
    """Return the metric of the whole record, and the metric of each output with labels.

    The metric of an output is that of `metrics`, else `chosen`, if it accepts the labels, else the metric that its
    labels fit: top1 for class numbers, pixel_accuracy for maps of classes, mae for values. The record has the metric of
    `output`, else that of the first output with labels.

    Args:
        labels: A structured array, see `tfq.data.output_labels`.
        names: The names of the outputs.
        outputs: Their real values.
        metrics: The result of `metrics_of_outputs`.
        chosen: `evaluation.metric`; None if none is set.
        output: `evaluation.output`.

    Raises:
        InputError: The model lacks a labeled output, or `chosen` accepts the labels of no output.
    """
    check_output_names(labels, names)
    results: dict[str, Metric] = {}
    for name in (name for name in names if name in labeled_outputs(labels)):
        own = labels_of_output(labels, name)
        assert own is not None
        values, index = outputs[names.index(name)], names.index(name)
        candidates = [metrics[name]] if name in metrics else [*([chosen] if chosen else []), *_fitting(own)]
        accepted = next((item for item in candidates if name in metrics or _accepts(item, values, own)), None)
        if accepted is not None:
            results[name] = replace(accepted, outputs=(index,))
    fits_chosen = [name for name, item in results.items() if chosen is not None and item.name == chosen.name]
    if chosen is not None and not fits_chosen and not metrics:
        raise InputError(
            f"evaluation.metric={chosen.name} accepts the labels of none of the outputs "
            f"{', '.join(labeled_outputs(labels))}. Choose a metric for each with evaluation.output_metrics",
            field="evaluation.metric",
            expected=chosen.contract.labels,
            got=chosen.name,
        )
    position = names.index(output) if output in names else int(output) if output.isdigit() else None
    first = next(iter(fits_chosen or results), names[0]) if position is None else names[position]
    metric = results.get(first) or replace(
        as_metric("top1") or next(iter(results.values())), outputs=(names.index(first),)
    )
    reason = None if first in results else f"no metric accepts the labels of {first!r}. Set evaluation.output_metrics"
    return Choice(metric=metric, is_default=chosen is None, output=position, reason=reason), results


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
    metrics: Mapping[str, Metric],
    labels: NDArray,
    names: Sequence[str],
    outputs: Sequence[NDArray],
    expected: Sequence[NDArray] | None,
) -> list[dict[str, Any]]:
    """Return for each output its metric, accuracy, reference_accuracy and accuracy_drop; {} for those without labels.

    Args:
        metrics: The result of `choose_for_labels`.
        labels: The labels of all outputs.
        names: The names of the outputs.
        outputs: Their real values.
        expected: The values of the reference; None without one.
    """
    results: list[dict[str, Any]] = []
    for name in names:
        metric, own = metrics.get(name), labels_of_output(labels, name)
        if metric is None or own is None:
            results.append({})
            continue
        value = metric.compute(tuple(outputs), own)
        reference = None if expected is None else metric.compute(tuple(expected), own)
        results.append(
            {
                "metric": metric.name,
                "unit": metric.unit,
                "direction": metric.direction,
                "accuracy": value,
                "reference_accuracy": reference,
                "accuracy_drop": None if reference is None else drop_of(metric, value, reference),
            }
        )
    return results


def score_outputs(
    outputs: NDArray | Sequence[NDArray],
    data: AnySplit,
    *,
    reconstructs: bool,
    metric: Any = None,
    names: Sequence[str] = ("output",),
    class_outputs: Sequence[bool] = (False,),
) -> dict[str, Any]:
    """Return the fields of `compute_scores` for the outputs of any model, without a reference.

    With labels for several outputs, `by_output` has the fields of `scores_of_outputs` for each name.

    Args:
        outputs: Real values, (n, ...); a sequence of them for several outputs.
        data: The n examples, as a `Split` or a stream.
        reconstructs: Whether the model reconstructs its input.
        metric: As for `as_metric`.
        names: The names of the outputs.
        class_outputs: For each output whether it predicts a class.
    """
    outputs = (outputs,) if isinstance(outputs, np.ndarray) else tuple(outputs)
    chosen, labels, by_output = as_metric(metric), data.all_labels(), {}
    if labels is not None and labeled_outputs(labels):
        choice, metrics = choose_for_labels(labels, names, outputs, {}, chosen, "")
        by_output = dict(zip(names, scores_of_outputs(metrics, labels, names, outputs, None), strict=True))
    else:
        choice = choose_metric(chosen, names, class_outputs, reconstructs=reconstructs)
    scores = compute_scores(
        outputs, None, data, choice, reconstructs=reconstructs, class_outputs=class_outputs, names=names
    )
    return {**scores, "by_output": by_output}

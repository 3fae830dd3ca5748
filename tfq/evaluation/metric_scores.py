# SPDX-License-Identifier: Apache-2.0
"""Compute metrics for a model and its reference: numbers, intervals, paired differences and tables by class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.evaluation.metric import Metric, MetricTable, Outputs, Weights
from tfq.evaluation.metrics import wilson_interval
from tfq.evaluation.paired import (
    PairedDifference,
    bootstrap_difference,
    mean_difference,
    mean_interval,
    percentile_interval,
    replicates,
)
from tfq.evaluation.record import NO_REFERENCE

TOO_LONG = "a bootstrap of {} would take too long for so many examples and output values"
NOT_RESAMPLED = "{} declares neither `examples` nor `resampled`, one of which a paired interval needs"
NO_SCORES = "`examples` of {} does not return one score for each example"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A metric that is computed for a model.

    Args:
        metric: The metric.
        outputs: The model's outputs, (n, ...) each.
        labels: The labels.
        reference: The outputs of the reference, with its labels; None without one. The labels are the model's, except
            for a metric that scores the error of a reconstruction.
    """

    metric: Metric
    outputs: Outputs
    labels: NDArray
    reference: tuple[Outputs, NDArray] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricScore:
    """The results of one metric.

    Attributes:
        metric: The metric.
        value: The number for the model.
        interval: Its 95% interval; None if there is none.
        reference: The number for the reference; None without one.
        difference: The model's number minus the reference's, with its paired interval.
        difference_reason: Why there is none.
        note: How the number was computed, if that needs to be known.
        reference_note: The same for the reference.
        table: The figures of each class.
        reference_table: The same for the reference.
        scores: (n,) the score of each example, if the metric is their mean.
        replicates: The values for the draws of a bootstrap, if the metric is not a mean over the examples.
        unpaired: Why there are neither scores nor replicates, so that no difference can have a paired interval.
    """

    metric: Metric
    value: float
    interval: tuple[float, float] | None = None
    reference: float | None = None
    difference: PairedDifference | None = None
    difference_reason: str | None = None
    note: str | None = None
    reference_note: str | None = None
    table: MetricTable | None = None
    reference_table: MetricTable | None = None
    scores: NDArray | None = None
    replicates: NDArray | None = None
    unpaired: str | None = None

    @property
    def drop(self) -> float | None:
        """By how much the model is worse than the reference; None without a reference or a direction."""
        return None if self.reference is None else drop_of(self.metric, self.value, self.reference)

    def facts(self, class_names: Sequence[str] = ()) -> dict[str, Any]:
        """Return the entry of `EvaluationRecord.metrics`, as JSON values.

        Args:
            class_names: The names of class 0, 1, ..., which replace the numbers in the tables; may be empty.
        """
        table, reference_table = (
            None if item is None else item.with_names(class_names).to_dict()
            for item in (self.table, self.reference_table)
        )
        return {
            **self.metric.facts(),
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "reference": self.reference,
            "drop": self.drop,
            "difference": None if self.difference is None else self.difference.to_dict(),
            "difference_reason": self.difference_reason,
            "note": self.note,
            "reference_note": self.reference_note,
            "table": table,
            "reference_table": reference_table,
        }


def missing_facts(metric: Metric, reason: str | None) -> dict[str, Any]:
    """Return the entry of `EvaluationRecord.metrics` of a metric that was not computed."""
    names = (
        "value",
        "interval",
        "reference",
        "drop",
        "difference",
        "note",
        "reference_note",
        "table",
        "reference_table",
    )
    return {**metric.facts(), **dict.fromkeys(names), "difference_reason": reason}


def drop_of(metric: Metric, value: float, reference: float) -> float | None:
    """Return by how much a metric's value is worse than the reference's; None if it has no direction."""
    if metric.direction is None:
        return None
    return value - reference if metric.direction == "lower" else reference - value


def score_metrics(scored: Sequence[Scored]) -> list[MetricScore]:
    """Compute metrics for a model and its reference on the same n examples.

    A metric that is a mean over the examples has the closed form of `mean_difference`. All others share one paired
    bootstrap. Its percentiles are also the interval of the metric itself, if that declares no `interval`.

    Raises:
        InputError: Outputs and labels do not fit a metric, or it fails.
    """
    results = [_scored_once(item) for item in scored]
    measures: list[Callable[[Weights], float]] = []
    places: list[tuple[int, int, bool]] = []
    unpaired: dict[int, str] = {}
    for index, (item, (_, is_mean)) in enumerate(zip(scored, results, strict=True)):
        own = None if is_mean else item.metric.resampler(item.outputs, item.labels)
        if own is not None:
            other = None if item.reference is None else item.metric.resampler(*item.reference)
            places.append((index, len(measures), other is not None))
            measures += [own, *([] if other is None else [other])]
        elif not is_mean:
            unpaired[index] = _why_unpaired(item.metric)
    num_examples = len(scored[0].labels) if scored else 0
    draws = replicates(measures, num_examples) if measures else []
    scores = [replace(score, unpaired=unpaired.get(index)) for index, (score, _) in enumerate(results)]
    for index, place, has_other in places:
        scores[index] = _bootstrapped(
            scores[index], draws[place], draws[place + 1] if has_other else None, num_examples
        )
    return scores


def _scored_once(item: Scored) -> tuple[MetricScore, bool]:
    """Return the results that need no bootstrap, and whether the metric is a mean over the examples."""
    metric = item.metric
    state = metric.state_of(item.outputs, item.labels)
    value, other = metric.value_of(state), None
    results: dict[str, Any] = {"difference_reason": NO_REFERENCE}
    own = _examples(metric, item.outputs, item.labels)
    if item.reference is not None:
        other = metric.state_of(*item.reference)
        results = {
            "reference": metric.value_of(other),
            "reference_note": metric.note_of(other),
            "reference_table": metric.table_of(other),
            "difference_reason": _why_unpaired(metric),
        }
        base = _examples(metric, *item.reference)
        if own is not None and base is not None:
            difference = mean_difference(own, base)
            reason = None if difference else f"only {len(own)} examples, too few for an interval"
            results.update(difference=difference, difference_reason=reason)
    return MetricScore(
        metric=metric,
        value=value,
        interval=metric.interval(state) or (None if own is None else _interval_of_mean(own)),
        note=metric.note_of(state),
        table=metric.table_of(state),
        scores=own,
        **results,
    ), own is not None


def _why_unpaired(metric: Metric) -> str:
    """Return why the difference of a metric that is not a mean over the examples has no paired interval."""
    reason = NOT_RESAMPLED if metric.examples is None else NO_SCORES
    return (reason if metric.resampled is None else TOO_LONG).format(metric.title or metric.name)


def _interval_of_mean(scores: NDArray) -> tuple[float, float] | None:
    """Return the 95% interval of the mean of (n,) scores: Wilson's for right and wrong, else Student's t."""
    if scores.dtype.kind == "b":
        return wilson_interval({"correct": scores.sum(), "examples": np.asarray(scores.size)})
    return mean_interval(scores)


def _examples(metric: Metric, outputs: Outputs, labels: NDArray) -> NDArray | None:
    """Return the score of each example, (n,); None if the metric is not their mean."""
    if metric.examples is None:
        return None
    scores = np.asarray(metric.examples(metric.select(outputs), np.asarray(labels)))
    return scores if scores.shape == (len(labels),) else None


def _bootstrapped(score: MetricScore, own: NDArray, other: NDArray | None, num_examples: int) -> MetricScore:
    """Return the results with the intervals of a bootstrap."""
    difference, reason = score.difference, score.difference_reason
    if other is not None and score.reference is not None:
        difference, reason = bootstrap_difference(score.value, score.reference, own, other, num_examples)
    interval = score.interval or percentile_interval(own, num_examples)[0]
    return replace(score, interval=interval, difference=difference, difference_reason=reason, replicates=own)

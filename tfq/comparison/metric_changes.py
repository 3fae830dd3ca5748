# SPDX-License-Identifier: Apache-2.0
"""The metrics that two records have, or an evaluation and its reference: values, differences and their intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.evaluation.figure_readers import Measured, metric_pairs, per_example_of
from tfq.evaluation.figures import difference_of_metric
from tfq.evaluation.metric_text import change_text, score_text
from tfq.evaluation.per_example import Difference, difference_of_intervals
from tfq.text_table import aligned

NOT_SAME_EXAMPLES = "the examples differ, and a record has no interval of the metric"
NOT_KEPT = "a record does not keep what a paired interval needs"
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class MetricChange:
    """A metric of two models.

    Attributes:
        metric: Its name.
        output: The output with separate labels that it belongs to; "" for the metrics of the whole evaluation.
        title: Its title.
        unit: A key of `tfq.evaluation.metric.UNITS`.
        direction: Which values are better; None if it declares neither.
        old: The value of the old model, or of the reference.
        new: The value of the new model.
        old_interval: The stored 95% interval of the old value; None without one.
        new_interval: That of the new value.
        difference: new - old, with its interval.
        reason: Why the difference has no interval; None if it has one.
    """

    metric: str
    output: str
    title: str
    unit: str
    direction: str | None
    old: float
    new: float
    old_interval: Interval | None
    new_interval: Interval | None
    difference: Difference
    reason: str | None

    @property
    def name(self) -> str:
        """The metric, with its output: "top1 of classes"."""
        return f"{self.metric} of {self.output}" if self.output else self.metric

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {**vars(self), "difference": dict(vars(self.difference))}
        for key in ("old_interval", "new_interval"):
            values[key] = None if values[key] is None else list(values[key])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MetricChange":
        """Return the metric in the JSON values of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: They are damaged.
        """
        numbers = {key: float(values[key]) for key in ("old", "new")}
        intervals = {key: _interval(values[key]) for key in ("old_interval", "new_interval")}
        return cls(**{**values, **numbers, **intervals, "difference": Difference(**values["difference"])})


def metric_changes(new: Measured, old: Measured, *, same_examples: bool) -> tuple[MetricChange, ...]:
    """Return every metric that both records have a value of, in the order of the new record.

    Args:
        new: The parts of the new record.
        old: Those of the old one.
        same_examples: Whether both evaluated the same examples in the same order. Differences are paired then, if the
            records keep what that needs.
    """
    results = [per_example_of(item.evaluation) for item in (new, old)]
    theirs = {(output, name): facts for output, name, facts in _facts(old.evaluation)}
    changes = []
    for output, name, facts in _facts(new.evaluation):
        other = theirs.get((output, name))
        if other is None or facts.get("unit") != other.get("unit"):
            continue
        ends = [_interval(item.get("interval")) for item in (facts, other)]
        pairs = [
            # Results of each example are those of the metrics of the whole evaluation.
            None if output or not same_examples else metric_pairs(result, name, item["value"])
            for result, item in zip(results, (facts, other), strict=True)
        ]
        difference = None
        if pairs[0] is not None and pairs[1] is not None:
            difference = difference_of_metric(pairs[0], pairs[1])
        reason = None
        if (difference is None or difference.low is None) and ends[0] is not None and ends[1] is not None:
            difference = difference_of_intervals(facts["value"], other["value"], ends[0], ends[1])
        if difference is None or difference.low is None:
            difference = difference or Difference(value=facts["value"] - other["value"])
            stored = next((item.unpaired[name] for item in results if item and name in item.unpaired), NOT_KEPT)
            reason = stored if same_examples else NOT_SAME_EXAMPLES
        changes.append(
            MetricChange(
                **_identity(output, name, facts),
                old=float(other["value"]),
                new=float(facts["value"]),
                old_interval=ends[1],
                new_interval=ends[0],
                difference=difference,
                reason=reason,
            )
        )
    return tuple(changes)


def changes_from_reference(evaluation: Mapping[str, Any]) -> tuple[MetricChange, ...]:
    """Return every metric of an evaluation that its reference has too, with the paired intervals of the record.

    Args:
        evaluation: `EvaluationRecord.to_dict()`.
    """
    changes = []
    for output, name, facts in _facts(evaluation):
        if facts.get("reference") is None:
            continue
        stored = facts.get("difference") or {}
        difference = Difference(
            value=facts["value"] - facts["reference"],
            low=stored.get("low"),
            high=stored.get("high"),
            paired=True,
            wins=stored.get("wins"),
            losses=stored.get("losses"),
        )
        changes.append(
            MetricChange(
                **_identity(output, name, facts),
                old=float(facts["reference"]),
                new=float(facts["value"]),
                old_interval=None,
                new_interval=_interval(facts.get("interval")),
                difference=difference,
                reason=None if difference.low is not None else facts.get("difference_reason") or NOT_KEPT,
            )
        )
    return tuple(changes)


def _identity(output: str, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a MetricChange that say which metric it is."""
    return {
        "metric": name,
        "output": output,
        "title": str(facts.get("title") or name),
        "unit": str(facts.get("unit") or "none"),
        "direction": facts.get("direction"),
    }


def _facts(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield (output, metric, facts) of each metric with a value; the output is "" for the whole evaluation."""
    named = [("", evaluation.get("metrics") or {})]
    outputs = [item for item in evaluation.get("outputs") or () if item.get("metrics")]
    named += [(str(item["name"]), item["metrics"]) for item in outputs]
    whole = evaluation.get("metrics") or {}
    for output, metrics in named:
        for name, facts in metrics.items():
            # The metrics of the whole evaluation are also those of one output.
            is_repeated = bool(output) and (whole.get(name) or {}).get("value") == facts.get("value")
            if facts.get("value") is not None and not is_repeated:
                yield output, str(name), facts


def _interval(values: Any) -> Interval | None:
    """Return [low, high] of a record; None if there is none, or if it is damaged."""
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        return None
    if not all(isinstance(value, (int, float)) for value in values):
        return None
    return float(values[0]), float(values[1])


def metric_lines(changes: Sequence[MetricChange], old: str, new: str) -> list[str]:
    """Return a table of metrics for the terminal, then why differences have no interval; [] without metrics.

    Args:
        changes: The metrics.
        old: The heading of the old values.
        new: The heading of the new values.
    """
    if not changes:
        return []
    rows = [("metric", old, new, "difference"), *map(metric_cells, changes)]
    lines = ["", "Metrics, with 95% intervals:", *(f"  {line}" for line in aligned(rows, left=1))]
    return [*lines, *(f"  {note}" for note in metric_notes(changes))]


def metric_cells(change: MetricChange) -> tuple[str, str, str, str]:
    """Return the name, both values and the difference of a metric as text."""
    difference, word = change.difference, " points" if change.unit == "fraction" else ""
    text = f"{change_text(change.unit, difference.value)}{word}"
    if difference.low is not None and difference.high is not None:
        ends = (change_text(change.unit, end) for end in (difference.low, difference.high))
        text += f" ({' to '.join(ends)}{'' if difference.paired else ', not paired'})"
    else:
        text += " (no interval)"
    return (
        change.name,
        _value(change.old, change.old_interval, change.unit),
        _value(change.new, change.new_interval, change.unit),
        text,
    )


def metric_notes(changes: Sequence[MetricChange]) -> list[str]:
    """Return a sentence for each reason why differences have no interval, with the metrics."""
    names: dict[str, list[str]] = {}
    for change in changes:
        if change.reason is not None:
            names.setdefault(change.reason, []).append(change.name)
    return [f"No interval of {', '.join(items)}: {reason}" for reason, items in names.items()]


def _value(value: float, interval: Interval | None, unit: str) -> str:
    ends = "" if interval is None else f" ({' to '.join(str(score_text(unit, end)) for end in interval)})"
    return f"{score_text(unit, value)}{ends}"

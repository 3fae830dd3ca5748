# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation on corrupted inputs, with paired intervals over the examples."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tfq.evaluation.metric_text import score_text
from tfq.notebook import NotebookRecord, NotebookTable
from tfq.text_table import aligned

# Below this number of examples, Student's t interval of a mean of fractions is not reliable enough to show.
MIN_EXAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
        value: The number; None if it could not be computed.
        low: The lower end of the interval; None if there is none.
        high: Its upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class ConditionScore:
    """A model under one corruption at one severity.

    Attributes:
        corruption: Its name.
        severity: From 1 to 5.
        parameter: The parameter of the corruption, as text.
        model: The name of the model.
        accuracy: The metric against the labels, with its own interval.
        agreement: The fraction of examples with the reference's class on the same corrupted inputs.
        difference: The metric minus the reference's on the same corrupted inputs, with a paired interval.
        ece: The expected calibration error; an empty estimate if the outputs are not class probabilities.
    """

    corruption: str
    severity: int
    parameter: str
    model: str
    accuracy: Estimate
    agreement: float | None
    difference: Estimate
    ece: Estimate


@dataclass(frozen=True, kw_only=True)
class CorruptionScore:
    """A model under one corruption, averaged over its severities.

    Attributes:
        corruption: Its name.
        is_mistake: Whether it is a mistake of the app.
        model: The name of the model.
        accuracy: The mean over the severities of the metric.
        drop: How much worse that is than on clean inputs.
        extra_drop: The drop minus the reference's: what compression loses in addition; an empty estimate for the
            reference.
        agreement: The mean over the severities of the agreement.
        ece: The mean over the severities of the expected calibration error.
    """

    corruption: str
    is_mistake: bool
    model: str
    accuracy: Estimate
    drop: Estimate
    extra_drop: Estimate
    agreement: float | None
    ece: Estimate


@dataclass(frozen=True, kw_only=True)
class ModelRobustness:
    """A model over all corruptions; mistakes of apps are left out.

    Attributes:
        model: The name of the model.
        clean: The metric on clean inputs.
        mean: The mean of the metric over corruptions (each the mean over its severities).
        drop: Clean minus mean; for a metric where lower is better, mean minus clean.
        extra_drop: The drop minus the reference's, paired by example; an empty estimate for the reference.
        agreement: The mean agreement with the reference on the same corrupted inputs.
        clean_agreement: The agreement on clean inputs.
        ece: The mean expected calibration error; an empty estimate if the outputs are not class probabilities.
        clean_ece: That on clean inputs.
        extra_ece: How much more it increases by corruption than the reference's, paired by example; an empty estimate
            for the reference.
        worst: The corruption with the largest drop.
    """

    model: str
    clean: Estimate
    mean: Estimate
    drop: Estimate
    extra_drop: Estimate
    agreement: float | None
    clean_agreement: float | None
    ece: Estimate
    clean_ece: Estimate
    extra_ece: Estimate
    worst: str | None = None


@dataclass(frozen=True, kw_only=True)
class RobustnessRecord(NotebookRecord):
    """The results of models on the same corrupted inputs.

    Attributes:
        metric: The name of the metric.
        unit: Its unit.
        direction: Which of its values are better.
        accuracy_reason: Why there is no accuracy; None if there is.
        interval_reason: Why the metric has no intervals, or not all; None if it has.
        ece_reason: The same for the expected calibration error; or why there is none.
        reference: The name of the model that the others are compared with; "" if there is none.
        num_examples: How many examples were corrupted.
        seed: The seed of the random numbers.
        severities: The severities.
        input_kind: "image" or "signal".
        input_range: The lowest and the highest value of the inputs, in the model's units.
        input_range_reason: Where the range comes from.
        parameters: The set of published parameters; "" for signals.
        parameters_reason: Why this set.
        backend: The backend that ran the models.
        models: Each model over all corruptions.
        corruptions: Each model under each corruption.
        conditions: Each model under each corruption at each severity.
        classes: For each class its examples, and for each model the fractions that are right on clean and on corrupted
            inputs; None without class labels.
        classes_reason: Why there are none.
        degraded: The examples that lose most; None if there are none.
        degraded_reason: Why there are none.
        skipped: Corruption -> why it was not applied.
        warnings: Possible problems, as sentences.
        secs: How long it took, in seconds.
        estimated_secs: What was announced before it started.
    """

    metric: str
    unit: str
    direction: str | None
    accuracy_reason: str | None
    interval_reason: str | None
    ece_reason: str | None
    reference: str
    num_examples: int
    seed: int
    severities: tuple[int, ...]
    input_kind: str
    input_range: tuple[float, float]
    input_range_reason: str
    parameters: str
    parameters_reason: str
    backend: str
    models: tuple[ModelRobustness, ...]
    corruptions: tuple[CorruptionScore, ...]
    conditions: tuple[ConditionScore, ...]
    classes: dict[str, Any] | None
    classes_reason: str | None
    degraded: dict[str, Any] | None
    degraded_reason: str | None
    skipped: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    secs: float = 0.0
    estimated_secs: float | None = None

    def model(self, name: str) -> ModelRobustness:
        """Return the results of one model over all corruptions."""
        return next(item for item in self.models if item.model == name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = dataclasses.asdict(self)
        tuples = ("severities", "input_range", "models", "corruptions", "conditions", "warnings")
        return {**values, **{name: list(values[name]) for name in tuples}}

    def to_text(self) -> str:
        """Return tables for the terminal: the models, then each corruption, then the mistakes of apps."""
        lines = [f"robustness: {self._about()}"]
        for table in self.notebook_tables():
            lines += ["", table.caption, *aligned([tuple(table.columns), *map(tuple, table.rows)], table.left)]
        lines += [f"not applied: {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)

    def notebook_tables(self) -> list[NotebookTable]:
        """Return the tables of `to_text`."""
        head = ("model", "clean", "corrupted", "drop", "more than the reference", "agreement")
        rows = [
            (
                item.model,
                self._text(item.clean.value),
                self._text(item.mean.value),
                self._with_interval(item.drop),
                self._with_interval(item.extra_drop),
                score_text("fraction", item.agreement) or "",
            )
            for item in self.models
        ]
        tables = [NotebookTable(caption="mean over corruptions and severities", columns=head, rows=rows)]
        if any(item.ece.value is not None for item in self.models):
            errors = [
                (item.model, *(_error_text(each) for each in (item.clean_ece, item.ece, item.extra_ece)))
                for item in self.models
            ]
            head_of_errors = ("model", "clean", "corrupted", "increase minus the reference's")
            caption = "expected calibration error (ECE)"
            tables.append(NotebookTable(caption=caption, columns=head_of_errors, rows=errors))
        for caption, is_mistake in (("by corruption, mean over severities", False), ("mistakes of apps", True)):
            names = list(dict.fromkeys(item.corruption for item in self.corruptions if item.is_mistake == is_mistake))
            if names:
                columns = ("mistake" if is_mistake else "corruption", *(item.model for item in self.models))
                tables.append(NotebookTable(caption=caption, columns=columns, rows=[self._row(name) for name in names]))
        return tables

    def _row(self, corruption: str) -> tuple[str, ...]:
        scores = [item for item in self.corruptions if item.corruption == corruption]
        fallback = [score_text("fraction", item.agreement) or "" for item in scores]
        cells = [self._text(item.accuracy.value) or other for item, other in zip(scores, fallback, strict=True)]
        return corruption, *cells

    def _about(self) -> str:
        texts = [f"{self.num_examples:,} examples", f"{self.metric}", f"seed {self.seed}"]
        texts += [f"parameters {self.parameters}"] if self.parameters else []
        texts += [f"agreement only: {self.accuracy_reason}"] if self.accuracy_reason else []
        texts += [f"no intervals: {self.interval_reason}"] if self.interval_reason else []
        return ", ".join(texts)

    def _text(self, value: float | None) -> str:
        return score_text(self.unit, value) or ""

    def _with_interval(self, item: Estimate) -> str:
        if item.value is None:
            return ""
        factor, places = (100, 2) if self.unit == "fraction" else (1, 4)
        ends = [item.value] if item.low is None or item.high is None else [item.value, item.low, item.high]
        texts = [f"{factor * value:+.{places}f}" for value in ends]
        return texts[0] if len(texts) == 1 else f"{texts[0]} ({texts[1]} to {texts[2]})"


def _error_text(item: Estimate) -> str:
    """Return a calibration error with its interval."""
    if item.value is None:
        return ""
    ends = "" if item.low is None or item.high is None else f" ({item.low:.4f} to {item.high:.4f})"
    return f"{item.value:.4f}{ends}"


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Return the mean of numbers; None if one is missing or there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None

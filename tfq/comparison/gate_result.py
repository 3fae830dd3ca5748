# SPDX-License-Identifier: Apache-2.0
"""The result of a gate: every figure with its verdict, every other change, and what failed."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tfq.comparison.gate_changes import Change
from tfq.comparison.metric_changes import MetricChange
from tfq.evaluation.per_example import Difference
from tfq.notebook import NotebookRecord, NotebookTable

Status = Literal["worse", "missing", "noise", "within tolerance", "same", "better", "new", "not gated"]
# A figure with one of these fails the gate; "noise" does too if `comparison.strict` is set.
FAILURES = ("worse", "missing")


@dataclass(frozen=True, kw_only=True)
class FigureResult:
    """A figure in both records, and the verdict.

    Attributes:
        figure: Its name.
        place: Where it was obtained: "on gpu"; "" for the evaluation itself.
        unit: Its unit.
        direction: Which values are better.
        old: The value in the baseline; None if the baseline has none.
        new: The value in the new record; None if it is missing.
        difference: new - old, with an interval; None if one of them is missing.
        tolerance: How much worse it may be: "0.005" or "1%".
        status: "worse" (by more than the tolerance) and "missing" fail the gate. "noise": worse than the tolerance, but
            the 95% interval of the difference contains 0. "new": the baseline does not have it. "not gated": it cannot
            be compared, for the reason.
        reason: Why it is missing or not gated.
        causes: The changes that may explain it, the most likely first: "layer conv2/CONV_2D: ...".
    """

    figure: str
    place: str
    unit: str
    direction: str
    old: float | None
    new: float | None
    difference: Difference | None
    tolerance: str
    status: Status
    reason: str | None = None
    causes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The figure and its place: "accuracy on gpu"."""
        return f"{self.figure} {self.place}".strip()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite SQNR (no difference from the reference) is "inf"."""
        values = {**vars(self), "causes": list(self.causes), "old": _json(self.old), "new": _json(self.new)}
        if self.difference is not None:
            values["difference"] = {key: _json(value) for key, value in vars(self.difference).items()}
        return values


@dataclass(frozen=True, kw_only=True)
class GatedModel:
    """The results of one model.

    Attributes:
        name: Its name in the baseline.
        file: The path or name of the new file.
        figures: All figures of both records.
        metrics: Every metric of the evaluations that both records have; the verdicts are those of `figures`.
        changes: What else changed.
        same_examples: Whether both records evaluated the same examples, so that intervals are paired.
        layer_errors: The error of each layer of both files, if the files were at hand.
        missing: Why the new record does not have the model; None if it does.
        unchecked: "data" or "interface" -> why it was not compared; empty if both were.
    """

    name: str
    file: str
    figures: tuple[FigureResult, ...]
    metrics: tuple[MetricChange, ...] = ()
    changes: tuple[Change, ...] = ()
    same_examples: bool = False
    layer_errors: tuple[dict[str, Any], ...] = ()
    missing: str | None = None
    unchecked: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "file": self.file,
            "missing": self.missing,
            "unchecked": dict(self.unchecked),
            "same_examples": self.same_examples,
            "figures": [item.to_dict() for item in self.figures],
            "metrics": [item.to_dict() for item in self.metrics],
            "changes": [item.to_dict() for item in self.changes],
            "layer_errors": list(self.layer_errors),
        }


@dataclass(frozen=True, kw_only=True)
class Gate(NotebookRecord):
    """The comparison of a record with a baseline.

    Attributes:
        models: The models of the baseline.
        new_models: Models that only the new record has; they are not gated.
        strict: Whether a loss that may be noise fails too.
        latency: The time of the new file relative to that of the baseline's file, if both were timed in turns.
    """

    models: tuple[GatedModel, ...]
    new_models: tuple[str, ...] = ()
    strict: bool = False
    latency: Mapping[str, Any] | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for each figure and each change that fails the gate."""
        return tuple(sentence for model in self.models for sentence in self.failures_of(model))

    def failures_of(self, model: GatedModel) -> Iterator[str]:
        """Yield a sentence for each failure of a model, with the model's name if there are several."""
        prefix = f"{model.name}: " if len(self.models) > 1 else ""
        if model.missing:
            yield f"{prefix}{model.missing}"
        yield from (f"{prefix}{change_sentence(change)}" for change in model.changes if change.breaks)
        yield from (f"{prefix}{sentence(item)}" for item in model.figures if self.fails(item))

    def fails(self, item: FigureResult) -> bool:
        """Check whether a figure fails the gate."""
        return item.status in FAILURES or (self.strict and item.status == "noise")

    @property
    def holds(self) -> bool:
        """Whether nothing fails."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "holds": self.holds,
            "failures": list(self.failures),
            "strict": self.strict,
            "models": [model.to_dict() for model in self.models],
            "new_models": list(self.new_models),
        }

    def notebook_tables(self) -> list[NotebookTable]:
        """Return the failures, then the figures of each model."""
        verdict = f"{len(self.failures)} failed" if self.failures else "nothing failed"
        tables = [NotebookTable(rows=[[failure] for failure in self.failures], caption=verdict)]
        for model in self.models:
            rows = [
                (item.name, item.status, number(item.old, item.unit), number(item.new, item.unit), change_text(item))
                for item in model.figures
            ]
            columns = ("figure", "verdict", "baseline", "new", "change")
            tables.append(NotebookTable(columns=columns, rows=rows, caption=model.name, left=2))
        return tables


def number(value: float | None, unit: str) -> str:
    """Return a figure as text, by its unit."""
    if value is None:
        return "-"
    if unit == "dB":
        return "identical" if value == float("inf") else f"{value:.2f} dB"
    if unit == "fraction":
        return f"{value:.2%}"
    if unit in ("bytes", "count", "LSB"):
        text = f"{value:,.0f}" if value == int(value) else f"{value:,.6g}"
        return text if unit == "count" else f"{text} {unit}"
    return f"{value:.4f}" if unit in ("score", "ratio") else f"{value:.6g}{' ms' if unit == 'ms' else ''}"


def change_text(item: FigureResult) -> str:
    """Return the change of a figure with its interval: "-1.20 points (-2.10 to -0.31)", "+512 (+0.9%)"."""
    difference = item.difference
    if difference is None:
        return "-"
    if not difference.value:
        return "0"
    if item.unit == "fraction":
        text = f"{100 * difference.value:+.2f} points"
        ends = [100 * end for end in (difference.low, difference.high) if end is not None]
        return f"{text} ({ends[0]:+.2f} to {ends[1]:+.2f})" if ends else text
    if item.unit in ("bytes", "count") and item.old:
        return f"{difference.value:+,.6g} ({difference.value / item.old:+.2%})"
    text = f"{difference.value:+,.4g}"
    if difference.low is not None and difference.high is not None:
        text += f" ({difference.low:+.3g} to {difference.high:+.3g})"
    return text


def sentence(item: FigureResult) -> str:
    """Return a sentence on a figure that fails, with both values, the tolerance and the most likely cause."""
    old = number(item.old, item.unit)
    if item.status == "missing":
        text = f"{item.name} is missing (baseline: {old}): {item.reason}"
    else:
        text = f"{item.name} is {number(item.new, item.unit)}, in the baseline {old}: {change_text(item)}, tolerance "
        text += tolerance_text(item)
    return f"{text}. Most likely cause: {item.causes[0]}" if item.causes else text


def change_sentence(change: Change) -> str:
    """Return a sentence on a change that fails the gate by itself."""
    return f"{change.where} changed: {change.message}"


def tolerance_text(item: FigureResult) -> str:
    """Return the tolerance of a figure in its unit."""
    if item.tolerance.endswith("%") or item.unit != "fraction":
        return item.tolerance
    return f"{100 * float(item.tolerance):g} points"


def _json(value: Any) -> Any:
    return ("inf" if value > 0 else "-inf") if isinstance(value, float) and math.isinf(value) else value

# SPDX-License-Identifier: Apache-2.0
"""The candidates and the result of a search."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfq.config import ConversionConfig
from tfq.evaluation.metric_text import change_text, score_text
from tfq.evaluation.paired import PairedDifference
from tfq.notebook import NotebookRecord, NotebookTable
from tfq.requirement import Requirement
from tfq.search.assignment import LevelTable
from tfq.search.criterion import BY_LABELS, Criterion
from tfq.search.mixed_precision import with_levels
from tfq.text_table import aligned


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The settings of a conversion that a search tries.

    Attributes:
        name: Its name in the result, such as "min_max, bias_correction".
        kind: What it adds to the candidates before: "calibration", "techniques", "mixed" or "levels".
        method: The calibration method.
        techniques: Post-training techniques.
        layers: How many layers have another scheme, the most sensitive first.
        scheme: The scheme of these layers: "float", or "int16" activations.
        levels: (layer, level) of each layer with another level than int8, if an assignment chose them (see
            `tfq.search.assignment`).
    """

    name: str
    kind: str
    method: str
    techniques: tuple[str, ...] = ()
    layers: int = 0
    scheme: str = "float"
    levels: tuple[tuple[str, str], ...] = ()

    def conversion(self, base: ConversionConfig, layers: tuple[str, ...]) -> ConversionConfig:
        """Return `base` with the settings of this candidate; `layers` are those with another scheme."""
        calibration = dataclasses.replace(base.calibration, method=self.method)
        candidate = dataclasses.replace(base, calibration=calibration, techniques=self.techniques)
        if self.levels:
            return with_levels(candidate, dict(self.levels))
        if self.scheme == "int16":
            return dataclasses.replace(candidate, int16_layers=(*base.int16_layers, *layers))
        return dataclasses.replace(candidate, float_layers=(*base.float_layers, *layers))


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """The measurements of a candidate.

    Attributes:
        candidate: The settings.
        accuracy: The score on the validation split: top-1, or the search's metric, see `Criterion`.
        agreement: The fraction of validation examples with the class that the float model predicts; for outputs without
            a class, whose SQNR against the float model is high enough.
        against_float: The paired difference of the score from the float model's on the same examples.
        model_bytes: The size of the flatbuffer.
        latency_ratio: The time of an inference on this machine divided by that of the first candidate; None if it was
            not measured.
        secs: The time of the conversion in seconds.
        layers: The layers that have another scheme or level than int8.
        costs: The costs in addition to `model_bytes` that the budget bounds: "arena_bytes", "instructions".
        missed: A sentence for each bound of the budget that is not met.
        requirements: All bounds of the budget with the candidate's values.
        collapsed: The problems that verification found. A candidate with any is never within the budget.
    """

    candidate: Candidate
    accuracy: float
    agreement: float
    against_float: PairedDifference
    model_bytes: int
    latency_ratio: float | None
    secs: float
    layers: tuple[str, ...]
    missed: tuple[str, ...]
    requirements: tuple[Requirement, ...] = ()
    collapsed: tuple[str, ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the candidate."""
        return self.candidate.name

    @property
    def short_missed(self) -> tuple[str, ...]:
        """`missed` with the single word "collapsed" instead of the messages of verification."""
        bounds = self.missed[: len(self.missed) - len(self.collapsed)]
        return (*bounds, *(("collapsed",) if self.collapsed else ()))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "kind": self.candidate.kind,
            "method": self.candidate.method,
            "techniques": list(self.candidate.techniques),
            "scheme": self.candidate.scheme if self.layers and not self.candidate.levels else "",
            "layers": list(self.layers),
            "levels": dict(self.candidate.levels),
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "against_float": self.against_float.to_dict(),
            "bytes": self.model_bytes,
            "latency_ratio": self.latency_ratio,
            "costs": dict(self.costs),
            "secs": self.secs,
            "missed": list(self.missed),
        }


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """The candidates for one size of the file, and the one with the best score on the validation split.

    Attributes:
        max_bytes: The size that the candidates had to stay within.
        best: The name of the best candidate that does.
        by_solver: {"ilp" or "greedy": the name of its candidate}; a solver without a result is missing. The names are
            equal if both assigned the same levels. "refined" is the better of both after `search.refinements`.
    """

    max_bytes: int
    best: str
    by_solver: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"max_bytes": self.max_bytes, "best": self.best, "by_solver": dict(self.by_solver)}


@dataclass(frozen=True, kw_only=True)
class SearchResult(NotebookRecord):
    """The candidates of a search in the order in which they were tried, and the chosen one.

    Attributes:
        candidates: All candidates that were tried.
        chosen: The first candidate within the budget; with `points`, the most accurate one within it, or the smallest
            one if the budget bounds no cost. If none is within the budget, the one with the best accuracy.
        holds: Whether the chosen candidate is within the budget.
        validation: Number of validation examples.
        float_accuracy: Accuracy of the float model on the validation split.
        test: Number of test examples.
        test_accuracy: Accuracy of the chosen candidate on the test split, which played no part in choosing it.
        test_float_accuracy: Accuracy of the float model on the test split.
        test_against_float: Difference in accuracy between the chosen candidate and the float model on the test split.
        test_against_plain: Difference in accuracy between the chosen and the first candidate on the test split.
        advice: What to try next.
        criterion: What the models were compared by. Every accuracy here is the score by it: a metric, or the fraction
            of examples that are right.
        points: One for each size of `search.pareto_points`, the smallest first.
        front: The names of all candidates that no other one beats in both size and score, the smallest first.
        levels: What each level of each layer costs and distorts; None without `search.pareto_points`.
        content: The flatbuffer of the chosen candidate.
    """

    candidates: tuple[CandidateResult, ...]
    chosen: CandidateResult
    holds: bool
    validation: int
    float_accuracy: float
    test: int
    test_accuracy: float
    test_float_accuracy: float
    test_against_float: PairedDifference
    test_against_plain: PairedDifference
    advice: tuple[str, ...] = ()
    criterion: Criterion = BY_LABELS
    points: tuple[ParetoPoint, ...] = ()
    front: tuple[str, ...] = ()
    levels: LevelTable | None = None
    content: bytes = field(default=b"", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, without the flatbuffer."""
        return {
            "criterion": self.criterion.to_dict(),
            "chosen": self.chosen.name,
            "holds": self.holds,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "validation": {"examples": self.validation, "float_accuracy": self.float_accuracy},
            "test": {
                "examples": self.test,
                "accuracy": self.test_accuracy,
                "float_accuracy": self.test_float_accuracy,
                "against_float": self.test_against_float.to_dict(),
                "against_plain": self.test_against_plain.to_dict(),
            },
            "points": [item.to_dict() for item in self.points],
            "front": list(self.front),
            "levels": None if self.levels is None else self.levels.to_dict(),
            "requirements": [item.to_dict() for item in self.chosen.requirements],
            "advice": list(self.advice),
        }

    def to_text(self) -> str:
        """Return text for the terminal: all candidates, then the results of the chosen one on the test split."""
        before, rows, after = self._parts()
        return "\n".join([*before, *aligned(rows, left=2), "", *after])

    def notebook_tables(self) -> list[NotebookTable]:
        """Return the candidates, and the lines around them in `to_text`."""
        before, rows, after = self._parts()
        return [
            NotebookTable(columns=rows[0], rows=rows[1:], caption="; ".join(before), left=2),
            NotebookTable(rows=[[line] for line in after]),
        ]

    def _parts(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return the lines before the table of candidates, its heading with its rows, and the lines after it."""
        unit = self.criterion.unit
        head = [
            "",
            "candidate",
            self.criterion.title,
            "against float",
            self.criterion.agreement_title,
            "bytes",
            "latency",
            "secs",
            "",
        ]
        rows = [
            [
                "*" if candidate is self.chosen else "",
                candidate.name,
                score_text(unit, candidate.accuracy) or "",
                change_text(unit, candidate.against_float.difference),
                f"{candidate.agreement:.2%}",
                f"{candidate.model_bytes:,}",
                "" if candidate.latency_ratio is None else f"{candidate.latency_ratio:.2f}x",
                f"{candidate.secs:.1f}",
                "collapsed" if candidate.collapsed else "Pareto" if candidate.name in self.front else "",
            ]
            for candidate in self.candidates
        ]
        lines = [self.criterion.note] if self.criterion.note else []
        lines += [f"float: {score_text(unit, self.float_accuracy)} of {self.validation:,} validation examples"]
        gain = self.test_against_plain
        message = "within what chance explains" if gain.is_noise else "more than chance explains"
        message = "without an interval" if gain.low is None else message
        if self.chosen is self.candidates[0]:
            message = "because it is the chosen model"
        results = [
            f"chosen: {self.chosen.name}; on {self.test:,} test examples {score_text(unit, self.test_accuracy)}, "
            f"float {score_text(unit, self.test_float_accuracy)}: {difference_text(self.test_against_float, unit)}",
            f"against the plain int8 model: {difference_text(gain, unit)}, {message}",
            *self.advice,
        ]
        return lines, [head, *rows], results


def difference_text(difference: PairedDifference, unit: str) -> str:
    """Return a difference with its interval as text: in percentage points of a fraction, else in the unit."""
    word = " points" if unit == "fraction" else ""
    text = f"{change_text(unit, difference.difference)}{word}"
    if difference.low is None or difference.high is None:
        return f"{text} (no interval)"
    return f"{text} ({change_text(unit, difference.low)} to {change_text(unit, difference.high)})"

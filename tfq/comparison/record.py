# SPDX-License-Identifier: Apache-2.0
"""The result of a comparison of two flatbuffers, and checks of it against requirements."""

from dataclasses import dataclass, field
from typing import Any

from tfq.comparison.activations import ActivationDifference
from tfq.comparison.change import Change
from tfq.comparison.constants import ConstantDifference
from tfq.config import ComparisonRequireConfig
from tfq.errors import RequirementError
from tfq.notebook import NotebookRecord
from tfq.requirement import Requirement, at_least
from tfq.text_table import listed
from tfq.tflite.op_types import WEIGHT_INPUTS


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How the ops of two files were matched, over all subgraphs.

    Attributes:
        reference_ops: The number of ops of the reference.
        model_ops: The number of ops of the model.
        rules: The rule that matched ops -> the number of pairs: "output name", "Keras layer", "topology", "position".
    """

    reference_ops: int
    model_ops: int
    rules: dict[str, int]

    @property
    def matched(self) -> int:
        """The number of pairs."""
        return sum(self.rules.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "matched": self.matched}


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord(NotebookRecord):
    """The differences between two flatbuffers.

    Attributes:
        byte_identical: Whether the files have the same bytes. Then nothing else is listed.
        files: "reference" and "model" -> `bytes`, `gzip_bytes` and `sha256` of the file. `gzip_bytes` is None above
            64 MiB, and `gzip_bytes_reason` says so.
        matching: How the ops were matched.
        changes: Differences that are not differences of numbers, in the order of the parts of a file.
        constants: The constants of matched ops, worst first; also those that are equal.
        activations: Activations whose scale or zero point differs, largest ratio first.
        notes: Sentences about what was not compared.
    """

    byte_identical: bool
    files: dict[str, dict[str, Any]]
    matching: Matching
    changes: tuple[Change, ...] = ()
    constants: tuple[ConstantDifference, ...] = ()
    activations: tuple[ActivationDifference, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def num_differences(self) -> int:
        """The number of differences, other than in the size and the layout of the files."""
        return len(self.changes) + len(self.activations) + sum(item.differs for item in self.constants)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "byte_identical": self.byte_identical,
            "num_differences": self.num_differences,
            "files": self.files,
            "matching": self.matching.to_dict(),
            "changes": [item.to_dict() for item in self.changes],
            "constants": [item.to_dict() for item in self.constants],
            "activations": [item.to_dict() for item in self.activations],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the comparison as text for the terminal: A is the reference, B the model."""
        from tfq.comparison.text import text_of

        return text_of(self)


def requirements_of(record: ComparisonRecord, require: ComparisonRequireConfig) -> tuple[Requirement, ...]:
    """Return every requirement that `require` sets, with its verdict."""
    results = []
    if require.no_differences:
        count = record.num_differences
        results.append(Requirement(name="no_differences", bound=0, value=count, holds=count == 0))
    if (bound := require.min_weight_sqnr_db) is not None:
        results.append(_weight_requirement(record, bound))
    return tuple(results)


def _weight_requirement(record: ComparisonRecord, bound: float) -> Requirement:
    """Return the requirement on the worst weights. Weights that cannot be compared do not meet it."""
    name, worst, uncompared = "min_weight_sqnr_db", _worst(record), _uncompared(record)
    if uncompared:
        reason = f"the weights of {listed(uncompared)} have no counterpart"
        return Requirement(name=name, bound=bound, value=None, holds=False, reason=reason)
    if worst is None:
        return Requirement(name=name, bound=bound, value=None, holds=True, reason="all weights are equal")
    return at_least(name, bound, worst.sqnr_db, f"input {worst.input} of {worst.op}: {worst.reason}")


def _uncompared(record: ComparisonRecord) -> list[str]:
    """Return the ops of the reference that have weights, and no matched op of the same type."""
    return [
        change.where
        for change in record.changes
        if change.part == "ops"
        and change.what in ("removed", "type")
        and str(change.reference).partition(" -> ")[0] in WEIGHT_INPUTS
    ]


def check_requirements(record: ComparisonRecord, require: ComparisonRequireConfig) -> None:
    """Raise RequirementError if a requirement is not met; the message names the first or the worst difference."""
    for item in requirements_of(record, require):
        if item.holds:
            continue
        field, worst = f"comparison.require.{item.name}", _worst(record)
        if item.name == "no_differences":
            message = f"the files differ in {item.value} places, but {field} is set. The first is {_first(record)}"
        elif item.value is None or worst is None:
            message = f"{field} is {item.bound:g}, but {item.reason}"
        else:
            message = f"the weights of {worst.op} have an SQNR of {worst.sqnr_db:.1f} dB, but {field} is {item.bound:g}"
        raise RequirementError(message, field=field, expected=item.bound, got=item.value)


def _worst(record: ComparisonRecord) -> ConstantDifference | None:
    return next((item for item in record.constants if item.role == "weight" and not item.equal), None)


def _first(record: ComparisonRecord) -> str:
    if record.changes:
        change = record.changes[0]
        return f"{change.what} of {change.where}"
    constant = next((item for item in record.constants if item.differs), None)
    return f"input {constant.input} of {constant.op}" if constant else f"the scale of {record.activations[0].where}"

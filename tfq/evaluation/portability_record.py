# SPDX-License-Identifier: Apache-2.0
"""The portability table: how one flatbuffer runs on each backend, as records and as text."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tfq.evaluation.instructions import InstructionRecord
from tfq.evaluation.metric_text import score_text
from tfq.evaluation.parity import ParityRecord
from tfq.evaluation.record import EvaluationRecord
from tfq.text_table import aligned

NOT_COUNTED = "it does not count instructions"
Status = Literal["ran", "failed", "not run"]
DASH = "-"


@dataclass(frozen=True, kw_only=True)
class BackendRow:
    """A row of the portability table.

    Attributes:
        backend: The backend's name.
        how: How it comes to its figures: "measured", "emulated" or "estimated".
        status: "ran"; "failed" if the model does not run there; "not run" if the backend is not available or did not
            work.
        reason: Why the model did not run; None if it did.
        evaluation: The evaluation on the table's examples; None if the model did not run. An estimator runs nothing:
            its record has costs and the reason why it has no accuracy.
        fully_accelerated: Whether the backend's accelerator (XNNPACK, a GPU, an NPU) runs all ops; None if unknown.
        difference: The outputs compared with XNNPACK's on this machine, value by value.
        difference_reason: Why they were not compared.
        agreement: The fraction of examples with the class that XNNPACK computes on this machine.
        agreement_reason: Why there is none.
        instructions: The instructions of one inference.
        instructions_reason: Why they were not counted.
    """

    backend: str
    how: str
    status: Status
    reason: str | None = None
    evaluation: EvaluationRecord | None = None
    fully_accelerated: bool | None = None
    difference: ParityRecord | None = None
    difference_reason: str | None = None
    agreement: float | None = None
    agreement_reason: str | None = None
    instructions: InstructionRecord | None = None
    instructions_reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class PortabilityTable:
    """How a flatbuffer runs on several backends.

    Attributes:
        rows: One for each backend.
        num_examples: How many examples each backend ran: the first ones of the data.
        yardstick: TFLite's builtin kernels compared with XNNPACK on this machine. Two correct implementations round
            differently; a difference of this size is not an error.
        yardstick_reason: Why there is none.
        not_available: Backends that are not in the table, because they cannot be used here -> the reason.
    """

    rows: tuple[BackendRow, ...]
    num_examples: int
    yardstick: ParityRecord | None = None
    yardstick_reason: str | None = None
    not_available: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `rows` is an object by backend."""
        return {
            "rows": {row.backend: row.to_dict() for row in self.rows},
            "num_examples": self.num_examples,
            "yardstick": None if self.yardstick is None else self.yardstick.to_dict(),
            "yardstick_reason": self.yardstick_reason,
            "not_available": self.not_available,
        }

    def to_text(self) -> str:
        """Return the table as text for the terminal, with memory, costs and notes below it."""
        return "\n".join(table_lines(self.to_dict()))


COLUMNS = (
    "backend",
    "figures",
    "runs",
    "accelerated",
    "values that differ",
    "largest",
    "same class",
    "accuracy",
    "memory",
    "cost",
)


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row (`BackendRow.to_dict()`) as text, one for each of `COLUMNS`."""
    evaluation, difference = row.get("evaluation") or {}, row.get("difference") or {}
    agreement, how = row.get("agreement"), str(row.get("how", DASH))
    executed = {"ran": "yes" if how != "estimated" else "not executed", "failed": "no"}
    return [
        str(row.get("backend", DASH)),
        how,
        executed.get(str(row.get("status")), "not run"),
        _accelerated(row),
        _fraction_that_differs(difference),
        _largest_difference(difference),
        DASH if agreement is None else f"{agreement:.2%}",
        _accuracy(evaluation),
        _memory(evaluation),
        _cost(row, evaluation),
    ]


def table_lines(table: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table (`PortabilityTable.to_dict()`) for the terminal; none if there is nothing to show.

    Memory and cost are too long for columns: they are lines below the table.
    """
    cells = [row_cells(row) for row in (table.get("rows") or {}).values()]
    lines = aligned([list(COLUMNS[:-2]), *(row[:-2] for row in cells)], 3) if cells else []
    for backend, *_, memory, cost in cells:
        lines += [f"{backend}: {'; '.join(item for item in (memory, cost) if item != DASH)}"] if memory != cost else []
    return [*lines, *table_notes(table)]


def table_notes(table: Mapping[str, Any]) -> list[str]:
    """Return sentences below the table (`PortabilityTable.to_dict()`): failures, ops on the CPU, caveats, yardstick."""
    notes = []
    rows = table.get("rows") or {}
    for backend, row in rows.items():
        evaluation = row.get("evaluation") or {}
        notes += [f"{backend}: {row['reason']}"] if row.get("reason") else []
        notes += [f"{backend}: {note}" for note in evaluation.get("warnings") or []]
        notes += [
            f"{backend}: {op} runs on the CPU{f': {reason}' if reason else ''}"
            for op, reason in (evaluation.get("unaccelerated") or {}).items()
        ]
        notes += [f"{backend}, {caveat}" for caveat in evaluation.get("caveats") or []]
        reason = row.get("instructions_reason")
        notes += [f"{backend}: instructions not counted: {reason}"] if reason and reason != NOT_COUNTED else []
    yardstick = table.get("yardstick")
    if yardstick:
        notes.append(
            "for comparison: TFLite's builtin kernels on this machine differ from XNNPACK in "
            f"{_fraction_that_differs(yardstick)} of the values, by at most {_largest_difference(yardstick)}. "
            "Differences of this size are rounding"
        )
    if rows:
        notes.append(
            f"differences and classes: compared with XNNPACK on this machine, on {table.get('num_examples')} examples"
        )
    if table.get("not_available"):
        notes.append(f"not available here: {', '.join(table['not_available'])}. evaluation.backends=NAME says why")
    return notes


def _accelerated(row: Mapping[str, Any]) -> str:
    evaluation = row.get("evaluation") or {}
    total, delegated = evaluation.get("total_ops"), evaluation.get("delegated_ops")
    if total is None or delegated is None:
        return {True: "all ops", False: "partly", None: DASH}[row.get("fully_accelerated")]
    return "all ops" if delegated == total else f"{delegated} of {total}"


def _fraction_that_differs(difference: Mapping[str, Any]) -> str:
    compared = sum(output["compared"] for output in difference.get("outputs") or [])
    if not compared:
        return DASH
    return f"{sum(output['num_different'] for output in difference['outputs']) / compared:.2%}"


def _largest_difference(difference: Mapping[str, Any]) -> str:
    if difference.get("max_abs_error_lsb") is not None:
        return f"{difference['max_abs_error_lsb']} LSB"
    errors = [output["max_abs_error"] for output in difference.get("outputs") or []]
    return f"{max(errors):.3g}" if errors else DASH


def _accuracy(evaluation: Mapping[str, Any]) -> str:
    metric = (evaluation.get("metrics") or {}).get(evaluation.get("metric")) or {}
    return score_text(metric.get("unit", ""), evaluation.get("accuracy")) or DASH


def _memory(evaluation: Mapping[str, Any]) -> str:
    memory = {name: size for name, size in (evaluation.get("memory_bytes") or {}).items() if "." not in name}
    return ", ".join(f"{name.replace('_', ' ')} {size:,} B" for name, size in memory.items()) or DASH


def _cost(row: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    parts = []
    if evaluation.get("latency_p50_ms") is not None:
        parts.append(f"{evaluation['latency_p50_ms']:.4g} ms")
    if row.get("instructions"):
        parts.append(f"{row['instructions']['instructions']:,} instructions")
    parts += [f"{value:,.6g} {name.replace('_', ' ')}" for name, value in (evaluation.get("figures") or {}).items()]
    return ", ".join(parts) or DASH

# SPDX-License-Identifier: Apache-2.0
"""The models of a record, and the one table that sums them up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.report.formatting import (
    DASH,
    NOT_A_TIME,
    accuracy_text,
    count,
    cpu_label,
    is_emulated,
    is_number,
    millions,
    model_label,
    percent,
    plain,
    scalar,
    significant,
)
from tfq.report.tables import Reasons, Table

Record = Mapping[str, Any]

# The float model is what the others are compared with: that its ops are float is no finding.
REFERENCE = "float"


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A model of the record. series: its number, which is its colour. Parts that the record does not have are empty."""

    name: Any
    label: str
    series: int
    file: Any
    evaluation: Record
    audit: Record
    parity: Record
    instructions: Record
    verification: Record
    qat_parity: Record
    sha256: Record


def models_of(record: Record) -> list[Reported]:
    """Every model of the record, in its order."""
    return [
        Reported(
            name=model.get("name", "?"),
            label=model_label(model.get("name", "?")),
            series=series,
            file=model.get("file"),
            evaluation=part(model, "evaluation"),
            audit=part(model, "audit"),
            parity=part(model, "parity"),
            instructions=part(model, "instructions"),
            verification=part(model, "verification"),
            qat_parity=part(model, "qat_parity"),
            sha256=part(model, "sha256"),
        )
        for series, model in enumerate(record.get("models") or [])
    ]


def reference_of(models: Sequence[Reported]) -> Reported | None:
    """The float model, None where the record has none."""
    return next((model for model in models if model.label == REFERENCE), None)


def part(record: Record, key: str) -> Record:
    """An object of the record, empty where it is missing or null."""
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def backends_of(models: Sequence[Reported], key: str) -> list[str]:
    """Every backend that has a word on "parity" or "instructions" of a model; in the order met."""
    return list(dict.fromkeys(backend for model in models for backend in getattr(model, key)))


def benchmark_of(record: Record) -> tuple[Record, list[Record]]:
    """What the record has on the benchmark, and its models with numbers."""
    benchmark = part(record, "benchmark")
    timed = [model for model in benchmark.get("models") or [] if is_number(model.get("p50_ms"))]
    return benchmark, timed


def series_of(record: Record, name: Any) -> int:
    """The number of the model of that name; one past the last for a stranger."""
    names = [model.get("name") for model in record.get("models") or []]
    return names.index(name) if name in names else len(names)


def title_of(record: Record) -> str:
    """The heading: "tfq run: digits_cnn"."""
    model = plain(part(record, "config").get("model") or "a model").rstrip("/").rpartition("/")[2]
    return f"tfq {plain(record.get('command', 'run'))}: {model}"


def warnings_of(record: Record) -> list[str]:
    """Every warning of the run once: its own, then those of each evaluation, with the model's label."""
    messages = [plain(warning) for warning in record.get("warnings") or []]
    for model in models_of(record):
        for warning in model.evaluation.get("warnings") or []:
            if plain(warning) not in messages:
                messages.append(f"{model.label}: {plain(warning)}")
    return list(dict.fromkeys(messages))


WIDTH = 120
NO_BREAK = "\xa0"


def emulation_notes(backends: Sequence[str]) -> list[str]:
    """Return a sentence on the emulators among `backends`, without a period; none if there are none."""
    emulated = [cpu_label(backend) for backend in backends if is_emulated(backend)]
    if not emulated:
        return []
    verb = "is" if len(emulated) == 1 else "are"
    named = " and ".join(emulated)
    return [f"{named} {verb} emulated: a parity of outputs with this machine's, never a latency"]


def parity_text(parity: Mapping[str, Any]) -> str:
    """The largest difference, and how many of the values compared differ: "0 LSB (0 of 2,560)".

    Of outputs that are no codes: the largest difference in their own unit.
    """
    error = parity.get("max_abs_error_lsb")
    if not is_number(error):
        errors = [output.get("max_abs_error") for output in parity.get("outputs") or []]
        known = [value for value in errors if is_number(value)]
        return f"max error {max(known):.3g}" if known else DASH
    different, compared = count(parity.get("num_different")), count(parity.get("compared"))
    return f"{significant(error)} LSB ({different} of {compared})"


def summary_of(record: Mapping[str, Any]) -> Table:
    """Rows are the models of the record; see `summary_table` for the columns."""
    models = models_of(record)
    backends = backends_of(models, "parity")
    machine = plain(part(record, "cpu").get("machine") or "local")
    columns = ("model", "accuracy", "agreement", "bytes", "gzip bytes", f"{machine} p50 ms", "ops delegated")
    reasons = Reasons()
    rows = tuple(_row(model, backends, reasons) for model in models)
    notes = list(reasons.notes())
    notes += emulation_notes(backends)
    parity_columns = tuple(f"{cpu_label(backend)} parity" for backend in backends)
    series = tuple(model.series for model in models)
    return Table(columns=(*columns, *parity_columns), rows=rows, notes=tuple(notes), row_series=series)


def _row(model: Reported, backends: Sequence[str], reasons: Reasons) -> tuple[str, ...]:
    evaluation = model.evaluation
    missing = None if evaluation else "not evaluated"
    shown = {
        "accuracy": (accuracy_text(evaluation), evaluation.get("accuracy_reason")),
        "agreement": (percent(evaluation.get("agreement")), evaluation.get("agreement_reason")),
        "bytes": (count(evaluation.get("model_bytes")), None),
        "gzip bytes": (count(evaluation.get("gzip_bytes")), None),
        "latency": (significant(evaluation.get("latency_p50_ms")), evaluation.get("latency_reason")),
        "ops delegated": (delegated_text(evaluation), None),
    }
    for what, (cell, reason) in shown.items():
        if cell == DASH:
            reasons.add(what, model.label, plain(missing or reason or ""))
    cells = [cell for cell, _ in shown.values()]
    return (model.label, *cells, *(_parity_cell(model, backend, reasons) for backend in backends))


def delegated_text(evaluation: Mapping[str, Any]) -> str:
    """How many ops XNNPACK took: "13 of 15"."""
    delegated, total = evaluation.get("delegated_ops"), evaluation.get("total_ops")
    return f"{count(delegated)} of {count(total)}" if is_number(delegated) else DASH


def _parity_cell(model: Reported, backend: str, reasons: Reasons) -> str:
    what = f"{cpu_label(backend)} parity"
    parity = model.parity.get(backend)
    if parity is None:
        # The float model is the reference: a parity in LSB is that of integer codes.
        reason = (
            "parity is counted in LSB, and its outputs are no codes" if model.label == REFERENCE else "not asked for"
        )
        reasons.add(what, model.label, reason)
        return DASH
    if "not_run" in parity:
        reasons.add(what, model.label, f"not run: {plain(parity['not_run'])}")
        return "not run"
    text = parity_text(parity)
    if text == DASH:
        reasons.add(what, model.label, scalar(parity["skipped"]) if parity.get("skipped") else None)
    return text


def summary_table(record: Mapping[str, Any]) -> str:
    """The record's models as a table for a terminal, without a final newline.

    A row a model: accuracy against the labels and agreement with the float model in percent, bytes of the file raw and
    gzipped, median latency on this machine, ops delegated to XNNPACK, and for each emulated ARM CPU the parity of the
    outputs ("0 LSB (0 of 2,560)": the largest difference, how many values differ) or "not run". Instructions on ARM are
    a last column where that fits WIDTH, else a line below. What is not known is a dash, and its reason stands below.
    """
    table = summary_of(record)
    if not table.rows:
        return "no model was evaluated"
    cpus, cells = _instructions(models_of(record))
    lines = _laid_out(table.columns, table.rows)
    notes = table.notes
    if cells:
        # A heading breaks at its first ordinary space.
        columns = (*table.columns, f"{cpus.replace(' ', NO_BREAK)} M instr")
        wider = _laid_out(columns, [(*row, cell) for row, cell in zip(table.rows, cells, strict=True)])
        if max(map(len, wider)) <= WIDTH:
            lines, notes = wider, (*notes, f"M instr: millions of ARM instructions an inference, {NOT_A_TIME}")
        else:
            item = "; ".join(f"{row[0]} {cell}" for row, cell in zip(table.rows, cells, strict=True))
            notes = (*notes, f"{cpus} instructions an inference, in millions, {NOT_A_TIME}: {item}")
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _instructions(models: Sequence[Reported]) -> tuple[str, list[str]]:
    """The CPUs, "a53 / a76", and the models' cells, "6.28 / 3.24"; no cells where nothing was counted."""
    backends = backends_of(models, "instructions")
    counts = [[part(model.instructions, backend).get("instructions") for backend in backends] for model in models]
    if not any(is_number(number) for numbers in counts for number in numbers):
        return "", []
    cpus = " / ".join(cpu_label(backend).removeprefix("cortex-") for backend in backends)
    return cpus, [" / ".join(map(millions, numbers)) for numbers in counts]


def _laid_out(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    header = [_two_lines(column) for column in columns]
    lines = [tuple(first for first, _ in header), tuple(second for _, second in header), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    laid_out = ["  ".join(_aligned(line[c], widths[c], c) for c in range(len(widths))).rstrip() for line in lines]
    laid_out.insert(2, "  ".join("─" * width for width in widths))
    return laid_out


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _two_lines(column: str) -> tuple[str, str]:
    """A column's heading on two lines: the table must fit a terminal."""
    first, space, second = column.partition(" ")
    return (first.replace(NO_BREAK, " "), second) if space else ("", first)

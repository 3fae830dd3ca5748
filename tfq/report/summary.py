# SPDX-License-Identifier: Apache-2.0
"""The Result table: one row for each model, for the pages and for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfq.report.formatting import (
    DASH,
    MILLISECONDS,
    NOT_A_TIME,
    TimeUnit,
    accuracy_text,
    count,
    cpu_label,
    interval_text,
    is_number,
    metric_title,
    millions,
    number_of,
    percent,
    plain,
    time_unit,
)
from tfq.report.record import (
    BENCHMARK,
    Latencies,
    Record,
    Reported,
    backends_of,
    benchmark_of,
    further_epochs,
    latencies_of,
    models_of,
    part,
    reference_of,
)
from tfq.report.tables import Reasons, Table

WIDTH = 120
NO_BREAK = "\xa0"


def summary_of(record: Mapping[str, Any]) -> Table:
    """Return the Result table; see `summary_table` for its columns."""
    models, latencies = models_of(record), latencies_of(record)
    unit = time_unit(latencies.medians_ms.values()) if latencies.medians_ms else MILLISECONDS
    columns = (
        "model",
        "accuracy",
        f"95%{NO_BREAK}confidence interval",
        "agreement",
        "file kB",
        "gzip kB",
        f"p50{NO_BREAK}latency {unit.short}",
        f"XNNPACK{NO_BREAK}ops of{NO_BREAK}all",
    )
    reasons = Reasons()
    rows = tuple(_row(model, latencies, unit, reasons) for model in models)
    notes = (
        *_meanings(record, models, latencies),
        *training_notes(record),
        *(f"missing: {note}" for note in reasons.notes()),
    )
    series = tuple(model.series for model in models)
    return Table(key="summary", columns=columns, rows=rows, notes=notes, row_series=series)


def _row(model: Reported, latencies: Latencies, unit: TimeUnit, reasons: Reasons) -> tuple[str, ...]:
    evaluation = model.evaluation
    missing = None if evaluation else "not evaluated"
    cells = {
        "accuracy": (accuracy_text(evaluation), evaluation.get("accuracy_reason")),
        "interval": (interval_text(evaluation), evaluation.get("accuracy_reason")),
        "agreement": (percent(evaluation.get("agreement")), evaluation.get("agreement_reason")),
        "file": (_kilobytes(evaluation.get("model_bytes")), None),
        "gzip": (_kilobytes(evaluation.get("gzip_bytes")), None),
        "latency": (unit.text(latencies.medians_ms.get(model.name)), latencies.reasons.get(model.name)),
        "XNNPACK ops": (delegated_text(evaluation), part(evaluation, "skipped").get("delegated_ops")),
    }
    for column, (cell, reason) in cells.items():
        if cell == DASH:
            reasons.add(column, model.label, plain(missing or reason or ""))
    shown = [cell for cell, _ in cells.values()]
    return (model.label, *shown)


def _kilobytes(number: Any) -> str:
    return f"{number / 1000:,.1f}" if is_number(number) else DASH


def _meanings(record: Record, models: Sequence[Reported], latencies: Latencies) -> list[str]:
    """Return a sentence for each column that needs one."""
    notes = []
    measures = dict.fromkeys(
        f"{metric_title(model.evaluation)} on {number_of(model.evaluation.get('num_examples'), 'test example')}"
        for model in models
        if model.evaluation.get("metric") and is_number(model.evaluation.get("accuracy"))
    )
    if measures:
        notes.append(f"accuracy: {'; '.join(measures)}.")
    if any(is_number(model.evaluation.get("agreement")) for model in models):
        notes.append(
            "agreement: fraction of the test examples (positions, in maps of classes) for which the float model "
            "predicts the same class."
        )
    if latencies.medians_ms:
        notes.append(f"latency: {latency_source(record)}.")
    return notes


def latency_source(record: Record) -> str:
    """Return how the latencies that a report shows were measured, without a period at the end."""
    latencies = latencies_of(record)
    cpu = part(record, "cpu")
    machine = plain(" ".join(str(cpu[key]) for key in ("machine", "model") if cpu.get(key)) or "this machine")
    if latencies.source == BENCHMARK:
        benchmark, _ = benchmark_of(record)
        threads = benchmark.get("num_threads")
        count_of_threads = f", {number_of(threads, 'thread')}" if is_number(threads) else ""
        return f"median of one inference on {machine}{count_of_threads}; the models were timed in turns"
    return f"median of one inference on {machine}, measured during the evaluation of each model, not in turns"


def training_notes(record: Record) -> list[str]:
    """Return a sentence for each model that was trained for more epochs than the float model.

    Its accuracy shows the effect of that training as well as that of the compression.
    """
    models = models_of(record)
    reference = reference_of(models)
    if reference is None:
        return []
    notes = []
    for model in models:
        if steps := further_epochs(record, model):
            notes.append(
                f"{model.label} was trained for {further_text(steps)} than {reference.label}. The run has no float "
                "model with the same training, so its accuracy shows the effects of training and compression together."
            )
    return notes


def further_text(steps: Mapping[str, int]) -> str:
    """Return how much longer a model was trained: "16 more epochs (prune 8, qat 8)"."""
    listed = ", ".join(f"{step} {count(epochs)}" for step, epochs in steps.items())
    total = sum(steps.values())
    return f"{count(total)} more epoch{'' if total == 1 else 's'} ({listed})"


def delegated_text(evaluation: Mapping[str, Any]) -> str:
    """Return how many ops XNNPACK runs: "13 of 15"."""
    delegated, total = evaluation.get("delegated_ops"), evaluation.get("total_ops")
    return f"{count(delegated)} of {count(total)}" if is_number(delegated) else DASH


def summary_table(record: Mapping[str, Any]) -> str:
    """Return the models of a record as a table for the terminal, without a newline at the end.

    A row for each model: accuracy with its 95% interval; agreement with the float model; size of the file, raw and
    compressed with gzip; median latency on this machine; and ops that XNNPACK runs. ARM instructions are the last
    column if the table then fits `WIDTH` columns, else a line below it. A missing value is a dash, and its reason is
    below the table.
    """
    table = summary_of(record)
    if not table.rows:
        return "no model was evaluated"
    cpus, cells = _instructions(models_of(record))
    lines = _lines(table.columns, table.rows)
    notes = table.notes
    if cells:
        columns = (*table.columns, f"{cpus.replace(' ', NO_BREAK)} M{NO_BREAK}instructions")
        wider = _lines(columns, [(*row, cell) for row, cell in zip(table.rows, cells, strict=True)])
        meaning = f"millions of ARM instructions for one inference, {NOT_A_TIME}"
        if max(map(len, wider)) <= WIDTH:
            lines, notes = wider, (*notes, f"M instructions: {meaning}.")
        else:
            item = "; ".join(f"{row[0]} {cell}" for row, cell in zip(table.rows, cells, strict=True))
            notes = (*notes, f"{cpus}, {meaning}: {item}.")
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _instructions(models: Sequence[Reported]) -> tuple[str, list[str]]:
    """Return the CPUs, "a53 / a76", and a cell for each model, "6.28 / 3.24"; no cells if nothing was counted."""
    backends = backends_of(models, "instructions")
    counts = [[part(model.instructions, backend).get("instructions") for backend in backends] for model in models]
    if not any(is_number(number) for numbers in counts for number in numbers):
        return "", []
    cpus = " / ".join(cpu_label(backend).removeprefix("cortex-") for backend in backends)
    return cpus, [" / ".join(map(millions, numbers)) for numbers in counts]


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table for the terminal: two of headings, a rule, one for each row."""
    header = [_two_lines(column) for column in columns]
    lines = [tuple(first for first, _ in header), tuple(second for _, second in header), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    aligned = ["  ".join(_aligned(line[c], widths[c], c) for c in range(len(widths))).rstrip() for line in lines]
    aligned.insert(2, "  ".join("─" * width for width in widths))
    return aligned


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _two_lines(column: str) -> tuple[str, str]:
    """Return a heading as two lines: it is split at its first ordinary space."""
    first, space, second = column.partition(" ")
    first, second = (text.replace(NO_BREAK, " ") for text in (first, second))
    return (first, second) if space else ("", first)

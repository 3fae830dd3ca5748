# SPDX-License-Identifier: Apache-2.0
"""The one table that says what became of the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfq.report.formatting import DASH, count, is_number, model_label, percent, plain, scalar, significant
from tfq.report.tables import Reasons, Table

NEVER_A_LATENCY = "ARM columns are emulated: a parity of outputs with this machine's, never a latency"


def evaluation_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The evaluation of one of the record's models, empty where there is none."""
    return model.get("evaluation") or {}


def parity_runners(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every runner that a model of the record was, or was to be, compared on; in the order met."""
    return list(dict.fromkeys(runner for model in models for runner in model.get("parity") or {}))


def is_share(evaluation: Mapping[str, Any]) -> bool:
    """Whether the accuracy is a fraction of examples, and not what a user's own metric gave."""
    return evaluation.get("metric") in (None, "top1")


def accuracy_text(evaluation: Mapping[str, Any]) -> str:
    """A percentage such as "97.22%", or the plain number and name of a user's own metric."""
    value = evaluation.get("accuracy")
    if is_share(evaluation) or not is_number(value):
        return percent(value)
    return f"{value:.4g} {plain(evaluation['metric'])}"


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
    models = record.get("models") or []
    runners = parity_runners(models)
    machine = plain((record.get("cpu") or {}).get("machine") or "local")
    columns = ("model", "accuracy", "agreement", "bytes", "gzip bytes", f"{machine} p50 ms", "ops delegated")
    reasons = Reasons()
    rows = tuple(_row(model, runners, reasons) for model in models)
    notes = list(reasons.notes())
    emulated = any(runner.startswith("qemu") for runner in runners)
    if emulated:
        notes.append(NEVER_A_LATENCY)
    parity_columns = tuple(plain(runner).removeprefix("qemu:") + " parity" for runner in runners)
    return Table(columns=(*columns, *parity_columns), rows=rows, notes=tuple(notes))


def _row(model: Mapping[str, Any], runners: Sequence[str], reasons: Reasons) -> tuple[str, ...]:
    label = model_label(model.get("name", "?"))
    evaluation = evaluation_of(model)
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
            reasons.add(what, label, plain(missing or reason or ""))
    cells = [cell for cell, _ in shown.values()]
    return (label, *cells, *(_parity_cell(model, runner, label, reasons) for runner in runners))


def delegated_text(evaluation: Mapping[str, Any]) -> str:
    """How many ops XNNPACK took: "13 of 15"."""
    delegated, total = evaluation.get("delegated_ops"), evaluation.get("total_ops")
    return f"{count(delegated)} of {count(total)}" if is_number(delegated) else DASH


def _parity_cell(model: Mapping[str, Any], runner: str, label: str, reasons: Reasons) -> str:
    what = f"{plain(runner).removeprefix('qemu:')} parity"
    parity = (model.get("parity") or {}).get(runner)
    if parity is None:
        # The float model is the reference: a parity in LSB is that of integer codes.
        reason = "parity is counted in LSB, and its outputs are no codes" if label == "float" else "not asked for"
        reasons.add(what, label, reason)
        return DASH
    if "not_run" in parity:
        reasons.add(what, label, f"not run: {plain(parity['not_run'])}")
        return "not run"
    text = parity_text(parity)
    if text == DASH:
        reasons.add(what, label, scalar(parity["skipped"]) if parity.get("skipped") else None)
    return text


def summary_table(record: Mapping[str, Any]) -> str:
    """The record's models as a table for a terminal, without a final newline.

    A row a model: accuracy against the labels and agreement with the float model in percent, bytes of the file raw and
    gzipped, median latency on this machine, ops delegated to XNNPACK, and for each emulated ARM CPU the parity of the
    outputs ("0 LSB (0 of 2,560)": the largest difference, how many values differ) or "not run". What is not known is a
    dash, and its reason stands below the table.
    """
    table = summary_of(record)
    if not table.rows:
        return "no model was evaluated"
    header = [_two_lines(column) for column in table.columns]
    lines = [tuple(part[0] for part in header), tuple(part[1] for part in header), *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]
    laid_out = ["  ".join(_aligned(line[c], widths[c], c) for c in range(len(widths))).rstrip() for line in lines]
    laid_out.insert(2, "  ".join("─" * width for width in widths))
    return "\n".join([*laid_out, *(["", *table.notes] if table.notes else [])])


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _two_lines(column: str) -> tuple[str, str]:
    """A column's heading on two lines: the table must fit a terminal."""
    first, space, second = column.partition(" ")
    return (first, second) if space else ("", first)

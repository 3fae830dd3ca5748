# SPDX-License-Identifier: Apache-2.0
"""The section with the portability table: how each model runs on each backend."""

from collections.abc import Sequence
from typing import Any

from tfq.evaluation.portability_record import COLUMNS, row_cells, table_lines, table_notes
from tfq.report.formatting import count, is_number, plain, significant
from tfq.report.record import Record, Reported, models_of, part
from tfq.report.tables import Section, Table

TITLE = "Backends"


def portability_section(record: Record) -> Section:
    """Return the portability table: a row for each model and backend."""
    models = [model for model in models_of(record) if model.backends]
    if not models:
        message = "not run: evaluation.backends is none, or no backend is available"
        return Section(key="backends", title=TITLE, gist=message, paragraphs=(f"N{message[1:]}.",))
    rows = [(model, row) for model in models for row in model.backends.values()]
    notes = dict.fromkeys(
        f"{model.label}, {note}" if note.partition(":")[0] in model.backends else note
        for model in models
        for note in table_notes(model.portability)
    )
    table = Table(
        key="backends",
        columns=("model", *COLUMNS),
        rows=tuple((model.label, *map(plain, row_cells(row))) for model, row in rows),
        numeric=(False,) * 5 + (True,) * 4 + (False,) * 2,
        notes=tuple(map(plain, notes)),
        row_series=tuple(model.series for model, _ in rows),
        bad=frozenset((index, 3) for index, (_, row) in enumerate(rows) if row.get("status") == "failed"),
    )
    about = (
        "The same examples ran on each backend, and its quantized outputs were compared value by value with XNNPACK's "
        "on this machine. 1 LSB is one step of the quantized output. Figures are measured on the hardware itself, "
        "emulated (outputs and counts are those of the device, no time is measured), or estimated by a model of it."
    )
    largest = [part(row, "difference").get("max_abs_error_lsb") for _, row in rows]
    known = [value for value in largest if is_number(value)]
    gist = f"max difference {significant(max(known))} LSB" if known else ""
    return Section(key="backends", title=TITLE, gist=gist, paragraphs=(about,), tables=(table,))


def portability_text(record: Record) -> str:
    """Return the table of the record's last model as text for the terminal; "" if it has none."""
    models = [model for model in models_of(record) if model.backends]
    if not models:
        return ""
    lines = [plain(line) for line in table_lines(models[-1].portability)]
    return "\n".join([f"{models[-1].label} on each backend:", *lines])


def difference_answer(rows: Sequence[tuple[Reported, Record]]) -> tuple[bool, str]:
    """Return (whether a backend computes the same as this machine up to rounding, how its outputs differ).

    The largest difference of each model is compared with that of TFLite's builtin kernels on this machine, its
    yardstick, and with 1 LSB.
    """
    differences = [(part(row, "difference"), part(model.portability, "yardstick")) for model, row in rows]
    known = [(item, yardstick) for item, yardstick in differences if is_number(item.get("max_abs_error_lsb"))]
    if len(known) < len(differences):
        return False, "some outputs are not quantized: see the table"
    largest = max(item["max_abs_error_lsb"] for item, _ in known)
    if largest == 0:
        return True, "all outputs are the same as on this machine"
    expected = [yardstick.get("max_abs_error_lsb") for _, yardstick in known]
    limits = [max(1, value) if is_number(value) else 1 for value in expected]
    is_rounding = all(item["max_abs_error_lsb"] <= limit for (item, _), limit in zip(known, limits, strict=True))
    different = sum(_number(item, "num_different") for item, _ in known)
    total = sum(_number(item, "compared") for item, _ in known)
    answer = f"{count(different)} of {count(total)} output values differ, by at most {significant(largest)} LSB"
    return is_rounding, answer if is_rounding else f"{answer}; builtin kernels differ by at most {max(limits)} LSB"


def _number(values: Record, key: str) -> Any:
    return values.get(key) or 0

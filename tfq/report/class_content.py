# SPDX-License-Identifier: Apache-2.0
"""The section on the accuracy of single classes."""

from typing import Any

from tfq.report.formatting import class_text, count, is_number, percent, points
from tfq.report.record import REFERENCE, Record, Reported, models_of, part
from tfq.report.tables import SORTABLE_FROM, Section, Table

_MOST_CLASSES = 30


def classes_section(record: Record) -> Section | None:
    """Return the accuracy of each class, those that lost most first; None if no model has such figures."""
    tables = [_class_table(model) for model in models_of(record) if model.label != REFERENCE]
    shown = tuple(table for table in tables if table)
    if not shown:
        return None
    about = (
        "Accuracy on the examples of each class. The classes on which a model is worst, compared with the float model, "
        "are first. The difference is in percentage points. A class with few examples varies by chance."
    )
    return Section(key="classes", title="Accuracy of each class", paragraphs=(about,), tables=shown)


def _class_table(model: Reported) -> Table | None:
    classes = part(model.evaluation, "classes")
    numbers, examples, correct = (classes.get(key) for key in ("class", "examples", "correct"))
    if not (isinstance(numbers, list) and isinstance(examples, list) and isinstance(correct, list)):
        return None
    missing = [None] * len(numbers)
    names, reference = classes.get("name") or missing, classes.get("reference_correct") or missing
    rows = []
    for number, name, total, ours, theirs in zip(numbers, names, examples, correct, reference, strict=True):
        accuracy, expected = _fraction(ours, total), _fraction(theirs, total)
        difference = None if accuracy is None or expected is None else accuracy - expected
        order = (0.0 if difference is None else difference, accuracy or 0.0)
        cells = (class_text(number, name), count(total), percent(expected), percent(accuracy), points(difference))
        rows.append((order, cells))
    rows.sort(key=lambda row: row[0])
    further = len(rows) - _MOST_CLASSES
    notes = (f"{count(further)} further class{'' if further == 1 else 'es'} in the record",) if further > 0 else ()
    return Table(
        key="classes",
        columns=("class", "examples", "float", model.label, "difference"),
        rows=tuple(cells for _, cells in rows[:_MOST_CLASSES]),
        caption=f"Accuracy of each class, {model.label}",
        notes=notes,
        row_series=(model.series,) * min(len(rows), _MOST_CLASSES),
        sortable=len(rows) >= SORTABLE_FROM,
    )


def _fraction(part_of: Any, total: Any) -> float | None:
    return part_of / total if is_number(part_of) and is_number(total) and total else None

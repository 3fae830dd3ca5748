# SPDX-License-Identifier: Apache-2.0
"""The sections on single classes and single examples: where a model and the float model predict different classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfq.report.formatting import class_text, count, is_number, percent, plain, points, significant
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


def examples_section(record: Record) -> Section | None:
    """Return the examples for which models and the float model predict different classes; None without a reference."""
    models = [model for model in models_of(record) if part(model.evaluation, "differing_examples")]
    models = [model for model in models if model.label != REFERENCE]
    if not models:
        return None
    items, tables = [], []
    for model in models:
        differing = part(model.evaluation, "differing_examples")
        total, compared = differing.get("count"), count(model.evaluation.get("compared"))
        examples = [item for item in differing.get("examples") or [] if isinstance(item, Mapping)]
        if not total:
            items.append(f"{model.label}: none of {compared} examples differs")
            continue
        shown = "" if len(examples) == total else f"; {count(len(examples))} are shown: {plain(differing.get('order'))}"
        items.append(f"{model.label}: {count(total)} of {compared} examples differ{shown}")
        if examples:
            tables.append(_example_table(model, examples, differing.get("picture_reason")))
    about = (
        "Examples for which a model and the float model predict different classes. The score is the output for the "
        "predicted class."
    )
    return Section(
        key="examples",
        title="Examples with another class than the float model's",
        gist="; ".join(items) if len(items) == 1 else "",
        paragraphs=(about,),
        items=tuple(items),
        tables=tuple(tables),
    )


def _example_table(model: Reported, examples: Sequence[Record], picture_reason: Any) -> Table:
    rows = []
    for item in examples:
        names, label = part(item, "names"), item.get("label")
        cells = [f"{class_text(item.get(key), names.get(str(item.get(key))))}" for key in ("reference_class", "class")]
        rows.append(
            (
                f"#{plain(item.get('index'))}",
                class_text(label, names.get(str(label))),
                cells[0],
                significant(item.get("reference_score")),
                cells[1],
                significant(item.get("score")),
            )
        )
    wrong = frozenset(
        (row, column)
        for row, item in enumerate(examples)
        for column, key in ((2, "reference_class"), (4, "class"))
        if item.get("label") not in (None, item.get(key))
    )
    return Table(
        key="examples",
        columns=("example", "label", "float", "score", model.label, "score"),
        rows=tuple(rows),
        numeric=(False, False, False, True, False, True),
        caption=f"Examples that differ, {model.label}",
        notes=(f"no pictures: {plain(picture_reason)}",) if picture_reason else (),
        row_series=(model.series,) * len(rows),
        pictures=tuple(item.get("picture") for item in examples),
        bad=wrong,
    )

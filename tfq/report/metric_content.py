# SPDX-License-Identifier: Apache-2.0
"""The sections on the metrics of an evaluation: intervals, differences, tables by class, confusion matrices."""

from collections.abc import Mapping
from typing import Any

from tfq.report.formatting import (
    DASH,
    class_text,
    count,
    difference_with_interval,
    interval_text,
    is_number,
    metric_title,
    plain,
    value_text,
)
from tfq.report.record import REFERENCE, Record, Reported, models_of, part
from tfq.report.tables import SORTABLE_FROM, Section, Table

_MOST_ROWS = 30


def metrics_section(record: Record) -> Section | None:
    """Return all metrics of each model, and their figures by class; None if each model has only its main metric."""
    models = [model for model in models_of(record) if model.label != REFERENCE]
    shown = [model for model in models if len(part(model.evaluation, "metrics")) > 1]
    tables = [_metric_table(model) for model in shown]
    for model in models:
        rows_of: list[tuple[tuple[str, ...], ...]] = []
        for name, facts in part(model.evaluation, "metrics").items():
            table = _class_table(model, name, facts) if isinstance(facts, Mapping) else None
            # Metrics of one family, such as mean IoU and Dice, have the same table.
            if table is not None and table.rows not in rows_of:
                rows_of.append(table.rows)
                tables.append(table)
    if not tables:
        return None
    about = (
        "Each metric against the labels, with its 95% interval, and its difference from the float model on the same "
        "examples. The interval of a difference is paired, so it is narrower than two intervals suggest. The tables by "
        "class have the float model's figure in parentheses where it differs."
    )
    return Section(key="metrics", title="Metrics", paragraphs=(about,), tables=tuple(tables))


def _metric_table(model: Reported) -> Table:
    rows, notes = [], []
    for name, facts in part(model.evaluation, "metrics").items():
        if not isinstance(facts, Mapping):
            continue
        unit, title = plain(facts.get("unit")), metric_title(model.evaluation, name)
        difference = facts.get("difference")
        changed = difference_with_interval(difference, unit) if isinstance(difference, Mapping) else DASH
        better = {"higher": "higher", "lower": "lower"}.get(plain(facts.get("direction")), DASH)
        rows.append(
            (
                title,
                better,
                value_text(facts.get("value"), unit),
                interval_text(model.evaluation, name),
                value_text(facts.get("reference"), unit),
                changed,
            )
        )
        if changed == DASH and facts.get("difference_reason"):
            notes.append(f"{title}: {plain(facts['difference_reason'])}")
        notes += [
            f"{title}{of}: {plain(facts[key])}"
            for key, of in (("note", ""), ("reference_note", ", float model"))
            if facts.get(key)
        ]
    return Table(
        key="metrics",
        columns=("metric", "better", model.label, "95% interval", "float", "minus float"),
        rows=tuple(rows),
        numeric=(False, False, True, True, True, True),
        caption=f"Metrics, {model.label}",
        notes=tuple(notes),
        row_series=(model.series,) * len(rows),
    )


def _class_table(model: Reported, name: str, facts: Mapping[str, Any]) -> Table | None:
    table, reference = part(facts, "table"), part(facts, "reference_table")
    columns, values = table.get("columns"), table.get("values")
    if not isinstance(columns, list) or not isinstance(values, list) or not values:
        return None
    counts, unit = table.get("counts") or [], plain(table.get("unit"))
    theirs = dict(zip(reference.get("rows") or [], reference.get("values") or [], strict=False))
    names, rows = table.get("rows") or [], []
    numbers = table.get("classes") or [None] * len(names)
    for row, number, cells in list(zip(names, numbers, values, strict=False))[:_MOST_ROWS]:
        others = theirs.get(row) or [None] * len(columns)
        texts = [
            _cell(value, other, unit, is_count=column in counts)
            for column, value, other in zip(columns, cells, others, strict=False)
        ]
        rows.append((plain(row) if number is None else class_text(number, row), *texts))
    further = len(values) - len(rows)
    return Table(
        key=f"metric-{plain(name)}",
        columns=("class" if table.get("classes") else "", *map(plain, columns)),
        rows=tuple(rows),
        caption=f"{metric_title(model.evaluation, name)} in detail, {model.label}",
        notes=(f"{count(further)} further rows in the record",) if further > 0 else (),
        row_series=(model.series,) * len(rows),
        sortable=len(rows) >= SORTABLE_FROM,
    )


def _cell(value: Any, other: Any, unit: str, *, is_count: bool) -> str:
    """Return a figure, with that of the float model if it differs."""
    show = _whole if is_count else lambda number: value_text(number, unit)
    text, base = show(value), show(other)
    return text if not is_number(other) or text == base else f"{text} ({base})"


def _whole(number: Any) -> str:
    """Return a count, which a table of real numbers has as 1234.0."""
    return count(int(number)) if is_number(number) and float(number).is_integer() else count(number)


def confusion_section(record: Record) -> Section | None:
    """Return the confusion matrices as pictures, and the most frequent confusions; None if no model has any."""
    shown = [model for model in models_of(record) if model.label != REFERENCE and _confusion(model)]
    if not shown:
        return None
    about = (
        "Rows are labels, columns are predicted classes, in examples. The last picture is the model's matrix minus "
        "the float model's: where they confuse classes differently."
    )
    return Section(
        key="confusion",
        title="Confusion matrix",
        paragraphs=(about,),
        plots=tuple(confusion_key(model) for model in shown if _confusion(model).get("matrix")),
        tables=tuple(_pair_table(model) for model in shown if _confusion(model).get("pairs")),
    )


def confusion_key(model: Reported) -> str:
    """Return the key of a model's plot."""
    return f"confusion {model.label}"


def _confusion(model: Reported) -> Mapping[str, Any]:
    return part(part(model.evaluation, "classes"), "confusion")


def _pair_table(model: Reported) -> Table:
    confusion = _confusion(model)
    names = class_names(confusion)
    rows = tuple(
        (
            class_text(item.get("label"), names.get(item.get("label"))),
            class_text(item.get("class"), names.get(item.get("class"))),
            count(item.get("reference_count")),
            count(item.get("count")),
        )
        for item in confusion["pairs"]
        if isinstance(item, Mapping)
    )
    return Table(
        key="confusions",
        columns=("label", "predicted", "float", model.label),
        rows=rows,
        numeric=(False, False, True, True),
        caption=f"Most frequent confusions, {model.label}",
        notes=(f"no matrix: {plain(confusion['reason'])}",) if confusion.get("reason") else (),
        row_series=(model.series,) * len(rows),
    )


def class_names(confusion: Mapping[str, Any]) -> dict[Any, Any]:
    """Return {class number: its name} of a confusion matrix; without those that have no name."""
    pairs = zip(confusion.get("classes") or [], confusion.get("names") or [], strict=False)
    return {number: name for number, name in pairs if name}

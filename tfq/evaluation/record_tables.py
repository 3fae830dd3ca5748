# SPDX-License-Identifier: Apache-2.0
"""Show the tables of an evaluation's metrics, and the classes that a model confuses, as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfq.evaluation.metric_text import score_text
from tfq.notebook import NotebookTable
from tfq.text_table import shown

# Longer tables show the rows that differ most from the reference's.
_MOST_ROWS, _MOST_CONFUSIONS = 12, 3


def metric_tables(metrics: Mapping[str, Mapping[str, Any]]) -> list[NotebookTable]:
    """Return the tables of all metrics, with the reference's figure in parentheses where it differs.

    Metrics with the same table, such as precision, recall and F1, share it.

    Args:
        metrics: `EvaluationRecord.metrics`.
    """
    shared: list[tuple[list[str], Mapping[str, Any], Mapping[str, Any] | None]] = []
    for name, facts in metrics.items():
        table, reference = facts.get("table"), facts.get("reference_table")
        if not table or not table["rows"]:
            continue
        same = next((names for names, *others in shared if others == [table, reference]), None)
        if same is not None:
            same.append(name)
        else:
            shared.append(([name], table, reference))
    return [_table(names, table, reference) for names, table, reference in shared]


def _table(names: Sequence[str], table: Mapping[str, Any], reference: Mapping[str, Any] | None) -> NotebookTable:
    theirs = {} if reference is None else dict(zip(reference["rows"], reference["values"], strict=True))
    rows = list(zip(table["rows"], table["values"], strict=True))
    missing = [None] * len(table["columns"])
    pairs = [(row, values, theirs.get(row, missing)) for row, values in rows]
    classes = table.get("classes")
    title = f"{', '.join(names)}, {'each class' if classes else 'details'}"
    title += ", the reference in parentheses where it differs" if theirs else ""
    if len(pairs) > _MOST_ROWS:
        chosen = sorted(range(len(pairs)), key=lambda place: -_difference(table, *pairs[place][1:]))[:_MOST_ROWS]
        which = "that differ most from the reference" if theirs else "that come first"
        title += f" (the {_MOST_ROWS} of {len(pairs):,} rows {which}; the record has all)"
        pairs = [pairs[place] for place in sorted(chosen)]
    cells = [
        [
            shown(row),
            *(
                _cell(value, other, table["unit"], is_count=column in table["counts"])
                for column, value, other in zip(table["columns"], values, others, strict=True)
            ),
        ]
        for row, values, others in pairs
    ]
    return NotebookTable(columns=("class" if classes else "", *table["columns"]), rows=cells, caption=title)


def _difference(table: Mapping[str, Any], values: Sequence[Any], others: Sequence[Any]) -> float:
    """Return how much the figures of a row differ from the reference's, without numbers of examples."""
    return sum(
        abs(value - other)
        for column, value, other in zip(table["columns"], values, others, strict=True)
        if column not in table["counts"] and value is not None and other is not None
    )


def _cell(value: Any, other: Any, unit: str, *, is_count: bool) -> str:
    own, theirs = (
        "-" if item is None else f"{item:,.0f}" if is_count else str(score_text(unit, item)) for item in (value, other)
    )
    return own if other is None or own == theirs else f"{own} ({theirs})"


def confusions_text(classes: Mapping[str, Any] | None) -> str | None:
    """Return the most frequent confusions: "3 as 8: 4 of 1,000 examples (reference 2)"; None if there are none.

    Args:
        classes: `EvaluationRecord.classes`.
    """
    confusion = (classes or {}).get("confusion")
    if not classes or not confusion or not confusion["pairs"]:
        return None
    names = dict(zip(confusion["classes"], confusion["names"] or confusion["classes"], strict=True))
    total = sum(classes["examples"])
    texts = []
    for pair in confusion["pairs"][:_MOST_CONFUSIONS]:
        label, answer = (shown(str(names[pair[key]] or pair[key])) for key in ("label", "class"))
        reference = "" if pair["reference_count"] is None else f" (reference {pair['reference_count']:,})"
        texts.append(f"{label} as {answer}: {pair['count']:,}{reference}")
    return f"{'; '.join(texts)}, of {total:,} examples"

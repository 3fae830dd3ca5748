# SPDX-License-Identifier: Apache-2.0
"""How results look in a notebook: compact tables with inline CSS, because notebooks and GitHub remove style sheets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_MOST_ROWS = 20
_MOST_TEXT = 1000
_FONT = "font:13px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif"
_LINE = "border-bottom:1px solid rgba(128,128,128,.35)"
_CELL = f"padding:2px 14px 2px 0;{_LINE};background:none;vertical-align:top"


@dataclass(frozen=True, kw_only=True)
class NotebookTable:
    """A table of plain text. The first column names the row.

    Attributes:
        columns: The headings; empty for a table of names and values.
        rows: The cells of each row.
        caption: The title.
        left: How many columns are aligned left; the others hold numbers.
    """

    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]]
    caption: str = ""
    left: int = 1


class NotebookRecord:
    """Base of results that a notebook shows as tables. A subclass has `to_dict`, and may define its own tables."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        raise NotImplementedError

    def notebook_tables(self) -> Sequence[NotebookTable]:
        """Return the tables that a notebook shows: by default, the values of `to_dict`."""
        return tables_of(self.to_dict())

    def _repr_html_(self) -> str:
        """Return the tables as HTML for a notebook. All text is escaped."""
        tables = "".join(map(_table_html, self.notebook_tables()))
        return f'<div style="{_FONT};overflow-x:auto"><b>{escape(type(self).__name__)}</b>{tables}</div>'


def tables_of(values: Mapping[str, Any]) -> list[NotebookTable]:
    """Return tables of JSON values: one of names and values, then one for each list of objects."""
    lists = {name: value for name, value in values.items() if _is_table(value)}
    others = {name: value for name, value in values.items() if name not in lists and value not in ([], {})}
    rows = [(_words(name), _text(value)) for name, value in others.items()]
    tables = [NotebookTable(rows=rows, left=2)] if rows else []
    for name, items in lists.items():
        columns = [key for key in items[0] if not isinstance(items[0][key], (list, dict))]
        numeric = [key for key in columns if all(_is_number(item.get(key)) for item in items)]
        columns = [*(key for key in columns if key not in numeric), *numeric]
        cells = [[_text(item.get(key)) for key in columns] for item in items]
        left, heads = len(columns) - len(numeric), [_words(key) for key in columns]
        tables.append(NotebookTable(columns=heads, rows=cells, caption=_words(name), left=left))
    return tables


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _text(value: object) -> str:
    """Return a JSON value on one line."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    return str(value)


def _table_html(table: NotebookTable) -> str:
    head, *rows = [
        "".join(f'<{tag} style="{_style(table, column)}">{_cell(cell)}</{tag}>' for column, cell in enumerate(row))
        for tag, row in (("th", table.columns), *(("td", row) for row in table.rows[:_MOST_ROWS]))
    ]
    caption = f'<div style="margin-top:8px;opacity:.7">{_cell(table.caption)}</div>' if table.caption else ""
    further = len(table.rows) - _MOST_ROWS
    more = f'<div style="opacity:.7">{further:,} more rows: see to_dict()</div>' if further > 0 else ""
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'{caption}<table style="border-collapse:collapse;margin:4px 0">{head}<tbody>{body}</tbody></table>{more}'


def _style(table: NotebookTable, column: int) -> str:
    return f"{_CELL};text-align:{'left' if column < table.left else 'right'}"


def _cell(text: object) -> str:
    """Return text for a cell: escaped, on one line, and cut if it is long."""
    plain = "".join(character if character.isprintable() else " " for character in str(text)).strip()
    return escape(plain if len(plain) <= _MOST_TEXT else f"{plain[: _MOST_TEXT - 1]}…")

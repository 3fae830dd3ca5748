# SPDX-License-Identifier: Apache-2.0
"""A table of a report as HTML, with bars among its columns."""

from collections.abc import Iterator
from html import escape

from tfq.report.tables import Bars, Table

# As many colours as the style sheet has.
_COLOURS = 6
_TALL = 24
_FEW = 5
# A word longer than this is broken where a line ends.
_LONG = 22


def table_html(table: Table) -> str:
    """The table in a box that scrolls where the screen is too narrow, and its notes below."""
    rows = [_row(table, row) for row in range(len(table.rows))]
    body = rows[: len(rows) - table.totals]
    totals = f"<tfoot>{''.join(rows[len(body) :])}</tfoot>" if table.totals else ""
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    classes = " ".join(
        word
        for word, holds in (("sort", table.sortable), ("wide", bool(table.bars) and len(table.columns) > _FEW))
        if holds
    )
    # A box that scrolls must be reached by the keyboard.
    box = f'<div class="scroll{" tall" if len(body) > _TALL else ""}" tabindex="0" role="group"'
    return (
        f'{box} aria-label="{escape(table.caption or "table")}"><table class="{classes}">{caption}'
        f"<thead><tr>{_head(table)}</tr></thead>\n<tbody>{chr(10).join(body)}</tbody>{totals}</table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    ).replace(' class=""', "")


def _head(table: Table) -> str:
    cells = []
    for column, title in enumerate(table.columns):
        for bars in _bars_before(table, column):
            cells.append(f'<th scope="col" class="bars">{escape(bars.title) or _unseen("bar")}</th>')
        if title:
            cells.append(f'<th scope="col"{_classes(table, column)}>{_dot(table, column)}{escape(title)}</th>')
        else:
            cells.append("<td></td>")
    return "".join(cells)


def _row(table: Table, row: int) -> str:
    cells = []
    for column, cell in enumerate(table.rows[row]):
        for bars in _bars_before(table, column):
            cells.append(f'<td class="bars">{_drawn(bars, row)}</td>')
        if column:
            bad = (row, column) in table.bad
            words = f"{'bad ' * bad}{'long' * _is_long(cell)}".strip()
            cells.append(f"<td{_classes(table, column, words)}>{escape(cell)}</td>")
        else:
            series = table.row_series[row] if table.row_series else None
            dot = "" if series is None else f'<i class="dot s{series % _COLOURS}"></i>'
            cells.append(f'<th scope="row"{_classes(table, column, "long" * _is_long(cell))}>{dot}{escape(cell)}</th>')
    return f"<tr>{''.join(cells)}</tr>"


def _bars_before(table: Table, column: int) -> Iterator[Bars]:
    return (bars for bars in table.bars if bars.before == column)


def _drawn(bars: Bars, row: int) -> str:
    drawn = []
    for length, series in zip(bars.rows[row], bars.series, strict=True):
        size = "" if not length else f' style="--f:{length:.3f}"'.replace(":0.", ":.")
        drawn.append("" if length is None else f'<i class="s{series % _COLOURS}"{size}></i>')
    return "".join(drawn)


def _dot(table: Table, column: int) -> str:
    series = table.column_series.get(column)
    return "" if series is None else f'<i class="dot s{series % _COLOURS}"></i>'


def _classes(table: Table, column: int, more: str = "") -> str:
    words = " ".join(word for word in ("number" if table.is_numeric(column) else "", more) if word)
    return f' class="{words}"' if words else ""


def _is_long(cell: str) -> bool:
    return len(cell) > _LONG and any(len(word) > _LONG for word in cell.split())


def _unseen(text: str) -> str:
    return f'<span class="unseen">{text}</span>'

# SPDX-License-Identifier: Apache-2.0
"""The tables and sections of a report, the reasons for missing cells, and tables as HTML."""

import re
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from html import escape
from typing import Any

# Tables with fewer rows need no sorting.
SORTABLE_FROM = 12


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars that a page draws in front of a column. The cells of the table have the numbers that the bars show.

    Attributes:
        before: Index of the column.
        title: Heading of the bars.
        rows: For each row of the table the length of each bar, as a fraction of the longest bar. None draws no bar.
        series: For each bar the position of its model, which decides its color.
    """

    before: int
    title: str
    rows: tuple[tuple[float | None, ...], ...]
    series: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of plain text that is not escaped yet. The first column names the row.

    Attributes:
        key: Identifies the table in its section; `data-table` on the page.
        columns: The headings.
        rows: The cells of each row.
        numeric: For each column whether it holds numbers, which are aligned right. Empty: all but the first do.
        caption: The title.
        notes: Sentences below the table.
        bars: Bars that a page draws between the columns.
        column_series: Column -> position of the model that it is about.
        row_series: For each row the position of the model that it is about, or None.
        bad: (row, column) of cells with a bad verdict.
        pictures: For each row a PNG file in base64, which a page shows before the row, or None. Empty: no pictures.
        panels: The names of the parts of each picture, from left to right; empty if it has one part.
        legend: (color as "#rrggbb", what it stands for) in the pictures.
        totals: How many of the last rows are totals.
        sortable: Whether the reader may sort the table on a page.
    """

    key: str = ""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...] = ()
    caption: str = ""
    notes: tuple[str, ...] = ()
    bars: tuple[Bars, ...] = ()
    column_series: Mapping[int, int] = field(default_factory=dict)
    row_series: tuple[int | None, ...] = ()
    bad: frozenset[tuple[int, int]] = frozenset()
    pictures: tuple[str | None, ...] = ()
    panels: tuple[str, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    totals: int = 0
    sortable: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.columns}: row {row} has {len(row)} cells")
        optional: list[Sized] = [item for item in (self.row_series, self.pictures) if item]
        for of_rows in (*(bars.rows for bars in self.bars), *optional):
            if len(of_rows) != len(self.rows):
                raise ValueError(f"table {self.columns}: {len(of_rows)} rows of bars or series for {len(self.rows)}")

    def is_numeric(self, column: int) -> bool:
        """Check whether a column holds numbers."""
        return self.numeric[column] if self.numeric else column > 0


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with its content.

    Attributes:
        key: Identifies the section: the target of the page's links.
        title: The heading.
        gist: A few words next to the heading of a folded section: its result.
        paragraphs: Plain text.
        items: A list below the paragraphs.
        links: Files next to the page, below the list: (text, relative path).
        tables: Below the paragraphs.
        plots: Keys of the plots that a page shows with the section.
        code: Text that is shown verbatim; a page folds it.
        code_title: The heading of the code.
        folded: Whether a page shows only heading and gist until the reader opens the section.
    """

    key: str
    title: str
    gist: str = ""
    paragraphs: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[str, ...] = ()
    code: str = ""
    code_title: str = ""
    folded: bool = True


class Reasons:
    """Collects why cells are dashes, and lists each reason once with the cells that it applies to."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[str, list[str]]] = {}

    def add(self, what: str, where: str, reason: Any) -> None:
        """Add why column `what` of row `where` is a dash. None or "" means that the record has no reason."""
        text = str(reason) if reason else "the record has no reason"
        rows = self._cells.setdefault(text, {}).setdefault(what, [])
        if where not in rows:
            rows.append(where)

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each reason: "accuracy, latency of float, PTQ int8: no labels"."""
        notes = []
        for reason, cells in self._cells.items():
            for rows in dict.fromkeys(tuple(rows) for rows in cells.values()):
                columns = [what for what, its_rows in cells.items() if tuple(its_rows) == rows]
                notes.append(f"{', '.join(columns)} of {', '.join(rows)}: {reason}")
        return tuple(notes)


def fractions(values: list[float | None]) -> tuple[float | None, ...]:
    """Return each value divided by the largest. None stays None; if all are 0, they stay 0."""
    longest = max((value for value in values if value is not None), default=0) or 1
    return tuple(None if value is None else value / longest for value in values)


# The number of series colors in report.css.
_COLORS = 6
# A table with more rows scrolls in its box; one with bars and more columns takes the full width.
_TALL = 24
_FEW = 5
# A longer word may be broken at the end of a line.
_LONG = 22


def table_html(table: Table) -> str:
    """Return the table in a box that scrolls if the screen is too narrow, with its notes below."""
    rows = [_row(table, row) for row in range(len(table.rows))]
    body = rows[: len(rows) - table.totals]
    totals = f"<tfoot>{''.join(rows[len(body) :])}</tfoot>" if table.totals else ""
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    classes = " ".join(
        word
        for word, holds in (
            ("sort", table.sortable),
            ("wide", bool(table.bars) and len(table.columns) > _FEW),
            ("panels", bool(table.panels)),
        )
        if holds
    )
    key = f' data-table="{escape(table.key)}"' if table.key else ""
    # tabindex: a box that scrolls must be reachable with the keyboard.
    box = f'<div class="scroll{" tall" if len(body) > _TALL else ""}"{key} tabindex="0" role="group"'
    return (
        f'{box} aria-label="{escape(table.caption or "table")}"><table class="{classes}">{caption}'
        f"<thead><tr>{_head(table)}</tr></thead>\n<tbody>{chr(10).join(body)}</tbody>{totals}</table></div>"
        + _legend(table)
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    ).replace(' class=""', "")


def _head(table: Table) -> str:
    titles = _unseen("picture")
    if table.panels:
        names = "".join(f"<span>{escape(name)}</span>" for name in table.panels)
        titles = f"<div>{names}</div>"
    cells = [f'<th scope="col" class="picture">{titles}</th>'] if _has_pictures(table) else []
    for column, title in enumerate(table.columns):
        for bars in _bars_before(table, column):
            cells.append(f'<th scope="col" class="bars">{escape(bars.title) or _unseen("bar")}</th>')
        if title:
            cells.append(f'<th scope="col"{_classes(table, column)}>{_dot(table, column)}{escape(title)}</th>')
        else:
            cells.append("<td></td>")
    return "".join(cells)


def _row(table: Table, row: int) -> str:
    alternative = ", ".join(table.panels) or "input of the example"
    cells = []
    if _has_pictures(table):
        cells.append(f'<td class="picture">{_picture(table.pictures[row], alternative)}</td>')
    for column, cell in enumerate(table.rows[row]):
        for bars in _bars_before(table, column):
            cells.append(f'<td class="bars">{_drawn(bars, row)}</td>')
        if column:
            bad = (row, column) in table.bad
            words = f"{'bad ' * bad}{'long' * _is_long(cell)}".strip()
            cells.append(f"<td{_classes(table, column, words)}>{escape(cell)}</td>")
        else:
            series = table.row_series[row] if table.row_series else None
            dot = "" if series is None else f'<i class="dot s{series % _COLORS}"></i>'
            cells.append(f'<th scope="row"{_classes(table, column, "long" * _is_long(cell))}>{dot}{escape(cell)}</th>')
    return f"<tr>{''.join(cells)}</tr>"


def _has_pictures(table: Table) -> bool:
    return any(_picture(content, "") for content in table.pictures)


# The signature of PNG files in base64, then only characters of base64.
_PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")


_COLOR = re.compile(r"#[0-9a-f]{6}")


def _legend(table: Table) -> str:
    """Return the colors of the pictures and what they stand for; "" without pictures."""
    if not _has_pictures(table):
        return ""
    items = "".join(
        f'<li><i style="background:{color}"></i>{escape(text)}</li>'
        for color, text in table.legend
        if _COLOR.fullmatch(color)
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def _picture(content: object, alternative: str) -> str:
    """Return a picture as HTML; "" if it is not a PNG file in base64, as in a record that was tampered with."""
    if not isinstance(content, str) or not _PNG.fullmatch(content):
        return ""
    return f'<img src="data:image/png;base64,{content}" alt="{escape(alternative)}">'


def _bars_before(table: Table, column: int) -> Iterator[Bars]:
    return (bars for bars in table.bars if bars.before == column)


def _drawn(bars: Bars, row: int) -> str:
    drawn = []
    for length, series in zip(bars.rows[row], bars.series, strict=True):
        size = "" if not length else f' style="--f:{length:.3f}"'.replace(":0.", ":.")
        drawn.append("" if length is None else f'<i class="s{series % _COLORS}"{size}></i>')
    return "".join(drawn)


def _dot(table: Table, column: int) -> str:
    series = table.column_series.get(column)
    return "" if series is None else f'<i class="dot s{series % _COLORS}"></i>'


def _classes(table: Table, column: int, more: str = "") -> str:
    words = " ".join(word for word in ("number" if table.is_numeric(column) else "", more) if word)
    return f' class="{words}"' if words else ""


def _is_long(cell: str) -> bool:
    return len(cell) > _LONG and any(len(word) > _LONG for word in cell.split())


def _unseen(text: str) -> str:
    return f'<span class="unseen">{text}</span>'

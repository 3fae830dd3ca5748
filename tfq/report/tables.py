# SPDX-License-Identifier: Apache-2.0
"""What a report is made of, before it is Markdown or HTML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# A table of layers that is shorter than that is read as it stands.
SORTABLE_FROM = 12


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars that a page draws in front of a table's column `before`; the numbers that they show stand in its cells.

    rows: for each row of the table the length of each bar, a fraction of the longest; None draws none. series: what
    each bar belongs to, the number of a model, which is its colour.
    """

    before: int
    title: str
    rows: tuple[tuple[float | None, ...], ...]
    series: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of plain, unescaped text. The first column names the row; `numeric` columns are set flush right.

    notes: what must be read with it, reasons for its dashes first. bars: what a page draws among the columns.
    column_series, row_series: which model a column or a row is about, by its number. bad: (row, column) of cells with a
    bad verdict. totals: how many of the last rows sum up those above. sortable: a page may let the reader sort it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...] = ()
    caption: str = ""
    notes: tuple[str, ...] = ()
    bars: tuple[Bars, ...] = ()
    column_series: Mapping[int, int] = field(default_factory=dict)
    row_series: tuple[int | None, ...] = ()
    bad: frozenset[tuple[int, int]] = frozenset()
    totals: int = 0
    sortable: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.columns}: row {row} has {len(row)} cells")
        for of_rows in (*(bars.rows for bars in self.bars), *([self.row_series] if self.row_series else [])):
            if len(of_rows) != len(self.rows):
                raise ValueError(f"table {self.columns}: {len(of_rows)} rows of bars or series for {len(self.rows)}")

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers; without a word on it all but the first do."""
        return self.numeric[column] if self.numeric else column > 0


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, and what stands under it. `code` is shown verbatim, folded away where the format can.

    key: a word of ours that the page's own links go by. plots: keys of the plots that a page shows with it.
    """

    key: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[str, ...] = ()
    code: str = ""
    code_title: str = ""


class Reasons:
    """Collects why cells are dashes, and tells each reason once with the cells that it holds for."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[str, list[str]]] = {}

    def add(self, what: str, where: str, reason: Any) -> None:
        """Column `what` of row `where` is a dash. `reason` may be None: then it is told that nobody recorded why."""
        text = str(reason) if reason else "the record does not say why"
        rows = self._cells.setdefault(text, {}).setdefault(what, [])
        if where not in rows:
            rows.append(where)

    def notes(self) -> tuple[str, ...]:
        """A sentence a reason: "accuracy, latency of float, PTQ int8: no labels"."""
        notes = []
        for reason, cells in self._cells.items():
            for rows in dict.fromkeys(tuple(rows) for rows in cells.values()):
                columns = [what for what, its_rows in cells.items() if tuple(its_rows) == rows]
                notes.append(f"{', '.join(columns)} of {', '.join(rows)}: {reason}")
        return tuple(notes)


def fractions(values: list[float | None]) -> tuple[float | None, ...]:
    """Each value over the largest of them; None stays None, and all of 0 stays 0."""
    longest = max((value for value in values if value is not None), default=0) or 1
    return tuple(None if value is None else value / longest for value in values)

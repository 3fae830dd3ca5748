# SPDX-License-Identifier: Apache-2.0
"""What a report is made of, before it is Markdown or HTML."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of plain, unescaped text. The first column names the row; `numeric` columns are set flush right.

    notes: what must be read with it, reasons for its dashes first.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...] = ()
    caption: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.columns}: row {row} has {len(row)} cells")

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers; without a word on it all but the first do."""
        return self.numeric[column] if self.numeric else column > 0


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, and what stands under it. `code` is shown verbatim, folded away where the format can."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
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

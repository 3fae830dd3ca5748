# SPDX-License-Identifier: Apache-2.0
"""Rows of cells as lines of a terminal."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A line a row, each column as wide as its widest cell, two spaces between columns, none at a line's end.

    rows: of equally many cells each. left: the first `left` columns are flush left, the others flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]

# SPDX-License-Identifier: Apache-2.0
"""Tables of text for the terminal, and lists of names in messages."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return one line per row; each column is as wide as its widest cell, with two spaces between columns.

    Args:
        rows: Rows with the same number of cells.
        left: The number of left-aligned columns; the others are right-aligned.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return "a, b, c"; for more than `most` names, the first ones and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def alternatives(names: Sequence[str]) -> str:
    """Return "a or b or c", each name once."""
    return " or ".join(dict.fromkeys(names))


_LONGEST_NAME = 200


def shown(name: str) -> str:
    """Return `name` on one line with at most 200 printable characters."""
    cut = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut) or "(no name)"

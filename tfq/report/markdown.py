# SPDX-License-Identifier: Apache-2.0
"""The report as Markdown that is also readable as plain text."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from tfq.report.kinds import kind_of
from tfq.report.record import title_of, warnings_of
from tfq.report.tables import Section, Table
from tfq.report.verdict import STATE_WORDS, Verdict

# Characters that would turn a name into markup, a link or another cell. Underscores inside words are harmless.
_MOST_PADDING = 300
_MARKUP = re.compile(r"([\\`*\[\]|])|(<)|(&)")


def markdown_of(record: Mapping[str, Any]) -> str:
    """Return the whole report, with a newline at the end."""
    kind = kind_of(record)
    view = kind.view(record)
    verdict = kind.verdict(view)
    parts = [f"# {escaped(title_of(record))}", *([_verdict(verdict)] if verdict else [])]
    if messages := warnings_of(view):
        parts.append("## Warnings\n\n" + "\n".join(f"- {escaped(warning)}" for warning in messages))
    parts += [_section(section) for section in kind.sections(view)]
    return "\n\n".join(parts) + "\n"


def _verdict(verdict: Verdict) -> str:
    parts = [f"**{escaped(verdict.headline)}**"]
    if verdict.costs:
        parts.append(f"{escaped(verdict.subject)}:")
        parts.append(
            "\n".join(
                f"- {escaped(cost.name)}: {'; '.join(map(escaped, (cost.value, *cost.details)))}"
                for cost in verdict.costs
            )
        )
    checks = [f"{STATE_WORDS[check.state]}: {check.question}: {check.answer}" for check in verdict.checks]
    if checks:
        parts += ["Checks:", "\n".join(f"- {escaped(check)}" for check in checks)]
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Return `text` so that Markdown shows it literally, in cells of tables too."""
    return _MARKUP.sub(lambda m: f"\\{m[1]}" if m[1] else "&lt;" if m[2] else "&amp;", text)


def _section(section: Section) -> str:
    parts = [f"## {escaped(section.title)}"]
    parts += [escaped(paragraph) for paragraph in section.paragraphs]
    if section.items:
        parts.append("\n".join(f"- {escaped(item)}" for item in section.items))
    if section.links:
        parts.append(", ".join(f"[{escaped(text)}]({quote(path)})" for text, path in section.links))
    parts += [_table(table) for table in section.tables]
    if section.code:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", section.code)), default=0))
        parts.append(f"{fence}json\n{section.code}\n{fence}")
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    rows = [[escaped(cell) for cell in row] for row in (table.columns, *table.rows)]
    # Cells are padded to the width of their column, up to a limit: one long text must not multiply with the rows.
    widths = [min(_MOST_PADDING, max(3, *(len(row[column]) for row in rows))) for column in range(len(table.columns))]
    numeric = [table.is_numeric(column) for column in range(len(widths))]

    def line(row: list[str]) -> str:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        return f"| {' | '.join(cells)} |"

    rule = "|".join(f" {'-' * (w - 1)}: " if n else f" {'-' * w} " for w, n in zip(widths, numeric, strict=True))
    lines = [line(rows[0]), f"|{rule}|", *(line(row) for row in rows[1:])]
    if table.caption:
        lines = [f"{escaped(table.caption)}:", "", *lines]
    if table.notes:
        lines += ["", *(f"- {escaped(note)}" for note in table.notes)]
    return "\n".join(lines)

# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page: no network, light and dark as the reader's system says, whole without its script."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tfq.report.content import sections_of
from tfq.report.formatting import number_of, plain
from tfq.report.plots import Plot, plots_of
from tfq.report.summary import part, title_of, warnings_of
from tfq.report.tables import Section, table_html
from tfq.report.verdict import checks_of, costs_of, headline_of, subject_of

_MARKS = {"good": "✓", "open": "!", "bad": "✗"}
_MANY_WARNINGS = 8

STYLE = Path(__file__).with_name("report.css").read_text()
SCRIPT = Path(__file__).with_name("sort.js").read_text()

_HASH = base64.b64encode(hashlib.sha256(f"\n{SCRIPT}".encode()).digest()).decode()
# Nothing is fetched. Styles are inline, the lengths of bars among them; the one script above may run, and no other.
CONTENT_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"
)


def page_of(record: Mapping[str, Any]) -> str:
    """The whole page. Everything from the record is escaped: names in a model file are its author's, not ours."""
    title = escape(title_of(record))
    sections, plots = sections_of(record), plots_of(record)
    body = [
        f"<header><h1>{title}</h1>{_subtitle(record)}</header>",
        _verdict(record),
        _links(sections),
        "<main>",
        _warnings(warnings_of(record)),
        *(_section(section, plots) for section in sections),
        "</main>",
    ]
    return document(title, "\n".join(part for part in body if part) + f"\n<script>\n{SCRIPT}</script>")


def document(title: str, body: str) -> str:
    """A page of this look. title, body: escaped already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _subtitle(record: Mapping[str, Any]) -> str:
    config, cpu = part(record, "config"), part(record, "cpu")
    source = config.get("data")
    source = source.get("source") if isinstance(source, Mapping) else source
    parts = [
        f"data {plain(source)}" if source else "",
        f"seed {plain(record['seed'])}" if record.get("seed") is not None else "",
        plain(cpu.get("model") or cpu.get("machine") or ""),
    ]
    return f'<p class="subtitle">{escape(" · ".join(part for part in parts if part))}</p>'


def _verdict(record: Mapping[str, Any]) -> str:
    """The first screen: may it be shipped, what did it cost, what was checked."""
    state, headline = headline_of(record)
    costs = "".join(
        f"<div><dt>{escape(cost.name)}</dt><dd>{escape(cost.value)}</dd>"
        f'<dd class="detail">{escape(cost.detail)}</dd></div>'
        for cost in costs_of(record)
    )
    subject = f'<p class="about">{escape(subject_of(record))}</p>' if costs else ""
    checks = "".join(
        f'<li class="{check.state}">{_mark(check.state)}<b>{escape(check.question)}</b>'
        f"<span>{escape(check.answer)}</span></li>"
        for check in checks_of(record)
    )
    tiles = f'{subject}<dl class="tiles">{costs}</dl>' if costs else ""
    return (
        f'<section class="verdict {state}" aria-label="Verdict">'
        f'<p class="headline">{_mark(state)}{escape(headline)}</p>{tiles}'
        f'<ul class="checks">{checks}</ul></section>'
    )


def _mark(state: str) -> str:
    return f'<i class="mark" aria-hidden="true">{_MARKS[state]}</i><span class="unseen">{state}: </span>'


def _links(sections: Sequence[Section]) -> str:
    links = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in sections)
    return f'<nav aria-label="Sections">{links}</nav>'


def _warnings(told: list[str]) -> str:
    if not told:
        return ""
    items = [f"<li>{escape(warning)}</li>" for warning in told]
    listed = f"<ul>{''.join(items[:_MANY_WARNINGS])}</ul>"
    if further := items[_MANY_WARNINGS:]:
        listed += f"<details><summary>{len(further)} more</summary><ul>{''.join(further)}</ul></details>"
    return f'<section class="warnings"><h2>{number_of(len(told), "warning")}</h2>{listed}</section>'


def _section(section: Section, plots: Mapping[str, Plot]) -> str:
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs)
    tables = "".join(table_html(table) for table in section.tables)
    figures = "".join(_figure(plots[key]) for key in section.plots)
    if figures:
        tables = f'<div class="split"><div class="figures">{figures}</div><div>{tables}</div></div>'
    code = ""
    if section.code:
        code = f"<details><summary>{escape(section.code_title)}</summary><pre>{escape(section.code)}</pre></details>"
    heading = f'<h2 id="{section.key}">{escape(section.title)}</h2>'
    return f"<section>{heading}{paragraphs}{tables}{code}</section>"


def _figure(plot: Plot) -> str:
    drawing = plot.svg or '<p class="missing">no plot</p>'
    return f"<figure><h3>{escape(plot.title)}</h3>{drawing}<figcaption>{escape(plot.caption)}</figcaption></figure>"

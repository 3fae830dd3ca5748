# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page without network access. It is light or dark as the system, and works without script."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tfq.report.formatting import number_of
from tfq.report.kinds import kind_of
from tfq.report.plots import Plot
from tfq.report.record import title_of, warnings_of
from tfq.report.tables import Section, table_html
from tfq.report.verdict import STATE_WORDS, Check, Cost, Verdict

_MARKS = {"good": "✓", "open": "!", "bad": "✗"}
_MANY_WARNINGS = 8

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("report.js").read_text(encoding="utf-8")

_HASH = base64.b64encode(hashlib.sha256(f"\n{SCRIPT}".encode()).digest()).decode()
# Nothing is fetched. Inline styles are allowed for the lengths of bars; of scripts only the one above.
# Pictures are in the page.
CONTENT_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


def page_of(record: Mapping[str, Any]) -> str:
    """Return the page. All text from the record is escaped, because names in a model file can be hostile."""
    kind, title = kind_of(record), escape(title_of(record))
    view = kind.view(record)
    sections, plots, verdict = kind.sections(view), kind.plots(view), kind.verdict(view)
    subtitle = f'<p class="subtitle">{escape(kind.subtitle(view))}</p>'
    body = [
        f"<header><h1>{title}</h1>{subtitle}</header>",
        _verdict(verdict) if verdict else "",
        _links(sections),
        "<main>",
        _warnings(warnings_of(view)),
        *(section_html(section, plots) for section in sections),
        "</main>",
    ]
    return document(title, "\n".join(item for item in body if item))


def document(title: str, body: str) -> str:
    """Return a page in the report's style with its script. `title` and `body` must be escaped already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _verdict(verdict: Verdict) -> str:
    """Return the first screen: the verdict, the main numbers, and the checks."""
    state = verdict.state
    costs = "".join(map(_tile, verdict.costs))
    subject = f'<p class="about">{escape(verdict.subject)}</p>' if costs else ""
    tiles = f'{subject}<dl class="tiles">{costs}</dl>' if costs else ""
    checks = f'<ul class="checks">{"".join(map(_check, verdict.checks))}</ul>' if verdict.checks else ""
    return (
        f'<section class="verdict {state}" data-state="{state}" aria-label="Verdict">'
        f'<p class="headline">{_mark(state)}{escape(verdict.headline)}</p>{tiles}{checks}</section>'
    )


def _tile(cost: Cost) -> str:
    details = "".join(f'<dd class="detail">{escape(detail)}</dd>' for detail in cost.details)
    return (
        f'<div data-cost="{cost.key}"><dt>{escape(cost.name)}</dt><dd class="value">{escape(cost.value)}</dd>'
        f"{details}</div>"
    )


def _check(check: Check) -> str:
    return (
        f'<li class="{check.state}" data-check="{check.key}">{_mark(check.state)}<b>{escape(check.question)}</b>'
        f"<span>{escape(check.answer)}</span></li>"
    )


def _mark(state: str) -> str:
    return f'<i class="mark" aria-hidden="true">{_MARKS[state]}</i><span class="unseen">{STATE_WORDS[state]}: </span>'


def _links(sections: Sequence[Section]) -> str:
    links = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in sections)
    return f'<nav aria-label="Sections">{links}</nav>'


def _warnings(messages: Sequence[str]) -> str:
    if not messages:
        return ""
    items = [f"<li>{escape(message)}</li>" for message in messages]
    listed = f"<ul>{''.join(items[:_MANY_WARNINGS])}</ul>"
    if further := items[_MANY_WARNINGS:]:
        listed += f"<details><summary>{len(further)} more</summary><ul>{''.join(further)}</ul></details>"
    return (
        f'<section class="warnings" data-warnings="{len(messages)}"><h2>{number_of(len(messages), "warning")}</h2>'
        f"{listed}</section>"
    )


def section_html(section: Section, plots: Mapping[str, Plot]) -> str:
    """Return a section, folded if it says so. plots: all plots by their keys."""
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs)
    items = "".join(f"<li>{escape(item)}</li>" for item in section.items)
    items = f'<ul data-{section.key}="{len(section.items)}">{items}</ul>' if items else ""
    links = ", ".join(f'<a href="{quote(path)}">{escape(text)}</a>' for text, path in section.links)
    links = f"<p>{links}</p>" if links else ""
    tables = "".join(table_html(table) for table in section.tables)
    figures = "".join(figure_html(key, plots[key]) for key in section.plots)
    figures = f'<div class="figures">{figures}</div>' if figures else ""
    code = ""
    if section.code:
        code = f"<details><summary>{escape(section.code_title)}</summary><pre>{escape(section.code)}</pre></details>"
    heading = f'<h2 id="{section.key}">{escape(section.title)}</h2>'
    content = f"{paragraphs}{items}{links}{tables}{figures}{code}"
    if not section.folded:
        return f"<section>{heading}{content}</section>"
    gist = f'<span class="gist">{escape(section.gist)}</span>' if section.gist else ""
    return f'<details class="section"><summary>{heading}{gist}</summary>{content}</details>'


def figure_html(key: str, plot: Plot) -> str:
    """Return a plot with its title and caption; without a drawing, the caption says why."""
    drawing = plot.svg or '<p class="missing">no plot</p>'
    wide = ' class="wide"' if plot.wide else ""
    return (
        f'<figure{wide} data-plot="{key}"><h3>{escape(plot.title)}</h3>{drawing}'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )

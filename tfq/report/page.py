# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page: no network, no script, light and dark as the reader's system says."""

from collections.abc import Mapping
from html import escape
from typing import Any

from tfq.report.audit_content import findings_text, verdict_of
from tfq.report.content import sections_of, title_of, warnings_of
from tfq.report.formatting import count, is_number, kilobytes, model_label, percent, plain, points, significant
from tfq.report.plots import Plot, plots_of
from tfq.report.style import STYLE
from tfq.report.summary import accuracy_text, evaluation_of, is_share, parity_text
from tfq.report.tables import Section, Table


def page_of(record: Mapping[str, Any]) -> str:
    """The whole page. Everything from the record is escaped: names in a model file are its author's, not ours."""
    title = escape(title_of(record))
    result, *sections = sections_of(record)
    body = [
        f"<header><h1>{title}</h1>{_subtitle(record)}</header>",
        _warnings(warnings_of(record)),
        _tiles(record),
        _section(result),
        _plots(plots_of(record)),
        *(_section(section) for section in sections),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _subtitle(record: Mapping[str, Any]) -> str:
    config = record.get("config") or {}
    source = config.get("data")
    source = source.get("source") if isinstance(source, Mapping) else source
    cpu = record.get("cpu") or {}
    parts = [
        f"data {plain(source)}" if source else "",
        f"seed {plain(record['seed'])}" if record.get("seed") is not None else "",
        plain(cpu.get("model") or cpu.get("machine") or ""),
    ]
    return f'<p class="subtitle">{escape(" · ".join(part for part in parts if part))}</p>'


def _warnings(told: list[str]) -> str:
    if not told:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in told)
    heading = "1 warning" if len(told) == 1 else f"{len(told)} warnings"
    return f'<section class="warnings"><h2>{heading}</h2><ul>{items}</ul></section>'


def _tiles(record: Mapping[str, Any]) -> str:
    """The last model, which the run was for, in four numbers."""
    models = record.get("models") or []
    if len(models) < 2:
        return ""
    model, reference = models[-1], evaluation_of(models[0])
    label, evaluation = model_label(model.get("name", "?")), evaluation_of(model)
    tiles = [_accuracy_tile(evaluation, reference), _size_tile(evaluation, reference)]
    if model.get("audit"):
        tiles.append(_audit_tile(label, model["audit"]))
    tiles += [_parity_tile(runner, parity) for runner, parity in (model.get("parity") or {}).items()]
    cells = "".join(
        f'<div class="tile{" bad" if bad else ""}"><dt>{escape(name)}</dt>'
        f'<dd>{escape(value)}</dd><dd class="detail">{escape(detail)}</dd></div>'
        for name, value, detail, bad in tiles
    )
    against = escape(f"{label} against {model_label(models[0].get('name', '?'))}")
    return f'<section><p class="about">{against}</p><dl class="tiles">{cells}</dl></section>'


def _accuracy_tile(evaluation: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    ours, theirs = evaluation.get("accuracy"), reference.get("accuracy")
    if is_number(ours) and not is_share(evaluation):
        return plain(evaluation["metric"]), f"{ours:.4g}", f"float: {accuracy_text(reference)}", False
    if is_number(ours) and is_number(theirs):
        return "accuracy", percent(ours), f"{points(ours - theirs)} points from {percent(theirs)}", False
    return "agreement", percent(evaluation.get("agreement")), "with the float model's answers", False


def _size_tile(evaluation: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    ours, theirs = evaluation.get("gzip_bytes"), reference.get("gzip_bytes")
    ratio = (
        f"{theirs / ours:.1f}x smaller than {kilobytes(theirs)}"
        if is_number(ours) and is_number(theirs) and ours
        else ""
    )
    return "gzip size", kilobytes(ours), ratio, False


def _audit_tile(label: str, audit: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    return "audit", verdict_of(label, audit), f"findings: {findings_text(audit)}", not audit.get("ok")


def _parity_tile(runner: str, parity: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    name = f"{plain(runner).removeprefix('qemu:')} parity"
    if "not_run" in parity:
        return name, "not run", plain(parity["not_run"]), True
    error = parity.get("max_abs_error_lsb")
    value = "exact" if error == 0 else f"{significant(error)} LSB" if is_number(error) else parity_text(parity)
    return name, value, f"{count(parity.get('num_different'))} of {count(parity.get('compared'))} values differ", False


def _plots(plots: list[Plot]) -> str:
    figures = []
    for plot in plots:
        drawing = plot.svg or '<p class="missing">no plot</p>'
        figures.append(
            f"<figure><h3>{escape(plot.title)}</h3>{drawing}<figcaption>{escape(plot.caption)}</figcaption></figure>"
        )
    return f'<section><h2>Plots</h2><div class="plots">{"".join(figures)}</div></section>'


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
    parts += [_table(table) for table in section.tables]
    if section.code:
        parts.append(
            f"<details><summary>{escape(section.code_title)}</summary><pre>{escape(section.code)}</pre></details>"
        )
    return f"<section>{''.join(parts)}</section>"


def _table(table: Table) -> str:
    def cells(row: tuple[str, ...], tag: str) -> str:
        first = '<th scope="row"{}>{}</th>' if tag == "td" else '<th scope="col"{}>{}</th>'
        other = "<td{}>{}</td>" if tag == "td" else '<th scope="col"{}>{}</th>'
        return "".join(
            (other if column else first).format(' class="number"' if table.is_numeric(column) else "", escape(cell))
            for column, cell in enumerate(row)
        )

    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    rows = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{cells(table.columns, "th")}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>" + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )

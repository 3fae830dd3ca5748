# SPDX-License-Identifier: Apache-2.0
"""Write records with their pages, and rebuild the pages of the records in a folder."""

import json
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tfq.artifacts import decoding, make_out_dir, read_json, shown, write_json, write_text
from tfq.errors import InputError
from tfq.report.formatting import number_of
from tfq.report.kinds import KINDS, check_record, kind_of
from tfq.report.markdown import markdown_of
from tfq.report.page import document, page_of
from tfq.report.record import title_of
from tfq.report.verdict import STATE_WORDS

_EXPECTED = "a record that tfq wrote"
_SUFFIXES = (".md", ".html")
_MAX_RECORDS = 1000
INDEX = "index.html"


def write_report(record: Mapping[str, Any], out_dir: str | os.PathLike[str]) -> list[Path]:
    """Write the record of a command as JSON, Markdown and HTML, such as evaluate.json, evaluate.md and evaluate.html.

    The same record gives the same bytes. Parts that the record does not have are omitted or reported as missing.

    Args:
        record: See docs/records.md.
        out_dir: The directory for the files; it is created if it does not exist.

    Returns:
        The three paths; only that of the JSON file if no kind is registered for the command.

    Raises:
        InputError: `out_dir` cannot be written to.
        TfqError: Writing fails, or the record contains NaN or infinity.
    """
    out, command = make_out_dir(out_dir), record.get("command", "run")
    if command not in KINDS:
        return [write_json(out / f"{command}.json", record)]
    path = write_json(out / kind_of(record).file, record)
    # `build_report` has only the JSON values, in which tuples are lists.
    values = json.loads(json.dumps(record))
    return [
        path,
        write_text(path.with_suffix(".md"), markdown_of(values)),
        write_text(path.with_suffix(".html"), page_of(values)),
    ]


def build_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> list[Path]:
    """Rebuild the pages of all records in a folder from these JSON files alone.

    The pages have the same bytes as those that the commands wrote, if the versions of tfq and matplotlib are the same.
    Two or more records also get an index.html with links to all of their pages. JSON files that are not records, such
    as calibrated ranges, are skipped.

    Examples:
        >>> tfq.build_report("out/run")

    Args:
        folder: The folder, or the path of a single record.
        out: The directory for the pages; None writes them next to the records.

    Returns:
        The paths of the pages, with the index last.

    Raises:
        InputError: There is no such folder, it has no record, or a record is damaged or of another version of tfq. The
            message names each of these files. The pages of the others are written before.
        TfqError: Writing fails.
    """
    source, is_folder = Path(folder), os.path.isdir(folder)
    paths = _json_files(source) if is_folder else [source]
    target = make_out_dir(out or (source if is_folder else source.parent))
    pages: list[Path] = []
    titles: dict[str, tuple[str, str]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            if (texts := _pages_of(path, is_named=path == source)) is None:
                continue
        except InputError as error:
            problems.append(str(error))
            continue
        *contents, titles[path.stem] = texts
        pages += [
            write_text(target / f"{path.stem}{suffix}", text) for suffix, text in zip(_SUFFIXES, contents, strict=True)
        ]
    if len(titles) > 1:
        pages.append(write_text(target / INDEX, _index(titles)))
    if problems:
        raise InputError(
            f"{number_of(len(problems), 'record')} cannot be shown; pages were built of "
            f"{number_of(len(titles), 'other')}: {'; '.join(problems)}",
            field="report.folder",
            expected=_EXPECTED,
            got=tuple(problems),
        )
    if not pages:
        raise InputError(
            f"{shown(folder)} has no record: expected JSON files such as {KINDS['run'].file} or "
            f"{KINDS['evaluate'].file}. Choose the output directory of a command",
            field="report.folder",
            expected=_EXPECTED,
            got=str(folder),
        )
    return pages


def _json_files(folder: Path) -> list[Path]:
    """Return the JSON files directly in a folder, by name.

    Raises:
        InputError: The folder cannot be read, or it has too many of them.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise InputError(
            f"{shown(folder)} cannot be read: {error.strerror}. Choose another directory",
            field="report.folder",
            expected="a directory",
            got=str(folder),
        ) from error
    if len(paths) > _MAX_RECORDS:
        raise InputError(
            f"{shown(folder)} has {len(paths):,} JSON files: expected at most {_MAX_RECORDS:,}. Name one of them",
            field="report.folder",
            expected=_MAX_RECORDS,
            got=len(paths),
        )
    return paths


def _pages_of(path: Path, *, is_named: bool) -> tuple[str, str, tuple[str, str]] | None:
    """Return the Markdown and the HTML page of a record, and its entry in the index; None for other JSON files.

    Args:
        path: A JSON file.
        is_named: Whether the user named this file, which must be a record then.

    Raises:
        InputError: The file cannot be read, or it is a record whose pages cannot be built. The message names it.
    """
    record = read_json(path, field="report.folder")
    is_record = isinstance(record, Mapping) and {"schema_version", "command"} <= set(record)
    if not (is_record or is_named or path.name in {kind.file for kind in KINDS.values()}):
        return None
    kind = check_record(record, shown(path))
    # A damaged record can have any JSON value in any place.
    with decoding(path, _EXPECTED, field="report.folder"):
        verdict = kind.verdict(kind.view(record))
        headline = f"{STATE_WORDS[verdict.state]}: {verdict.headline}" if verdict else ""
        return markdown_of(record), page_of(record), (title_of(record), headline or kind.help)


def _index(titles: Mapping[str, tuple[str, str]]) -> str:
    """Return the page that links to the pages of a folder.

    Args:
        titles: Stem of the files -> (title, its verdict; without one, what the record has).
    """
    items = "".join(
        f'<tr><th scope="row"><a href="{quote(os.fsencode(f"{stem}.html"))}">{escape(title)}</a></th>'
        f'<td>{escape(what)}</td><td><a href="{quote(os.fsencode(f"{stem}.md"))}">Markdown</a></td></tr>'
        for stem, (title, what) in titles.items()
    )
    table = f'<div class="scroll"><table><tbody>{items}</tbody></table></div>'
    return document("tfq report", f"<header><h1>tfq report</h1></header><main>{table}</main>")

# SPDX-License-Identifier: Apache-2.0
"""The kinds of records: for each command that writes one, the content of its pages.

A module of this package registers the kinds whose content it defines. The commands and `tfq report` both use them, so
that a page can be rebuilt from its record alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.errors import InputError, did_you_mean
from tfq.provenance import SCHEMA_VERSION
from tfq.report.plots import Plot
from tfq.report.record import Record
from tfq.report.tables import Section
from tfq.report.verdict import Verdict, verdict_of_requirements


def _no_plots(record: Record) -> Mapping[str, Plot]:
    return {}


def _no_subtitle(record: Record) -> str:
    return ""


def _unchanged(record: Record) -> Record:
    return record


@dataclass(frozen=True, kw_only=True)
class RecordKind:
    """The records of one command, and what their pages show.

    Attributes:
        command: The name in the record's `command`.
        help: One line that says what the record has, for the index of a folder's pages.
        needs: Keys that such a record has, with the types of their values. A record with none of them is refused.
        stem: The name of the command's files in the output directory, without suffix: "evaluate" for evaluate.json.
        view: (record) -> the record in the form that the following functions read. Records of single commands are
            brought into the form of a run's record, so that both share the functions for their sections.
        sections: (view) -> the sections of the pages.
        plots: (view) -> the plots that the sections name.
        verdict: (view) -> the verdict, or None.
        subtitle: (view) -> one line below the title.
    """

    command: str
    help: str
    needs: Mapping[str, type]
    sections: Callable[[Record], Sequence[Section]]
    stem: str = ""
    view: Callable[[Record], Record] = _unchanged
    plots: Callable[[Record], Mapping[str, Plot]] = _no_plots
    verdict: Callable[[Record], Verdict | None] = verdict_of_requirements
    subtitle: Callable[[Record], str] = _no_subtitle

    @property
    def file(self) -> str:
        """The name of the record's file."""
        return f"{self.stem or self.command}.json"


KINDS: dict[str, RecordKind] = {}


def register(kind: RecordKind) -> RecordKind:
    """Add a kind of record to `KINDS`."""
    KINDS[kind.command] = kind
    return kind


def kind_of(record: Record) -> RecordKind:
    """Return the kind of a record. One without `command` is that of a run."""
    return KINDS[record.get("command", "run")]


def check_record(record: Any, where: str) -> RecordKind:
    """Return the kind of a record that was read from a file.

    Args:
        record: The JSON value.
        where: The file, for the errors.

    Raises:
        InputError: It is not a record, it has another schema version, or it is of an unknown kind.
    """
    if not isinstance(record, Mapping) or "schema_version" not in record or "command" not in record:
        raise InputError(
            f"{where} is not a record of tfq: expected a JSON object with schema_version and command",
            field="report.folder",
            expected="a record",
            got=type(record).__name__,
        )
    version, command = record["schema_version"], record["command"]
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise InputError(
            f"{where} has schema_version {version!r:.40}, expected {SCHEMA_VERSION}. Build its pages with the version "
            "of tfq that wrote it, or run the command again",
            field="report.folder",
            expected=SCHEMA_VERSION,
            got=version,
        )
    if not isinstance(command, str) or command not in KINDS:
        raise InputError(
            f"{where} is a record of the command {command!r:.40}, which this version of tfq does not know: "
            f"{did_you_mean(str(command)[:40], KINDS)}",
            field="report.folder",
            expected=tuple(KINDS),
            got=command,
        )
    kind = KINDS[command]
    if not any(isinstance(record.get(key), expected) for key, expected in kind.needs.items()):
        raise InputError(
            f"{where} has no {' or '.join(map(repr, kind.needs))} of the right type, which every record of tfq "
            f"{command} has: the file is damaged. Run the command again",
            field="report.folder",
            expected=tuple(kind.needs),
            got=tuple(record)[:20],
        )
    return kind

# SPDX-License-Identifier: Apache-2.0
"""Tell what a file is that the user wants to compare: a .tflite, or a record that tfq wrote."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tfq import artifacts, tflite
from tfq.comparison.gate_inputs import check_is_gated
from tfq.config.base import Config
from tfq.errors import FlatbufferError, InputError
from tfq.provenance import SCHEMA_VERSION

EXPECTED = "a .tflite file or a record that tfq wrote, such as evaluate.json"
# First bytes -> what starts with them.
_OTHER_FILES = {
    b"PK\x03\x04": "a ZIP archive, such as a .keras file",
    b"\x89HDF": "an HDF5 file",
    b"<!DO": "an HTML page: pass the .json record next to it",
}
_IDENTIFIER_AT = slice(4, 8)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A file to compare: exactly one of `flatbuffer` and `record` is set.

    Attributes:
        path: The path of the file.
        flatbuffer: The bytes of a .tflite whose structure has been checked.
        record: The JSON object of a record that a command of tfq wrote. Its `command` is a string; nothing else has
            been checked.
    """

    path: str
    flatbuffer: bytes | None = None
    record: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The kind of the file, for messages: "a .tflite file", "a record of tfq evaluate"."""
        return "a .tflite file" if self.record is None else f"a record of tfq {self.record['command']}"


def read_subject(path: str | os.PathLike[str], field: str) -> Subject:
    """Read a .tflite file or a record.

    Args:
        path: The file.
        field: The config path that names it, for errors.

    Raises:
        InputError: The path is empty, the file cannot be read, or it is neither of them.
        FlatbufferError: The file is a damaged .tflite.
    """
    if not os.fspath(path):
        raise InputError(
            f"{field} is missing: name two files, A and B. Expected {EXPECTED}", field=field, expected=EXPECTED, got=""
        )
    content = artifacts.read_bytes(path, EXPECTED, field=field)
    shown = artifacts.shown(path)
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return Subject(path=str(path), record=_checked_record(artifacts.read_json(path, field=field), shown, field))
    other = next((what for start, what in _OTHER_FILES.items() if content.startswith(start)), None)
    if other and content[_IDENTIFIER_AT] != b"TFL3":
        raise InputError(f"{shown} is {other}: expected {EXPECTED}", field=field, expected=EXPECTED, got=other)
    try:
        tflite.read(content)
    except FlatbufferError as error:
        raise FlatbufferError(f"{shown}: {error}", field=field, expected=error.expected, got=error.got) from error
    return Subject(path=str(path), flatbuffer=content)


def _checked_record(value: Any, shown: str, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("command"), str):
        raise InputError(
            f"{shown} is JSON, but not a record: it has no key 'command'. Expected {EXPECTED}",
            field=field,
            expected=EXPECTED,
            got="JSON without a command",
        )
    version = value.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{shown}: the record has schema_version {version!r}, expected {SCHEMA_VERSION}. Run the command again "
            "with this version of tfq",
            field=field,
            expected=SCHEMA_VERSION,
            got=version,
        )
    return value


def check_same_kind(reference: Subject, model: Subject) -> None:
    """Check that both files are flatbuffers, or records of the same command that can be compared.

    Raises:
        InputError: They are not.
    """
    if reference.kind != model.kind:
        raise InputError(
            f"{artifacts.shown(reference.path)} is {reference.kind} and {artifacts.shown(model.path)} is "
            f"{model.kind}: expected two .tflite files, or two records of the same command",
            field="comparison.reference",
            expected=model.kind,
            got=reference.kind,
        )
    if model.record is not None:
        check_is_gated(model.record["command"], artifacts.shown(model.path), "model")


def check_unset(settings: Config, names: Iterable[str], reason: str, section: str = "comparison") -> None:
    """Check that settings that the named files do not use have their defaults.

    Args:
        settings: The settings.
        names: The fields that are not used.
        reason: Why, for the error.
        section: The config path of `settings`.

    Raises:
        InputError: One of them was set.
    """
    defaults = type(settings)()
    for name in names:
        value, default = getattr(settings, name), getattr(defaults, name)
        if isinstance(value, Config):
            check_unset(value, vars(value), reason, f"{section}.{name}")
        elif value != default:
            message = f"{section}.{name} has no effect here: {reason}"
            raise InputError(message, field=f"{section}.{name}", expected=default, got=value)

# SPDX-License-Identifier: Apache-2.0
"""Compare the metadata entries of two files, their descriptions, and the files that are stored after them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfq.artifacts import sha256
from tfq.comparison.change import Change, field_changes, flattened
from tfq.errors import FlatbufferError
from tfq.tflite import Model, associated_files, decode_model_metadata
from tfq.tflite.metadata import METADATA_NAME, decode_metadata
from tfq.tflite.model_metadata import TFLITE_METADATA

_LONGEST_ENTRY, _MOST_LINES = 100, 20


def metadata_changes(contents: tuple[bytes, bytes], models: tuple[Model, Model]) -> Iterator[Change]:
    """Yield the differences in the metadata entries and in the description."""
    yield from field_changes("metadata", "file", *({"description": model.description} for model in models))
    entries = [
        {name: content[start : start + size] for name, (start, size) in model.metadata.items()}
        for content, model in zip(contents, models, strict=True)
    ]
    yield from _content_changes("metadata", entries, _entry_changes)


def _content_changes(
    part: str,
    contents: Sequence[Mapping[str, bytes]],
    compare: Callable[[str, bytes, bytes], Iterator[Change]],
) -> Iterator[Change]:
    """Yield what only one of two mappings has; `compare` yields the differences of what both have."""
    for name in dict.fromkeys(itertools.chain(*contents)):
        ours, theirs = (content.get(name) for content in contents)
        if ours is None or theirs is None:
            what = "removed" if theirs is None else "added"
            yield Change(part=part, where=name, what=what, reference=_shown(ours), model=_shown(theirs))
        elif ours != theirs:
            yield from compare(name, ours, theirs)


def _entry_changes(name: str, ours: bytes, theirs: bytes) -> Iterator[Change]:
    """Yield the fields that differ; for an entry that cannot be decoded completely, its bytes."""
    decode = _DECODERS.get(name)
    try:
        decoded = [decode(content) for content in (ours, theirs)] if decode else []
    except FlatbufferError:
        decoded = []
    changes = field_changes("metadata", name, *(flattened(fields) for fields, _ in decoded)) if decoded else []
    yield from changes
    if not changes and not (decoded and all(is_complete for _, is_complete in decoded)):
        yield Change(part="metadata", where=name, what="content", reference=_shown(ours), model=_shown(theirs))


def _tflite_metadata(content: bytes) -> tuple[dict[str, Any], bool]:
    metadata = decode_model_metadata(content)
    return metadata.to_dict(), not metadata.losses


# Entry -> function that returns its fields, and whether they are everything in it.
_DECODERS: dict[str, Callable[[bytes], tuple[dict[str, Any], bool]]] = {
    METADATA_NAME: lambda content: (decode_metadata(content), True),
    TFLITE_METADATA: _tflite_metadata,
}


def _shown(content: bytes | None) -> str | None:
    """Return a short entry that is text as text; otherwise its size and hash."""
    if content is None:
        return None
    text = content.rstrip(b"\0")
    if len(text) <= _LONGEST_ENTRY and text.isascii() and text.decode().isprintable():
        return text.decode()
    return f"{len(content)} bytes, SHA-256 {sha256(content)[:12]}"


def file_changes(contents: tuple[bytes, bytes]) -> Iterator[Change]:
    """Yield the differences in the files after the flatbuffers; of text, the lines that differ, such as labels."""
    files = [associated_files(content) for content in contents]
    yield from _content_changes("files", files, _line_changes)


def _line_changes(name: str, ours: bytes, theirs: bytes) -> Iterator[Change]:
    try:
        lines = ours.decode().splitlines(), theirs.decode().splitlines()
    except UnicodeDecodeError:
        lines = ([], [])
    pairs: list[Any] = list(enumerate(itertools.zip_longest(*lines), start=1))
    changed = [(number, pair) for number, pair in pairs if pair[0] != pair[1]]
    for number, pair in changed[:_MOST_LINES]:
        yield Change(part="files", where=name, what=f"line {number}", reference=pair[0], model=pair[1])
    if len(changed) > _MOST_LINES:
        count = len(changed) - _MOST_LINES
        yield Change(part="files", where=name, what="further lines that differ", reference=None, model=count)
    if not changed:
        yield Change(part="files", where=name, what="content", reference=_shown(ours), model=_shown(theirs))

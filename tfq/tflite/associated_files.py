# SPDX-License-Identifier: Apache-2.0
"""Files that a `.tflite` carries after the flatbuffer, as a ZIP archive: labels, vocabularies.

The metadata entry TFLITE_METADATA names them. Packing a flatbuffer again writes only the flatbuffer, so the editing
functions append the files again.
"""

import io
import lzma
import zipfile
import zlib
from collections.abc import Mapping

from tfq.errors import InputError, warn

_MOST_FILES, _MOST_BYTES, _LONGEST_NAME = 100, 1 << 26, 255
# The earliest date that ZIP can express: equal files give equal bytes.
_DATE = (1980, 1, 1, 0, 0, 0)
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, OSError, EOFError),
    *(ValueError, OverflowError, KeyError),
)


def associated_files(source: bytes) -> dict[str, bytes]:
    """Return the name and content of each file after the flatbuffer; `source` may be untrusted.

    Files that cannot be read, are unreasonably many or large, or have an unsafe name, are left out with a TfqWarning.
    """
    if not zipfile.is_zipfile(io.BytesIO(source)):
        return {}
    try:
        with zipfile.ZipFile(io.BytesIO(source)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if len(entries) > _MOST_FILES or size > _MOST_BYTES:
                raise zipfile.BadZipFile(f"{len(entries)} files of {size:,} bytes")
            files = [(entry.filename, archive.read(entry)) for entry in entries]
    except _DAMAGE as error:
        warn(f"model: the files after the flatbuffer (labels) are left out, because they cannot be read: {error}")
        return {}
    results: dict[str, bytes] = {}
    for name, content in files:
        reason = "its name occurs twice" if name in results else _fault(name)
        if reason:
            warn(f"model: the file {name[:100]!a} after the flatbuffer is left out, because {reason}")
        else:
            results[name] = content
    return results


def append_files(data: bytes, files: Mapping[str, bytes]) -> bytes:
    """Return a flatbuffer with `files` after it, sorted by name; the same files give the same bytes.

    Args:
        data: A flatbuffer with no files after it.
        files: Name -> content.

    Raises:
        InputError: A name is unsafe, such as one with a folder, or the files are unreasonably many or large.
    """
    if not files:
        return data
    for name in files:
        if reason := _fault(name):
            raise InputError(
                f"associated file {name!r}: {reason}. Use a plain name, such as labels.txt",
                field="files",
                expected="a plain file name",
                got=name,
            )
    size = sum(map(len, files.values()))
    if len(files) > _MOST_FILES or size > _MOST_BYTES:
        raise InputError(
            f"associated files: expected at most {_MOST_FILES} files of {_MOST_BYTES:,} bytes together, got "
            f"{len(files)} of {size:,} bytes",
            field="files",
            expected=(_MOST_FILES, _MOST_BYTES),
            got=(len(files), size),
        )
    result = io.BytesIO(data)
    with zipfile.ZipFile(result, "a", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _DATE), files[name])
    return result.getvalue()


def with_associated_files(data: bytes, source: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return `data` with the associated files of `source` after it, and their names; `source` may be untrusted.

    Files that `data` already has stay as they are. Files that cannot be copied are left out with a TfqWarning.
    """
    if zipfile.is_zipfile(io.BytesIO(data)):
        return data, tuple(associated_files(data))
    files = associated_files(source)
    return append_files(data, files), tuple(sorted(files))


def _fault(name: str) -> str:
    """Return why a file must not have this name, or an empty string."""
    if not name or len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        return f"its name is empty or longer than {_LONGEST_NAME} bytes"
    if "/" in name or "\\" in name or name in (".", ".."):
        return "its name has a folder"
    if not name.isprintable() or ":" in name:
        return "its name has control characters or a colon"
    return ""

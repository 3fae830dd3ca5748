# SPDX-License-Identifier: Apache-2.0
"""Write a folder of files completely or not at all, and the same files as a .zip that is equal for equal content."""

import contextlib
import io
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tfq import artifacts
from tfq.errors import InputError, TfqError

# The first date that a ZIP archive can hold. With real dates, equal bundles would differ.
_DATE = (1980, 1, 1, 0, 0, 0)


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target`, which replaces it when the block ends without an error.

    Raises:
        TfqError: A write fails, for example because the disk is full. `target` is unchanged then.
    """
    token = secrets.token_hex(8)
    fresh = target.with_name(f"{artifacts.temporary_prefix()}{target.name}.{token}")
    old = target.with_name(f"{artifacts.temporary_prefix()}{target.name}.{token}.old")
    try:
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        artifacts.sync_directory(target.parent)
    except OSError as error:
        raise TfqError(f"cannot write {target}: {error.strerror or error}", got=error.strerror) from error
    finally:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, {path in the folder: content}, and make them durable.

    Raises:
        TfqError: A write fails.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_bytes(path, content)


def check_replaceable(folder: Path, mark: str) -> None:
    """Check that `folder` does not exist, is empty, or is a bundle, which has the file `mark`.

    Raises:
        InputError: It is something else, which must not be overwritten.
    """
    if not os.path.lexists(folder):
        return
    is_folder = folder.is_dir() and not folder.is_symlink()
    if is_folder and ((folder / mark).is_file() or not any(folder.iterdir())):
        return
    raise InputError(
        f"out: {artifacts.shown(folder)} exists and is not a bundle that tfq wrote: choose another directory, or move "
        "it away",
        field="out",
        expected="no such folder, or a bundle",
        got=str(folder),
    )


def zip_bytes(files: Mapping[str, bytes], folder: str) -> bytes:
    """Return a ZIP archive of files, {path: content}, in a folder of this name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    return stream.getvalue()

# SPDX-License-Identifier: Apache-2.0
"""Write a folder of files completely or not at all, and the same files as a .zip that is equal for equal content."""

import contextlib
import io
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tfq import artifacts
from tfq.errors import InputError, TfqError

# The first date that a ZIP archive can hold. With real dates, equal bundles would differ.
_DATE = (1980, 1, 1, 0, 0, 0)
MANIFEST_FILE = "files.json"


@contextlib.contextmanager
def staged_folder(target: Path, keep: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield an empty folder next to `target`, which replaces it when the block ends without an error.

    Args:
        target: The folder to replace.
        keep: Files and folders in `target`, relative to it, that the new folder gets too: those of the user.

    Raises:
        TfqError: A write fails, for example because the disk is full. `target` is unchanged then.
    """
    fresh = target.with_name(f"{artifacts.temporary_prefix()}{target.name}.{secrets.token_hex(8)}")
    # `artifacts.sweep` does not delete it, so that a process that is killed between two renames loses nothing.
    old = target.with_name(f".{target.name}.old")
    try:
        _restore(target, old)
        fresh.mkdir()
        yield fresh
        for path in keep:
            _copy(target / path, fresh / path)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        artifacts.sync_directory(target.parent)
    except OSError as error:
        raise TfqError(f"cannot write {target}: {error.strerror or error}", got=error.strerror) from error
    finally:
        with contextlib.suppress(OSError):
            _restore(target, old)
        shutil.rmtree(fresh, ignore_errors=True)


def _restore(target: Path, old: Path) -> None:
    """Rename `old` back if it was not replaced, or delete it if it was."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, link or folder, unless there is one."""
    if os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, {path in the folder: content}, and make them durable.

    Raises:
        TfqError: A write fails.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_bytes(path, content)


def manifest(files: Mapping[str, bytes]) -> bytes:
    """Return the content of MANIFEST_FILE: {path in the bundle: SHA-256} of the files that tfq wrote."""
    hashes = {name: artifacts.sha256(content) for name, content in sorted(files.items())}
    return (json.dumps(hashes, indent=2) + "\n").encode()


def replaceable(folder: Path) -> list[Path]:
    """Return the paths of the user in a bundle that will be replaced, relative to it.

    Raises:
        InputError: `folder`, or the archive next to it, was not written by tfq or has been changed since then.
    """
    archive = folder.with_suffix(".zip")
    if os.path.lexists(archive) and not _is_archive(archive, folder.name):
        raise _foreign(archive, "exists and is not the archive of a bundle that tfq wrote")
    if not os.path.lexists(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        raise _foreign(folder, "exists and is not a folder")
    if not any(folder.iterdir()):
        return []
    hashes = _hashes(folder)
    if hashes is None:
        raise _foreign(folder, "exists and is not a bundle that tfq wrote")
    for name, expected in hashes.items():
        path = folder / name
        if path.is_file() and artifacts.sha256_file(path) != expected:
            raise _foreign(path, "was changed after tfq wrote it")
    return _unlisted(folder, {Path(name) for name in (*hashes, MANIFEST_FILE)})


def _hashes(folder: Path) -> dict[str, str] | None:
    try:
        hashes = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_manifest = isinstance(hashes, dict) and all(isinstance(value, str) for value in hashes.values())
    return hashes if is_manifest else None


def _unlisted(folder: Path, listed: set[Path]) -> list[Path]:
    """Return the files that are not in `listed`, and the folders without any that is."""
    folders = {parent for path in listed for parent in path.parents}
    paths: list[Path] = []
    for parent in sorted(folders):
        if (folder / parent).is_dir():
            paths += [path.relative_to(folder) for path in (folder / parent).iterdir()]
    return sorted(path for path in paths if path not in listed and path not in folders)


def _is_archive(path: Path, folder: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{folder}/{MANIFEST_FILE}" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def _foreign(path: Path, problem: str) -> InputError:
    return InputError(
        f"out: {artifacts.shown(path)} {problem}: choose another directory, or move it away",
        field="out",
        expected="no such path, or a bundle",
        got=str(path),
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

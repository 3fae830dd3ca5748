# SPDX-License-Identifier: Apache-2.0
"""Temporary directories that are removed when a run ends, or by a later run if the process was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tfq.errors import BackendError

PREFIX = "tfq-run-"
OWNER = ".owner"
# The creator of a younger directory may not have locked it yet.
MIN_AGE_SECS = 60


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Provide a new temporary directory, and remove it at the end.

    The process holds a lock on a file inside. The operating system releases it even if the process is killed, so a
    later run recognizes an abandoned directory by its missing lock, and removes it.

    Raises:
        BackendError: The directory cannot be created.
    """
    base = Path(tempfile.gettempdir())
    _sweep(base)
    try:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    except OSError as error:
        raise write_error(base, "a directory", error) from error
    lock = -1
    try:
        try:
            lock = os.open(directory / OWNER, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise write_error(base, "a file", error) from error
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def write_error(base: Path, what: str, error: OSError) -> BackendError:
    """Return the error to raise after a failed write of `what` below `base`."""
    return BackendError(
        f"cannot write {what} below {base}: {error.strerror or error}. Free disk space there, or set TMPDIR to a "
        "directory with more space",
        got=error.strerror,
    )


def _sweep(base: Path) -> None:
    """Remove the directories of this user's killed runs, as far as possible."""
    with contextlib.suppress(OSError):
        for directory in base.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove_if_abandoned(directory)


def _remove_if_abandoned(directory: Path) -> None:
    status = directory.lstat()
    if status.st_uid != os.getuid() or time.time() - status.st_mtime < MIN_AGE_SECS:
        return
    if not (directory / OWNER).exists():
        directory.rmdir()  # the process was killed before it created the lock, so the directory is empty
        return
    lock = os.open(directory / OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)

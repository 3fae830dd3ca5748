# SPDX-License-Identifier: Apache-2.0
"""Temporary directories that do not stay: gone when a run ends, swept by a later one when its process was killed."""

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
# A directory that young may be about to be locked by who made it.
SETTLED_SECS = 60


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory of this run alone below the one for temporary files, which is removed at the end.

    Its owner holds a lock inside, which the system takes away however the owner ends: what lies there unlocked is
    nobody's, and goes with the next run. Raises BackendError where no directory can be made.
    """
    base = Path(tempfile.gettempdir())
    _sweep(base)
    try:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    except OSError as error:
        raise no_room(base, "a directory", error) from error
    lock = -1
    try:
        try:
            lock = os.open(directory / OWNER, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise no_room(base, "a file", error) from error
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def no_room(base: Path, what: str, error: OSError) -> BackendError:
    """The error of a write below `base` that failed."""
    return BackendError(
        f"cannot write {what} below {base}: {error.strerror or error}: make room there, or set TMPDIR to a directory "
        "that has it",
        got=error.strerror,
    )


def _sweep(base: Path) -> None:
    """Remove what killed runs of this user have left. Whatever cannot be is left to who can."""
    with contextlib.suppress(OSError):
        for directory in base.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove_if_ownerless(directory)


def _remove_if_ownerless(directory: Path) -> None:
    status = directory.lstat()
    if status.st_uid != os.getuid() or time.time() - status.st_mtime < SETTLED_SECS:
        return
    if not (directory / OWNER).exists():
        directory.rmdir()  # killed before it had a lock: there is nothing in it
        return
    lock = os.open(directory / OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)

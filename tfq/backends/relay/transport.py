# SPDX-License-Identifier: Apache-2.0
"""A way to run commands on a board: what each transport provides, and how a script is run with it."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tfq.errors import BackendError

MAX_OUTPUT = 1 << 16


class Transport(Protocol):
    """A way to run commands on a board.

    Attributes:
        name: Name for messages. It must not identify the board, because messages may enter a record.
        base: Folder for tfq's files on the board; "" for the user's cache there.
    """

    name: str
    base: str

    def shell(self, script: str) -> Sequence[str]:
        """Return the command that runs a script with `sh` on the board. Its stdin and stdout are the script's."""

    @property
    def push(self) -> Callable[[Path, str], Sequence[str]] | None:
        """(folder of this machine, folder of the board) -> the command that copies the first one into the second one.

        None if there is none. Then the board needs tar, gzip and sha256sum to receive the runtime.
        """

    def explain(self, status: int, stderr: str) -> BackendError:
        """Return the error for a command that ended too early. A `LostConnectionError` may be tried again."""


def run_script(
    transport: Transport, script: str, *, secs: float, stdin: int = subprocess.DEVNULL
) -> tuple[int, bytes, str]:
    """Run a script on a board, and return its exit code, stdout and stderr.

    Raises:
        OSError: The transport's program cannot be started.
        subprocess.TimeoutExpired: The script did not end within `secs` seconds.
    """
    # Files instead of pipes: a process that ssh keeps in the background would hold a pipe open.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        status = subprocess.run(transport.shell(script), stdin=stdin, stdout=stdout, stderr=stderr, timeout=secs)
        stdout.seek(0)
        stderr.seek(0)
        return status.returncode, stdout.read(MAX_OUTPUT), stderr.read(MAX_OUTPUT).decode(errors="replace")


def last_lines(text: str) -> str:
    """Return the last lines of a board's stderr for a message, without the names of home folders, which are users'."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"/home/[^/\s:'\"]+", "~", " | ".join(lines[-3:]))

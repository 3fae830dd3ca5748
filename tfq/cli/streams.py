# SPDX-License-Identifier: Apache-2.0
"""Standard streams that never end a command: closed streams, readers that have ended, encodings without Unicode."""

import errno
import io
import os
import sys
from typing import TextIO

# The reader has ended (`| head`), the descriptor was closed, the terminal is gone.
_READER_GONE = {errno.EPIPE, errno.EBADF, errno.EIO, errno.ENOTCONN, errno.ECONNRESET}
_closed_at_start: set[int] = set()


class _LastingFile(io.FileIO):
    """A file descriptor whose output is dropped once nobody can read it. Other errors, such as a full disk, are raised.

    Attributes:
        drops_all: Whether every error drops the output.
    """

    drops_all = False

    def write(self, data: object) -> int:
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in _READER_GONE and not self.drops_all:
                raise
        drop(self.fileno())
        return len(memoryview(data))  # type: ignore[arg-type]


def prepare() -> None:
    """Make this process's standard streams safe to write to for the whole command. A second call changes nothing.

    - Descriptors 0, 1 and 2 that are closed become /dev/null: otherwise the next file that is opened would get their
      number, and output would go into it.
    - Output whose reader has ended is dropped, and the command continues.
    - Characters that the encoding of the stream does not have are written as escapes.

    Streams that were replaced, by a notebook or a test, stay as they are.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _closed_at_start.add(descriptor)
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdout is sys.__stdout__ and not _is_prepared(sys.stdout):
        sys.stdout = sys.__stdout__ = _lasting(1, sys.stdout, drops_all=False)  # type: ignore[misc]
    if sys.stderr is sys.__stderr__ and not _is_prepared(sys.stderr):
        sys.stderr = sys.__stderr__ = _lasting(2, sys.stderr, drops_all=True)  # type: ignore[misc]


def drop(descriptor: int) -> None:
    """Discard everything that is written to `descriptor` from now on, including what its stream still buffers."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, descriptor)
    os.close(sink)


def stdout_was_closed() -> bool:
    """Return whether this process was started with a closed standard output."""
    return 1 in _closed_at_start


def lasting_stderr(descriptor: int) -> TextIO:
    """Return a text stream that writes to `descriptor`, owns it, and never fails."""
    return _lasting(descriptor, None, drops_all=True, owned=True)


def _is_prepared(stream: TextIO | None) -> bool:
    return isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _LastingFile)


def _lasting(descriptor: int, replaced: TextIO | None, *, drops_all: bool, owned: bool = False) -> io.TextIOWrapper:
    encoding = "utf-8"
    if replaced is not None:
        replaced.flush()
        encoding = replaced.encoding or encoding
    raw = _LastingFile(descriptor, "wb", closefd=owned)
    raw.drops_all = drops_all
    is_live = drops_all or os.isatty(descriptor)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=is_live)

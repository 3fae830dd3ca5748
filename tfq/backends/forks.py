# SPDX-License-Identifier: Apache-2.0
"""Children that are there at once: forked by a process of ours that has NumPy and the interpreter imported already.

It is started with the first run, or before it, and ends with this process. Where it cannot be had, children are started
afresh.
"""

import atexit
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from tfq.backends.child import TARGET, Child, start_process

# Not `child.TARGET` as it may be then: a server knows no other target than its own.
_TARGET = str(TARGET)
_STATUS = struct.Struct("<i")
_lock = threading.Lock()
_server: "tuple[subprocess.Popen, socket.socket] | None" = None


class ForkedChild:
    """A child of the server's, as `subprocess.Popen` shows one."""

    def __init__(self, directory: str, path: Sequence[str], stdin: bool, stderr: int) -> None:
        """Raises OSError where there is no server."""
        with contextlib.ExitStack() as theirs:
            read_in, write_in = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
            theirs.callback(os.close, read_in)
            read_out, write_out = os.pipe()
            theirs.callback(os.close, write_out)
            self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.callback(control.close)
            self.stdin = os.fdopen(write_in, "wb", 0) if stdin else None
            self.stdout = os.fdopen(read_out, "rb", 0)
            self._status: int | None = None
            cpus = sorted(os.sched_getaffinity(0))
            message = {"directory": directory, "environment": dict(os.environ), "cpus": cpus}
            descriptors = [read_in, write_out, stderr, control.fileno()]
            try:
                _ask(json.dumps(message).encode(), descriptors, path)
            except BaseException:
                self._close()
                raise

    def kill(self) -> None:
        """End it now; without effect when it has ended."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        """Its exit code, -N for signal N, once it has ended."""
        if self._status is None:
            message = self._control.recv(_STATUS.size)
            # Without a word from the server, that is gone, and its forks went with it.
            self._status = _STATUS.unpack(message)[0] if message else -9
            self._control.close()
        return self._status

    def _close(self) -> None:
        for stream in (self.stdin, self.stdout, self._control):
            if stream is not None:
                stream.close()


def start_fork(command: Sequence[str], *, stdin: bool, stderr: int, environment: Any, path: Sequence[str]) -> Child:
    """`child.start_process`, for the target of this Python in no other environment than ours."""
    *_, target, directory = command
    if target == _TARGET and environment is None:
        with contextlib.suppress(OSError):
            return ForkedChild(directory, path, stdin, stderr)
    return start_process(command, stdin=stdin, stderr=stderr, environment=environment, path=path)


def start_server(path: Sequence[str]) -> None:
    """Start the server if there is none, without waiting for it."""
    global _server
    with _lock, contextlib.suppress(OSError):
        if _server is None:
            _server = _start(path)


def _ask(message: bytes, descriptors: list[int], path: Sequence[str]) -> None:
    """Send a message to the server; if that has been ended by someone, to a new one."""
    global _server
    with _lock:
        if _server is not None and _server[0].poll() is None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(_server[1], [message], descriptors)
                return
        _server = _start(path)
        socket.send_fds(_server[1], [message], descriptors)


def _start(path: Sequence[str]) -> "tuple[subprocess.Popen, socket.socket]":
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _TARGET, "--serve", json.dumps(list(path))],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    return process, ours


@atexit.register
def stop() -> None:
    """End the server, if there is one."""
    global _server
    with _lock:
        if _server is not None:
            _server[1].close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                _server[0].wait(5)
            _server = None


def _forget() -> None:
    """In a fork of this process, whose server is not ours to use: its answers would be for either."""
    global _server, _lock
    _lock = threading.Lock()
    if _server is not None:
        _server[1].close()
        _server[0].returncode = 0  # not our child: nobody is to wait for it
        _server = None


os.register_at_fork(after_in_child=_forget)

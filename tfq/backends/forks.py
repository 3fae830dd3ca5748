# SPDX-License-Identifier: Apache-2.0
"""Start children quickly: a server process that has imported NumPy and the interpreter forks them.

The server starts with or before the first run and ends with this process. If it cannot start, each child is a new
process.
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

from tfq.backends import child
from tfq.backends.child import TARGET, Child, Launch, close_files, local_cpu_secs, start_process

# A copy, because tests replace `child.TARGET`: the server can only run its own target.
_TARGET = str(TARGET)
_STATUS = struct.Struct("<i")
_lock = threading.Lock()
_server: "tuple[subprocess.Popen, socket.socket] | None" = None


class ForkedChild:
    """A child that the server forks."""

    def __init__(self, launch: Launch) -> None:
        """Ask the server for a child.

        Raises:
            OSError: The server cannot be started.
        """
        launch.write_request(None)  # the child ends with the server
        stdin, self.place = launch.stdin, str(launch.directory.parent)
        with contextlib.ExitStack() as childs_ends:
            read_in, write_in = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
            childs_ends.callback(os.close, read_in)
            read_out, write_out = os.pipe()
            childs_ends.callback(os.close, write_out)
            self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            childs_ends.callback(control.close)
            self.stdin = os.fdopen(write_in, "wb", 0) if stdin else None
            self.stdout = os.fdopen(read_out, "rb", 0)
            self._status: int | None = None
            cpus = sorted(os.sched_getaffinity(0))
            message = {"directory": str(launch.directory), "environment": dict(os.environ), "cpus": cpus}
            descriptors = [read_in, write_out, launch.stderr, control.fileno()]
            try:
                _ask(json.dumps(message).encode(), descriptors, launch.request.get("path", ()))
            except BaseException:
                close_files(self.stdin, self.stdout, self._control)
                raise

    def cpu_secs(self, pids: Sequence[int]) -> float:
        """Return the CPU seconds of the processes."""
        return local_cpu_secs(pids)

    def kill(self) -> None:
        """End the process now. Has no effect if it has ended."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code (-N for signal N)."""
        if self._status is None:
            message = self._control.recv(_STATUS.size)
            # No message means that the server has ended, and its forks with it.
            self._status = _STATUS.unpack(message)[0] if message else -9
            self._control.close()
        return self._status

    def close(self) -> None:
        """End the process, and close its pipes."""
        self.kill()
        self.wait()
        close_files(self.stdin, self.stdout)


def start_fork(launch: Launch) -> Child:
    """Start a child like `child.start_process`, as a fork of the server if target and environment are the server's."""
    if str(child.TARGET) == _TARGET and launch.environment is None:
        with contextlib.suppress(OSError):
            return ForkedChild(launch)
    return start_process(launch)


def start_server(path: Sequence[str]) -> None:
    """Start the server if it is not running, without waiting for it."""
    global _server
    with _lock, contextlib.suppress(OSError):
        if _server is None:
            _server = _start(path)


def _ask(message: bytes, descriptors: list[int], path: Sequence[str]) -> None:
    """Send a message to the server; if it has ended, start a new one."""
    global _server
    with _lock:
        if _server is not None and _server[0].poll() is None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(_server[1], [message], descriptors)
                return
        _server = _start(path)
        socket.send_fds(_server[1], [message], descriptors)


def _start(path: Sequence[str]) -> "tuple[subprocess.Popen, socket.socket]":
    connection, servers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with servers_end:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _TARGET, "--serve", json.dumps(list(path))],
            stdin=servers_end.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    return process, connection


@atexit.register
def stop() -> None:
    """End the server if it is running."""
    global _server
    with _lock:
        if _server is not None:
            _server[1].close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                _server[0].wait(5)
            _server = None


def _forget() -> None:
    """Forget the server in a fork of this process: it belongs to the parent, which reads its answers."""
    global _server, _lock
    _lock = threading.Lock()
    if _server is not None:
        _server[1].close()
        _server[0].returncode = 0  # not a child of this process, so it must not wait for it
        _server = None


os.register_at_fork(after_in_child=_forget)

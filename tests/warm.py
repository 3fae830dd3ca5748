# SPDX-License-Identifier: Apache-2.0
"""Run Python programs in separate processes that have TensorFlow imported already: forks of a server process.

An import of TensorFlow and both Kerases costs five seconds of CPU time. A test that starts many programs, and is about
what they do and not how they start, saves it. All forks have the hash seed of their server: tests of reproducibility
start real processes.
"""

import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

IMPORTED = ("tensorflow", "keras", "tf_keras", "tensorflow_model_optimization")


class Program:
    """A program in a separate session, with the methods of `subprocess.Popen` that tests need.

    Args:
        arguments: The command line after `python`: `-m MODULE ...`, `-c CODE ...` or `FILE ...`.
        cwd: Its current directory.
        environment: All its environment variables.
    """

    def __init__(self, arguments: list[str], cwd: Path, environment: Mapping[str, str]) -> None:
        output, write_output = os.pipe()
        status, write_status = os.pipe()
        request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(environment)}
        try:
            _ask(json.dumps(request).encode(), [write_output, write_status])
        finally:
            os.close(write_output)
            os.close(write_status)
        self._output, self._status = os.fdopen(output, "rb", 0), os.fdopen(status)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the program runs."""
        return self._wait(0)

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """Return all output (stdout and stderr) when the program and all that share its output have ended."""
        parts, end = [], time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while selector.select(end - time.monotonic()):
                if not (part := self._output.read(1 << 16)):
                    break
                parts.append(part)
            else:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        self._wait(end - time.monotonic())
        self._output.close()
        self._status.close()
        return b"".join(parts).decode(errors="replace"), None

    def _wait(self, seconds: float) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if selector.select(max(seconds, 0)):
                    self.returncode = os.waitstatus_to_exitcode(int(self._status.readline()))
        return self.returncode


def _ask(request: bytes, descriptors: list[int]) -> None:
    _, connection = _server()
    socket.send_fds(connection, [len(request).to_bytes(8, "little")], descriptors)
    connection.sendall(request)


@functools.cache
def _server() -> tuple[subprocess.Popen, socket.socket]:
    """Return the server and the connection to it; it ends with this process."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        return subprocess.Popen(command, pass_fds=[theirs.fileno()]), ours


def serve(connection: socket.socket) -> Callable[[], None]:
    """Fork a process for each request. Return only in such a process: what it must run."""
    while True:
        size, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
        if not size:
            sys.exit()
        output, status = descriptors
        request = json.loads(connection.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL))
        if keeper := os.fork():
            os.close(output)
            os.close(status)
            os.waitpid(keeper, 0)
            continue
        connection.close()
        # The parent of the program reports its end. The server must not wait for it: it is forked once more.
        if os.fork():
            os._exit(0)
        if program := os.fork():
            os.close(output)
            os.write(status, f"{program}\n".encode())
            os.write(status, f"{os.waitpid(program, 0)[1]}\n".encode())
            os._exit(0)
        os.close(status)
        os.setsid()
        for number in (1, 2):
            os.dup2(output, number)
        os.close(output)
        return functools.partial(_run, **request)


def _run(arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Do what `python ARGUMENTS` does, in `cwd` and with these environment variables."""
    import runpy

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, *rest = arguments
    first = cwd if kind in ("-m", "-c") else str(Path(kind).parent)
    sys.path[0:1] = [first, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    """Import TensorFlow without output, and serve."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for name in IMPORTED:
        __import__(name)
    serve(socket.socket(fileno=int(sys.argv[1])))()


if __name__ == "__main__":
    main()

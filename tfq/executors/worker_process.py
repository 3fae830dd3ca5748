# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a worker process (`worker.py`)."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import cast

from tfq.errors import TfqError
from tfq.executors import call
from tfq.typing import JSON


class WorkerProcess:
    """A worker process, and the socket to it."""

    def __init__(self, num_threads: int) -> None:
        """Start the process.

        Args:
            num_threads: The number of threads of TensorFlow and BLAS in its tasks.

        Raises:
            TfqError: It cannot be started.
        """
        self.num_threads = num_threads
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {**os.environ, **call.environment(num_threads)}
            code = f"from tfq.executors import worker; worker.serve({theirs.fileno()})"
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # a child of the worker writes it to a file
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C goes to the driver only
                )
            except OSError as error:
                raise TfqError(f"cannot start {sys.executable}: {error.strerror}") from error
        self.connection = Connection(ours.detach())

    def send(self, request: JSON) -> None:
        """Send a request. A worker that has ended is noticed when its reply is read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(json.dumps(request).encode())

    def receive(self) -> JSON | None:
        """Return the reply; None if the worker has ended."""
        try:
            return cast(JSON, json.loads(self.connection.recv_bytes()))
        except (EOFError, ConnectionResetError):
            return None

    def kill(self) -> str:
        """End the process and all that it started, and return how it ended."""
        self.connection.close()
        try:
            code = self._process.wait(0.1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

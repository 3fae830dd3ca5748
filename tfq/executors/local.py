# SPDX-License-Identifier: Apache-2.0
"""The executor `local`: worker processes on this machine.

Workers end with this process, also if it is killed. They are started when they are first needed, and stay for later
calls. A worker belongs to a number of threads, because that is fixed when a process starts.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import cast

from tfq import registry
from tfq.errors import TfqError
from tfq.executors import call
from tfq.executors.executor import ExecutorKind, Killed, outcome, run_tasks
from tfq.executors.task import Task, TaskFailure, TaskResult
from tfq.store import StageResult, StageStore
from tfq.typing import JSON


class LocalExecutor:
    """Runs tasks in processes of this machine."""

    def __init__(self, address: str = "", num_workers: int | None = None) -> None:
        """Create an executor; it starts no process yet.

        Args:
            address: Always "".
            num_workers: How many tasks run at the same time; None: one for each CPU that this process may use.
        """
        self._num_workers = num_workers or len(os.sched_getaffinity(0))
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Task, StageStore]] = {}

    @property
    def num_workers(self) -> int:
        """The number of tasks that run at the same time."""
        return self._num_workers

    def run(self, tasks: Iterable[Task], store: StageStore) -> Iterator[TaskResult]:
        """Run the tasks that are not stored yet; see `Executor.run`."""
        return run_tasks(tasks, store, self)

    def close(self) -> None:
        """End the workers."""
        self.cancel()
        for worker in self._idle:
            worker.kill()
        self._idle.clear()

    def has_room(self, num_running: int) -> bool:
        """Check whether a worker is free, or can be started."""
        return num_running < self._num_workers

    def start(self, task: Task, needs: Mapping[str, StageResult], store: StageStore) -> None:
        """Send a task to a free worker with its number of threads, or to a new one."""
        worker = next((worker for worker in self._idle if worker.num_threads == task.num_threads), None)
        if worker is not None:
            self._idle.remove(worker)
        else:
            if self._idle and len(self._idle) + len(self._busy) >= self._num_workers:
                self._idle.pop(0).kill()
            worker = _Worker(task.num_threads)
        worker.send(call.request_of(task, store.out))
        self._busy[worker.connection] = (worker, task, store)

    def wait(self) -> tuple[Task, StageResult | TaskFailure | Killed]:
        """Wait until any task ends."""
        connection = cast(Connection, wait(list(self._busy))[0])
        worker, task, store = self._busy.pop(connection)
        reply = worker.receive()
        if reply is None:
            return task, Killed(reason=worker.kill())
        self._idle.append(worker)
        return task, outcome(task, store, reply)

    def cancel(self) -> None:
        """End the running tasks with their workers."""
        for worker, _, _ in self._busy.values():
            worker.kill()
        self._busy.clear()


class _Worker:
    """A worker process and the socket to it."""

    def __init__(self, num_threads: int) -> None:
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


registry.register(
    ExecutorKind(
        name="local",
        help="processes on this machine",
        open=LocalExecutor,
    )
)

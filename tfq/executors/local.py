# SPDX-License-Identifier: Apache-2.0
"""The executor `local`: worker processes on this machine.

Workers end with this process, also if it is killed. They are started when they are first needed, and stay for later
calls. A worker belongs to a number of threads, because that is fixed when a process starts.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import cast

from tfq import registry
from tfq.executors import call
from tfq.executors.executor import ExecutorKind, Killed, outcome, run_tasks
from tfq.executors.task import Task, TaskFailure, TaskResult
from tfq.executors.worker_process import WorkerProcess
from tfq.store import StageResult, StageStore


class LocalExecutor:
    """Runs tasks in processes of this machine."""

    def __init__(self, address: str = "", num_workers: int | None = None) -> None:
        """Create an executor; it starts no process yet.

        Args:
            address: Always "".
            num_workers: How many tasks run at the same time; None: one for each CPU that this process may use.
        """
        self._num_workers = num_workers or len(os.sched_getaffinity(0))
        self._idle: list[WorkerProcess] = []
        self._busy: dict[Connection, tuple[WorkerProcess, Task, StageStore]] = {}

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
            worker = WorkerProcess(task.num_threads)
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


registry.register(
    ExecutorKind(
        name="local",
        help="processes on this machine",
        open=LocalExecutor,
    )
)

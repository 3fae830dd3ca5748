# SPDX-License-Identifier: Apache-2.0
"""The protocol of executors, and the order in which all of them run tasks."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from tfq import progress, registry
from tfq.errors import InputError, warn
from tfq.executors.task import Task, TaskFailure, TaskResult
from tfq.store import StageResult, StageStore
from tfq.typing import JSON

# A task whose process was killed (out of memory, or its node disappeared) runs again this often.
NUM_RETRIES = 2


class Executor(Protocol):
    """Runs tasks in other processes. Close it to end them."""

    @property
    def num_workers(self) -> int:
        """The number of tasks that run at the same time."""

    def run(self, tasks: Iterable[Task], store: StageStore) -> Iterator[TaskResult]:
        """Run the tasks, and those that they need, whose results are not stored yet.

        The results do not depend on the executor or on the number of workers. They are stored as the tasks finish, so
        that an interrupted call resumes.

        Args:
            tasks: The tasks. Those with the same key run once.
            store: Where results are looked up and stored.

        Yields:
            The end of every task, once for each key, those that are only needed included: first what is stored, then
            the others as they finish. A task never comes before one that it needs.

        Raises:
            TfqError: The store cannot be written, or workers cannot be started.
        """

    def close(self) -> None:
        """End the workers."""


@registry.extension_point("executor")
@dataclass(frozen=True, kw_only=True)
class ExecutorKind:
    """A kind of executor.

    Attributes:
        name: The name that users write.
        help: One line that says what it is.
        open: Creates an executor from the address ("" if none was written) and the number of workers (None: chosen by
            the executor).
        address: What the address is, for the help: "ADDRESS"; "" if there is none.
        needs_address: Whether the name alone is not enough.
        private_address: Whether addresses identify machines, so that they do not enter records.
    """

    name: str
    help: str
    open: Callable[[str, int | None], Executor]
    address: str = ""
    needs_address: bool = False
    private_address: bool = True

    def choices(self) -> tuple[str, ...]:
        """Return what users can write."""
        alone = () if self.needs_address else (self.name,)
        return (*alone, f"{self.name}:{self.address}") if self.address else alone


@contextlib.contextmanager
def open_executor(name: str = "local", *, num_workers: int | None = None) -> Iterator[Executor]:
    """Open an executor, and close it at the end of the block.

    Args:
        name: NAME or NAME:ADDRESS of a registered executor: "local", "ray", "ray:10.0.0.1:6379".
        num_workers: How many tasks run at the same time; None: one for each CPU.

    Returns:
        A context manager with the executor.

    Raises:
        InputError: There is no such executor, or the number of workers is not positive.
        TfqError: It cannot be started.
    """
    registry.check_value("executor", name, field="executor")
    if num_workers is not None and num_workers < 1:
        raise InputError(
            f"num_workers is {num_workers}: expected at least 1", field="num_workers", expected=1, got=num_workers
        )
    kind, _, address = name.partition(":")
    executor = registry.get(ExecutorKind, kind, field="executor").open(address, num_workers)
    try:
        yield executor
    finally:
        executor.close()


@dataclass(frozen=True, kw_only=True)
class Killed:
    """The process of a task ended before the task did.

    Attributes:
        reason: How it ended, such as "SIGKILL".
        details: The end of what it wrote to stderr.
        max_retries: How often the task may run again. More for an end that is not the task's fault.
    """

    reason: str
    details: str = ""
    max_retries: int = NUM_RETRIES


class Pool(Protocol):
    """The part in which executors differ: where a task runs."""

    def has_room(self, num_running: int) -> bool:
        """Check whether another task can be started now."""

    def start(self, task: Task, needs: Mapping[str, StageResult], store: StageStore) -> None:
        """Start a task. `needs` has the results that it needs by role."""

    def wait(self) -> tuple[Task, StageResult | TaskFailure | Killed]:
        """Wait until any started task ends, and return how."""

    def cancel(self) -> None:
        """End the tasks that are running. Nothing of them remains."""


def outcome(task: Task, store: StageStore, reply: JSON) -> StageResult | TaskFailure | Killed:
    """Return the end of a task that a process with the same store has run, from its reply (see `call.py`)."""
    if reply["kind"] == "killed":
        return Killed(reason=reply["message"], details=reply["details"])
    if reply["kind"] != "stored":
        return TaskFailure(
            kind=reply["kind"], message=reply["message"], details=reply["details"], exit_code=reply["exit_code"]
        )
    result = store.find(task.key)
    if result is None:
        message = f"its result disappeared from {store.out} right after it was written"
        return TaskFailure(kind="error", message=message)
    return dataclasses.replace(result, resumed=False)


def run_tasks(tasks: Iterable[Task], store: StageStore, pool: Pool) -> Iterator[TaskResult]:
    """Run tasks on a pool in the order of what they need; see `Executor.run`."""
    schedule = _Schedule(in_order(tasks), store)
    running: dict[str, int] = {}
    try:
        with progress.bar("tasks", len(schedule.tasks), "task") as shown:
            for found in schedule.stored():
                shown.update()
                yield found
            while schedule.waiting or running:
                for task in schedule.ready(lambda: pool.has_room(len(running))):
                    running[task.key] = running.get(task.key, 0)
                    pool.start(task, {role: schedule.results[need.key] for role, need in task.needs.items()}, store)
                if running:
                    task, outcome = pool.wait()
                    num_kills = running.pop(task.key)
                    if isinstance(outcome, Killed) and num_kills < outcome.max_retries:
                        warn(f"{task.name}: its process ended with {outcome.reason}, so it runs again")
                        running[task.key] = num_kills + 1
                        needs = {role: schedule.results[need.key] for role, need in task.needs.items()}
                        pool.start(task, needs, store)
                        continue
                    schedule.end(task, outcome)
                for ended in schedule.ended():
                    shown.update()
                    progress.note(_line(ended))
                    yield ended
    finally:
        if running:
            pool.cancel()


def in_order(tasks: Iterable[Task]) -> dict[str, Task]:
    """Return {key: task} of the tasks and of all that they need, each after those that it needs."""
    found: dict[str, Task] = {}
    stack = [(task, False) for task in reversed(list(tasks))]
    while stack:
        task, is_expanded = stack.pop()
        if is_expanded:
            found.setdefault(task.key, task)
        elif task.key not in found:
            stack.append((task, True))
            stack += [(need, False) for need in reversed(list(task.needs.values()))]
    return found


class _Schedule:
    """The tasks of a call: which have ended, which can start."""

    def __init__(self, tasks: dict[str, Task], store: StageStore) -> None:
        self.tasks, self._store = tasks, store
        self.waiting = dict(tasks)
        self.results: dict[str, StageResult] = {}
        self._failures: dict[str, TaskFailure] = {}
        self._ended: list[TaskResult] = []

    def stored(self) -> Iterator[TaskResult]:
        """Yield the results that are stored, and repeat their warnings."""
        for key, task in self.tasks.items():
            result = self._store.find(key)
            if result is not None:
                self.end(task, result)
                yield from self.ended()

    def ready(self, has_room: Callable[[], bool]) -> Iterator[Task]:
        """Yield tasks that can start, in the order of the call, while there is room. Those with a failed need end."""
        for task in list(self.waiting.values()):
            failed = [need for need in task.needs.values() if need.key in self._failures]
            if failed:
                message = f"it needs {failed[0].name}, which failed: {self._failures[failed[0].key].message}"
                self.end(task, TaskFailure(kind="needs", message=message))
            elif has_room() and all(need.key in self.results for need in task.needs.values()):
                del self.waiting[task.key]
                yield task

    def end(self, task: Task, outcome: StageResult | TaskFailure | Killed) -> None:
        """Note the end of a task."""
        self.waiting.pop(task.key, None)
        if isinstance(outcome, Killed):
            reason = f"its process ended with {outcome.reason}, {outcome.max_retries + 1} times"
            advice = "Does the machine have enough memory for this number of workers?"
            outcome = TaskFailure(kind="killed", message=f"{reason}. {advice}", details=outcome.details)
        if isinstance(outcome, TaskFailure):
            self._failures[task.key] = outcome
            self._ended.append(TaskResult(task=task, failure=outcome))
            return
        for sentence in outcome.warnings:
            warn(sentence)
        self.results[task.key] = outcome
        self._ended.append(TaskResult(task=task, result=outcome))

    def ended(self) -> Iterator[TaskResult]:
        """Yield the tasks that ended since the last call."""
        while self._ended:
            yield self._ended.pop(0)


def _line(ended: TaskResult) -> str:
    if ended.failure is not None:
        return f"  {ended.task.name} failed: {ended.failure.message}"
    return f"  {ended.task.name}: {ended.result.seconds:.1f} s" if ended.result is not None else ""

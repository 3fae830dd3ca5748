# SPDX-License-Identifier: Apache-2.0
"""Share the examples of an evaluation or a calibration among the workers of an executor.

Inside of `distributed`, `tfq.evaluate` and `tfq.convert` split their examples into parts, each of which is a task. The
results are those of one process, byte for byte: outputs are put together in the order of the examples, counts are added
up, and whatever depends on an order is computed here, from the values of single examples.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from tfq.artifacts import sha256, write_bytes
from tfq.errors import InputError, TfqError
from tfq.executors.executor import Executor
from tfq.executors.task import Task
from tfq.store import StageResult, StageStore
from tfq.typing import JSON

_current: "ContextVar[Distribution | None]" = ContextVar("distribution", default=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Distribution:
    """How examples are shared.

    Attributes:
        executor: Runs the tasks.
        store: Has the results of the parts until all of them are computed.
        num_shards: The number of parts.
        sources: How workers read splits themselves: {id of a split: JSON values}. Other examples are sent to them.
        keys: The keys of the results that were used.
    """

    executor: Executor
    store: StageStore
    num_shards: int
    sources: dict[int, JSON] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)

    def ranges(self, num_items: int, *, multiple_of: int = 1) -> list[tuple[int, int]]:
        """Return (start, stop) of parts of about the same size.

        Args:
            num_items: The number of items to split.
            multiple_of: Parts start at multiples of it: the batch size of a model.
        """
        step = -(-num_items // self.num_shards)
        step = -(-step // multiple_of) * multiple_of
        return [(start, min(start + step, num_items)) for start in range(0, num_items, step)]

    def content(self, name: str, files: Mapping[str, bytes]) -> Task:
        """Store files, and return the task that other tasks need to receive them."""
        task = Task(
            name=name,
            function="tfq.executors.distribution:lost_content",
            inputs={"files": {file: sha256(content) for file, content in files.items()}},
        )
        self.keys.add(task.key)
        if self.store.find(task.key) is None:

            def write(directory: Path) -> JSON:
                for file, content in files.items():
                    write_bytes(directory / file, content)
                return {}

            self.store.make(task.name, task.key, write, is_shared=True)
        return task

    def run(self, tasks: Sequence[Task]) -> list[StageResult]:
        """Run tasks, and return their results in the order of `tasks`.

        Raises:
            InputError: A task failed with this error.
            TfqError: A task failed with another error, or its process was killed each time.
        """
        results = {}
        for ended in self.executor.run(tasks, self.store):
            self.keys.add(ended.task.key)
            if ended.result is not None:
                results[ended.task.key] = ended.result
                continue
            failure = ended.failure
            assert failure is not None
            # Messages of tfq's own errors are those of a single process.
            message = failure.message if failure.kind == "error" else f"{ended.task.name}: {failure.message}"
            if failure.details:
                message = f"{message}\n{failure.details}"
            raise InputError(message) if failure.exit_code == InputError.exit_code else TfqError(message)
        return [results[task.key] for task in tasks]


def lost_content(directory: Path, needs: Mapping[str, Path]) -> JSON:
    """Raise the error for content that disappeared from the store while tasks needed it."""
    raise TfqError("the store has lost the content of a task: start again")


@contextlib.contextmanager
def distributed(executor: Executor, out: Path, *, num_shards: int = 8) -> Iterator[Distribution]:
    """Share the examples of evaluations and calibrations inside of the block among the workers of an executor.

    The results of parts are stored in `out` while the block runs, so that a later call with the same arguments resumes.
    They are deleted when it succeeds.

    Args:
        executor: An open executor, see `open_executor`.
        out: The folder for the results of parts.
        num_shards: The number of parts.

    Returns:
        A context manager.
    """
    distribution = Distribution(executor=executor, store=StageStore(out), num_shards=num_shards)
    token = _current.set(distribution)
    try:
        yield distribution
    finally:
        _current.reset(token)
    distribution.store.forget(distribution.keys)


def current_distribution() -> Distribution | None:
    """Return the innermost `distributed` that this code runs in; None if there is none."""
    return _current.get()

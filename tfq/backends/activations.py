# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer on samples in child processes, and process the values of its tensors in this process.

Each worker is a thread of this process with a child that has one interpreter. Samples and values go through memory that
both share. A worker has several slots: while its thread processes the values of one sample, the child runs the next.
"""

import collections
import contextlib
import json
import mmap
import os
import queue
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tfq import progress, tflite
from tfq.backends.child import Child, Launch, run_child
from tfq.backends.forks import start_fork
from tfq.backends.limits import TENSOR_FACTOR, choose_deadline, memory_limit, usable_cores
from tfq.backends.local import LocalBackend
from tfq.backends.scratch import scratch_directory, write_error
from tfq.backends.worker import Arrays, module_path
from tfq.errors import BackendError

Result = TypeVar("Result")
# Samples per worker that are read ahead, and samples that a child has at the same time.
_QUEUED_PER_WORKER, _SLOTS = 4, 2
_ALIGNMENT = 64
_LENGTH = struct.Struct("<q")


def map_in_children(
    model: bytes,
    tensors: Sequence[int],
    samples: Iterable[Arrays],
    function: Callable[[list[NDArray]], Result],
    *,
    num_workers: int = 0,
    total: int | None = None,
) -> Iterator[Result]:
    """Run a flatbuffer on samples, and yield a function of the values of some tensors for each sample.

    Args:
        model: The flatbuffer. A crash of its interpreter ends a child only.
        tensors: Indices of inputs and outputs of its main subgraph.
        samples: An array for each input of the main subgraph, in its dtype. They are read as they are needed.
        function: Called in a thread with the values of `tensors`. The arrays are invalid after the call.
        num_workers: Children; 0 means one per core.
        total: The number of samples, for the progress bar.

    Yields:
        The results of `function`, in the order of `samples`.

    Raises:
        InputError: The interpreter rejects the arrays of a sample. `field` is "inputs".
        ModelError: The model crashes, does not finish or needs more memory than there is.
        BackendError: Anything else went wrong.
    """
    tasks = (Task(arrays) for arrays in samples)
    request = {"mode": "activations", "tensors": list(map(int, tensors))}
    yield from run_in_children(model, request, tasks, function, num_workers=num_workers, total=total)


class Task:
    """Arrays for a child.

    Attributes:
        arrays: An array for each input of the main subgraph.
        fields: Further fields of the message, for modes that need them.
        num_samples: How many samples they are, for the progress bar.
    """

    def __init__(self, arrays: Arrays, fields: Mapping[str, Any] | None = None, num_samples: int = 1) -> None:
        """Store the attributes."""
        self.arrays, self.fields, self.num_samples = arrays, fields or {}, num_samples


def run_in_children(
    model: bytes,
    request: Mapping[str, Any],
    tasks: Iterable[Task],
    function: Callable[[list[NDArray]], Result],
    *,
    ended: Callable[[Path], None] = lambda directory: None,
    num_workers: int = 0,
    total: int | None = None,
    source: tuple[tflite.Model, int] | None = None,
) -> Iterator[Result]:
    """Send tasks to children that run a flatbuffer, and yield a function of each answer.

    Args:
        model: The flatbuffer. A crash of its interpreter ends a child only.
        request: "mode", the module of the target that handles the messages, and what it needs.
        tasks: They are read as they are needed.
        function: Called in a thread with the arrays of an answer. They are invalid after the call.
        ended: Called in a thread with the directory of each child after its last task.
        num_workers: Children; 0 means one per core.
        total: The number of samples, for the progress bar.
        source: If `model` is another flatbuffer with more outputs: the records of that one, and the number of values
            of the tensors that were added.

    Yields:
        The results of `function`, in the order of `tasks`.

    Raises:
        InputError: The interpreter rejects the arrays of a task. `field` is "inputs".
        ModelError: The model crashes, does not finish or needs more memory than there is.
        BackendError: Anything else went wrong.
    """
    num_workers = num_workers or usable_cores()
    LocalBackend().check_available()
    parsed, num_added = source or (tflite.read(model), 0)
    memory_bytes = memory_limit(parsed) + TENSOR_FACTOR * 4 * num_added
    with scratch_directory() as directory, progress.bar("running samples", total, " samples") as bar:
        try:
            (directory / "model.tflite").write_bytes(model)
        except OSError as error:
            raise write_error(directory.parent, f"the model ({len(model):,} bytes)", error) from error
        request = {
            **request,
            "model": str(directory / "model.tflite"),
            "num_inputs": len(parsed.main_subgraph.inputs),
            "num_threads": 1,
            "kernels": "xnnpack",
            "path": module_path(),
            "memory_bytes": memory_bytes,
        }
        deadline = choose_deadline(parsed, 0, 1, emulated=False)
        pool = _Pool(directory, request, deadline, function, ended)
        pending: collections.deque[_Sent[Result]] = collections.deque()

        def first() -> Result:
            sent = pending.popleft()
            result = sent.future.result()
            bar.update(sent.task.num_samples)
            return result

        try:
            for task in tasks:
                pending.append(pool.submit(task, num_workers))
                if len(pending) >= num_workers * _QUEUED_PER_WORKER:
                    yield first()
            pool.finish()
            while pending:
                yield first()
            pool.join()
        finally:
            # The consumer of this generator may stop early.
            pool.stop()


class _Sent(Generic[Result]):
    """A task, and its future result."""

    def __init__(self, task: Task) -> None:
        self.task, self.future = task, Future[Result]()


class _Pool(Generic[Result]):
    """The workers of one run and the queue of their tasks."""

    def __init__(
        self,
        directory: Path,
        request: dict[str, Any],
        deadline: Any,
        function: Callable[[list[NDArray]], Result],
        ended: Callable[[Path], None],
    ) -> None:
        self.directory, self.request, self.deadline, self.function = directory, request, deadline, function
        self.ended = ended
        # The failure of a child after its last task.
        self.failure: BaseException | None = None
        # None ends a worker.
        self.tasks: queue.SimpleQueue[_Sent[Result] | None] = queue.SimpleQueue()
        self.stopped = False
        self._threads: list[threading.Thread] = []
        self._children: list[Child] = []

    def submit(self, task: Task, num_workers: int) -> _Sent[Result]:
        """Queue a task, and start another worker if there are fewer than `num_workers`."""
        sent = _Sent[Result](task)
        self.tasks.put(sent)
        if len(self._threads) < num_workers:
            directory = self.directory / str(len(self._threads))
            directory.mkdir()
            thread = threading.Thread(target=self._work, args=(directory,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return sent

    def finish(self) -> None:
        """Let each worker end when the queue is empty."""
        for _ in self._threads:
            self.tasks.put(None)

    def join(self) -> None:
        """Wait for the end of the workers, after `finish`."""
        for thread in self._threads:
            thread.join()
        self._threads, self._children = [], []
        if self.failure is not None and not self.stopped:
            raise self.failure

    def stop(self) -> None:
        """End all workers now."""
        self.stopped = True
        self.finish()
        for child in list(self._children):
            child.kill()
        self.join()

    def _work(self, directory: Path) -> None:
        feed = _Feed(self)
        try:
            with contextlib.closing(feed):
                request = {**self.request, "files": feed.paths()}
                run_child(
                    LocalBackend.COMMAND,
                    directory,
                    request,
                    backend="local",
                    deadline=self.deadline,
                    feed=feed,
                    start=self._start,
                )
            failure: BaseException = BackendError("local: the interpreter ended before all samples had been run")
            if feed.ended:
                self.ended(directory)
        except BaseException as error:
            failure = error
            if feed.ended:
                self.failure = error
        for sent in feed.unfinished():
            sent.future.set_exception(failure)
        # The other workers may have failed too, and the caller waits for every task.
        while not feed.ended:
            next_sent = self.tasks.get()
            if next_sent is None:
                return
            next_sent.future.set_exception(failure)

    def _start(self, launch: Launch) -> Child:
        child = start_fork(launch)
        self._children.append(child)
        if self.stopped:
            child.kill()
        return child


class _Feed(Generic[Result]):
    """The messages, slots and tasks of one worker."""

    def __init__(self, pool: _Pool[Result]) -> None:
        self._pool = pool
        self._slots = [(_SharedMemory(), _SharedMemory()) for _ in range(_SLOTS)]
        self._free = collections.deque(range(_SLOTS))
        self._running: dict[int, _Sent[Result]] = {}
        self.ended = False

    def paths(self) -> list[list[str]]:
        """Return [path of the inputs, path of the outputs] of each slot, for the child."""
        return [[memory.path for memory in slot] for slot in self._slots]

    def unfinished(self) -> list[_Sent[Result]]:
        """Return the tasks that the child has not completed."""
        return list(self._running.values())

    def close(self) -> None:
        """Release the shared memory."""
        for slot in self._slots:
            for memory in slot:
                memory.close()

    def messages(self) -> Iterator[bytes]:
        """Yield a message for each task; an empty one means that the child must report something first."""
        while True:
            while not self._free:
                yield b""
            try:
                # Waiting for a task while the child has one would delay that result, maybe forever.
                sent = self._pool.tasks.get(block=not self._running)
            except queue.Empty:
                yield b""
                continue
            if sent is None or self._pool.stopped:
                self.ended = True
                return
            slot = self._free.popleft()
            self._running[slot] = sent
            memory = self._slots[slot][0]
            kinds = memory.store(sent.task.arrays)
            fields = {**sent.task.fields, "slot": slot, "size": memory.size, "arrays": kinds}
            message = json.dumps(fields).encode()
            yield _LENGTH.pack(len(message)) + message

    def handle_line(self, words: list[bytes]) -> bool:
        """Handle the child's line `done <description>`. Return whether it was such a line."""
        if len(words) != 2 or words[0] != b"done":
            return False
        report = json.loads(words[1])
        slot = report["slot"]
        sent = self._running.pop(slot)
        try:
            sent.future.set_result(self._pool.function(self._slots[slot][1].load(report["size"], report["arrays"])))
        except BaseException as error:
            sent.future.set_exception(error)
        self._free.append(slot)
        return True


class _SharedMemory:
    """Memory that a child maps too, by its path below /proc."""

    def __init__(self) -> None:
        self._file, self.size = os.memfd_create("tfq"), 0
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        self._map: mmap.mmap | None = None

    def close(self) -> None:
        self._map = None  # it has a descriptor too
        os.close(self._file)

    def store(self, arrays: Arrays) -> list[list[Any]]:
        """Write arrays, and return [dtype, shape, offset] of each."""
        kinds: list[list[Any]] = []
        end = 0
        for array in arrays:
            kinds.append([array.dtype.str, array.shape, end])
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if max(end, _ALIGNMENT) > self.size:
            try:
                os.posix_fallocate(self._file, 0, max(end, _ALIGNMENT))
            except OSError as error:
                raise BackendError(
                    f"local: there is no memory for a sample of {end:,} bytes: {error.strerror}", got=end
                ) from error
        self._remap(max(end, _ALIGNMENT))
        for array, (_, _, offset) in zip(arrays, kinds, strict=True):
            np.frombuffer(self._map, array.dtype, array.size, offset).reshape(array.shape)[...] = array  # type: ignore[arg-type]
        return kinds

    def load(self, size: int, kinds: list[list[Any]]) -> list[NDArray]:
        """Return the arrays that the child wrote; they are the memory itself."""
        self._remap(size)
        return [
            np.frombuffer(self._map, dtype, int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)  # type: ignore[arg-type]
            for dtype, shape, offset in kinds
        ]

    def _remap(self, size: int) -> None:
        if size > self.size:
            # The old mapping is released with the last array that uses it.
            self._map, self.size = mmap.mmap(self._file, size), size

# SPDX-License-Identifier: Apache-2.0
"""The mode "examples": the outputs of every example, shared out among interpreters, then timed inferences on one alone.

The examples come over stdin in blocks: their number (8 bytes, little endian), then that many examples of each input,
C-contiguous. Every worker is a thread (`invoke` releases the GIL) with an interpreter of its own, takes the next block,
and puts its outputs where they belong: what comes out does not depend on who computed it.
"""

import collections
import os
import queue
import struct
import threading
import time

import ai_edge_litert.interpreter  # noqa: F401  before the model's turn: what fails here is not its doing
import numpy as np

from . import session

PROGRESS_SECONDS = 0.2
# What waits in memory for a worker, and what is kept for the timed inferences.
AHEAD_BYTES = KEPT_BYTES = 32 << 20
STDIN = 0

# What arrays would tell of themselves that are not here yet.
Announced = collections.namedtuple("Announced", ["dtype", "shape"])


def run(directory, request):
    """Run all examples, then the timed inferences; writes the outputs, returns the result as JSON values."""
    path = os.path.join(directory, "model.tflite")
    session.limit_memory(request.get("memory_bytes"))
    first = Worker(path, request)
    print("progress 0", flush=True)
    notes = []
    if first.batch > 1 and request["num_examples"] % first.batch:
        notes.append(f"the model's batch is {first.batch}: the last one was filled up with copies of the last example")
    shared = Shared(request, first.batch)
    threads = [threading.Thread(target=shared.read, daemon=True)]
    more = range(request["num_workers"] - 1)
    threads += [threading.Thread(target=shared.work, args=(path, request), daemon=True) for _ in more]
    for thread in threads:
        thread.start()
    shared.run(first)
    for thread in threads[1:]:
        thread.join()
    if shared.error is not None:
        raise shared.error
    for index, output in enumerate(shared.outputs):
        np.save(os.path.join(directory, f"output_{index}.npy"), output)
    total, delegated, reason = session.count_ops(first.interpreter)
    return {
        "num_outputs": len(shared.outputs),
        "latencies_ms": first.time_inferences(shared.kept(), request["warmup_runs"], request["num_runs"]),
        "total_ops": total,
        "delegated_ops": delegated,
        "machine": session.machine(),
        "notes": [*notes, *shared.notes, *([reason] if reason else [])],
    }


class Worker:
    """An interpreter and where its inputs and outputs are."""

    def __init__(self, path, request):
        self.interpreter = session.make_interpreter(path, request)
        details = self.interpreter.get_input_details()
        announced = [Announced(np.dtype(dtype), (request["num_examples"], *shape)) for dtype, shape in request["inputs"]]
        self.batch = session.prepare_inputs(self.interpreter, details, announced)
        self.inputs = [detail["index"] for detail in details]
        self.outputs = [detail["index"] for detail in self.interpreter.get_output_details()]

    def invoke(self, arrays, start):
        """The outputs of one batch of the examples, from `start` on: as they are, the batch in front."""
        self.set(arrays, start)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.outputs]

    def set(self, arrays, start):
        """Feed one batch of the examples."""
        for index, array in zip(self.inputs, arrays, strict=True):
            self.interpreter.set_tensor(index, session.chunk(array, start, self.batch))
        # Examples are independent: no state of a recurrent layer goes from one to the next.
        self.interpreter.reset_all_variables()

    def time_inferences(self, arrays, warmup_runs, num_runs):
        """Milliseconds of each of `num_runs` invokes alone, after `warmup_runs`; None when nothing is timed."""
        if not num_runs:
            return None
        latencies, starts = [], range(0, len(arrays[0]), self.batch)
        progress = time.monotonic() + PROGRESS_SECONDS
        for step in range(warmup_runs + num_runs):
            self.set(arrays, starts[step % len(starts)])
            begin = time.perf_counter_ns()
            self.interpreter.invoke()
            end = time.perf_counter_ns()
            if step >= warmup_runs:
                latencies.append((end - begin) / 1e6)
            if time.monotonic() >= progress:
                print("alive", flush=True)
                progress = time.monotonic() + PROGRESS_SECONDS
        return latencies


class Shared:
    """What the threads share: blocks to do, blocks to read into, the outputs, the first error."""

    def __init__(self, request, batch):
        self.count, self.batch, self.inputs = request["num_examples"], batch, request["inputs"]
        self.workers = request["num_workers"]
        sizes = [int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for dtype, shape in self.inputs]
        self.example_bytes = sum(sizes)
        self.block_bytes = [size * request["block"] for size in sizes]
        spare = max(2 * self.workers, min(AHEAD_BYTES // max(1, sum(self.block_bytes)), 256))
        self.todo, self.free = queue.SimpleQueue(), queue.SimpleQueue()
        for _ in range(spare):
            self.free.put(None)  # made when first used
        wanted = (request["warmup_runs"] + request["num_runs"]) * batch if request["num_runs"] else 0
        self.keep = min(self.count, wanted, max(batch, KEPT_BYTES // max(1, self.example_bytes)))
        self.first_blocks = []
        self.lock, self.outputs, self.error, self.notes = threading.Lock(), None, None, []
        self.done, self.next_report = 0, time.monotonic() + PROGRESS_SECONDS

    def read(self):
        """The thread that takes blocks from stdin, a few ahead of the workers."""
        try:
            start = 0
            while start < self.count and self.error is None:
                (number,) = struct.unpack("<q", read_exactly(memoryview(bytearray(8))))
                buffers = self.free.get() or [bytearray(size) for size in self.block_bytes]
                arrays = [
                    as_array(buffer, number, dtype, shape)
                    for buffer, (dtype, shape) in zip(buffers, self.inputs, strict=True)
                ]
                for array in arrays:
                    read_exactly(memoryview(array).cast("B"))
                if start < self.keep:
                    self.first_blocks.append([array.copy() for array in arrays])
                self.todo.put((start, arrays, buffers))
                start += number
        except BaseException as error:
            self.fail(error)
        finally:
            for _ in range(self.workers):
                self.todo.put(None)

    def work(self, path, request):
        """The thread of one more worker. Where there is no room for its interpreter, the others do its work."""
        try:
            worker = Worker(path, request)
        except Exception as error:
            self.notes.append(f"one interpreter fewer shared the examples: {error}")
        else:
            self.run(worker)

    def run(self, worker):
        """Do blocks until there is none."""
        try:
            while self.error is None and (block := self.todo.get()) is not None:
                start, arrays, buffers = block
                for at in range(0, len(arrays[0]), worker.batch):
                    self.store(start + at, min(worker.batch, len(arrays[0]) - at), worker.invoke(arrays, at))
                self.free.put(buffers)
        except BaseException as error:
            self.fail(error)

    def fail(self, error):
        """The run ends with this error, unless there is one already."""
        with self.lock:
            self.error = self.error or error
        for _ in range(self.workers):
            self.todo.put(None)
        self.free.put(None)

    def store(self, start, number, values):
        """Put one batch's outputs in their place, and tell how far all are now and then."""
        with self.lock:
            if self.outputs is None:
                self.outputs = [
                    np.empty((self.count, *session.per_example(value, self.batch).shape[1:]), value.dtype)
                    for value in values
                ]
            self.done += number
            now = time.monotonic()
            if now >= self.next_report:
                print(f"progress {self.done}", flush=True)
                self.next_report = now + PROGRESS_SECONDS
        for position, (output, value) in enumerate(zip(self.outputs, values, strict=True)):
            value = session.per_example(value, self.batch)
            if value.shape[1:] != output.shape[1:]:
                shapes = f"{list(output.shape[1:])} to {list(value.shape[1:])}"
                raise ValueError(f"the shape of output {position} changes from example to example ({shapes})")
            output[start : start + number] = value[:number]

    def kept(self):
        """The first examples, as many as are kept: an array an input."""
        return [np.concatenate(blocks)[: self.keep] for blocks in zip(*self.first_blocks, strict=True)]


def as_array(buffer, number, dtype, shape):
    """(number, *shape) over the beginning of the buffer."""
    size = number * int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(buffer, dtype, size).reshape(number, *shape)


def read_exactly(view):
    """Fill the view from stdin; returns it."""
    at = 0
    while at < len(view):
        count = os.readv(STDIN, [view[at:]])
        if not count:
            raise BrokenPipeError("the inputs end before they are complete")
        at += count
    return view

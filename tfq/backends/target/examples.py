# SPDX-License-Identifier: Apache-2.0
"""The mode "examples": the outputs of every example, shared out among processes, then timed inferences on one alone.

The examples come in blocks, in slots of the file "ring". A note on stdin says where a block belongs, how many examples
it has, and its slot (8 bytes each, little endian); the line `free <slot>` gives the slot back. A note of none ends one
worker; after as many of these as there are workers come the first examples again, for the timed inferences, and a note
of none. Every worker is a process with an interpreter of its own (threads would wait for each other's Python), takes
the next block, and writes its outputs where they belong: what comes out does not depend on who computed it.
"""

import collections
import fcntl
import mmap
import os
import struct
import time

import ai_edge_litert.interpreter  # noqa: F401  before the model's turn: what fails here is not its doing
import numpy as np

from . import fork, session

PROGRESS_SECONDS = 0.2
NOTE = struct.Struct("<qqq")
STDIN, STDOUT = 0, 1

# What arrays would tell of themselves that are not here yet.
Announced = collections.namedtuple("Announced", ["dtype", "shape"])


def run(directory, request):
    """Run all examples, then the timed inferences; writes the outputs, returns the result as JSON values."""
    session.limit_memory(request.get("memory_bytes"))
    # Now, while there is neither a thread nor an interpreter.
    forks = [fork.Fork(lambda: share(directory, request)) for _ in range(request["num_workers"] - 1)]
    worker = Worker(directory, request, forks)
    reports = [worker.work(), *(other.report() for other in forks)]
    if sum(report["done"] for report in reports) != request["num_examples"]:
        raise BrokenPipeError("the inputs end before they are complete")
    latencies = None
    if request["num_runs"]:
        for _ in range(len(reports) - sum(report["ended"] for report in reports)):
            list(worker.source.blocks())  # the end of one that never began
        kept = zip(*([array.copy() for array in arrays] for _, arrays in worker.source.blocks()), strict=True)
        arrays = [np.concatenate(blocks) for blocks in kept]
        latencies = worker.time_inferences(arrays, request["warmup_runs"], request["num_runs"])
    total, delegated, reason = session.count_ops(worker.interpreter)
    notes = [*(report["note"] for report in reports), reason]
    if worker.batch > 1 and request["num_examples"] % worker.batch:
        notes.append(f"the model's batch is {worker.batch}: the last one was filled up with copies of the last example")
    return {
        "outputs": same_outputs([report["outputs"] for report in reports if report["done"]]),
        "latencies_ms": latencies,
        "total_ops": total,
        "delegated_ops": delegated,
        "machine": session.machine(),
        "notes": [note for note in notes if note],
    }


def share(directory, request):
    """The work of one more process. Where there is no room for its interpreter, the others do it."""
    print(f"started {os.getpid()}", flush=True)
    try:
        worker = Worker(directory, request, ())
    except session.InputMismatch:
        raise
    except Exception as error:
        note = f"one interpreter fewer shared the examples: {error}"
        return {"done": 0, "ended": False, "outputs": None, "note": note}
    return worker.work()


def same_outputs(kinds):
    """[dtype, shape of an example] of each output; raises where two processes saw different ones."""
    for others in kinds[1:]:
        for (_, shape), (_, other) in zip(kinds[0], others, strict=True):
            session.check_same_shape(shape, other)
    return kinds[0]


class Source:
    """The blocks, which several processes take in turn."""

    def __init__(self, directory, request):
        self.inputs = [
            (np.dtype(dtype), shape, int(np.prod(shape, dtype=np.int64))) for dtype, shape in request["inputs"]
        ]
        self.offsets, self.slot_bytes = request["offsets"], request["slot_bytes"]
        with open(os.path.join(directory, "ring"), "rb") as file:
            self.ring = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        # A lock of the system's: it is free again when who holds it crashes.
        self.lock = os.open(os.path.join(directory, "request.json"), os.O_RDONLY)

    def blocks(self):
        """(where it belongs, the arrays) of each block up to a note of none; valid until the next."""
        while (note := self._note())[1]:
            start, number, slot = note
            yield (
                start,
                [
                    np.frombuffer(self.ring, dtype, number * size, slot * self.slot_bytes + offset).reshape(
                        number, *shape
                    )
                    for (dtype, shape, size), offset in zip(self.inputs, self.offsets, strict=True)
                ],
            )
            os.write(STDOUT, b"free %d\n" % slot)

    def _note(self):
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        try:
            content = b""
            while len(content) < NOTE.size:
                part = os.read(STDIN, NOTE.size - len(content))
                if not part:
                    raise BrokenPipeError("the inputs end before they are complete")
                content += part
            return NOTE.unpack(content)
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_UN)


class Worker:
    """An interpreter, what it has done, and what it has come up with."""

    def __init__(self, directory, request, forks):
        self.directory, self.forks = directory, forks
        self.source = Source(directory, request)
        self.interpreter = session.make_interpreter(os.path.join(directory, "model.tflite"), request)
        details = self.interpreter.get_input_details()
        announced = [Announced(dtype, (request["num_examples"], *shape)) for dtype, shape, _ in self.source.inputs]
        self.batch = session.prepare_inputs(self.interpreter, details, announced)
        self.inputs = [detail["index"] for detail in details]
        self.outputs = [detail["index"] for detail in self.interpreter.get_output_details()]
        self.files, self.kinds = [], []
        self.done, self.told, self.next_report = 0, 0, time.monotonic() + PROGRESS_SECONDS

    def work(self):
        """Do blocks until one is empty; what was done."""
        for start, arrays in self.source.blocks():
            self.store(start, self.run(arrays))
            self.done += len(arrays[0])
        return {"done": self.done, "ended": True, "outputs": self.kinds, "note": None}

    def run(self, arrays):
        """The outputs of all examples of a block, batch by batch: (k, ...) each."""
        # Small models take microseconds: what is looked up once is not looked up for each.
        count, batch, (first, *others) = len(arrays[0]), self.batch, self.outputs
        fed = list(zip(self.inputs, (session.filled_up(array, batch) for array in arrays), strict=True))
        set_tensor, get_tensor = self.interpreter.set_tensor, self.interpreter.get_tensor
        reset, invoke, clock = self.interpreter.reset_all_variables, self.interpreter.invoke, time.monotonic
        result, more = [], []
        for start in range(0, count, batch):
            for index, array in fed:
                set_tensor(index, array[start : start + batch])
            # Examples are independent: no state of a recurrent layer goes from one to the next.
            reset()
            invoke()
            result.append(get_tensor(first))
            if others:
                more.append([get_tensor(index) for index in others])
            if clock() >= self.next_report:
                self.alive()
        outputs = [result, *zip(*more, strict=True)]
        return [session.per_example(values, batch)[:count] for values in outputs]

    def alive(self):
        """Tell that something moves, and see whether the forks do well: every now and then."""
        self.next_report = time.monotonic() + PROGRESS_SECONDS
        print(f"more {self.done - self.told}", flush=True)
        self.told = self.done
        for other in self.forks:
            other.check()

    def store(self, start, values):
        """Write a block's outputs where they belong."""
        if not self.files:
            self.kinds = [[value.dtype.str, list(value.shape[1:])] for value in values]
            paths = [os.path.join(self.directory, f"output_{place}") for place in range(len(values))]
            self.files = [os.open(path, os.O_CREAT | os.O_WRONLY, 0o600) for path in paths]
        for file, (_, shape), value in zip(self.files, self.kinds, values, strict=True):
            session.check_same_shape(shape, list(value.shape[1:]))
            if value.dtype.kind not in "biufc":
                raise ValueError(f"an output holds {value.dtype}, no numbers")
            content, at = value.reshape(-1).view(np.uint8).data, start * (value.nbytes // len(value))
            while content:
                count = os.pwrite(file, content, at)
                content, at = content[count:], at + count

    def time_inferences(self, arrays, warmup_runs, num_runs):
        """Milliseconds of each of `num_runs` invokes alone, after `warmup_runs`, cycling over the examples."""
        latencies, starts = [], range(0, len(arrays[0]), self.batch)
        arrays = [session.filled_up(array, self.batch) for array in arrays]
        for step in range(warmup_runs + num_runs):
            start = starts[step % len(starts)]
            for index, array in zip(self.inputs, arrays, strict=True):
                self.interpreter.set_tensor(index, array[start : start + self.batch])
            self.interpreter.reset_all_variables()
            begin = time.perf_counter_ns()
            self.interpreter.invoke()
            end = time.perf_counter_ns()
            if step >= warmup_runs:
                latencies.append((end - begin) / 1e6)
            if time.monotonic() >= self.next_report:
                self.alive()
        return latencies

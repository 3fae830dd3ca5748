# SPDX-License-Identifier: Apache-2.0
"""Mode "examples": compute the outputs of all examples in several processes, then time inferences in one of them.

The examples arrive in blocks, in slots of the file "ring". A message on stdin has the index of the block's first
example, its number of examples, and its slot (8 bytes each, little-endian). The line `free <slot>` returns the slot. If
the outputs of the block have been written, the line also has the bytes of one example of each output:
`free <slot> <bytes> ...`. An empty block (no examples) ends one worker. After one empty block per worker, the first
examples are sent again for the timed inferences, followed by a last empty block.

Each worker is a process with one interpreter; threads would wait for Python's global lock. A worker takes the next
block and writes the outputs at their positions in the output files, so the result does not depend on which worker
computed it.
"""

import collections
import fcntl
import mmap
import os
import resource
import struct
import time

import ai_edge_litert.interpreter  # noqa: F401  imported before the model loads, so that a failure is not blamed on it
import numpy as np

from . import fork, packed_weights, session

PROGRESS_SECONDS = 0.2
MESSAGE = struct.Struct("<qqq")
STDIN, STDOUT = 0, 1

Block = collections.namedtuple("Block", ["start", "arrays", "slot"])
# Dtype and shape of arrays that have not arrived yet.
ArraySpec = collections.namedtuple("ArraySpec", ["dtype", "shape"])


def run(directory, request):
    """Run all examples, then the timed inferences. Write the outputs, and return the result as JSON values."""
    session.limit_memory(request.get("memory_bytes"))
    base_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Fork while there are no threads and no interpreter.
    packed = packed_weights.measure(directory, request["num_threads"]) if request.get("packed_weights") else None
    forks = [fork.Fork(lambda: work_in_fork(directory, request)) for _ in range(request["num_workers"] - 1)]
    worker = Worker(directory, request, forks)
    reports = [worker.work(), *(other.report() for other in forks)]
    if sum(report["done"] for report in reports) != request["num_remaining"]:
        raise BrokenPipeError("the inputs end before they are complete")
    latencies = None
    if request["num_runs"]:
        for _ in range(len(reports) - sum(report["ended"] for report in reports)):
            list(worker.source.blocks())  # the empty block of a worker that could not start
        timed = []
        for block in worker.source.blocks():
            timed.append([array.copy() for array in block.arrays])
            worker.source.free(block)
        arrays = [np.concatenate(blocks) for blocks in zip(*timed, strict=True)]
        latencies = worker.time_inferences(arrays, request["warmup_runs"], request["num_runs"])
    total, delegated, reason = session.count_ops(worker.interpreter)
    # What an interpreter other than LiteRT's own reports.
    facts = worker.interpreter.facts() if hasattr(worker.interpreter, "facts") else {}
    notes = [*(report["note"] for report in reports), reason, *facts.get("notes", ())]
    if worker.batch > 1 and request["num_examples"] % worker.batch:
        notes.append(
            f"the model's batch size is {worker.batch}: the last batch was padded with copies of the last example"
        )
    return {
        "outputs": check_same_outputs([report["outputs"] for report in reports if report["done"]]),
        "latencies_ms": latencies,
        "total_ops": total,
        "delegated_ops": delegated,
        "unaccelerated": facts.get("unaccelerated", {}),
        "memory_bytes": facts.get("memory_bytes"),
        "base_kb": base_kb,
        "packed_weights": packed,
        "machine": {**session.machine(), **facts.get("machine", {})},
        "notes": [note for note in notes if note],
    }


def work_in_fork(directory, request):
    """Run blocks in a fork. If its interpreter cannot be created, for lack of memory, leave the work to the others."""
    print(f"started {os.getpid()}", flush=True)
    try:
        worker = Worker(directory, request, ())
    except session.InputMismatch:
        raise
    except Exception as error:
        note = f"the examples were shared by one interpreter less than requested: {error}"
        return {"done": 0, "ended": False, "outputs": None, "note": note}
    return worker.work()


def check_same_outputs(kinds):
    """Return [dtype, shape of an example] of each output. Raise ValueError if the shapes of two processes differ."""
    for others in kinds[1:]:
        for (_, shape), (_, other) in zip(kinds[0], others, strict=True):
            session.check_same_shape(shape, other)
    return kinds[0]


class Source:
    """The blocks of examples, which the workers share."""

    def __init__(self, directory, request):
        """Open the ring file."""
        self.inputs = [
            (np.dtype(dtype), shape, int(np.prod(shape, dtype=np.int64))) for dtype, shape in request["inputs"]
        ]
        self.offsets, self.slot_bytes = request["offsets"], request["slot_bytes"]
        with open(os.path.join(directory, "ring"), "rb") as file:
            self.ring = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        # The operating system releases this lock if its holder crashes.
        self.lock = os.open(os.path.join(directory, "request.json"), os.O_RDONLY)

    def blocks(self):
        """Yield each block until an empty one. Its arrays are valid until it is freed."""
        while (message := self._read_message())[1]:
            start, number, slot = message
            arrays = [
                np.frombuffer(self.ring, dtype, number * size, slot * self.slot_bytes + offset).reshape(number, *shape)
                for (dtype, shape, size), offset in zip(self.inputs, self.offsets, strict=True)
            ]
            yield Block(start, arrays, slot)

    def free(self, block, output_bytes=()):
        """Return the slot of a block. `output_bytes`: bytes of one example of each output that has been written."""
        os.write(STDOUT, b"free %d%s\n" % (block.slot, b"".join(b" %d" % size for size in output_bytes)))

    def _read_message(self):
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        try:
            content = b""
            while len(content) < MESSAGE.size:
                part = os.read(STDIN, MESSAGE.size - len(content))
                if not part:
                    raise BrokenPipeError("the inputs end before they are complete")
                content += part
            return MESSAGE.unpack(content)
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_UN)


class Worker:
    """An interpreter that computes blocks and writes their outputs."""

    def __init__(self, directory, request, forks):
        """Create the interpreter. `forks` are the other workers, which this one watches."""
        self.directory, self.forks = directory, forks
        self.source = Source(directory, request)
        self.interpreter = session.make_interpreter(os.path.join(directory, "model.tflite"), request)
        details = self.interpreter.get_input_details()
        specs = [ArraySpec(dtype, (request["num_examples"], *shape)) for dtype, shape, _ in self.source.inputs]
        self.batch = session.prepare_inputs(self.interpreter, details, specs)
        self.inputs = [detail["index"] for detail in details]
        self.ranks = [len(detail["shape"]) for detail in details]
        self.outputs = [detail["index"] for detail in self.interpreter.get_output_details()]
        self.files, self.kinds, self.output_bytes = [], [], []
        self.done, self.reported, self.next_report = 0, 0, time.monotonic() + PROGRESS_SECONDS

    def work(self):
        """Compute blocks until one is empty, and return a report."""
        for block in self.source.blocks():
            self.store(block.start, self.run(block.arrays))
            self.done += len(block.arrays[0])
            self.source.free(block, self.output_bytes)
        return {"done": self.done, "ended": True, "outputs": self.kinds, "note": None}

    def run(self, arrays):
        """Return the outputs of all examples of a block, with shape (k, ...) each."""
        # Small models need only microseconds, so attributes are looked up once, outside of the loop.
        count, batch, (first, *others) = len(arrays[0]), self.batch, self.outputs
        fed = list(zip(self.inputs, self.in_inferences(arrays), strict=True))
        set_tensor, get_tensor = self.interpreter.set_tensor, self.interpreter.get_tensor
        reset, invoke, clock = self.interpreter.reset_all_variables, self.interpreter.invoke, time.monotonic
        result, more = [], []
        for number in range(-(-count // batch)):
            for index, array in fed:
                set_tensor(index, array[number])
            # Examples are independent: clear the state of recurrent layers.
            reset()
            invoke()
            result.append(get_tensor(first))
            if others:
                more.append([get_tensor(index) for index in others])
            if clock() >= self.next_report:
                self.report_progress()
        outputs = [result, *zip(*more, strict=True)]
        return [session.per_example(values, batch)[:count] for values in outputs]

    def in_inferences(self, arrays):
        """Return the examples of all inputs as the inputs of inferences."""
        return [session.in_inferences(array, self.batch, rank) for array, rank in zip(arrays, self.ranks, strict=True)]

    def report_progress(self):
        """Print the progress, and check whether a fork has failed."""
        self.next_report = time.monotonic() + PROGRESS_SECONDS
        print(f"more {self.done - self.reported}", flush=True)
        self.reported = self.done
        for other in self.forks:
            other.check()

    def store(self, start, values):
        """Write a block's outputs to the output files; `start` is the index of its first example."""
        if not self.files:
            self.kinds = [[value.dtype.str, list(value.shape[1:])] for value in values]
            self.output_bytes = [value.nbytes // len(value) for value in values]
            paths = [os.path.join(self.directory, f"output_{index}") for index in range(len(values))]
            self.files = [os.open(path, os.O_CREAT | os.O_WRONLY, 0o600) for path in paths]
        for file, (_, shape), value in zip(self.files, self.kinds, values, strict=True):
            session.check_same_shape(shape, list(value.shape[1:]))
            if value.dtype.kind not in "biufc":
                raise ValueError(f"an output has dtype {value.dtype}, expected numbers")
            content, offset = value.reshape(-1).view(np.uint8).data, start * (value.nbytes // len(value))
            while content:
                count = os.pwrite(file, content, offset)
                content, offset = content[count:], offset + count

    def time_inferences(self, arrays, warmup_runs, num_runs):
        """Return the milliseconds of each of `num_runs` invokes, after `warmup_runs`, cycling over the examples."""
        latencies, arrays = [], self.in_inferences(arrays)
        for step in range(warmup_runs + num_runs):
            for index, array in zip(self.inputs, arrays, strict=True):
                self.interpreter.set_tensor(index, array[step % len(array)])
            self.interpreter.reset_all_variables()
            begin = time.perf_counter_ns()
            self.interpreter.invoke()
            end = time.perf_counter_ns()
            if step >= warmup_runs:
                latencies.append((end - begin) / 1e6)
            if time.monotonic() >= self.next_report:
                self.report_progress()
        return latencies

# SPDX-License-Identifier: Apache-2.0
"""Mode "benchmark": time several models in short alternating blocks.

request["entries"] are pairs of model and kernels, {"model": file, "inputs": [files], "kernels": ...}. An input file has
shape (k, ...): k complete inputs of the model, which the inferences cycle over.

The speed of a machine drifts. If the entries were timed one after the other, each would see another machine. Instead,
every round has one block of each entry. Every other round has a new random order, and the rounds in between reverse it,
so that a drift affects all entries equally.
"""

import gc
import os
import random
import time

import numpy as np

from . import session

BLOCK_ROUNDS = 40  # intended number of blocks of each entry; confidence intervals are computed from them
# There are fewer if the inferences that decide the size of a block were faster than the later ones. An interval needs
# this many (2 * MIN_PAIRS of tfq.evaluation.paired).
MIN_BLOCKS = 10
SETTLING_RUNS = 1  # untimed inferences at the start of a block, because the caches hold another model's weights
PROGRESS_SECONDS = 0.2
INITIALIZATIONS, INITIALIZATION_SECONDS = 5, 0.5
clock = time.perf_counter_ns


class Entry:
    """One model on one kind of kernels, with its interpreter, inputs and measured times."""

    def __init__(self, directory, request, position):
        """Create the interpreter of request["entries"][position], and time that up to five times."""
        entry = request["entries"][position]
        # After a crash, this file identifies the model.
        with open(os.path.join(directory, "at"), "w") as file:
            file.write(str(position))
        self.inputs = [session.load(os.path.join(directory, name)) for name in entry["inputs"]]
        path = os.path.join(directory, entry["model"])
        settings = {"kernels": entry["kernels"], "num_threads": request["num_threads"]}
        spent = [self.initialize(path, settings)]
        while len(spent) < INITIALIZATIONS and sum(spent) < INITIALIZATION_SECONDS * 1e9:
            del self.interpreter
            spent.append(self.initialize(path, settings))
        self.initialization = sorted(spent)[len(spent) // 2]
        self.latencies, self.blocks, self.seconds = [], [], 0.0
        details = self.interpreter.get_input_details()
        self.feeds = [
            [(detail["index"], array[turn % len(array)]) for detail, array in zip(details, self.inputs, strict=True)]
            for turn in range(max((len(array) for array in self.inputs), default=1))
        ]
        self.outputs = [detail["index"] for detail in self.interpreter.get_output_details()]
        self.turn = 0

    def initialize(self, path, settings):
        """Create an interpreter and allocate its tensors. Return the nanoseconds that this took."""
        begin = clock()
        self.interpreter = session.make_interpreter(path, settings)
        shape_inputs(self.interpreter, self.inputs)
        self.interpreter.allocate_tensors()
        return clock() - begin

    def run(self, count):
        """Run `count` inferences. Return the nanoseconds of each invoke, and of the whole loop."""
        interpreter, feeds, outputs, turn, times = self.interpreter, self.feeds, self.outputs, self.turn, []
        set_tensor, get_tensor, invoke = interpreter.set_tensor, interpreter.get_tensor, interpreter.invoke
        reset = interpreter.reset_all_variables
        start = clock()
        for _ in range(count):
            for index, value in feeds[turn % len(feeds)]:
                set_tensor(index, value)
            reset()
            turn += 1
            begin = clock()
            invoke()
            end = clock()
            for index in outputs:
                get_tensor(index)
            times.append(end - begin)
        total = clock() - start
        self.turn = turn
        return times, total

    def run_block(self, count, settle):
        """Run and record a timed block of `count` inferences, after untimed ones if `settle`."""
        if settle:
            self.run(SETTLING_RUNS)
        times, total = self.run(count)
        self.latencies += times
        self.seconds += sum(times) / 1e9
        self.blocks.append([sum(times) / count / 1e6, total / count / 1e6])


def shape_inputs(interpreter, inputs):
    """Resize the model's inputs to the shapes of the arrays, (k, ...) each, where they differ."""
    details = interpreter.get_input_details()
    if len(inputs) != len(details):
        raise session.InputMismatch(f"the model has {len(details)} inputs, got {len(inputs)} arrays")
    for detail, array in zip(details, inputs, strict=True):
        if array.dtype != detail["dtype"]:
            raise session.InputMismatch(
                f"input {detail['name']!r} has dtype {np.dtype(detail['dtype'])}, got {array.dtype}"
            )
        if list(array.shape[1:]) != detail["shape"].tolist():
            interpreter.resize_tensor_input(detail["index"], list(array.shape[1:]))


def run(directory, request):
    """Time every entry. Write latencies_<entry>.npy, in milliseconds, and return the other results as JSON values."""
    session.limit_memory(request.get("memory_bytes"))
    # Import everything now, so that the imports are not part of the first initialization time.
    session.machine()
    session.make_interpreter(os.path.join(directory, request["entries"][0]["model"]), {**request, "kernels": "builtin"})
    entries, firsts, sizes, progress = [], [], [], Progress()
    for position in range(len(request["entries"])):
        entry = Entry(directory, request, position)
        (first,), _ = entry.run(1)
        for _ in range(request["warmup_runs"]):
            entry.run(1)
            progress.report(0)
        entries.append(entry)
        firsts.append(first)
        sizes.append(block_size(entry, request))
    gc.collect()
    gc.disable()
    for order in round_orders(len(entries), random.Random(request["seed"])):
        for position in order:
            entries[position].run_block(sizes[position], settle=len(entries) > 1)
        done = min(fraction_done(entry, request) for entry in entries)
        progress.report(int(100 * done))
        # With several entries, stop only after an order and its reverse.
        if done >= 1 and (len(entries) == 1 or len(entries[0].blocks) % 2 == 0):
            break
    for position, entry in enumerate(entries):
        np.save(os.path.join(directory, f"latencies_{position}.npy"), np.array(entry.latencies) / 1e6)
    return {
        "entries": [
            {
                "initialization_ms": entry.initialization / 1e6,
                "first_ms": first / 1e6,
                "blocks_ms": entry.blocks,
                "ops": session.count_ops(entry.interpreter),
            }
            for entry, first in zip(entries, firsts, strict=True)
        ],
        "machine": session.machine(),
    }


class Progress:
    """Limits how often progress is printed, because a system call can take as long as an inference."""

    def __init__(self):
        """Make the next report due now."""
        self.next = 0.0

    def report(self, percent):
        """Print the progress if a report is due."""
        if time.monotonic() >= self.next:
            print(f"progress {percent}", flush=True)
            self.next = time.monotonic() + PROGRESS_SECONDS


def round_orders(count, generator):
    """Yield the orders of an endless number of rounds: a random order, then its reverse, and so on."""
    while True:
        order = generator.sample(range(count), count)
        yield order
        yield order[::-1]


def block_size(entry, request):
    """Return the number of inferences in a block, so that the request takes at least about BLOCK_ROUNDS blocks."""
    fastest, done, spent = 0, 0, 0
    while done < 3 and spent < 1e8:
        (nanoseconds,), total = entry.run(1)
        fastest = min(fastest or nanoseconds, nanoseconds)
        done, spent = done + 1, spent + total
    runs = max(request["num_runs"], request["min_secs"] * 1e9 / max(1, fastest))
    return max(1, int(runs / BLOCK_ROUNDS))


def fraction_done(entry, request):
    """Return the completed fraction of the requested runs and seconds and of the blocks of an entry, the lowest."""
    runs = len(entry.latencies) / request["num_runs"]
    blocks = len(entry.blocks) / min(MIN_BLOCKS, request["num_runs"])
    return min(1, runs, blocks, entry.seconds / request["min_secs"] if request["min_secs"] else 1)

# SPDX-License-Identifier: Apache-2.0
"""The mode "benchmark": models on kernels, timed in short blocks that take turns.

request["entries"] are models on kernels, {"model": file, "inputs": [files], "kernels": ...}; an input file holds
several whole inputs of the model, (k, ...), which take turns. Timed one after the other, each entry would see another
machine: every round has one block of each, the order is drawn again every other round, and turned round in between, so
that a drift of the machine weighs on all of them alike.
"""

import gc
import os
import random
import time

import numpy as np

from . import session

BLOCK_ROUNDS = 40  # of each entry, at least: what an interval is made from
SETTLING_RUNS = 1  # untimed at the start of a block: the caches hold another model's weights
PROGRESS_SECONDS = 0.2
INITIALIZATIONS, INITIALIZATION_SECONDS = 5, 0.5
clock = time.perf_counter_ns


class Entry:
    """One model on one kind of kernels: its interpreter, its inputs, its times in nanoseconds."""

    def __init__(self, directory, request, place):
        entry = request["entries"][place]
        # A crash leaves nothing else behind that tells which of the models it was.
        with open(os.path.join(directory, "at"), "w") as file:
            file.write(str(place))
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
        """Make and allocate an interpreter; the nanoseconds that it took."""
        begin = clock()
        self.interpreter = session.make_interpreter(path, settings)
        shape_inputs(self.interpreter, self.inputs)
        self.interpreter.allocate_tensors()
        return clock() - begin

    def run(self, count):
        """`count` inferences: ([nanoseconds of each invoke], nanoseconds of all, with what is ours)."""
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
        whole = clock() - start
        self.turn = turn
        return times, whole

    def run_block(self, count, settle):
        """One timed block."""
        if settle:
            self.run(SETTLING_RUNS)
        times, whole = self.run(count)
        self.latencies += times
        self.seconds += sum(times) / 1e9
        self.blocks.append([sum(times) / count / 1e6, whole / count / 1e6])


def shape_inputs(interpreter, inputs):
    """Resize the inputs whose arrays, (k, ...), have another shape than the model's own."""
    details = interpreter.get_input_details()
    if len(inputs) != len(details):
        raise session.InputMismatch(f"the model has {len(details)} inputs, got {len(inputs)} arrays")
    for detail, array in zip(details, inputs, strict=True):
        if array.dtype != detail["dtype"]:
            raise session.InputMismatch(
                f"input {detail['name']!r} takes {np.dtype(detail['dtype'])}, got {array.dtype}"
            )
        if list(array.shape[1:]) != detail["shape"].tolist():
            interpreter.resize_tensor_input(detail["index"], list(array.shape[1:]))


def run(directory, request):
    """Time every entry; latencies go to latencies_<entry>.npy, in milliseconds; returns the rest as JSON values."""
    session.machine()  # imports what the first initialisation would otherwise be charged with
    session.make_interpreter(os.path.join(directory, request["entries"][0]["model"]), {**request, "kernels": "builtin"})
    entries, firsts, sizes, alive = [], [], [], Progress()
    for place in range(len(request["entries"])):
        entry = Entry(directory, request, place)
        (first,), _ = entry.run(1)
        for _ in range(request["warmup_runs"]):
            entry.run(1)
            alive.tell(0)
        entries.append(entry)
        firsts.append(first)
        sizes.append(block_size(entry, request))
    gc.collect()
    gc.disable()
    for order in orders(len(entries), random.Random(request["seed"])):
        for place in order:
            entries[place].run_block(sizes[place], settle=len(entries) > 1)
        done = min(share_done(entry, request) for entry in entries)
        alive.tell(int(100 * done))
        # Whole pairs of rounds, an order and its reverse: where there are several, both or neither.
        if done >= 1 and (len(entries) == 1 or len(entries[0].blocks) % 2 == 0):
            break
    for place, entry in enumerate(entries):
        np.save(os.path.join(directory, f"latencies_{place}.npy"), np.array(entry.latencies) / 1e6)
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
    """A line now and then: writing one is a system call, which an inference may be no longer than."""

    def __init__(self):
        self.next = 0.0

    def tell(self, percent):
        if time.monotonic() >= self.next:
            print(f"progress {percent}", flush=True)
            self.next = time.monotonic() + PROGRESS_SECONDS


def orders(count, generator):
    """Rounds without end: a random order, then the same backwards."""
    while True:
        order = generator.sample(range(count), count)
        yield order
        yield order[::-1]


def block_size(entry, request):
    """Inferences of a block, such that all that is asked for takes BLOCK_ROUNDS of them or more."""
    fastest, done, spent = 0, 0, 0
    while done < 3 and spent < 1e8:
        (nanoseconds,), whole = entry.run(1)
        fastest = min(fastest or nanoseconds, nanoseconds)
        done, spent = done + 1, spent + whole
    runs = max(request["num_runs"], request["min_secs"] * 1e9 / max(1, fastest))
    return max(1, int(runs / BLOCK_ROUNDS))


def share_done(entry, request):
    """How much of what is asked for an entry has: runs and seconds of inference, the lesser of the two."""
    runs = len(entry.latencies) / request["num_runs"]
    return min(1, runs, entry.seconds / request["min_secs"] if request["min_secs"] else 1)

# SPDX-License-Identifier: Apache-2.0
"""The mode "instructions": inferences between marks that the emulator's plugin notes, with its count, in a file."""

import ctypes
import gc
import os

from . import session

# What the plugin listens for. No such scheduling policy exists: the system call does nothing but fail.
MARKER = 0x7F0ACE


def run(directory, request):
    """Set the marks around warmup_runs + counted_runs inferences of one example; the result says what ran."""
    session.limit_memory(request["memory_bytes"])
    inputs = [session.load(os.path.join(directory, f"input_{index}.npy")) for index in range(request["num_inputs"])]
    interpreter = session.make_interpreter(os.path.join(directory, "model.tflite"), request)
    details = interpreter.get_input_details()
    batch = session.prepare_inputs(interpreter, details, inputs)
    for detail, array in zip(details, inputs, strict=True):
        interpreter.set_tensor(detail["index"], session.chunk(array, 0, batch))
    mark_inferences(interpreter, request["warmup_runs"] + request["counted_runs"])
    total, delegated, reason = session.count_ops(interpreter)
    return {
        "batch": batch,
        "total_ops": total,
        "delegated_ops": delegated,
        "machine": session.machine(),
        "notes": [reason] if reason else [],
    }


def mark_inferences(interpreter, rounds):
    """A mark before and one after each inference, and then another: what a mark itself costs is between those two."""
    mark = ctypes.CDLL(None).sched_get_priority_max
    invoke = interpreter.invoke
    gc.collect()
    gc.disable()  # a collection in the midst of an inference would be counted as its own
    for done in range(rounds):
        # A recurrent layer begins each inference in the same state.
        interpreter.reset_all_variables()
        mark(MARKER)
        invoke()
        mark(MARKER)
        mark(MARKER)
        print(f"progress {done + 1}", flush=True)

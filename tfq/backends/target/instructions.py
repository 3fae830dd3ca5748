# SPDX-License-Identifier: Apache-2.0
"""Mode "instructions": run inferences between marks, at which the emulator's plugin writes its count to a file."""

import ctypes
import gc
import os

from . import session

# Argument of the system call that the plugin recognizes. This scheduling policy does not exist, so the call only fails.
MARKER = 0x7F0ACE


def run(directory, request):
    """Run warmup_runs + counted_runs inferences of one example between marks. Return ops, batch and machine."""
    session.limit_memory(request["memory_bytes"])
    inputs = [session.load(os.path.join(directory, f"input_{index}.npy")) for index in range(request["num_inputs"])]
    interpreter = session.make_interpreter(os.path.join(directory, "model.tflite"), request)
    details = interpreter.get_input_details()
    batch = session.prepare_inputs(interpreter, details, inputs)
    for detail, array in zip(details, inputs, strict=True):
        first = session.in_inferences(array[:batch], batch, len(detail["shape"]))[0]
        interpreter.set_tensor(detail["index"], first)
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
    """Set one mark before and two after each inference: between the last two is the cost of a mark itself."""
    mark = ctypes.CDLL(None).sched_get_priority_max
    invoke = interpreter.invoke
    gc.collect()
    gc.disable()  # a garbage collection during an inference would be counted
    for done in range(rounds):
        # Recurrent layers must start each inference in the same state.
        interpreter.reset_all_variables()
        mark(MARKER)
        invoke()
        mark(MARKER)
        mark(MARKER)
        print(f"progress {done + 1}", flush=True)

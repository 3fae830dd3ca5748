# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Lite Micro's interpreter with the methods of LiteRT's that the modes of this folder call.

It needs the package tflite-micro, whose API this follows as of 0.dev20261023182759. The runtime explains errors and
lists its allocations on C's stderr only.
"""

import contextlib
import os
import re
import tempfile

import numpy as np

from . import session

# The runtime's messages if the arena is too small.
TOO_SMALL = re.compile(r"missing: \d+|available \d+|was available|[Aa]rena size is too small")
ARENA_GROWTH = 4
ALIGNMENT = 16
TOTAL = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
ITEM = re.compile(r"'([^']+)' used (\d+) bytes")


class Interpreter:
    """An interpreter of one flatbuffer with a tensor arena that is large enough for it."""

    def __init__(self, path, request):
        """Create the interpreter, and allocate its tensors.

        Args:
            path: The flatbuffer.
            request: Its entry "arena_bytes" is the size of the arena, which grows up to "most_arena_bytes" if it is too
                small. The recorded allocations do not depend on the size.

        Raises:
            RuntimeError: The runtime cannot run the flatbuffer; its reason is on stderr.
        """
        from tflite_micro.python.tflite_micro import runtime
        from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

        with open(path, "rb") as file:
            content = file.read()
        size, most = request["arena_bytes"], request["most_arena_bytes"]
        while True:
            before = stderr_size()
            try:
                self.interpreter = runtime.Interpreter.from_bytes(content, arena_size=align(size))
                break
            except RuntimeError:
                if size >= most or not TOO_SMALL.search(stderr_since(before)):
                    raise
                size = min(most, ARENA_GROWTH * size)
        self.content, self.arena_bytes = content, align(size)
        graph = schema.Model.GetRootAs(content).Subgraphs(0)
        self.num_ops = graph.OperatorsLength()
        self.inputs = [graph.Inputs(index) for index in range(graph.InputsLength())]
        self.outputs = [graph.Outputs(index) for index in range(graph.OutputsLength())]
        self.names = {tensor: graph.Tensors(tensor).Name() for tensor in (*self.inputs, *self.outputs)}

    def get_input_details(self):
        """Return index, name, dtype and shape of each input. TFLM cannot resize tensors, so no size is dynamic."""
        return self.details(self.inputs, self.interpreter.get_input_details)

    def get_output_details(self):
        """Return index, name, dtype and shape of each output."""
        return self.details(self.outputs, self.interpreter.get_output_details)

    def details(self, tensors, describe):
        """Return the details of inputs or outputs with the keys that LiteRT uses."""
        result = []
        for position, tensor in enumerate(tensors):
            detail = describe(position)
            name = self.names[tensor].decode(errors="replace")
            result.append({**detail, "index": tensor, "name": name, "shape_signature": detail["shape"]})
        return result

    def allocate_tensors(self):
        """Do nothing: the tensors are allocated."""

    def set_tensor(self, index, array):
        """Set an input."""
        self.interpreter.set_input(np.ascontiguousarray(array), self.inputs.index(index))

    def get_tensor(self, index):
        """Return a copy of an output."""
        return np.array(self.interpreter.get_output(self.outputs.index(index)))

    def reset_all_variables(self):
        """Clear the state of recurrent layers."""
        self.interpreter.reset()

    def invoke(self):
        """Run an inference."""
        self.interpreter.invoke()

    def op_counts(self):
        """Return (number of ops, delegated ops, None): TFLM has no delegates."""
        return self.num_ops, 0, None

    def facts(self):
        """Return the version of the runtime, and the bytes that it has recorded, with "arena_minimum".

        Planning needs temporary memory, which is not in the recorded total. If it does not fit between head and tail,
        the arena must be larger than that total.
        """
        from tflite_micro.python.tflite_micro import _version

        with captured_stderr() as file:
            self.interpreter.print_allocations()
            recorded = read_allocations(os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace"))
        memory = {**recorded, "arena_minimum": smallest_arena(self.content, recorded["arena"], self.arena_bytes)}
        return {"machine": {"tflite_micro": _version.__version__, "ai_edge_litert": None}, "memory_bytes": memory}


def read_allocations(text):
    """Parse the runtime's list of allocations.

    Returns:
        {"arena": total, "arena.head": ..., "arena.tail": ..., "arena.tail.NAME": ...}, where NAME is the runtime's name
        of an item. "arena.tail.other" is what the items leave of the tail.

    Raises:
        ValueError: A total is missing.
    """
    totals = {name: int(value) for name, value in TOTAL.findall(text)}
    if set(totals) != {"total", "head", "tail"}:
        raise ValueError(f"the runtime lists no total, head and tail of its arena: {text[:300]!r}")
    items = {f"arena.tail.{name}": int(value) for name, value in ITEM.findall(text)}
    return {
        "arena": totals["total"],
        "arena.head": totals["head"],
        "arena.tail": totals["tail"],
        **items,
        "arena.tail.other": totals["tail"] - sum(items.values()),
    }


def smallest_arena(content, lowest, sufficient):
    """Return the smallest arena, from `lowest` to `sufficient` bytes, in which the tensors can be allocated."""
    if can_allocate(content, align(lowest)):
        return align(lowest)
    low, high = align(lowest) // ALIGNMENT, sufficient // ALIGNMENT
    while high - low > 1:
        middle = (low + high) // 2
        if can_allocate(content, middle * ALIGNMENT):
            high = middle
        else:
            low = middle
    return high * ALIGNMENT


def can_allocate(content, size):
    """Check in a fork, because the runtime may crash, whether the tensors can be allocated in an arena of this size."""
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        status = 1
        try:
            session.die_with(parent)
            from tflite_micro.python.tflite_micro import runtime

            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            runtime.Interpreter.from_bytes(content, arena_size=size)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def align(size):
    """Round up to the arena's alignment. With other sizes the recorded total is not a multiple of it."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def stderr_size():
    """Return the size of stderr, which is a file in the children of `tfq.backends.child`."""
    return os.fstat(2).st_size


def stderr_since(size):
    """Return what was written to stderr since it had this size; "" if it is not a file."""
    with contextlib.suppress(OSError):
        return os.pread(2, 1 << 20, size).decode(errors="replace")
    return ""


@contextlib.contextmanager
def captured_stderr():
    """Redirect the file descriptor of stderr to a file."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield file
        finally:
            os.dup2(saved, 2)
            os.close(saved)

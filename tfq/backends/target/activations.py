# SPDX-License-Identifier: Apache-2.0
"""Mode "activations": run samples one by one, and put the values of the outputs into shared memory.

A message on stdin is the length of a JSON object (8 bytes, little-endian), then the object: {"slot": which slot to
use, "size": bytes of the slot's input file, "arrays": [[dtype, shape, offset], ...] for each input}. After each sample,
a line `done {"slot": ..., "size": ..., "arrays": ...}` describes the outputs in the slot's output file in the same way.
The files are the parent's memory; request["files"] has their paths, [input, output] for each slot. The end of stdin
ends the run.
"""

import json
import mmap
import os
import struct

import ai_edge_litert.interpreter  # noqa: F401  imported before the model loads, so that a failure is not blamed on it
import numpy as np

from . import session

LENGTH = struct.Struct("<q")
ALIGNMENT = 64
STDIN, STDOUT = 0, 1


class SharedFile:
    """A file in memory that this process and its parent map."""

    def __init__(self, path):
        """Open the file."""
        self.file, self.size, self.map = os.open(path, os.O_RDWR), 0, None

    def resize(self, size):
        """Map `size` bytes of the file. It becomes larger if necessary, never smaller."""
        if size > self.size:
            # Without this, a write to the mapping ends the process if memory runs out.
            os.posix_fallocate(self.file, 0, size)
            self.map, self.size = mmap.mmap(self.file, size), size


class Feeder:
    """Reads messages and their arrays, and answers them."""

    def __init__(self, interpreter, request):
        """Check the number of inputs, and open the slots."""
        self._interpreter, self._details = interpreter, interpreter.get_input_details()
        if len(self._details) != request["num_inputs"]:
            raise session.InputMismatch(
                f"the model has {len(self._details)} inputs, got {request['num_inputs']} arrays"
            )
        self._slots = [tuple(map(SharedFile, paths)) for paths in request["files"]]
        self._shapes = None

    def __iter__(self):
        """Yield (message, arrays, file for the answer) until stdin ends."""
        while (message := read_message()) is not None:
            inputs, outputs = self._slots[message["slot"]]
            inputs.resize(message["size"])
            arrays = [
                np.frombuffer(inputs.map, dtype, int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)
                for dtype, shape, offset in message["arrays"]
            ]
            yield message, arrays, outputs

    def invoke(self, arrays):
        """Run one sample.

        Raises:
            session.InputMismatch: The interpreter rejects the arrays.
        """
        interpreter = self._interpreter
        try:
            if self._shapes != [array.shape for array in arrays]:
                for detail, array in zip(self._details, arrays, strict=True):
                    interpreter.resize_tensor_input(detail["index"], array.shape)
                interpreter.allocate_tensors()
                self._shapes = [array.shape for array in arrays]
            for detail, array in zip(self._details, arrays, strict=True):
                interpreter.set_tensor(detail["index"], array)
            # Samples are independent: the state of a recurrent layer must not carry over.
            interpreter.reset_all_variables()
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise session.InputMismatch(str(error)) from error

    def answer(self, message, outputs, values):
        """Write arrays to the file of a message, and report them."""
        kinds = copy_to(outputs, values)
        report = {"slot": message["slot"], "size": outputs.size, "arrays": kinds}
        write(b"done %s\n" % json.dumps(report, separators=(",", ":")).encode())


def run(directory, request):
    """Run the samples until stdin ends."""
    session.limit_memory(request["memory_bytes"])
    interpreter = session.make_interpreter(request["model"], request)
    feeder = Feeder(interpreter, request)
    for message, arrays, outputs in feeder:
        feeder.invoke(arrays)
        feeder.answer(message, outputs, [interpreter.tensor(index)() for index in request["tensors"]])
    return {}


def copy_to(file, values):
    """Write the arrays to the file, and return [dtype, shape, offset] of each."""
    kinds, end = [], 0
    for value in values:
        if value.dtype.kind not in "biufc":
            raise ValueError(f"a tensor has dtype {value.dtype}, expected numbers")
        kinds.append([value.dtype.str, value.shape, end])
        end += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
    file.resize(max(end, ALIGNMENT))
    for value, (dtype, shape, offset) in zip(values, kinds, strict=True):
        np.frombuffer(file.map, dtype, value.size, offset).reshape(shape)[...] = value
    return kinds


def read_message():
    """Return the next message; None at the end of stdin."""
    header = read_bytes(LENGTH.size)
    return json.loads(read_bytes(LENGTH.unpack(header)[0])) if header else None


def read_bytes(count):
    """Return `count` bytes of stdin; fewer at its end."""
    content = b""
    while len(content) < count and (part := os.read(STDIN, count - len(content))):
        content += part
    return content


def write(content):
    """Write all of `content` to stdout."""
    while content:
        content = content[os.write(STDOUT, content) :]

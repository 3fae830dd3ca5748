# SPDX-License-Identifier: Apache-2.0
"""An interpreter on the target: made, fed, looked into. NumPy and ai_edge_litert only."""

import ctypes
import os
import resource
import signal
import sys

import numpy as np

RESOLVERS = {"xnnpack": "BUILTIN", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}


PR_SET_PDEATHSIG = 1


class InputMismatch(Exception):
    """The model does not take these arrays."""


def die_with(parent):
    """End when the process that started this one ends, however it does: nobody else would stop a long inference."""
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def limit_memory(more_bytes):
    """Let this process take so many bytes of address space beyond what it has; None sets no limit.

    An emulator does not pass the limit on; what its model may want was estimated before.
    """
    if more_bytes is None:
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = now + more_bytes if hard == resource.RLIM_INFINITY else min(now + more_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def load(path):
    """An array of the file, read as it is used; a plain one, since slicing np.memmap costs more than an inference."""
    return np.asarray(np.load(path, mmap_mode="r"))


def make_interpreter(path, request):
    """An interpreter on the file, on the kernels that request["kernels"] names."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = getattr(OpResolverType, RESOLVERS[request["kernels"]])
    return Interpreter(path, num_threads=request["num_threads"], experimental_op_resolver_type=resolver)


def prepare_inputs(interpreter, details, inputs):
    """Check the arrays against the model, resize dynamic dimensions, allocate. Returns the model's own batch.

    inputs: arrays, (n, ...) each, or anything with their dtype and shape.
    """
    if len(inputs) != len(details):
        raise InputMismatch(f"the model has {len(details)} inputs, got {len(inputs)} arrays")
    batches = {int(detail["shape"][0]) if len(detail["shape"]) else 0 for detail in details}
    batch = batches.pop()
    if batches or batch < 1:
        shapes = [detail["shape"].tolist() for detail in details]
        raise InputMismatch(f"the model's inputs have shapes {shapes}: expected one batch dimension in front of all")
    for detail, array in zip(details, inputs, strict=True):
        message = f"input {detail['name']!r}"
        if array.dtype != detail["dtype"]:
            raise InputMismatch(f"{message} takes {np.dtype(detail['dtype'])}, got {array.dtype}")
        shape, signature = detail["shape"].tolist(), detail["shape_signature"].tolist()
        wanted = [batch, *array.shape[1:]]
        if len(signature) != len(shape):
            signature = shape
        # The signature has -1 where the size is free.
        fits = len(wanted) == len(shape) and all(
            free in (-1, size) for size, free in zip(wanted, signature, strict=True)
        )
        if not fits:
            raise InputMismatch(f"{message} takes shape {shape} (batch first), got examples of {list(array.shape[1:])}")
        if wanted != shape:
            interpreter.resize_tensor_input(detail["index"], wanted)
    interpreter.allocate_tensors()
    return batch


def chunk(array, start, batch):
    """`batch` examples from `start` on; past the end the last example again."""
    part = array[start : start + batch]
    if len(part) < batch:
        part = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
    return part


def filled_up(array, batch):
    """The examples, and the last one again until they are whole batches."""
    missing = -len(array) % batch
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def per_example(values, batch):
    """The values of an output, one an inference, as one array with the examples along axis 0.

    They are taken as they are, or, of a batch of 1 that the model dropped, as one example each.
    """
    shape = values[0].shape
    for value in values:
        check_same_shape(shape, value.shape)
    if shape and shape[0] == batch:
        return np.concatenate(values)
    if batch == 1:
        return np.stack(values)
    raise ValueError(f"an output has shape {list(shape)}: expected the model's batch of {batch} in front")


def check_same_shape(shape, other):
    """Raise unless an output keeps its shape."""
    if shape != other:
        raise ValueError(f"the shape of an output changes from example to example ({list(shape)} to {list(other)})")


def count_ops(interpreter):
    """(ops of the model, ops that a delegate took, None), or (None, None, why they cannot be counted).

    A delegate's node comes on top of the ops that it replaces; those are what its outputs are computed from, back to
    its inputs. `_get_ops_details` is private: read in ai-edge-litert 2.1.6 and 2.3.0.
    """
    try:
        ops = interpreter._get_ops_details()
        delegates = [op for op in ops if op["op_name"] == "DELEGATE"]
        producers = {int(out): i for i, op in enumerate(ops) if op["op_name"] != "DELEGATE" for out in op["outputs"]}
        taken = set()
        for delegate in delegates:
            border = {int(tensor) for tensor in delegate["inputs"]}
            pending = [int(tensor) for tensor in delegate["outputs"]]
            while pending:
                tensor = pending.pop()
                op = producers.get(tensor)
                if tensor in border or op is None or op in taken:
                    continue
                taken.add(op)
                pending.extend(int(source) for source in ops[op]["inputs"])
        return len(ops) - len(delegates), len(taken), None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return None, None, f"delegated ops not counted: this ai-edge-litert does not list its ops ({error})"


def machine():
    """What ran: architecture, CPU, versions. No host names."""
    import ai_edge_litert

    cpu = None
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "CPU part"):
                    cpu = value.strip()
                    break
    except OSError:
        pass
    return {
        "machine": os.uname().machine,
        "cpu": cpu,
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "numpy": np.__version__,
        "ai_edge_litert": getattr(ai_edge_litert, "__version__", None),
    }

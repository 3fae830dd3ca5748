# SPDX-License-Identifier: Apache-2.0
"""Create an interpreter on the target, prepare its inputs, and inspect it. Needs only NumPy and ai_edge_litert."""

import ctypes
import os
import resource
import signal
import sys

import numpy as np

RESOLVERS = {"xnnpack": "BUILTIN", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}


PR_SET_PDEATHSIG = 1


class InputMismatch(Exception):
    """The model does not accept these arrays."""


def die_with(parent):
    """End this process when process `parent` ends, even if that is killed. A long inference would run on otherwise."""
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def limit_memory(more_bytes):
    """Limit this process to `more_bytes` of address space beyond its current size; None sets no limit.

    An emulator ignores the limit. There, only the estimate of `tfq.backends.limits` protects the machine.
    """
    if more_bytes is None:
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = now + more_bytes if hard == resource.RLIM_INFINITY else min(now + more_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


# Parameters of glibc's mallopt, and their values: the memory of freed arrays up to this size stays in the process.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_KEPT_BYTES = 1 << 28, 1 << 25


def keep_freed_memory():
    """Let the C library keep freed memory for later arrays, if it can.

    Each temporary array would otherwise be new memory, which the kernel fills with zeros.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def load(path):
    """Return the array of a file, mapped into memory. It is not an np.memmap, because slicing that is slow."""
    return np.asarray(np.load(path, mmap_mode="r"))


def make_interpreter(path, request):
    """Return an interpreter of the file: TFLM's or the GPU's if request["interpreter"] says so, else LiteRT's.

    LiteRT's has the kernels that request["kernels"] names.
    """
    if request.get("interpreter") == "tflm":
        from . import tflm

        return tflm.Interpreter(path, request)
    if request.get("interpreter") == "gpu":
        from . import gpu

        return gpu.Interpreter(path, request)
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = getattr(OpResolverType, RESOLVERS[request["kernels"]])
    return Interpreter(path, num_threads=request["num_threads"], experimental_op_resolver_type=resolver)


def prepare_inputs(interpreter, details, inputs):
    """Check the inputs against the model, resize dynamic dimensions, and allocate the tensors.

    Args:
        interpreter: The interpreter.
        details: Its input details.
        inputs: Arrays of shape (n, ...), or objects with their dtype and shape.

    Returns:
        The model's own batch size; 1 if its inputs share no batch dimension, so that an inference has one example.

    Raises:
        InputMismatch: The model does not accept these inputs.
    """
    if len(inputs) != len(details):
        raise InputMismatch(f"the model has {len(details)} inputs, got {len(inputs)} arrays")
    batches = {int(detail["shape"][0]) if len(detail["shape"]) else 0 for detail in details}
    is_shared = len(batches) == 1 and 0 not in batches
    batch = batches.pop() if is_shared else 1
    for detail, array in zip(details, inputs, strict=True):
        name = f"input {detail['name']!r}"
        if array.dtype != detail["dtype"]:
            raise InputMismatch(f"{name} has dtype {np.dtype(detail['dtype'])}, got {array.dtype}")
        shape, signature = detail["shape"].tolist(), detail["shape_signature"].tolist()
        # Without a shared batch dimension, an example may be the whole input.
        is_whole = not is_shared and len(array.shape) - 1 == len(shape)
        requested = [*array.shape[1:]] if is_whole else [batch, *array.shape[1:]]
        if len(signature) != len(shape):
            signature = shape
        # -1 in the signature marks a dynamic dimension.
        fits = len(requested) == len(shape) and all(
            declared in (-1, size) for size, declared in zip(requested, signature, strict=True)
        )
        if not fits:
            raise InputMismatch(
                f"{name} has shape {shape} (batch first), got examples of shape {list(array.shape[1:])}"
            )
        if requested != shape:
            interpreter.resize_tensor_input(detail["index"], requested)
    interpreter.allocate_tensors()
    return batch


def in_inferences(array, batch, rank):
    """Return examples (n, ...) as the inputs of inferences (k, ...), in which the last example is repeated.

    Args:
        array: The examples.
        batch: The result of `prepare_inputs`.
        rank: The number of dimensions of the model's input. The examples of an input without a batch dimension have as
            many.
    """
    if array.ndim - 1 == rank:
        return array
    missing = -len(array) % batch
    padded = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
    return padded.reshape(-1, batch, *array.shape[1:])


def per_example(values, batch):
    """Join the values of an output, one per inference, to one array with the examples along axis 0.

    The values must have the batch dimension first. If the batch is 1, the model may have dropped this dimension.

    Raises:
        ValueError: The shape changes, or the batch dimension is missing.
    """
    shape = values[0].shape
    for value in values:
        check_same_shape(shape, value.shape)
    if shape and shape[0] == batch:
        return np.concatenate(values)
    if batch == 1:
        return np.stack(values)
    raise ValueError(f"an output has shape {list(shape)}, expected the model's batch size of {batch} first")


def check_same_shape(shape, other):
    """Raise ValueError if the shape of an output changes."""
    if shape != other:
        raise ValueError(f"the shape of an output changes between examples, from {list(shape)} to {list(other)}")


def count_ops(interpreter):
    """Count the ops of the model and those that a delegate executes.

    A delegate's node is listed in addition to the ops that it replaces. These are the ops between the node's inputs and
    its outputs. `_get_ops_details` is private; this follows ai-edge-litert 2.1.6 and 2.3.0.

    Returns:
        (ops of the model, delegated ops, None), or (None, None, the reason) if they cannot be counted.
    """
    if hasattr(interpreter, "op_counts"):
        return interpreter.op_counts()
    try:
        ops = interpreter._get_ops_details()
        delegates = [op for op in ops if op["op_name"] == "DELEGATE"]
        producers = {int(out): i for i, op in enumerate(ops) if op["op_name"] != "DELEGATE" for out in op["outputs"]}
        delegated = set()
        for delegate in delegates:
            inputs = {int(tensor) for tensor in delegate["inputs"]}
            pending = [int(tensor) for tensor in delegate["outputs"]]
            while pending:
                tensor = pending.pop()
                op = producers.get(tensor)
                if tensor in inputs or op is None or op in delegated:
                    continue
                delegated.add(op)
                pending.extend(int(source) for source in ops[op]["inputs"])
        return len(ops) - len(delegates), len(delegated), None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return None, None, f"delegated ops are not counted, because this ai-edge-litert does not list them ({error})"


# Part numbers of Arm's cores, from the Linux kernel's arch/arm64/include/asm/cputype.h.
ARM, ARM_PARTS = (
    "0x41",
    {
        "0xd03": "Cortex-A53",
        "0xd04": "Cortex-A35",
        "0xd05": "Cortex-A55",
        "0xd07": "Cortex-A57",
        "0xd08": "Cortex-A72",
        "0xd09": "Cortex-A73",
        "0xd0a": "Cortex-A75",
        "0xd0b": "Cortex-A76",
        "0xd0c": "Neoverse-N1",
        "0xd0d": "Cortex-A77",
        "0xd40": "Neoverse-V1",
        "0xd41": "Cortex-A78",
        "0xd44": "Cortex-X1",
        "0xd46": "Cortex-A510",
        "0xd47": "Cortex-A710",
        "0xd48": "Cortex-X2",
        "0xd49": "Neoverse-N2",
    },
)


def cpu_name(cpuinfo):
    """Return the names of all kinds of cores in the text of /proc/cpuinfo, or their part numbers; None if unknown."""
    names, implementer = [], None
    for line in cpuinfo.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "CPU implementer":
            implementer = value
        elif key in ("model name", "CPU part"):
            names.append(ARM_PARTS.get(value, value) if implementer == ARM else value)
    return ", ".join(dict.fromkeys(names)) or None


def machine():
    """Return architecture, CPU and versions of this machine. The host name is not included."""
    import ai_edge_litert

    try:
        with open("/proc/cpuinfo") as file:
            cpu = cpu_name(file.read())
    except OSError:
        cpu = None
    return {
        "machine": os.uname().machine,
        "cpu": cpu,
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "numpy": np.__version__,
        "ai_edge_litert": getattr(ai_edge_litert, "__version__", None),
    }

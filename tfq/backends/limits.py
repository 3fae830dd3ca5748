# SPDX-License-Identifier: Apache-2.0
"""Derive limits on the time and the memory of a run from the model's size, to stop runs that make no progress."""

import math
import os
from contextlib import suppress
from dataclasses import dataclass

from tfq.backends.child import Deadline
from tfq.errors import ModelError
from tfq.tflite import Model, Op, Subgraph
from tfq.tflite.input_sizes import check_input_size
from tfq.tflite.workload import tensor_bytes

# Seconds for everything except arithmetic, and the operations per second of the slowest kernels on a slow machine.
LOCAL_SECS, LOCAL_RATE = 2.5, 10e6
EMULATED_SECS, EMULATED_RATE = 15.0, 0.5e6
# Other work on the machine may slow a child down by this factor; a slower child is considered stuck.
WALL_FACTOR = 8
MAX_SECS = 24 * 3600.0
# Address space of the interpreter and the kernels, and of the stack and the allocator of each thread. Packed weights,
# scratch buffers and the arena are estimated as a multiple of the model's tensors.
BASE_BYTES, THREAD_BYTES = 512 << 20, 144 << 20
TENSOR_FACTOR = 8
# An op's output may have this many bytes for any input, plus this multiple of its inputs' bytes. Ops that broadcast or
# resize stay far below. Kernels allocate memory by the declared shape, before they compute the real one.
BASE_OUTPUT_BYTES, INPUT_FACTOR = 256 << 20, 4096


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a machine offers to a run.

    Args:
        cores: Cores that a process may use.
        memory_bytes: Memory of the machine, or of the control group if that is less.
    """

    cores: int
    memory_bytes: int


def usable_cores() -> int:
    """Return how many cores this process may use: in a task of an executor, the number of threads of the task."""
    cores, most = len(os.sched_getaffinity(0)), os.environ.get("TFQ_NUM_CORES", "")
    return min(cores, int(most)) if most.isdigit() and int(most) else cores


def local_resources() -> Resources:
    """Return the resources of this machine."""
    return Resources(cores=usable_cores(), memory_bytes=_memory())


def choose_deadline(model: Model, timeout_secs: float, num_workers: int, *, emulated: bool) -> Deadline:
    """Return the limit on the time without progress.

    Args:
        model: The model; its operations determine a generous limit.
        timeout_secs: The user's own limit, which takes precedence unless it is 0.
        num_workers: Interpreters that run at the same time.
        emulated: Whether the model runs in an emulator, which is slower.
    """
    if timeout_secs:
        return Deadline(wall_secs=timeout_secs)
    base, rate = (EMULATED_SECS, EMULATED_RATE) if emulated else (LOCAL_SECS, LOCAL_RATE)
    secs = min(base + count_operations(model) / rate, MAX_SECS)
    return Deadline(wall_secs=WALL_FACTOR * secs, cpu_secs=secs * num_workers)


def count_operations(model: Model) -> int:
    """Return an upper bound of the multiply-adds of one inference, plus one for each value read or written."""
    return sum(_count_operations(graph, op) for graph in model.subgraphs for op in graph.ops)


def memory_limit(model: Model, available: int | None = None, *, num_threads: int = 1, enlarged: int = 1) -> int:
    """Return a generous limit on the bytes of one interpreter.

    Args:
        model: The model.
        available: Bytes of memory of the machine that runs it; None for this machine.
        num_threads: Threads of the interpreter.
        enlarged: How many times larger than in the file the batch is.

    Raises:
        ModelError: The tensors need more memory than the machine has, or a tensor is far larger than its op's inputs
            explain, so the model is damaged.
    """
    for graph in model.subgraphs:
        _check_sizes(model, graph)
    tensors = sum(
        tensor_bytes(tensor) * (1 if tensor.is_constant else enlarged)
        for graph in model.subgraphs
        for tensor in graph.tensors
    )
    if available is None:
        available = _memory()
    if tensors + model.model_bytes > available:
        raise ModelError(
            f"the model's tensors need {tensors:,} bytes, but the machine has {available:,}. The model may be "
            "damaged, or made for a larger machine",
            field="model",
            expected=available,
            got=tensors,
        )
    base = BASE_BYTES + num_threads * THREAD_BYTES
    return min(base + TENSOR_FACTOR * (tensors + model.model_bytes), max(available, base))


def _check_sizes(model: Model, graph: Subgraph) -> None:
    sizes = [tensor_bytes(tensor) for tensor in graph.tensors]
    allowed = [BASE_OUTPUT_BYTES] * len(sizes)
    for op in graph.ops:
        input_bytes = sum(sizes[index] for index in set(op.inputs) if index >= 0)
        for index in (*op.outputs, *(index for index in op.intermediates if index >= 0)):
            allowed[index] = max(allowed[index], BASE_OUTPUT_BYTES + INPUT_FACTOR * input_bytes)
    main = graph.index == model.main_subgraph.index
    for tensor in graph.tensors:
        if tensor.index in graph.inputs and main:
            check_input_size(tensor.name, tensor.shape[0] if tensor.shape else 1, sizes[tensor.index])
        elif sizes[tensor.index] > allowed[tensor.index] and not tensor.is_constant:
            raise ModelError(
                f"tensor {tensor.index} {tensor.name!r} of the model has shape {list(tensor.shape)} "
                f"({sizes[tensor.index]:,} bytes), but its op's inputs explain at most {allowed[tensor.index]:,} "
                "bytes. The model is damaged. Convert it again",
                field="model",
                expected=allowed[tensor.index],
                got=sizes[tensor.index],
            )


def _count_operations(graph: Subgraph, op: Op) -> int:
    sizes = [math.prod(graph.tensors[index].shape) for index in op.tensors]
    outputs = sum(math.prod(graph.tensors[index].shape) for index in op.outputs)
    return sum(sizes) + outputs * _depth(graph, op)


def _depth(graph: Subgraph, op: Op) -> int:
    """Return the multiply-adds for each value of the output."""
    shapes = [graph.tensors[index].shape if index >= 0 else () for index in op.inputs]
    weights = shapes[1] if len(shapes) > 1 else ()
    match op.name:
        case "CONV_2D" | "CONV_3D" | "FULLY_CONNECTED":
            return math.prod(weights[1:])
        case "DEPTHWISE_CONV_2D":
            return math.prod(weights[1:3])
        case "TRANSPOSE_CONV" | "CONV_3D_TRANSPOSE":
            return math.prod(weights[1:])
        case "BATCH_MATMUL":
            return shapes[0][-1] if shapes[0] else 1
        case _ if "LSTM" in op.name or "RNN" in op.name or op.name == "SVDF":
            return 8 * sum(math.prod(shape) for shape in shapes[1:])
    return 1


def _memory() -> int:
    """Return the bytes of memory of this machine, or of the control group of this process if that is less."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(name) as file:
            available = min(available, int(file.read()))
    return available

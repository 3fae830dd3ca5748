# SPDX-License-Identifier: Apache-2.0
"""How long and how much memory a model may take, by the work in it: what goes beyond that is no progress."""

import math
import os
from contextlib import suppress

from tfq.backends.child import Deadline
from tfq.errors import ModelError
from tfq.tflite import Model, Op, Subgraph, Tensor

# Seconds for everything but arithmetic, and operations a second, that the slowest kernels reach on a slow machine.
LOCAL_SECS, LOCAL_RATE = 2.5, 10e6
EMULATED_SECS, EMULATED_RATE = 15.0, 0.5e6
# Other work on the machine may slow a child down so much; beyond that it sleeps.
WALL_FACTOR = 8
LONGEST_SECS = 24 * 3600.0
# Memory of interpreter and kernels, and of packed weights, scratch and arena as multiples of the model's own tensors.
BASE_BYTES = 2 << 30
TIMES_TENSORS = 8
# What an op may answer with whatever it is given, and how many times its inputs' bytes beyond that; one that broadcasts
# or resizes grows by far less. A declared shape is what kernels allocate by, before they see what it really is.
FREE_BYTES, TIMES_INPUTS = 256 << 20, 4096
LARGEST_BATCH = 1 << 16
_ITEM_BITS = {"int4": 4, "uint4": 4, "int2": 2, "bool": 8, "float8_e4m3fn": 8, "float8_e5m2": 8}


def deadline_of(model: Model, timeout_secs: float, num_workers: int, *, emulated: bool) -> Deadline:
    """The user's own `timeout_secs`, or, where that is 0, one by the operations of an inference, generously."""
    if timeout_secs:
        return Deadline(wall_secs=timeout_secs)
    base, rate = (EMULATED_SECS, EMULATED_RATE) if emulated else (LOCAL_SECS, LOCAL_RATE)
    secs = min(base + operations(model) / rate, LONGEST_SECS)
    return Deadline(wall_secs=WALL_FACTOR * secs, cpu_secs=secs * num_workers)


def operations(model: Model) -> int:
    """Multiply-adds of one inference, at most, and one for each value that is read or written."""
    return sum(_operations(graph, op) for graph in model.subgraphs for op in graph.ops)


def memory_of(model: Model) -> int:
    """Bytes that one interpreter may take, generously.

    Raises ModelError where this machine does not have what the tensors take, or their shapes contradict each other so
    grossly that nobody could have meant them.
    """
    for graph in model.subgraphs:
        _check_sizes(model, graph)
    tensors = sum(_bytes(tensor) for graph in model.subgraphs for tensor in graph.tensors)
    have = _memory()
    if tensors + model.model_bytes > have:
        raise ModelError(
            f"the model's tensors take {tensors:,} bytes, this machine has {have:,}: the model may be damaged, or made "
            "for a larger machine",
            field="model",
            expected=have,
            got=tensors,
        )
    return min(BASE_BYTES + TIMES_TENSORS * (tensors + model.model_bytes), max(have, BASE_BYTES))


def _check_sizes(model: Model, graph: Subgraph) -> None:
    sizes = [_bytes(tensor) for tensor in graph.tensors]
    allowed = [FREE_BYTES] * len(sizes)
    for op in graph.ops:
        provided = sum(sizes[index] for index in set(op.inputs) if index >= 0)
        for index in (*op.outputs, *(index for index in op.intermediates if index >= 0)):
            allowed[index] = max(allowed[index], FREE_BYTES + TIMES_INPUTS * provided)
    main = graph.index == model.main_subgraph.index
    for tensor in graph.tensors:
        if tensor.index in graph.inputs and main:
            batch = tensor.shape[0] if tensor.shape else 1
            if batch > LARGEST_BATCH:
                raise ModelError(
                    f"input {tensor.name!r} of the model has a batch of {batch:,}: expected at most {LARGEST_BATCH:,}: "
                    "the model may be damaged: convert it with a batch of 1",
                    field="model",
                    expected=LARGEST_BATCH,
                    got=batch,
                )
        elif sizes[tensor.index] > allowed[tensor.index] and not tensor.is_constant:
            raise ModelError(
                f"tensor {tensor.index} {tensor.name!r} of the model has shape {list(tensor.shape)}, "
                f"{sizes[tensor.index]:,} bytes, where what it is computed from explains {allowed[tensor.index]:,} at "
                "most: the model is damaged: convert it again",
                field="model",
                expected=allowed[tensor.index],
                got=sizes[tensor.index],
            )


def _operations(graph: Subgraph, op: Op) -> int:
    sizes = [math.prod(graph.tensors[index].shape) for index in op.tensors]
    outputs = sum(math.prod(graph.tensors[index].shape) for index in op.outputs)
    return sum(sizes) + outputs * _depth(graph, op)


def _depth(graph: Subgraph, op: Op) -> int:
    """Multiply-adds for one value of the output."""
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


def _bytes(tensor: Tensor) -> int:
    digits = "".join(letter for letter in tensor.dtype if letter.isdigit())
    bits = _ITEM_BITS.get(tensor.dtype) or (int(digits) if digits else 64)
    return math.prod(tensor.shape) * bits // 8


def _memory() -> int:
    """Bytes of this machine, or of the control group that this process is in."""
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(name) as file:
            have = min(have, int(file.read()))
    return have

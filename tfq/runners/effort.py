# SPDX-License-Identifier: Apache-2.0
"""How long and how much memory a model may take, by the work in it: what goes beyond that is no progress."""

import math
import os
from contextlib import suppress

from tfq.errors import ModelError
from tfq.flatbuffer import Model, Op, Subgraph
from tfq.runners.child import Deadline

# Seconds for everything but arithmetic, and operations a second, that the slowest kernels reach on a slow machine.
LOCAL_SECS, LOCAL_RATE = 2.5, 10e6
EMULATED_SECS, EMULATED_RATE = 15.0, 0.5e6
# Other work on the machine may slow a child down so much; beyond that it sleeps.
WALL_FACTOR = 8
LONGEST_SECS = 24 * 3600.0
# Memory of interpreter and kernels, and of packed weights, scratch and arena as multiples of the model's own tensors.
BASE_BYTES = 2 << 30
TIMES_TENSORS = 8
_ITEM_BITS = {"int4": 4, "uint4": 4, "int2": 2, "bool": 8, "bfloat16": 16, "string": 64, "resource": 64, "variant": 64}


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


def memory_of(model: Model, num_workers: int, *, emulated: bool) -> int:
    """Bytes that the interpreters may take, generously. Raises ModelError where this machine does not have them."""
    tensors = sum(_bytes(tensor.shape, tensor.dtype) for graph in model.subgraphs for tensor in graph.tensors)
    have = _memory()
    if tensors + model.model_bytes > have:
        raise ModelError(
            f"the model's tensors take {tensors:,} bytes, this machine has {have:,}: the model may be damaged, or made "
            "for a larger machine"
        )
    return BASE_BYTES + TIMES_TENSORS * num_workers * (tensors + model.model_bytes)


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


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    digits = "".join(letter for letter in dtype if letter.isdigit())
    bits = _ITEM_BITS.get(dtype) or (int(digits) if digits.isdecimal() else 64)
    return math.prod(shape) * bits // 8


def _memory() -> int:
    """Bytes of this machine, or of the control group that this process is in."""
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(name) as file:
            have = min(have, int(file.read()))
    return have

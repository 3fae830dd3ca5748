# SPDX-License-Identifier: Apache-2.0
"""Observe the values of a flatbuffer's tensors in child processes: extremes of each sample, and counts by bins.

Only these leave the children, see `target/statistics.py`.
"""

import collections
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends.activations import Task, run_in_children
from tfq.backends.limits import count_operations, usable_cores
from tfq.backends.worker import Arrays

# A tensor with at most this many values is joined with others.
_JOINED_VALUES = 1 << 15
# Ops whose results may have a shape that the file does not state.
_SHAPING_OPS = frozenset(
    ("CUSTOM", "SHAPE", "RANGE", "UNIQUE", "WHERE", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5")
)
# Multiply-adds that another child is worth.
_OPERATIONS_PER_CHILD = 10**10
# Inferences of a task, and bytes of their inputs.
_TASK_INFERENCES, _TASK_BYTES = 16, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Requested:
    """What to observe.

    Attributes:
        tensors: Indices of float32 tensors of the main subgraph.
        outputs: Indices of outputs that are returned for kept inferences.
        axes: The axis of each tensor that has the samples of a batch; None if it has none.
        batch_size: The number of samples of an inference.
        num_bins: Number of bins of the histograms; 0 for extremes only.
        shift: The bin of a float32 is its bits >> shift.
        share: 0 to count all values. Otherwise, about this fraction of the values at each end of each tensor is
            counted, and the values in the middle are not.
    """

    tensors: Sequence[int]
    outputs: Sequence[int] = ()
    axes: Sequence[int | None]
    batch_size: int
    num_bins: int
    shift: int
    share: float = 0.0


class Inference(NamedTuple):
    """An inference to observe.

    Attributes:
        arrays: An array for each input of the main subgraph.
        used: How many samples of the batch count.
        keep: Whether its outputs are returned.
    """

    arrays: Arrays
    used: int
    keep: bool


class Observed(NamedTuple):
    """What was observed in consecutive inferences.

    Attributes:
        extremes: For each inference, the minimum and the maximum: float32 of shape (used samples, tensors, 2).
        outputs: {number of a kept inference: its outputs}.
    """

    extremes: Sequence[NDArray[np.float32]]
    outputs: dict[int, tuple[NDArray, ...]]


class Counted(NamedTuple):
    """The values of a tensor that a child has counted.

    Attributes:
        bins: The bins that are not empty.
        counts: The number of values in each.
        total: The number of all values.
        gap: (bin, bin) between which values were not counted; None if all were.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    total: int
    gap: tuple[int, int] | None


def observe_in_children(
    model: bytes,
    requested: Requested,
    inferences: Iterable[Inference],
    add: Callable[[int, Counted], None],
    *,
    num_workers: int = 0,
    total: int | None = None,
) -> Iterator[Observed]:
    """Run a flatbuffer, and yield what was observed in consecutive inferences, in their order.

    Args:
        model: The flatbuffer.
        requested: What to observe.
        inferences: They are read as they are needed.
        add: Called with (place of the tensor, its counts in one child) for each tensor and child. All calls were made
            when the iterator ends.
        num_workers: Children; 0 means one per core, and fewer if there is little to do.
        total: The number of inferences, for the progress bar.

    Raises:
        InputError: The interpreter rejects the arrays of an inference. `field` is "inputs".
        ModelError: The model crashes, does not finish or needs more memory than there is.
        BackendError: Anything else went wrong.
    """
    parsed, lock = tflite.read(model), threading.Lock()
    num_workers = num_workers or _useful_children(parsed, total)
    inferences = iter(inferences)
    first = next(inferences, None)
    if first is None:
        return
    exposed, places, num_added = _exposed(model, parsed.main_subgraph, requested, first.arrays)
    request = {
        "mode": "statistics",
        "places": [places[index] for index in requested.tensors],
        "joined": exposed.values,
        "reduced": exposed.reduced,
        "outputs": list(map(int, requested.outputs)),
        "axes": list(requested.axes),
        "batch_size": requested.batch_size,
        "num_bins": requested.num_bins,
        "shift": requested.shift,
        "share": requested.share,
    }

    def read(arrays: list[NDArray]) -> tuple[NDArray, list[NDArray]]:
        extremes, *outputs = (array.copy() for array in arrays)
        return extremes, outputs

    def ended(directory: Path) -> None:
        if not requested.num_bins:
            return
        with lock, np.load(directory / "counts.npz") as content:
            arrays = {name: content[name] for name in content.files}
            ends = np.cumsum(arrays["lengths"])
            for place, (end, length) in enumerate(zip(ends, arrays["lengths"], strict=True)):
                part = slice(int(end - length), int(end))
                low, high = map(int, arrays["gaps"][place])
                gap = None if low < 0 else (low, high)
                counted = Counted(arrays["bins"][part], arrays["counts"][part], int(arrays["totals"][place]), gap)
                add(place, counted)

    limit = _TASK_INFERENCES if total is None else max(1, min(_TASK_INFERENCES, total // (4 * num_workers)))
    tasks, kept = _tasks(itertools.chain([first], inferences), limit), collections.deque[list[int]]()

    def noted() -> Iterator[Task]:
        for task in tasks:
            kept.append(task.fields["keep"])
            yield task

    results = run_in_children(
        exposed.model,
        request,
        noted(),
        read,
        ended=ended,
        num_workers=num_workers,
        total=total,
        source=(parsed, num_added),
    )
    for extremes, outputs in results:
        size = len(requested.outputs)
        numbers = kept.popleft()
        yield Observed(
            list(extremes),
            {number: tuple(outputs[place * size : (place + 1) * size]) for place, number in enumerate(numbers)},
        )


def _exposed(
    model: bytes, graph: tflite.Subgraph, requested: Requested, arrays: Arrays
) -> tuple[tflite.Joined, dict[int, list], int]:
    """Return the flatbuffer with outputs for all tensors, {tensor: where its values are}, and the values added.

    The places are those of the request, see `target/statistics.py`.
    """
    is_constant = _has_constant_shapes(graph, requested, arrays)
    sizes = {index: int(np.prod(graph.tensors[index].shape, dtype=np.int64)) for index in requested.tensors}
    joined = _joined_tensors(sizes) if is_constant else {}
    own = [index for index in requested.tensors if index not in joined]
    groups = {}
    if is_constant and (requested.share or not requested.num_bins):
        shapes = {index: graph.tensors[index].shape for index in own if sizes[index]}
        groups = {index: (shape, _group_axes(shape)) for index, shape in shapes.items() if _group_axes(shape)}
    exposed = tflite.join_tensors(model, joined, own, groups)
    starts = dict(zip(joined, itertools.accumulate([0, *joined.values()]), strict=False))
    places = {index: ["joined", starts[index], joined[index]] for index in joined}
    for index in own:
        places[index] = ["own", index]
    for index, (shape, axes) in groups.items():
        places[index] = ["reduced", index, math.prod(shape[:-1]), shape[-1], len(shape) - 1 in axes]
    # The reductions of a tensor have fewer values than the tensor; joined ones are copied twice.
    num_added = 2 * sum(joined.values()) + sum(sizes[index] for index in groups)
    return exposed, places, num_added


def _useful_children(model: tflite.Model, total: int | None) -> int:
    """Return the number of children: one per core, unless so many would spend their time on starting."""
    cores = usable_cores()
    return cores if total is None else min(cores, 1 + count_operations(model) * total // _OPERATIONS_PER_CHILD)


def _has_constant_shapes(graph: tflite.Subgraph, requested: Requested, arrays: Arrays) -> bool:
    """Check whether all tensors have the shapes of the file, and no axis for several samples."""
    inputs = [graph.tensors[index].shape for index in graph.inputs]
    is_resized = [tuple(array.shape) for array in arrays] != inputs
    has_other_shapes = any(op.name in _SHAPING_OPS for op in graph.ops)
    is_dynamic = any(each.is_dynamic for each in graph.tensors)
    return not (requested.batch_size > 1 or is_resized or has_other_shapes or is_dynamic)


def _joined_tensors(sizes: Mapping[int, int]) -> dict[int, int]:
    """Return {tensor: size} of the small tensors, which are read together, in the order of their sizes."""
    small = {index: size for index, size in sizes.items() if 0 < size <= _JOINED_VALUES}
    return dict(sorted(small.items(), key=lambda item: item[1])) if len(small) > 1 else {}


def _group_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of a large tensor that the model reduces: those that leave more groups of values.

    The result is empty for shapes that stay as they are.
    """
    if not 3 <= len(shape) <= 4 or shape[0] != 1:
        return ()
    num_rows = math.prod(shape[:-1])
    return (len(shape) - 1,) if num_rows >= shape[-1] else tuple(range(1, len(shape) - 1))


def _tasks(inferences: Iterable[Inference], limit: int) -> Iterator[Task]:
    """Group consecutive inferences with inputs of the same shapes and types, up to `limit`.

    The first groups are small, so that an error in the first samples is found before many are read.
    """
    group: list[Inference] = []
    num_tasks = 0

    def kind(inference: Inference) -> list:
        return [inference.used, *((array.shape, array.dtype) for array in inference.arrays)]

    def task() -> Task:
        arrays = tuple(np.stack(column) for column in zip(*(each.arrays for each in group), strict=True))
        keep = [number for number, each in enumerate(group) if each.keep]
        fields = {"count": len(group), "used": group[0].used, "keep": keep}
        return Task(arrays, fields, num_samples=len(group))

    for inference in inferences:
        num_bytes = max(1, sum(array.nbytes for array in inference.arrays))
        most = max(1, min(limit, 1 + num_tasks // 4, _TASK_BYTES // num_bytes))
        if group and (len(group) >= most or kind(inference) != kind(group[0])):
            yield task()
            group, num_tasks = [], num_tasks + 1
        group.append(inference)
    if group:
        yield task()

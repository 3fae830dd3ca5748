# SPDX-License-Identifier: Apache-2.0
"""A RunRequest for the target: its model and settings as files, its examples as blocks in a pipe, and what comes back."""

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import flatbuffer
from tfq.errors import InputError
from tfq.runners.base import InputStream, RunRequest, RunResult, check_arrays
from tfq.runners.child import run_child
from tfq.runners.effort import deadline_of, memory_of
from tfq.runners.scratch import no_room, scratch_directory

# Small enough that no worker has long to wait for the last one, large enough that passing it on costs nothing.
BLOCK_BYTES, BLOCK_EXAMPLES = 1 << 17, 64
BLOCKS_A_WORKER = 8


def run_worker(
    command: Sequence[str],
    request: RunRequest,
    *,
    runner: str,
    environment: Mapping[str, str] | None = None,
    path: Sequence[str] = (),
    emulated: bool = False,
) -> RunResult:
    """Run the request by `command` + [the target, a directory], which is gone afterwards, however this ends.

    path: where NumPy and ai_edge_litert are, if `command` does not know it. emulated: give it the time that takes.
    Raises InputError when the model does not take the inputs, ModelError when it fails, crashes or never ends,
    RunnerError on all else.
    """
    model = flatbuffer.read(request.model)
    first, pieces = _started(request.inputs)
    tensors = model.main_subgraph.input_tensors
    batch = max(1, tensors[0].shape[0]) if tensors and tensors[0].shape else 1
    num_workers = _num_workers(request, batch)
    block = _block(request.num_examples, sum(array[:1].nbytes for array in first), batch, num_workers)
    settings = {
        "mode": "examples",
        "num_examples": request.num_examples,
        "inputs": [[array.dtype.str, list(array.shape[1:])] for array in first],
        "block": block,
        "num_workers": num_workers,
        "num_threads": request.num_threads,
        "kernels": request.kernels,
        "warmup_runs": request.warmup_runs,
        "num_runs": request.num_runs,
        "path": list(path),
        "memory_bytes": memory_of(model, num_workers, emulated=emulated),
    }
    with scratch_directory() as directory:
        try:
            (directory / "model.tflite").write_bytes(request.model)
        except OSError as error:
            raise no_room(directory.parent, f"the model ({len(request.model):,} bytes)", error) from error
        result = run_child(
            command,
            directory,
            settings,
            runner=runner,
            environment=environment,
            total=request.num_examples,
            deadline=deadline_of(model, request.timeout_secs, num_workers, emulated=emulated),
            feed=_feed(first, pieces, block, request.num_examples),
        )
        return _read(directory, result)


def module_path() -> list[str]:
    """Where this Python finds what the target needs: the folders of NumPy and ai_edge_litert, then all others."""
    specs = [importlib.util.find_spec(name) for name in ("numpy", "ai_edge_litert")]
    origins = [os.path.dirname(os.path.dirname(spec.origin)) for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys([*origins, *(entry for entry in sys.path if os.path.isabs(entry))]))


def _started(inputs: tuple[NDArray, ...] | InputStream) -> tuple[tuple[NDArray, ...], Iterator[tuple[NDArray, ...]]]:
    """The first piece, by which the dtypes and shapes are known, and the others."""
    if not isinstance(inputs, InputStream):
        return inputs, iter(())
    pieces = inputs.pieces()
    first = next(pieces, None)
    if first is None:
        raise InputError(f"the stream of {inputs.num_examples:,} examples is empty")
    return first, pieces


def _num_workers(request: RunRequest, batch: int) -> int:
    wanted = request.num_workers or max(1, len(os.sched_getaffinity(0)) // request.num_threads)
    return max(1, min(wanted, request.num_examples // batch))


def _block(num_examples: int, example_bytes: int, batch: int, num_workers: int) -> int:
    """Examples that are passed on at a time, a multiple of the model's own batch."""
    most = min(BLOCK_BYTES // max(1, example_bytes), BLOCK_EXAMPLES, num_examples // (BLOCKS_A_WORKER * num_workers))
    return max(1, most // batch) * batch


def _feed(
    first: tuple[NDArray, ...], pieces: Iterator[tuple[NDArray, ...]], block: int, num_examples: int
) -> Iterator[memoryview]:
    """What the child reads: blocks of `block` examples, the last one of fewer; each its length, then its arrays.

    Raises InputError where a stream does not keep what it announced.
    """
    kinds = [(array.dtype, array.shape[1:]) for array in first]
    rest: tuple[NDArray, ...] = tuple(array[:0] for array in first)
    fed, piece = 0, first
    while True:
        check_arrays(piece)
        if [(array.dtype, array.shape[1:]) for array in piece] != kinds:
            raise InputError(f"the stream's arrays change from {kinds} to {[(a.dtype, a.shape[1:]) for a in piece]}")
        if len(rest[0]):
            piece = tuple(np.concatenate(pair) for pair in zip(rest, piece, strict=True))
        whole = len(piece[0]) // block * block
        for start in range(0, whole, block):
            yield from _block_bytes(piece, start, start + block)
        fed += whole
        rest = tuple(array[whole:] for array in piece)
        following = next(pieces, None)
        if following is None:
            break
        piece = following
    if len(rest[0]):
        yield from _block_bytes(rest, 0, len(rest[0]))
    if fed + len(rest[0]) != num_examples:
        raise InputError(f"the stream announced {num_examples:,} examples and gave {fed + len(rest[0]):,}")


def _block_bytes(arrays: tuple[NDArray, ...], start: int, end: int) -> Iterator[memoryview]:
    yield memoryview((end - start).to_bytes(8, "little"))
    for array in arrays:
        yield memoryview(np.ascontiguousarray(array[start:end]).reshape(-1).view(np.uint8)).cast("B")


def _read(directory: Path, result: dict[str, Any]) -> RunResult:
    timed = result["latencies_ms"] is not None
    return RunResult(
        outputs=tuple(np.load(directory / f"output_{index}.npy") for index in range(result["num_outputs"])),
        latencies_ms=np.array(result["latencies_ms"], np.float64) if timed else None,
        latency_reason=None if timed else "no timed runs were asked for (num_runs is 0)",
        total_ops=result["total_ops"],
        delegated_ops=result["delegated_ops"],
        machine=result["machine"],
        notes=tuple(result["notes"]),
    )

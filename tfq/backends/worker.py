# SPDX-License-Identifier: Apache-2.0
"""Run a request on a target: write model and settings as files, feed examples in shared blocks, read the results.

A note on the child's stdin says where a block belongs, how many examples it has, and its slot in the file; the child's
line `free <slot>` gives the slot back. So only some of the examples are on their way, however many there are.
"""

import importlib.util
import itertools
import mmap
import os
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends.child import Child, run_child, start_process
from tfq.backends.limits import deadline_of, memory_of
from tfq.backends.protocol import BackendResult, InputStream, RunRequest, check_arrays
from tfq.backends.scratch import no_room, scratch_directory
from tfq.errors import InputError

# Small enough that no worker has long to wait for the last one, large enough that passing it on costs nothing.
BLOCK_BYTES, BLOCK_EXAMPLES, BLOCKS_A_WORKER = 1 << 17, 64, 8
# What the file holds at most, but for one block a worker and one more.
RING_BYTES = 8 << 20
# What is kept of the first examples for the timed inferences.
KEPT_BYTES = 32 << 20
ALIGNMENT = 64
_NOTE = struct.Struct("<qqq")

Arrays = tuple[NDArray, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How examples are passed on: `block` at a time, a multiple of the model's own `batch`, to `num_workers`, and the
    first `keep` once more at the end."""

    num_examples: int
    batch: int
    num_workers: int
    timed: int
    example_bytes: int

    @property
    def block(self) -> int:
        """Examples that are passed on at a time."""
        most = min(
            BLOCK_BYTES // self.example_bytes, BLOCK_EXAMPLES, self.num_examples // (BLOCKS_A_WORKER * self.num_workers)
        )
        return max(1, most // self.batch) * self.batch

    @property
    def keep(self) -> int:
        """Examples that the timed inferences take turns with."""
        return min(self.num_examples, self.timed * self.batch, max(self.batch, KEPT_BYTES // self.example_bytes))


class Feed:
    """The notes and the file of one run."""

    def __init__(self, directory: Path, first: Arrays, pieces: Iterator[Arrays], plan: Plan) -> None:
        """first, pieces: of `begun`. Raises BackendError where there is no room for the file."""
        self._first, self._pieces, self.plan = first, pieces, plan
        sizes = [plan.block * array[:1].nbytes for array in first]
        # Each input's part of a slot, and the slots, begin where any dtype may.
        ends = list(itertools.accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes))
        self._offsets, self._slot_bytes = [0, *ends[:-1]], ends[-1]
        slots = max(plan.num_workers + 1, min(RING_BYTES // self._slot_bytes, -(-plan.num_examples // plan.block)))
        self._free = deque(range(slots))
        path = directory / "ring"
        try:
            with open(path, "w+b") as file:
                # Now: a page that finds no room later is a signal, and no error.
                os.posix_fallocate(file.fileno(), 0, slots * self._slot_bytes)
                self._ring = mmap.mmap(file.fileno(), slots * self._slot_bytes)
        except OSError as error:
            raise no_room(directory.parent, f"inputs ({slots * self._slot_bytes:,} bytes)", error) from error

    def request(self) -> dict[str, Any]:
        """What the child has to know of it."""
        return {
            "inputs": [[array.dtype.str, list(array.shape[1:])] for array in self._first],
            "offsets": self._offsets,
            "slot_bytes": self._slot_bytes,
        }

    def told(self, words: list[bytes]) -> bool:
        """Take a line of the child's; whether it was meant for here."""
        if len(words) != 2 or words[0] != b"free" or not words[1].isdigit():
            return False
        self._free.append(int(words[1]))
        return True

    def notes(self) -> Iterator[bytes]:
        """Notes for the child's stdin, empty where a slot must be free first: blocks, the last one of fewer examples; a
        note of none for each worker; the blocks of the first examples again, and a note of none.

        Raises InputError where a stream does not keep what it announced.
        """
        kept: list[Arrays] = []
        fed = 0
        for piece in _in_blocks(_checked(self._first, self._pieces, self.plan.num_examples), self.plan.block):
            if fed < self.plan.keep:
                kept.append(tuple(array[: self.plan.keep - fed].copy() for array in piece))
            yield from self._passed_on(fed, piece)
            fed += len(piece[0])
        for _ in range(self.plan.num_workers):
            yield _NOTE.pack(0, 0, 0)
        for again in kept:
            yield from self._passed_on(0, again)
        yield _NOTE.pack(0, 0, 0)

    def _passed_on(self, at: int, arrays: Arrays) -> Iterator[bytes]:
        for start in range(0, len(arrays[0]), self.plan.block):
            while not self._free:
                yield b""
            slot = self._free.popleft()
            for offset, array in zip(self._offsets, arrays, strict=True):
                part = array[start : start + self.plan.block]
                place = slot * self._slot_bytes + offset
                np.frombuffer(self._ring, part.dtype, part.size, place).reshape(part.shape)[...] = part
            yield _NOTE.pack(at + start, len(part), slot)


def begun(inputs: Arrays | InputStream) -> tuple[Arrays, Iterator[Arrays]]:
    """The first piece, by which dtypes and shapes are known, and the others. Raises InputError where there is none."""
    if not isinstance(inputs, InputStream):
        return inputs, iter(())
    pieces = inputs.pieces()
    first = next(pieces, None)
    if first is None:
        raise InputError(
            f"the stream of {inputs.num_examples:,} examples is empty",
            field="inputs",
            expected=inputs.num_examples,
            got=0,
        )
    check_arrays(first)
    return first, pieces


def _checked(first: Arrays, pieces: Iterator[Arrays], num_examples: int) -> Iterator[Arrays]:
    """All pieces. Raises InputError where they are not of one kind, or do not add up."""
    kinds, fed = [(array.dtype, array.shape[1:]) for array in first], 0
    for piece in itertools.chain([first], pieces):
        check_arrays(piece)
        results = [(array.dtype, array.shape[1:]) for array in piece]
        if results != kinds:
            raise InputError(
                f"the stream's arrays change from {kinds} to {results}: expected one dtype and shape",
                field="inputs",
                expected=kinds,
                got=results,
            )
        fed += len(piece[0])
        if fed > num_examples:
            break
        yield piece
    if fed != num_examples:
        message = "more" if fed > num_examples else f"{fed:,}"
        raise InputError(
            f"the stream announced {num_examples:,} examples and gave {message}",
            field="inputs",
            expected=num_examples,
            got=fed,
        )


def _in_blocks(pieces: Iterator[Arrays], block: int) -> Iterator[Arrays]:
    """The same examples in pieces of whole blocks, but for the last."""
    rest: Arrays = ()
    for piece in pieces:
        if rest and len(rest[0]):
            piece = tuple(np.concatenate(pair) for pair in zip(rest, piece, strict=True))
        whole = len(piece[0]) // block * block
        if whole:
            yield tuple(array[:whole] for array in piece)
        rest = tuple(array[whole:] for array in piece)
    if rest and len(rest[0]):
        yield rest


def run_worker(
    command: Sequence[str],
    request: RunRequest,
    *,
    backend: str,
    environment: Mapping[str, str] | None = None,
    path: Sequence[str] = (),
    emulated: bool = False,
    start: Callable[..., Child] = start_process,
) -> BackendResult:
    """Run the request by `command` + [the target, a directory], which is gone afterwards, however this ends.

    path: where NumPy and ai_edge_litert are, if `command` does not know it. emulated: give it the time that takes.
    start: of `run_child`.
    Raises InputError when the model does not take the inputs, ModelError when it fails, crashes or never ends,
    BackendError on all else.
    """
    model = tflite.read(request.model)
    first, pieces = begun(request.inputs)
    tensors = model.main_subgraph.input_tensors
    batch = max(1, tensors[0].shape[0]) if tensors and tensors[0].shape else 1
    plan = Plan(
        num_examples=request.num_examples,
        batch=batch,
        num_workers=_num_workers(request, batch),
        timed=request.warmup_runs + request.num_runs if request.num_runs else 0,
        example_bytes=sum(array[:1].nbytes for array in first),
    )
    settings = {
        "mode": "examples",
        "num_examples": request.num_examples,
        "num_workers": plan.num_workers,
        "num_threads": request.num_threads,
        "kernels": request.kernels,
        "warmup_runs": request.warmup_runs,
        "num_runs": request.num_runs,
        "path": list(path),
        "memory_bytes": memory_of(model),
    }
    with scratch_directory() as directory:
        try:
            (directory / "model.tflite").write_bytes(request.model)
        except OSError as error:
            raise no_room(directory.parent, f"the model ({len(request.model):,} bytes)", error) from error
        feed = Feed(directory, first, pieces, plan)
        result = run_child(
            command,
            directory,
            {**settings, **feed.request()},
            backend=backend,
            environment=environment,
            total=request.num_examples,
            deadline=deadline_of(model, request.timeout_secs, plan.num_workers, emulated=emulated),
            start=start,
            feed=feed,
        )
        return _read(directory, result, request.num_examples, emulated)


def run_samples(
    command: Sequence[str],
    model: bytes,
    samples: Sequence[Arrays],
    *,
    backend: str,
    path: Sequence[str] = (),
    kernels: str = "xnnpack",
    start: Callable[..., Child] = start_process,
) -> list[Arrays]:
    """Run a few samples one by one in a child process; return the outputs of each, in the model's own dtypes.

    Args:
        command: Starts Python.
        model: The bytes of a `.tflite`.
        samples: For each sample one array per input of subgraph 0, of the model's own dtype. Shapes may differ from
            the model's where it can be resized.
        backend: Name of the place for messages.
        path: Where NumPy and ai_edge_litert are, if `command` does not know it.
        kernels: As in `RunRequest`.
        start: Starts the process, as in `run_child`.

    Raises:
        InputError: There is no sample.
        ModelError: The model fails, crashes, never ends or needs more memory than there is.
        BackendError: Anything else went wrong.
    """
    if not samples:
        raise InputError("no samples to run: expected at least one", field="samples", expected="at least one", got=0)
    parsed = tflite.read(model)
    request = {
        "mode": "samples",
        "num_samples": len(samples),
        "num_threads": 1,
        "kernels": kernels,
        "path": list(path),
        "memory_bytes": memory_of(parsed),
    }
    arrays = {f"{n}_{place}": array for n, sample in enumerate(samples) for place, array in enumerate(sample)}
    with scratch_directory() as directory:
        try:
            (directory / "model.tflite").write_bytes(model)
            np.savez(directory / "inputs.npz", **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise no_room(directory.parent, f"the model ({len(model):,} bytes) and its samples", error) from error
        result = run_child(
            command,
            directory,
            request,
            backend=backend,
            deadline=deadline_of(parsed, 0, 1, emulated=False),
            start=start,
        )
        with np.load(directory / "outputs.npz") as outputs:
            count = result["num_outputs"]
            return [tuple(outputs[f"{n}_{place}"] for place in range(count)) for n in range(len(samples))]


def module_path() -> list[str]:
    """Where this Python finds what the target needs: the folders of NumPy and ai_edge_litert, then all others."""
    specs = [importlib.util.find_spec(name) for name in ("numpy", "ai_edge_litert")]
    origins = [os.path.dirname(os.path.dirname(spec.origin)) for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys([*origins, *(entry for entry in sys.path if os.path.isabs(entry))]))


def _num_workers(request: RunRequest, batch: int) -> int:
    wanted = request.num_workers or max(1, len(os.sched_getaffinity(0)) // request.num_threads)
    return max(1, min(wanted, request.num_examples // batch))


def _read(directory: Path, result: dict[str, Any], num_examples: int, emulated: bool) -> BackendResult:
    timed = result["latencies_ms"] is not None
    outputs = [
        np.fromfile(directory / f"output_{place}", dtype).reshape(num_examples, *shape)
        for place, (dtype, shape) in enumerate(result["outputs"])
    ]
    return BackendResult(
        how="emulated" if emulated else "measured",
        outputs=tuple(outputs),
        latencies_ms=np.array(result["latencies_ms"], np.float64) if timed else None,
        latency_reason=None if timed else "no timed runs were asked for (num_runs is 0)",
        total_ops=result["total_ops"],
        delegated_ops=result["delegated_ops"],
        machine=result["machine"],
        notes=tuple(result["notes"]),
    )

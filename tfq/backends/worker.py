# SPDX-License-Identifier: Apache-2.0
"""Run a request on a target: write model and settings to files, pass the examples in blocks, read the results.

The examples go through a ring of slots in a shared file. A message on the child's stdin has the index of a block's
first example, its number of examples, and its slot; the child's line `free <slot>` returns the slot. So only part of
the examples are in the file at any time.
"""

import importlib.util
import itertools
import mmap
import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends.child import Child, Launch, LostConnectionError, run_child, start_process
from tfq.backends.limits import Resources, choose_deadline, local_resources, memory_limit
from tfq.backends.protocol import BackendResult, InputStream, RunRequest, check_arrays
from tfq.backends.scratch import scratch_directory, write_error
from tfq.data import batch_size_of
from tfq.errors import BackendError, InputError, warn

# Upper limits of a block. Small blocks keep all workers busy until the end; large ones cost less to pass on.
BLOCK_BYTES, BLOCK_EXAMPLES, BLOCKS_PER_WORKER = 1 << 17, 64, 8
# Size of the shared file, unless one block per worker and one more need more.
RING_BYTES = 8 << 20
# Limit of the first examples that are kept for the timed inferences.
TIMED_BYTES = 32 << 20
ALIGNMENT = 64
# A message: index of a block's first example, number of examples, slot.
MESSAGE = struct.Struct("<qqq")
# How often a run continues after its connection was lost, and the seconds to wait the first time.
RECONNECTS, RECONNECT_SECS = 3, 1.0

# Ops whose second input XNNPACK packs.
PACKED_OPS = frozenset(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"))

Arrays = tuple[NDArray, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the examples of a run are passed on.

    Args:
        num_examples: Number of examples.
        batch: The model's own batch size.
        num_workers: Interpreters that share the examples.
        timed: Number of timed and warm-up inferences.
        example_bytes: Bytes of one example.
    """

    num_examples: int
    batch: int
    num_workers: int
    timed: int
    example_bytes: int

    @property
    def block(self) -> int:
        """Number of examples in a block, a multiple of the batch size."""
        most = min(
            BLOCK_BYTES // self.example_bytes,
            BLOCK_EXAMPLES,
            self.num_examples // (BLOCKS_PER_WORKER * self.num_workers),
        )
        return max(1, most // self.batch) * self.batch

    @property
    def timed_examples(self) -> int:
        """Number of first examples that are passed on again for the timed inferences."""
        return min(self.num_examples, self.timed * self.batch, max(self.batch, TIMED_BYTES // self.example_bytes))


class Feed:
    """The messages and the shared file of one run."""

    def __init__(
        self,
        directory: Path,
        first: Arrays,
        pieces: Iterator[Arrays],
        plan: Plan,
        completed: Collection[int] = (),
    ) -> None:
        """Create the shared file.

        Args:
            directory: Folder for the file.
            first: The first piece of the examples, as returned by `split_first`.
            pieces: The other pieces.
            plan: How the examples are passed on.
            completed: First examples of the blocks whose outputs an earlier run has written.

        Raises:
            BackendError: The file cannot be written.
        """
        self._first, self._pieces, self.plan = first, pieces, plan
        self.completed = set(completed)
        if self._count(self.completed) == plan.num_examples:
            # The child must compute at least one block, because its result describes the outputs.
            self.completed.remove(max(self.completed))
        self.num_remaining = plan.num_examples - self._count(self.completed)
        self._sent: dict[int, int] = {}  # slot -> first example
        sizes = [plan.block * array[:1].nbytes for array in first]
        # Slots, and each input's part of a slot, are aligned for every dtype.
        ends = list(itertools.accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes))
        self._offsets, self._slot_bytes = [0, *ends[:-1]], ends[-1]
        slots = max(plan.num_workers + 1, min(RING_BYTES // self._slot_bytes, -(-plan.num_examples // plan.block)))
        self._free = deque(range(slots))
        path = directory / "ring"
        try:
            with open(path, "w+b") as file:
                # Allocate now: if the disk is full later, writing to the mapping is a SIGBUS instead of an error.
                os.posix_fallocate(file.fileno(), 0, slots * self._slot_bytes)
                self._ring = mmap.mmap(file.fileno(), slots * self._slot_bytes)
        except OSError as error:
            raise write_error(directory.parent, f"inputs ({slots * self._slot_bytes:,} bytes)", error) from error

    def request(self) -> dict[str, Any]:
        """Return the entries of the child's request that describe the file."""
        return {
            "inputs": [[array.dtype.str, list(array.shape[1:])] for array in self._first],
            "offsets": self._offsets,
            "slot_bytes": self._slot_bytes,
            "num_remaining": self.num_remaining,
        }

    def handle_line(self, words: list[bytes]) -> bool:
        """Handle the child's line `free <slot> <bytes> ...`. Return whether it was such a line."""
        if words[:1] != [b"free"] or not all(word.isdigit() for word in words[1:]):
            return False
        start = self._sent.pop(int(words[1]))
        self._free.append(int(words[1]))
        if len(words) > 2:
            self.completed.add(start)
        return True

    def check_complete(self, backend: str) -> None:
        """Raise BackendError unless the outputs of all examples have been written."""
        count = self._count(self.completed)
        if count != self.plan.num_examples:
            raise BackendError(
                f"{backend}: the outputs of {self.plan.num_examples - count:,} examples are missing, although the run "
                "ended without an error. Please report this",
                expected=self.plan.num_examples,
                got=count,
            )

    def _count(self, starts: Collection[int]) -> int:
        """Return the number of examples in the blocks that begin with the examples `starts`."""
        return sum(min(self.plan.block, self.plan.num_examples - start) for start in starts)

    def messages(self) -> Iterator[bytes]:
        """Yield the messages for the child's stdin; an empty one means that no slot is free.

        First come all blocks that are not completed, then an empty block for each worker, then the blocks of the
        examples that are timed, and a final empty block.

        Raises:
            InputError: A stream has another number of examples than it declares, or its arrays differ in kind.
        """
        timed: list[Arrays] = []
        sent, skipped = 0, frozenset(self.completed)
        for piece in _regroup(_check_pieces(self._first, self._pieces, self.plan.num_examples), self.plan.block):
            if sent < self.plan.timed_examples:
                timed.append(tuple(array[: self.plan.timed_examples - sent].copy() for array in piece))
            yield from self._send(sent, piece, skipped)
            sent += len(piece[0])
        for _ in range(self.plan.num_workers):
            yield MESSAGE.pack(0, 0, 0)
        for piece in timed:
            yield from self._send(0, piece)
        yield MESSAGE.pack(0, 0, 0)

    def _send(self, first_example: int, arrays: Arrays, skipped: Collection[int] = ()) -> Iterator[bytes]:
        for start in range(0, len(arrays[0]), self.plan.block):
            if first_example + start in skipped:
                continue
            while not self._free:
                yield b""
            slot = self._free.popleft()
            for offset, array in zip(self._offsets, arrays, strict=True):
                part = array[start : start + self.plan.block]
                position = slot * self._slot_bytes + offset
                np.frombuffer(self._ring, part.dtype, part.size, position).reshape(part.shape)[...] = part
            self._sent[slot] = first_example + start
            yield MESSAGE.pack(first_example + start, len(part), slot)


def split_first(inputs: Arrays | InputStream) -> tuple[Arrays, Iterator[Arrays]]:
    """Return the first piece of the inputs, which shows dtypes and shapes, and an iterator over the others.

    Raises:
        InputError: A stream is empty, or its first piece is invalid.
    """
    if not isinstance(inputs, InputStream):
        return inputs, iter(())
    pieces = inputs.pieces()
    first = next(pieces, None)
    if first is None:
        raise InputError(
            f"the stream is empty, expected {inputs.num_examples:,} examples",
            field="inputs",
            expected=inputs.num_examples,
            got=0,
        )
    check_arrays(first)
    return first, pieces


def _check_pieces(first: Arrays, pieces: Iterator[Arrays], num_examples: int) -> Iterator[Arrays]:
    """Yield all pieces. Raise InputError if their dtypes, shapes or total number are wrong."""
    expected, count = [(array.dtype, array.shape[1:]) for array in first], 0
    for piece in itertools.chain([first], pieces):
        check_arrays(piece)
        kinds = [(array.dtype, array.shape[1:]) for array in piece]
        if kinds != expected:
            raise InputError(
                f"the stream's arrays change from {expected} to {kinds}, expected the same dtypes and shapes",
                field="inputs",
                expected=expected,
                got=kinds,
            )
        count += len(piece[0])
        if count > num_examples:
            break
        yield piece
    if count != num_examples:
        actual = "more" if count > num_examples else f"{count:,}"
        raise InputError(
            f"the stream declares {num_examples:,} examples but yields {actual}",
            field="inputs",
            expected=num_examples,
            got=count,
        )


def _regroup(pieces: Iterator[Arrays], block: int) -> Iterator[Arrays]:
    """Yield the same examples in pieces whose lengths are multiples of `block`, except the last."""
    rest: Arrays = ()
    for piece in pieces:
        if rest and len(rest[0]):
            piece = tuple(np.concatenate(pair) for pair in zip(rest, piece, strict=True))
        complete = len(piece[0]) // block * block
        if complete:
            yield tuple(array[:complete] for array in piece)
        rest = tuple(array[complete:] for array in piece)
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
    interpreter: Mapping[str, Any] | None = None,
    start: Callable[[Launch], Child] = start_process,
    resources: Resources | None = None,
    reports_memory: bool = False,
) -> BackendResult:
    """Run a request in a child, and return its outputs and latencies.

    If the connection to the child is lost, the run continues on a new one with the examples that are left.

    Args:
        command: Starts Python on this machine, if `start` starts a process here.
        request: The request.
        backend: The backend's name, for messages.
        environment: The child's environment variables; None passes on those of this process.
        path: Folders of NumPy and ai_edge_litert, if `command` does not find them.
        emulated: Whether `command` runs an emulator; then the result says so and the deadline is longer.
        interpreter: Entries of the request that choose another interpreter than LiteRT's, and configure it.
        start: Starts the child, as in `run_child`.
        resources: Cores and memory of the machine that runs the child; None for this machine.
        reports_memory: Whether the result has the memory of the process with the interpreter, if it is requested.

    Raises:
        InputError: The model does not accept the inputs.
        ModelError: The model fails, crashes, does not finish or needs more memory than there is.
        BackendError: Anything else went wrong.
    """
    model, resources = tflite.read(request.model), resources or local_resources()
    measures_memory = reports_memory and (request.measure_memory or request.num_runs > 0)
    first, pieces = split_first(request.inputs)
    plan = _make_plan(request, model, first, resources)
    settings = {
        "mode": "examples",
        "num_examples": request.num_examples,
        "num_workers": plan.num_workers,
        **{name: getattr(request, name) for name in ("num_threads", "kernels", "warmup_runs", "num_runs")},
        "path": list(path),
        "memory_bytes": memory_limit(model, resources.memory_bytes, num_threads=request.num_threads),
        "packed_weights": measures_memory and request.kernels == "xnnpack",
        **(interpreter or {}),
    }
    with scratch_directory() as directory:
        try:
            (directory / "model.tflite").write_bytes(request.model)
        except OSError as error:
            raise write_error(directory.parent, f"the model ({len(request.model):,} bytes)", error) from error
        completed: set[int] = set()
        for attempt in itertools.count():
            feed = Feed(directory, first, pieces, plan, completed)
            try:
                result = run_child(
                    command,
                    directory,
                    {**settings, **feed.request()},
                    backend=backend,
                    environment=environment,
                    total=feed.num_remaining,
                    deadline=choose_deadline(model, request.timeout_secs, plan.num_workers, emulated=emulated),
                    start=start,
                    feed=feed,
                )
                break
            except LostConnectionError as error:
                if attempt == RECONNECTS:
                    raise
                time.sleep(RECONNECT_SECS * 2**attempt)
                warn(f"{error}. Connecting again for the examples that are left")
                completed, (first, pieces) = feed.completed, split_first(request.inputs)
        feed.check_complete(backend)
        if reports_memory:
            result |= _memory(result, model) if measures_memory else {"memory_reason": NO_MEMORY}
        return _read_result(directory, result, request.num_examples, emulated, attempt)


NO_MEMORY = "not requested: it is measured with latencies (num_runs is 0)"


def _memory(result: dict[str, Any], model: tflite.Model) -> dict[str, Any]:
    """Return the memory that the child has measured, as entries of its result with notes on the figures."""
    notes = list(result["notes"])
    memory = {"peak_rss": result["used"]["peak_kb"] << 10, "peak_rss.before_the_model": result["base_kb"] << 10}
    packed = result["packed_weights"] or {}
    if "bytes" in packed:
        memory["xnnpack_packed_weights"] = packed["bytes"]
        graph = model.main_subgraph
        weights = [graph.tensors[op.inputs[1]] for op in graph.ops if op.name in PACKED_OPS]
        places = [tensor.buffer_offset for tensor in weights if tensor.is_constant]
        shared = len(places) - len(set(places))
        if shared:
            notes.append(
                f"xnnpack_packed_weights counts weights that several ops share once, as XNNPACK's weight cache does. "
                f"Without a cache, XNNPACK packs them again for {shared} more ops"
            )
    if "reason" in packed:
        notes.append(f"XNNPACK's packed weights were not measured: {packed['reason']}")
    return {"memory_bytes": memory, "notes": notes}


def _make_plan(request: RunRequest, model: tflite.Model, first: Arrays, resources: Resources) -> Plan:
    batch = batch_size_of(model) or 1
    num_workers = request.num_workers or max(1, resources.cores // request.num_threads)
    return Plan(
        num_examples=request.num_examples,
        batch=batch,
        num_workers=max(1, min(num_workers, request.num_examples // batch)),
        timed=request.warmup_runs + request.num_runs if request.num_runs else 0,
        example_bytes=sum(array[:1].nbytes for array in first),
    )


def run_samples(
    command: Sequence[str],
    model: bytes,
    samples: Sequence[Arrays],
    *,
    backend: str,
    path: Sequence[str] = (),
    kernels: str = "xnnpack",
    start: Callable[[Launch], Child] = start_process,
) -> list[Arrays]:
    """Run a few samples one by one in a child process.

    Args:
        command: Starts Python.
        model: The bytes of a `.tflite`.
        samples: For each sample one array per input of subgraph 0, in the model's own dtype. A shape may differ from
            the model's if the input can be resized.
        backend: The backend's name, for messages.
        path: Folders of NumPy and ai_edge_litert, if `command` does not find them.
        kernels: As in `RunRequest`.
        start: Starts the process, as in `run_child`.

    Returns:
        The outputs of each sample, in the model's own dtypes.

    Raises:
        InputError: There is no sample.
        ModelError: The model fails, crashes, does not finish or needs more memory than there is.
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
        "memory_bytes": memory_limit(parsed),
    }
    arrays = {f"{n}_{index}": array for n, sample in enumerate(samples) for index, array in enumerate(sample)}
    with scratch_directory() as directory:
        try:
            (directory / "model.tflite").write_bytes(model)
            np.savez(directory / "inputs.npz", **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise write_error(directory.parent, f"the model ({len(model):,} bytes) and its samples", error) from error
        result = run_child(
            command,
            directory,
            request,
            backend=backend,
            deadline=choose_deadline(parsed, 0, 1, emulated=False),
            start=start,
        )
        with np.load(directory / "outputs.npz") as outputs:
            count = result["num_outputs"]
            return [tuple(outputs[f"{n}_{index}"] for index in range(count)) for n in range(len(samples))]


def module_path() -> list[str]:
    """Return the import path for the target: the folders of NumPy and ai_edge_litert, then the rest of `sys.path`."""
    specs = [importlib.util.find_spec(name) for name in ("numpy", "ai_edge_litert")]
    origins = [os.path.dirname(os.path.dirname(spec.origin)) for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys([*origins, *(entry for entry in sys.path if os.path.isabs(entry))]))


def _read_result(
    directory: Path, result: dict[str, Any], num_examples: int, emulated: bool, reconnects: int
) -> BackendResult:
    timed = result["latencies_ms"] is not None
    outputs = [
        np.fromfile(directory / f"output_{index}", dtype).reshape(num_examples, *shape)
        for index, (dtype, shape) in enumerate(result["outputs"])
    ]
    return BackendResult(
        how="emulated" if emulated else "measured",
        outputs=tuple(outputs),
        latencies_ms=np.array(result["latencies_ms"], np.float64) if timed else None,
        latency_reason=None if timed else "no timed runs were requested (num_runs is 0)",
        memory_bytes=result["memory_bytes"],
        memory_reason=result.get("memory_reason"),
        total_ops=result["total_ops"],
        delegated_ops=result["delegated_ops"],
        unaccelerated=result["unaccelerated"],
        machine=result["machine"],
        notes=(*result["notes"], *([f"the connection was lost and restored {reconnects} times"] if reconnects else [])),
    )

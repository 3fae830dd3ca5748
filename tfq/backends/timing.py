# SPDX-License-Identifier: Apache-2.0
"""Measure latencies on a target: several models in alternation in one child process, and LiteRT's per-op profile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends import child
from tfq.backends.limits import Resources, memory_limit
from tfq.backends.protocol import check_arrays
from tfq.backends.scratch import scratch_directory, write_error
from tfq.errors import BackendError, InputError, ModelError

# Limit without progress. The target reports it after each inference outside of blocks, and after each round of blocks.
SILENT_SECS = 300.0
PROFILED_RUNS = 20  # profiled inferences, unless fewer are requested; they also last at least min_secs


@dataclass(frozen=True, kw_only=True, eq=False)
class TimedModel:
    """A model to time and its inputs.

    Args:
        name: The model's name, for messages.
        model: The bytes of a `.tflite`.
        inputs: One array of shape (k, ...) per input of subgraph 0: k complete inputs with the model's own batch, which
            the inferences cycle over.
        tensors: The tensor index of each of these inputs.
    """

    name: str
    model: bytes
    inputs: tuple[NDArray, ...]
    tensors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TimingRequest:
    """Models and kernels to time: each model on each kind of kernels.

    Args:
        models: The models.
        kernels: Kinds of kernels, as in `RunRequest`.
        num_threads: Threads of each interpreter.
        warmup_runs: Untimed inferences of each entry before the timed ones.
        num_runs: Minimum number of timed inferences of each entry.
        min_secs: Minimum time of the timed inferences of each entry, in seconds.
        seed: Seed of the order of the blocks.

    Raises:
        InputError: There is nothing to time, or an input is invalid.
    """

    models: tuple[TimedModel, ...]
    kernels: tuple[str, ...] = ("xnnpack",)
    num_threads: int = 1
    warmup_runs: int = 10
    num_runs: int = 100
    min_secs: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check everything that does not depend on the models."""
        if not self.models or not self.kernels:
            raise InputError("there is nothing to time, expected at least one model and one kind of kernels")
        for model in self.models:
            if model.inputs:
                check_arrays(model.inputs)

    @property
    def entries(self) -> list[tuple[TimedModel, str]]:
        """All pairs of model and kernels, which are timed in alternation."""
        return [(model, kernels) for model in self.models for kernels in self.kernels]


@dataclass(frozen=True, kw_only=True, eq=False)
class Timing:
    """The times of one model on one kind of kernels, in milliseconds.

    Args:
        initialization_ms: Time to create an interpreter and allocate its tensors, the median of up to five.
        first_ms: The first inference.
        latencies_ms: Each `invoke` alone, shape (n,).
        blocks_ms: Shape (rounds, 2). For each block of inferences, the mean time of `invoke` alone, and the mean time
            including tfq's own work (setting inputs, fetching outputs, the loop). Round r of all entries ran together.
        total_ops: As in `BackendResult`.
        delegated_ops: As in `BackendResult`.
    """

    initialization_ms: float
    first_ms: float
    latencies_ms: NDArray[np.float64]
    blocks_ms: NDArray[np.float64]
    total_ops: int | None
    delegated_ops: int | None


@dataclass(frozen=True, kw_only=True)
class OpEvent:
    """The time of one step of an inference, as LiteRT's profiler measures it.

    Args:
        name: The op, or the kernel if the step is inside a delegate.
        in_delegate: Whether the step is inside a delegate.
        index: Index of the op in its subgraph, or of the step in its delegate.
        subgraph: Index of the subgraph.
        mean_ms: Mean of several inferences, in milliseconds.
    """

    name: str
    in_delegate: bool
    index: int
    subgraph: int
    mean_ms: float


def time_models(
    command: Sequence[str],
    request: TimingRequest,
    *,
    backend: str,
    environment: Mapping[str, str] | None = None,
    start: Callable[[child.Launch], child.Child] = child.start_process,
    resources: Resources | None = None,
) -> tuple[list[Timing], dict[str, Any]]:
    """Time all entries of a request in one child process.

    Args:
        command: Starts Python.
        request: The request.
        backend: The backend's name, for messages.
        environment: The child's environment variables; None passes on those of this process.
        start: Starts the child, as in `run_child`.
        resources: Cores and memory of the machine that runs the child; None for this machine.

    Returns:
        The timing of each of `request.entries`, and the machine that they were measured on.

    Raises:
        InputError: A model does not accept its inputs; the message names the model.
        ModelError: A model fails or crashes; the message names it.
        BackendError: Anything else went wrong.
    """
    with scratch_directory() as directory:
        files = {id(model): _write(directory, index, model) for index, model in enumerate(request.models)}
        settings = {
            "mode": "benchmark",
            "entries": [{**files[id(model)], "kernels": kernels} for model, kernels in request.entries],
            **_common(request),
            "seed": request.seed,
            "memory_bytes": sum(_memory_limit(model, resources, request.num_threads) for model, _ in request.entries),
        }
        try:
            result = _run(command, directory, settings, backend, environment, start)
        except InputError as error:
            model, kernels = request.entries[_last_entry(directory)]
            raise type(error)(f"{model.name} on {kernels} kernels: {error}") from error
        timings = [
            Timing(
                initialization_ms=entry["initialization_ms"],
                first_ms=entry["first_ms"],
                latencies_ms=np.load(directory / f"latencies_{index}.npy"),
                blocks_ms=np.array(entry["blocks_ms"], np.float64),
                total_ops=entry["ops"][0],
                delegated_ops=entry["ops"][1],
            )
            for index, entry in enumerate(result["entries"])
        ]
        return timings, result["machine"]


def profile_ops(
    command: Sequence[str],
    request: TimingRequest,
    model: TimedModel,
    kernels: str,
    *,
    backend: str,
    environment: Mapping[str, str] | None = None,
    start: Callable[[child.Launch], child.Child] = child.start_process,
    resources: Resources | None = None,
) -> list[OpEvent] | str:
    """Profile the ops of `model` with LiteRT's profiler, in separate inferences in a separate process.

    Args:
        command: Starts Python.
        request: Settings of the inferences.
        model: The model.
        kernels: Kind of kernels, as in `RunRequest`.
        backend: The backend's name, for messages.
        environment: The child's environment variables; None passes on those of this process.
        start: Starts the child, as in `run_child`.
        resources: Cores and memory of the machine that runs the child; None for this machine.

    Returns:
        The steps of an inference in order, or the reason why they could not be profiled.
    """
    with scratch_directory() as directory:
        settings = {
            "mode": "op_times",
            **_write(directory, 0, model),
            "tensors": list(model.tensors),
            "kernels": kernels,
            **_common(request),
            "num_runs": min(request.num_runs, PROFILED_RUNS),
            "memory_bytes": _memory_limit(model, resources, request.num_threads),
        }
        try:
            result = _run(command, directory, settings, backend, environment, start)
        except (ModelError, BackendError) as error:
            return f"LiteRT's profiler is not available: {error}"
        if "reason" in result:
            return f"LiteRT's profiler is not available: {result['reason']}"
        return [
            OpEvent(name=tag, in_delegate=kind != _OP_EVENT, index=index, subgraph=subgraph, mean_ms=mean)
            for tag, kind, index, subgraph, mean in result["events"]
        ]


_OP_EVENT = 2


def _run(
    command: Sequence[str],
    directory: Path,
    settings: Mapping[str, Any],
    backend: str,
    environment: Mapping[str, str] | None,
    start: Callable[[child.Launch], child.Child],
) -> dict[str, Any]:
    return child.run_child(
        command,
        directory,
        settings,
        backend=backend,
        environment=environment,
        total=100,
        unit="%",
        deadline=SILENT_SECS,
        start=start,
    )


def _common(request: TimingRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("num_threads", "warmup_runs", "num_runs", "min_secs")}


def _memory_limit(model: TimedModel, resources: Resources | None, num_threads: int) -> int:
    """Return the limit on the bytes of one interpreter; raise ModelError if the model cannot run on the machine."""
    try:
        available = None if resources is None else resources.memory_bytes
        parsed = tflite.read(model.model)
        return memory_limit(parsed, available, num_threads=num_threads, enlarged=_enlarged(parsed, model.inputs))
    except ModelError as error:
        raise ModelError(
            f"{model.name}: {error}", field=error.field, expected=error.expected, got=error.got, limit=error.limit
        ) from error


def _enlarged(model: tflite.Model, inputs: Sequence[NDArray]) -> int:
    """Return how many times larger than in the file the batch of the inputs is, at least 1."""
    batches = [
        (array.shape[1], tensor.shape[0])
        for array, tensor in zip(inputs, model.main_subgraph.input_tensors, strict=False)
        if array.ndim > 1 and tensor.shape and tensor.shape[0]
    ]
    return max((-(-batch // own) for batch, own in batches), default=1)


def _write(directory: Path, position: int, model: TimedModel) -> dict[str, Any]:
    """Write the model and its inputs to `directory`, and return {"model": file name, "inputs": [file names]}."""
    names = [f"input_{position}_{index}.npy" for index in range(len(model.inputs))]
    try:
        (directory / f"model_{position}.tflite").write_bytes(model.model)
        for name, array in zip(names, model.inputs, strict=True):
            np.save(directory / name, array)
    except OSError as error:
        raise write_error(directory.parent, f"{model.name} and its inputs", error) from error
    return {"model": f"model_{position}.tflite", "inputs": names}


def _last_entry(directory: Path) -> int:
    """Return the index of the entry that the child worked on last."""
    try:
        return int((directory / "at").read_text())
    except (OSError, ValueError):
        return 0

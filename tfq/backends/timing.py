# SPDX-License-Identifier: Apache-2.0
"""Timing on a target: models on kernels in turn in one child process, and what LiteRT's profiler tells of the ops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.backends import child
from tfq.backends.protocol import check_arrays
from tfq.backends.scratch import no_room, scratch_directory
from tfq.errors import BackendError, InputError, ModelError

# Without a sign of life; one comes after every inference that is not part of a block, and after every round of blocks.
SILENT_SECS = 300.0
PROFILED_RUNS = 20  # at least, unless fewer are asked for; and as many seconds as the timed ones


@dataclass(frozen=True, kw_only=True, eq=False)
class TimedModel:
    """A model to time and what it is fed.

    model: the bytes of a `.tflite`. inputs: one array an input of subgraph 0, (k, ...): k whole inputs of the model,
    with its own batch, that take turns. tensors: the tensor index of each of these inputs.
    """

    name: str
    model: bytes
    inputs: tuple[NDArray, ...]
    tensors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TimingRequest:
    """Models, each on each of the kernels; at least `num_runs` and `min_secs` of timed inferences of each.

    seed: of the order of the blocks. Raises InputError on what could not be timed.
    """

    models: tuple[TimedModel, ...]
    kernels: tuple[str, ...] = ("xnnpack",)
    num_threads: int = 1
    warmup_runs: int = 10
    num_runs: int = 100
    min_secs: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.models or not self.kernels:
            raise InputError("nothing to time: expected at least one model and one kind of kernels")
        for model in self.models:
            if model.inputs:
                check_arrays(model.inputs)

    @property
    def entries(self) -> list[tuple[TimedModel, str]]:
        """What takes turns: each model on each kind of kernels."""
        return [(model, kernels) for model in self.models for kernels in self.kernels]


@dataclass(frozen=True, kw_only=True, eq=False)
class Timing:
    """The times of one model on one kind of kernels, in milliseconds.

    initialization_ms: to make and allocate an interpreter, the median of up to five. first_ms: its first inference.
    latencies_ms: (n,) of each `invoke` alone. blocks_ms: (rounds, 2): of each block of inferences, the mean of `invoke`
        alone and with what is ours (inputs set, outputs fetched, the loop); round r of all entries was run together.
    total_ops, delegated_ops: as in BackendResult, None where the interpreter cannot tell.
    """

    initialization_ms: float
    first_ms: float
    latencies_ms: NDArray[np.float64]
    blocks_ms: NDArray[np.float64]
    total_ops: int | None
    delegated_ops: int | None


@dataclass(frozen=True, kw_only=True)
class OpEvent:
    """What LiteRT's profiler says of one step of an inference: the mean of several, in milliseconds.

    index: of the op in its subgraph; of a step inside a delegate, its number there. `name` is the kernel's there.
    """

    name: str
    in_delegate: bool
    index: int
    subgraph: int
    mean_ms: float


def time_models(
    command: Sequence[str], request: TimingRequest, *, backend: str, environment: Mapping[str, str] | None = None
) -> tuple[list[Timing], dict[str, Any]]:
    """The timing of each of `request.entries`, and the machine that it was taken on.

    Raises ModelError, which names the model, where one of them fails or crashes; BackendError on all else.
    """
    with scratch_directory() as directory:
        files = {id(model): _write(directory, place, model) for place, model in enumerate(request.models)}
        settings = {
            "mode": "benchmark",
            "entries": [{**files[id(model)], "kernels": kernels} for model, kernels in request.entries],
            **_common(request),
            "seed": request.seed,
        }
        try:
            result = _run(command, directory, settings, backend, environment)
        except InputError as error:
            model, kernels = request.entries[_place(directory)]
            raise type(error)(f"{model.name} on {kernels} kernels: {error}") from error
        timings = [
            Timing(
                initialization_ms=entry["initialization_ms"],
                first_ms=entry["first_ms"],
                latencies_ms=np.load(directory / f"latencies_{place}.npy"),
                blocks_ms=np.array(entry["blocks_ms"], np.float64),
                total_ops=entry["ops"][0],
                delegated_ops=entry["ops"][1],
            )
            for place, entry in enumerate(result["entries"])
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
) -> list[OpEvent] | str:
    """What LiteRT's profiler tells of `model`, in inferences of their own in a process of their own; or why nothing."""
    with scratch_directory() as directory:
        settings = {
            "mode": "op_times",
            **_write(directory, 0, model),
            "tensors": list(model.tensors),
            "kernels": kernels,
            **_common(request),
            "num_runs": min(request.num_runs, PROFILED_RUNS),
        }
        try:
            result = _run(command, directory, settings, backend, environment)
        except (ModelError, BackendError) as error:
            return f"LiteRT's profiler could not be used: {error}"
        if "reason" in result:
            return f"LiteRT's profiler could not be used: {result['reason']}"
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
    )


def _common(request: TimingRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("num_threads", "warmup_runs", "num_runs", "min_secs")}


def _write(directory: Path, place: int, model: TimedModel) -> dict[str, Any]:
    """The model's files in `directory`: {"model": name, "inputs": [names]}."""
    names = [f"input_{place}_{index}.npy" for index in range(len(model.inputs))]
    try:
        (directory / f"model_{place}.tflite").write_bytes(model.model)
        for name, array in zip(names, model.inputs, strict=True):
            np.save(directory / name, array)
    except OSError as error:
        raise no_room(directory.parent, f"{model.name} and its inputs", error) from error
    return {"model": f"model_{place}.tflite", "inputs": names}


def _place(directory: Path) -> int:
    """Which entry was worked on last."""
    try:
        return int((directory / "at").read_text())
    except (OSError, ValueError):
        return 0

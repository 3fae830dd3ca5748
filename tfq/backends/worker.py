# SPDX-License-Identifier: Apache-2.0
"""A RunRequest for the target: model and settings as files, examples in blocks, and what comes back."""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfq import tflite
from tfq.backends.child import Child, run_child, start_process
from tfq.backends.feed import Feed, Plan, begun
from tfq.backends.limits import deadline_of, memory_of
from tfq.backends.protocol import RunRequest, RunResult
from tfq.backends.scratch import no_room, scratch_directory


def run_worker(
    command: Sequence[str],
    request: RunRequest,
    *,
    runner: str,
    environment: Mapping[str, str] | None = None,
    path: Sequence[str] = (),
    emulated: bool = False,
    start: Callable[..., Child] = start_process,
) -> RunResult:
    """Run the request by `command` + [the target, a directory], which is gone afterwards, however this ends.

    path: where NumPy and ai_edge_litert are, if `command` does not know it. emulated: give it the time that takes.
    start: of `run_child`.
    Raises InputError when the model does not take the inputs, ModelError when it fails, crashes or never ends,
    RunnerError on all else.
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
            runner=runner,
            environment=environment,
            total=request.num_examples,
            deadline=deadline_of(model, request.timeout_secs, plan.num_workers, emulated=emulated),
            start=start,
            feed=feed,
        )
        return _read(directory, result, request.num_examples)


def module_path() -> list[str]:
    """Where this Python finds what the target needs: the folders of NumPy and ai_edge_litert, then all others."""
    specs = [importlib.util.find_spec(name) for name in ("numpy", "ai_edge_litert")]
    origins = [os.path.dirname(os.path.dirname(spec.origin)) for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys([*origins, *(entry for entry in sys.path if os.path.isabs(entry))]))


def _num_workers(request: RunRequest, batch: int) -> int:
    wanted = request.num_workers or max(1, len(os.sched_getaffinity(0)) // request.num_threads)
    return max(1, min(wanted, request.num_examples // batch))


def _read(directory: Path, result: dict[str, Any], num_examples: int) -> RunResult:
    timed = result["latencies_ms"] is not None
    outputs = [
        np.fromfile(directory / f"output_{place}", dtype).reshape(num_examples, *shape)
        for place, (dtype, shape) in enumerate(result["outputs"])
    ]
    return RunResult(
        outputs=tuple(outputs),
        latencies_ms=np.array(result["latencies_ms"], np.float64) if timed else None,
        latency_reason=None if timed else "no timed runs were asked for (num_runs is 0)",
        total_ops=result["total_ops"],
        delegated_ops=result["delegated_ops"],
        machine=result["machine"],
        notes=tuple(result["notes"]),
    )

# SPDX-License-Identifier: Apache-2.0
"""The worker in a child process: its files, its progress, and its crash turned into an error."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tfq.errors import InputError, RunnerError
from tfq.runners.base import RunRequest, RunResult

WORKER = Path(__file__).with_name("worker.py")
STDERR_LINES = 5


def run_worker(
    command: Sequence[str], request: RunRequest, *, runner: str, environment: Mapping[str, str] | None = None
) -> RunResult:
    """Run the request by `command` + [the worker, a directory], which is gone afterwards, however this ends.

    Raises InputError when the model does not take the inputs, RunnerError when the interpreter fails or crashes.
    """
    with tempfile.TemporaryDirectory(prefix="tfq-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        _write_request(directory, request)
        status = _run(
            [*command, str(WORKER), name], directory, request.num_examples, runner=runner, environment=environment
        )
        result = _read_result(directory, runner, status)
        return RunResult(
            outputs=tuple(np.load(directory / f"output_{index}.npy") for index in range(result["num_outputs"])),
            latencies_ms=None if result["latencies_ms"] is None else np.array(result["latencies_ms"], np.float64),
            latency_reason=None
            if result["latencies_ms"] is not None
            else "no timed runs were asked for (num_runs is 0)",
            total_ops=result["total_ops"],
            delegated_ops=result["delegated_ops"],
            machine=result["machine"],
            notes=tuple(result["notes"]),
        )


def _write_request(directory: Path, request: RunRequest) -> None:
    settings = {
        "num_inputs": len(request.inputs),
        "num_threads": request.num_threads,
        "xnnpack": request.xnnpack,
        "warmup_runs": request.warmup_runs,
        "num_runs": request.num_runs,
    }
    try:
        (directory / "request.json").write_text(json.dumps(settings))
        (directory / "model.tflite").write_bytes(request.model)
        for index, array in enumerate(request.inputs):
            np.save(directory / f"input_{index}.npy", array)
    except OSError as error:
        size = len(request.model) + sum(array.nbytes for array in request.inputs)
        raise RunnerError(
            f"cannot write model and inputs ({size:,} bytes) below {directory.parent}: {error.strerror or error}: "
            "make room there, or set TMPDIR to a directory that has it"
        ) from error


def _run(command: list[str], directory: Path, total: int, *, runner: str, environment: Mapping[str, str] | None) -> int:
    """The child's exit status, -N for signal N. Its stderr goes to a file: nobody wants to see it unless it fails."""
    from tqdm import tqdm

    with open(directory / "stderr", "wb") as stderr:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environment
            )
        except OSError as error:
            raise RunnerError(f"{runner}: cannot start {command[0]}: {error.strerror or error}") from error
    try:
        # disable=None: silent unless stderr is a terminal. The delay keeps the bar of a short run off the screen.
        with child.stdout, tqdm(total=total, desc=runner, unit="ex", disable=None, leave=False, delay=0.5) as bar:  # type: ignore[union-attr]
            for line in child.stdout:  # type: ignore[union-attr]
                words = line.split()
                if len(words) == 2 and words[0] == b"progress" and words[1].isdigit():
                    bar.update(int(words[1]) - bar.n)
        return child.wait()
    finally:
        child.kill()
        child.wait()


def _read_result(directory: Path, runner: str, status: int) -> dict[str, Any]:
    try:
        result = json.loads((directory / "result.json").read_text())
    except FileNotFoundError:
        told = _last_lines(directory / "stderr")
        raise RunnerError(
            f"{runner}: the interpreter {_ending(status)}{f': {told}' if told else ''}: the model may be damaged, or "
            "the machine out of memory"
        ) from None
    error = result.get("error")
    if error is None:
        return result
    if error["kind"] == "input":
        raise InputError(f"{runner}: {error['message']}")
    told = _last_lines(directory / "stderr")
    raise RunnerError(f"{runner}: the interpreter failed: {error['message']}{f' ({told})' if told else ''}")


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with exit code {status} and without a result"
    name = str(-status)
    with suppress(ValueError):
        name = signal.Signals(-status).name
    return f"was killed by signal {name}"


def _last_lines(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line and not line.startswith("INFO:")][-STDERR_LINES:])

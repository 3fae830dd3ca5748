# SPDX-License-Identifier: Apache-2.0
"""A small run to kill, and checks of the files and processes that a killed run leaves."""

import json
import os
import signal
import time
import zipfile
from pathlib import Path

import h5py
from warm import Program

SETTINGS = (
    "--model=digits_cnn", "--data=digits", "--training.epochs=1", "--compression.train.epochs=1",
    "--compression.prune.frequency=5", "--conversion.num_calibration_samples=20", "--evaluation.num_runs=5",
    "--evaluation.limit=64", "--benchmark.num_runs=5", "--benchmark.min_secs=0", "--nobenchmark.ops",
)  # fmt: skip
FLATBUFFERS = ("digits_cnn_float32.tflite", "digits_cnn_int8.tflite", "digits_cnn_pruned_qat_int8.tflite")


def start(out: Path, *more: str) -> Program:
    """Start the run in a separate process group, as a terminal does."""
    return Program(["-m", "tfq", "run", f"--out={out}", *SETTINGS, *more], Path.cwd(), os.environ)


def finish(run: Program) -> str:
    """Wait for the run to succeed and return its output."""
    message, _ = run.communicate(timeout=300)
    assert run.returncode == 0, message
    return message


def kill(run: Program) -> None:
    """Kill only the run with kill -9: its children must notice by themselves."""
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()


def stages_on_disk(out: Path) -> set[str]:
    folder = out / ".stages"
    return {entry.name for entry in folder.iterdir() if entry.name[0] != "."} if folder.is_dir() else set()


def flatbuffers(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FLATBUFFERS if (out / name).exists()}


def check_nothing_is_half_written(out: Path, whole: dict[str, bytes]) -> None:
    """Check that every file with a final name is complete; flatbuffers equal those of the uninterrupted run."""
    for name, content in flatbuffers(out).items():
        assert content == whole[name], f"{name} is not the uninterrupted run's"
    for path in out.glob("*.keras"):
        if not path.name.startswith("."):
            assert zipfile.ZipFile(path).testzip() is None
    for path in out.glob("*.h5"):
        if not path.name.startswith("."):
            assert "model_weights" in h5py.File(path)
    for path in out.glob("*.json"):
        json.loads(path.read_text())


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def wait_until_dead(pids: list[int], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < end, f"{pids} outlive the run that started them"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer for ARM under QEMU's user-mode emulation of one CPU, and count its instructions."""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfq import tflite
from tfq.backends.child import run_child
from tfq.backends.limits import deadline_of, memory_of
from tfq.backends.protocol import (
    Backend,
    BackendKind,
    BackendResult,
    InputStream,
    InstructionCounts,
    RunRequest,
)
from tfq.backends.qemu.sysroot_build import CPUS, Sysroot
from tfq.backends.scratch import no_room, scratch_directory
from tfq.backends.worker import run_worker
from tfq.errors import BackendError
from tfq.registry import register

# Python adapts its bytecode to what runs, and fills its free lists; from the 11th inference on nothing of that is left.
WARMUP_RUNS = 12
COUNTED_RUNS = 5


def read_counts(text: str) -> dict[str, int]:
    """instructions, lowest, highest and inferences of the plugin's lines: "<instructions so far> <threads so far>".

    Three marks an inference: before it, after it, and another after that.
    Raises BackendError where marks are missing, or another thread ran whose instructions would be in the counts.
    """
    lines = [line.split() for line in text.splitlines()]
    rounds = WARMUP_RUNS + COUNTED_RUNS
    if len(lines) != 3 * rounds:
        raise BackendError(
            f"the emulator noted {len(lines)} marks, {3 * rounds} were set: its plugin does not work",
            expected=3 * rounds,
            got=len(lines),
        )
    threads = max(int(line[1]) for line in lines)
    if threads != 1:
        raise BackendError(
            f"{threads} threads ran in the emulator: expected one, since all are counted together",
            expected=1,
            got=threads,
        )
    marks = [int(line[0]) for line in lines]
    rounds_of_marks = list(zip(marks[0::3], marks[1::3], marks[2::3], strict=True))[WARMUP_RUNS:]
    cost_of_marks = statistics.median_low([again - after for _, after, again in rounds_of_marks])
    counts = [after - before - cost_of_marks for before, after, _ in rounds_of_marks]
    return {
        "instructions": statistics.median_low(counts),
        "lowest": min(counts),
        "highest": max(counts),
        "inferences": len(counts),
    }


NOT_ASKED = "not asked for"
NO_LATENCY = "not measured: the time of an emulator says nothing about a device"


def _unavailable(cpu: str | None = None) -> str | None:
    from tfq.backends.qemu import sysroot

    return sysroot.unavailable(cpu)


class QemuBackend(Backend):
    """Runs on an emulated arm64 CPU: its outputs are the device's, its time is not, so it never reports a latency."""

    def __init__(self, cpu: str) -> None:
        self.kind, self.address, self.cpu = QEMU, cpu, cpu

    def unavailable(self) -> str | None:
        """Return why this CPU cannot be emulated and what to do about it, or None if it can."""
        return _unavailable(self.cpu)

    def fingerprint(self) -> list[object]:
        """Return why it cannot count, if so, and the emulator that is installed."""
        from tfq.backends.qemu import sysroot

        result = sysroot.find()
        return [
            self.cannot_count(),
            None if result is None else [result.directory.name, result.qemu, result.counted_by],
        ]

    def assess(self, request: RunRequest) -> BackendResult:
        """Run the request, without its timed runs, and count instructions if it asks for that.

        Raises InputError when the model does not take these inputs, BackendError on all else.
        """
        counted: BackendResult | None = None
        if request.count_instructions:
            reason = self.cannot_count()
            if reason is None:
                counted = self.count_instructions(request)
            else:
                counted = BackendResult(
                    how="emulated", outputs_reason=NOT_ASKED, latency_reason=NO_LATENCY, instructions_reason=reason
                )
        if not request.outputs and counted is not None:
            return counted
        result = self._run(request)
        if counted is None:
            return dataclasses.replace(result, instructions_reason=NOT_ASKED)
        return dataclasses.replace(
            result, instructions=counted.instructions, instructions_reason=counted.instructions_reason
        )

    def _run(self, request: RunRequest) -> BackendResult:
        """Run the request, without its timed runs.

        Raises InputError when the model does not take these inputs, BackendError on all else.
        """
        from tfq.backends.qemu import sysroot

        reason = self.unavailable()
        installed = sysroot.find()
        if reason or installed is None:
            raise BackendError(f"{self.name}: {reason}")
        result = run_worker(
            [*installed.command(self.cpu), "-B"],
            dataclasses.replace(request, warmup_runs=0, num_runs=0),
            backend=self.name,
            environment=installed.environment(),
            emulated=True,
        )
        machine = self._machine(result.machine, installed.qemu)
        return dataclasses.replace(result, latency_reason=NO_LATENCY, machine=machine)

    def cannot_count(self) -> str | None:
        """Why it cannot count instructions here, and what to do about it; None when it can."""
        from tfq.backends.qemu import sysroot

        return sysroot.cannot_count(self.cpu)

    def count_instructions(self, request: RunRequest) -> BackendResult:
        """Count what one inference of the request's first example executes, on one thread; compute no outputs.

        Raises InputError when the model does not take these inputs, ModelError when it fails, BackendError on all else.
        """
        from tfq.backends.qemu import sysroot

        reason = self.cannot_count()
        installed = sysroot.find()
        if reason or installed is None:
            raise BackendError(f"{self.name}: {reason}")
        with scratch_directory() as directory:
            result = self._mark_inferences(installed, request, directory)
            noted = directory / "counts"
            counts = read_counts(noted.read_text() if noted.exists() else "")
        instructions = InstructionCounts(
            **counts,
            batch=result["batch"],
            counted_by=f"TCG plugin ({installed.counted_by}) of QEMU {installed.qemu}",
        )
        return BackendResult(
            how="emulated",
            outputs_reason=NOT_ASKED,
            latency_reason=NO_LATENCY,
            instructions=instructions,
            total_ops=result["total_ops"],
            delegated_ops=result["delegated_ops"],
            machine=self._machine(result["machine"], installed.qemu),
            notes=tuple(result["notes"]),
        )

    def _mark_inferences(self, installed: Sysroot, request: RunRequest, directory: Path) -> dict[str, Any]:
        """Run the target's mode "instructions", with the plugin counting to directory/counts; the mode's result."""
        model = tflite.read(request.model)
        inputs = next(request.inputs.pieces()) if isinstance(request.inputs, InputStream) else request.inputs
        settings = {
            "mode": "instructions",
            "num_inputs": len(inputs),
            "num_threads": 1,
            "kernels": request.kernels,
            "warmup_runs": WARMUP_RUNS,
            "counted_runs": COUNTED_RUNS,
            "memory_bytes": memory_of(model),
        }
        try:
            (directory / "model.tflite").write_bytes(request.model)
            for index, array in enumerate(inputs):
                np.save(directory / f"input_{index}.npy", array[:1])
        except OSError as error:
            raise no_room(directory.parent, f"the model ({len(request.model):,} bytes)", error) from error
        return run_child(
            [*installed.command(self.cpu, counts=directory / "counts"), "-B"],
            directory,
            settings,
            backend=self.name,
            environment=installed.environment(repeatable=True),
            total=WARMUP_RUNS + COUNTED_RUNS,
            unit="inf",
            deadline=deadline_of(model, request.timeout_secs, 1, emulated=True),
        )

    def _machine(self, machine: Mapping[str, Any], qemu: str) -> dict[str, Any]:
        return {**machine, "cpu": self.cpu, "emulator": f"qemu-aarch64 {qemu}"}


QEMU = register(
    BackendKind(
        name="qemu",
        help="an ARM CPU emulated by QEMU; computes outputs and counts instructions, but measures no latency",
        open=QemuBackend,
        how="emulated",
        counts_instructions=True,
        address="CPU",
        addresses=tuple(CPUS),
        unavailable=_unavailable,
    )
)

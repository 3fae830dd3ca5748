# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer on an ARM CPU that QEMU emulates in user mode, and count its instructions."""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfq import tflite
from tfq.backends.child import run_child
from tfq.backends.limits import choose_deadline, memory_limit
from tfq.backends.protocol import (
    Backend,
    BackendKind,
    BackendResult,
    InputStream,
    InstructionCounts,
    RunRequest,
)
from tfq.backends.qemu.sysroot_build import CPUS, NEWER_CPUS, Sysroot
from tfq.backends.scratch import scratch_directory, write_error
from tfq.backends.worker import run_worker
from tfq.errors import BackendError
from tfq.registry import register

# Python specializes its bytecode and fills its free lists in the first 10 inferences. Later ones cost the same.
WARMUP_RUNS = 12
COUNTED_RUNS = 5


def read_counts(text: str) -> dict[str, int]:
    """Parse the plugin's lines "<instructions so far> <threads so far>".

    Each inference has three marks: one before it and two after it. The difference of the last two is the cost of a mark
    itself, which is subtracted.

    Returns:
        The fields instructions, lowest, highest and inferences of `InstructionCounts`.

    Raises:
        BackendError: Marks are missing, or a second thread ran, whose instructions would be counted too.
    """
    lines = [line.split() for line in text.splitlines()]
    rounds = WARMUP_RUNS + COUNTED_RUNS
    if len(lines) != 3 * rounds:
        raise BackendError(
            f"the emulator's plugin does not work: it recorded {len(lines)} marks, expected {3 * rounds}",
            expected=3 * rounds,
            got=len(lines),
        )
    threads = max(int(line[1]) for line in lines)
    if threads != 1:
        raise BackendError(
            f"{threads} threads ran in the emulator, expected one, because the counts include all threads",
            expected=1,
            got=threads,
        )
    marks = [int(line[0]) for line in lines]
    rounds_of_marks = list(zip(marks[0::3], marks[1::3], marks[2::3], strict=True))[WARMUP_RUNS:]
    mark_cost = statistics.median_low([second - first for _, first, second in rounds_of_marks])
    counts = [end - start - mark_cost for start, end, _ in rounds_of_marks]
    return {
        "instructions": statistics.median_low(counts),
        "lowest": min(counts),
        "highest": max(counts),
        "inferences": len(counts),
    }


NOT_REQUESTED = "not requested"
NO_LATENCY = "not measured, because the speed of an emulator says nothing about a device"


def _unavailable(cpu: str | None = None) -> str | None:
    from tfq.backends.qemu import sysroot

    return sysroot.unavailable(cpu)


class QemuBackend(Backend):
    """An emulated arm64 CPU. Its outputs are those of the device; it never reports a latency."""

    def __init__(self, cpu: str) -> None:
        """Open the backend for one of CPUS. The emulator need not be installed yet."""
        self.kind, self.address, self.cpu = QEMU, cpu, cpu

    def unavailable(self) -> str | None:
        """Return why this CPU cannot be emulated and what to do about it, or None if it can."""
        return _unavailable(self.cpu)

    def fingerprint(self) -> list[object]:
        """Return the reason why instructions cannot be counted (or None), and the installed emulator."""
        from tfq.backends.qemu import sysroot

        result = sysroot.find()
        return [
            self.cannot_count(),
            None if result is None else [result.directory.name, result.version(self.cpu), result.counted_by],
        ]

    def assess(self, request: RunRequest) -> BackendResult:
        """Run the request without its timed runs, and count instructions if requested; see `Backend.assess`.

        If instructions cannot be counted on this machine, the result says why.
        """
        counted: BackendResult | None = None
        if request.count_instructions:
            reason = self.cannot_count()
            if reason is None:
                counted = self.count_instructions(request)
            else:
                counted = BackendResult(
                    how="emulated", outputs_reason=NOT_REQUESTED, latency_reason=NO_LATENCY, instructions_reason=reason
                )
        if not request.outputs and counted is not None:
            return counted
        result = self._run(request)
        if counted is None:
            return dataclasses.replace(result, instructions_reason=NOT_REQUESTED)
        return dataclasses.replace(
            result, instructions=counted.instructions, instructions_reason=counted.instructions_reason
        )

    def _run(self, request: RunRequest) -> BackendResult:
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
        machine = self._machine(result.machine, installed.version(self.cpu))
        return dataclasses.replace(result, latency_reason=NO_LATENCY, machine=machine)

    def cannot_count(self) -> str | None:
        """Return why instructions cannot be counted on this machine and what to do about it, or None if they can."""
        from tfq.backends.qemu import sysroot

        return sysroot.cannot_count(self.cpu)

    def count_instructions(self, request: RunRequest) -> BackendResult:
        """Count the instructions of one inference of the request's first example on one thread.

        Returns:
            A result with instructions and without outputs.

        Raises:
            InputError: The model does not accept these inputs.
            ModelError: The model fails, crashes or does not finish.
            BackendError: Anything else went wrong.
        """
        from tfq.backends.qemu import sysroot

        reason = self.cannot_count()
        installed = sysroot.find()
        if reason or installed is None:
            raise BackendError(f"{self.name}: {reason}")
        with scratch_directory() as directory:
            result = self._mark_inferences(installed, request, directory)
            file = directory / "counts"
            counts = read_counts(file.read_text() if file.exists() else "")
        instructions = InstructionCounts(
            **counts,
            batch=result["batch"],
            counted_by=f"TCG plugin ({installed.counted_by}) of QEMU {installed.counting_qemu or installed.qemu}",
        )
        return BackendResult(
            how="emulated",
            outputs_reason=NOT_REQUESTED,
            latency_reason=NO_LATENCY,
            instructions=instructions,
            total_ops=result["total_ops"],
            delegated_ops=result["delegated_ops"],
            machine=self._machine(result["machine"], installed.counting_qemu or installed.qemu),
            notes=tuple(result["notes"]),
        )

    def _mark_inferences(self, installed: Sysroot, request: RunRequest, directory: Path) -> dict[str, Any]:
        """Run the target's mode "instructions", with the plugin writing to directory/counts. Return its result."""
        model = tflite.read(request.model)
        inputs = next(request.inputs.pieces()) if isinstance(request.inputs, InputStream) else request.inputs
        settings = {
            "mode": "instructions",
            "num_inputs": len(inputs),
            "num_threads": 1,
            "kernels": request.kernels,
            "warmup_runs": WARMUP_RUNS,
            "counted_runs": COUNTED_RUNS,
            "memory_bytes": memory_limit(model),
        }
        try:
            (directory / "model.tflite").write_bytes(request.model)
            for index, array in enumerate(inputs):
                np.save(directory / f"input_{index}.npy", array[:1])
        except OSError as error:
            raise write_error(directory.parent, f"the model ({len(request.model):,} bytes)", error) from error
        return run_child(
            [*installed.command(self.cpu, counts=directory / "counts"), "-B"],
            directory,
            settings,
            backend=self.name,
            environment=installed.environment(repeatable=True),
            total=WARMUP_RUNS + COUNTED_RUNS,
            unit="inf",
            deadline=choose_deadline(model, request.timeout_secs, 1, emulated=True),
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
        addresses=(*CPUS, *NEWER_CPUS),
        unavailable=_unavailable,
    )
)

# SPDX-License-Identifier: Apache-2.0
"""ARM without a device: the worker under QEMU's user-mode emulation of one CPU."""

import dataclasses

from tfq.errors import RunnerError
from tfq.runners.base import RunRequest, RunResult
from tfq.runners.child import run_worker

NO_LATENCY = "not measured: the time of an emulator says nothing about a device"


class QemuRunner:
    """Runs on an emulated arm64 CPU: its outputs are the device's, its time is not, so it never reports a latency."""

    emulated = True

    def __init__(self, cpu: str) -> None:
        self.cpu = cpu

    @property
    def name(self) -> str:
        """qemu:CPU."""
        return f"qemu:{self.cpu}"

    def unavailable(self) -> str | None:
        """Why it cannot run and what to do about it."""
        from tfq.runners import sysroot  # late: `python -m tfq.runners.sysroot` must find it not yet imported

        return sysroot.unavailable(self.cpu)

    def run(self, request: RunRequest) -> RunResult:
        """Run the request, without its timed runs.

        Raises InputError when the model does not take these inputs, RunnerError on all else.
        """
        from tfq.runners import sysroot

        reason = self.unavailable()
        installed = sysroot.find()
        if reason or installed is None:
            raise RunnerError(f"{self.name}: {reason}")
        result = run_worker(
            [*installed.command(self.cpu), "-B"],
            dataclasses.replace(request, warmup_runs=0, num_runs=0),
            runner=self.name,
            environment=installed.environment(),
        )
        machine = {**result.machine, "cpu": self.cpu, "emulator": f"qemu-aarch64 {installed.qemu}"}
        return dataclasses.replace(result, latency_reason=NO_LATENCY, machine=machine)

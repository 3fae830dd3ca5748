# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer on this machine, in a child process so that a crash of the interpreter only fails that run."""

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from tfq.backends import timing
from tfq.backends.forks import start_fork, start_server
from tfq.backends.protocol import Backend, BackendKind, BackendResult, RunRequest
from tfq.backends.worker import Arrays, module_path, run_samples, run_worker
from tfq.errors import BackendError
from tfq.registry import register


def _unavailable() -> str | None:
    if importlib.util.find_spec("ai_edge_litert") is None:
        return f"ai-edge-litert is not installed for {sys.executable}: pip install ai-edge-litert"
    return None


class LocalBackend(Backend):
    """This machine's CPU."""

    def __init__(self) -> None:
        """Open the backend. No process starts before the first run."""
        self.kind = LOCAL

    # -S saves the time of `site` at each start: the path of the modules is already known here.
    COMMAND = (sys.executable, "-I", "-S")

    def check_available(self) -> None:
        """Raise BackendError if ai-edge-litert is not installed."""
        reason = self.unavailable()
        if reason:
            raise BackendError(f"{self.name}: {reason}")

    def prepare(self) -> None:
        """Start the process that children are forked from, so that its imports run while the data is read."""
        if self.unavailable() is None:
            start_server(module_path())

    def assess(self, request: RunRequest) -> BackendResult:
        """Run the request, as `Backend.assess` describes."""
        self.check_available()
        return run_worker(
            self.COMMAND, request, backend=self.name, path=module_path(), start=start_fork, reports_memory=True
        )

    def run_samples(self, model: bytes, samples: Sequence[Arrays], kernels: str = "xnnpack") -> list[Arrays]:
        """Run a few samples one by one with `worker.run_samples` on this machine."""
        self.check_available()
        return run_samples(
            self.COMMAND,
            model,
            samples,
            backend=self.name,
            path=module_path(),
            kernels=kernels,
            start=start_fork,
        )

    def time_models(self, request: timing.TimingRequest) -> tuple[list[timing.Timing], dict[str, Any]]:
        """Time models with `timing.time_models` on this machine."""
        return timing.time_models([sys.executable], request, backend=self.name)

    def profile_ops(
        self, request: timing.TimingRequest, model: timing.TimedModel, kernels: str
    ) -> list[timing.OpEvent] | str:
        """Profile ops with `timing.profile_ops` on this machine."""
        return timing.profile_ops([sys.executable], request, model, kernels, backend=self.name)


LOCAL = register(
    BackendKind(
        name="local",
        help="this machine's CPU",
        open=lambda address: LocalBackend(),
        times=True,
        reports_memory=True,
        unavailable=_unavailable,
    )
)

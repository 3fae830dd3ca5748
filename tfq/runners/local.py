# SPDX-License-Identifier: Apache-2.0
"""The interpreter of this Python, in a child process: its crash is an error of that run alone."""

import importlib.util
import sys

from tfq.errors import RunnerError
from tfq.runners.base import RunRequest, RunResult
from tfq.runners.child import run_worker


class LocalRunner:
    """Runs on this machine."""

    name = "local"
    emulated = False

    def unavailable(self) -> str | None:
        """Why it cannot run: ai-edge-litert is missing."""
        if importlib.util.find_spec("ai_edge_litert") is None:
            return f"ai-edge-litert is not installed for {sys.executable}: pip install ai-edge-litert"
        return None

    def run(self, request: RunRequest) -> RunResult:
        """Run the request. Raises InputError when the model does not take these inputs, RunnerError on all else."""
        reason = self.unavailable()
        if reason:
            raise RunnerError(f"{self.name}: {reason}")
        return run_worker([sys.executable], request, runner=self.name)

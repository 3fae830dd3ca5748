# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer somewhere: one protocol, one worker file on the target, always a child process."""

from tfq.backends.local import LocalBackend
from tfq.backends.protocol import (
    Backend,
    BackendKind,
    BackendResult,
    InputStream,
    InstructionCounts,
    RunRequest,
    backend_choices,
    find_kind,
    kind_of,
    make_backend,
    timing_backend,
)
from tfq.backends.qemu.backend import QemuBackend

__all__ = [
    "HOST",
    "Backend",
    "BackendKind",
    "BackendResult",
    "InputStream",
    "InstructionCounts",
    "LocalBackend",
    "QemuBackend",
    "RunRequest",
    "backend_choices",
    "find_kind",
    "kind_of",
    "make_backend",
    "timing_backend",
]

# The backend that every other one is compared with, and that runs reference models: this machine's CPU.
HOST = "local"

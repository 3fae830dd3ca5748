# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer on a backend: this machine or an emulated one, always in a child process."""

from tfq.backends.adb import AdbBackend
from tfq.backends.gpu.backend import GpuBackend
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
    public_names,
    timing_backend,
)
from tfq.backends.qemu.backend import QemuBackend
from tfq.backends.ssh import SshBackend
from tfq.backends.tflm import TflmBackend
from tfq.backends.vela.backend import EthosUBackend

__all__ = [
    "HOST",
    "AdbBackend",
    "Backend",
    "BackendKind",
    "BackendResult",
    "EthosUBackend",
    "GpuBackend",
    "InputStream",
    "InstructionCounts",
    "LocalBackend",
    "QemuBackend",
    "RunRequest",
    "SshBackend",
    "TflmBackend",
    "backend_choices",
    "find_kind",
    "kind_of",
    "make_backend",
    "place_of",
    "public_names",
    "timing_backend",
]

# This machine's CPU: other backends are compared with it, and reference models run on it.
HOST = "local"


def place_of(backend: str) -> str:
    """Return where the backend of this name runs models, as words: "this machine" or its name."""
    return "this machine" if backend == HOST else backend

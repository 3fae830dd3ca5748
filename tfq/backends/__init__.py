# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer somewhere: one protocol, one worker file on the target, always a child process."""

from collections.abc import Callable

from tfq.backends.local import LocalBackend
from tfq.backends.protocol import Backend, InputStream, RunRequest, RunResult
from tfq.backends.qemu.backend import QemuBackend
from tfq.errors import InputError, did_you_mean

__all__ = [
    "RUNNERS",
    "Backend",
    "InputStream",
    "LocalBackend",
    "QemuBackend",
    "RunRequest",
    "RunResult",
    "make_backend",
]

RUNNERS: dict[str, Callable[[], Backend]] = {
    "local": LocalBackend,
    "qemu:cortex-a53": lambda: QemuBackend("cortex-a53"),
    "qemu:cortex-a76": lambda: QemuBackend("cortex-a76"),
}


def make_backend(name: str) -> Backend:
    """The backend of this name. Raises InputError on an unknown one. It may still be unavailable on this machine."""
    if name not in RUNNERS:
        raise InputError(f"unknown backend {name!r}: {did_you_mean(name, RUNNERS)}")
    return RUNNERS[name]()

# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer somewhere: one protocol, one worker file on the target, always a child process."""

from collections.abc import Callable

from tfq.backends.local import LocalRunner
from tfq.backends.protocol import InputStream, Runner, RunRequest, RunResult
from tfq.backends.qemu.runner import QemuRunner
from tfq.errors import InputError, did_you_mean

__all__ = ["RUNNERS", "InputStream", "LocalRunner", "QemuRunner", "RunRequest", "RunResult", "Runner", "make_runner"]

RUNNERS: dict[str, Callable[[], Runner]] = {
    "local": LocalRunner,
    "qemu:cortex-a53": lambda: QemuRunner("cortex-a53"),
    "qemu:cortex-a76": lambda: QemuRunner("cortex-a76"),
}


def make_runner(name: str) -> Runner:
    """The runner of this name. Raises InputError on an unknown one. It may still be unavailable on this machine."""
    if name not in RUNNERS:
        raise InputError(f"unknown runner {name!r}: {did_you_mean(name, RUNNERS)}")
    return RUNNERS[name]()

# SPDX-License-Identifier: Apache-2.0
"""The installed ARM emulator and its small arm64 system, in tfq's cache directory.

`python -m tfq.backends.qemu.sysroot` installs it, without root and without changing the machine. `sysroot_build.py`
says what it is made of.
"""

import argparse
import hashlib
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tfq.artifacts import cache_dir, locked
from tfq.backends.qemu.sysroot_build import (
    COMMAND,
    RECORD,
    SOURCE_VARIABLE,
    Sysroot,
    add_plugin,
    build,
    inputs,
    machine_compilers,
    write_record,
)
from tfq.errors import BackendError, TfqError

ARM64_HOST = "this machine is arm64 itself, there is nothing to emulate: use the backend local"


def unavailable(cpu: str | None = None) -> str | None:
    """Why `cpu` (None: any) cannot be emulated as things are, and what to do about it; None when it can."""
    if platform.machine() in ("aarch64", "arm64"):
        return ARM64_HOST
    try:
        result = find()
    except TfqError as error:
        return str(error)
    if result is None:
        return f"the ARM emulator is not installed: install it with `{COMMAND}` (about 90 MB to download, no root)"
    if cpu is not None and cpu not in result.cpus:
        return (
            f"this system's QEMU, {result.qemu}, does not know {cpu}: a newer release of the system has one that does"
        )
    return None


def find() -> Sysroot | None:
    """The emulator that fits the packages installed here, or None."""
    directory = cache_dir() / "arm64" / _key()
    try:
        record = json.loads((directory / RECORD).read_text())
    except OSError:
        return None
    return Sysroot(
        directory=directory,
        qemu=record["qemu"],
        cpus=tuple(record["cpus"]),
        counted_by=record.get("counted_by", ""),
        not_counted=record.get("not_counted", ""),
    )


def install(tell: Callable[[str], None] = lambda message: print(message, file=sys.stderr)) -> Sysroot:
    """The emulator, installed now if it is not there. tell: receives a line at every step.

    Safe to call from several processes at once; interrupted or failed, it leaves nothing behind.
    Raises BackendError that says which step failed and why.
    """
    if platform.machine() in ("aarch64", "arm64"):
        raise BackendError(ARM64_HOST)
    base = cache_dir() / "arm64"
    try:
        base.mkdir(exist_ok=True)
        with locked(base / ".lock"):
            result = find()
            if result is not None:
                return _completed(result)
            for stale in base.glob(".build-*"):  # of a process that was killed: a living one would hold the lock
                shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=base, prefix=".build-", ignore_cleanup_errors=True) as directory:
                build(Path(directory), tell)
                (Path(directory) / "tree").rename(base / _key())
    except OSError as error:
        raise BackendError(f"cannot install the ARM emulator below {base}: {error}") from error
    result = find()
    if result is None:
        raise BackendError(
            f"the ARM emulator is gone from {base} right after its installation: is something clearing it?"
        )
    return result


def _completed(result: Sysroot) -> Sysroot:
    """`found` with its plugin, where it has none yet and there is a compiler now."""
    if result.counted_by or not machine_compilers():
        return result
    completed = add_plugin(result)
    write_record(completed, **json.loads((result.directory / RECORD).read_text()))
    return completed


def cannot_count(cpu: str) -> str | None:
    """Why instructions on `cpu` cannot be counted as things are, and what to do about it; None when they can."""
    reason = unavailable(cpu)
    result = None if reason else find()
    if result is None or result.counted_by:
        return reason
    message = result.not_counted or f"it comes from an older tfq: say `{COMMAND}` again"
    return f"the ARM emulator has no plugin that counts instructions: {message}"


def _key() -> str:
    return hashlib.sha256(json.dumps(inputs(), sort_keys=True).encode()).hexdigest()[:16]


def main() -> int:
    """Install from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Install the ARM emulator (QEMU user mode and a small arm64 system) into tfq's cache directory, "
        "from Debian or Ubuntu packages and without root. Does nothing when it is there already.",
        epilog=f"$TFQ_CACHE_DIR moves the cache directory. ${SOURCE_VARIABLE} names an apt source for arm64, one "
        "line as in sources.list, where the configured mirror has no arm64. Exit codes: 0 installed, 3 failed, 130 "
        "interrupted.",
    )
    parser.parse_args()
    try:
        print(install().directory)
    except TfqError as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{COMMAND}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

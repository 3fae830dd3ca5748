# SPDX-License-Identifier: Apache-2.0
"""Install and find the ARM emulator and its small arm64 system, in tfq's cache directory.

`python -m tfq.backends.qemu.sysroot` installs it without root and without changing the system. `sysroot_build.py`
describes its parts.
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
    NEWER_CPUS,
    NEWER_QEMU,
    RECORD,
    SOURCE_VARIABLE,
    Sysroot,
    add_newer,
    add_plugin,
    build,
    host_compilers,
    inputs,
    write_record,
)
from tfq.errors import BackendError, TfqError

ARM64_HOST = "this machine is arm64 itself, so nothing needs to be emulated: use the backend local"


def unavailable(cpu: str | None = None) -> str | None:
    """Return why `cpu` (None for any) cannot be emulated now and what to do about it, or None if it can."""
    if platform.machine() in ("aarch64", "arm64"):
        return ARM64_HOST
    try:
        result = find()
    except TfqError as error:
        return str(error)
    if result is None:
        return f"the ARM emulator is not installed: install it with `{COMMAND}` (about 90 MB to download, no root)"
    if cpu in NEWER_CPUS and cpu not in result.newer_cpus:
        return (
            f"the installed emulator has no {cpu}, which needs QEMU {NEWER_QEMU}: install that with "
            f"`{COMMAND} --newer` (about 80 MB to download, no root)"
        )
    if cpu is not None and cpu not in (*result.cpus, *result.newer_cpus):
        return f"this system's QEMU {result.qemu} does not support {cpu}: use a newer release of the system"
    return None


def find() -> Sysroot | None:
    """Return the installed emulator that matches this system and this Python's packages, or None."""
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
        counting_qemu=record.get("counting_qemu", ""),
        newer_qemu=record.get("newer_qemu", ""),
        newer_cpus=tuple(record.get("newer_cpus", ())),
    )


def install(
    report: Callable[[str], None] = lambda message: print(message, file=sys.stderr), *, newer: bool = False
) -> Sysroot:
    """Install the emulator if it is not installed yet, and return it.

    Several processes may call this at the same time. If it fails or is interrupted, it leaves no files behind.

    Args:
        report: Receives a message at every step.
        newer: Whether to install the emulator of newer cores too.

    Raises:
        BackendError: A step failed; the message says which one and why.
    """
    if platform.machine() in ("aarch64", "arm64"):
        raise BackendError(ARM64_HOST)
    base = cache_dir() / "arm64"
    try:
        base.mkdir(exist_ok=True)
        with locked(base / ".lock"):
            result = find()
            if result is not None:
                return _add_missing(result, report, newer)
            for stale in base.glob(".build-*"):  # of a killed process: a running one would hold the lock
                shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=base, prefix=".build-", ignore_cleanup_errors=True) as directory:
                build(Path(directory), report)
                (Path(directory) / "tree").rename(base / _key())
            result = find()
            if result is not None:
                return _add_missing(result, report, newer) if newer else result
    except OSError as error:
        raise BackendError(f"cannot install the ARM emulator below {base}: {error}") from error
    raise BackendError(
        f"the ARM emulator disappeared from {base} right after its installation. Another program may delete files there"
    )


def _add_missing(installed: Sysroot, report: Callable[[str], None], newer: bool) -> Sysroot:
    """Add what an earlier installation lacks: the plugin if there is a compiler now, and newer cores if requested."""
    result = installed
    if not installed.counted_by and host_compilers():
        result = add_plugin(result)
    if newer and not result.newer_cpus:
        report(f"ARM emulator: adding QEMU {NEWER_QEMU} for {', '.join(NEWER_CPUS)}; Debian 12 downloads 80 MB")
        result = add_newer(result)
    if result != installed:
        write_record(result, **json.loads((installed.directory / RECORD).read_text()))
    return result


def cannot_count(cpu: str) -> str | None:
    """Return why instructions on `cpu` cannot be counted now and what to do about it, or None if they can."""
    reason = unavailable(cpu)
    result = None if reason else find()
    if result is not None and cpu in NEWER_CPUS:
        return (
            f"{cpu} is emulated for outputs only: QEMU {result.newer_qemu}, which it needs, is built without plugin "
            "support. Use qemu:cortex-a76 for counts"
        )
    if result is None or result.counted_by:
        return reason
    message = result.not_counted or f"it was installed by an older tfq: run `{COMMAND}` again"
    return f"the ARM emulator has no plugin that counts instructions: {message}"


def _key() -> str:
    return hashlib.sha256(json.dumps(inputs(), sort_keys=True).encode()).hexdigest()[:16]


def main() -> int:
    """Run the command line, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Install the ARM emulator (QEMU user mode and a small arm64 system) into tfq's cache directory, "
        "from Debian or Ubuntu packages and without root. Does nothing if it is installed already.",
        epilog=f"Environment variables: TFQ_CACHE_DIR sets the cache directory. {SOURCE_VARIABLE} sets an apt source "
        "for arm64 packages (one line as in sources.list), for systems whose configured mirror has none. Exit codes: 0 "
        "installed, 3 failed, 130 interrupted.",
    )
    parser.add_argument(
        "--newer", action="store_true", help=f"also install QEMU {NEWER_QEMU}, for outputs on {', '.join(NEWER_CPUS)}"
    )
    arguments = parser.parse_args()
    try:
        print(install(newer=arguments.newer).directory)
    except TfqError as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{COMMAND}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

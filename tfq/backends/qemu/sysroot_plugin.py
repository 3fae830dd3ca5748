# SPDX-License-Identifier: Apache-2.0
"""The plugin that makes the ARM emulator count instructions: compiled from instructions.c, and tried out.

By the machine's own C compiler; where there is none that does, by tcc, unpacked from its package and never installed.
An emulator without the plugin does all else as well.
"""

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tfq.backends.qemu.apt import run_command, unpack_packages
from tfq.backends.qemu.emulator import Sysroot, own_loader
from tfq.backends.target.instructions import MARKER
from tfq.errors import RunnerError

COMMAND = "python -m tfq.backends.qemu.sysroot"
SOURCE = Path(__file__).with_name("instructions.c")
COMPILERS = ("cc", "gcc", "clang", "tcc")
COMPILE_SECONDS = 60
TRIAL_SECONDS = 60
TRIAL = f"import ctypes; mark = ctypes.CDLL(None).sched_get_priority_max; mark({MARKER}); mark({MARKER})"


def machine_compilers() -> list[str]:
    """C compilers of this machine."""
    return [path for name in COMPILERS if (path := shutil.which(name))]


def add_plugin(sysroot: Sysroot, fetch_tcc: Callable[[], list[Path]] | None = None) -> Sysroot:
    """`sysroot` with the plugin at its place, or with the reason why it has none. Never raises RunnerError.

    fetch_tcc: gives the packages of tcc, asked for only where no compiler of the machine makes a plugin that works.
    """
    reasons = []
    try:
        help_text = run_command([*sysroot.emulator(), "--help"], TRIAL_SECONDS, text=True).stdout
        if "-plugin" not in help_text:
            return _without(
                sysroot, f"this system's QEMU, {sysroot.qemu}, is built without plugins (that of Debian 12 has them)"
            )
        with tempfile.TemporaryDirectory(prefix="tfq-plugin-") as directory:
            for name, compiler in _compilers(sysroot, Path(directory), fetch_tcc):
                reason = _make(sysroot, compiler, Path(directory))
                if reason is None:
                    return dataclasses.replace(sysroot, counted_by=name, not_counted="")
                reasons.append(f"{name} {reason}")
    except (RunnerError, OSError) as error:
        reasons.append(str(error))
    told = "; ".join(reasons) or "there is no C compiler"
    return _without(sysroot, f"{told}: install one (cc), then say `{COMMAND}` again")


def _without(sysroot: Sysroot, reason: str) -> Sysroot:
    sysroot.plugin.unlink(missing_ok=True)
    return dataclasses.replace(sysroot, counted_by="", not_counted=reason)


def _compilers(
    sysroot: Sysroot, directory: Path, fetch_tcc: Callable[[], list[Path]] | None
) -> Iterator[tuple[str, list[str]]]:
    """(name, command) of each that may do."""
    for path in machine_compilers():
        yield Path(path).name, [path]
    if fetch_tcc is not None:
        root = directory / "tcc"
        unpack_packages(fetch_tcc(), root)
        parts = [f"-B{path}" for path in (root / "usr/lib").glob("*/tcc")]
        yield "tcc (unpacked)", [*own_loader(sysroot.directory / "host", root / "usr/bin/tcc"), *parts]


def _make(sysroot: Sysroot, compiler: list[str], directory: Path) -> str | None:
    """Compile, try, put in place; or why not."""
    made = directory / "counting.so"
    made.unlink(missing_ok=True)
    options = [f"-DTFQ_MARKER={MARKER}", "-shared", "-fPIC", "-nostdlib", "-o", str(made)]
    try:
        answer = run_command([*compiler, *options, str(SOURCE)], COMPILE_SECONDS, text=True, errors="replace")
    except OSError as error:
        return f"cannot be started: {error.strerror or error}"
    except RunnerError as error:
        return f"failed: {error}"
    if answer.returncode or not made.is_file():
        return f"does not compile the plugin: {_complaint(answer)}"
    temporary = sysroot.plugin.with_name(".counting.so")
    shutil.copyfile(made, temporary)
    os.replace(temporary, sysroot.plugin)
    return _try(sysroot, directory / "counts")


def _try(sysroot: Sysroot, counts: Path) -> str | None:
    counts.unlink(missing_ok=True)
    command = [*sysroot.command(sysroot.cpus[0], counts=counts), "-c", TRIAL]
    answer = run_command(command, TRIAL_SECONDS, text=True, errors="replace", env=sysroot.environment())
    if answer.returncode:
        return f"makes a plugin that does not run in QEMU {sysroot.qemu}: {_complaint(answer)}"
    lines = counts.read_text().splitlines() if counts.exists() else []
    marks = [int(line.split()[0]) for line in lines]
    if len(marks) != 2 or not 0 < marks[0] < marks[1]:
        told = ", ".join(map(str, marks)) or "none"
        return f"makes a plugin that does not count in QEMU {sysroot.qemu}: two marks gave {told}"
    return None


def _complaint(answer: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit code {answer.returncode}"])[0]

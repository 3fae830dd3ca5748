# SPDX-License-Identifier: Apache-2.0
"""What the ARM emulator is made of, and how it is put together: Debian or Ubuntu packages, unpacked, never installed.

host/       QEMU's user-mode emulator with the libraries it was built for, and their own loader
counting.so the plugin that makes it count instructions, where a compiler could be had
sysroot/    arm64 Python, C and C++ libraries
site/       arm64 wheels: the interpreter in the version that this Python has, NumPy, what they need
cpu/NAME/   what the emulator takes for / with `-cpu NAME`: links into sysroot/, and a /proc of its own
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfq.artifacts import write_json
from tfq.backends.qemu.apt import (
    DOWNLOAD_SECONDS,
    AptSource,
    fetch_packages,
    machine_sources,
    os_release,
    parse_one_line,
    require_tools,
    run_command,
    unpack_packages,
)
from tfq.backends.qemu.emulator import CPUS, Sysroot
from tfq.backends.qemu.sysroot_plugin import add_plugin
from tfq.errors import RunnerError

RECIPE = 2  # goes up whenever what is installed changes
SOURCE_VARIABLE = "TFQ_ARM64_APT_SOURCE"
RECORD = "installed.json"
TRIAL_SECONDS = 120
HOST_PACKAGES = ("qemu-user",)
ARM64_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
WHEELS = ("ai-edge-litert", "numpy", "flatbuffers", "protobuf", "typing_extensions", "tqdm", "backports.strenum")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


def build(directory: Path, tell: Callable[[str], None]) -> None:
    """Make directory/tree, whole and tried out. tell: receives a line at every step. Raises RunnerError."""
    begin, tree = time.monotonic(), directory / "tree"
    host, sysroot = tree / "host", tree / "sysroot"
    require_tools()
    sources = machine_sources()
    arm64_sources = _override() or sources
    tell("ARM emulator: downloading QEMU (about 30 MB with the package lists)")

    def fetch_host(*packages: str) -> list[Path]:
        architecture = _debian_architecture()
        return fetch_packages(packages, architecture=architecture, sources=sources, directory=directory / "host-apt")

    host_debs = fetch_host(*HOST_PACKAGES)
    unpack_packages(host_debs, host)
    for other in (host / "usr/bin").glob("qemu-*"):
        if other.name != "qemu-aarch64":
            other.unlink()
    tell("ARM emulator: downloading an arm64 Python (about 25 MB with the package lists)")
    arm64_debs = _fetch_arm64(arm64_sources, directory / "arm64-apt")
    unpack_packages(arm64_debs, sysroot)
    # Without a cache of its own the guest's loader would read the host's.
    (sysroot / "etc").mkdir(exist_ok=True)
    (sysroot / "etc/ld.so.cache").touch()
    for cpu in CPUS:
        make_cpu_prefix(tree, cpu)
    python = (sysroot / "usr/bin/python3").readlink().name.removeprefix("python")
    tell(f"ARM emulator: downloading the interpreter and NumPy for arm64 Python {python} (about 40 MB)")
    _install_wheels(tree / "site", python)
    tell("ARM emulator: trying it out")
    installed = _tried(Sysroot(directory=tree, qemu="", cpus=tuple(CPUS)))
    installed = add_plugin(installed, lambda: fetch_host("tcc"))
    if installed.not_counted:
        tell(f"ARM emulator: it will not count instructions: {installed.not_counted}")
    write_record(installed, python=python, debs=[deb.name for deb in (*host_debs, *arm64_debs)], inputs=inputs())
    tell(f"ARM emulator: installed in {time.monotonic() - begin:.0f} s")


def _override() -> list[AptSource]:
    """What the environment says about arm64, where it says something."""
    line = os.environ.get(SOURCE_VARIABLE, "")
    sources = parse_one_line(line)
    if line and not sources:
        raise RunnerError(f"{SOURCE_VARIABLE}={line!r}: wanted `deb [signed-by=KEYRING] URI SUITE COMPONENT ...`")
    return sources


def _fetch_arm64(sources: list[AptSource], directory: Path) -> list[Path]:
    try:
        return fetch_packages(ARM64_PACKAGES, architecture="arm64", sources=sources, directory=directory)
    except RunnerError as error:
        raise RunnerError(
            f"{error}: where the configured mirror has no arm64 (Ubuntu's main one has not), name one that has by "
            f"{SOURCE_VARIABLE}='deb [signed-by=KEYRING] URI SUITE main universe'"
        ) from error


def make_cpu_prefix(tree: Path, cpu: str) -> None:
    """A root for this CPU alone: runs on different CPUs at once never see each other's /proc/cpuinfo."""
    prefix = tree / "cpu" / cpu
    prefix.mkdir(parents=True)
    for entry in (tree / "sysroot").iterdir():
        (prefix / entry.name).symlink_to(f"../../sysroot/{entry.name}")
    part, features = CPUS[cpu]
    fields = {
        "processor": "0",
        "BogoMIPS": "100.00",
        "Features": features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": part,
        "CPU revision": "0",
    }
    files = {"proc/cpuinfo": "".join(f"{name}\t: {value}\n" for name, value in fields.items()) + "\n"}
    # One core, as in cpuinfo, however many the host has.
    files |= {f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present", "online")}
    for name, content in files.items():
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).write_text(content)


def _install_wheels(site: Path, python_version: str) -> None:
    """arm64 wheels in the versions that this Python has, or of the others any that arm64 Python takes."""
    versions = _versions()
    pinned = [name if version is None else f"{name}=={version}" for name, version in versions.items()]
    answer = _pip(site, python_version, pinned)
    if answer.returncode:
        shutil.rmtree(site, ignore_errors=True)
        answer = _pip(site, python_version, [pinned[0], *WHEELS[1:]])
    if answer.returncode:
        lines = [line for line in answer.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise RunnerError(
            f"pip cannot download {pinned[0]} and NumPy for arm64 Python {python_version}: {' | '.join(lines[-4:])}"
        )


def _pip(site: Path, python_version: str, requirements: list[str]) -> subprocess.CompletedProcess[str]:
    options = ["--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(site)]
    options += ["--python-version", python_version, *(f"--platform={platform}" for platform in PLATFORMS)]
    command = [sys.executable, "-m", "pip", "install", *options, *requirements]
    return run_command(command, DOWNLOAD_SECONDS, text=True, errors="replace", env={**os.environ, "PIP_USER": "0"})


def _tried(sysroot: Sysroot) -> Sysroot:
    """With QEMU's version, and the CPUS on which the imports of the target's modules succeed: an old QEMU does not know
    every one. At none, RunnerError.

    The first import also leaves the bytecode, which makes every later start quicker.
    """
    imports = "import ctypes, json, resource, time, numpy, ai_edge_litert.interpreter"
    answer = run_command([*sysroot.emulator(), "--version"], TRIAL_SECONDS, text=True)
    qemu = answer.stdout.partition("\n")[0].removeprefix("qemu-aarch64 version ")
    working, told = [], ""
    for cpu in sysroot.cpus:
        command = [*sysroot.command(cpu), "-c", imports]
        answer = run_command(command, TRIAL_SECONDS, text=True, env=sysroot.environment())
        if answer.returncode == 0:
            working.append(cpu)
        else:
            told = f"exit code {answer.returncode} on {cpu}: {' | '.join(answer.stderr.splitlines()[-3:])}"
    if not working:
        raise RunnerError(f"the ARM emulator does not run its Python: {told}")
    return replace(sysroot, qemu=qemu, cpus=tuple(working))


def write_record(sysroot: Sysroot, **details: Any) -> None:
    """installed.json, by which an installation is found."""
    record = {
        "qemu": sysroot.qemu,
        "cpus": sysroot.cpus,
        "counted_by": sysroot.counted_by,
        "not_counted": sysroot.not_counted,
    }
    write_json(sysroot.directory / RECORD, {**details, **record})


def _debian_architecture() -> str:
    return run_command(["dpkg", "--print-architecture"], TRIAL_SECONDS, text=True).stdout.strip()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in WHEELS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def inputs() -> dict[str, Any]:
    """All that decides what gets installed."""
    release = os_release()
    return {
        "recipe": RECIPE,
        "system": [release.get("ID"), release.get("VERSION_CODENAME"), platform.machine()],
        "versions": _versions(),
        "cpus": CPUS,
    }

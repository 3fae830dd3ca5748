# SPDX-License-Identifier: Apache-2.0
"""Build the ARM emulator's sysroot (Debian or Ubuntu packages, unpacked, never installed) and the counting plugin.

By the machine's own C compiler; where there is none that does, by tcc, unpacked from its package and never installed.
An emulator without the plugin does all else as well.

host/       QEMU's user-mode emulator with the libraries it was built for, and their own loader
counting.so the plugin that makes it count instructions, where a compiler could be had
sysroot/    arm64 Python, C and C++ libraries
site/       arm64 wheels: the interpreter in the version that this Python has, NumPy, what they need
cpu/NAME/   what the emulator takes for / with `-cpu NAME`: links into sysroot/, and a /proc of its own
"""

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from tfq.backends.target.instructions import MARKER
from tfq.errors import BackendError

# (part number, features) of /proc/cpuinfo: they choose the kernels, and one that -cpu lacks ends in SIGILL. Source: the
# Linux kernel's arch/arm64/include/asm/cputype.h and cpuinfo.c, for what QEMU's models of these cores implement.
_A53 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
CPUS = {
    "cortex-a53": ("0xd03", _A53),
    "cortex-a76": ("0xd0b", f"{_A53} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
}


@dataclass(frozen=True, kw_only=True)
class Sysroot:
    """An installed emulator. directory: host/, sysroot/, site/ and cpu/ are below. qemu: its version.

    cpus: those of CPUS that it can be.
    counted_by: the compiler that made the plugin which counts instructions; empty where there is none.
    not_counted: why there is none, and what to do about it.
    """

    directory: Path
    qemu: str
    cpus: tuple[str, ...]
    counted_by: str = ""
    not_counted: str = ""

    @property
    def plugin(self) -> Path:
        """Where the plugin is that counts instructions."""
        return self.directory / "counting.so"

    def command(self, cpu: str, *, counts: Path | None = None) -> list[str]:
        """How arm64 Python starts on `cpu`; arguments for Python follow. counts: a file for the plugin to count to."""
        prefix = self.directory / "cpu" / cpu
        options = ["-L", str(prefix), "-cpu", cpu]
        if counts is not None:
            # A comma ends an option's value, two stand for one.
            plugin, out = (str(path).replace(",", ",,") for path in (self.plugin, counts))
            options += ["-plugin", f"{plugin},out={out}"]
        return [*self.emulator(), *options, str(prefix / "usr/bin/python3"), "-S", "-s"]

    def emulator(self) -> list[str]:
        """The emulator alone."""
        return own_loader(self.directory / "host", self.directory / "host/usr/bin/qemu-aarch64")

    def environment(self, *, repeatable: bool = False) -> dict[str, str]:
        """All of the environment that goes in: nothing of the user's Python, preloads or QEMU settings.

        repeatable: and nothing that may differ between two runs, so that Python does the same in both, to the
        instruction: where its objects lie in memory follows from the length of every string that was there before.
        """
        own = {"LC_ALL": "C.UTF-8", "PYTHONPATH": str(self.directory / "site")}
        own["OPENBLAS_NUM_THREADS"] = "1"  # a BLAS of many emulated threads is slower than none, and is never used
        if repeatable:
            return {**own, "PYTHONHASHSEED": "0"}
        return {**{name: os.environ[name] for name in ("PATH", "TMPDIR", "HOME") if name in os.environ}, **own}


def own_loader(host: Path, program: Path) -> list[str]:
    """`program` through the loader that was unpacked to `host`, so that it uses nothing of the machine's libraries."""
    libraries = [path for path in [*sorted((host / "usr/lib").glob("*-linux-gnu*")), host / "usr/lib"] if path.is_dir()]
    loaders = [loader for folder in libraries for loader in sorted(folder.glob("ld-linux*.so.*"))]
    if not loaders:
        return [str(program)]  # linked statically
    return [str(loaders[0]), "--library-path", ":".join(map(str, libraries)), str(program)]


COMMAND = "python -m tfq.backends.qemu.sysroot"
SOURCE = Path(__file__).with_name("instructions.c")
COMPILERS = ("cc", "gcc", "clang", "tcc")
COMPILE_SECONDS = 60
PLUGIN_TRIAL_SECONDS = 60
TRIAL = f"import ctypes; mark = ctypes.CDLL(None).sched_get_priority_max; mark({MARKER}); mark({MARKER})"


def machine_compilers() -> list[str]:
    """C compilers of this machine."""
    return [path for name in COMPILERS if (path := shutil.which(name))]


def add_plugin(sysroot: Sysroot, fetch_tcc: Callable[[], list[Path]] | None = None) -> Sysroot:
    """`sysroot` with the plugin at its place, or with the reason why it has none. Never raises BackendError.

    fetch_tcc: gives the packages of tcc, asked for only where no compiler of the machine makes a plugin that works.
    """
    reasons = []
    try:
        help_text = run_command([*sysroot.emulator(), "--help"], PLUGIN_TRIAL_SECONDS, text=True).stdout
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
    except (BackendError, OSError) as error:
        reasons.append(str(error))
    message = "; ".join(reasons) or "there is no C compiler"
    return _without(sysroot, f"{message}: install one (cc), then say `{COMMAND}` again")


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
    built = directory / "counting.so"
    built.unlink(missing_ok=True)
    options = [f"-DTFQ_MARKER={MARKER}", "-shared", "-fPIC", "-nostdlib", "-o", str(built)]
    try:
        answer = run_command([*compiler, *options, str(SOURCE)], COMPILE_SECONDS, text=True, errors="replace")
    except OSError as error:
        return f"cannot be started: {error.strerror or error}"
    except BackendError as error:
        return f"failed: {error}"
    if answer.returncode or not built.is_file():
        return f"does not compile the plugin: {_complaint(answer)}"
    temporary = sysroot.plugin.with_name(".counting.so")
    shutil.copyfile(built, temporary)
    os.replace(temporary, sysroot.plugin)
    return _try(sysroot, directory / "counts")


def _try(sysroot: Sysroot, counts: Path) -> str | None:
    counts.unlink(missing_ok=True)
    command = [*sysroot.command(sysroot.cpus[0], counts=counts), "-c", TRIAL]
    answer = run_command(command, PLUGIN_TRIAL_SECONDS, text=True, errors="replace", env=sysroot.environment())
    if answer.returncode:
        return f"makes a plugin that does not run in QEMU {sysroot.qemu}: {_complaint(answer)}"
    lines = counts.read_text().splitlines() if counts.exists() else []
    marks = [int(line.split()[0]) for line in lines]
    if len(marks) != 2 or not 0 < marks[0] < marks[1]:
        message = ", ".join(map(str, marks)) or "none"
        return f"makes a plugin that does not count in QEMU {sysroot.qemu}: two marks gave {message}"
    return None


def _complaint(answer: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit code {answer.returncode}"])[0]


RECIPE = 2  # goes up whenever what is installed changes
SOURCE_VARIABLE = "TFQ_ARM64_APT_SOURCE"
RECORD = "installed.json"
TRIAL_SECONDS = 120
HOST_PACKAGES = ("qemu-user",)
ARM64_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
WHEELS = ("ai-edge-litert", "numpy", "flatbuffers", "protobuf", "typing_extensions", "tqdm", "backports.strenum")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


def build(directory: Path, tell: Callable[[str], None]) -> None:
    """Make directory/tree, whole and tried out. tell: receives a line at every step. Raises BackendError."""
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
        raise BackendError(
            f"{SOURCE_VARIABLE}={line!r}: expected `deb [signed-by=KEYRING] URI SUITE COMPONENT ...`",
            field=SOURCE_VARIABLE,
            got=line,
        )
    return sources


def _fetch_arm64(sources: list[AptSource], directory: Path) -> list[Path]:
    try:
        return fetch_packages(ARM64_PACKAGES, architecture="arm64", sources=sources, directory=directory)
    except BackendError as error:
        raise BackendError(
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
        raise BackendError(
            f"pip cannot download {pinned[0]} and NumPy for arm64 Python {python_version}: {' | '.join(lines[-4:])}"
        )


def _pip(site: Path, python_version: str, requirements: list[str]) -> subprocess.CompletedProcess[str]:
    options = ["--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(site)]
    options += ["--python-version", python_version, *(f"--platform={platform}" for platform in PLATFORMS)]
    command = [sys.executable, "-m", "pip", "install", *options, *requirements]
    return run_command(command, DOWNLOAD_SECONDS, text=True, errors="replace", env={**os.environ, "PIP_USER": "0"})


def _tried(sysroot: Sysroot) -> Sysroot:
    """With QEMU's version, and the CPUS on which the imports of the target's modules succeed: an old QEMU does not know
    every one. At none, BackendError.

    The first import also leaves the bytecode, which makes every later start quicker.
    """
    imports = "import ctypes, json, resource, time, numpy, ai_edge_litert.interpreter"
    answer = run_command([*sysroot.emulator(), "--version"], TRIAL_SECONDS, text=True)
    qemu = answer.stdout.partition("\n")[0].removeprefix("qemu-aarch64 version ")
    working, message = [], ""
    for cpu in sysroot.cpus:
        command = [*sysroot.command(cpu), "-c", imports]
        answer = run_command(command, TRIAL_SECONDS, text=True, env=sysroot.environment())
        if answer.returncode == 0:
            working.append(cpu)
        else:
            message = f"exit code {answer.returncode} on {cpu}: {' | '.join(answer.stderr.splitlines()[-3:])}"
    if not working:
        raise BackendError(f"the ARM emulator does not run its Python: {message}")
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
    results: dict[str, str | None] = {}
    for name in WHEELS:
        try:
            results[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            results[name] = None
    return results


def inputs() -> dict[str, Any]:
    """All that decides what gets installed."""
    release = os_release()
    return {
        "recipe": RECIPE,
        "system": [release.get("ID"), release.get("VERSION_CODENAME"), platform.machine()],
        "versions": _versions(),
        "cpus": CPUS,
    }

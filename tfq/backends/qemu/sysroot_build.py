# SPDX-License-Identifier: Apache-2.0
"""Build the ARM emulator and its plugin from Debian or Ubuntu packages, which are unpacked but never installed.

host/        QEMU's user-mode emulator with its libraries and their loader
counting.so  QEMU plugin that counts instructions, if it could be compiled
sysroot/     arm64 Python, C and C++ libraries
site/        arm64 wheels: the LiteRT interpreter in the same version as this Python's, NumPy, and their dependencies
cpu/NAME/    root folder for the emulator with `-cpu NAME`: links into sysroot/, and its own /proc
counting/    Debian 12's emulator, which the plugin runs in, if that in host/ has no plugins
newer/       Debian 13's emulator for NEWER_CPUS, if it was requested

The host's C compiler compiles the plugin. If there is none that works, tcc does, unpacked from its package. Everything
except instruction counts works without the plugin.
"""

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
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
    host_architecture,
    host_sources,
    os_release,
    parse_one_line,
    require_tools,
    run_command,
    unpack_packages,
)
from tfq.backends.qemu.releases import EMULATOR, WITH_NEWER_CPUS, WITH_PLUGINS, fetch_emulator
from tfq.backends.scratch import scratch_directory
from tfq.backends.target.instructions import MARKER
from tfq.errors import BackendError

# Part number and features in /proc/cpuinfo, by which XNNPACK chooses its kernels. A feature that the emulated CPU lacks
# would end in SIGILL. Source: the Linux kernel's arch/arm64/include/asm/cputype.h and cpuinfo.c, restricted to what
# QEMU's models of these cores implement.
_A53 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
CPUS = {
    "cortex-a53": ("0xd03", _A53),
    "cortex-a76": ("0xd0b", f"{_A53} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
}
# Cores that QEMU emulates from version 10 on (AT_HWCAP and AT_HWCAP2 in QEMU 10.0.13). XNNPACK takes its i8mm kernels.
_V1 = (
    f"{CPUS['cortex-a76'][1]} jscvt fcma sha3 sm3 sm4 sha512 sve asimdfhm dit uscat ilrcpc flagm paca pacg dcpodp "
    "svei8mm svebf16 i8mm bf16"
)
NEWER_CPUS = {
    "cortex-a710": (
        "0xd47",
        f"{_V1} sb sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint bti mte",
    ),
    "neoverse-v1": ("0xd40", f"{_V1} rng"),
}
NEWER_QEMU = 10


@dataclass(frozen=True, kw_only=True)
class Sysroot:
    """An installed emulator.

    Args:
        directory: The folder that contains host/, sysroot/, site/ and cpu/.
        qemu: Version of QEMU.
        cpus: Those of CPUS that it can emulate.
        counted_by: The compiler of the plugin that counts instructions; empty if there is no plugin.
        not_counted: Why there is no plugin, and what to do about it.
        counting_qemu: Version of QEMU in counting/; empty if host/ has plugins.
        newer_qemu: Version of QEMU in newer/; empty if it is not installed.
        newer_cpus: Those of NEWER_CPUS that it can emulate.
    """

    directory: Path
    qemu: str
    cpus: tuple[str, ...]
    counted_by: str = ""
    not_counted: str = ""
    counting_qemu: str = ""
    newer_qemu: str = ""
    newer_cpus: tuple[str, ...] = ()

    def version(self, cpu: str) -> str:
        """Return the version of QEMU that computes outputs on `cpu`."""
        return self.newer_qemu if cpu in NEWER_CPUS else self.qemu

    @property
    def plugin(self) -> Path:
        """File of the plugin that counts instructions."""
        return self.directory / "counting.so"

    def command(self, cpu: str, *, counts: Path | None = None) -> list[str]:
        """Return the command that starts arm64 Python on `cpu`, to be followed by Python's arguments.

        Args:
            cpu: One of `cpus`.
            counts: File that the plugin writes instruction counts to; None runs without the plugin.
        """
        prefix = self.directory / "cpu" / cpu
        options = ["-L", str(prefix), "-cpu", cpu]
        if counts is not None:
            # A comma separates QEMU's options; two commas stand for a literal one.
            plugin, out = (str(path).replace(",", ",,") for path in (self.plugin, counts))
            options += ["-plugin", f"{plugin},out={out}"]
        emulator = self.emulator("newer" if cpu in NEWER_CPUS else "host" if counts is None else "counting")
        return [*emulator, *options, str(prefix / "usr/bin/python3"), "-S", "-s"]

    def emulator(self, folder: str = "host") -> list[str]:
        """Return the command that starts the emulator in a folder, or in host/ if there is none, without arguments."""
        path = self.directory / folder
        path = path if path.exists() else self.directory / "host"
        return loader_command(path, path / EMULATOR)

    def environment(self, *, repeatable: bool = False) -> dict[str, str]:
        """Return the environment variables for the emulator, without the user's Python, preload and QEMU settings.

        Args:
            repeatable: Also leave out variables that may differ between runs. Python then executes exactly the same
                instructions in every run: its memory addresses depend on the length of every environment variable.
        """
        variables = {"LC_ALL": "C.UTF-8", "PYTHONPATH": str(self.directory / "site")}
        variables["OPENBLAS_NUM_THREADS"] = "1"  # more emulated threads would only cost time
        if repeatable:
            return {**variables, "PYTHONHASHSEED": "0"}
        return {**{name: os.environ[name] for name in ("PATH", "TMPDIR", "HOME") if name in os.environ}, **variables}


def loader_command(host: Path, program: Path) -> list[str]:
    """Return the command for `program` with the loader and the libraries in `host` instead of the system's."""
    libraries = [path for path in [*sorted((host / "usr/lib").glob("*-linux-gnu*")), host / "usr/lib"] if path.is_dir()]
    loaders = [loader for folder in libraries for loader in sorted(folder.glob("ld-linux*.so.*"))]
    if not loaders:
        return [str(program)]  # statically linked
    return [str(loaders[0]), "--library-path", ":".join(map(str, libraries)), str(program)]


COMMAND = "python -m tfq.backends.qemu.sysroot"
SOURCE = Path(__file__).with_name("instructions.c")
COMPILERS = ("cc", "gcc", "clang", "tcc")
COMPILE_SECONDS = 60
PLUGIN_TEST_SECONDS = 60
TEST_CODE = f"import ctypes; mark = ctypes.CDLL(None).sched_get_priority_max; mark({MARKER}); mark({MARKER})"


def host_compilers() -> list[str]:
    """Return the C compilers on the PATH."""
    return [path for name in COMPILERS if (path := shutil.which(name))]


def add_plugin(sysroot: Sysroot, fetch_tcc: Callable[[], list[Path]] | None = None) -> Sysroot:
    """Compile and install the plugin that counts instructions.

    Args:
        sysroot: The emulator.
        fetch_tcc: Downloads and returns the packages of tcc. Called only if no compiler of the host produces a working
            plugin.

    Returns:
        `sysroot` with `counted_by`, or with the reason why there is no plugin. Never raises BackendError.
    """
    reasons = []
    try:
        sysroot, missing = _with_plugins(sysroot)
        if missing:
            return _without_plugin(sysroot, missing)
        with scratch_directory() as directory:
            for name, compiler in _compilers(sysroot, directory, fetch_tcc):
                reason = _compile(sysroot, compiler, directory)
                if reason is None:
                    return dataclasses.replace(sysroot, counted_by=name, not_counted="")
                reasons.append(f"{name} {reason}")
    except (BackendError, OSError) as error:
        reasons.append(str(error))
    message = "; ".join(reasons) or "there is no C compiler"
    return _without_plugin(sysroot, f"{message}. Install a working C compiler (cc), then run `{COMMAND}` again")


def _with_plugins(sysroot: Sysroot) -> tuple[Sysroot, str]:
    """Return `sysroot` with Debian 12's emulator if its own is built without plugins, and the reason if that fails."""

    def has_plugins() -> bool:
        command = [*sysroot.emulator("counting"), "--help"]
        return "-plugin" in run_command(command, PLUGIN_TEST_SECONDS, text=True).stdout

    counting = sysroot.directory / "counting"
    if not has_plugins():
        shutil.rmtree(counting, ignore_errors=True)  # of an interrupted installation
        reason = f"this system's QEMU {sysroot.qemu} is built without plugin support"
        try:
            with scratch_directory() as directory:
                fetch_emulator(WITH_PLUGINS, counting, directory / "apt")
        except BackendError as error:
            shutil.rmtree(counting, ignore_errors=True)
            return sysroot, f"{reason}, and Debian 12's QEMU, which has it, cannot be installed: {error}"
        if not has_plugins():
            return sysroot, f"{reason}, and so is that of Debian 12"
    if counting.exists():
        sysroot = replace(sysroot, counting_qemu=_qemu_version(sysroot.emulator("counting")))
    return sysroot, ""


def add_newer(sysroot: Sysroot) -> Sysroot:
    """Install an emulator for NEWER_CPUS, and return `sysroot` with it.

    Raises:
        BackendError: It cannot be installed, or it cannot run arm64 Python on these cores.
    """
    newer = sysroot.directory / "newer"
    shutil.rmtree(newer, ignore_errors=True)  # of an interrupted installation
    if int(sysroot.qemu.partition(".")[0] or 0) < NEWER_QEMU:
        with scratch_directory() as directory:
            fetch_emulator(WITH_NEWER_CPUS, newer, directory / "apt")
    for cpu in NEWER_CPUS:
        shutil.rmtree(sysroot.directory / "cpu" / cpu, ignore_errors=True)
        make_cpu_prefix(sysroot.directory, cpu)
    cpus = _working_cpus(sysroot, tuple(NEWER_CPUS))
    return replace(sysroot, newer_qemu=_qemu_version(sysroot.emulator("newer")), newer_cpus=cpus)


def _qemu_version(emulator: list[str]) -> str:
    result = run_command([*emulator, "--version"], TEST_SECONDS, text=True)
    return result.stdout.partition("\n")[0].removeprefix("qemu-aarch64 version ")


def _without_plugin(sysroot: Sysroot, reason: str) -> Sysroot:
    sysroot.plugin.unlink(missing_ok=True)
    return dataclasses.replace(sysroot, counted_by="", not_counted=reason)


def _compilers(
    sysroot: Sysroot, directory: Path, fetch_tcc: Callable[[], list[Path]] | None
) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, command) of each compiler to try."""
    for path in host_compilers():
        yield Path(path).name, [path]
    if fetch_tcc is not None:
        root = directory / "tcc"
        unpack_packages(fetch_tcc(), root)
        folders = [f"-B{path}" for path in (root / "usr/lib").glob("*/tcc")]
        yield "tcc (unpacked)", [*loader_command(sysroot.directory / "host", root / "usr/bin/tcc"), *folders]


def _compile(sysroot: Sysroot, compiler: list[str], directory: Path) -> str | None:
    """Compile, install and test the plugin. Return the reason if it does not work, or None."""
    built = directory / "counting.so"
    built.unlink(missing_ok=True)
    options = [f"-DTFQ_MARKER={MARKER}", "-shared", "-fPIC", "-nostdlib", "-o", str(built)]
    try:
        result = run_command([*compiler, *options, str(SOURCE)], COMPILE_SECONDS, text=True, errors="replace")
    except OSError as error:
        return f"cannot be started: {error.strerror or error}"
    except BackendError as error:
        return f"failed: {error}"
    if result.returncode or not built.is_file():
        return f"does not compile the plugin: {_error_line(result)}"
    temporary = sysroot.plugin.with_name(".counting.so")
    shutil.copyfile(built, temporary)
    os.replace(temporary, sysroot.plugin)
    return _test_plugin(sysroot, directory / "counts")


def _test_plugin(sysroot: Sysroot, counts: Path) -> str | None:
    """Return the reason if the plugin does not count, or None."""
    counts.unlink(missing_ok=True)
    command = [*sysroot.command(sysroot.cpus[0], counts=counts), "-c", TEST_CODE]
    result = run_command(command, PLUGIN_TEST_SECONDS, text=True, errors="replace", env=sysroot.environment())
    if result.returncode:
        return f"compiles a plugin that does not run in QEMU {sysroot.qemu}: {_error_line(result)}"
    lines = counts.read_text().splitlines() if counts.exists() else []
    marks = [int(line.split()[0]) for line in lines]
    if len(marks) != 2 or not 0 < marks[0] < marks[1]:
        recorded = ", ".join(map(str, marks)) or "nothing"
        return f"compiles a plugin that does not count in QEMU {sysroot.qemu}: it recorded {recorded} for two marks"
    return None


def _error_line(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit code {result.returncode}"])[0]


RECIPE = 2  # increase it whenever the installed files change
SOURCE_VARIABLE = "TFQ_ARM64_APT_SOURCE"
RECORD = "installed.json"
TEST_SECONDS = 120
HOST_PACKAGES = ("qemu-user",)
ARM64_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
WHEELS = ("ai-edge-litert", "numpy", "flatbuffers", "protobuf", "typing_extensions", "tqdm", "backports.strenum")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")


def build(directory: Path, report: Callable[[str], None]) -> None:
    """Build and test an emulator in directory/tree.

    Args:
        directory: An empty folder.
        report: Receives a message at every step.

    Raises:
        BackendError: A step failed.
    """
    start, tree = time.monotonic(), directory / "tree"
    host, sysroot = tree / "host", tree / "sysroot"
    require_tools()
    sources = host_sources()
    arm64_sources = configured_arm64_sources() or sources
    report("ARM emulator: downloading QEMU (about 30 MB with the package lists)")

    def fetch_host(*packages: str) -> list[Path]:
        return fetch_packages(
            packages, architecture=host_architecture(), sources=sources, directory=directory / "host-apt"
        )

    host_debs = fetch_host(*HOST_PACKAGES)
    unpack_packages(host_debs, host)
    for emulator in (host / "usr/bin").glob("qemu-*"):
        if emulator.name != "qemu-aarch64":
            emulator.unlink()
    report("ARM emulator: downloading an arm64 Python (about 25 MB with the package lists)")
    arm64_debs = _fetch_arm64(arm64_sources, directory / "arm64-apt")
    unpack_packages(arm64_debs, sysroot)
    # If this file did not exist, the guest's loader would read the host's.
    (sysroot / "etc").mkdir(exist_ok=True)
    (sysroot / "etc/ld.so.cache").touch()
    for cpu in CPUS:
        make_cpu_prefix(tree, cpu)
    python = (sysroot / "usr/bin/python3").readlink().name.removeprefix("python")
    report(f"ARM emulator: downloading the interpreter and NumPy for arm64 Python {python} (about 40 MB)")
    install_wheels(tree / "site", python)
    report("ARM emulator: testing it")
    installed = _test_cpus(Sysroot(directory=tree, qemu="", cpus=tuple(CPUS)))
    installed = add_plugin(installed, lambda: fetch_host("tcc"))
    if installed.not_counted:
        report(f"ARM emulator: instruction counts are not available: {installed.not_counted}")
    write_record(installed, python=python, debs=[deb.name for deb in (*host_debs, *arm64_debs)], inputs=inputs())
    report(f"ARM emulator: installed in {time.monotonic() - start:.0f} s")


def configured_arm64_sources() -> list[AptSource]:
    """Return the source for arm64 that the user has set in the environment, if any."""
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
            f"{error}. If the configured mirror has no arm64 packages (Ubuntu's main one has none), name another one "
            f"with {SOURCE_VARIABLE}='deb [signed-by=KEYRING] URI SUITE main universe'"
        ) from error


def make_cpu_prefix(tree: Path, cpu: str) -> None:
    """Create the root folder for one CPU. Separate folders let different CPUs run at once, each with its cpuinfo."""
    prefix = tree / "cpu" / cpu
    prefix.mkdir(parents=True)
    for entry in (tree / "sysroot").iterdir():
        (prefix / entry.name).symlink_to(f"../../sysroot/{entry.name}")
    part, features = {**CPUS, **NEWER_CPUS}[cpu]
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
    # One core, as in cpuinfo, regardless of the host.
    files |= {f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present", "online")}
    for name, content in files.items():
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).write_text(content)


def install_wheels(site: Path, python_version: str, machine: str = "aarch64") -> None:
    """Install wheels for another architecture in the versions of this Python's packages.

    If these do not exist for the other Python, only ai-edge-litert has the same version.

    Args:
        site: Folder for the wheels.
        python_version: Version of the other Python, such as "3.11".
        machine: The architecture, as `uname -m` says it.

    Raises:
        BackendError: pip cannot download the wheels.
    """
    versions = package_versions()
    pinned = [name if version is None else f"{name}=={version}" for name, version in versions.items()]
    result = _pip(site, python_version, machine, pinned)
    if result.returncode:
        shutil.rmtree(site, ignore_errors=True)
        result = _pip(site, python_version, machine, [pinned[0], *WHEELS[1:]])
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise BackendError(
            f"pip cannot download {pinned[0]} and NumPy for {machine} Python {python_version}: {' | '.join(lines[-4:])}"
        )


def _pip(site: Path, python_version: str, machine: str, requirements: list[str]) -> subprocess.CompletedProcess[str]:
    options = ["--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(site)]
    options += ["--python-version", python_version, *(f"--platform={name}_{machine}" for name in PLATFORMS)]
    command = [sys.executable, "-m", "pip", "install", *options, *requirements]
    return run_command(command, DOWNLOAD_SECONDS, text=True, errors="replace", env={**os.environ, "PIP_USER": "0"})


def _test_cpus(sysroot: Sysroot) -> Sysroot:
    """Determine QEMU's version and the CPUs on which the target's imports succeed; an old QEMU does not support all.

    Raises:
        BackendError: The imports fail on every CPU.
    """
    return replace(sysroot, qemu=_qemu_version(sysroot.emulator()), cpus=_working_cpus(sysroot, sysroot.cpus))


def _working_cpus(sysroot: Sysroot, cpus: tuple[str, ...]) -> tuple[str, ...]:
    """Return the CPUs on which the target's imports succeed.

    The first import also writes the bytecode, so that later starts are faster.
    """
    imports = "import ctypes, json, resource, time, numpy, ai_edge_litert.interpreter"
    working, message = [], ""
    for cpu in cpus:
        command = [*sysroot.command(cpu), "-c", imports]
        result = run_command(command, TEST_SECONDS, text=True, env=sysroot.environment())
        if result.returncode == 0:
            working.append(cpu)
        else:
            message = f"exit code {result.returncode} on {cpu}: {' | '.join(result.stderr.splitlines()[-3:])}"
    if not working:
        raise BackendError(f"the ARM emulator cannot run its Python: {message}")
    return tuple(working)


def write_record(sysroot: Sysroot, **details: Any) -> None:
    """Write installed.json, which marks a complete installation."""
    record = {
        "qemu": sysroot.qemu,
        "cpus": sysroot.cpus,
        "counted_by": sysroot.counted_by,
        "not_counted": sysroot.not_counted,
        "counting_qemu": sysroot.counting_qemu,
        "newer_qemu": sysroot.newer_qemu,
        "newer_cpus": sysroot.newer_cpus,
    }
    write_json(sysroot.directory / RECORD, {**details, **record})


def package_versions() -> dict[str, str | None]:
    """Return the installed version of each of WHEELS; None if it is not installed."""
    results: dict[str, str | None] = {}
    for name in WHEELS:
        try:
            results[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            results[name] = None
    return results


def inputs() -> dict[str, Any]:
    """Return everything that determines the installed files; their hash names the installation."""
    release = os_release()
    return {
        "recipe": RECIPE,
        "system": [release.get("ID"), release.get("VERSION_CODENAME"), platform.machine()],
        "versions": package_versions(),
        "cpus": CPUS,
    }

# SPDX-License-Identifier: Apache-2.0
"""An installed ARM emulator: how it starts, as which CPU, with what in its environment."""

import os
from dataclasses import dataclass
from pathlib import Path

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

# SPDX-License-Identifier: Apache-2.0
"""Find the Vulkan drivers of this machine, and install SwiftShader into tfq's cache directory.

SwiftShader is a Vulkan driver that computes on the CPU. Chromium contains it. `python -m tfq.backends.gpu.vulkan`
unpacks the three files that are needed from Debian's package chromium-common, without root and without changing the
system. The package must be the one of this release: its files need the release's C library.
"""

import argparse
import ctypes.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tfq.artifacts import cache_dir, locked
from tfq.backends.qemu import apt
from tfq.backends.target.gpu import DRIVER, LOADER
from tfq.errors import BackendError, TfqError

COMMAND = "python -m tfq.backends.gpu.vulkan"
FOLDER_VARIABLE = "TFQ_VULKAN"
PACKAGE, PACKAGE_FOLDER = "chromium-common", "usr/lib/chromium"
FILES = (LOADER, DRIVER, "libvk_swiftshader.so")
# Installed browsers with these files.
FOLDERS = ("/usr/lib/chromium", "/usr/lib/chromium-browser", "/opt/google/chrome")
DEVICES = ("dri/renderD*", "nvidia0", "dxg")


def drivers() -> list[Path | None]:
    """Return the drivers to try, in order: None for those of the system, if it has a GPU, else SwiftShader's folder."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return [Path(folder)] if _is_complete(Path(folder)) else []
    candidates = [*map(Path, FOLDERS), _installed()]
    return [*([None] if _has_gpu() else []), *[path for path in candidates if _is_complete(path)][:1]]


def unavailable() -> str | None:
    """Return why there is no Vulkan driver, and what to do about it; None if there is one."""
    try:
        if drivers():
            return None
    except TfqError as error:
        return str(error)
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return f"{FOLDER_VARIABLE}={folder} has no {', '.join(FILES)}: unset it, or correct it"
    return (
        f"no GPU, and no SwiftShader, which replaces one: install SwiftShader with `{COMMAND}` (about 32 MB to "
        f"download from Debian, no root), or name a folder with {', '.join(FILES)} in {FOLDER_VARIABLE}"
    )


def install(report: Callable[[str], None] = lambda message: print(message, file=sys.stderr)) -> Path:
    """Install SwiftShader if this machine has none, and return its folder.

    Several processes may call this at the same time. If it fails or is interrupted, it leaves no files behind.

    Args:
        report: Receives a message at every step.

    Raises:
        BackendError: A step failed; the message says which one and why.
    """
    for path in map(Path, FOLDERS):
        if _is_complete(path):
            return path
    target = _installed()
    try:
        target.parent.mkdir(exist_ok=True)
        with locked(target.parent / ".lock"):
            if _is_complete(target):
                return target
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as directory:
                _unpack(Path(directory), report)
                shutil.rmtree(target, ignore_errors=True)
                (Path(directory) / "files").rename(target)
    except OSError as error:
        raise BackendError(f"cannot install SwiftShader below {target.parent}: {error}") from error
    return target


def _unpack(directory: Path, report: Callable[[str], None]) -> None:
    """Download the package, and put its three files into directory/files."""
    apt.require_tools()
    report("SwiftShader: downloading Debian's chromium-common (about 32 MB, and the package lists)")
    (deb,) = apt.fetch_packages(
        [PACKAGE],
        architecture=apt.host_architecture(),
        sources=apt.host_sources(),
        directory=directory / "apt",
        dependencies=False,
    )
    (directory / "files").mkdir()
    apt.unpack_files(deb, [f"{PACKAGE_FOLDER}/{name}" for name in FILES], directory / "files")


def _installed() -> Path:
    release = apt.os_release()
    key = "-".join((release.get("ID", "linux"), release.get("VERSION_CODENAME", ""), platform.machine()))
    return cache_dir() / "vulkan" / key


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _has_gpu() -> bool:
    """Check whether this machine has a GPU and Vulkan's loader. Whether the loader finds a driver, only a run shows."""
    return any(any(Path("/dev").glob(pattern)) for pattern in DEVICES) and bool(ctypes.util.find_library("vulkan"))


def main() -> int:
    """Run the command line, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Install SwiftShader, a Vulkan driver that computes on the CPU, into tfq's cache directory, from "
        "Debian's package chromium-common and without root. Does nothing if Chromium or Chrome is installed.",
        epilog=f"Environment variables: TFQ_CACHE_DIR sets the cache directory; {FOLDER_VARIABLE} names a folder with "
        "the driver. Exit codes: 0 installed, 3 failed, 130 interrupted.",
    )
    parser.parse_args()
    try:
        print(install())
    except TfqError as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{COMMAND}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

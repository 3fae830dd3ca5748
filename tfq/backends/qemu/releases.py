# SPDX-License-Identifier: Apache-2.0
"""QEMU's user-mode emulator of another Debian release than this system's.

Debian 12 has QEMU 7.2, whose plugins count instructions. Debian 13 has QEMU 10, which emulates newer cores and is built
without plugins. Both run on either release: Debian 12's through its own loader, Debian 13's because it is static.
"""

import dataclasses
from pathlib import Path

from tfq.backends.qemu.apt import (
    fetch_packages,
    host_architecture,
    host_sources,
    os_release,
    require_tools,
    unpack_packages,
)
from tfq.errors import BackendError

WITH_PLUGINS, WITH_NEWER_CPUS = "bookworm", "trixie"
EMULATOR = "usr/bin/qemu-aarch64"


def fetch_emulator(release: str, folder: Path, directory: Path) -> None:
    """Download and unpack the emulator of a Debian release, with its libraries.

    Args:
        release: The release's code name.
        folder: Folder for the emulator; it must not exist.
        directory: Folder for apt's files.

    Raises:
        BackendError: This system is not Debian, or the packages cannot be downloaded.
    """
    require_tools()
    system = os_release()
    own = system.get("VERSION_CODENAME", "")
    if system.get("ID") != "debian" or not own:
        raise BackendError(
            f"QEMU of Debian {release} is installed only on Debian, whose apt sources and keys this needs",
            expected="debian",
            got=system.get("ID"),
        )
    sources = [
        dataclasses.replace(source, suites=tuple(suite.replace(own, release) for suite in source.suites))
        for source in host_sources()
    ]
    debs = fetch_packages(["qemu-user"], architecture=host_architecture(), sources=sources, directory=directory)
    unpack_packages(debs, folder)
    for emulator in (folder / "usr/bin").glob("qemu-*"):
        if emulator.name != "qemu-aarch64":
            emulator.unlink()

# SPDX-License-Identifier: Apache-2.0
"""Pack a Python with NumPy and the LiteRT interpreter that runs on any 64-bit Linux, from Debian packages and wheels.

It contains its own C library and is started through its own loader, so it needs nothing of the board but a kernel. The
archive is kept in tfq's cache directory of this machine.
"""

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tfq.artifacts import cache_dir, locked, sha256_file
from tfq.backends.qemu import sysroot
from tfq.backends.qemu.apt import fetch_packages, host_sources, os_release, require_tools, unpack_packages
from tfq.backends.qemu.sysroot_build import configured_arm64_sources, install_wheels, package_versions
from tfq.errors import BackendError
from tfq.progress import stage

RECIPE = 1  # increase it whenever the packed files change
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "zlib1g", "libffi8", "libexpat1")
# The script that starts Python.
START = "python"


@dataclass(frozen=True)
class Architecture:
    """An architecture: Debian's name of it, its folder of libraries, and the file name of its loader."""

    debian: str
    folder: str
    loader: str


# By the name that `uname -m` prints.
ARCHITECTURES = {
    "aarch64": Architecture("arm64", "aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
    "x86_64": Architecture("amd64", "x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
}
# What an inference needs: the C and C++ libraries, and those of the extension modules that NumPy and LiteRT import.
LIBRARIES = re.compile(
    r"(ld-linux-|libc\.so|libm\.so|libmvec|libpthread|libdl\.so|librt\.so|libutil\.so|libgcc_s|libstdc\+\+|libz\.so"
    r"|libffi|libexpat\.so|libbz2|liblzma|libcrypt\.so|libuuid|libresolv).*"
)
# Parts of the packages that no inference uses.
UNUSED = re.compile(
    r".*/(__pycache__|tests?|testing/tests|idlelib|ensurepip|lib2to3|tkinter|turtledemo|pydoc_data|distutils|f2py"
    r"|dist-packages|config-3[^/]*|aot|tools|typing/tests|[^/]*\.dist-info)(/.*)?|.*/libLiteRt[A-Z][^/]*Accelerator.*"
    r"|.*\.(pyi|a|lib|h|hpp|tflite)|.*/_?(ssl|hashlib|curses|curses_panel|dbm|sqlite3?|readline|nis)\..*\.so"
)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A packed runtime.

    Args:
        path: The file, a .tar.gz.
        name: The folder that it is installed to, below the folder `runtime` on the board.
        sha256: Hash of the file.
    """

    path: Path
    name: str
    sha256: str


def key() -> str:
    """Return what names a runtime besides its architecture: a hash of what it is built from."""
    release = os_release()
    inputs = [RECIPE, release.get("ID"), release.get("VERSION_CODENAME"), package_versions()]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def build(machine: str, backend: str) -> Archive:
    """Return the runtime for an architecture, and build it if it is not in the cache.

    Args:
        machine: The architecture, as `uname -m` says it on the board.
        backend: The backend's name, for messages.

    Raises:
        BackendError: There is no runtime for the architecture, or it cannot be built on this machine.
    """
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        raise BackendError(
            f"{backend}: the board has no Python with NumPy and ai-edge-litert, and there is no runtime for its "
            f"architecture {machine!r}. Install both on the board, or use a 64-bit system there",
            expected=tuple(ARCHITECTURES),
            got=machine,
        )
    folder = cache_dir() / "boards"
    name = f"{machine}-{key()}"
    path = folder / f"{name}.tar.gz"
    try:
        folder.mkdir(exist_ok=True)
        with locked(folder / ".lock"):
            if not path.exists():
                with stage(f"building a runtime for {machine} boards"):
                    _build(path, machine, architecture)
    except OSError as error:
        raise BackendError(
            f"{backend}: cannot build a runtime for {machine} boards below {folder}: {error.strerror or error}"
        ) from error
    return Archive(path=path, name=name, sha256=sha256_file(path))


def _build(path: Path, machine: str, architecture: Architecture) -> None:
    for stale in path.parent.glob(".building-*"):  # of a killed process: a running one would hold the lock
        stale.unlink(missing_ok=True)
    installed = sysroot.find() if machine == "aarch64" else None
    with tempfile.TemporaryDirectory(prefix="tfq-runtime-", ignore_cleanup_errors=True) as directory:
        if installed is not None:
            system, site = installed.directory / "sysroot", installed.directory / "site"
        else:
            system, site = _fetch(Path(directory), machine, architecture)
        temporary = path.with_name(f".building-{path.name}")
        with open(temporary, "wb") as file:
            _pack(file, system, site, architecture)
        os.replace(temporary, path)


def _fetch(directory: Path, machine: str, architecture: Architecture) -> tuple[Path, Path]:
    """Download and unpack packages and wheels, and return their folders."""
    require_tools()
    system, site = directory / "system", directory / "site"
    sources = (configured_arm64_sources() if machine == "aarch64" else []) or host_sources()
    debs = fetch_packages(PACKAGES, architecture=architecture.debian, sources=sources, directory=directory / "apt")
    unpack_packages(debs, system)
    install_wheels(site, _python_version(system), machine)
    return system, site


def _python_version(system: Path) -> str:
    return (system / "usr/bin/python3").readlink().name.removeprefix("python")


def _pack(file: BinaryIO, system: Path, site: Path, architecture: Architecture) -> None:
    """Write the archive. The same files give the same bytes."""
    version = _python_version(system)
    script = f"""#!/bin/sh
top=$(cd "${{0%/*}}" && pwd) || exit
lib="$top/usr/lib/{architecture.folder}"
export LC_ALL=C PYTHONHOME="$top/usr" PYTHONPATH="$top/site"
unset LD_LIBRARY_PATH LD_PRELOAD
exec "$lib/{architecture.loader}" --library-path "$lib" "$top/usr/bin/python{version}" -S -s "$@"
"""
    with (
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name, path in _files(system, site, architecture, version):
            content = path.read_bytes()
            _add(archive, name, content, executable=os.access(path, os.X_OK))
        _add(archive, START, script.encode(), executable=True)


def _files(system: Path, site: Path, architecture: Architecture, version: str) -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of each file, in order. Symbolic links are resolved."""
    yield f"usr/bin/python{version}", system / f"usr/bin/python{version}"
    libraries = system / "usr/lib" / architecture.folder
    for path in sorted(libraries.iterdir()):
        if path.is_file() and LIBRARIES.fullmatch(path.name) and (path.is_symlink() or not _is_linked(path, libraries)):
            yield f"usr/lib/{architecture.folder}/{path.name}", path.resolve()
    for top, name in ((system / f"usr/lib/python{version}", f"usr/lib/python{version}"), (site, "site")):
        for path in sorted(top.rglob("*")):
            inner = f"{name}/{path.relative_to(top)}"
            if path.is_file() and not UNUSED.fullmatch(inner):
                yield inner, path.resolve()


def _is_linked(path: Path, folder: Path) -> bool:
    """Check whether a library is the target of a link of the same folder, which then stands for it."""
    return any(other.is_symlink() and other.readlink().name == path.name for other in folder.iterdir())


def _add(archive: tarfile.TarFile, name: str, content: bytes, *, executable: bool) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755 if executable else 0o644
    archive.addfile(entry, io.BytesIO(content))

# SPDX-License-Identifier: Apache-2.0
"""What a source would deliver, told by a hash of what it reads: nothing is decoded."""

import hashlib
import os
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from tfq.artifacts import sha256_file
from tfq.config import DataConfig
from tfq.data.sources import open_source
from tfq.data.sources.eembc import LABELS_FILE
from tfq.data.sources.keras_datasets import set_files
from tfq.data.sources.tfds import tfds_builder
from tfq.data.sources.tfrecord import matched_files
from tfq.errors import InputError


def source_fingerprint(config: DataConfig) -> str:
    """Hex SHA-256 that changes whenever what config.source would deliver may change.

    Of files: their names and content, wherever they lie; of data that comes with a package: its version; of a TFDS data
    set: its name, version and sizes. What must be downloaded is downloaded. The other settings of `config` do not
    enter. Raises InputError where the source cannot be found or read.
    """
    kind, _, address = config.source.partition(":")
    open_source(config)
    lines = _FINGERPRINTS[kind](address)
    return hashlib.sha256("\n".join([kind, *lines]).encode(errors="surrogateescape")).hexdigest()


def _digits(address: str) -> Iterable[str]:
    try:
        return [metadata.version("scikit-learn")]
    except metadata.PackageNotFoundError:
        return ["none"]  # what reads it says what to install


def _npz(address: str) -> Iterable[str]:
    path = Path(os.path.expanduser(address))
    return _of_files([path], path.parent)


def _tfrecord(address: str) -> Iterable[str]:
    # Directories do not matter: the splits go by the files' base names, in the order of their paths.
    return [f"{path.name} {_hash(path)}" for path in matched_files(address)]


def _folder(address: str) -> Iterable[str]:
    root = Path(os.path.expanduser(address))
    if not root.is_dir():
        raise InputError(
            f"data.source=folder:{address}: {root} is no directory", field="data.source", got=f"folder:{address}"
        )
    return _of_files(sorted(path for path in root.rglob("*") if path.is_file()), root)


def _eembc(address: str) -> Iterable[str]:
    path = Path(os.path.expanduser(address))
    table = path if path.suffix == ".csv" else path / LABELS_FILE
    return _of_files([table, *sorted(table.parent.glob("*.bin"))], table.parent)


def _keras_set(name: str) -> Callable[[str], Iterable[str]]:
    def of_files(address: str) -> Iterable[str]:
        found = set_files(name, address)
        paths = [inside for path in found for inside in ([path] if path.is_file() else sorted(path.iterdir()))]
        return [f"{path.name} {_hash(path)}" for path in paths if path.is_file()]

    return of_files


def _tfds(address: str) -> Iterable[str]:
    info = tfds_builder(address).info
    return [info.full_name, *(f"{name} {part.num_examples} {part.num_bytes}" for name, part in info.splits.items())]


_FINGERPRINTS: dict[str, Callable[[str], Iterable[str]]] = {
    "cifar10": _keras_set("cifar10"),
    "digits": _digits,
    "eembc": _eembc,
    "fashion_mnist": _keras_set("fashion_mnist"),
    "folder": _folder,
    "npz": _npz,
    "tfds": _tfds,
    "tfrecord": _tfrecord,
}


def _of_files(paths: Iterable[Path], root: Path) -> list[str]:
    return [f"{path.relative_to(root).as_posix()} {_hash(path)}" for path in paths]


def _hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}: expected a file of data.source",
            field="data.source",
            got=str(path),
        ) from error

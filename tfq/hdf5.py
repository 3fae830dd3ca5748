# SPDX-License-Identifier: Apache-2.0
"""Read HDF5 files of unknown origin: in a child process first, because the HDF5 library can crash on a damaged file.

`check` reads everything in a file once: each link, attribute and data set. A file that ends the child, refers to other
files, or expands like a decompression bomb is refused before this process or Keras opens it.
"""

import contextlib
import io
import os
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tfq import artifacts
from tfq.errors import InputError, ModelError
from tfq.isolation import foreign_bytes, isolated

MAX_OBJECTS = 100_000
# Wall-clock limit of one call, on a busy machine. The limit on the CPU time is lower.
TIMEOUT_SECS = 1200.0
# Address space for reading a file, in addition to a multiple of its size and of its largest data set.
_BASE_BYTES, _FILE_FACTOR, _DATA_FACTOR = 512 << 20, 8, 3
# CPU seconds for reading a file: a slow machine unpacks more than 10 MB of a file in a second.
_BASE_SECS, _BYTES_PER_SEC = 2.0, 10e6
# A data set is read in parts of about this size.
_PART_BYTES = 64 << 20
_ADVICE = "The file may be damaged. Save the model again"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The parts of an HDF5 file that tell what it is.

    Attributes:
        attributes: The requested attributes of the root group that exist, and are text.
        attribute_names: The names of all attributes of the root group.
        members: The names of the members of the root group.
    """

    attributes: Mapping[str, str | bytes]
    attribute_names: frozenset[str]
    members: frozenset[str]


def check(where: str, content: bytes, attributes: tuple[str, ...] = ()) -> Contents:
    """Read everything in an HDF5 file once, in a child process.

    Args:
        where: What the file is, for the errors: its path.
        content: The file's bytes.
        attributes: The attributes of the root group to return.

    Raises:
        InputError: The file is damaged, crashes the HDF5 library, contains links to other files or data in them,
            declares more data than tfq loads, or a requested attribute is not text.
    """
    with foreign_bytes(content):
        try:
            return _check(where, content, attributes)
        except ModelError as error:  # from `isolated`, which does not know the file
            raise InputError(f"{where}: {error}", field="model", got=error.got) from error


def with_attribute(where: str, content: bytes, name: str, value: str) -> bytes:
    """Return an HDF5 file with an attribute of the root group replaced, in a child process.

    Raises:
        InputError: The HDF5 library fails or crashes.
    """
    with foreign_bytes(content):
        try:
            return _with_attribute(content, name, value)
        except (ModelError, OSError, RuntimeError, KeyError, ValueError) as error:
            raise InputError(f"{where} is a damaged HDF5 file ({error})", field="model") from error


@isolated("the HDF5 library", advice=_ADVICE, timeout_secs=TIMEOUT_SECS)
def _with_attribute(content: bytes, name: str, value: str) -> bytes:
    import h5py

    copy = io.BytesIO(content)
    with _time_limited(len(content)), h5py.File(copy, "r+") as file:
        file.attrs[name] = value
    return copy.getvalue()


@isolated("the HDF5 library", advice=_ADVICE, timeout_secs=TIMEOUT_SECS)
def _check(where: str, content: bytes, attributes: tuple[str, ...]) -> Contents:
    import h5py

    limit = _BASE_BYTES + _FILE_FACTOR * len(content)
    try:
        with _time_limited(len(content)), h5py.File(io.BytesIO(content), "r") as file:
            with _memory_limited(limit):
                datasets = _check_objects(where, file, len(content))
                values = {name: file.attrs[name] for name in attributes if name in file.attrs}
                names, members = frozenset(file.attrs), frozenset(file)
            with _memory_limited(limit + _DATA_FACTOR * max(map(_declared_bytes, datasets), default=0)):
                for dataset in datasets:
                    _read(dataset)
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{where} is a damaged HDF5 file ({reason})", field="model") from error
    for name, value in values.items():
        if not isinstance(value, (str, bytes)):
            raise InputError(
                f"{where}: expected text in the attribute {name}, got {type(value).__name__}", field="model"
            )
    # Without NumPy's subclasses of str and bytes.
    texts = {name: bytes(value) if isinstance(value, bytes) else str(value) for name, value in values.items()}
    return Contents(attributes=texts, attribute_names=names, members=members)


@contextlib.contextmanager
def _limited(kind: int, used: float, more: float) -> Iterator[None]:
    """Limit a resource of this process to what it uses now and `more`. An existing lower limit stays."""
    soft, hard = resource.getrlimit(kind)
    limits = [int(used + more), *(value for value in (soft, hard) if value != resource.RLIM_INFINITY)]
    resource.setrlimit(kind, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def _memory_limited(more_bytes: int) -> contextlib.AbstractContextManager[None]:
    """Limit the address space."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return _limited(resource.RLIMIT_AS, used, more_bytes)


def _time_limited(file_bytes: int) -> contextlib.AbstractContextManager[None]:
    """Limit the CPU time: on some damaged files, HDF5 runs forever. The signal SIGXCPU ends the process."""
    return _limited(resource.RLIMIT_CPU, time.process_time(), _BASE_SECS + file_bytes / _BYTES_PER_SEC)


def _check_objects(where: str, file: Any, file_bytes: int) -> list[Any]:
    """Read all links and attributes, and return the data sets.

    Raises:
        InputError: A link refers to another file, data is in another file, or more is declared than tfq loads.
    """
    import h5py

    _read_attributes(where, file, file_bytes)
    declared, seen, groups, datasets = 0, set(), [file], []
    while groups:
        group = groups.pop()
        for name in group:
            link = group.get(name, getlink=True)
            place = f"{where}: {group.name.rstrip('/')}/{name}"
            if isinstance(link, h5py.ExternalLink):
                raise InputError(
                    f"{place} is a link to another file ({link.filename!r}). tfq does not load such a model",
                    field="model",
                    limit="external-data",
                )
            if not isinstance(link, h5py.HardLink):
                continue
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > MAX_OBJECTS:
                raise InputError(
                    f"{where} has more than {MAX_OBJECTS} HDF5 objects, the most that tfq loads",
                    field="model",
                    limit="large-files",
                )
            _read_attributes(place, item, file_bytes)
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                declared += _check_dataset(place, item, declared)
                datasets.append(item)
    return datasets


def _check_dataset(where: str, dataset: Any, declared: int) -> int:
    """Return the bytes of a data set. Raise InputError if it is too large, or stored in another file."""
    if dataset.external or dataset.is_virtual:
        raise InputError(
            f"{where} has its data in another file. tfq does not load such a model",
            field="model",
            limit="external-data",
        )
    size = _declared_bytes(dataset)
    if declared + size > artifacts.MAX_FILE_BYTES:
        raise InputError(
            f"{where}: the data sets up to this one declare {declared + size} bytes. tfq loads at most "
            f"{artifacts.MAX_FILE_BYTES}",
            field="model",
            limit="large-files",
        )
    # A data set without stored bytes reads as its fill value.
    artifacts.check_expansion(f"{where}: the data set", dataset.id.get_storage_size(), size)
    return size


def _declared_bytes(dataset: Any) -> int:
    return dataset.size * dataset.dtype.itemsize if dataset.size else 0


def _read_attributes(where: str, item: Any, file_bytes: int) -> None:
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        with contextlib.suppress(TypeError):  # a type that NumPy does not have: Keras cannot read it either
            size = attribute.dtype.itemsize
            for length in attribute.shape or ():
                size *= length
            # Attributes are not compressed.
            if size > file_bytes:
                raise InputError(
                    f"{where}: the attribute {name!r} declares {size:,} bytes in a file of {file_bytes:,}",
                    field="model",
                    expected=file_bytes,
                    got=size,
                )
            item.attrs[name]


def _read(dataset: Any) -> None:
    """Read all values of a data set, in parts."""
    if not dataset.shape:
        dataset[()]
        return
    row_bytes = max(1, _declared_bytes(dataset) // max(1, dataset.shape[0]))
    step = max(1, _PART_BYTES // row_bytes)
    if dataset.chunks:  # a chunk is decompressed as a unit
        step = max(dataset.chunks[0], step // dataset.chunks[0] * dataset.chunks[0])
    for start in range(0, dataset.shape[0], step):
        dataset[start : start + step]

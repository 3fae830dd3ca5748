# SPDX-License-Identifier: Apache-2.0
"""The arrays of an .npz archive, read some rows at a time, compressed or not.

Source of the format: NumPy's NEP 1 (`numpy.lib.format`), inside a zip archive, a member `<key>.npy` an array.
"""

import contextlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tfq.artifacts import read_bytes
from tfq.errors import InputError

# What NumPy and zipfile raise on an archive that is cut short, damaged, encrypted or none at all.
_DAMAGE = (OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
_NPY_MAGIC = b"\x93NUMPY"
# A zip member's own header: 30 bytes, of which the last two numbers are the lengths of what follows them.
_ZIP_HEADER = struct.Struct("<26x2H")


@dataclass(frozen=True, kw_only=True)
class Member:
    """An array of an archive. `is_by_columns`: stored in Fortran order, so that a row is all over the file."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_by_columns: bool
    start: int  # of its values, after the header of the .npy
    stored_at: int | None  # of the .npy in the file itself, where it is not compressed

    @property
    def length(self) -> int:
        """Rows, along the first axis. Raises InputError on Python objects, which are never unpickled, and scalars."""
        if self.dtype.hasobject:
            raise InputError(
                f"{self.path} {self.key}: is an array of Python objects, which tfq never unpickles: "
                "wanted numbers of one shape for every example"
            )
        if not self.shape:
            raise InputError(
                f"{self.path} {self.key}: is a single number: wanted an array with the examples along its first axis"
            )
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def is_seekable(self) -> bool:
        return self.stored_at is not None and not self.is_by_columns

    def rows(self, start: int, stop: int, step: int) -> Iterator[NDArray]:
        """The rows from start to before stop, `step` at a time. Raises InputError where the archive is damaged."""
        try:
            with self._opened(start) as file:
                if self.is_by_columns:
                    whole = self._taken(file, self.length)
                    yield from (whole[first : min(first + step, stop)] for first in range(start, stop, step))
                    return
                for first in range(start, stop, step):
                    yield self._taken(file, min(step, stop - first))
        except _DAMAGE as error:
            raise InputError(f"{self.path} {self.key}: cannot be read, the archive is damaged: {error}") from error

    @contextlib.contextmanager
    def _opened(self, row: int) -> Iterator[IO[bytes]]:
        """The file at the values of `row`; through zipfile, which checks the checksum, where all is read in order."""
        offset = self.start + (0 if self.is_by_columns else row * self.row_bytes)
        if self.stored_at is not None and row:
            with open(self.path, "rb") as file:
                file.seek(self.stored_at + offset)
                yield file
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.key}.npy") as member:
            member.seek(offset)
            yield member

    def _taken(self, file: IO[bytes], count: int) -> NDArray:
        size = count * self.row_bytes
        content = file.read(size)
        if len(content) < size:
            raise EOFError(f"{self.key} ends after {len(content):,} of {size:,} bytes")
        values = np.frombuffer(content, self.dtype) if size else np.empty(0, self.dtype)
        return values.reshape((count, *self.shape[1:]), order="F" if self.is_by_columns else "C")


def read_members(path: Path, wanted: str) -> dict[str, Member]:
    """Key -> array, of which nothing is read but its header, in the archive's order.

    Raises InputError when `path` is no archive, or a damaged one. `wanted` ends the sentence about a file that is none.
    """
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            return {
                info.filename.removesuffix(".npy"): _member(archive, file, info, path)
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
    except _DAMAGE as error:
        content = read_bytes(path, wanted)  # says it better where the file is missing, a directory, or empty
        if content.startswith(_NPY_MAGIC):
            advice = "save it with numpy.savez(path, x_test=...)"
            raise InputError(f"{path} is a single .npy array: wanted {wanted}: {advice}") from error
        raise InputError(f"{path} is no .npz archive, or a damaged one ({error}): wanted {wanted}") from error


def _member(archive: zipfile.ZipFile, file: IO[bytes], info: zipfile.ZipInfo, path: Path) -> Member:
    key = info.filename.removesuffix(".npy")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_by_columns, dtype = read(member)
        start = member.tell()
    stored_at = None
    if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
        file.seek(info.header_offset)
        name_length, extra_length = _ZIP_HEADER.unpack(file.read(_ZIP_HEADER.size))
        stored_at = info.header_offset + _ZIP_HEADER.size + name_length + extra_length
    return Member(
        path=path,
        key=key,
        shape=shape,
        dtype=dtype,
        # A single axis is stored the same either way.
        is_by_columns=bool(is_by_columns) and len(shape) > 1,
        start=start,
        stored_at=stored_at,
    )

# SPDX-License-Identifier: Apache-2.0
"""The data source `npz:FILE`: arrays of an .npz file, checked and read member by member.

Source of the format: NumPy's NEP 1 (`numpy.lib.format`), inside a zip archive, a member `<key>.npy` an array.
"""

import contextlib
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tfq.artifacts import read_bytes
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_a_piece, file_fingerprint, without_val
from tfq.data.split import UNNAMED, MissingSplitError, class_labels
from tfq.errors import InputError
from tfq.registry import register

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
                "wanted numbers of one shape for every example",
                field=self.key,
                got="object",
            )
        if not self.shape:
            raise InputError(
                f"{self.path} {self.key}: is a single number: expected an array with the examples along its first axis",
                field=self.key,
                got=(),
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
            raise InputError(
                f"{self.path} {self.key}: cannot be read, the archive is damaged: {error}",
                field=self.key,
                got=str(self.path),
            ) from error

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
            raise InputError(
                f"{path} is a single .npy array: expected {wanted}: {advice}", field="data.source", got=str(path)
            ) from error
        raise InputError(
            f"{path} is no .npz archive, or a damaged one ({error}): expected {wanted}",
            field="data.source",
            got=str(path),
        ) from error


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


_KEY = re.compile(r"x_(train|val|test)(\..+)?|y_(train|val|test)")
_WANTED = "an .npz archive with x_test and y_test (x_train, y_train, x_val, y_val)"


def read_npz(address: str, config: DataConfig, split: str) -> Examples:
    """A split of the archive at `address`; pickled objects are never loaded.

    Without x_val, the last tenth of train is val, and train is the rest. Without y_<split> there are no labels. The
    labels are read at once, the inputs in pieces.
    Raises MissingSplitError when the archive does not hold the split, InputError on everything else.
    """
    if not address:
        raise InputError(
            "data.source=npz: expected npz:PATH: give the path of an .npz file",
            field="data.source",
            expected="npz:PATH",
            got="npz",
        )
    path = Path(os.path.expanduser(address))
    members = read_members(path, _WANTED)
    notes = [f"{path}: {key!r} is not used: its name is no x_ or y_ key" for key in members if not _KEY.fullmatch(key)]
    has_val = bool(_input_keys(list(members), "val"))
    holder = "train" if split == "val" and not has_val else split
    keys = _input_keys(list(members), holder)
    if not keys:
        raise MissingSplitError(
            f"{path} has no x_{split}: expected x_{split} or x_{split}.<input>, and y_{split} for labels; "
            f"it holds {', '.join(sorted(members)) or 'nothing'}",
            field="split",
            expected=tuple(sorted(members)),
            got=split,
        )
    examples = _examples(members, keys, path, holder, tuple(notes))
    return without_val(examples, split, str(path)) if holder == "train" and not has_val else examples


def _input_keys(keys: Sequence[str], split: str) -> list[str]:
    return [key for key in keys if key == f"x_{split}" or (key.startswith(f"x_{split}.") and _KEY.fullmatch(key))]


def _examples(members: dict[str, Member], keys: list[str], path: Path, split: str, notes: tuple[str, ...]) -> Examples:
    if len(keys) > 1 and f"x_{split}" in keys:
        raise InputError(
            f"{path} holds both x_{split} and {keys[1 - keys.index(f'x_{split}')]}: expected one or the other",
            field="data.source",
            got=tuple(keys),
        )
    inputs = {key.partition(".")[2] or UNNAMED: members[key] for key in keys}
    labels = _labels(members, path, f"y_{split}")
    lengths = {f"input {name!r}": member.length for name, member in inputs.items()}
    if labels is not None:
        lengths["labels"] = len(labels)
    if len(set(lengths.values())) > 1:
        message = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise InputError(
            f"{path} ({split}): lengths differ ({message}): expected one label and one of each input per example",
            field="data.source",
            got=lengths,
        )
    count = next(iter(lengths.values()))
    if not count:
        raise InputError(f"{path} ({split}): is empty: expected at least one example", field="data.source", got=0)
    whole = [name for name, member in inputs.items() if member.is_by_columns]
    if whole:
        notes = (*notes, f"{path}: {whole[0]!r} is stored by columns (Fortran order): it is read as a whole")
    step = examples_a_piece(sum(member.row_bytes for member in inputs.values()))

    def read(start: int, stop: int) -> Iterator[Piece]:
        readers = {name: member.rows(start, stop, step) for name, member in inputs.items()}
        for first in range(start, stop, step):
            yield Piece(
                inputs={name: next(rows) for name, rows in readers.items()},
                labels=None if labels is None else labels[first : min(first + step, stop)],
            )
        # What is left of a reader checks that the member is whole.
        for rows in readers.values():
            next(rows, None)

    seekable = all(member.is_seekable for member in inputs.values())
    return Examples(num_examples=count, read=read, seekable=seekable, notes=notes)


def _labels(members: dict[str, Member], path: Path, key: str) -> NDArray | None:
    if key not in members:
        return None
    member = members[key]
    labels = np.concatenate(list(member.rows(0, member.length, max(1, member.length))) or [np.empty(0, member.dtype)])
    # Floats are a regression's: for a metric of the user's own.
    return labels if labels.dtype.kind == "f" else class_labels(labels, f"{path} {key}")


def _fingerprint(address: str, config: DataConfig) -> object:
    path = Path(os.path.expanduser(address))
    return file_fingerprint([path], path.parent)


register(
    DataSource(
        name="npz",
        help="arrays x_test, y_test, x_train, y_train, x_val, y_val of an .npz file; several inputs are x_test.INPUT",
        address="PATH",
        read=read_npz,
        fingerprint=_fingerprint,
        looks_like=r"\.npz$",
    )
)

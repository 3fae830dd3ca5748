# SPDX-License-Identifier: Apache-2.0
"""The source `npz:PATH`: arrays of an .npz file, checked and read one member at a time.

Source of the format: NumPy's NEP 1 (`numpy.lib.format`), in a zip archive with a member `<key>.npy` for each array.
"""

import contextlib
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tfq.artifacts import BOMB_FLOOR_BYTES, MAX_EXPANSION, open_file, read_bytes, reason, shown
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_per_piece, file_fingerprint, hold_out_val
from tfq.data.output_labels import join_labels
from tfq.data.split import UNNAMED, MissingSplitError, class_labels
from tfq.errors import InputError
from tfq.registry import register

_SKIP_BYTES = 1 << 20
_NPY_MAGIC = b"\x93NUMPY"
# The local header of a zip member: 30 bytes that end with the lengths of the two fields after it.
_ZIP_HEADER = struct.Struct("<26x2H")


@dataclass(frozen=True, kw_only=True)
class Member:
    """An array of an archive. `is_fortran_order`: it is stored in Fortran order, so that a row is not contiguous."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran_order: bool
    start: int  # the position of its values in the .npy, after the header
    stored_at: int | None  # the position of the .npy in the archive; None if it is compressed
    stored_bytes: int  # the size in the archive

    @property
    def length(self) -> int:
        """The number of rows along the first axis.

        Raises:
            InputError: The array holds Python objects, which are never unpickled, or is a scalar.
        """
        if self.dtype.hasobject:
            raise InputError(
                f"{self.path} {self.key} is an array of Python objects, which tfq does not unpickle. Save numbers of "
                "one shape for every example",
                field=self.key,
                got="object",
                limit="object-arrays",
            )
        if not self.shape:
            raise InputError(
                f"{self.path} {self.key} is a single number, expected an array with the examples along its first axis",
                field=self.key,
                got=(),
            )
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """The size of a row in bytes."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def is_seekable(self) -> bool:
        """Whether reading from the middle costs no more than reading from the beginning."""
        return self.stored_at is not None and not self.is_fortran_order

    def rows(self, start: int, stop: int, step: int) -> Iterator[NDArray]:
        """Yield the rows start..stop-1, `step` at a time.

        Raises:
            InputError: The archive is damaged.
        """
        try:
            with self._open_at(start) as file:
                if self.is_fortran_order:
                    fortran = self._read_rows(file, self.length)
                    yield from (fortran[first : min(first + step, stop)] for first in range(start, stop, step))
                    return
                for first in range(start, stop, step):
                    yield self._read_rows(file, min(step, stop - first))
        except Exception as error:
            # NumPy and the decompressors raise exceptions of many types.
            raise InputError(
                f"{self.path} {self.key} cannot be read, because the archive is damaged: {reason(error)}. Save it "
                "again",
                field=self.key,
                got=str(self.path),
            ) from error

    @contextlib.contextmanager
    def _open_at(self, row: int) -> Iterator[IO[bytes]]:
        """Open the file at the values of `row`. Reads from row 0 go through zipfile, which checks the checksum."""
        offset = self.start + (0 if self.is_fortran_order else row * self.row_bytes)
        if self.stored_at is not None and row:
            with open_file(self.path, _EXPECTED) as file:
                file.seek(self.stored_at + offset)
                yield file
            return
        with (
            open_file(self.path, _EXPECTED) as file,
            zipfile.ZipFile(file) as archive,
            archive.open(f"{self.key}.npy") as member,
        ):
            # Read up to there: in Python 3.13, seeking in an uncompressed member turns off the check of its checksum.
            while offset > 0:
                skipped = len(member.read(min(offset, _SKIP_BYTES)))
                if not skipped:
                    raise EOFError(f"{self.key} ends before its values")
                offset -= skipped
            yield member

    def _read_rows(self, file: IO[bytes], count: int) -> NDArray:
        size = count * self.row_bytes
        if size > BOMB_FLOOR_BYTES and size > MAX_EXPANSION * self.stored_bytes:
            raise ValueError(
                f"{self.key} expands from {self.stored_bytes:,} to {size:,} bytes, like a decompression bomb; save it "
                "uncompressed, with numpy.savez"
            )
        content = file.read(size)
        if len(content) < size:
            raise EOFError(f"{self.key} ends after {len(content):,} of {size:,} bytes")
        values = np.frombuffer(content, self.dtype) if size else np.empty(0, self.dtype)
        return values.reshape((count, *self.shape[1:]), order="F" if self.is_fortran_order else "C")


def read_members(path: Path, expected: str) -> dict[str, Member]:
    """Return {key: array} in the archive's order. Only headers are read.

    Args:
        path: The archive.
        expected: What was expected, for the message about a file that is not an archive.

    Raises:
        InputError: `path` is not an archive, or a damaged one.
    """
    try:
        with open_file(path, expected) as file, zipfile.ZipFile(file) as archive:
            return {
                info.filename.removesuffix(".npy"): _member(archive, file, info, path)
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
    except InputError:
        raise
    except Exception as error:
        content = read_bytes(path, expected)  # has better messages for a missing or empty file and for a directory
        if content.startswith(_NPY_MAGIC):
            raise InputError(
                f"{path} is a single .npy array, expected {expected}. Save it with numpy.savez(path, x_test=...)",
                field="data.source",
                got=str(path),
            ) from error
        raise InputError(
            f"{path} is damaged or not an .npz archive ({reason(error)}). Expected {expected}",
            field="data.source",
            got=str(path),
        ) from error


def _member(archive: zipfile.ZipFile, file: IO[bytes], info: zipfile.ZipInfo, path: Path) -> Member:
    key = info.filename.removesuffix(".npy")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran_order, dtype = read(member)
        start = member.tell()
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (start + size > info.file_size and not dtype.hasobject):
        raise ValueError(f"{key} has shape {shape}, {size:,} bytes, but its member has {info.file_size:,}")
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
        # A single axis is stored the same way in both orders.
        is_fortran_order=bool(is_fortran_order) and len(shape) > 1,
        start=start,
        stored_at=stored_at,
        stored_bytes=info.compress_size,
    )


_KEY = re.compile(r"[xy]_(train|val|test)(\..+)?")
_EXPECTED = "an .npz archive with x_test and y_test (x_train, y_train, x_val, y_val)"


def read_npz(address: str, config: DataConfig, split: str) -> Examples:
    """Return a split of the archive at `address`. Pickled objects are never loaded.

    Without x_val, the last tenth of train is val, and train is the rest. Without y_SPLIT there are no labels. Labels
    are read at once, inputs in pieces.

    Raises:
        MissingSplitError: The archive does not contain the split.
        InputError: The archive cannot be read, or its arrays do not fit together.
    """
    path = _path(address)
    members = read_members(path, _EXPECTED)
    notes = [
        f"{path}: {key!r} is not used, because it is not called x_SPLIT or y_SPLIT"
        for key in members
        if not _KEY.fullmatch(key)
    ]
    has_val = bool(_input_keys(list(members), "val"))
    stored_in = "train" if split == "val" and not has_val else split
    keys = _input_keys(list(members), stored_in)
    if not keys:
        raise MissingSplitError(
            f"{path} has no {split} split: expected x_{split} or x_{split}.INPUT, and y_{split} for labels. "
            f"It contains {', '.join(shown(key)[:60] for key in sorted(members)[:20]) or 'nothing'}",
            field="split",
            expected=tuple(sorted(members)),
            got=split,
        )
    examples = _examples(members, keys, path, stored_in, tuple(notes))
    return hold_out_val(examples, split, str(path)) if stored_in == "train" and not has_val else examples


def _path(address: str) -> Path:
    if not address:
        raise InputError(
            "data.source=npz has no path: expected npz:PATH, the path of an .npz file",
            field="data.source",
            expected="npz:PATH",
            got="npz",
        )
    return Path(os.path.expanduser(address))


def _input_keys(keys: Sequence[str], split: str) -> list[str]:
    return [key for key in keys if key == f"x_{split}" or (key.startswith(f"x_{split}.") and _KEY.fullmatch(key))]


def _examples(members: dict[str, Member], keys: list[str], path: Path, split: str, notes: tuple[str, ...]) -> Examples:
    if len(keys) > 1 and f"x_{split}" in keys:
        raise InputError(
            f"{path} contains both x_{split} and {keys[1 - keys.index(f'x_{split}')]}. Keep x_{split} for a model with "
            "one input, or only the named arrays",
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
            f"{path} ({split}): lengths differ ({message}). Every example needs one row in each input and one label",
            field="data.source",
            got=lengths,
        )
    count = next(iter(lengths.values()))
    if not count:
        raise InputError(f"{path} ({split}) is empty, expected at least one example", field="data.source", got=0)
    fortran = [name for name, member in inputs.items() if member.is_fortran_order]
    if fortran:
        notes = (*notes, f"{path}: {fortran[0]!r} is stored in Fortran order, so it is read into memory as a whole")
    step = examples_per_piece(sum(member.row_bytes for member in inputs.values()))

    def read(start: int, stop: int) -> Iterator[Piece]:
        readers = {name: member.rows(start, stop, step) for name, member in inputs.items()}
        for first in range(start, stop, step):
            yield Piece(
                inputs={name: next(rows) for name, rows in readers.items()},
                labels=None if labels is None else labels[first : min(first + step, stop)],
            )
        # Reading on to the end checks the member's checksum.
        for rows in readers.values():
            next(rows, None)

    seekable = all(member.is_seekable for member in inputs.values())
    return Examples(num_examples=count, read=read, seekable=seekable, notes=notes)


def _labels(members: dict[str, Member], path: Path, key: str) -> NDArray | None:
    keys = [name for name in members if name.startswith(f"{key}.") and _KEY.fullmatch(name)]
    named = {name.removeprefix(f"{key}."): name for name in keys}
    if named and key in members:
        raise InputError(
            f"{path} contains both {key} and {keys[0]}. Keep {key} for a model with one output, or only the named "
            "arrays",
            field="data.source",
            got=(key, *keys),
        )
    if named:
        return join_labels({output: _labels_of(members[name], path) for output, name in named.items()}, f"{path} {key}")
    return _labels_of(members[key], path) if key in members else None


def _labels_of(member: Member, path: Path) -> NDArray:
    labels = np.concatenate(list(member.rows(0, member.length, max(1, member.length))) or [np.empty(0, member.dtype)])
    # Floats are regression targets, for metrics that accept them. Several integers for each example are a map of
    # classes, unless they may be meant as a one-hot row.
    is_table = labels.ndim == 2 and labels.shape[1] > 1 and labels.max(initial=0) > 1
    is_map = labels.dtype.kind in "iub" and (labels.ndim > 2 or is_table)
    return labels if labels.dtype.kind == "f" or is_map else class_labels(labels, f"{path} {member.key}")


def _check(address: str, split: str) -> None:
    read_members(_path(address), _EXPECTED)


def _fingerprint(address: str, config: DataConfig) -> object:
    path = _path(address)
    return file_fingerprint([path], path.parent)


register(
    DataSource(
        name="npz",
        help="an .npz file with x_test, y_test, x_train, y_train, x_val, y_val; several inputs are x_test.INPUT, "
        "labels of several outputs y_test.OUTPUT",
        address="PATH",
        read=read_npz,
        fingerprint=_fingerprint,
        check=_check,
        looks_like=r"\.npz$",
    )
)

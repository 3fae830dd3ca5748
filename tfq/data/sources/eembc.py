# SPDX-License-Identifier: Apache-2.0
"""The source `eembc:DIR`: raw inputs as the MLPerf Tiny backend of EEMBC sends them to a board, and y_labels.csv.

Source of the formats: mlcommons/tiny, benchmark/evaluation/datasets/README.md: a line of y_labels.csv is
`file name, number of classes, class[, width in bytes, stride in bytes]`; the last two say how a window slides over a
file (anomaly detection).
"""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import read_bytes
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_a_piece, file_fingerprint
from tfq.data.sources.folder import place_in
from tfq.data.split import UNNAMED
from tfq.errors import InputError
from tfq.registry import register

LABELS_FILE = "y_labels.csv"
_LINE = "file name, number of classes, class[, width in bytes, stride in bytes]"
# Bytes of a whole file -> what its values are: visual wake words, image classification, keyword spotting.
_FORMATS: dict[int, tuple[str, tuple[int, ...]]] = {
    96 * 96 * 3: ("uint8", (96, 96, 3)),
    32 * 32 * 3: ("uint8", (32, 32, 3)),
    49 * 10: ("int8", (49, 10, 1)),
}
_WINDOW_DTYPE = "<f4"


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of y_labels.csv. width: bytes of a window, 0 where the file is one example."""

    number: int
    name: str
    classes: int
    label: int
    width: int = 0
    stride: int = 0


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How an example lies in its file: `shape` values of `dtype`, `stride` bytes after the one before."""

    dtype: np.dtype
    shape: tuple[int, ...]
    stride: int

    @property
    def width(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def read_eembc(address: str, config: DataConfig, split: str) -> Examples:
    """The inputs in the order of y_labels.csv, which all are test; labels as it says.

    Values are as they are in the files: pixels 0..255 (32x32x3, 96x96x3), int8 codes of keyword spotting's features
    (49, 10, 1), or float32 windows of a sliding spectrogram, each with the label of its file. `address` may name
    another label file than DIR/y_labels.csv.
    Raises InputError on what cannot be read. There is no train and no val split.
    """
    if not address:
        raise InputError(
            f"data.source=eembc: expected eembc:DIR: give a directory with the .bin files and {LABELS_FILE}",
            field="data.source",
            expected="eembc:DIR",
            got="eembc",
        )
    table = _table(address)
    lines = _lines(table)
    sizes = _sizes(table.parent, lines, table)
    layout = _layout(lines, sizes, table)
    counts = [(size - layout.width) // layout.stride + 1 for size in sizes]
    labels = np.repeat([line.label for line in lines], counts)
    files = [table.parent / line.name for line in lines]
    step = examples_a_piece(layout.width)

    def read(start: int, stop: int) -> Iterator[Piece]:
        for first in range(start, stop, step):
            chosen = slice(first, min(first + step, stop))
            yield Piece(inputs={UNNAMED: _read(files, counts, layout, chosen)}, labels=labels[chosen])

    notes = _notes(table, lines, layout, sum(counts))
    return Examples(num_examples=sum(counts), read=read, notes=tuple(notes))


def _table(address: str) -> Path:
    path = Path(os.path.expanduser(address))
    return path if path.suffix == ".csv" else path / LABELS_FILE


def _lines(table: Path) -> list[_Line]:
    content = read_bytes(table, f"a list of lines `{_LINE}`")
    try:
        rows = csv.reader(content.decode().splitlines(), skipinitialspace=True)
        lines = [_line(row, number, table) for number, row in enumerate(rows, 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{table} is no CSV file ({error}): expected lines `{_LINE}`", field="data.source", got=str(table)
        ) from error
    if not lines:
        raise InputError(f"{table} holds no line: expected `{_LINE}`", field="data.source", got=str(table))
    for line in lines:
        if (line.classes, line.width, line.stride) != (lines[0].classes, lines[0].width, lines[0].stride):
            raise InputError(
                f"{table}, line {line.number}: {line.classes} classes, window {line.width}, stride {line.stride}; line "
                f"{lines[0].number}: {lines[0].classes}, {lines[0].width}, {lines[0].stride}: expected the same in all",
                field="data.source",
                expected=(lines[0].classes, lines[0].width, lines[0].stride),
                got=(line.classes, line.width, line.stride),
            )
    return lines


def _line(row: Sequence[str], number: int, table: Path) -> _Line:
    where = f"{table}, line {number}"
    try:
        values = [int(text) for text in row[1:]]
    except ValueError as error:
        raise InputError(f"{where}: {error}: expected `{_LINE}`", field="data.source", got=row[1:]) from error
    if len(values) not in (2, 4):
        raise InputError(
            f"{where}: has {len(row)} columns: expected 3 or 5: `{_LINE}`",
            field="data.source",
            expected=(3, 5),
            got=len(row),
        )
    line = _Line(number=number, name=row[0].strip(), classes=values[0], label=values[1])
    if not line.name or Path(line.name).name != line.name:
        raise InputError(
            f"{where}: {line.name!r}: expected the name of a file that lies beside {table.name}",
            field="data.source",
            got=line.name,
        )
    if not 0 <= line.label < line.classes:
        raise InputError(
            f"{where}: class {line.label} of {line.classes}: expected 0 to {line.classes - 1}",
            field="data.source",
            expected=range(line.classes),
            got=line.label,
        )
    if len(values) == 4:
        width, stride = values[2:]
        if width < 4 or stride < 4 or width % 4 or stride % 4:
            raise InputError(
                f"{where}: window {width}, stride {stride} bytes: expected multiples of 4, of float32",
                field="data.source",
                got=(width, stride),
            )
        line = _Line(**{**line.__dict__, "width": width, "stride": stride})
    return line


def _sizes(directory: Path, lines: Sequence[_Line], table: Path) -> list[int]:
    """Bytes of each file. Raises InputError when some are not there."""
    sizes, missing = [], []
    for line in lines:
        try:
            sizes.append((directory / line.name).stat().st_size)
        except OSError:
            missing.append(line.name)
    if missing:
        raise InputError(
            f"{directory}: {len(missing):,} of the {len(lines):,} files that {table.name} lists are not there, such as "
            f"{missing[0]}: copy them from the data set to this directory",
            field="data.source",
            got=missing[0],
        )
    return sizes


def _layout(lines: Sequence[_Line], sizes: Sequence[int], table: Path) -> _Layout:
    width, stride = lines[0].width, lines[0].stride
    if width:
        for line, size in zip(lines, sizes, strict=True):
            if size < width:
                raise InputError(
                    f"{table.parent / line.name} has {size:,} bytes: expected a window of {width:,} at least",
                    field="data.source",
                    expected=width,
                    got=size,
                )
        return _Layout(dtype=np.dtype(_WINDOW_DTYPE), shape=(width // 4,), stride=stride)
    known = ", ".join(f"{size:,} ({dtype} {list(shape)})" for size, (dtype, shape) in _FORMATS.items())
    for line, size in zip(lines, sizes, strict=True):
        if size not in _FORMATS:
            raise InputError(
                f"{table.parent / line.name} has {size:,} bytes: expected one of {known}; other inputs go into an .npz "
                "(data.source=npz:PATH)",
                field="data.source",
                expected=tuple(_FORMATS),
                got=size,
            )
        if size != sizes[0]:
            raise InputError(
                f"{table.parent / line.name} has {size:,} bytes, {lines[0].name} has {sizes[0]:,}: expected one size",
                field="data.source",
                expected=sizes[0],
                got=size,
            )
    dtype, shape = _FORMATS[sizes[0]]
    return _Layout(dtype=np.dtype(dtype), shape=shape, stride=sizes[0])


def _read(files: Sequence[Path], counts: Sequence[int], layout: _Layout, chosen: slice) -> NDArray:
    """The examples of `chosen`, (k, *shape), each a copy of its window."""
    result = np.empty((chosen.stop - chosen.start, *layout.shape), layout.dtype)
    number, window = place_in(counts, chosen.start)
    done = 0
    while done < len(result):
        count = min(counts[number] - window, len(result) - done)
        size = (count - 1) * layout.stride + layout.width
        with open(files[number], "rb") as file:
            file.seek(window * layout.stride)
            content = file.read(size)
        if len(content) < size:
            raise InputError(
                f"{files[number]} has become shorter while it was read",
                field="data.source",
                expected=size,
                got=len(content),
            )
        for index in range(count):
            values = np.frombuffer(content, layout.dtype, result[0].size, index * layout.stride)
            result[done + index] = values.reshape(layout.shape)
        done, number, window = done + count, number + 1, 0
    return result


def _notes(table: Path, lines: Sequence[_Line], layout: _Layout, count: int) -> list[str]:
    notes = []
    names = {line.name for line in lines}
    other = sorted(path.name for path in table.parent.glob("*.bin") if path.name not in names)
    if other:
        notes.append(f"{table.parent}: {len(other):,} .bin files not used, {table.name} does not list them: {other[0]}")
    if lines[0].width:
        notes.append(
            f"{table}: {count:,} windows of {layout.shape[0]} values from {len(lines):,} files, each window an example "
            "with its file's label; MLPerf Tiny averages the windows of a file before it scores"
        )
    if layout.dtype == np.int8:
        notes.append(
            f"{table.parent}: int8 features are codes of the model that they were made for: give its input's scale as "
            "data.scale and -scale * zero_point as data.offset"
        )
    return notes


def _fingerprint(address: str, config: DataConfig) -> object:
    table = _table(address)
    return file_fingerprint([table, *sorted(table.parent.glob("*.bin"))], table.parent)


register(
    DataSource(
        name="eembc",
        help="an MLPerf Tiny backend folder with its y_labels.csv: uint8 images, int8 spectrograms (codes: set "
        "data.scale and data.offset), float32 windows",
        address="DIR",
        read=read_eembc,
        fingerprint=_fingerprint,
        splits=("test",),
        looks_like=r"y_labels\w*\.csv$",
    )
)

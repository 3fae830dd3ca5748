# SPDX-License-Identifier: Apache-2.0
"""The source `eembc:DIR`: raw inputs in the format of EEMBC's MLPerf Tiny runner, with y_labels.csv.

Source of the formats: mlcommons/tiny, benchmark/evaluation/datasets/README.md. A line of y_labels.csv is
`file name, number of classes, class[, width in bytes, stride in bytes]`. The last two describe a window that slides
over the file (anomaly detection).
"""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import open_file, read_bytes
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_per_piece, file_fingerprint
from tfq.data.sources.folder import locate
from tfq.data.split import UNNAMED
from tfq.errors import InputError
from tfq.registry import register

LABELS_FILE = "y_labels.csv"
_MAX_CLASSES = 1 << 31
# Each window has a label in memory. A line of a few bytes can declare any number of windows.
_MAX_EXAMPLES = 1 << 26
_LINE = "file name, number of classes, class[, width in bytes, stride in bytes]"
# The size of a file in bytes -> its values: visual wake words, image classification, keyword spotting.
_FORMATS: dict[int, tuple[str, tuple[int, ...]]] = {
    96 * 96 * 3: ("uint8", (96, 96, 3)),
    32 * 32 * 3: ("uint8", (32, 32, 3)),
    49 * 10: ("int8", (49, 10, 1)),
}
_WINDOW_DTYPE = "<f4"


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of y_labels.csv. `width` is the size of a window in bytes, or 0 if the file is one example."""

    number: int
    name: str
    classes: int
    label: int
    width: int = 0
    stride: int = 0


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The position of examples in a file: each has `shape` values of `dtype`; they start `stride` bytes apart."""

    dtype: np.dtype
    shape: tuple[int, ...]
    stride: int

    @property
    def width(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def read_eembc(address: str, config: DataConfig, split: str) -> Examples:
    """Return all inputs, which are the test split, and their labels, in the order of y_labels.csv.

    Values are unchanged: pixels 0..255 (32x32x3, 96x96x3), int8 quantized features of keyword spotting (49, 10, 1), or
    float32 windows of a sliding spectrogram, each with the label of its file.

    Args:
        address: A directory with y_labels.csv, or the path of another label file.
        config: Not used.
        split: Only "test" exists.

    Raises:
        InputError: A file is missing or cannot be read.
    """
    table = _table(address)
    lines = _lines(table)
    sizes = _sizes(table.parent, lines, table)
    layout = _layout(lines, sizes, table)
    counts = [(size - layout.width) // layout.stride + 1 for size in sizes]
    if sum(counts) > _MAX_EXAMPLES:
        raise InputError(
            f"{table}: the files have {sum(counts):,} windows of {layout.width:,} bytes every {layout.stride:,} bytes. "
            f"tfq reads at most {_MAX_EXAMPLES:,}. Increase the stride, or remove lines",
            field="data.source",
            expected=_MAX_EXAMPLES,
            got=sum(counts),
        )
    labels = np.repeat([line.label for line in lines], counts)
    files = [table.parent / line.name for line in lines]
    step = examples_per_piece(layout.width)

    def read(start: int, stop: int) -> Iterator[Piece]:
        for first in range(start, stop, step):
            chosen = slice(first, min(first + step, stop))
            yield Piece(inputs={UNNAMED: _read(files, counts, layout, chosen)}, labels=labels[chosen])

    notes = _notes(table, lines, layout, sum(counts))
    return Examples(num_examples=sum(counts), read=read, notes=tuple(notes))


def _table(address: str) -> Path:
    if not address:
        raise InputError(
            f"data.source=eembc has no directory: expected eembc:DIR, with the .bin files and {LABELS_FILE} in DIR",
            field="data.source",
            expected="eembc:DIR",
            got="eembc",
        )
    path = Path(os.path.expanduser(address))
    return path if path.suffix == ".csv" else path / LABELS_FILE


def _lines(table: Path) -> list[_Line]:
    content = read_bytes(table, f"a list of lines `{_LINE}`")
    try:
        rows = csv.reader(content.decode().splitlines(), skipinitialspace=True)
        lines = [_line(row, number, table) for number, row in enumerate(rows, 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{table} is not a CSV file ({error}). Expected lines `{_LINE}`", field="data.source", got=str(table)
        ) from error
    if not lines:
        raise InputError(f"{table} is empty. Expected lines `{_LINE}`", field="data.source", got=str(table))
    for line in lines:
        if (line.classes, line.width, line.stride) != (lines[0].classes, lines[0].width, lines[0].stride):
            raise InputError(
                f"{table}, line {line.number} has {line.classes} classes, window {line.width}, stride {line.stride}, "
                f"but line {lines[0].number} has {lines[0].classes}, {lines[0].width}, {lines[0].stride}. They "
                "must be the same in all lines",
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
        raise InputError(f"{where}: {error}. Expected `{_LINE}`", field="data.source", got=row[1:]) from error
    if len(values) not in (2, 4):
        raise InputError(
            f"{where} has {len(row)} columns, expected 3 or 5: `{_LINE}`",
            field="data.source",
            expected=(3, 5),
            got=len(row),
        )
    line = _Line(number=number, name=row[0].strip(), classes=values[0], label=values[1])
    if not line.name or "\0" in line.name or Path(line.name).name != line.name:
        raise InputError(
            f"{where}: expected the name of a file in the directory of {table.name}, got {line.name!r}",
            field="data.source",
            got=line.name,
        )
    if line.classes > _MAX_CLASSES:
        raise InputError(
            f"{where} has {line.classes} classes, expected at most {_MAX_CLASSES:,}",
            field="data.source",
            expected=_MAX_CLASSES,
            got=line.classes,
        )
    if not 0 <= line.label < line.classes:
        raise InputError(
            f"{where}: class {line.label} of {line.classes} classes, expected 0 to {line.classes - 1}",
            field="data.source",
            expected=range(line.classes),
            got=line.label,
        )
    if len(values) == 4:
        width, stride = values[2:]
        if width < 4 or stride < 4 or width % 4 or stride % 4:
            raise InputError(
                f"{where}: window {width}, stride {stride} bytes, expected multiples of 4 (float32 values)",
                field="data.source",
                got=(width, stride),
            )
        line = _Line(**{**line.__dict__, "width": width, "stride": stride})
    return line


def _sizes(directory: Path, lines: Sequence[_Line], table: Path) -> list[int]:
    """Return the size of each file in bytes.

    Raises:
        InputError: Files are missing.
    """
    sizes, missing = [], []
    for line in lines:
        try:
            sizes.append((directory / line.name).stat().st_size)
        except OSError:
            missing.append(line.name)
    if missing:
        raise InputError(
            f"{directory}: {len(missing):,} of the {len(lines):,} files that {table.name} lists are missing, such as "
            f"{missing[0]}. Copy them from the data set to this directory",
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
                    f"{table.parent / line.name} has {size:,} bytes, expected at least one window of {width:,}",
                    field="data.source",
                    expected=width,
                    got=size,
                )
        return _Layout(dtype=np.dtype(_WINDOW_DTYPE), shape=(width // 4,), stride=stride)
    known = ", ".join(f"{size:,} ({dtype} {list(shape)})" for size, (dtype, shape) in _FORMATS.items())
    for line, size in zip(lines, sizes, strict=True):
        if size not in _FORMATS:
            raise InputError(
                f"{table.parent / line.name} has {size:,} bytes, expected one of {known}. Save other inputs as an .npz "
                "file and use data.source=npz:PATH",
                field="data.source",
                expected=tuple(_FORMATS),
                got=size,
            )
        if size != sizes[0]:
            raise InputError(
                f"{table.parent / line.name} has {size:,} bytes, but {lines[0].name} has {sizes[0]:,}. All files must "
                "have one size",
                field="data.source",
                expected=sizes[0],
                got=size,
            )
    dtype, shape = _FORMATS[sizes[0]]
    return _Layout(dtype=np.dtype(dtype), shape=shape, stride=sizes[0])


def _read(files: Sequence[Path], counts: Sequence[int], layout: _Layout, chosen: slice) -> NDArray:
    """Return the examples in `chosen`, (k, *shape), each a copy of its window."""
    result = np.empty((chosen.stop - chosen.start, *layout.shape), layout.dtype)
    number, window = locate(counts, chosen.start)
    done = 0
    while done < len(result):
        count = min(counts[number] - window, len(result) - done)
        size = (count - 1) * layout.stride + layout.width
        with open_file(files[number], "a binary file of samples", field="data.source") as file:
            file.seek(window * layout.stride)
            content = file.read(size)
        if len(content) < size:
            raise InputError(
                f"{files[number]} became shorter while it was read: expected {size:,} more bytes, got {len(content):,}",
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
        notes.append(f"{table.parent}: {len(other):,} .bin files are not in {table.name} and not used: {other[0]}")
    if lines[0].width:
        notes.append(
            f"{table}: {count:,} windows of {layout.shape[0]} values from {len(lines):,} files. Each window is an "
            "example with the label of its file; MLPerf Tiny averages the windows of a file before it computes a score"
        )
    if layout.dtype == np.int8:
        notes.append(
            f"{table.parent}: the int8 features were quantized for one model. Set data.scale to its input scale, and "
            "data.offset to -scale * zero_point"
        )
    return notes


def _check(address: str, split: str) -> None:
    table = _table(address)
    _sizes(table.parent, _lines(table), table)


def _fingerprint(address: str, config: DataConfig) -> object:
    table = _table(address)
    return file_fingerprint([table, *sorted(table.parent.glob("*.bin"))], table.parent)


register(
    DataSource(
        name="eembc",
        help="an MLPerf Tiny folder with y_labels.csv: uint8 images, int8 spectrograms (quantized: set data.scale and "
        "data.offset), float32 windows",
        address="DIR",
        read=read_eembc,
        fingerprint=_fingerprint,
        check=_check,
        splits=("test",),
        looks_like=r"y_labels\w*\.csv$",
    )
)

# SPDX-License-Identifier: Apache-2.0
"""The source `csv:PATH`: a table of numbers with a header, one example in each row.

Source of the format: RFC 4180, with the delimiter of the header: comma, semicolon or tab.
"""

import collections
import csv
import dataclasses
import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import open_file, reason, shown
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_per_piece, file_fingerprint, hold_out_val
from tfq.data.split import UNNAMED, MissingSplitError
from tfq.data.text_labels import MAX_FLOAT, Kind, LabelText, TextLabels, finite_number, kind_of_label, labels_of
from tfq.errors import InputError
from tfq.registry import register

# The column that says which split a row of a single file belongs to.
SPLIT_COLUMN = "split"
_SPLITS = ("train", "val", "test")
_DELIMITERS = (",", ";", "\t")
_EXPECTED = "a CSV table with a header"
# Rows between two known positions of the file.
_STEP = 4096
# Longer lines are refused before they are parsed.
_MAX_LINE_BYTES = 1 << 24
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


@dataclass(frozen=True, kw_only=True)
class Header:
    """The columns of a table.

    Attributes:
        path: The file.
        delimiter: What separates the fields.
        names: All columns in order.
        features: The indices of the columns that are inputs.
        label: The index of the column of the labels; None if there is none.
        split: The index of the column `split`; None if there is none.
        start: The position of the first row in the file, in bytes.
    """

    path: Path
    delimiter: str
    names: tuple[str, ...]
    features: tuple[int, ...]
    label: int | None
    split: int | None
    start: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: its fields, the number of its (last) line from 1, and the position after it in bytes."""

    fields: list[str]
    line: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Table:
    """What one pass over a file finds.

    Attributes:
        header: The columns.
        counts: Split -> its number of rows; "" in a file without the column `split`.
        marks: Split -> (position in bytes, number of the line before it) of every `_STEP`-th row.
        first_labels: The first label of each kind.
    """

    header: Header
    counts: dict[str, int]
    marks: dict[str, list[tuple[int, int]]]
    first_labels: dict[Kind, LabelText]


def read_header(path: Path, label: str) -> Header:
    """Return the columns of a table.

    Args:
        path: The file.
        label: `data.label_key`: the column of the labels; "" if there are none.

    Raises:
        InputError: The file is empty, has no header, or names a column twice.
    """
    with open_file(path, _EXPECTED, field="data.source") as file:
        line = _line(file, path, 1)
        start = file.tell()
    text = _decoded(line, path, 1).lstrip("\ufeff")
    delimiter = max(_DELIMITERS, key=text.count)
    try:
        names = tuple(name.strip() for name in next(csv.reader([text], delimiter=delimiter), []))
    except csv.Error as error:
        raise _csv_error(path, 1, error) from error
    if not any(names):
        raise _error(path, 1, "the file is empty, or its first line is", expected="a header with the names of columns")
    numbers = [name for name in names if finite_number(name) is not None]
    if len(numbers) == len(names):
        raise _error(
            path,
            1,
            f"the first line has only numbers ({', '.join(numbers[:3])} ...)",
            expected="a header with the names of the columns: add one",
        )
    counts = collections.Counter(names)
    doubled = next((name for name in names if counts[name] > 1 or not name), None)
    if doubled is not None:
        raise _error(path, 1, f"the column {doubled!r} has no name or occurs twice", expected="different names")
    if label == SPLIT_COLUMN:
        raise InputError(
            f"data.label_key={label!r} is the column that assigns rows to splits. Rename the column of the labels",
            field="data.label_key",
            expected="another column",
            got=label,
        )
    places = {name: index for index, name in enumerate(names)}
    label_place, split_place = places.get(label) if label else None, places.get(SPLIT_COLUMN)
    features = tuple(index for index in range(len(names)) if index not in (label_place, split_place))
    if not features:
        raise _error(
            path,
            1,
            f"the only columns are {', '.join(names)}, none of which is an input",
            expected="columns of numbers",
        )
    return Header(
        path=path,
        delimiter=delimiter,
        names=names,
        features=features,
        label=label_place,
        split=split_place,
        start=start,
    )


def _line(file: BinaryIO, path: Path, number: int) -> bytes:
    try:
        return file.readline(_MAX_LINE_BYTES)
    except OSError as error:
        raise _error(path, number, f"the file cannot be read ({reason(error)})", expected=_EXPECTED) from error


def _decoded(line: bytes, path: Path, number: int) -> str:
    if len(line) >= _MAX_LINE_BYTES:
        raise _error(path, number, f"the line has more than {_MAX_LINE_BYTES:,} bytes", expected=_EXPECTED)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(path, number, f"the text is not UTF-8 (byte {error.start})", expected="UTF-8") from error


def _error(path: Path, line: int, problem: str, *, expected: str, column: str = "") -> InputError:
    where = f"{shown(str(path))}, line {line}" + (f", column {shown(column)}" if column else "")
    return InputError(f"{where}: {problem}. Expected {expected}", field="data.source", expected=expected, got=problem)


def _csv_error(path: Path, line: int, error: csv.Error) -> InputError:
    expected = "lines that end with a line feed" if "new-line" in str(error) else _EXPECTED
    return _error(path, line, f"the line is not a CSV ({error})", expected=expected)


def rows_of(header: Header, position: int, line: int) -> Iterator[Row]:
    """Yield the rows from a position of the file on. Empty lines are skipped.

    Args:
        header: The columns.
        position: Where a row starts, in bytes.
        line: The number of the line before it.

    Raises:
        InputError: A row has another number of fields, or is not a CSV.
    """
    path = header.path
    with open_file(path, _EXPECTED, field="data.source") as file:
        file.seek(position)
        place = [position, line]

        def lines() -> Iterator[str]:
            while content := _line(file, path, place[1] + 1):
                place[0] += len(content)
                place[1] += 1
                yield _decoded(content, path, place[1])

        reader = csv.reader(lines(), delimiter=header.delimiter, strict=True)
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise _csv_error(path, place[1], error) from error
            if fields is None:
                return
            if not fields:
                continue
            if len(fields) != len(header.names):
                raise _error(
                    path,
                    place[1],
                    f"the row has {len(fields)} fields",
                    expected=f"{len(header.names)}, as in the header",
                )
            yield Row(fields=fields, line=place[1], end=place[0])


def features_of(header: Header, row: Row) -> list[float]:
    """Return the inputs of a row.

    Raises:
        InputError: A field is missing or no finite number. The message has its line and column.
    """
    values = []
    for index in header.features:
        value = finite_number(row.fields[index])
        if value is None:
            raise _field_error(header, row, index)
        values.append(value)
    return values


def _field_error(header: Header, row: Row, index: int) -> InputError:
    text, column = row.fields[index].strip(), header.names[index]
    if text.lower() in _MISSING:
        problem = f"the value is missing ({text!r})" if text else "the value is missing"
        return _error(
            header.path, row.line, problem, expected="a number: fill missing values, or remove the row", column=column
        )
    advice = "a number: encode categories as numbers, or name the column of the labels in data.label_key"
    if finite_number(text.replace(",", ".")) is not None:
        advice = "a number with a decimal point, not a comma"
    return _error(header.path, row.line, f"{shown(text)[:40]!r} is not a finite number", expected=advice, column=column)


def scan(header: Header) -> Table:
    """Read a whole table once: check every field, count the rows of each split, and find out what the labels are.

    Raises:
        InputError: A field is missing or no number, or a row's split is unknown.
    """
    counts: dict[str, int] = {}
    marks: dict[str, list[tuple[int, int]]] = {}
    first_labels: dict[Kind, LabelText] = {}
    before = header.start, 1
    for row in rows_of(header, header.start, 1):
        features_of(header, row)
        split = _split_of(header, row)
        number = counts.get(split, 0)
        if number % _STEP == 0:
            marks.setdefault(split, []).append(before)
        counts[split] = number + 1
        before = row.end, row.line
        if header.label is not None:
            text = row.fields[header.label].strip()
            if text.lower() in _MISSING:
                raise _field_error(header, row, header.label)
            kind = kind_of_label(text)
            if kind not in first_labels:
                first_labels[kind] = _label_text(header, row, header.label)
    return Table(header=header, counts=counts, marks=marks, first_labels=first_labels)


def _label_text(header: Header, row: Row, index: int) -> LabelText:
    where = f"{shown(str(header.path))}, line {row.line}, column {shown(header.names[index])}"
    place = f"line {row.line} of {shown(header.path.name)}"
    return LabelText(text=row.fields[index].strip(), where=where, place=place)


_MOST_CLASSES = 10_000


def _all_labels(headers: Iterable[Header]) -> set[str]:
    """Return the different labels of tables.

    Raises:
        InputError: There are too many to be the names of classes.
    """
    names: set[str] = set()
    for header in headers:
        assert header.label is not None
        for row in rows_of(header, header.start, 1):
            names.add(row.fields[header.label].strip())
            if len(names) > _MOST_CLASSES:
                raise _error(
                    header.path,
                    row.line,
                    f"there are more than {_MOST_CLASSES:,} different labels that are not numbers",
                    expected="numbers, or the names of classes",
                    column=header.names[header.label],
                )
    return names


def _split_of(header: Header, row: Row) -> str:
    if header.split is None:
        return ""
    text = row.fields[header.split].strip().lower()
    if text not in _SPLITS:
        raise _error(
            header.path,
            row.line,
            f"the split is {shown(text)[:40]!r}",
            expected="train, val or test",
            column=SPLIT_COLUMN,
        )
    return text


def _examples(table: Table, split: str, labels_in: TextLabels | None) -> Examples:
    """Return the examples of a split of a table: {"x": float32 (n, features)}, and labels.

    Args:
        table: The table.
        split: The split; "" in a file without the column `split`.
        labels_in: How labels become numbers; None without labels.
    """
    header = table.header

    def rows_from(first: int) -> Iterator[Row]:
        position, line = table.marks[split][first // _STEP]
        rows = (row for row in rows_of(header, position, line) if _split_of(header, row) == split)
        return itertools.islice(rows, first % _STEP, None)

    step = min(_STEP, examples_per_piece(np.dtype(np.float64).itemsize * len(header.features)))

    def read(start: int, stop: int) -> Iterator[Piece]:
        rows = rows_from(start)
        for first in range(start, stop, step):
            chosen = list(itertools.islice(rows, min(step, stop - first)))
            inputs = np.array([features_of(header, row) for row in chosen], np.float64)
            labels: NDArray | None = None
            if labels_in is not None and header.label is not None:
                texts = [row.fields[header.label].strip() for row in chosen]
                labels = np.array([labels_in.number_of(text) for text in texts], labels_in.dtype)
            yield Piece(inputs={UNNAMED: _float32(inputs.reshape(-1, len(header.features)), header)}, labels=labels)

    return Examples(num_examples=table.counts[split], read=read)


def _float32(values: NDArray[np.float64], header: Header) -> NDArray[np.float32]:
    largest = np.abs(values).max(axis=0, initial=0)
    if (largest > MAX_FLOAT).any():
        column = header.names[header.features[int(largest.argmax())]]
        raise InputError(
            f"{shown(str(header.path))}, column {shown(column)}: {largest.max():g} is too large for float32. Scale the "
            "column",
            field="data.source",
            expected="at most 3.4e38",
            got=float(largest.max()),
        )
    return values.astype(np.float32)


def _files(address: str) -> dict[str, Path]:
    """Return {split: file} of a folder with train.csv, val.csv and test.csv; {"": file} for a file.

    Raises:
        InputError: There is no such file or folder, or the folder has no such file.
    """
    if not address:
        raise InputError(
            "data.source=csv has no path: expected csv:PATH, a table or a folder with train.csv, val.csv and test.csv",
            field="data.source",
            expected="csv:PATH",
            got="csv",
        )
    path = Path(os.path.expanduser(address))
    # os.path, because pathlib raises OSError for a name that is too long.
    if not os.path.isdir(path):
        return {"": path}
    found = {split: path / f"{split}.csv" for split in _SPLITS if os.path.isfile(path / f"{split}.csv")}
    if not found:
        raise InputError(
            f"{shown(address)} contains none of train.csv, val.csv and test.csv",
            field="data.source",
            expected="train.csv, val.csv, test.csv",
            got=address,
        )
    return found


def read_csv(address: str, config: DataConfig, split: str) -> Examples:
    """Return a split of a table or of a folder of tables, in the order of the rows.

    All columns except the label (`data.label_key`) and `split` are inputs, in their order. Without val, the last tenth
    of train is val. A single file without the column `split` is the test split.

    Raises:
        MissingSplitError: There is no such split.
        InputError: A table is damaged, a value is missing or no number, or the tables of a folder differ in columns.
    """
    files = _files(address)
    headers = {name: read_header(path, config.label_key) for name, path in files.items()}
    _check_same_columns(headers)
    tables = {name: scan(header) for name, header in headers.items()}
    by_split = {name or own or "test": (table, own) for name, table in tables.items() for own in table.counts}
    stored_in = "train" if split == "val" and "val" not in by_split else split
    if stored_in not in by_split:
        advice = "" if "" not in files else f". A column {SPLIT_COLUMN!r} with train, val or test for each row adds it"
        raise MissingSplitError(
            f"{shown(address)} has no {split} split: it has {', '.join(sorted(by_split)) or 'no rows'}{advice}",
            field="split",
            expected=tuple(sorted(by_split)),
            got=split,
        )
    table, own = by_split[stored_in]
    labels = _labels(tables.values())
    missing = f"{table.header.path} has no column {config.label_key!r} (data.label_key), so there are no labels"
    examples = dataclasses.replace(
        _examples(table, own, labels),
        class_names=labels.class_names if labels else (),
        information=labels.information if labels else (missing,) * bool(config.label_key),
    )
    is_held_out = stored_in == "train" and "val" not in by_split
    return hold_out_val(examples, split, f"csv:{address}") if is_held_out else examples


def _labels(tables: Collection[Table]) -> TextLabels | None:
    """Return how all tables write labels; None if there is no column of labels."""
    headers = [table.header for table in tables]
    if headers[0].label is None:
        return None
    first: dict[Kind, LabelText] = {}
    for table in tables:
        first = {**table.first_labels, **first}
    return labels_of(first, lambda: _all_labels(headers))


def _check_same_columns(headers: dict[str, Header]) -> None:
    first = next(iter(headers.values()))
    for header in headers.values():
        if header.names != first.names:
            different = sorted(set(header.names) ^ set(first.names)) or ["their order"]
            raise InputError(
                f"{shown(str(header.path))} and {shown(str(first.path))} have different columns "
                f"({', '.join(map(shown, different[:5]))}). Expected the same columns in the same order",
                field="data.source",
                expected=first.names,
                got=header.names,
            )


def _check(address: str, split: str) -> None:
    for path in _files(address).values():
        read_header(path, "")


def _fingerprint(address: str, config: DataConfig) -> object:
    files = list(_files(address).values())
    return [config.label_key, *file_fingerprint(files, files[0].parent)]


register(
    DataSource(
        name="csv",
        help="a table of numbers with a header, or a folder with train.csv, val.csv and test.csv; data.label_key is "
        "the column of the labels, a column split has train, val or test",
        address="PATH",
        read=read_csv,
        fingerprint=_fingerprint,
        check=_check,
        looks_like=r"\.csv$",
    )
)

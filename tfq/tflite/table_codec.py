# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses that are tables of a FlatBuffers schema: read from untrusted bytes, written, shown as JSON.

A class declares its fields with `column` in the order of the schema, so the position of a field is its slot. A union
takes two slots, its type and its value.
"""

import base64
import dataclasses
import math
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self, TypeVar, cast

import numpy as np

from tfq.errors import InputError
from tfq.tflite.binary import Reader
from tfq.tflite.binary import Table as StoredTable

_EMPTY: dict[str, Any] = {
    "text": "",
    "u32": 0,
    "i32": 0,
    "f32": 0.0,
    "bytes": b"",
    "table": None,
    "union": None,
    "texts": (),
    "f32s": (),
    "u32s": (),
    "tables": (),
}
_LIMITS = {"u32": (0, 2**32 - 1), "i32": (-(2**31), 2**31 - 1)}
# Alignment of vectors of bytes, which is what the schema of TFLite Metadata asks for.
_BYTES_ALIGNMENT = 16


def column(kind: str, *, of: Any = None, key: str = "", since: str = "") -> Any:
    """Return a dataclass field that is a field of the schema.

    Args:
        kind: text, u32, i32, f32, enum (a byte), bytes, table, union, or a vector: texts, f32s, u32s, tables.
        of: The names of an enum in the order of their numbers, the class of a table, or the classes of a union in the
            order of their numbers, which start from 1.
        key: The name in the schema, if it is not that of the attribute.
        since: The first version of the schema that has the field.
    """
    default = of[0] if kind == "enum" else _EMPTY[kind]
    return dataclasses.field(default=default, metadata={"kind": kind, "of": of, "key": key, "since": since})


@dataclass(frozen=True)
class _Column:
    """A field of a class: its attribute, its slot, and what `column` declares."""

    name: str
    slot: int
    kind: str
    of: Any
    key: str
    since: str


class SchemaTable:
    """The base of classes that are tables of a schema. Their fields have the names of the schema."""

    # The first version of the schema that has the table; empty if all versions do.
    since: ClassVar[str] = ""

    def identity(self) -> Hashable:
        """Return what two items of a vector have in common if one replaces the other; None compares positions."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON values, without fields that have their default.

        The names are those of the schema, as in the JSON that flatc writes. Vectors of bytes are base64, and numbers
        that are not finite are None.
        """
        results: dict[str, Any] = {}
        for item in _columns(type(self)):
            value = getattr(self, item.name)
            if item.kind == "union" and value is not None:
                results[f"{item.key}_type"] = type(value).__name__
                results[item.key] = value.to_dict()
            elif value != _default(item):
                results[item.key] = _json_value(value)
        return results

    def merged(self, other: Self) -> Self:
        """Return this table with everything that `other` has: a field that `other` leaves empty keeps its value.

        Tables merge by field. Items of vectors merge if their `identity` is the same, and are added otherwise.
        """
        if type(other) is not type(self):
            return other
        values: dict[str, Any] = {}
        for item in _columns(type(self)):
            old, new = getattr(self, item.name), getattr(other, item.name)
            values[item.name] = _merged_value(item, old, new)
        return type(self)(**values)

    def tables(self) -> Iterator["SchemaTable"]:
        """Yield this table and all tables below it."""
        yield self
        for item in _columns(type(self)):
            value = getattr(self, item.name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, SchemaTable):
                    yield from part.tables()

    def schema_versions(self) -> Iterator[str]:
        """Yield the versions of the schema that the table and its fields with a value need; "" is any version."""
        yield self.since
        for item in _columns(type(self)):
            if item.since and getattr(self, item.name) != _default(item):
                yield item.since


_T = TypeVar("_T", bound=SchemaTable)

_CACHE: dict[type, tuple[_Column, ...]] = {}


def _columns(owner: type) -> tuple[_Column, ...]:
    if owner not in _CACHE:
        results, slot = [], 0
        for item in dataclasses.fields(owner):
            if "kind" in item.metadata:
                declared = dict(item.metadata)
                declared["key"] = declared["key"] or item.name
                results.append(_Column(name=item.name, slot=slot, **declared))
                slot += 2 if declared["kind"] == "union" else 1
        _CACHE[owner] = tuple(results)
    return _CACHE[owner]


def _default(item: _Column) -> Any:
    return item.of[0] if item.kind == "enum" else _EMPTY[item.kind]


def _json_value(value: Any) -> Any:
    if isinstance(value, SchemaTable):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _merged_value(item: _Column, old: Any, new: Any) -> Any:
    if new == _default(item):
        return old
    if item.kind in ("table", "union"):
        return new if old is None else old.merged(new)
    if item.kind != "tables":
        return new
    by_identity = {_identity(table, place): table for place, table in enumerate(old)}
    for place, table in enumerate(new):
        key = _identity(table, place)
        by_identity[key] = by_identity[key].merged(table) if key in by_identity else table
    return tuple(by_identity.values())


def _identity(table: SchemaTable, place: int) -> Hashable:
    identity = table.identity()
    return place if identity is None else identity


# Reading.


def read_table(owner: type[_T], data: bytes, identifier: bytes, where: str) -> tuple[_T, tuple[str, ...]]:
    """Read the root table of untrusted bytes.

    Args:
        owner: The class of the table.
        data: The flatbuffer.
        identifier: Its four-byte file identifier.
        where: Its name in errors.

    Returns:
        The table, and the parts that it cannot represent, such as fields of a newer schema: writing it loses them.

    Raises:
        FlatbufferError: The bytes are damaged.
    """
    losses: list[str] = []
    table = _read(owner, Reader(data, identifier, where).root(where), losses)
    return table, tuple(losses)


def _read(owner: type[_T], stored: StoredTable, losses: list[str]) -> _T:
    columns = _columns(owner)
    values = {item.name: _read_column(item, stored, losses) for item in columns}
    known = max((item.slot + (2 if item.kind == "union" else 1) for item in columns), default=0)
    losses += [f"{stored.where}: field {slot}, which is newer than this version of tfq" for slot in stored.after(known)]
    return owner(**values)


def _read_column(item: _Column, stored: StoredTable, losses: list[str]) -> Any:
    slot, name = item.slot, item.key
    match item.kind:
        case "text":
            return _text(stored.content(slot, name), f"{stored.where}: {name}", losses)
        case "texts":
            where = f"{stored.where}: {name}"
            return tuple(_text(content, where, losses) for content in stored.contents(slot, name))
        case "u32":
            return stored.u32(slot, name)
        case "i32":
            return stored.i32(slot, name)
        case "f32":
            return stored.f32(slot, name)
        case "f32s":
            return stored.numbers(slot, "f", name)
        case "u32s":
            return stored.numbers(slot, "I", name)
        case "bytes":
            return stored.content(slot, name)
        case "enum":
            number = stored.i8(slot, name)
            return item.of[number] if 0 <= number < len(item.of) else f"VALUE_{number}"
        case "table":
            part = stored.table(slot, name)
            return None if part is None else _read(item.of, part, losses)
        case "tables":
            prefix = f"{stored.where}: {name}"
            return tuple(_read(item.of, part, losses) for part in stored.tables(slot, name, prefix))
    return _read_union(item, stored, losses)


def _read_union(item: _Column, stored: StoredTable, losses: list[str]) -> Any:
    number = stored.i8(item.slot, f"{item.key}_type") % 256
    part = stored.table(item.slot + 1, item.key) if 0 < number <= len(item.of) else None
    if part is not None:
        return _read(item.of[number - 1], part, losses)
    if number > len(item.of):
        losses.append(f"{stored.where}: {item.key} of type {number}, which is newer than this version of tfq")
    return None


def _text(content: bytes, where: str, losses: list[str]) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        losses.append(f"{where}: bytes that are not UTF-8, which are shown as escapes")
        return content.decode("utf-8", "backslashreplace")


# Writing.


def write_table(table: SchemaTable, identifier: bytes, where: str) -> bytes:
    """Return the flatbuffer of `table`; equal tables give equal bytes.

    Args:
        table: The root table.
        identifier: The four-byte file identifier.
        where: The name of the table in errors.

    Raises:
        InputError: A value has the wrong type or is outside of its range.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, table, where), file_identifier=identifier)
    return bytes(builder.Output())


def _write(builder: Any, table: SchemaTable, where: str) -> int:
    columns = _columns(type(table))
    # Everything that a table refers to is written before it.
    actions: list[Callable[[], None]] = []
    for item in columns:
        value = getattr(table, item.name)
        if value != _default(item):
            actions += _prepared(builder, item, value, f"{where}: {item.key}")
    builder.StartObject(max((item.slot + (2 if item.kind == "union" else 1) for item in columns), default=0))
    for action in actions:
        action()
    return builder.EndObject()


def _prepared(builder: Any, item: _Column, value: Any, where: str) -> list[Callable[[], None]]:
    """Write what the field refers to, and return what writes the field into its table."""
    slot = item.slot
    if item.kind == "enum":
        number = _enum_number(item.of, value, where)
        return [lambda: builder.PrependInt8Slot(slot, number, 0)]
    if item.kind == "f32":
        (real,) = _floats((value,), where)
        return [lambda: builder.PrependFloat32Slot(slot, float(real), 0.0)]
    if item.kind in ("u32", "i32"):
        (integer,) = _integers((value,), item.kind, where)
        add = builder.PrependUint32Slot if item.kind == "u32" else builder.PrependInt32Slot
        return [lambda: add(slot, int(integer), 0)]
    if item.kind == "union":
        if type(value) not in item.of:
            _refuse(where, f"one of {', '.join(kind.__name__ for kind in item.of)}", type(value).__name__)
        offset, number = _write(builder, value, where), item.of.index(type(value)) + 1
        return [
            lambda: builder.PrependUint8Slot(slot, number, 0),
            lambda: builder.PrependUOffsetTRelativeSlot(slot + 1, offset, 0),
        ]
    offset = _write_part(builder, item, value, where)
    return [lambda: builder.PrependUOffsetTRelativeSlot(slot, offset, 0)]


def _write_part(builder: Any, item: _Column, value: Any, where: str) -> int:
    match item.kind:
        case "text":
            return _write_text(builder, value, where)
        case "bytes":
            if not isinstance(value, bytes):
                _refuse(where, "bytes", type(value).__name__)
            builder.Prep(_BYTES_ALIGNMENT, len(value))
            return builder.CreateByteVector(value)
        case "table":
            return _write(builder, _checked_table(item.of, value, where), where)
        case "f32s":
            return builder.CreateNumpyVector(_floats(value, where))
        case "u32s":
            return builder.CreateNumpyVector(_integers(value, "u32", where))
        case "texts":
            offsets = [_write_text(builder, text, f"{where}[{at}]") for at, text in enumerate(_items(value, where))]
        case _:
            places = [(part, f"{where}[{at}]") for at, part in enumerate(_items(value, where))]
            offsets = [_write(builder, _checked_table(item.of, part, place), place) for part, place in places]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _write_text(builder: Any, value: Any, where: str) -> int:
    if not isinstance(value, str):
        _refuse(where, "text", type(value).__name__)
    try:
        return builder.CreateString(value)
    except UnicodeEncodeError:
        _refuse(where, "text that UTF-8 can express", ascii(value))


def _checked_table(owner: type[SchemaTable], value: Any, where: str) -> SchemaTable:
    if not isinstance(value, owner):
        _refuse(where, owner.__name__, type(value).__name__)
    return cast(SchemaTable, value)


def _items(value: Any, where: str) -> tuple:
    if not isinstance(value, (tuple, list)):
        _refuse(where, "a tuple", type(value).__name__)
    return tuple(value)


def _enum_number(names: tuple[str, ...], value: Any, where: str) -> int:
    if value in names:
        return names.index(value)
    match = re.fullmatch(r"VALUE_(-?[0-9]{1,3})", str(value))
    if match is None or not -128 <= int(match[1]) < 128:
        _refuse(where, f"one of {', '.join(names)}", value)
    return int(match[1])


def _floats(values: Any, where: str) -> np.ndarray:
    for value in _items(values, where):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            _refuse(where, "finite numbers", value)
    with np.errstate(over="ignore"):
        results = np.asarray(values, np.float64).astype("<f4")
    if not np.isfinite(results).all():
        _refuse(where, "numbers that float32 can express", values)
    return results


def _integers(values: Any, kind: str, where: str) -> np.ndarray:
    lowest, highest = _LIMITS[kind]
    for value in _items(values, where):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not lowest <= value <= highest:
            _refuse(where, f"integers from {lowest} to {highest}", value)
    return np.asarray(values, np.int64).astype("<u4" if kind == "u32" else "<i4")


def _refuse(where: str, expected: str, got: Any) -> NoReturn:
    raise InputError(f"{where}: expected {expected}, got {got!r}", field=where, expected=expected, got=got)

# SPDX-License-Identifier: Apache-2.0
"""A reader of untrusted FlatBuffers bytes that checks every offset and length against the size of the file.

Offsets lead only forwards and the schema has a fixed depth, so reading cannot loop. A budget proportional to the size
of the file limits the work if many offsets lead to the same place.
Source: FlatBuffers internals documentation (tables, vtables, vectors, strings).
"""

import contextlib
import struct
from collections.abc import Iterator
from typing import Any, NoReturn

from tfq.errors import FlatbufferError

DAMAGED = "the file is damaged or incomplete: convert the model again"

# What the generated schema code and NumPy raise on bytes that are not a valid flatbuffer.
DECODING_ERRORS = (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError, AttributeError)


@contextlib.contextmanager
def decoding(field: str = "model") -> Iterator[None]:
    """Raise FlatbufferError if the code in the block fails on damaged bytes, in parts that `read` does not check."""
    try:
        yield
    except DECODING_ERRORS as error:
        raise FlatbufferError(f"{field}: {error}: {DAMAGED}", field=field, got=type(error).__name__) from error


# A file without shared parts spends at most its own size; sharing is rare in real files.
_BUDGET_FACTOR, _BUDGET_FLOOR = 2, 1 << 16
# Less than the 16 bytes that the smallest table (4 bytes, and an offset of 4) adds to the budget.
_TABLE_COST = 12
_MAX_TABLES = 150_000

_U16, _I32, _U32, _U64 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I"), struct.Struct("<Q")
_F32 = struct.Struct("<f")
_ITEM_BYTES = {"i": 4, "I": 4, "f": 4, "q": 8}


class Reader:
    """The bytes of a file, and the remaining budget for reading them."""

    __slots__ = ("budget", "data", "size", "tables_left")

    def __init__(self, data: bytes, identifier: bytes, kind: str = "a .tflite file") -> None:
        """Check that `data` has the four-byte file `identifier`; `kind` says in errors what has it.

        Raises:
            FlatbufferError: It does not.
        """
        self.data, self.size = data, len(data)
        self.budget = _BUDGET_FACTOR * self.size + _BUDGET_FLOOR
        self.tables_left = _MAX_TABLES
        if self.size < 8:
            raise FlatbufferError(
                f"byte 0: expected {kind}, which is a flatbuffer, got only {self.size} bytes: is this the right file?",
                field="model",
                expected=kind,
                got=self.size,
            )
        if data[4:8] != identifier:
            raise FlatbufferError(
                f"byte 4: expected the identifier {identifier.decode()!r} of {kind}, got {bytes(data[4:8])!r}: "
                "this is another kind of file",
                field="model",
                expected=identifier,
                got=bytes(data[4:8]),
            )

    def root(self, where: str) -> "Table":
        """Return the root table of the file; `where` is its name in errors."""
        return Table(self, self.target(0, where), where)

    def target(self, position: int, where: str) -> int:
        """Return the position that the offset stored at `position` leads to; at least four bytes follow it."""
        offset = _U32.unpack_from(self.data, position)[0]
        target = position + offset
        if offset < 4 or target > self.size - 4:
            self.fail(where, f"an offset between 4 and {self.size - 4 - position}", offset, position)
        return target

    def length(self, start: int, item_bytes: int, where: str) -> int:
        """Return the number of items of the vector at `start`, all of which lie within the file."""
        count = _U32.unpack_from(self.data, start)[0]
        most = (self.size - start - 4) // item_bytes
        if count > most:
            self.fail(where, f"at most {most} items in what is left of the file", count, start)
        return count

    def spend(self, amount: int, where: str) -> None:
        """Subtract `amount` bytes from the budget."""
        self.budget -= amount
        if self.budget < 0:
            raise FlatbufferError(
                f"{where}: expected parts that are stored once, got references to more than {_BUDGET_FACTOR} times "
                f"the {self.size} bytes of the file: it is malicious or damaged",
                field=where,
                expected="parts that are stored once",
                got=self.size,
            )

    def fail(self, where: str, expected: str, got: Any, position: int) -> NoReturn:
        """Raise a FlatbufferError about the bytes at `position`."""
        raise FlatbufferError(
            f"{where} (byte {position}): expected {expected}, got {got}: {DAMAGED}",
            field=where,
            expected=expected,
            got=got,
        )


class Table:
    """A table of the file. A slot is the number of a field in the schema; a missing field has its default."""

    __slots__ = ("_fields", "_position", "_reader", "_size", "where")

    def __init__(self, reader: Reader, position: int, where: str) -> None:
        """Check the table at `position`, where at least four bytes are; `where` is its name in errors."""
        reader.tables_left -= 1
        reader.spend(_TABLE_COST, where)
        if reader.tables_left < 0:
            raise FlatbufferError(
                f"{where}: expected at most {_MAX_TABLES} tables in a file, got more: split the model",
                field=where,
                expected=_MAX_TABLES,
            )
        self._reader, self._position, self.where = reader, position, where
        vtable = position - _I32.unpack_from(reader.data, position)[0]
        if not 0 <= vtable <= reader.size - 4:
            reader.fail(where, f"a vtable between 0 and {reader.size - 4}", vtable, position)
        vtable_bytes, self._size = struct.unpack_from("<HH", reader.data, vtable)
        if vtable_bytes < 4 or vtable_bytes % 2 or vtable_bytes > reader.size - vtable:
            reader.fail(where, f"an even vtable size from 4 to {reader.size - vtable}", vtable_bytes, vtable)
        if self._size < 4 or self._size > reader.size - position:
            reader.fail(where, f"a table size from 4 to {reader.size - position}", self._size, position)
        self._fields = (vtable, vtable_bytes)

    def _field(self, slot: int, field_bytes: int, name: str) -> int:
        """Return the position of a field within the table, or 0 if the table does not have it."""
        vtable, vtable_bytes = self._fields
        entry = 4 + 2 * slot
        if entry >= vtable_bytes:
            return 0
        offset = _U16.unpack_from(self._reader.data, vtable + entry)[0]
        if offset == 0:
            return 0
        if offset < 4 or offset + field_bytes > self._size:
            expected = f"a field between 4 and {self._size - field_bytes}"
            self._reader.fail(f"{self.where}: {name}", expected, offset, vtable + entry)
        return self._position + offset

    def i8(self, slot: int, name: str, default: int = 0) -> int:
        """Return a signed byte."""
        at = self._field(slot, 1, name)
        return ((self._reader.data[at] + 128) % 256) - 128 if at else default

    def flag(self, slot: int, name: str) -> bool:
        """Return a boolean; the default is False."""
        at = self._field(slot, 1, name)
        return bool(at and self._reader.data[at])

    def i32(self, slot: int, name: str, default: int = 0) -> int:
        """Return a signed 32-bit integer."""
        at = self._field(slot, 4, name)
        return _I32.unpack_from(self._reader.data, at)[0] if at else default

    def u32(self, slot: int, name: str, default: int = 0) -> int:
        """Return an unsigned 32-bit integer."""
        at = self._field(slot, 4, name)
        return _U32.unpack_from(self._reader.data, at)[0] if at else default

    def f32(self, slot: int, name: str, default: float = 0.0) -> float:
        """Return a 32-bit float."""
        at = self._field(slot, 4, name)
        return _F32.unpack_from(self._reader.data, at)[0] if at else default

    def u64(self, slot: int, name: str, default: int = 0) -> int:
        """Return an unsigned 64-bit integer."""
        at = self._field(slot, 8, name)
        return _U64.unpack_from(self._reader.data, at)[0] if at else default

    def _vector(self, slot: int, item_bytes: int, name: str) -> tuple[int, int] | None:
        """Return (position of the first item, number of items), or None."""
        at = self._field(slot, 4, name)
        if not at:
            return None
        where = f"{self.where}: {name}"
        start = self._reader.target(at, where)
        return start + 4, self._reader.length(start, item_bytes, where)

    def span(self, slot: int, name: str) -> tuple[int, int]:
        """Return (position, number of bytes) of a vector of bytes without reading it; (0, 0) if it is missing."""
        return self._vector(slot, 1, name) or (0, 0)

    def numbers(self, slot: int, code: str, name: str) -> tuple:
        """Return a vector as a tuple; empty if it is missing.

        Args:
            slot: The field.
            code: The type of the items, as in `struct`: i (int32), I (uint32), f (float32) or q (int64).
            name: The field's name in errors.
        """
        result = self._vector(slot, _ITEM_BYTES[code], name)
        if result is None:
            return ()
        start, count = result
        self._reader.spend(count * _ITEM_BYTES[code], f"{self.where}: {name}")
        return struct.unpack_from(f"<{count}{code}", self._reader.data, start)

    def content(self, slot: int, name: str) -> bytes:
        """Return the bytes of a string or of a vector of bytes. Empty if it is missing."""
        start, count = self.span(slot, name)
        self._reader.spend(count, f"{self.where}: {name}")
        return bytes(self._reader.data[start : start + count])

    def contents(self, slot: int, name: str) -> Iterator[bytes]:
        """Yield the bytes of each string of a vector of strings."""
        where = f"{self.where}: {name}"
        start, count = self._vector(slot, 4, name) or (0, 0)
        self._reader.spend(4 * count, where)
        for at in range(start, start + 4 * count, 4):
            position = self._reader.target(at, where)
            size = self._reader.length(position, 1, where)
            self._reader.spend(size, where)
            yield bytes(self._reader.data[position + 4 : position + 4 + size])

    def text(self, slot: int, name: str) -> str:
        """Return a string; invalid UTF-8 appears as escapes. Empty if it is missing."""
        return self.content(slot, name).decode("utf-8", "backslashreplace")

    def after(self, slot: int) -> Iterator[int]:
        """Yield the slots from `slot` on in which the table has a field."""
        vtable, vtable_bytes = self._fields
        for number in range(slot, (vtable_bytes - 4) // 2):
            if _U16.unpack_from(self._reader.data, vtable + 4 + 2 * number)[0]:
                yield number

    def table(self, slot: int, name: str) -> "Table | None":
        """Return the table in a field, or None."""
        at = self._field(slot, 4, name)
        where = f"{self.where}: {name}"
        return Table(self._reader, self._reader.target(at, where), where) if at else None

    def tables(self, slot: int, name: str, item: str) -> Iterator["Table"]:
        """Yield the tables of a vector; their names in errors are `<item> <index>`."""
        start, count = self._vector(slot, 4, name) or (0, 0)
        self._reader.spend(4 * count, f"{self.where}: {name}")
        for index in range(count):
            where = f"{item} {index}"
            yield Table(self._reader, self._reader.target(start + 4 * index, where), where)

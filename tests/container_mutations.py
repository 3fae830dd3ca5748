# SPDX-License-Identifier: Apache-2.0
"""Damage to correct containers: .keras, .h5, .npz and TFRecord files.

Half of the mutants have damaged bytes. In the other half the damage is inside, and the container around it is correct:
a member of a zip with a matching checksum, a record with a matching length and checksum.
"""

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache

from flatbuffer_mutations import WORDS

_WORDS_64 = (*WORDS, 2**33, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
# Values that are unusual in a Keras config, as JSON text.
_VALUES = (
    "null", "true", "-1", "0", "1e308", "1e400", "NaN", "-Infinity", "9" * 5000, '"\\u0000"', '"\\ud800"', '""',
    "[]", "{}", "[" * 5000 + "]" * 5000, '{"a":' * 2000 + "1" + "}" * 2000, '"' + "x" * 100_000 + '"', "2147483648",
    "[null, 100000, 100000, 64]", "[[1]]", '{"class_name": "Dense"}', '{"class_name": null, "config": 3}', "4611686018",
)  # fmt: skip
_H5_WORDS = (("<B", (0, 1, 2, 0x7F, 0xFF)), ("<H", (0, 1, 0xFFFF)), ("<I", WORDS), ("<Q", _WORDS_64))
_DESCRS = (
    "|O", "<f4", "<f8", "|S0", "|V8", "<U1073741824", "<M8[ns]", ("<f4", (2, 2)), [("a", "<f4")], [], "f4,f4", "((((",
    "<c16", "<f16", 3, None, "O", "<i99", [("a", "|O")],
)  # fmt: skip
_SHAPES = (
    "()", "(8,)", "(8, 8, 8, 1)", "(-1, 8, 8, 1)", "(1000000000000, 8, 8, 1)", "(8, 0)", "(2**63,)", "8", "None",
    "(8, 8, 8, 1" + ", 1" * 70 + ")", "(1.5,)", "(True,)", "(" * 300 + ")" * 300, "(9" + "9" * 5000 + ",)",
)  # fmt: skip


def container_mutants(name: str, data: bytes, count: int, seed: object) -> Iterator[bytes]:
    """Yield `count` damaged copies of the container `data`; the suffix of `name` says which kind it is."""
    for number in range(count):
        yield container_mutant(name, data, number, seed)


def container_mutant(name: str, data: bytes, number: int, seed: object) -> bytes:
    """Return the mutant with this number."""
    source = random.Random(f"tfq container {name} {seed} {number}")
    inner = _INNER.get(name.rpartition(".")[2])
    return damaged_bytes(data, source) if number % 2 or inner is None else inner(data, source)


def damaged_bytes(data: bytes, source: random.Random) -> bytes:
    """Return `data` with bytes or words overwritten, or with a part removed, repeated or cut off."""
    mutant = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 5, 20))):
        at = source.randrange(max(1, len(mutant)))
        kind = source.randrange(8)
        if kind < 3:
            mutant[at : at + 1] = bytes([source.getrandbits(8)])
        elif kind < 5:
            form, values = source.choice((("<I", WORDS), ("<Q", _WORDS_64), ("<H", (0, 1, 0x7FFF, 0xFFFF))))
            word = struct.pack(form, source.choice(values))
            mutant[at : at + len(word)] = word
        elif kind == 5:
            del mutant[at : at + source.choice((1, 4, 64, 1000))]
        elif kind == 6:
            mutant[at:at] = mutant[at : at + source.choice((1, 4, 64, 1000))]
        elif len(mutant) > 64 and source.random() < 0.3:
            del mutant[at:]
    return bytes(mutant)


def _damaged_zip(data: bytes, source: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = source.choice(sorted(members))
    if source.random() < 0.1:
        if source.random() < 0.5:
            del members[chosen]
        else:
            members[source.choice(("../x", "a" * 300, chosen + "\0", "ü" * 50, chosen.upper()))] = members.pop(chosen)
    elif chosen.endswith(".json"):
        members[chosen] = _damaged_json(members[chosen], source)
    elif chosen.endswith(".npy"):
        members[chosen] = _damaged_npy(members[chosen], source)
    else:
        members[chosen] = _damaged_h5(members[chosen], source)
    stream = io.BytesIO()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
    with zipfile.ZipFile(stream, "w", source.choice(methods)) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    result = stream.getvalue()
    return damaged_bytes(result, source) if source.random() < 0.1 else result


def _damaged_json(text: bytes, source: random.Random) -> bytes:
    """Return JSON with a value replaced, a key removed, or an item repeated or removed."""
    if source.random() < 0.1:
        return damaged_bytes(text, source)
    tree = json.loads(text)
    places = list(_places(tree))
    marks = {}
    for _ in range(source.choice((1, 1, 2))):
        node, key = source.choice(places)
        if (isinstance(node, dict) and key not in node) or (isinstance(node, list) and key >= len(node)):
            continue
        action = source.randrange(6)
        if action == 0:
            del node[key]
        elif action == 1:
            other, other_key = source.choice(places)
            if (other_key in other) if isinstance(other, dict) else (other_key < len(other)):
                node[key] = json.loads(json.dumps(other[other_key]))
        elif action == 2 and isinstance(node[key], (int, float)):
            node[key] = source.choice((-node[key], node[key] + 1, node[key] * 1000, 10**9, 0.5))
        else:
            mark = f"mutant {len(marks)}"
            marks[f'"{mark}"'], node[key] = source.choice(_VALUES), mark
    result = json.dumps(tree)
    for mark, value in marks.items():
        result = result.replace(mark, value)
    return result.encode()


def _places(node: object) -> Iterator[tuple]:
    """Yield (container, key) of every value in a JSON tree."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from _places(value)


def _damaged_npy(content: bytes, source: random.Random) -> bytes:
    """Return an .npy with another dtype or shape in its header."""
    (length,) = struct.unpack_from("<H", content, 8)
    header, values = content[10 : 10 + length].decode(), content[10 + length :]
    kind = source.randrange(5)
    if kind == 0:
        header = re.sub(r"'shape': \(.*?\)", lambda _: f"'shape': {source.choice(_SHAPES)}", header)
    elif kind == 1:
        header = re.sub(r"'descr': '.*?'", lambda _: f"'descr': {source.choice(_DESCRS)!r}", header)
    elif kind == 2:
        header = header.replace("False", source.choice(("True", "None", "2", "'x'")))
    elif kind == 3:
        header = source.choice(("", "{", "(" * 200, "{'descr': '<f4'}", "\0", "{'a': 1}", "[" * 90, "\n\t x"))
    else:
        return damaged_bytes(content, source)
    text = header.rstrip().encode("latin-1") + b"\n"
    return content[:6] + b"\x02\0" + struct.pack("<I", len(text)) + text + values


def _damaged_h5(content: bytes, source: random.Random) -> bytes:
    """Return an HDF5 file with damaged bytes in its structures, which are mostly words of 2, 4 or 8 bytes."""
    if source.random() < 0.3:
        return damaged_bytes(content, source)
    mutant = bytearray(content)
    positions = _h5_positions(content)
    for _ in range(source.choice((1, 1, 2, 5))):
        at = source.choice(positions) + source.randrange(0, 64)
        form, values = source.choice(
            (("<B", (0, 1, 2, 0x7F, 0xFF)), ("<H", (0, 1, 0xFFFF)), ("<I", WORDS), ("<Q", _WORDS_64))
        )
        if at + struct.calcsize(form) <= len(mutant):
            struct.pack_into(form, mutant, at, source.choice((*values, source.choice(values) ^ 1)))
    return bytes(mutant)


@cache
def _h5_positions(content: bytes) -> list[int]:
    """Return where the structures of an HDF5 file begin: those with a signature, and object headers of version 1."""
    signatures = (b"\x89HDF", b"TREE", b"HEAP", b"SNOD", b"GCOL", b"OHDR", b"\x01\x00.\x00\x01\x00\x00\x00")
    return [match.start() for item in signatures for match in re.finditer(item, content, re.DOTALL)]


def _damaged_records(data: bytes, source: random.Random) -> bytes:
    """Return a TFRecord file in which one record is damaged, with correct lengths and checksums."""
    records, start = [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        records.append(data[start + 12 : start + 12 + length])
        start += 16 + length
    number = source.randrange(len(records))
    records[number] = damaged_bytes(records[number], source)
    return b"".join(map(framed, records))


def framed(record: bytes) -> bytes:
    """Return a record with its length and checksums."""
    length = struct.pack("<Q", len(record))
    return length + _masked_checksum(length) + record + _masked_checksum(record)


def _masked_checksum(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = (crc >> 8) ^ _crc_table()[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _crc_table() -> list[int]:
    """Return the table of CRC-32C (Castagnoli), reflected polynomial 0x82F63B78."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_INNER: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "keras": _damaged_zip,
    "npz": _damaged_zip,
    "h5": _damaged_h5,
    "tfrecord": _damaged_records,
}

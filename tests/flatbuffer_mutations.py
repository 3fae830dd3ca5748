# SPDX-License-Identifier: Apache-2.0
"""Damage to correct flatbuffers: at sensitive positions, found by the generated reader, and anywhere."""

import random
import struct
from collections.abc import Iterator
from functools import cache

from ai_edge_litert import schema_py_generated as generated

# Words that are critical for readers: signs, small counts, powers of two and their neighbors.
WORDS = (0, 1, 2, 3, 4, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**20, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1)


def mutants(data: bytes, count: int, seed: object) -> Iterator[bytes]:
    """Yield `count` damaged copies of `data`: half in offsets, lengths, opcodes and shapes, half in any byte."""
    source = random.Random(f"tfq {seed}")
    for number in range(count):
        yield mutant(data, number, source)


def mutant(data: bytes, number: int, source: random.Random) -> bytes:
    """Return a damaged copy of `data`; odd numbers are damaged in sensitive positions."""
    result = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 5))):
        if number % 2:
            at = source.choice(sensitive_positions(data))
            word = source.choice((*WORDS, source.getrandbits(32), source.randrange(len(data))))
            struct.pack_into("<I", result, at, word)
        else:
            result[source.randrange(len(data))] = source.getrandbits(8)
    return bytes(result)


@cache
def sensitive_positions(data: bytes) -> list[int]:
    """Return every offset, vector length, shape, opcode and index of the file, as found by the generated reader."""
    model = generated.Model.GetRootAs(data)
    results = [0, model._tab.Pos, *_fields(model, 6, 8, 10, 12, 16, 18)]
    for index in range(model.OperatorCodesLength()):
        results += _fields(model.OperatorCodes(index), 4, 6, 8, 10)
    for index in range(model.BuffersLength()):
        results += _fields(model.Buffers(index), 4)
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        results += [graph._tab.Pos, *_fields(graph, 4, 6, 8, 10, 12)]
        for index in range(graph.OperatorsLength()):
            op = graph.Operators(index)
            results += [op._tab.Pos, *_fields(op, 4, 6, 8, 12, 14)]
            results += [at for slot in (6, 8) for at in _items(op, slot)]
            options = op.BuiltinOptions()
            if options is not None:
                results += [options.Pos, *(options.Pos + 4 * word for word in range(4))]
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            results += [tensor._tab.Pos, *_fields(tensor, 4, 6, 8, 10, 12, 18), *_items(tensor, 4)]
            if tensor.Quantization():
                results += _fields(tensor.Quantization(), 8, 10, 16)
    # The length of a vector is at the position that its offset points to.
    lengths = [at + struct.unpack_from("<I", data, at)[0] for at in results if at + 4 <= len(data)]
    return [at for at in (*results, *lengths) if at + 4 <= len(data)]


def _fields(table, *slots: int) -> Iterator[int]:
    """Return the positions of the table's fields in those slots (vtable offsets as the generated code numbers them)."""
    for slot in slots:
        offset = table._tab.Offset(slot)
        if offset:
            yield table._tab.Pos + offset


def _items(table, slot: int) -> Iterator[int]:
    """Return the positions of the 32-bit items of a vector."""
    offset = table._tab.Offset(slot)
    if offset:
        yield from range(table._tab.Vector(offset), table._tab.Vector(offset) + 4 * table._tab.VectorLen(offset), 4)

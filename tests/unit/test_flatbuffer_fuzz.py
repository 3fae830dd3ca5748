# SPDX-License-Identifier: Apache-2.0
"""A thousand seeded mutations of good files: each a report or a FlatbufferError, each at once."""

import random
import struct
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from ai_edge_litert import schema_py_generated as generated
from golden_models import golden

from tfq.config import AUDIT_SCHEMES, TARGETS, AuditConfig
from tfq.errors import FlatbufferError
from tfq.flatbuffer import audit_model

MUTATIONS = 200
FILES = ("digits_int8", "digits_dynamic_range", "digits_weight_only_int8", "two_branches_float32", "flex_op")
REQUIREMENTS = ("", *AUDIT_SCHEMES, *TARGETS)
_WORDS = (0, 1, 2, 3, 4, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**20, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1)


def _fields(table, *slots: int) -> Iterator[int]:
    """Positions of the table's fields in those slots (vtable offsets as the generated code numbers them)."""
    for slot in slots:
        offset = table._tab.Offset(slot)
        if offset:
            yield table._tab.Pos + offset


def _sensitive_positions(data: bytes) -> list[int]:
    """Every offset, vector length, shape, opcode and index of the file, where the generated reader finds them."""
    model = generated.Model.GetRootAs(data)
    found = [0, model._tab.Pos, *_fields(model, 6, 8, 10, 12, 16, 18)]
    for index in range(model.OperatorCodesLength()):
        found += _fields(model.OperatorCodes(index), 4, 6, 8, 10)
    for index in range(model.BuffersLength()):
        found += _fields(model.Buffers(index), 4)
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        found += [graph._tab.Pos, *_fields(graph, 4, 6, 8, 10, 12)]
        for index in range(graph.OperatorsLength()):
            op = graph.Operators(index)
            found += [op._tab.Pos, *_fields(op, 4, 6, 8, 12, 14)]
            found += [op._tab.Vector(op._tab.Offset(slot)) for slot in (6, 8) if op._tab.Offset(slot)]
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            found += [tensor._tab.Pos, *_fields(tensor, 4, 6, 8, 10, 12, 18)]
            found += [tensor._tab.Vector(tensor._tab.Offset(4))] if tensor.ShapeLength() else []
            if tensor.Quantization():
                found += _fields(tensor.Quantization(), 8, 10, 16)
    # The length of a vector stands where its offset leads to.
    lengths = [at + struct.unpack_from("<I", data, at)[0] for at in found if at + 4 <= len(data)]
    return [at for at in (*found, *lengths) if at + 4 <= len(data)]


@pytest.mark.parametrize("name", FILES)
def test_mutated_file_gives_a_report_or_a_flatbuffer_error_at_once(name):
    data = golden(name)
    positions = _sensitive_positions(data)
    source = random.Random(f"tfq {name}")
    outcomes = {"report": 0, "error": 0}
    slowest = peak = 0.0
    for number in range(MUTATIONS):
        mutant = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 5))):
            if number % 2:
                at = source.choice(positions)
                word = source.choice((*_WORDS, source.getrandbits(32), source.randrange(len(data))))
                struct.pack_into("<I", mutant, at, word)
            else:
                mutant[source.randrange(len(data))] = source.getrandbits(8)
        # Tracing memory is slow: one in eight will do.
        if number % 8 == 0:
            tracemalloc.start()
        start = time.process_time()
        try:
            report = audit_model(bytes(mutant), AuditConfig(require=REQUIREMENTS[number % len(REQUIREMENTS)]))
            report.to_dict(), report.to_text()
            outcomes["report"] += 1
        except FlatbufferError as error:
            assert ": " in str(error)
            outcomes["error"] += 1
        slowest = max(slowest, time.process_time() - start)
        if tracemalloc.is_tracing():
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert slowest < 0.5
    assert peak < 30e6
    # Both happen, or the fuzz tests nothing.
    assert min(outcomes.values()) > MUTATIONS // 20

# SPDX-License-Identifier: Apache-2.0
"""Tensors that carry index values, and the audit rule that none of them is quantized."""

import pytest
from built_models import Call, T, build, constant

from tfq import tflite
from tfq.auditing import audit_model
from tfq.config import AuditConfig
from tfq.tflite.index_values import index_tensors, quantized_indices

TABLE = T("int8", (9, 2), 0.1, values=[[1, 2]] * 9)
ROW = T("int8", (4, 2), 0.1)


def model(tensors, ops, inputs, outputs=("row",)) -> bytes:
    return build({"table": TABLE, "row": ROW, **tensors}, ops, inputs, outputs)


def named(data: bytes, find=index_tensors) -> set[str]:
    graph = tflite.read(data).main_subgraph
    return {graph.tensors[index].name for index in find(graph)}


LOOK_UP = Call("GATHER", ["table", "index"], ["row"])
QUANTIZED_IDS = model(
    {"ids": T("int8", (4,), 7.84), "float": T("float32", (4,)), "index": T("int32", (4,))},
    [Call("DEQUANTIZE", ["ids"], ["float"]), Call("CAST", ["float"], ["index"]), LOOK_UP],
    ["ids"],
)
PLAIN_IDS = model({"index": T("int32", (4,))}, [LOOK_UP], ["index"])


def test_index_values_are_followed_back_through_casts_and_arithmetic():
    data = model(
        {
            "x": T("float32", (4,)),
            "ten": constant(10.0),
            "scaled": T("float32", (4,)),
            "floor": T("float32", (4,)),
            "index": T("int32", (4,)),
        },
        [
            Call("MUL", ["x", "ten"], ["scaled"]),
            Call("FLOOR", ["scaled"], ["floor"]),
            Call("CAST", ["floor"], ["index"]),
            LOOK_UP,
        ],
        ["x"],
    )
    assert named(data) == {"x", "scaled", "floor", "index"}


def test_numbers_that_an_argmax_compares_are_not_index_values():
    data = model(
        {"scores": T("int8", (4, 9), 0.1), "axis": constant(1, "int32"), "index": T("int32", (4,))},
        [Call("ARG_MAX", ["scores", "axis"], ["index"]), LOOK_UP],
        ["scores"],
    )
    assert named(data) == {"index"}
    assert audit_model(data).ok


def test_conditions_and_tables_are_not_index_values():
    data = model(
        {"a": T("int8", (4, 2), 0.1), "b": T("bool", (4, 2)), "index": T("int32", (4,)), "other": ROW},
        [LOOK_UP, Call("SELECT_V2", ["b", "a", "row"], ["other"])],
        ["index", "a", "b"],
        ["other"],
    )
    assert named(data) == {"index"}


@pytest.mark.parametrize("allow_float", [(), ("*",)])
def test_the_audit_fails_a_quantized_index_whatever_is_allowed(allow_float):
    assert named(QUANTIZED_IDS, quantized_indices) == {"ids"}
    report = audit_model(QUANTIZED_IDS, AuditConfig(allow_float=allow_float))
    finding = next(finding for finding in report.failures if finding.kind == "quantized_index")
    assert (finding.tensor, report.ok) == ("ids", False)


def test_the_audit_takes_indices_that_enter_as_int32():
    assert named(PLAIN_IDS, quantized_indices) == set()
    assert audit_model(PLAIN_IDS).ok

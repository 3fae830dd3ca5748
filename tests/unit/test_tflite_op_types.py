# SPDX-License-Identifier: Apache-2.0
"""The types in which ops compute, compared with how the golden files were built."""

import pytest

from tfq.auditing import audit_model


@pytest.mark.parametrize(
    ("name", "op", "types"),
    [
        ("digits_float32", "CONV_2D", {"float32": 3}),
        ("digits_int8", "CONV_2D", {"int8": 3}),
        ("digits_int16x8", "FULLY_CONNECTED", {"int16 with int8 weights": 1}),
        ("digits_dynamic_range", "CONV_2D", {"float32": 2, "float32 with int8 weights": 1}),
        ("digits_int8_uint8_io", "QUANTIZE", {"int8": 1, "uint8": 1}),
        ("argmax_int8", "ARG_MAX", {"int64": 1}),
        ("float_island", "SIN", {"float32": 1}),
        ("custom_op", "CUSTOM:MatrixDeterminant", {"float32": 1}),
    ],
)
def test_each_op_is_counted_by_the_type_that_it_computes_in(golden, name, op, types):
    report = audit_model((golden / f"{name}.tflite").read_bytes()).to_dict()
    assert report["op_types"][op] == types
    assert {op: sum(types.values()) for op, types in report["op_types"].items()} == report["op_counts"]

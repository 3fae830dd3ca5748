# SPDX-License-Identifier: Apache-2.0
"""The audit of types: each op of a full-int8 file damaged once, inputs and outputs, float islands, index arithmetic."""

import pytest
from golden_models import BOOL, FLOAT32, INT8, INT16, INT32, INT64, UINT8, changed, golden, unpacked
from messages import refused

from tfq.auditing import audit_model, require
from tfq.config import AuditConfig
from tfq.errors import AuditError

FULL_INT8 = ("digits_int8", "digits_int8_per_tensor", "digits_int8_qat", "digits_int8_keras3", "argmax_int8")


def _ops_and_tensors() -> list[tuple[str, int, int]]:
    results = []
    for name in FULL_INT8:
        for number, op in enumerate(unpacked(golden(name)).subgraphs[0].operators):
            touched = dict.fromkeys(int(index) for index in (*op.inputs, *op.outputs) if index >= 0)
            results += [(name, number, tensor) for tensor in touched]
    return results


def _retyped(name: str, tensor: int, dtype: int, subgraph: int = 0) -> bytes:
    def change(model):
        model.subgraphs[subgraph].tensors[tensor].type = dtype

    return changed(golden(name), change)


@pytest.mark.parametrize("name", FULL_INT8)
def test_full_int8_file_passes(name):
    report = audit_model(golden(name))
    assert report.ok
    assert report.scheme == "full_int8"
    assert require(report, AuditConfig(require="full_int8")) is report


@pytest.mark.parametrize(("name", "op", "tensor"), _ops_and_tensors())
def test_any_tensor_turned_to_float_fails_and_names_the_op(name, op, tensor):
    report = audit_model(_retyped(name, tensor, FLOAT32))
    assert not report.ok
    named = {finding.op_index for finding in report.failures if finding.kind in ("float_op", "hybrid_op", "qdq")}
    graph = unpacked(golden(name)).subgraphs[0]
    touching = {index for index, other in enumerate(graph.operators) if tensor in (*other.inputs, *other.outputs)}
    assert op in named
    assert named == touching
    # Every op was still visited, and its title is in the message.
    assert report.ops_visited == len(graph.operators)
    assert any(f"op #{op} " in finding.message for finding in report.failures)
    with refused(AuditError, field="require", expected="full_int8"):
        require(report, AuditConfig(require="full_int8"))


@pytest.mark.parametrize("dtype", [UINT8, INT16, INT64, INT32, BOOL])
@pytest.mark.parametrize("op", range(9))
def test_output_of_any_other_type_fails_and_names_the_op(op, dtype):
    tensor = int(unpacked(golden("digits_int8")).subgraphs[0].operators[op].outputs[0])
    report = audit_model(_retyped("digits_int8", tensor, dtype))
    assert op in {finding.op_index for finding in report.failures}


def test_findings_name_the_keras_layer_and_the_remedy():
    tensor = int(unpacked(golden("digits_int8")).subgraphs[0].operators[3].outputs[0])
    finding = next(f for f in audit_model(_retyped("digits_int8", tensor, FLOAT32)).failures if f.op_index == 3)
    assert (finding.op, finding.keras_layer, finding.kind) == ("ADD", "residual", "float_op")
    assert "(residual)" in finding.message
    assert "audit.allow_float" in finding.message


@pytest.mark.parametrize(
    ("name", "input_type", "output_type", "ok"),
    [
        ("digits_int8_float_io", "float32", "float32", True),
        ("digits_int8_float_io", "int8", "float32", False),
        ("digits_int8_float_io", "float32", "int8", False),
        ("digits_int8_float_io", "uint8", "uint8", False),
        ("digits_int8_uint8_io", "uint8", "uint8", True),
        ("digits_int8_uint8_io", "int8", "int8", False),
        ("digits_int8_uint8_io", "float32", "uint8", False),
        ("digits_int8", "int8", "int8", True),
        ("digits_int8", "float32", "int8", False),
        ("digits_int8", "int8", "uint8", False),
    ],
)
def test_borders_have_the_type_that_was_asked_for(name, input_type, output_type, ok):
    config = AuditConfig(inference_input_type=input_type, inference_output_type=output_type)
    assert audit_model(golden(name), config).ok == ok


@pytest.mark.parametrize("name", ["digits_int8_float_io", "digits_int8_uint8_io"])
def test_float_border_excuses_the_border_alone(name):
    kind = name.split("_")[2].replace("float", "float32")
    config = AuditConfig(inference_input_type=kind, inference_output_type=kind)
    graph = unpacked(golden(name)).subgraphs[0]
    inside = int(graph.operators[0].outputs[0])
    report = audit_model(_retyped(name, inside, FLOAT32), config)
    assert {0, 1} <= {finding.op_index for finding in report.failures}


def test_float_input_of_a_computing_op_fails_with_float_inputs_allowed():
    config = AuditConfig(require="full_int8", inference_input_type="float32", inference_output_type="float32")
    report = audit_model(golden("digits_float32"), config)
    assert [finding.op_index for finding in report.failures] == list(range(9))


def test_float_island_is_named_with_layer_reason_and_boundaries():
    report = audit_model(golden("float_island"))
    results = {finding.op: finding for finding in report.failures}
    assert set(results) == {"DEQUANTIZE", "SIN", "QUANTIZE"}
    assert (results["SIN"].kind, results["SIN"].keras_layer) == ("float_op", "wave")
    assert "int8" in results["SIN"].message
    assert results["DEQUANTIZE"].kind == results["QUANTIZE"].kind == "qdq"
    assert "(wave)" in results["DEQUANTIZE"].message


@pytest.mark.parametrize("pattern", ["wave", "wa*", "net_1/wave/Sin", "*/Sin"])
def test_allow_float_turns_an_island_into_notes_that_are_still_reported(pattern):
    report = audit_model(golden("float_island"), AuditConfig(allow_float=(pattern,)))
    assert report.ok
    assert [(finding.op, finding.severity) for finding in report.findings if finding.allowed] == [
        ("DEQUANTIZE", "note"),
        ("SIN", "note"),
        ("QUANTIZE", "note"),
    ]
    assert report.scheme == "mixed"
    assert "3 allowed" in report.to_text()


def test_allow_float_that_matches_nothing_is_reported():
    report = audit_model(golden("digits_int8"), AuditConfig(allow_float=("cnv1",)))
    assert report.ok
    assert [finding.kind for finding in report.findings] == ["unused_allow_float"]


@pytest.mark.parametrize("flag", ["allow_int16", "allow_int4"])
def test_a_list_of_a_type_allows_that_type_alone(flag):
    report = audit_model(golden("float_island"), AuditConfig(**{flag: ("*",)}))
    assert not report.ok
    assert [finding.kind for finding in report.findings if finding.kind.startswith("unused")] == [f"unused_{flag}"]
    whole = audit_model(golden("digits_int16x8"), AuditConfig(require="full_int8", **{flag: ("*",)}))
    types = [finding for finding in whole.findings if finding.kind in ("int16", "qdq")]
    assert types and all(finding.allowed == (flag == "allow_int16") for finding in types)


def test_allow_float_does_not_reach_ops_it_does_not_name():
    tensor = int(unpacked(golden("digits_int8")).subgraphs[0].operators[3].outputs[0])
    report = audit_model(_retyped("digits_int8", tensor, FLOAT32), AuditConfig(allow_float=("residual",)))
    assert {finding.op_index for finding in report.failures} >= {4}
    assert 3 not in {finding.op_index for finding in report.failures}


@pytest.mark.parametrize(("name", "kind"), [("custom_op", "custom_op"), ("flex_op", "flex_op")])
def test_custom_and_flex_ops_fail_whatever_is_allowed(name, kind):
    config = AuditConfig(allow_float=("*",), inference_input_type="float32", inference_output_type="float32")
    report = audit_model(golden(name), config)
    assert [finding.kind for finding in report.failures] == [kind]
    assert "MatrixDeterminant" in report.failures[0].message


def test_custom_op_on_int8_alone_fails_too():
    def make_custom(model):
        op = model.subgraphs[0].operators[3]
        model.operatorCodes[op.opcodeIndex].deprecatedBuiltinCode = 32
        model.operatorCodes[op.opcodeIndex].builtinCode = 32
        model.operatorCodes[op.opcodeIndex].customCode = "Mystery"

    report = audit_model(changed(golden("digits_int8"), make_custom))
    assert [(finding.kind, finding.op_index) for finding in report.failures] == [("custom_op", 3)]
    assert report.scheme == "mixed"


def test_op_of_a_later_schema_fails_and_is_named():
    def change(model):
        model.operatorCodes[model.subgraphs[0].operators[3].opcodeIndex].builtinCode = 5000

    report = audit_model(changed(golden("digits_int8"), change))
    assert [(finding.kind, finding.op) for finding in report.failures] == [("unknown_op", "UNKNOWN_5000")]


def test_every_op_of_every_subgraph_is_visited():
    report = audit_model(golden("two_branches_float32"), AuditConfig(require="full_int8"))
    model = unpacked(golden("two_branches_float32"))
    expected = {(graph, op) for graph in range(3) for op in range(len(model.subgraphs[graph].operators))}
    assert {(f.subgraph, f.op_index) for f in report.failures if f.op_index is not None} == expected
    assert report.subgraphs == 3
    assert report.ops_visited == len(expected) == sum(report.op_counts.values())


def test_class_index_as_output_is_a_note():
    report = audit_model(golden("argmax_int8"))
    assert report.output_types == ("int64",)
    assert [finding.kind for finding in report.findings if finding.kind.endswith("_io")] == ["index_io"]


def _with_added_op(name: str, inputs: list[tuple[int, tuple, bool]]) -> bytes:
    """Return digits_int8 with an additional op `name`; each tensor is (dtype, shape, quantized), the output last."""
    from ai_edge_litert import schema_py_generated as generated

    def change(model):
        graph = model.subgraphs[0]
        code = generated.OperatorCodeT()
        code.builtinCode = getattr(generated.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(127, code.builtinCode)
        model.operatorCodes = [*model.operatorCodes, code]
        indices = []
        for dtype, shape, quantized in inputs:
            tensor = generated.TensorT()
            tensor.type, tensor.shape, tensor.name = dtype, list(shape), f"added{len(graph.tensors)}"
            if quantized:
                tensor.quantization = generated.QuantizationParametersT()
                tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5], [0]
            indices.append(len(graph.tensors))
            graph.tensors.append(tensor)
        op = generated.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = len(model.operatorCodes) - 1, indices[:-1], indices[-1:]
        graph.operators.append(op)

    return changed(golden("digits_int8"), change)


I8, I32, I64, B = (INT8, (4,), True), (INT32, (4,), False), (INT64, (4,), False), (BOOL, (4,), False)


@pytest.mark.parametrize(
    ("op", "tensors", "ok"),
    [
        ("ADD", [I32, I32, I32], True),  # Shape arithmetic.
        ("ADD", [I64, I64, I64], True),
        ("ADD", [I8, I32, I8], False),  # No kernel adds these two types.
        ("ADD", [(INT32, (4,), True)] * 3, False),  # Real values as 32-bit integers.
        ("CAST", [I32, I64], True),
        ("CAST", [I8, I64], False),  # A conversion out of int8.
        ("RELU", [I32, I32], False),
        ("SHAPE", [I8, I32], True),
        ("GATHER", [I8, I32, I8], True),
        ("GATHER", [I8, I64, I8], True),
        ("GATHER", [I64, I64, I64], True),
        ("SELECT_V2", [B, I8, I8, I8], True),
        ("SELECT_V2", [B, B, B, B], True),
        ("SELECT_V2", [I8, I8, I8, B], False),
        ("GREATER", [I8, I8, B], True),
        ("GREATER", [I8, I8, I8], True),
        ("LOGICAL_AND", [B, B, B], True),
        ("QUANTIZE", [(INT32, (4,), True), I8], True),  # A rescaled accumulator.
        ("MUL", [B, I8, I8], False),
        ("SOFTMAX", [I64, I8], False),
        ("WHILE", [I32, I8, B], True),
        ("TRANSPOSE", [I8, I32, I8], True),
        ("TRANSPOSE", [I8, (INT8, (4,), False), I8], True),
        ("TRANSPOSE", [I8, I8, I8], False),  # An index with a scale.
        ("TRANSPOSE", [(INT16, (4,), True), I32, (INT16, (4,), True)], False),
    ],
)
def test_integers_are_accepted_as_indices_conditions_or_shapes(op, tensors, ok):
    report = audit_model(_with_added_op(op, tensors))
    assert report.ok == ok, report.to_text()
    assert all(finding.op_index == 9 for finding in report.failures)

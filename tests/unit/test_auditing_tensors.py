# SPDX-License-Identifier: Apache-2.0
"""Scales, zero points, sizes, shapes and signatures, one damaged at a time in a correct file."""

import json
import math

import pytest
from golden_models import INT32, changed, golden, unpacked

from tfq.auditing import audit_model


def _with_scale(op: int, slot: int, value: float, name: str = "digits_int8") -> bytes:
    """Replace the first scale of an op's input."""

    def change(model):
        tensor = model.subgraphs[0].tensors[int(model.subgraphs[0].operators[op].inputs[slot])]
        tensor.quantization.scale = [value, *list(tensor.quantization.scale)[1:]]

    return changed(golden(name), change)


@pytest.mark.parametrize("value", [0.0, -0.0, -0.1, math.nan, math.inf, -math.inf, 1e-39, 1.4e-45])
@pytest.mark.parametrize(("op", "slot"), [(0, 0), (0, 1), (5, 0)])
def test_scale_that_xnnpack_refuses_fails(op, slot, value):
    report = audit_model(_with_scale(op, slot, value))
    assert {finding.kind for finding in report.failures} == {"bad_scale"}
    assert "positive" in report.failures[0].message
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("value", [1.1754944e-38, 3.4e38, 0.25])
def test_smallest_and_largest_normal_scales_pass(value):
    # A bias whose scale differs from the product of the others is a finding of test_auditing_parameters.py.
    assert "bad_scale" not in {finding.kind for finding in audit_model(_with_scale(0, 0, value)).findings}


def test_bias_scale_may_be_subnormal_but_not_zero():
    kinds = [{finding.kind for finding in audit_model(_with_scale(0, 2, scale)).failures} for scale in (1e-40, 0.0)]
    assert ["bad_scale" in found for found in kinds] == [False, True]


def test_int8_activation_without_quantization_fails():
    def change(model):
        graph = model.subgraphs[0]
        graph.tensors[int(graph.operators[3].outputs[0])].quantization = None

    report = audit_model(changed(golden("digits_int8"), change))
    assert [(f.kind, f.op_index, f.keras_layer) for f in report.failures] == [("missing_quantization", 3, "residual")]


@pytest.mark.parametrize("zero_point", [-129, 128])
def test_zero_point_beyond_the_quantized_range_fails(zero_point):
    def change(model):
        graph = model.subgraphs[0]
        graph.tensors[int(graph.operators[3].outputs[0])].quantization.zeroPoint = [zero_point]

    report = audit_model(changed(golden("digits_int8"), change))
    assert [finding.kind for finding in report.failures] == ["bad_zero_point"]


def test_constant_of_another_size_than_its_shape_fails():
    def change(model):
        graph = model.subgraphs[0]
        graph.tensors[int(graph.operators[0].inputs[1])].shape = [12, 3, 3, 2]

    report = audit_model(changed(golden("digits_int8"), change))
    assert [(finding.kind, finding.op_index) for finding in report.failures] == [("buffer_size", 0)]


def test_dynamic_dimensions_are_noted_at_the_borders_and_counted_inside():
    report = audit_model(golden("digits_int8_dynamic_batch"))
    notes = [finding for finding in report.findings if finding.kind == "dynamic_shape"]
    assert report.ok
    assert [note.op_index is None for note in notes] == [True, True, False]
    assert "(-1, 8, 8, 1)" in notes[0].message
    assert not [f for f in audit_model(golden("digits_int8")).findings if f.kind == "dynamic_shape"]


def test_missing_signature_is_noted():
    def change(model):
        model.signatureDefs = None

    assert audit_model(golden("digits_int8")).findings == ()
    report = audit_model(changed(golden("digits_int8"), change))
    assert report.ok
    assert [finding.kind for finding in report.findings] == ["missing_signature"]


def test_names_from_the_file_cannot_drive_the_terminal():
    def change(model):
        graph = model.subgraphs[0]
        tensor = graph.tensors[int(graph.operators[8].outputs[0])]
        tensor.name, tensor.type = "evil\x1b[2J\nfull_int8: met" + "x" * 5000, 0

    text = audit_model(changed(golden("digits_int8"), change)).to_text()
    assert "\x1b" not in text
    assert text.splitlines()[-1].startswith("full_int8") and "NOT met" in text.splitlines()[-1]
    assert max(map(len, text.splitlines())) < 800


def test_tensors_that_no_op_touches_do_not_count():
    def change(model):
        from ai_edge_litert import schema_py_generated as generated

        tensor = generated.TensorT()
        tensor.name, tensor.shape = "stray", [1]
        model.subgraphs[0].tensors.append(tensor)

    report = audit_model(changed(golden("digits_int8"), change))
    assert report.ok
    assert report.tensors_visited == audit_model(golden("digits_int8")).tensors_visited


def test_token_inputs_are_a_note_if_used_only_as_indices():
    def change(model):
        graph = model.subgraphs[0]
        graph.inputs = [*list(graph.inputs), len(graph.tensors)]
        tensor = type(graph.tensors[0])()
        tensor.name, tensor.shape, tensor.type = "tokens", [1, 4], INT32
        graph.tensors.append(tensor)

    report = audit_model(changed(golden("digits_int8"), change))
    assert report.ok
    assert [finding.kind for finding in report.findings] == ["index_io"]
    assert unpacked(golden("digits_int8")).subgraphs[0].inputs.tolist() != []

# SPDX-License-Identifier: Apache-2.0
"""Each quantization scheme is recognized from the tensors alone."""

import dataclasses
import json

import pytest
from golden_models import INT8, NAMES, changed, golden

from tfq.auditing import audit_model
from tfq.config import AuditConfig

FULL_INT8 = AuditConfig(require="full_int8")
# Scheme -> the value of AuditConfig.require for it, where the two differ.
OWN = {
    "int8_float_io": "full_int8",
    "int8_uint8_io": "full_int8",
    "weight_only": "weight_only_int8",
    "mixed": "full_int8",
}
SCHEMES = {
    "argmax_int8": "full_int8",
    "custom_op": "float32",
    "digits_dynamic_all": "dynamic_range",
    "digits_dynamic_range": "dynamic_range",
    "digits_float16": "float16",
    "digits_float32": "float32",
    "digits_int16x8": "int16x8",
    "digits_int8": "full_int8",
    "digits_int8_dynamic_batch": "full_int8",
    "digits_int8_float_io": "int8_float_io",
    "digits_int8_keras3": "full_int8",
    "digits_int8_per_tensor": "full_int8",
    "digits_int8_per_tensor_dense": "full_int8",
    "digits_int8_qat": "full_int8",
    "digits_int8_uint8_io": "int8_uint8_io",
    "digits_weight_only_int8": "weight_only",
    "digits_weight_only_int8_per_tensor": "weight_only",
    "flex_op": "float32",
    "float_island": "mixed",
    "two_branches_float32": "float32",
}


def test_every_golden_file_has_its_scheme_here():
    assert set(SCHEMES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_scheme_is_the_one_that_the_file_was_made_in(name):
    report = audit_model(golden(name))
    assert report.scheme == SCHEMES[name]
    assert audit_model(golden(name), FULL_INT8).ok == (report.scheme == "full_int8")


@pytest.mark.parametrize("name", NAMES)
def test_without_a_requirement_a_file_is_audited_as_its_own_scheme(name):
    report = audit_model(golden(name))
    assert (report.is_required, report.requirement) == (False, OWN.get(report.scheme, report.scheme))
    # A float op in an int8 file, and ops without a kernel, still fail.
    assert report.ok == (name not in ("custom_op", "flex_op", "float_island"))


@pytest.mark.parametrize("name", NAMES)
def test_report_is_plain_json_and_reads_on_a_terminal(name):
    report = audit_model(golden(name), FULL_INT8)
    values = report.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    text = report.to_text()
    assert report.scheme in text
    assert text.splitlines()[-1].startswith("full_int8: met" if report.ok else "full_int8: NOT met")
    assert sum(line.startswith("FAIL ") for line in text.splitlines()) == len(report.failures)


@pytest.mark.parametrize(
    ("name", "scales"),
    [("digits_int8", "one scale per channel"), ("digits_int8_per_tensor", "one scale per tensor")],
)
def test_the_text_names_the_scales_of_the_weights(name, scales):
    report = audit_model(golden(name))
    (line,) = [line for line in report.to_text().splitlines() if line.startswith("weights")]
    assert line.endswith(f" int8, {scales}") and f"{report.model_bytes:,} bytes" in report.to_text()
    both = dataclasses.replace(report, weights_per_channel=4, weights_per_tensor=1, dense_per_channel=0)
    assert "4 with one scale per channel, 1 with one scale per tensor" in both.to_text()


def test_dynamic_range_ops_are_distinguished_from_float_ops():
    report = audit_model(golden("digits_dynamic_range"), FULL_INT8)
    # Only conv2 has at least 1,024 weights, the threshold of TensorFlow's converter.
    assert [f.keras_layer for f in report.findings if f.kind == "hybrid_op"] == ["conv2"]
    assert report.weight_types == {"float32": 4, "int8": 1}
    assert audit_model(golden("digits_float16")).weight_types == {"float16": 5}


def test_int16_activations_are_recognized():
    report = audit_model(golden("digits_int16x8"), FULL_INT8)
    assert [finding.op_index for finding in report.failures if finding.kind == "int16"] == list(range(9))


def test_per_tensor_and_per_channel_weights_are_counted_apart():
    per_channel, per_tensor = audit_model(golden("digits_int8")), audit_model(golden("digits_int8_per_tensor"))
    assert (per_channel.granularity, per_channel.weights_per_channel, per_channel.weights_per_tensor) == (
        "per_channel",
        5,
        0,
    )
    assert (per_tensor.granularity, per_tensor.weights_per_channel, per_tensor.weights_per_tensor) == (
        "per_tensor",
        0,
        5,
    )
    assert [finding.kind for finding in per_tensor.findings] == ["per_tensor_weights"]
    assert audit_model(golden("digits_float32")).granularity is None


def test_int8_weights_dequantized_for_float_ops_are_weight_only():
    def store_int8(model):
        for op in model.subgraphs[0].operators:
            code = model.operatorCodes[op.opcodeIndex]
            if max(code.builtinCode, code.deprecatedBuiltinCode) == 6:
                model.subgraphs[0].tensors[int(op.inputs[0])].type = INT8

    report = audit_model(changed(golden("digits_float16"), store_int8), FULL_INT8)
    assert report.scheme == "weight_only"
    assert any("dequantized" in finding.message for finding in report.failures)


def test_model_without_ops_proves_nothing():
    def empty(model):
        model.subgraphs[0].operators = []

    report = audit_model(changed(golden("digits_int8"), empty))
    assert not report.ok
    assert report.scheme == "no_data"

# SPDX-License-Identifier: Apache-2.0
"""Every scheme that the audit can require is met only by files of that scheme."""

import pytest
from golden_models import FLOAT32, INT8, changed, golden
from messages import refused

from tfq.auditing import audit_model, require
from tfq.config import AUDIT_SCHEMES, AuditConfig
from tfq.errors import AuditError, InputError

# As converted by other tools and by tfq. TensorFlow's dynamic scheme leaves weights of fewer than 1,024 values in
# float32.
SCHEMES = {
    "digits_int8": "full_int8",
    "digits_int8_per_tensor": "full_int8",
    "digits_int8_per_tensor_dense": "full_int8",
    "digits_int8_qat": "full_int8",
    "digits_int16x8": "int16x8",
    "digits_dynamic_range": "dynamic_range",
    "digits_dynamic_all": "dynamic_range",
    "digits_float16": "float16",
    "digits_float32": "float32",
    "two_branches_float32": "float32",
    "digits_weight_only_int8": "weight_only_int8",
    "digits_weight_only_int8_per_tensor": "weight_only_int8",
}


@pytest.mark.parametrize("required", AUDIT_SCHEMES)
@pytest.mark.parametrize("name", SCHEMES)
def test_a_file_meets_only_the_scheme_of_its_conversion(name, required):
    config = AuditConfig(require=required)
    report = audit_model(golden(name), config)
    assert report.ok == (SCHEMES[name] == required), report.to_text()
    assert report.to_text().splitlines()[-1].startswith(f"{required}: {'met' if report.ok else 'NOT met'}")
    assert (report.requirement, report.to_dict()["requirement"]) == (required, required)
    if report.ok:
        assert require(report, config) is report
    else:
        with refused(AuditError, field="require", expected=required, got=report.scheme):
            require(report, config)


def test_the_error_names_every_failing_op_with_its_layer():
    config = AuditConfig(require="float16")
    with pytest.raises(AuditError) as message:
        require(audit_model(golden("digits_float32"), config), config)
    layers = ("conv1", "depthwise", "pointwise", "conv2", "logits")
    assert [layer for layer in layers if f"({layer})" in str(message.value)] == list(layers)
    assert "residual" not in str(message.value)


def test_a_report_for_other_requirements_is_not_accepted():
    report = audit_model(golden("digits_float32"), AuditConfig(require="full_int8"))
    assert not report.ok
    assert require(report, AuditConfig()) is report
    with pytest.raises(AuditError):
        require(report, AuditConfig(require="full_int8"))
    floating = AuditConfig(require="float32")
    with refused(InputError, field="require", expected="float32", got="full_int8"):
        require(report, floating)


def _one_tensor(name: str, op: int, slot: int, dtype: int) -> bytes:
    """Replace a tensor's type; slot -1 is the op's output."""

    def change(model):
        graph = model.subgraphs[0]
        operator = graph.operators[op]
        graph.tensors[int(operator.outputs[0] if slot < 0 else operator.inputs[slot])].type = dtype

    return changed(golden(name), change)


@pytest.mark.parametrize(
    ("name", "required", "op", "slot", "dtype", "layer"),
    [
        ("digits_int16x8", "int16x8", 3, -1, INT8, "residual"),
        ("digits_int16x8", "int16x8", 0, 1, FLOAT32, "conv1"),
        ("digits_float32", "float32", 4, 1, INT8, "conv2"),
        ("digits_float32", "float32", 3, -1, INT8, "residual"),
        ("digits_dynamic_range", "dynamic_range", 4, 1, FLOAT32, "conv2"),
        ("digits_dynamic_range", "dynamic_range", 5, -1, INT8, "pool"),
    ],
)
def test_one_tensor_of_another_type_is_named_and_allowed_by_its_layer(name, required, op, slot, dtype, layer):
    content = _one_tensor(name, op, slot, dtype)
    report = audit_model(content, AuditConfig(require=required))
    results = [finding for finding in report.failures if finding.kind == "other_scheme" and finding.op_index == op]
    assert [finding.keras_layer for finding in results] == [layer]
    allowed = audit_model(content, AuditConfig(require=required, allow_float=(layer,)))
    assert not [f for f in allowed.failures if f.kind == "other_scheme" and f.op_index == op]
    assert any(finding.allowed for finding in allowed.findings)
    if report.scheme == "mixed":  # as the quantizer leaves it: converting again would change nothing
        assert all("replace" in finding.message for finding in results)


def test_float16_weights_and_dequantized_int8_weights_are_distinguished():
    def store_int8(model):
        for op in model.subgraphs[0].operators:
            code = model.operatorCodes[op.opcodeIndex]
            tensor = model.subgraphs[0].tensors[int(op.inputs[0])]
            if max(code.builtinCode, code.deprecatedBuiltinCode) == 6 and len(tensor.shape) == 4:
                tensor.type = INT8

    content = changed(golden("digits_float16"), store_int8)
    report = audit_model(content, AuditConfig(require="float16"))
    expected = {"conv1", "depthwise", "pointwise", "conv2"}
    assert {f.keras_layer for f in report.failures if f.op and f.op != "DEQUANTIZE"} == expected


def test_a_model_without_weights_large_enough_is_not_dynamic():
    def shrink(model):
        # conv2's weights are the only ones of 1,024 values or more.
        model.subgraphs[0].operators = model.subgraphs[0].operators[:4]
        model.subgraphs[0].outputs = [int(model.subgraphs[0].operators[3].outputs[0])]
        model.signatureDefs = None

    report = audit_model(changed(golden("digits_float32"), shrink), AuditConfig(require="dynamic_range"))
    assert [finding.kind for finding in report.failures] == ["scheme"]
    assert "dynamic" in report.failures[0].message


@pytest.mark.parametrize(("name", "required"), [("custom_op", "float32"), ("flex_op", "float32")])
def test_custom_ops_meet_no_scheme(name, required):
    report = audit_model(golden(name), AuditConfig(require=required, allow_float=("*",)))
    assert [finding.kind for finding in report.failures] == [name]


@pytest.mark.parametrize(
    ("name", "granularity", "dense"),
    [
        ("digits_int8", "per_channel", "per_channel"),
        ("digits_int8_per_tensor", "per_tensor", "per_tensor"),
        ("digits_int8_per_tensor_dense", "mixed", "per_tensor"),
        ("digits_dynamic_all", "per_channel", "per_channel"),
        ("digits_weight_only_int8", "per_channel", "per_channel"),
        ("digits_weight_only_int8_per_tensor", "per_tensor", "per_tensor"),
        ("digits_float16", None, None),
    ],
)
def test_granularity_is_reported_for_all_weights_and_dense_ones(name, granularity, dense):
    values = audit_model(golden(name)).to_dict()
    assert (values["granularity"], values["dense_granularity"]) == (granularity, dense)

# SPDX-License-Identifier: Apache-2.0
"""Quantization parameters that kernels do not honor: the interpreter computes the same for any declared value."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from golden_models import INT8, NAMES, changed, golden, unpacked

from tfq import tflite
from tfq.auditing import AuditReport, audit_model
from tfq.tflite.schema import OPERATORS

KINDS = {
    "weight_zero_point",
    "weight_axis",
    "bias_type",
    "bias_zero_point",
    "bias_scale",
    "activation_scale",
    "fixed_scale",
    "unequal_scales",
}
# Ops of digits_int8: op, slot of the input (or output).
CONV, RESHAPE, DENSE, SOFTMAX = 0, 6, 7, 8


def _changed(op: int, place: str, slot: int, name: str = "digits_int8", **values) -> bytes:
    def change(model):
        graph = model.subgraphs[0]
        tensor = graph.tensors[int(getattr(graph.operators[op], place)[slot])]
        for key, value in values.items():
            setattr(tensor.quantization, key, value(getattr(tensor.quantization, key)))

    return changed(golden(name), change)


def _kinds(data: bytes) -> list[tuple[str, int | None]]:
    report: AuditReport = audit_model(data)
    return [(finding.kind, finding.op_index) for finding in report.failures if finding.kind in KINDS]


def _output(data: bytes) -> np.ndarray:
    interpreter = Interpreter(
        model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]
    values = np.random.default_rng(0).integers(-128, 128, detail["shape"]).astype(detail["dtype"])
    interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("name", NAMES)
def test_files_of_tensorflow_have_no_finding_about_parameters(name):
    assert _kinds(golden(name)) == []


def _op_names() -> list[str]:
    return [op.name for op in tflite.read(golden("digits_int8")).main_subgraph.ops]


def test_the_op_numbers_of_this_file_are_those_of_the_golden_model():
    names = _op_names()
    assert [names[index] for index in (CONV, RESHAPE, DENSE, SOFTMAX)] == [
        "CONV_2D",
        "RESHAPE",
        "FULLY_CONNECTED",
        "SOFTMAX",
    ]


@pytest.mark.parametrize(
    ("place", "op", "slot", "values", "kind"),
    [
        ("inputs", CONV, 1, {"zeroPoint": lambda old: [*old[:-1], 3]}, "weight_zero_point"),
        ("inputs", CONV, 2, {"scale": lambda old: [4 * value for value in old]}, "bias_scale"),
        ("inputs", CONV, 2, {"zeroPoint": lambda old: [1, *old[1:]]}, "bias_zero_point"),
        ("inputs", DENSE, 2, {"scale": lambda old: [value / 4 for value in old]}, "bias_scale"),
        ("outputs", RESHAPE, 0, {"zeroPoint": lambda old: [5]}, "unequal_scales"),
    ],
)
def test_a_parameter_that_the_kernel_ignores_fails(place, op, slot, values, kind):
    data = _changed(op, place, slot, **values)
    assert (kind, op) in _kinds(data)
    if op == CONV and kind != "weight_zero_point":
        np.testing.assert_array_equal(_output(data), _output(golden("digits_int8")))


def test_a_weight_zero_point_is_what_the_interpreter_refuses():
    with pytest.raises(RuntimeError, match="zero_point"):
        _output(_changed(CONV, "inputs", 1, zeroPoint=lambda old: [*old[:-1], 3]))


@pytest.mark.parametrize(
    "values", [{"scale": lambda old: [old[0] * 2]}, {"zeroPoint": lambda old: [0]}], ids=["scale", "zero_point"]
)
def test_a_softmax_with_another_scale_than_its_kernel_has_fails(values):
    assert _kinds(_changed(SOFTMAX, "outputs", 0, **values)) == [("fixed_scale", SOFTMAX)]


def test_an_int8_bias_fails_whatever_is_required():
    def change(model):
        graph = model.subgraphs[0]
        bias = graph.tensors[int(graph.operators[DENSE].inputs[2])]
        values = np.asarray(model.buffers[bias.buffer].data, np.uint8).view(np.int32)
        bias.type = INT8
        model.buffers[bias.buffer].data = np.clip(values, -128, 127).astype(np.int8).view(np.uint8)

    assert ("bias_type", DENSE) in _kinds(changed(golden("digits_int8"), change))
    assert ("bias_type", DENSE) in _kinds(changed(golden("digits_int16x8"), change_of_last_dense))


def change_of_last_dense(model):
    graph = model.subgraphs[0]
    operator_codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    dense = next(op for op in graph.operators if operator_codes[op.opcodeIndex] == OPERATORS.index("FULLY_CONNECTED"))
    bias = graph.tensors[int(dense.inputs[2])]
    bias.type = INT8
    model.buffers[bias.buffer].data = np.zeros(int(bias.shape[0]), np.uint8)


def test_scales_along_another_axis_than_the_output_channels_fail():
    def change(model):
        graph = model.subgraphs[0]
        # 12 x 3 x 3 x 12: as many input channels as output channels.
        weight = graph.tensors[int(graph.operators[4].inputs[1])]
        assert list(weight.shape) == [12, 3, 3, 12]
        weight.quantization.quantizedDimension = 3

    assert _kinds(changed(golden("digits_int8"), change)) == [("weight_axis", 4)]


def test_an_activation_with_a_scale_for_each_channel_fails():
    def change(model):
        graph = model.subgraphs[0]
        tensor = graph.tensors[int(graph.operators[CONV].outputs[0])]
        tensor.quantization.scale = [float(tensor.quantization.scale[0])] * 12
        tensor.quantization.zeroPoint, tensor.quantization.quantizedDimension = [0] * 12, 3

    assert ("activation_scale", CONV) in _kinds(changed(golden("digits_int8"), change))


def test_a_16_bit_activation_with_a_zero_point_fails():
    data = _changed(1, "outputs", 0, name="digits_int16x8", zeroPoint=lambda old: [7])
    assert ("activation_scale", 1) in _kinds(data)


def test_a_bias_of_zeros_may_declare_any_scale():
    def change(model):
        graph = model.subgraphs[0]
        bias = graph.tensors[int(graph.operators[DENSE].inputs[2])]
        bias.quantization.scale = [1.0] * len(bias.quantization.scale)
        model.buffers[bias.buffer].data = np.zeros(4 * int(bias.shape[0]), np.uint8)

    assert _kinds(changed(golden("digits_int8"), change)) == []


def test_old_operator_codes_are_read_and_written_to_both_fields():
    def old(model):
        for code in model.operatorCodes:
            code.deprecatedBuiltinCode, code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode), 0

    data = changed(golden("digits_float32"), old)
    assert {code.builtinCode for code in unpacked(data).operatorCodes} == {0}
    edited = unpacked(tflite.write_metadata(data, {}))
    numbers = [OPERATORS.index(op.name) for op in tflite.read(golden("digits_float32")).main_subgraph.ops]
    operator_codes = [(code.builtinCode, code.deprecatedBuiltinCode) for code in edited.operatorCodes]
    assert [operator_codes[op.opcodeIndex] for op in edited.subgraphs[0].operators] == [
        (number, number) for number in numbers
    ]

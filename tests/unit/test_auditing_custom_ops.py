# SPDX-License-Identifier: Apache-2.0
"""Unusual ops that do not violate a scheme: kernels for custom ops, compiled parts, variables, tables."""

import struct

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from flatbuffers import flexbuffers
from golden_models import BOOL, FLOAT32, INT8, INT16, INT32, INT64, UINT8, changed, golden

from tfq.auditing import audit_model
from tfq.config import AuditConfig
from tfq.evaluation.verification import try_to_run
from tfq.tflite.op_types import COMPILED_OPS, CUSTOM_KERNELS

STRING, RESOURCE = generated.TensorType.STRING, generated.TensorType.RESOURCE
POOL = struct.pack("<10i", 2, 2, 2, 2, 2, 0, 0, 0, 0, 0)
BOXES = {"max_detections": 4, "max_classes_per_detection": 1, "num_classes": 3, "nms_score_threshold": 0.1}
BOXES |= {"nms_iou_threshold": 0.5, "y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}
# Code -> (options, (shape, type) of the inputs, of the outputs, the inputs that are constants)
IMAGE, SMALL = ((1, 8, 8, 4), FLOAT32), ((1, 4, 4, 4), FLOAT32)
MODELS = {
    "MaxPoolingWithArgmax2D": (POOL, [IMAGE], [SMALL, SMALL], ()),
    "MaxUnpooling2D": (POOL, [SMALL, SMALL], [IMAGE], ()),
    "Convolution2DTransposeBias": (
        struct.pack("<3i", 1, 2, 2),
        [SMALL, ((2, 2, 2, 4), FLOAT32), ((2,), FLOAT32)],
        [((1, 8, 8, 2), FLOAT32)],
        (1, 2),
    ),
    "TFLite_Detection_PostProcess": (
        flexbuffers.Dumps(BOXES),
        [((1, 6, 4), FLOAT32), ((1, 6, 4), FLOAT32), ((6, 4), FLOAT32)],
        [((1, 4, 4), FLOAT32), ((1, 4), FLOAT32), ((1, 4), FLOAT32), ((1,), FLOAT32)],
        (2,),
    ),
    "AudioSpectrogram": (
        flexbuffers.Dumps({"window_size": 16, "stride": 8, "magnitude_squared": True}),
        [((64, 1), FLOAT32)],
        [((1, 7, 9), FLOAT32)],
        (),
    ),
    "Mfcc": (
        flexbuffers.Dumps(
            {
                "upper_frequency_limit": 4000.0,
                "lower_frequency_limit": 20.0,
                "filterbank_channel_count": 8,
                "dct_coefficient_count": 3,
            }
        ),
        [((1, 7, 129), FLOAT32), ((1,), INT32)],
        [((1, 7, 3), FLOAT32)],
        (1,),
    ),
    "NumericVerify": (
        flexbuffers.Dumps({"tolerance": 5.0, "log_if_failed": False}),
        [((4,), INT8), ((4,), FLOAT32)],
        [((4,), FLOAT32)],
        (),
    ),
}


def custom_model(code, options, inputs, outputs, constants):
    """Return a flatbuffer of one custom op."""
    model, graph, op = generated.ModelT(), generated.SubGraphT(), generated.OperatorT()
    model.version, model.buffers, model.subgraphs, graph.tensors = 3, [generated.BufferT()], [graph], []
    model.operatorCodes = [generated.OperatorCodeT()]
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 32
    model.operatorCodes[0].customCode, model.operatorCodes[0].version = code, 1
    for number, (shape, dtype) in enumerate([*inputs, *outputs]):
        tensor = generated.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.hasRank = f"t{number}", list(shape), dtype, True
        if dtype == INT8:
            tensor.quantization = generated.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [0.1], [0]
        if number in constants:
            buffer = generated.BufferT()
            values = np.full(shape, 16000 if dtype == INT32 else 0.5, np.int32 if dtype == INT32 else np.float32)
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    graph.inputs = [number for number in range(len(inputs)) if number not in constants]
    graph.outputs = list(range(len(inputs), len(graph.tensors)))
    op.inputs, op.outputs, op.customOptions = range(len(inputs)), graph.outputs, np.frombuffer(options, np.uint8)
    graph.operators = [op]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_every_custom_op_with_a_kernel_is_measured():
    assert set(MODELS) == set(CUSTOM_KERNELS)


@pytest.mark.parametrize("code", MODELS)
def test_a_custom_op_has_its_kernel_where_the_table_says(code):
    content = custom_model(code, *MODELS[code])
    assert try_to_run(content).state == "runs"
    builtin = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    if CUSTOM_KERNELS[code] == "XNNPACK":
        with pytest.raises(RuntimeError, match="unresolved"):
            builtin.allocate_tensors()
    else:
        builtin.allocate_tensors()
    assert "custom_op" not in {finding.kind for finding in audit_model(content).failures}
    assert {finding.kind for finding in audit_model(content, AuditConfig(require="tflm")).failures} >= {"custom_op"}


def test_a_float_custom_op_is_not_full_int8_unless_it_is_allowed():
    content = custom_model("TFLite_Detection_PostProcess", *MODELS["TFLite_Detection_PostProcess"])
    config = {"require": "full_int8", "inference_input_type": "float32", "inference_output_type": "float32"}
    assert {finding.kind for finding in audit_model(content, AuditConfig(**config)).failures} == {"float_op"}
    assert audit_model(content, AuditConfig(allow_float=("*",), **config)).ok


def as_custom(model, code, number=5):
    """Turn op `number` into a custom op."""
    added = generated.OperatorCodeT()
    added.builtinCode = added.deprecatedBuiltinCode = 32
    added.customCode, added.version = code, 1
    model.operatorCodes.append(added)
    op = model.subgraphs[0].operators[number]
    op.opcodeIndex, op.builtinOptions, op.builtinOptionsType = len(model.operatorCodes) - 1, None, 0


@pytest.mark.parametrize("code", COMPILED_OPS)
@pytest.mark.parametrize(("require", "ok"), [("", True), ("full_int8", True), ("edgetpu", None), ("xnnpack", False)])
def test_a_compiled_part_is_accepted_by_its_device_and_by_schemes(code, require, ok):
    report = audit_model(changed(golden("digits_int8"), lambda m: as_custom(m, code)), AuditConfig(require=require))
    failures = [finding.kind for finding in report.failures if finding.kind in ("compiled_op", "custom_op")]
    assert report.scheme == "full_int8"
    assert (not failures) == (code == "edgetpu-custom-op" if ok is None else ok)


def test_a_float_op_next_to_a_compiled_part_fails():
    def change(model):
        as_custom(model, "edgetpu-custom-op")
        graph = model.subgraphs[0]
        graph.tensors[int(graph.operators[3].outputs[0])].type = FLOAT32

    report = audit_model(changed(golden("digits_int8"), change))
    assert {finding.op_index for finding in report.failures} >= {3}
    assert report.scheme == "mixed"


def with_ops(model, ops):
    """Prepend ops to the graph: (builtin name, types of its inputs, of its outputs); int8 tensors have a scale."""
    graph = model.subgraphs[0]
    for name, inputs, outputs in ops:
        code = generated.OperatorCodeT()
        code.builtinCode = getattr(generated.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        model.operatorCodes.append(code)
        op = generated.OperatorT()
        numbers = []
        for dtype in (*inputs, *outputs):
            tensor = generated.TensorT()
            tensor.name, tensor.shape, tensor.type = f"new_{len(graph.tensors)}", [2], dtype
            if dtype in (INT8, UINT8, INT16):
                tensor.quantization = generated.QuantizationParametersT()
                tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5], [0]
            graph.tensors.append(tensor)
            numbers.append(len(graph.tensors) - 1)
        op.opcodeIndex, op.inputs = len(model.operatorCodes) - 1, numbers[: len(inputs)]
        op.outputs = numbers[len(inputs) :]
        graph.operators = [*graph.operators, op]


@pytest.mark.parametrize(
    ("ops", "ok"),
    [
        ([("VAR_HANDLE", (), (RESOURCE,)), ("READ_VARIABLE", (RESOURCE,), (INT8,))], True),
        ([("ASSIGN_VARIABLE", (RESOURCE, INT8), ()), ("CALL_ONCE", (), ())], True),
        ([("READ_VARIABLE", (RESOURCE,), (INT32,))], True),
        ([("READ_VARIABLE", (RESOURCE,), (FLOAT32,))], False),
        ([("ASSIGN_VARIABLE", (RESOURCE, INT16), ())], False),
        ([("HASHTABLE", (), (RESOURCE,)), ("HASHTABLE_FIND", (RESOURCE, INT64, STRING), (STRING,))], True),
        ([("HASHTABLE_FIND", (RESOURCE, STRING, INT64), (INT64,)), ("GATHER", (STRING, INT32), (STRING,))], True),
        ([("HASHTABLE_FIND", (RESOURCE, INT64, FLOAT32), (FLOAT32,))], False),
        ([("SELECT_V2", (BOOL, INT64, INT64), (INT64,))], True),
        ([("SELECT_V2", (BOOL, FLOAT32, FLOAT32), (FLOAT32,))], False),
    ],
)
def test_variables_and_tables_of_an_int8_file_are_judged_by_their_values(ops, ok):
    content = changed(golden("digits_int8"), lambda model: with_ops(model, ops))
    for require in ("", "full_int8"):
        report = audit_model(content, AuditConfig(require=require))
        assert report.ok == ok, report.to_text()
    assert (audit_model(content).scheme == "full_int8") == ok


def test_a_uint8_file_meets_its_own_scheme_and_the_edge_tpu_but_not_full_int8():
    def change(model):
        for tensor in model.subgraphs[0].tensors:
            if tensor.type == INT8:
                tensor.type = UINT8
                tensor.quantization.zeroPoint = [int(zero) + 128 for zero in tensor.quantization.zeroPoint]

    content = changed(golden("digits_int8_per_tensor"), change)
    report = audit_model(content)
    assert (report.ok, report.scheme, report.requirement) == (True, "full_uint8", "full_uint8")
    assert not audit_model(content, AuditConfig(require="full_int8")).ok
    kinds = {finding.kind for finding in audit_model(content, AuditConfig(require="edgetpu")).failures}
    assert not kinds & {"uint8", "float_op"}


def test_embeddings_stored_as_integers_do_not_make_a_float_file_mixed():
    def change(model):
        with_ops(model, [("GATHER", (INT8, INT32), (INT8,)), ("DEQUANTIZE", (INT8,), (FLOAT32,))])
        graph = model.subgraphs[0]
        gather, dequantize = graph.operators[-2:]
        buffer = generated.BufferT()
        buffer.data = np.zeros(2, np.uint8)
        model.buffers.append(buffer)
        graph.tensors[int(gather.inputs[0])].buffer = len(model.buffers) - 1
        dequantize.inputs = gather.outputs

    report = audit_model(changed(golden("digits_float32"), change))
    assert (report.scheme, report.ok) == ("weight_only", True)
    assert audit_model(changed(golden("digits_int8"), change)).scheme == "mixed"  # a float result in an int8 file

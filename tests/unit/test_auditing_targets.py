# SPDX-License-Identifier: Apache-2.0
"""Limits of each target, tested with one fault at a time in a file that it runs."""

import math

import pytest
from built_models import Call, T, build, constant
from golden_models import NAMES, changed, golden
from one_op_models import one_op_model, options

import tfq
from tfq import registry, tflite
from tfq.auditing import Target, audit_model
from tfq.config import AuditConfig
from tfq.tflite.schema import OPERATORS

TARGETS = registry.entries(Target)
FITTING = "digits_int8_per_tensor_dense"

RUN_BY = {
    "digits_int8": {"xnnpack", "gpu"},
    "digits_int8_per_tensor_dense": {"xnnpack", "gpu", "tflm", "nnapi", "edgetpu"},
    "digits_int8_per_tensor": {"xnnpack", "gpu", "tflm", "nnapi", "edgetpu"},
    "digits_int8_dynamic_batch": {"xnnpack"},
    "digits_int16x8": set(),  # TFLM supports the scheme and only rejects its dense weights
    "digits_dynamic_all": {"xnnpack"},
    "digits_float16": {"xnnpack"},
    "digits_weight_only_int8": {"xnnpack"},
    "digits_float32": {"xnnpack", "gpu", "tflm", "nnapi"},
    "flex_op": set(),
    "custom_op": set(),
}


def audited(content: bytes, target: str, **settings):
    return audit_model(content, AuditConfig(require=target, **settings))


def test_targets_name_ops_that_exist_and_their_source():
    for target in TARGETS.values():
        ops = target.integer_ops | target.float_ops | target.hybrid_ops | target.index_ops | set(target.max_versions)
        ops = ops.union(*target.ops_by_type.values())
        assert ops - set(OPERATORS) == set()
        assert target.source


def test_deprecated_target_is_a_note_with_what_to_use():
    content = golden("digits_int8_per_tensor_dense")
    old, new = (audit_model(content, AuditConfig(require=target)) for target in ("nnapi", "xnnpack"))
    assert old.ok and [finding.severity for finding in old.findings if finding.kind == "deprecated_target"] == ["note"]
    (message,) = [finding.message for finding in old.findings if finding.kind == "deprecated_target"]
    named = {word.strip(".,") for word in message.split()} & set(registry.entries(Target))
    assert named - {"nnapi"} == {"xnnpack", "gpu"} and message in old.to_text()
    assert not [item for item in new.findings if item.kind == "deprecated_target"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", RUN_BY)
def test_a_file_runs_on_the_targets_that_can_run_it(name, target):
    report = audited(golden(name), target)
    assert report.ok == (target in RUN_BY[name]), report.to_text()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_finding_about_a_target_names_the_op(name, target):
    for finding in audited(golden(name), target).findings:
        if finding.kind == "not_on_target":
            assert f"op #{finding.op_index} {finding.op}" in finding.message


def _with(change) -> bytes:
    return changed(golden(FITTING), lambda model: change(model, model.subgraphs[0]))


def _code(model, op: int):
    """Return the operator code of one op."""
    old = model.operatorCodes[model.subgraphs[0].operators[op].opcodeIndex]
    new = type(old)()
    new.builtinCode, new.deprecatedBuiltinCode, new.version = old.builtinCode, old.deprecatedBuiltinCode, old.version
    model.operatorCodes.append(new)
    model.subgraphs[0].operators[op].opcodeIndex = len(model.operatorCodes) - 1
    return new


def _renamed(name: str):
    def change(model, graph):
        code = _code(model, 5)
        code.builtinCode, code.deprecatedBuiltinCode = OPERATORS.index(name), min(127, OPERATORS.index(name))

    return change


def _version(model, graph):
    _code(model, 0).version = 8


def _wide_softmax(model, graph):
    graph.tensors[int(graph.operators[8].inputs[0])].shape = [1, 16_001]


def _batch(model, graph):
    graph.tensors[int(graph.operators[3].outputs[0])].shape = [4, 8, 8, 12]


def _dense_per_channel(model, graph):
    quantization = graph.tensors[int(graph.operators[7].inputs[1])].quantization
    scale = [float(quantization.scale[0])] * 10
    quantization.scale, quantization.zeroPoint, quantization.quantizedDimension = scale, [0] * 10, 0


def _dynamic(model, graph):
    graph.tensors[int(graph.operators[3].outputs[0])].shapeSignature = [-1, 8, 8, 12]


def _zero_scale(model, graph):
    quantization = graph.tensors[int(graph.operators[0].inputs[1])].quantization
    quantization.scale = [0.0, *list(quantization.scale)[1:]]


@pytest.mark.parametrize(
    ("change", "targets", "op", "word"),
    [
        (_renamed("CUMSUM"), {"gpu", "nnapi", "edgetpu"}, 5, "CUMSUM on integers"),
        (_renamed("SQRT"), {"tflm", "nnapi", "edgetpu"}, 5, "SQRT on integers"),
        (_version, {"gpu", "nnapi"}, 0, "version 8"),
        (_wide_softmax, {"edgetpu"}, 8, "16,001"),
        (_batch, {"edgetpu"}, 3, "innermost"),
        (_dense_per_channel, {"tflm", "nnapi", "edgetpu"}, 7, "per channel"),
        (_dynamic, {"gpu", "tflm", "nnapi", "edgetpu"}, 3, "dynamic shape"),
        (_zero_scale, {"xnnpack", "gpu", "tflm", "nnapi", "edgetpu"}, 0, "positive normal"),
    ],
    ids=["op", "float_only_op", "version", "softmax", "rank", "dense", "shape", "scale"],
)
def test_one_fault_fails_on_the_targets_that_cannot_run_it(change, targets, op, word):
    content = _with(change)
    for name in TARGETS:
        failures = audited(content, name).failures
        assert any(f.op_index == op and word in f.message for f in failures) == (name in targets), name
        assert bool(failures) == (name in targets), name


def test_ops_that_xnnpack_does_not_run_are_a_note():
    report = audited(golden("digits_int8"), "xnnpack")
    left = [finding for finding in report.findings if finding.kind == "not_on_target"]
    # As the interpreter itself delegates it: 7 of 9.
    assert [(finding.op, finding.severity) for finding in left] == [("AVERAGE_POOL_2D", "note"), ("SOFTMAX", "note")]


def test_float_borders_of_an_int8_model_are_converted_on_the_cpu():
    report = audited(golden("digits_int8_float_io"), "edgetpu")
    about_borders = [f for f in report.findings if f.op == "DEQUANTIZE"]
    assert [(f.kind, f.severity) for f in about_borders] == [("not_on_target", "note")]
    expected = audited(golden("digits_int8_float_io"), "edgetpu", inference_input_type="int8")
    assert any(finding.kind == "io_type" for finding in expected.failures)


def test_an_op_that_something_else_runs_can_be_allowed():
    content = _with(_renamed("CUMSUM"))
    report = audited(content, "edgetpu", allow_float=("pool",))
    assert report.ok
    assert [finding.op_index for finding in report.findings if finding.allowed] == [5]


@pytest.mark.parametrize(
    ("target", "op", "dtype", "severity"),
    [
        ("tflm", "SELECT", "int32", "fails"),
        ("tflm", "SELECT_V2", "int32", "fails"),  # It has the op, but not on this type.
        ("tflm", "SELECT_V2", "int8", None),
        ("tflm", "GATHER", "int16", "fails"),
        ("tflm", "GATHER", "int8", None),
        ("tflm", "ADD", "int32", None),
        ("tflm", "LOGICAL_NOT", "bool", None),
        ("edgetpu", "ADD", "int32", "fails"),
        ("edgetpu", "SHAPE", "int32", "fails"),
        ("edgetpu", "ADD", "int8", None),
        ("nnapi", "SELECT", "int32", None),
        ("nnapi", "CUMSUM", "int32", "fails"),
        ("xnnpack", "ADD", "int32", "note"),  # TFLite's own kernels run on the same CPU.
    ],
)
def test_the_target_also_limits_ops_on_integers(target, op, dtype, severity):
    findings = audited(one_op_model(op, dtype), target).findings
    severities = {finding.severity for finding in findings if finding.kind == "not_on_target"}
    assert severities == ({severity} if severity else set())


def _gpu_failures(op, shapes, options, version=1):
    """Audit one op for the target gpu. shapes: of the first input, of int32 constants, of the output."""
    first, *constants, output = shapes
    tensors = {"x": T("float32", first), "y": T("float32", output)}
    tensors |= {f"k{place}": constant(values, "int32") for place, values in enumerate(constants)}
    call = Call(op, ["x", *(name for name in tensors if name.startswith("k"))], ["y"], options, version)
    return audited(build(tensors, [call], ["x"], ["y"]), "gpu").failures


@pytest.mark.parametrize(("shape", "fails"), [((1, 4, 2, 4), False), ((1, 4, 1, 2, 4), True), ((1,) * 8, True)])
def test_gpu_refuses_tensors_of_more_than_four_axes(shape, fails):
    failures = _gpu_failures("RESHAPE", [(1, math.prod(shape)), shape, shape], None)
    assert bool(failures) == fails and all("axes" in failure.message for failure in failures)
    assert bool(_gpu_failures("RESHAPE", [shape, (1, math.prod(shape)), (1, math.prod(shape))], None)) == fails


@pytest.mark.parametrize("output", [(1, 1, 4), (1, 4)])
def test_gpu_refuses_slices_that_remove_an_axis(output):
    table = options("StridedSlice", beginMask=5, endMask=5, shrinkAxisMask=2 * (len(output) == 2))
    failures = _gpu_failures("STRIDED_SLICE", [(1, 2, 4), [0, 0, 0], [0, 1, 0], [1, 1, 1], output], table)
    assert bool(failures) == (len(output) == 2) and all("removes an axis" in failure.message for failure in failures)


def test_gpu_refuses_newer_versions_of_an_op():
    newest = TARGETS["gpu"].max_versions["TANH"]
    assert not _gpu_failures("TANH", [(1, 4), (1, 4)], None, newest)
    (failure,) = _gpu_failures("TANH", [(1, 4), (1, 4)], None, newest + 1)
    assert f"version {newest + 1}" in failure.message


@pytest.mark.parametrize(
    ("dtype", "outputs", "fails"), [("int8", "y", True), ("int8", "yz", False), ("float32", "y", False)]
)
def test_gpu_needs_every_int8_result_to_be_read(dtype, outputs, fails):
    tensor = T(dtype, (1, 4, 4, 2), 0.05 if dtype == "int8" else None)
    calls = [Call("ABS", ["x"], ["z"]), Call("RELU", ["x"], ["y"])]
    content = build(dict.fromkeys("xyz", tensor), calls, ["x"], list(outputs))
    assert [finding.op for finding in audited(content, "gpu").failures] == ["ABS"] * fails
    if fails:
        converted = tfq.convert(content, config=tfq.ConversionConfig(target="gpu"))
        assert [op.name for op in tflite.read(converted).main_subgraph.ops] == ["RELU"]

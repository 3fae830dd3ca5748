# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from built_models import Call, T, build
from messages import refused
from one_op_models import one_op_model, options

from tfq import tflite
from tfq.auditing import audit_model
from tfq.config import AuditConfig
from tfq.errors import FlatbufferError
from tfq.evaluation import audit_and_run, try_to_run, verify
from tfq.evaluation.collapse import _first_loss, is_gradual
from tfq.evaluation.output_checks import OutputCheck, check_output
from tfq.evaluation.verification import encode
from tfq.tflite import Op, Subgraph, Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.tflite").read_bytes()


def graph_of(op: str, scale: float = 0.1, zero_point: int = 0, dtype: str = "int8") -> Subgraph:
    """Return a graph of one op whose output, tensor 1, has this scale."""
    tensors = (
        Tensor(index=0, name="x", shape=(1, 4), shape_signature=(1, 4), dtype=dtype, scale=(1.0,), zero_point=(0,)),
        Tensor(
            index=1,
            name="y",
            shape=(1, 4),
            shape_signature=(1, 4),
            dtype=dtype,
            scale=(scale,),
            zero_point=(zero_point,),
        ),
    )
    ops = (Op(index=0, name=op, version=1, inputs=(0,), outputs=(1,)),)
    return Subgraph(index=0, name="main", tensors=tensors, ops=ops, inputs=(0,), outputs=(1,))


def unquantized(graph: Subgraph) -> Subgraph:
    tensors = tuple(dataclasses.replace(tensor, scale=(), zero_point=()) for tensor in graph.tensors)
    return dataclasses.replace(graph, tensors=tensors)


def quantized(floats: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(floats / scale), -128, 127).astype(np.int8)


@pytest.fixture
def floats() -> np.ndarray:
    return np.random.default_rng(0).uniform(-10, 10, (20, 1, 64, 4)).astype(np.float32)


def test_sqnr_of_a_rounded_uniform_output_reaches_the_ideal(floats):
    check = check_output(graph_of("CONV_2D"), 1, "y", floats, quantized(floats, 0.1))

    # Uniform over 20 and a step of 0.1: 20 log10(200) dB.
    assert check.ideal_db == pytest.approx(20 * math.log10(200), abs=0.2)
    assert check.sqnr_db == pytest.approx(check.ideal_db, abs=0.2)
    assert check.collapse is None and check.note is None


def test_noise_on_an_able_output_is_collapsed(floats):
    noise = np.random.default_rng(1).normal(0, 2, floats.shape)

    check = check_output(graph_of("CONV_2D"), 1, "y", floats, quantized(floats + noise, 0.1))

    assert check.sqnr_db == pytest.approx(10 * math.log10((400 / 12) / 4), abs=0.7)
    assert check.collapse[0] == "low_sqnr"


def test_noise_below_the_note_level_is_a_note(floats):
    noise = np.random.default_rng(1).normal(0, 0.41, floats.shape)

    check = check_output(graph_of("CONV_2D"), 1, "y", floats, quantized(floats + noise, 0.1))

    assert 20 < check.sqnr_db < 25
    assert check.collapse is None and check.note[0] == "sqnr"


def test_constant_slice_is_collapsed_though_the_whole_output_is_right(floats):
    floats[..., 2] /= 1000

    check = check_output(graph_of("CONCATENATION"), 1, "y", floats, quantized(floats, 0.1))

    assert check.sqnr_db > 40
    assert check.collapse[0] == "constant_slices"
    assert [(item.axis, item.index) for item in check.constant_slices] == [(3, 2)]


@pytest.mark.parametrize("op", ["SOFTMAX", "LOGISTIC", "TANH"])
def test_constant_slice_is_right_where_the_op_fixes_the_scale(floats, op):
    floats[..., 2] /= 1000

    check = check_output(graph_of(op), 1, "y", floats, quantized(floats, 0.1))

    assert check.constant_slices and check.collapse is None


def test_log_softmax_of_an_excluded_class_is_compared_within_its_range():
    scores = np.random.default_rng(0).uniform(-4, 0, (20, 1, 4)).astype(np.float32)
    scores[::3, :, 2] = -1e9
    quantized = np.clip(np.rint(scores * 16) + 127, -128, 127).astype(np.int8)

    check = check_output(graph_of("LOG_SOFTMAX", 1 / 16, 127), 1, "y", scores, quantized)
    other = check_output(graph_of("CONV_2D", 1 / 16, 127), 1, "y", scores, quantized)

    assert check.collapse is None and check.sqnr_db > 40
    assert other.collapse[0] == "low_sqnr"


def test_slice_that_is_zero_on_almost_all_samples_is_not_judged(floats):
    floats[..., 2] = 0
    floats[0, 0, 0, 2] = 0.01

    check = check_output(graph_of("CONCATENATION"), 1, "y", floats, quantized(floats, 0.1))

    assert not check.constant_slices and check.collapse is None


def test_constant_slice_is_ignored_if_all_slices_hardly_vary():
    # Ten values that are far apart and hardly change from sample to sample.
    rng = np.random.default_rng(0)
    floats = (np.linspace(-10, 10, 10) + rng.uniform(-0.01, 0.01, (20, 1, 10))).astype(np.float32)

    check = check_output(graph_of("FULLY_CONNECTED"), 1, "y", floats, quantized(floats, 0.1))

    assert check.ideal_db > 40 and check.sqnr_db > 40
    assert not check.constant_slices and check.collapse is None


def test_slice_of_rounding_noise_is_not_judged(floats):
    floats[..., 2] = np.random.default_rng(1).normal(0, 1e-7, floats.shape[:-1])

    check = check_output(graph_of("CONV_2D"), 1, "y", floats, quantized(floats, 0.1))

    assert check.num_slices == 64 + 3 and not check.constant_slices


def test_axes_that_are_too_long_are_not_sliced():
    floats = np.random.default_rng(0).uniform(-1, 1, (3, 1, 513, 2)).astype(np.float32)

    check = check_output(graph_of("CONV_2D", scale=0.01), 1, "y", floats, quantized(floats, 0.01))

    assert check.num_slices == 2


def test_output_that_moves_by_few_steps_is_a_note(floats):
    floats += 100
    check = check_output(graph_of("CONV_2D", scale=5.0), 1, "y", floats, quantized(200 - floats, 5.0))

    assert check.sqnr_db < 0 and check.ideal_db < 25
    assert check.collapse is None and check.note[0] == "few_steps"


@pytest.mark.parametrize(("op", "collapse"), [("MAX_POOL_2D", "out_of_scale"), ("SOFTMAX", None)])
def test_far_too_large_scale_is_collapsed_unless_the_op_fixes_it(floats, op, collapse):
    check = check_output(graph_of(op, scale=1e4), 1, "y", floats, quantized(floats, 1e4))

    assert check.ideal_db < 25 and check.lost == bool(collapse)
    assert (check.collapse and check.collapse[0]) == collapse


def test_noise_of_float_rounding_is_not_out_of_scale():
    floats = np.full((20, 1, 4), 1.0, np.float32)
    floats[::2] += np.float32(1e-6)

    check = check_output(graph_of("CONV_2D", scale=1e4), 1, "y", floats, quantized(floats, 1e4))

    assert check.collapse is None


@pytest.mark.parametrize("scale", [0.0, math.inf, math.nan])
def test_scale_that_is_not_positive_is_collapsed(floats, scale):
    check = check_output(graph_of("CONV_2D", scale=scale), 1, "y", floats, np.zeros(floats.shape, np.int8))

    assert check.collapse[0] == "no_scale" and check.note is None
    assert json.dumps(check.to_dict(), allow_nan=False)


def test_output_without_values_is_not_a_collapse():
    empty = np.zeros((0, 2), np.float32)

    check = check_output(graph_of("CONV_2D"), 1, "y", empty, empty.astype(np.int8))

    assert check.collapse is None and json.dumps(check.to_dict(), allow_nan=False)


def test_output_that_does_not_vary_has_no_ratio():
    floats = np.ones((20, 1, 4), np.float32)

    check = check_output(graph_of("CONV_2D"), 1, "y", floats, quantized(floats, 0.1))

    assert check.sqnr_db is None and check.collapse is None and check.note[0] == "few_steps"


def test_nan_is_collapsed(floats):
    values = floats.copy()
    values[3, 0, 0, 0] = np.nan

    check = check_output(unquantized(graph_of("CONV_2D", dtype="float32")), 1, "y", floats, values)

    assert not check.finite and check.collapse[0] == "not_finite"


def test_class_numbers_that_become_constant_are_collapsed():
    graph = graph_of("ARG_MAX", dtype="int32")
    tensors = tuple(
        Tensor(index=t.index, name=t.name, shape=(1,), shape_signature=(1,), dtype="int32") for t in graph.tensors
    )
    graph = Subgraph(index=0, name="main", tensors=tensors, ops=graph.ops, inputs=(0,), outputs=(1,))
    classes = np.arange(20, dtype=np.int32).reshape(20, 1) % 3

    right = check_output(graph, 1, "y", classes, classes)
    wrong = check_output(graph, 1, "y", classes, np.zeros_like(classes))

    assert right.agreement == 1 and right.collapse is None
    assert wrong.agreement == pytest.approx(7 / 20) and wrong.collapse[0] == "constant_slices"


def test_record_of_an_exact_output_is_plain_json(floats):
    values = quantized(floats, 0.1)
    exact = values.astype(np.float32) * np.float32(0.1)

    check = check_output(graph_of("CONV_2D"), 1, "y", exact, values)

    assert check.sqnr_db == math.inf
    assert json.loads(json.dumps(check.to_dict(), allow_nan=False))["exact"] is True


def samples_of(model: bytes, count: int = 6) -> list[dict[str, np.ndarray]]:
    parsed = tflite.read(model)
    rng = np.random.default_rng(0)
    tensors = zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True)
    shapes = {name: tensor.shape for name, tensor in tensors}
    return [{name: rng.uniform(0, 1, shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)]


def plain_outputs(model: bytes, samples: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    """Return the outputs of an interpreter in this process."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    results = []
    for fed in encode(tflite.read(model), samples):
        for detail, array in zip(interpreter.get_input_details(), fed, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        results.append([interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()])
    return results


def test_golden_int8_model_is_right_against_its_float_twin():
    samples = samples_of(golden("digits_float32"))

    result = verify(golden("digits_int8"), samples, plain_outputs(golden("digits_float32"), samples))

    assert result.ok and result.execution.state == "runs" and result.num_samples == 6
    assert [item.name for item in result.outputs] == list(tflite.read(golden("digits_int8")).output_names)


def test_golden_int8_model_is_collapsed_against_another_model():
    samples = samples_of(golden("digits_float32"))
    rng = np.random.default_rng(0)
    others = [[rng.dirichlet(np.ones(10), 1).astype(np.float32)] for _ in samples]

    result = verify(golden("digits_int8"), samples, others)

    assert [problem.kind for problem in result.collapsed] == ["low_sqnr"]
    assert json.dumps(result.to_dict(), allow_nan=False)


def with_scale(model: bytes, op: int, scale: float) -> bytes:
    """Return the model in which the output of an op has another scale."""
    edited = tflite.unpack(model)
    graph = edited.subgraphs[0]
    graph.tensors[int(graph.operators[op].outputs[0])].quantization.scale = [scale]
    return tflite.pack(edited, len(model))


def test_op_that_the_kernels_refuse_is_named():
    parsed = tflite.read(golden("digits_int8"))
    conv = [op.index for op in parsed.main_subgraph.ops if op.name == "CONV_2D"][1]
    broken = with_scale(golden("digits_int8"), conv, 1e-12)

    execution = try_to_run(broken)

    assert execution.state == "fails" and execution.op_index == conv
    assert f"#{conv} CONV_2D" in execution.op


def test_a_division_is_tried_where_its_inputs_are_not_zero():
    assert try_to_run(one_op_model("DIV", "int8")).state == "runs"
    tensors = {"x": T("int8", (1, 4), 0.1), "zero": T("int8", (1, 4), 0.1, values=[0] * 4), "y": T("int8", (1, 4), 0.1)}
    by_zero = build(tensors, [Call("DIV", ["x", "zero"], ["y"], options("Div"))], ["x"], ["y"])
    assert try_to_run(by_zero).state == "fails"


def test_audit_of_a_file_that_does_not_run_fails():
    parsed = tflite.read(golden("digits_int8"))
    conv = next(op.index for op in parsed.main_subgraph.ops if op.name == "CONV_2D")
    broken = with_scale(golden("digits_int8"), conv, 1e-12)

    report = audit_and_run(broken, AuditConfig(require="full_int8"))

    static = {item.kind for item in audit_model(broken, AuditConfig(require="full_int8")).failures}
    (failure,) = [item for item in report.failures if item.kind not in static]
    assert not report.ok and (failure.kind, failure.op_index) == ("does_not_run", conv)
    assert "run      the file fails" in report.to_text()


def test_audit_without_execution_runs_nothing():
    report = audit_and_run(golden("digits_int8"), execute=False)

    assert report.execution is None and report.to_dict()["execution"] is None
    assert audit_and_run(golden("digits_int8"), AuditConfig(execute=False)).execution is None


def test_audit_of_a_file_that_runs_says_so():
    report = audit_and_run(golden("digits_int8"))

    assert report.execution.state == "runs" and report.ok
    assert report.to_dict()["execution"]["state"] == "runs"


@pytest.mark.parametrize("name", ["custom_op", "flex_op"])
def test_custom_op_is_not_tried_and_no_finding(name):
    report = audit_and_run(golden(name))

    assert report.execution.state == "not tried" and "custom op" in report.execution.reason
    assert "does_not_run" not in {item.kind for item in report.findings}


def test_damaged_file_is_refused():
    with refused(FlatbufferError):
        try_to_run(golden("digits_int8")[:100])


def chain(ratios: list[float]) -> tuple[tflite.Model, dict[int, OutputCheck]]:
    """Return a model of consecutive convolutions and the SQNR of each output; the input has 45 dB."""
    tensors = tuple(
        Tensor(
            index=index,
            name=f"t{index}",
            shape=(1, 4),
            shape_signature=(1, 4),
            dtype="int8",
            scale=(0.1,),
            zero_point=(0,),
        )
        for index in range(len(ratios) + 1)
    )
    ops = tuple(
        Op(index=index, name="CONV_2D", version=1, inputs=(index,), outputs=(index + 1,))
        for index in range(len(ratios))
    )
    graph = Subgraph(index=0, name="main", tensors=tensors, ops=ops, inputs=(0,), outputs=(len(ratios),))
    model = tflite.Model(version=3, description="", subgraphs=(graph,), signatures=(), buffer_bytes=0, model_bytes=0)
    checks = {
        index: OutputCheck(name=f"t{index}", dtype="int8", sqnr_db=ratio) for index, ratio in enumerate([45.0, *ratios])
    }
    return model, checks


def test_accumulated_rounding_is_gradual_and_one_bad_op_is_not():
    gradual = [45.0 - 1.5 * step for step in range(1, 20)]
    steep = [40.0] * 10 + [17.0] * 9
    fractions = {}
    for name, ratios in (("gradual", gradual), ("steep", steep)):
        model, checks = chain(ratios)
        index, fractions[name] = _first_loss(model, checks, {}, len(ratios), constant=False)
        assert name == "gradual" or index == 10

    assert fractions["gradual"] < 0.35 and fractions["steep"] > 0.95
    assert is_gradual(17.0, fractions["gradual"]) and not is_gradual(17.0, fractions["steep"])
    assert not is_gradual(14.9, fractions["gradual"])

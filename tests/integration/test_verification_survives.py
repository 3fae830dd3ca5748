# SPDX-License-Identifier: Apache-2.0
"""A verification that cannot run is a warning or a note: the conversion is returned in every case."""

import contextlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from built_models import Call, T, build, constant

import tfq
from tfq.backends import LocalBackend
from tfq.conversion import convert_with_record, verified
from tfq.errors import BackendError, InputError, ModelError, TfqWarning

FLOATING = (Path(__file__).resolve().parent.parent / "golden" / "digits_float32.tflite").read_bytes()
IMAGES = np.kron(np.random.default_rng(0).uniform(0, 16, (24, 4, 4, 1)), np.ones((1, 2, 2, 1))).astype(np.float32)
VECTORS = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)


def converted(model, data, **settings):
    """Return the conversion and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = convert_with_record(model, data, tfq.ConversionConfig(**settings))
    return result, [str(item.message) for item in caught if issubclass(item.category, TfqWarning)]


def raising(error):
    def function(*args, **settings):
        raise error

    return function


@pytest.mark.parametrize(
    "error",
    [
        BackendError("no space left on device"),
        ModelError("the float model never ends"),
        InputError("another shape"),
        OSError(28, "No space left on device"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_comparison_is_a_warning(error, monkeypatch):
    monkeypatch.setattr(verified, "verify", raising(error))

    result, messages = converted(FLOATING, IMAGES)

    assert tfq.audit(result.content, tfq.AuditConfig(require="full_int8")).ok
    assert [item.kind for item in result.verification.notes] == ["not_compared"]
    assert result.verification.execution.state == "runs" and not result.verification.collapsed
    assert sum("not compared" in message for message in messages) == 1


@pytest.mark.parametrize("error", [BackendError("no space left on device"), OSError(28, "No space left on device")])
def test_without_room_for_any_run_the_conversion_is_returned(error, monkeypatch):
    settings = {"calibration": tfq.CalibrationConfig(method="min_max")}
    expected, _ = converted(FLOATING, IMAGES, verify=False, **settings)
    monkeypatch.setattr(LocalBackend, "run_samples", raising(error))

    result, messages = converted(FLOATING, IMAGES, **settings)

    assert result.content == expected.content
    assert result.verification.execution.state == "not tried"
    assert any("not compared" in message for message in messages)


def test_without_an_interpreter_the_file_is_not_tried(monkeypatch):
    monkeypatch.setattr(LocalBackend, "unavailable", lambda self: "ai-edge-litert is not installed")

    result, _ = converted(FLOATING, None, scheme="dynamic_range")  # calibration would need the interpreter

    assert result.verification.execution.state == "not tried" and result.verification.ok
    assert "not installed" in result.verification.execution.reason


def test_a_collapse_is_reported_where_its_op_cannot_be_located(monkeypatch):
    monkeypatch.setattr(verified, "locate", raising(BackendError("no space left on device")))
    wrong = [[np.random.default_rng(1).dirichlet(np.ones(10), 1).astype(np.float32)] for _ in range(20)]
    monkeypatch.setattr(verified, "float_outputs", lambda evidence: wrong)

    result, messages = converted(FLOATING, IMAGES)

    (problem,) = result.verification.collapsed
    assert problem.kind == "low_sqnr" and problem.op is None and problem.message in messages


def of_one_op(name, output, inputs=(), options=None, shape=(1, 4)):
    """Return a flatbuffer of the input x, one op and the output y."""
    tensors = {"x": T("float32", shape), **{f"t{place}": item for place, item in enumerate(inputs)}, "y": output}
    call = Call(name, ["x", *(f"t{place}" for place in range(len(inputs)))], ["y"], options)
    return build(tensors, [call], ["x"], ["y"])


def compared():
    return of_one_op("GREATER", T("bool", (1, 4)), [constant(np.zeros((1, 4)))])


def greatest():
    options = generated.ArgMaxOptionsT()
    options.outputType = generated.TensorType.INT32
    return of_one_op("ARG_MAX", T("int32", (1,)), [constant([1], "int32")], options)


def scalar():
    return of_one_op("SUM", T("float32", ()), [constant([0, 1], "int32")], generated.ReducerOptionsT())


def of_any_size():
    """Return the positions of positive values: as many rows as there are."""
    tensors = {"x": T("float32", (1, 4)), "zero": constant(np.zeros((1, 4))), "positive": T("bool", (1, 4))}
    tensors["y"] = T("int64", (0, 2))
    ops = [Call("GREATER", ["x", "zero"], ["positive"]), Call("WHERE", ["positive"], ["y"])]
    return build(tensors, ops, ["x"], ["y"])


def passed_on():
    """Return an input that is also an output."""
    tensors = {"x": T("float32", (1, 4)), "y": T("float32", (1, 4))}
    return build(tensors, [Call("TANH", ["x"], ["y"])], ["x"], ["y", "x"])


@pytest.mark.parametrize("model", [compared, greatest, scalar, passed_on], ids=lambda item: item.__name__)
@pytest.mark.parametrize("scheme", ["int8", "int16x8", "dynamic_range"])
def test_models_with_outputs_of_any_kind_are_verified(model, scheme):
    with contextlib.suppress(InputError):  # the quantizer may refuse the model before it is verified
        result, _ = converted(model(), VECTORS, scheme=scheme)
        assert result.verification.execution.state in ("runs", "fails")
        assert result.verification.to_text() and result.verification.to_dict()


ROWS = np.where(np.arange(24)[:, None] % 4 > np.arange(4), 1, -1).astype(np.float32) + np.float32([0, 0, 0, 2])


@pytest.mark.parametrize(("data", "state"), [(ROWS, "runs"), (-np.abs(VECTORS), "not tried")], ids=["rows", "no rows"])
def test_an_output_of_data_dependent_size_is_not_a_collapse(data, state):
    """The interpreter refuses to read an output without rows, in the float model too."""
    result, _ = converted(of_any_size(), data, scheme="dynamic_range")

    assert result.verification.execution.state == state
    assert not result.verification.collapsed

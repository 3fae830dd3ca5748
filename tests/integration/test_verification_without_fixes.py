# SPDX-License-Identifier: Apache-2.0
"""Each kind of silent fault is caught by the verification alone: with its fix switched off, the conversion reports it.

The oracle is a plain interpreter in a forked child: without the fix it cannot run the file, or its outputs are below
20 dB of SQNR against Keras. With the fix they agree, and the conversion reports no collapse.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_models import Call, T, build
from corpus import LIMIT_DB, Traced, by_name, compared, functional, of_keras, smooth, traced
from plain_runs import DoesNotRun, run_plainly
from test_conversion_litert import with_old_operator_codes
from test_conversion_recurrent import DATA as SEQUENCES
from test_conversion_recurrent import lstm, weights

import tfq
from tfq import tflite
from tfq.conversion import convert_with_record
from tfq.conversion.masks import BoundedMasks
from tfq.errors import TfqWarning
from tfq.evaluation import verify
from tfq.keras_bridge import import_keras
from tfq.ptq import causes

FLOATING = (Path(__file__).resolve().parent.parent / "golden" / "digits_float32.tflite").read_bytes()

Switches = dict[str, Callable[..., Any]]
# Where a fix is called -> the replacement that does nothing.
MASKS: Switches = {
    "tfq.conversion.quantize.bound_and_check_masks": lambda model, ranges, *rest: BoundedMasks(
        model=model, ranges=dict(ranges)
    )
}
DEAD: Switches = {"tfq.ptq.calibration.with_kernel_limits": lambda model, ranges, scheme: (ranges, ())}
IDS: Switches = {
    "tfq.conversion.quantize.with_integer_inputs": lambda model, samples, config: (model, samples),
    "tfq.conversion.exact_indices._float_index_ops": lambda graph: [],
}
INT16: Switches = {"tfq.conversion.quantize.with_int16_forms": lambda model, ranges: (model, ranges)}


def int8_form(name: str) -> Switches:
    return {f"tfq.conversion.int8_forms.{name}": lambda model: model}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A corpus model, how to switch off what makes it right, and what the verification must then report.

    Attributes:
        model: Name of the corpus model, or a function that builds one.
        switches: See above.
        kind: Of the problem.
        op: The op that is named.
        cause: Its kind; None if only the runtime's message is known.
    """

    model: str | Callable[[], Any]
    switches: Switches
    scheme: str = "int8"
    kind: str
    op: str
    cause: str | None = None


def sums_of_opposites() -> Any:
    """Return an ADD whose output is 0 on all data, although its inputs are not."""
    layers = import_keras().layers
    x = smooth((8,)) * np.float32(50)
    return functional({"a": x, "b": -x}, lambda a, b: [layers.Dense(3)(a), layers.Add()([a, b])])


FAULTS = {
    "mask of padding": Fault(
        model="kinds.attention_padding", switches=MASKS, kind="low_sqnr", op="SELECT_V2", cause=causes.MASK_CONSTANT
    ),
    "mask that is added": Fault(
        model="kinds.mask_added_constant", switches=MASKS, kind="low_sqnr", op="ADD", cause=causes.MASK_CONSTANT
    ),
    "padding before a max pool": Fault(
        model="kinds.max_pool_of_padding", switches=MASKS, kind="out_of_scale", op="PADV2", cause=causes.MASK_CONSTANT
    ),
    "dead branch": Fault(
        model="kinds.dead_beside_head", switches=DEAD, kind="does_not_run", op="FULLY_CONNECTED", cause=causes.DEAD
    ),
    "dead branch, int16x8": Fault(
        model="kinds.dead_beside_head",
        switches=DEAD,
        scheme="int16x8",
        kind="does_not_run",
        op="FULLY_CONNECTED",
        cause=causes.DEAD,
    ),
    "dead convolution": Fault(
        model="kinds.dead_convolution", switches=DEAD, kind="does_not_run", op="CONV_2D", cause=causes.DEAD
    ),
    "dead output, int16x8": Fault(
        model="kinds.dead_zero_head",
        switches=DEAD,
        scheme="int16x8",
        kind="no_scale",
        op="FULLY_CONNECTED",
        cause=causes.DEAD,
    ),
    "dead sum": Fault(model=sums_of_opposites, switches=DEAD, kind="does_not_run", op="ADD", cause=causes.DEAD),
    "dead sum, int16x8": Fault(
        model=sums_of_opposites, switches=DEAD, scheme="int16x8", kind="does_not_run", op="ADD", cause=causes.DEAD
    ),
    "ids as floats": Fault(
        model="kinds.ids_as_floats_keras", switches=IDS, kind="quantized_index", op="GATHER", cause="index_quantized"
    ),
    "ids as floats, tf_keras": Fault(
        model="kinds.ids_as_floats_tf_keras", switches=IDS, kind="quantized_index", op="GATHER", cause="index_quantized"
    ),
    "squared difference": Fault(
        model="kinds.squared_difference", switches=INT16, scheme="int16x8", kind="does_not_run", op="SQUARED_DIFFERENCE"
    ),
    "layer normalization": Fault(
        model="layers.LayerNormalization",
        switches=INT16,
        scheme="int16x8",
        kind="does_not_run",
        op="SQUARED_DIFFERENCE",
    ),
    "unit normalization": Fault(
        model="layers.UnitNormalization",
        switches=INT16,
        scheme="int16x8",
        kind="low_sqnr",
        op="SUM",
        cause=causes.CLIPPED,
    ),
    "PReLU after ReLU": Fault(
        model="kinds.relu_PReLU", switches=DEAD, scheme="int16x8", kind="does_not_run", op="ADD", cause=causes.DEAD
    ),
    "comparison of small values": Fault(
        model="kinds.compared_-2",
        switches=int8_form("with_comparable_scales"),
        kind="low_sqnr",
        op="GREATER",
        cause=causes.COARSE_COMPARISON,
    ),
    "comparison with a constant": Fault(
        model="kinds.compared_with_constant_3",
        switches=int8_form("with_comparable_scales"),
        kind="low_sqnr",
        op="GREATER",
        cause=causes.COARSE_COMPARISON,
    ),
    "copies of other scales": Fault(
        model="kinds.compared_-2",
        switches=int8_form("with_equal_copy_scales"),
        kind="low_sqnr",
        op="REVERSE_V2",
        cause=causes.UNEQUAL_COPY,
    ),
    "zeros around a diagonal": Fault(
        model="ops.diag",
        switches=int8_form("with_symmetric_zero_fill"),
        kind="low_sqnr",
        op="MATRIX_DIAG",
        cause=causes.ZERO_FILL,
    ),
    "zeros around what is scattered": Fault(
        model="ops.scatter",
        switches=int8_form("with_symmetric_zero_fill"),
        kind="low_sqnr",
        op="SCATTER_ND",
        cause=causes.ZERO_FILL,
    ),
}
SLOW = ("mask of padding", "dead convolution", "ids as floats, tf_keras", "layer normalization", "dead sum, int16x8")
SLOW += ("zeros around a diagonal", "comparison with a constant")


def source_of(fault: Fault) -> Traced:
    if isinstance(fault.model, str):
        return traced(by_name()[fault.model])
    model, samples = fault.model()
    last = {name: array[-16:] for name, array in samples.items()}
    trace = tfq.conversion.trace(model)
    return Traced(trace, samples, last, trace.output_names, of_keras(model, last))


@contextlib.contextmanager
def switched_off(switches: Switches) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for place, stand_in in switches.items():
            patch.setattr(place, stand_in)
        yield


def converted(model: Any, samples: Any, **settings: Any) -> Any:
    with warnings.catch_warnings(action="ignore", category=TfqWarning):
        return convert_with_record(model, samples, tfq.ConversionConfig(**settings), remedies=False)


def is_right(source: Traced, content: bytes) -> bool:
    """Check whether a plain interpreter runs the file, and agrees with Keras."""
    try:
        worst, faults = compared(source, run_plainly(content, source.compared))
    except DoesNotRun:
        return False
    assert bool(faults) == (worst < LIMIT_DB or "constant" in faults)
    return not faults


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAULTS])
def test_a_fault_is_caught_and_named_without_its_fix(name):
    fault = FAULTS[name]
    source = source_of(fault)

    fixed = converted(source.trace, source.samples, scheme=fault.scheme)
    with switched_off(fault.switches):
        result = converted(source.trace, source.samples, scheme=fault.scheme)

    assert is_right(source, fixed.content) and not is_right(source, result.content)
    assert fixed.verification.ok, fixed.verification.to_text()
    problem = result.verification.collapsed[0]
    named = problem.op.split(" ")[2] if problem.op else None
    assert (problem.kind, named, problem.cause) == (fault.kind, fault.op, fault.cause), problem


def plainly(content: bytes, samples: np.ndarray) -> np.ndarray:
    """Return the only output of a file with one input."""
    (name,) = tflite.read(content).input_names
    (output,) = run_plainly(content, {name: samples}).values()
    return output.values


def sqnr_db(expected: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(expected.var() / np.mean((expected - got) ** 2)))


def images() -> np.ndarray:
    return np.kron(np.random.default_rng(0).uniform(0, 16, (40, 4, 4, 1)), np.ones((1, 2, 2, 1))).astype(np.float32)


def test_operator_codes_of_the_old_schema_are_caught():
    pytest.importorskip("litert_quantizer")
    old = with_old_operator_codes(FLOATING)
    fixed = converted(old, images(), quantizer="litert")
    with switched_off({"tfq.tflite.edit.normalize_operator_codes": lambda model: None}):
        result = converted(old, images(), quantizer="litert")

    assert sqnr_db(plainly(FLOATING, images()), plainly(fixed.content, images())) > 20 and fixed.verification.ok
    with pytest.raises(DoesNotRun):
        plainly(result.content, images())
    (problem,) = result.verification.collapsed
    assert problem.kind == "does_not_run" and problem.op_index == 0


def test_a_fused_lstm_without_its_inner_tensors_is_caught():
    weights.rng = np.random.default_rng(0)
    floating = lstm()
    fixed = converted(floating, SEQUENCES)
    with switched_off({"tfq.ptq.calibration.with_intermediate_tensors": lambda model: model}):
        result = converted(floating, SEQUENCES)

    assert sqnr_db(plainly(floating, SEQUENCES), plainly(fixed.content, SEQUENCES)) > 20 and fixed.verification.ok
    with pytest.raises(DoesNotRun):
        plainly(result.content, SEQUENCES)
    (problem,) = result.verification.collapsed
    assert (problem.kind, problem.op.split(" ")[2]) == ("does_not_run", "UNIDIRECTIONAL_SEQUENCE_LSTM")


def test_ranges_that_clip_are_caught(tmp_path):
    """The range file is that of the same images, fifty times darker."""
    converted(FLOATING, images() / 50).ranges.save(tmp_path / "ranges.json")
    ranges = tfq.CalibrationConfig(ranges=str(tmp_path / "ranges.json"))
    fixed, result = converted(FLOATING, images()), converted(FLOATING, images(), calibration=ranges)

    expected = plainly(FLOATING, images())
    assert sqnr_db(expected, plainly(fixed.content, images())) > 20 and fixed.verification.ok
    assert sqnr_db(expected, plainly(result.content, images())) < 20
    (problem,) = result.verification.collapsed
    # The input is already clipped; the first op reads it.
    assert (problem.kind, problem.op_index, problem.cause) == ("low_sqnr", 0, causes.CLIPPED)


def root_of(offset: int) -> bytes:
    """Return sqrt(x), computed in float from quantized values that an earlier op has shifted by `offset` steps."""
    scale, shape = 0.01, (1, 4)
    tensors = {
        "x": T("int8", shape, scale, -128),
        "shift": T("int8", shape, scale, 0, np.full(shape, -offset, np.int8)),
        "shifted": T("int8", shape, scale, -offset),
        "real": T("float32", shape),
        "y": T("float32", shape),
    }
    ops = [Call("ADD", ["x", "shift"], ["shifted"]), Call("DEQUANTIZE", ["shifted"], ["real"])]
    return build(tensors, [*ops, Call("SQRT", ["real"], ["y"])], ["x"], ["y"])


@pytest.mark.parametrize(("offset", "kinds"), [(0, []), (100, ["not_finite"])])
def test_an_output_that_holds_nan_is_caught(offset, kinds):
    data = np.random.default_rng(0).uniform(0.1, 1.2, (20, 1, 4)).astype(np.float32)
    content = root_of(offset)

    result = verify(content, [{"x": item} for item in data], [[np.sqrt(item)] for item in data])

    assert bool(np.isnan(plainly(content, data[:, 0])).any()) == bool(kinds)
    assert [problem.kind for problem in result.collapsed] == kinds


def test_indices_that_are_quantized_are_caught_in_a_minimized_file():
    """x -> ADD -> CAST -> GATHER: the ids that an app feeds are rounded to steps of 7.8."""
    table = np.arange(2000, dtype=np.float32).reshape(-1, 1)
    tensors = {
        "ids": T("int8", (1, 4), 7.84, -128),
        "real": T("float32", (1, 4)),
        "whole": T("int32", (1, 4)),
        "table": T("float32", table.shape, values=table),
        "y": T("float32", (1, 4, 1)),
    }
    ops = [Call("DEQUANTIZE", ["ids"], ["real"]), Call("CAST", ["real"], ["whole"])]
    content = build(tensors, [*ops, Call("GATHER", ["table", "whole"], ["y"])], ["ids"], ["y"])
    ids = np.random.default_rng(0).integers(0, 1990, (20, 1, 4)).astype(np.float32)

    result = verify(content, [{"ids": item} for item in ids], [[table[item.astype(int)]] for item in ids])

    assert np.mean(plainly(content, ids[:, 0]).reshape(20, 4) == ids[:, 0]) < 0.5
    (problem,) = result.collapsed
    assert (problem.kind, problem.op_index, problem.cause) == ("quantized_index", 2, causes.INDEX_QUANTIZED)
    assert "'ids'" in problem.message

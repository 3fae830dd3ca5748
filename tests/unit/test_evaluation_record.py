# SPDX-License-Identifier: Apache-2.0
"""The record of an evaluation and its bounds; the comparison of two backends' outputs."""

import dataclasses
import json

import numpy as np
import pytest
from golden_models import golden
from messages import refused

from tfq.config import EvaluationConfig, RequireConfig
from tfq.errors import BackendError, InputError, RequirementError
from tfq.evaluation import (
    EvaluationRecord,
    check_backends,
    check_requirements,
    compare_backends,
    compare_outputs,
    evaluate_model,
    missed_requirements,
    requirements_of,
)
from tfq.evaluation.record import NO_REFERENCE

RECORD = EvaluationRecord(
    accuracy=0.75,
    accuracy_reason=None,
    metric="top1",
    agreement=0.97,
    agreement_reason=None,
    output_sqnr_db=21.5,
    output_sqnr_db_reason=None,
    reference_accuracy=0.76,
    accuracy_drop=0.76 - 0.75,
    num_examples=1000,
    compared=1000,
    missing=0,
    skipped={},
    model_bytes=98496,
    gzip_bytes=81310,
    latency_p50_ms=0.14,
    latency_p90_ms=0.2,
    latency_p99_ms=0.3,
    latency_reason=None,
    num_threads=1,
    backend="local",
    xnnpack=True,
    total_ops=16,
    delegated_ops=14,
    clipped_input_fraction=0.0,
    unused_range_fraction=0.25,
    metrics={"top1": {"title": "top-1", "direction": "higher", "unit": "fraction", "interval": [0.722, 0.776]}},
)
WITHOUT_LABELS = dataclasses.replace(
    RECORD, accuracy=None, accuracy_reason="the data has no labels", reference_accuracy=None, accuracy_drop=None
)


@pytest.mark.parametrize("as_dict", [False, True])
def test_bounds_that_are_met_raise_no_error(as_dict):
    require = RequireConfig(min_accuracy=0.75, max_accuracy_drop=0.01, min_agreement=0.97)
    assert RECORD.accuracy_drop > 0.01  # by float rounding, which nobody intends
    check_requirements(RECORD.to_dict() if as_dict else RECORD, require)
    check_requirements(WITHOUT_LABELS, RequireConfig(min_agreement=0.9))
    check_requirements(WITHOUT_LABELS, RequireConfig())


def test_every_missed_bound_is_listed_with_both_numbers():
    require = RequireConfig(min_accuracy=0.8, max_accuracy_drop=0.005, min_agreement=0.98)
    missed = missed_requirements(RECORD, require)
    numbers = [("accuracy", "0.7500", "0.8"), ("agreement", "0.9700", "0.98"), ("accuracy_drop", "0.0100", "0.005")]
    assert len(missed) == len(numbers)
    assert all(word in sentence for sentence, words in zip(missed, numbers, strict=True) for word in words)
    with refused(RequirementError, field="require", got=tuple(missed_requirements(RECORD, require))):
        check_requirements(RECORD, require)


def test_a_bound_that_cannot_be_checked_is_missed_and_says_why():
    missed = missed_requirements(WITHOUT_LABELS, RequireConfig(min_accuracy=0.1, max_accuracy_drop=1.0))
    assert [sentence.split()[0] for sentence in missed] == ["min_accuracy", "max_accuracy_drop"]
    assert all(sentence.endswith("the data has no labels") for sentence in missed)


def test_the_record_is_plain_json_and_fits_a_screen():
    record = dataclasses.replace(RECORD, warnings=("one",), outputs=({"name": "y", "sqnr_db": 21.5, "reason": None},))
    values = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    assert values == record.to_dict()
    assert values["outputs"] == [{"name": "y", "sqnr_db": 21.5, "reason": None}]
    text = record.to_text()
    for part in (
        "75.00% (95% interval 72.20% to 77.60%)",
        "97.00%",
        "21.5 dB",
        "98,496 bytes",
        "0.140 / 0.200 / 0.300 ms",
        "14 of 16 ops delegated",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100
    assert "the data has no labels" in WITHOUT_LABELS.to_text()


def test_the_text_leaves_out_comparisons_that_were_not_requested():
    missing = {"agreement": None, "output_sqnr_db": None, "reference_accuracy": None}
    reasons = {"agreement_reason": NO_REFERENCE, "output_sqnr_db_reason": NO_REFERENCE}
    text = dataclasses.replace(RECORD, **missing, **reasons).to_text()
    assert not any(word in text for word in ("agreement", "SQNR", "reference"))
    reasons = {"agreement_reason": "no class", "output_sqnr_db_reason": "identical"}
    text = dataclasses.replace(RECORD, **missing, **reasons).to_text()
    assert "agreement    no class" in text and "output SQNR  identical" in text


def compared(a, b):
    return compare_outputs(["y", "z"], a, b, backend_a="local", backend_b="qemu:cortex-a53")


def test_quantized_values_are_compared_in_lsb_without_overflow():
    a = [np.array([[-128, 0, 5]], np.int8), np.array([[0, 255]], np.uint8)]
    b = [np.array([[127, 0, 4]], np.int8), np.array([[255, 255]], np.uint8)]
    record = compared(a, b)
    assert (record.max_abs_error_lsb, record.num_different, record.compared, record.num_examples) == (255, 3, 5, 1)
    assert [output["num_different"] for output in record.outputs] == [2, 1]
    assert record.to_text() == "qemu:cortex-a53 compared with local: max 255 LSB, 3 of 5 values differ, 1 examples"
    same = compared(a, a)
    assert (same.max_abs_error_lsb, same.num_different) == (0, 0)


def test_wide_integers_are_compared_without_overflow():
    lowest, highest = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    record = compare_outputs(["y"], [np.array([lowest])], [np.array([highest])], backend_a="a", backend_b="b")
    assert record.max_abs_error_lsb == highest - lowest


def test_a_float_output_has_no_lsb():
    a = [np.array([[1, 2]], np.int8), np.array([[0.5, 1.0]], np.float32)]
    b = [np.array([[1, 3]], np.int8), np.array([[0.5, 1.25]], np.float32)]
    record = compared(a, b)
    assert (record.max_abs_error_lsb, record.num_different, record.compared) == (1, 1, 2)
    assert record.skipped == {"z": "a float32 output has no LSB"}
    assert record.outputs[1]["max_abs_error"] == 0.25
    assert json.loads(json.dumps(record.to_dict(), allow_nan=False)) == record.to_dict()
    floats = compare_outputs(["z"], a[1:], b[1:], backend_a="a", backend_b="b")
    assert (floats.max_abs_error_lsb, floats.compared) == (None, 0)
    assert floats.to_text() == "b compared with a: z: max error 0.25, 1 examples"


def test_outputs_that_cannot_be_compared_are_refused():
    with refused(InputError, field="y", expected="finite numbers"):
        compare_outputs(["y"], [np.array([[np.nan]])], [np.array([[1.0]])], backend_a="a", backend_b="b")
    with refused(InputError, field="y", expected=("int8", (1,)), got=("int8", (2,))):
        compare_outputs(["y"], [np.zeros(1, np.int8)], [np.zeros(2, np.int8)], backend_a="a", backend_b="b")


def test_an_unavailable_runner_is_an_error_only_if_requested(monkeypatch, tmp_path, golden):
    monkeypatch.setenv("TFQ_CACHE_DIR", str(tmp_path))
    model, x = (golden / "digits_int8.tflite").read_bytes(), np.full((2, 8, 8, 1), 8.0)
    with refused(BackendError, word="tfq.backends.qemu.sysroot"):
        compare_backends(model, x, "local", "qemu:cortex-a53")
    check_backends(EvaluationConfig(backends=("qemu:cortex-a53",)))
    with refused(BackendError, word="qemu:cortex-a53"):
        check_backends(EvaluationConfig(backend="qemu:cortex-a53"))
    with refused(InputError, field="evaluation.backends", got="qemu:cortex-a5", word="'qemu:cortex-a53'"):
        check_backends(EvaluationConfig(backends=("qemu:cortex-a5",)))


COSTS = dataclasses.replace(
    RECORD,
    backend="chip",
    how="estimated",
    xnnpack=None,
    memory_bytes={"arena": 5392, "arena.head": 2304, "sram": 3856, "off_chip_flash": 4752, "on_chip_flash": 16},
    figures={"cycles": 10713},
    unaccelerated={"op #2 ARG_MAX (Identity)": "too deep"},
    caveats=("nothing was run",),
)


@pytest.mark.parametrize(
    ("bound", "limit", "value"),
    [
        ("max_arena_bytes", 5392, 5392),
        ("max_sram_bytes", 3856, 3856),
        ("max_flash_bytes", 4768, 4768),
        ("min_accelerated_fraction", 0.875, 14 / 16),
    ],
)
def test_bounds_on_costs_are_met_and_missed(bound, limit, value):
    (met,) = requirements_of(COSTS, RequireConfig(**{bound: limit}))
    assert (met.holds, met.value) == (True, value)
    tighter = limit - 1 if bound.startswith("max") else limit + 0.01
    with refused(RequirementError, field="require", word=f"{value:,}" if isinstance(value, int) else f"{value:.4f}"):
        check_requirements(COSTS, RequireConfig(**{bound: tighter}))


@pytest.mark.parametrize("bound", ["max_arena_bytes", "max_sram_bytes", "max_flash_bytes", "min_accelerated_fraction"])
def test_bound_on_an_unreported_cost_is_missed(bound):
    unknown = dataclasses.replace(RECORD, memory_reason="not measured", delegated_ops=None)
    (missed,) = requirements_of(unknown.to_dict(), RequireConfig(**{bound: 1}))
    assert (missed.holds, missed.value) == (False, None)
    assert "local" in missed.reason


def test_text_has_costs_with_how_they_were_obtained_and_their_caveats():
    text = " ".join(COSTS.to_text().split())
    assert "arena 5,392 bytes (estimated): head 2,304" in text
    assert "cycles 10,713 (estimated)" in text
    assert "op #2 ARG_MAX (Identity): too deep" in text
    assert "note nothing was run" in text
    assert "XNNPACK" not in text


@pytest.mark.parametrize(
    "settings",
    [
        {"reference": "float.tflite"},
        {"metric": ("top1",)},
        {"require": RequireConfig(min_accuracy=0)},
    ],
)
def test_an_estimator_is_refused_where_outputs_are_needed(settings):
    config = EvaluationConfig(backend="ethos-u55-128", **settings)
    with refused(InputError, field="evaluation.backend", got="ethos-u55-128") as caught:
        check_backends(config)
    assert "local" in caught.value.expected and "ethos-u55-128" not in caught.value.expected
    with refused(InputError, field="evaluation.backend"):
        evaluate_model(golden("digits_int8"), np.zeros((1, 8, 8, 1)), config)

# SPDX-License-Identifier: Apache-2.0
"""Bounds on every figure that evaluations and benchmarks report, declared where the figure is registered."""

import dataclasses

import gate_models
import pytest
from golden_models import golden
from messages import refused

from tfq.config import BenchmarkRequireConfig, EvaluationConfig, RequireConfig
from tfq.errors import RequirementError
from tfq.evaluation import (
    BenchmarkRecord,
    benchmark_requirements,
    check_requirements_on_backends,
    digest_of,
    evaluate_model,
    requirements_of,
    requirements_on_backends,
)
from tfq.evaluation.benchmark_record import ModelTimes
from tfq.evaluation.figures import FIGURES
from tfq.evaluation.portability_record import NOT_COUNTED


@pytest.fixture(scope="module")
def evaluated():
    """Return the evaluation of a small model, as a record has it."""
    import numpy as np

    data = np.random.default_rng(0).uniform(0, 16, (4, 8, 8, 1)).astype(np.float32)
    return evaluate_model(golden("digits_int8"), data, EvaluationConfig(num_runs=0)).to_dict()


def row(status="ran", **values):
    """Return a row of the portability table."""
    difference = {"max_abs_error_lsb": 3, "num_different": 2, "compared": 40} if status == "ran" else None
    return {
        "status": status,
        "how": "emulated",
        "reason": None if status == "ran" else "there is no GPU",
        "difference": difference,
        "agreement": 0.75 if status == "ran" else None,
        "instructions_reason": NOT_COUNTED,
        **values,
    }


def verdicts(evaluated, require, rows=None, digest=None, backends=()):
    rows = {name: {"evaluation": evaluated, **item} for name, item in (rows or {}).items()}
    config = EvaluationConfig(require=RequireConfig(**require), backends=backends)
    return {item.name: item for item in requirements_on_backends(evaluated, {"rows": rows}, config, digest)}


def test_every_bound_belongs_to_a_registered_figure():
    declared = {name for figure in FIGURES for name in (figure.bound, *figure.other_bounds) if name}
    fields = {field.name for cls in (RequireConfig, BenchmarkRequireConfig) for field in dataclasses.fields(cls)}
    assert declared == fields


@pytest.mark.parametrize(
    ("require", "holds"),
    [
        ({"max_model_bytes": 9184}, True),
        ({"max_model_bytes": 9183}, False),
        ({"max_gzip_bytes": 10_000}, True),
        ({"max_gzip_bytes": 100}, False),
        ({"max_clipped_input_fraction": 0.5}, True),
        ({"max_latency_ms": 1e9}, False),  # nothing was timed
    ],
)
def test_bounds_on_the_evaluation(evaluated, require, holds):
    (name,) = require
    assert verdicts(evaluated, require)[name].holds == holds
    (item,) = requirements_of(evaluated, RequireConfig(**require))
    assert item.holds == holds


def test_bounds_on_ops_read_the_digest_and_are_missed_without_it(evaluated):
    require = {"max_float_ops": 0, "max_total_ops": 9}
    good = verdicts(evaluated, require, digest=digest_of(golden("digits_int8")))
    assert [(item.value, item.holds) for item in good.values()] == [(9, True), (0, True)]
    bad = verdicts(evaluated, require, digest=digest_of(gate_models.with_float_layer()))
    assert [(item.value, item.holds) for item in bad.values()] == [(12, False), (1, False)]
    assert not any(item.holds or item.value is not None for item in verdicts(evaluated, require).values())


def test_bounds_on_the_difference_from_xnnpack_apply_to_each_backend(evaluated):
    require = {"max_difference_lsb": 2, "max_different_fraction": 0.1, "min_same_class": 0.7}
    result = verdicts(evaluated, require, {"gpu": row()})
    assert {name: item.holds for name, item in result.items()} == {
        "max_difference_lsb on gpu": False,
        "max_different_fraction on gpu": True,
        "min_same_class on gpu": True,
    }


def test_a_named_backend_that_did_not_run_misses_its_bounds(evaluated):
    rows = {"tflm": row(difference={"max_abs_error_lsb": 0}), "gpu": row("not run")}
    require = {"max_difference_lsb": 2}
    assert set(verdicts(evaluated, require, rows)) == {"max_difference_lsb on tflm"}
    named = verdicts(evaluated, require, rows, backends=("gpu", "tflm"))
    assert not named["max_difference_lsb on gpu"].holds and named["max_difference_lsb on gpu"].reason
    with refused(RequirementError, word="gpu"):
        config = EvaluationConfig(require=RequireConfig(**require), backends=("gpu", "tflm"))
        check_requirements_on_backends(
            evaluated, {"rows": {name: {"evaluation": evaluated, **item} for name, item in rows.items()}}, config
        )


def test_a_bound_on_instructions_needs_a_backend_that_counts(evaluated):
    counted = row(instructions={"instructions": 1000})
    require = {"max_instructions": 999}
    both = verdicts(evaluated, require, {"gpu": row(), "qemu": counted}, backends=("gpu", "qemu"))
    assert {name: item.value for name, item in both.items()} == {"max_instructions on qemu": 1000}
    assert not both["max_instructions on qemu"].holds
    (none,) = verdicts(evaluated, require, {"gpu": row()}).values()
    assert none.value is None and not none.holds


def test_estimators_have_no_bounds_on_outputs(evaluated):
    rows = {"ethos-u55-128": row(how="estimated", agreement=None, difference=None)}
    (only,) = verdicts(evaluated, {"min_same_class": 0.5}, rows, backends=("ethos-u55-128",)).values()
    assert only.name == "min_same_class" and only.value is None


@pytest.mark.parametrize(
    ("require", "holds"),
    [
        ({"max_latency_ms": 2.0}, True),
        ({"max_latency_ms": 0.5}, False),
        ({"max_initialization_ms": 4.0}, False),
        ({"max_model_bytes": 100}, True),
        ({"max_instructions": 5}, False),
        ({"min_examples_per_second": 1.0}, False),  # there is no workload, so no batch size
    ],
)
def test_bounds_on_a_benchmark(require, holds):
    times = ModelTimes(name="m", kernels="xnnpack", model_bytes=100, inputs="zeros", p50_ms=1.0, initialization_ms=5.0)
    record = BenchmarkRecord(backend="local", num_threads=1, models=(times,), ratios=())
    (item,) = benchmark_requirements(record, BenchmarkRequireConfig(**require))["m"]
    assert item.holds == holds

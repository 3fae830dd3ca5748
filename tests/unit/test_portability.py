# SPDX-License-Identifier: Apache-2.0
"""The portability table: every backend has a row, and wrong results, failures and missing backends show in it."""

import dataclasses
import json

import numpy as np
import pytest
from messages import refused

from tfq import registry
from tfq.backends import Backend, BackendKind, BackendResult, make_backend
from tfq.config import EvaluationConfig, RequireConfig
from tfq.errors import BackendError, InputError, ModelError, RequirementError
from tfq.evaluation import (
    assess_backends,
    check_requirements_on_backends,
    evaluate_model,
    missed_on_backends,
)
from tfq.registry import register


class Shifted(Backend):
    """This machine's XNNPACK with one output value of each example changed by `by` steps."""

    by = 40

    def __init__(self, address: str) -> None:
        self.address = address

    def assess(self, request):
        result = make_backend("local").assess(dataclasses.replace(request, kernels="xnnpack", num_runs=0))
        (output,) = result.computed_outputs()
        changed = output.copy()
        changed[:, 3] = np.clip(changed[:, 3].astype(int) + self.by, -128, 127)
        return BackendResult(
            how="measured", outputs=(changed,), total_ops=9, delegated_ops=8, unaccelerated={"op #4": "too large"}
        )


class Failing(Backend):
    """A backend on which no model runs."""

    def __init__(self, address: str) -> None:
        self.address = address

    def assess(self, request):
        raise {"model": ModelError, "input": InputError, "backend": BackendError}[self.address](f"{self.address} error")


class Estimator(Backend):
    """An estimator of cost."""

    def __init__(self, address: str) -> None:
        self.address = address

    def assess(self, request):
        return BackendResult(
            how="estimated", outputs_reason="nothing is executed", memory_bytes={"sram": 1234}, figures={"cycles": 5}
        )


@pytest.fixture
def backends():
    """Register the backends of this module."""
    facts = {"shifted": Shifted, "failing": Failing, "costs": Estimator}
    with registry.temporary():
        for name, cls in facts.items():
            kind = register(
                BackendKind(
                    name=name,
                    help=name,
                    open=cls,
                    how="estimated" if cls is Estimator else "measured",
                    computes_outputs=cls is not Estimator,
                    address="KIND" if cls is Failing else "",
                    needs_address=cls is Failing,
                )
            )
            cls.kind = kind
        yield


@pytest.fixture
def model(golden):
    return (golden / "digits_int8.tflite").read_bytes()


@pytest.fixture
def examples():
    generator = np.random.default_rng(0)
    return generator.uniform(0, 16, (40, 8, 8, 1)).astype(np.float32), generator.integers(0, 10, 40)


def table_of(model, examples, *backends, **settings):
    return assess_backends(model, examples, EvaluationConfig(backends=backends, num_runs=0, **settings))


def test_wrong_backend_shows_its_differences_and_lost_classes(model, examples, backends):
    table = table_of(model, examples, "local", "shifted")
    here, wrong = table.rows
    assert (here.status, here.difference.num_different, here.agreement) == ("ran", 0, 1.0)
    # Oracle: NumPy on the raw outputs of this machine.
    from tfq.backends import RunRequest
    from tfq.data import as_split
    from tfq.evaluation import prepare_inputs
    from tfq.tflite import read

    arrays = prepare_inputs(read(model), as_split(examples)).arrays
    (output,) = make_backend("local").assess(RunRequest(model=model, inputs=arrays)).outputs
    shifted = output.astype(int)
    shifted[:, 3] = np.clip(shifted[:, 3] + 40, -128, 127)
    assert wrong.difference.num_different == np.count_nonzero(shifted != output)
    assert wrong.difference.max_abs_error_lsb == np.abs(shifted - output).max()
    assert wrong.agreement == np.mean(shifted.argmax(1) == output.argmax(1)) < 1
    assert wrong.evaluation.accuracy == np.mean(shifted.argmax(1) == examples[1])
    assert (wrong.fully_accelerated, table.num_examples) == (False, 40)
    assert "op #4 runs on the CPU: too large" in table.to_text()


def test_yardstick_is_builtin_kernels_against_xnnpack(model, examples, backends):
    table = table_of(model, examples, "local")
    builtin = evaluate_model(model, examples, EvaluationConfig(xnnpack=False, num_runs=0))
    (row,) = table_of(model, examples, "local", xnnpack=False).rows
    assert table.yardstick.num_different == row.difference.num_different > 0
    assert row.evaluation.accuracy == builtin.accuracy


@pytest.fixture
def no_emulator(tmp_path, monkeypatch):
    """Hide an installed emulator."""
    monkeypatch.setenv("TFQ_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("no_emulator")
def test_failing_backends_have_a_reason_and_others_still_run(model, examples, backends):
    names = ("failing:model", "failing:input", "failing:backend", "shifted", "qemu:cortex-a53")
    rows = {row.backend: row for row in table_of(model, examples, *names).rows}
    assert [rows[name].status for name in names] == ["failed", "failed", "not run", "ran", "not run"]
    assert rows["failing:model"].reason == "model error" and rows["failing:model"].evaluation is None
    assert "tfq.backends.qemu.sysroot" in rows["qemu:cortex-a53"].reason


def test_estimator_has_costs_and_no_differences(model, examples, backends):
    table = table_of(model, examples, "costs")
    (row,) = table.rows
    assert (row.how, row.difference, row.difference_reason) == ("estimated", None, "nothing is executed")
    assert "not executed" in table.to_text() and "sram 1,234 B" in table.to_text() and "5 cycles" in table.to_text()


@pytest.mark.usefixtures("no_emulator")
def test_default_is_all_available_backends_and_none_is_no_table(model, examples, backends):
    table = assess_backends(model, examples, EvaluationConfig(num_runs=0, backends_limit=7))
    assert {"local", "shifted", "costs"} <= {row.backend for row in table.rows}
    assert "failing" not in {row.backend for row in table.rows}  # its address has no default
    assert "qemu:cortex-a76" in table.not_available and table.num_examples == 7
    empty = table_of(model, examples, "none")
    assert (empty.rows, empty.not_available, empty.to_text()) == ((), {}, "")
    with refused(InputError, field="evaluation.backends", got=("none", "local")):
        table_of(model, examples, "none", "local")


@pytest.mark.usefixtures("no_emulator")
def test_bounds_on_a_missing_backend_fail_unless_it_is_only_reported(model, examples):
    record = evaluate_model(model, examples, EvaluationConfig(num_runs=0))
    require = RequireConfig(min_accuracy=0, min_same_class=0.9)
    config = EvaluationConfig(num_runs=0, backends=("local", "qemu:cortex-a76"), require=require)
    table = assess_backends(model, examples, config)
    missed = missed_on_backends(record, table, config)
    assert [sentence.partition(" ")[0] for sentence in missed] == ["min_accuracy", "min_same_class"]
    reported = dataclasses.replace(config, missing_backends="report")
    assert missed_on_backends(record, table, reported) == []


def test_bounds_apply_to_named_backends_and_memory_to_all(model, examples, backends):
    from tfq.data import as_split
    from tfq.evaluation import reference_outputs

    # The model's own classes are the labels, so that it is always right.
    (outputs,) = reference_outputs(model, as_split(examples)).outputs
    examples = examples[0], outputs.argmax(1)
    record = evaluate_model(model, examples, EvaluationConfig(num_runs=0))
    bounds = RequireConfig(min_accuracy=1.0, max_sram_bytes=1000)
    config = EvaluationConfig(num_runs=0, backends=("shifted", "failing:model", "costs"), require=bounds)
    table = assess_backends(model, examples, config)
    missed = missed_on_backends(record, table, config)
    assert [sentence.partition(" ")[0] for sentence in missed] == ["accuracy", "min_accuracy", "sram_bytes"]
    assert "accuracy on shifted" in missed[0] and "on failing:model" in missed[1] and "sram_bytes on costs" in missed[2]
    with refused(RequirementError, field="require"):
        check_requirements_on_backends(record, table, config)

    by_default = dataclasses.replace(config, backends=())
    missed = missed_on_backends(record, table, by_default)
    assert len(missed) == 1 and "sram_bytes on costs is 1,234" in missed[0]
    without = table_of(model, examples, "local")
    (missed,) = missed_on_backends(record, without, by_default)
    assert missed.startswith("max_sram_bytes 1,000 cannot be checked")


def test_table_is_json_and_keeps_the_latency_of_the_evaluation(model, examples, backends):
    config = EvaluationConfig(backends=("local",), num_runs=3)
    evaluated = evaluate_model(model, examples, config)
    table = assess_backends(model, examples, config, evaluated=evaluated)
    values = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert values["rows"]["local"]["evaluation"]["latency_p50_ms"] == evaluated.latency_p50_ms
    assert values["rows"]["local"]["difference"]["max_abs_error_lsb"] == 0
    memory = values["rows"]["local"]["evaluation"]["memory_bytes"]
    assert memory["peak_rss"] > memory["xnnpack_packed_weights"] > 0
    assert f"local: peak rss {memory['peak_rss']:,} B, xnnpack packed weights" in table.to_text()

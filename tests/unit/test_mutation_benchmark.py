# SPDX-License-Identifier: Apache-2.0
"""benchmarks/mutations.py sees what it looks for: crashes, other exit codes, long and large runs."""

import importlib.util
import signal
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "mutations.py"


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("mutations_benchmark", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_crash_of_a_worker_is_a_finding(benchmark):
    worker = benchmark.Worker(())
    worker.process.send_signal(signal.SIGSEGV)
    worker.process.wait()
    result = worker.run("digits_int8", 0)
    assert result["code"] == "SIGSEGV"
    assert benchmark.finding(result)
    assert not worker.alive


@pytest.mark.parametrize("change", [{"code": 3}, {"code": "timeout"}, {"cpu_secs": 11}, {"mb": 1001}])
def test_a_result_outside_of_the_limits_is_a_finding(benchmark, change):
    result = {"code": 2, "cpu_secs": 9, "mb": 999}
    assert not benchmark.finding(result)
    assert benchmark.finding({**result, **change})


def test_all_kinds_are_in_every_part_of_the_plan(benchmark):
    keys = list(benchmark.plan(20, 10))
    assert len(set(keys)) == len(keys) == 30
    assert {kind for kind, _ in keys[:10]} == {*benchmark.CONTAINERS, *benchmark.FLATBUFFERS}

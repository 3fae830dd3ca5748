# SPDX-License-Identifier: Apache-2.0
"""Emulated ARM against this machine. Installs the emulator, as a user does, where it is not installed yet."""

import subprocess
import threading

import numpy as np
import pytest
from cifar10 import read_test_split
from sklearn.datasets import load_digits

from tfq.config import EvaluationConfig
from tfq.errors import InputError, RunnerError
from tfq.evaluation import compare_runners, evaluate_model
from tfq.runners import RunRequest, child, make_runner, sysroot

CPUS = ("cortex-a53", "cortex-a76")


@pytest.fixture(scope="module", autouse=True)
def emulator():
    """The installed emulator."""
    return sysroot.install()


@pytest.fixture(scope="module")
def digits_model(golden):
    return (golden / "digits_int8.tflite").read_bytes()


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return images[:256].reshape(-1, 8, 8, 1).astype(np.float32), labels[:256]


@pytest.mark.parametrize("cpu", CPUS)
def test_arm_is_within_1_lsb_of_x86_on_the_golden_digits_model(cpu, digits_model, digits):
    parity = compare_runners(digits_model, digits, "local", f"qemu:{cpu}", 256)
    assert (parity.num_examples, parity.compared) == (256, 2560)
    assert parity.max_abs_error_lsb <= 1
    # A run that computed nothing would differ by nothing: the outputs tell the digits apart.
    arm = evaluate_model(digits_model, digits, EvaluationConfig(runner=f"qemu:{cpu}", limit=64))
    local = evaluate_model(digits_model, digits, EvaluationConfig(limit=64, num_runs=0))
    assert arm.accuracy == pytest.approx(local.accuracy, abs=1 / 64)
    assert arm.accuracy > 0.9


@pytest.mark.parametrize("cpu", CPUS)
def test_arm_is_within_1_lsb_of_x86_on_resnet8_over_256_real_images(cpu, shared):
    model = (shared / "models" / "mlperf_tiny_resnet8_cifar10_int8.tflite").read_bytes()
    parity = compare_runners(model, read_test_split(shared, 256), "local", f"qemu:{cpu}", 256)
    assert (parity.num_examples, parity.compared) == (256, 2560)
    assert parity.max_abs_error_lsb <= 1
    assert parity.num_different <= 0.01 * parity.compared


def test_an_emulated_run_never_has_a_latency_and_says_where_it_ran(digits_model, digits):
    config = EvaluationConfig(runner="qemu:cortex-a53", limit=2, warmup_runs=5, num_runs=50)
    record = evaluate_model(digits_model, digits, config)
    assert record.emulated
    assert (record.latency_p50_ms, record.latency_p90_ms, record.latency_p99_ms) == (None, None, None)
    assert "emulator" in record.latency_reason
    assert record.machine["machine"] == "aarch64"
    assert record.machine["cpu"] == "cortex-a53"
    assert record.machine["emulator"].startswith("qemu-aarch64 ")
    assert (record.total_ops, record.delegated_ops) == (9, 7)


def test_each_cpu_sees_its_own_cpuinfo_while_both_run(emulator):
    code = (
        "import time; text = open('/proc/cpuinfo').read(); time.sleep(0.5);"
        "print(text == open('/proc/cpuinfo').read()); print(text)"
    )
    told: dict[str, str] = {}

    def ask(cpu):
        command = [*emulator.command(cpu), "-c", code]
        told[cpu] = subprocess.run(command, capture_output=True, text=True, env=emulator.environment()).stdout

    threads = [threading.Thread(target=ask, args=(cpu,)) for cpu in CPUS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cpu, part in zip(CPUS, ("0xd03", "0xd0b"), strict=True):
        assert told[cpu].startswith("True\n")
        assert f"CPU part\t: {part}" in told[cpu]


def test_errors_inside_the_emulator_are_told_as_those_outside(digits_model, golden, tmp_path, monkeypatch):
    runner = make_runner("qemu:cortex-a76")
    with pytest.raises(InputError, match=r"qemu:cortex-a76: .*takes shape \[1, 8, 8, 1\]"):
        runner.run(RunRequest(model=digits_model, inputs=(np.zeros((1, 8, 8), np.int8),)))
    with pytest.raises(RunnerError, match=r"qemu:cortex-a76: the interpreter failed: .*custom op"):
        custom = (golden / "custom_op.tflite").read_bytes()
        runner.run(RunRequest(model=custom, inputs=(np.zeros((1, 8, 8, 1), np.float32),)))
    crashing = tmp_path / "crashing_worker.py"
    crashing.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(child, "WORKER", crashing)
    with pytest.raises(RunnerError, match="qemu:cortex-a76: the interpreter was killed by signal SIGSEGV"):
        runner.run(RunRequest(model=digits_model, inputs=(np.zeros((1, 8, 8, 1), np.int8),)))

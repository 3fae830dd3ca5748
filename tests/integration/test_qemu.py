# SPDX-License-Identifier: Apache-2.0
"""Emulated ARM compared with this machine. Installs the emulator as a user does, if it is missing."""

import dataclasses
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from cifar10 import read_test_split
from messages import refused
from sklearn.datasets import load_digits

from tfq.backends import RunRequest, child, make_backend
from tfq.backends.qemu import apt, sysroot, sysroot_build
from tfq.backends.target.instructions import MARKER
from tfq.config import CalibrationConfig, ConversionConfig, EvaluationConfig
from tfq.conversion import convert_model
from tfq.errors import BackendError, InputError, ModelError
from tfq.evaluation import compare_backends, count_instructions, evaluate_model

# It downloads the emulator if that is not installed yet.
pytestmark = pytest.mark.slow
CPUS = ("cortex-a53", "cortex-a76")


@pytest.fixture(scope="module", autouse=True)
def emulator(users_cache):
    """Return the installed emulator."""
    return sysroot.install()


@pytest.fixture(scope="module")
def counting_emulator(emulator):
    """Return the emulator with its plugin. A QEMU without plugin support must be reported."""
    help_text = subprocess.run([*emulator.emulator(), "--help"], capture_output=True, text=True).stdout
    if "-plugin" not in help_text:
        assert not emulator.counted_by and "plugin" in emulator.not_counted
        pytest.skip(emulator.not_counted)
    return emulator


@pytest.fixture(scope="module")
def digits_model(golden):
    return (golden / "digits_int8.tflite").read_bytes()


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return images[:256].reshape(-1, 8, 8, 1).astype(np.float32), labels[:256]


@pytest.fixture(scope="module")
def on_arm(digits_model, digits):
    """Evaluate in the emulator with latencies requested."""
    config = EvaluationConfig(backend="qemu:cortex-a53", limit=64, warmup_runs=5, num_runs=50)
    return evaluate_model(digits_model, digits, config)


@pytest.mark.parametrize("cpu", CPUS)
def test_arm_is_within_1_lsb_of_x86_on_the_digits_model(cpu, digits_model, digits):
    parity = compare_backends(digits_model, digits, "local", f"qemu:{cpu}", 256)
    assert (parity.num_examples, parity.compared) == (256, 2560)
    assert parity.max_abs_error_lsb <= 1
    # Two runs that compute nothing would also agree, so check that the outputs distinguish the digits.
    assert evaluate_model(digits_model, digits, EvaluationConfig(num_runs=0)).accuracy > 0.9


def test_an_emulated_run_has_the_accuracy_of_this_machine(on_arm, digits_model, digits):
    local = evaluate_model(digits_model, digits, EvaluationConfig(limit=64, num_runs=0))
    assert on_arm.accuracy == pytest.approx(local.accuracy, abs=1 / 64)
    assert on_arm.accuracy > 0.9


@pytest.mark.parametrize("cpu", CPUS)
def test_arm_is_within_1_lsb_of_x86_on_resnet8(cpu, shared):
    model = (shared / "models" / "mlperf_tiny_resnet8_cifar10_int8.tflite").read_bytes()
    parity = compare_backends(model, read_test_split(shared, 256), "local", f"qemu:{cpu}", 256)
    assert (parity.num_examples, parity.compared) == (256, 2560)
    assert parity.max_abs_error_lsb <= 1
    assert parity.num_different <= 0.01 * parity.compared


@pytest.mark.parametrize(
    "asked",
    [
        {"calibration": CalibrationConfig(method="mse")},
        {"calibration": CalibrationConfig(method="entropy")},
        {"techniques": ("cross_layer_equalization", "gptq", "bias_correction")},
        {"techniques": ("cross_layer_equalization", "gptq", "bias_correction"), "per_channel": False},
        {"float_layers": ("conv2",)},
        {"quantizer": "litert"},
        {"quantizer": "litert", "int16_layers": ("conv2",), "per_tensor_layers": ("conv1",)},
    ],
    ids=["mse", "entropy", "repaired", "repaired_per_tensor", "float_layer", "litert", "int16_layer"],
)
def test_arm_is_within_1_lsb_of_x86_for_calibrations_and_repairs(asked, golden, digits):
    floating = (golden / "digits_float32.tflite").read_bytes()
    model = convert_model(floating, digits[0][:100], ConversionConfig(num_calibration_samples=100, **asked))
    parity = compare_backends(model, digits, "local", "qemu:cortex-a76", 128)
    assert (parity.num_examples, parity.compared) == (128, 1280)
    assert parity.max_abs_error_lsb <= 1
    assert evaluate_model(model, digits, EvaluationConfig(num_runs=0)).accuracy > 0.9


def test_four_bit_weights_round_differently_on_arm_with_equal_classes(golden, digits):
    # XNNPACK does not run convolutions with them. TFLite's own kernels round depending on the machine, here by one step
    # in the second layer, which the final softmax magnifies.
    floating = (golden / "digits_float32.tflite").read_bytes()
    config = ConversionConfig(num_calibration_samples=100, int4_layers=("*",), techniques=("gptq", "bias_correction"))
    model = convert_model(floating, digits[0][:100], config)
    parity = compare_backends(model, digits, "local", "qemu:cortex-a76", 128)
    assert 1 < parity.max_abs_error_lsb <= 16 and parity.num_different < 0.1 * parity.compared
    runs = [EvaluationConfig(num_runs=0, limit=128, backend=backend) for backend in ("local", "qemu:cortex-a76")]
    local, emulated = (evaluate_model(model, digits, item).accuracy for item in runs)
    assert local == pytest.approx(emulated, abs=1 / 128) and local > 0.9


def test_an_emulated_run_has_no_latency_and_names_its_backend(on_arm):
    record = on_arm
    assert record.how == "emulated"
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
    messages: dict[str, str] = {}

    def ask(cpu):
        command = [*emulator.command(cpu), "-c", code]
        messages[cpu] = subprocess.run(command, capture_output=True, text=True, env=emulator.environment()).stdout

    threads = [threading.Thread(target=ask, args=(cpu,)) for cpu in CPUS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cpu, part in zip(CPUS, ("0xd03", "0xd0b"), strict=True):
        assert messages[cpu].startswith("True\n")
        assert f"CPU part\t: {part}" in messages[cpu]


def test_errors_inside_the_emulator_are_reported_as_those_outside(digits_model, golden, tmp_path, monkeypatch):
    backend = make_backend("qemu:cortex-a76")
    with refused(InputError, field="inputs", word="qemu:cortex-a76"):
        backend.assess(RunRequest(model=digits_model, inputs=(np.zeros((1, 8, 8), np.int8),)))
    with refused(ModelError, field="model", word="custom"):
        custom = (golden / "custom_op.tflite").read_bytes()
        backend.assess(RunRequest(model=custom, inputs=(np.zeros((1, 8, 8, 1), np.float32),)))
    crashing = tmp_path / "crashing_worker.py"
    monkeypatch.setattr(child, "TARGET", crashing)
    for started, error in (("print('started', flush=True)", ModelError), ("pass", BackendError)):
        crashing.write_text(f"import os, signal; {started}; os.kill(os.getpid(), signal.SIGSEGV)")
        with refused(error, got="SIGSEGV"):
            backend.assess(RunRequest(model=digits_model, inputs=(np.zeros((1, 8, 8, 1), np.int8),)))


# Arm64 code: subs x0, x0, #1; b.ne to it; ret. n rounds are 2n + 1 instructions.
LOOP = """
import ctypes, mmap, sys
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"".join(word.to_bytes(4, "little") for word in (0xF1000400, 0x54FFFFE1, 0xD65F03C0)))
loop = ctypes.CFUNCTYPE(None, ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
mark = ctypes.CDLL(None).sched_get_priority_max
for n in [1] * 20 + [int(word) for word in sys.argv[1:]]:
    mark(MARKER)
    loop(n)
    mark(MARKER)
"""


@pytest.mark.parametrize("cpu", CPUS)
def test_a_loop_of_known_length_is_counted_to_the_instruction(cpu, counting_emulator, tmp_path):
    emulator = counting_emulator
    rounds = [1_000, 2_000, 5_000_000]
    command = [*emulator.command(cpu, counts=tmp_path / "counts"), "-c", LOOP.replace("MARKER", str(MARKER))]
    subprocess.run([*command, *map(str, rounds)], check=True, env=emulator.environment(repeatable=True))
    marks = [int(line.split()[0]) for line in (tmp_path / "counts").read_text().splitlines()]
    counts = [after - before for before, after in zip(marks[::2], marks[1::2], strict=True)][-3:]
    assert [counts[1] - counts[0], counts[2] - counts[0]] == [2 * 1_000, 2 * 4_999_000]


@pytest.mark.usefixtures("counting_emulator")
@pytest.mark.parametrize("cpu", CPUS)
def test_instruction_counts_are_exact_and_independent_of_data(cpu, shared, monkeypatch):
    model = (shared / "models" / "mlperf_tiny_resnet8_cifar10_int8.tflite").read_bytes()
    first = count_instructions(model, f"qemu:{cpu}")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/another/length")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    second = count_instructions(model, f"qemu:{cpu}", read_test_split(shared, 1))
    assert first.instructions == second.instructions
    # 12.5 million multiply-accumulates: at most 16 per instruction with dot products (a76), 8 otherwise.
    assert 12_501_632 / (16 if cpu == "cortex-a76" else 8) < first.instructions < 12_501_632
    assert (first.cpu, first.total_ops, first.delegated_ops) == (cpu, 16, 14)


@pytest.mark.usefixtures("counting_emulator")
def test_int8_takes_fewer_instructions_than_float(golden):
    int8, float32 = ((golden / f"digits_{scheme}.tflite").read_bytes() for scheme in ("int8", "float32"))
    counts = [
        count_instructions(model, "qemu:cortex-a76", kernels=kernels).instructions
        for model, kernels in ((int8, "xnnpack"), (float32, "xnnpack"), (int8, "reference"))
    ]
    assert counts == sorted(set(counts))


def test_outputs_are_computed_where_instructions_cannot_be_counted(emulator, digits_model, monkeypatch):
    without_plugin = dataclasses.replace(emulator, counted_by="", not_counted="built without plugins")
    monkeypatch.setattr(sysroot, "find", lambda: without_plugin)
    inputs = (np.zeros((2, 8, 8, 1), np.int8),)
    request = RunRequest(model=digits_model, inputs=inputs, count_instructions=True)
    result = make_backend("qemu:cortex-a76").assess(request)
    assert result.computed_outputs()[0].shape == (2, 10)
    assert result.instructions is None and "plugins" in result.instructions_reason


def test_a_plugin_built_by_tcc_counts_the_same(counting_emulator, digits_model, tmp_path, monkeypatch):
    emulator = counting_emulator
    for name in ("host", "sysroot", "site", "cpu"):
        (tmp_path / name).symlink_to(emulator.directory / name)
    monkeypatch.setattr(sysroot_build, "host_compilers", list)

    def fetch_tcc() -> list[Path]:
        architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True).stdout.strip()
        directory = tmp_path / "apt"
        for packages in (("libc6",), ("tcc",)):
            debs = apt.fetch_packages(
                packages, architecture=architecture, sources=apt.host_sources(), directory=directory
            )
        return debs

    built = sysroot_build.add_plugin(dataclasses.replace(emulator, directory=tmp_path, counted_by=""), fetch_tcc)
    assert (built.counted_by, built.not_counted) == ("tcc (unpacked)", "")
    before = count_instructions(digits_model, "qemu:cortex-a53")
    monkeypatch.setattr(sysroot, "find", lambda: dataclasses.replace(built, directory=tmp_path))
    with_tcc = count_instructions(digits_model, "qemu:cortex-a53")
    assert "tcc" in with_tcc.by
    # Another directory changes the memory addresses of a few Python objects.
    assert with_tcc.instructions == pytest.approx(before.instructions, abs=100)


@pytest.mark.usefixtures("counting_emulator")
def test_a_failure_while_counting_is_reported_as_any_other(golden):
    with refused(ModelError, field="model", word="custom"):
        count_instructions((golden / "custom_op.tflite").read_bytes(), "qemu:cortex-a76")


@pytest.fixture(scope="module")
def newer(emulator):
    """Return the emulator with that of newer cores."""
    return sysroot.install(newer=True)


@pytest.mark.parametrize("cpu", ["cortex-a710", "neoverse-v1"])
def test_newer_cores_have_the_outputs_of_x86_and_no_counts(cpu, newer, digits_model, digits):
    assert {"i8mm", "bf16"} <= set((newer.directory / "cpu" / cpu / "proc/cpuinfo").read_text().split())
    parity = compare_backends(digits_model, digits, "local", f"qemu:{cpu}", 64)
    assert (parity.compared, parity.max_abs_error_lsb) == (640, 0)
    with refused(BackendError, word="plugin"):
        count_instructions(digits_model, f"qemu:{cpu}")


def test_a_qemu_without_plugins_counts_with_that_of_debian_12(
    newer, counting_emulator, digits_model, tmp_path, monkeypatch
):
    for name in ("sysroot", "site", "cpu"):
        (tmp_path / name).symlink_to(newer.directory / name)
    own = newer.directory / "newer"
    (tmp_path / "host").symlink_to(own if own.exists() else newer.directory / "host")
    with_plugins = newer.directory / ("counting" if newer.counting_qemu else "host")
    monkeypatch.setattr(sysroot_build, "fetch_emulator", lambda release, folder, _: folder.symlink_to(with_plugins))
    before = count_instructions(digits_model, "qemu:cortex-a76")
    without = dataclasses.replace(newer, directory=tmp_path, qemu=newer.newer_qemu, counted_by="", counting_qemu="")
    built = sysroot_build.add_plugin(without)
    assert built.counted_by and built.counting_qemu.startswith("7.")
    monkeypatch.setattr(sysroot, "find", lambda: built)
    counted = count_instructions(digits_model, "qemu:cortex-a76")
    assert f"QEMU {built.counting_qemu}" in counted.by
    # Another directory changes the memory addresses of a few Python objects.
    assert counted.instructions == pytest.approx(before.instructions, abs=100)

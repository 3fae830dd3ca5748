# SPDX-License-Identifier: Apache-2.0
"""Instruction counts without an emulator: from the plugin's marks to a record, and missing parts."""

import dataclasses
import importlib.util
import itertools
import stat
import tomllib
from pathlib import Path

import numpy as np
import pytest
from messages import refused

from tfq.backends import BackendResult, InstructionCounts, QemuBackend
from tfq.backends.qemu import sysroot, sysroot_build
from tfq.backends.qemu.backend import COUNTED_RUNS, WARMUP_RUNS, read_counts
from tfq.backends.qemu.sysroot_build import Sysroot
from tfq.errors import BackendError, InputError
from tfq.evaluation import (
    count_instructions,
    count_instructions_or_reason,
)

ROUNDS = WARMUP_RUNS + COUNTED_RUNS
COUNTS = InstructionCounts(instructions=700, lowest=700, highest=701, inferences=5, batch=1, counted_by="the test")


def marks(inferences, empty=10, threads=1):
    """Return the plugin's lines for inferences with these instruction counts, each mark costing `empty`."""
    lines, now = [], 1_000_000
    for instructions in inferences:
        for step in (500, instructions + empty, empty):
            now += step
            lines.append(f"{now} {threads}\n")
    return "".join(lines)


def test_neither_marks_nor_warm_up_count_as_inference():
    text = marks([9999] * WARMUP_RUNS + [700] * COUNTED_RUNS)
    assert read_counts(text) == {"instructions": 700, "lowest": 700, "highest": 700, "inferences": COUNTED_RUNS}


def test_an_outlier_inference_is_reported_and_does_not_change_the_count():
    counted = read_counts(marks([700] * (ROUNDS - 2) + [853, 700]))
    assert (counted["instructions"], counted["lowest"], counted["highest"]) == (700, 700, 853)


def test_marks_that_are_missing_or_of_several_threads_are_refused():
    with refused(BackendError, expected=3 * ROUNDS, got=0):
        read_counts("")
    with refused(BackendError, expected=3 * ROUNDS, got=3 * ROUNDS - 3):
        read_counts(marks([700] * (ROUNDS - 1)))
    with refused(BackendError, expected=1, got=2):
        read_counts(marks([700] * ROUNDS, threads=2))


@pytest.fixture
def emulated(monkeypatch):
    """Replace the emulator by one that always counts 700 instructions; return the requests that it got."""
    requests = []

    def count(self, request):
        requests.append(request)
        return BackendResult(how="emulated", instructions=COUNTS, total_ops=9, delegated_ops=7)

    monkeypatch.setattr(QemuBackend, "unavailable", lambda self: None)
    monkeypatch.setattr(QemuBackend, "cannot_count", lambda self: None)
    monkeypatch.setattr(QemuBackend, "count_instructions", count)
    return requests


def test_the_first_quantized_example_or_zeros_are_fed(golden, emulated):
    model = (golden / "digits_int8.tflite").read_bytes()
    images = np.full((3, 8, 8, 1), 16, np.float32)
    images[1:] = 0
    with_data = count_instructions(model, "qemu:cortex-a76", images, kernels="builtin")
    without = count_instructions(model, "qemu:cortex-a76")
    ((quantized,), (zeros,)) = (request.inputs for request in emulated)
    # 16 is the brightest pixel of the digits, so the largest quantized value.
    assert (quantized.shape, quantized.dtype, quantized.min()) == ((1, 8, 8, 1), np.int8, 127)
    assert (zeros.shape, zeros.dtype, zeros.any()) == ((1, 8, 8, 1), np.int8, False)
    assert [request.kernels for request in emulated] == ["builtin", "xnnpack"]
    assert with_data.inputs.startswith("the first example of ")
    assert without.inputs == "zeros"


def test_a_record_says_that_it_is_a_count(golden, emulated):
    record = count_instructions((golden / "digits_int8.tflite").read_bytes(), "qemu:cortex-a76")
    values = record.to_dict()
    expected = {
        "backend": "qemu:cortex-a76",
        "cpu": "cortex-a76",
        "instructions": 700,
        "by": "the test",
        "inferences": 5,
    }
    assert {**values, **expected, "note": "a count, not a time"} == values
    assert record.to_text() == "qemu:cortex-a76: 700 instructions per inference, xnnpack (a count, not a time)"


def test_unsuitable_data_is_an_error_instead_of_a_reason(golden, emulated):
    with refused(InputError, field="data", expected=(8, 8, 1), got=(5, 5, 1)):
        count_instructions_or_reason(
            (golden / "digits_int8.tflite").read_bytes(), "qemu:cortex-a76", np.zeros((1, 5, 5, 1), np.float32)
        )


def test_only_emulated_runners_count_and_the_others_give_a_reason(golden, emulated):
    model = (golden / "digits_int8.tflite").read_bytes()
    assert "qemu" in count_instructions_or_reason(model, "local")
    with refused(BackendError, field="backend", got="local"):
        count_instructions(model, "local")


def test_an_emulator_that_does_not_count_is_not_run_with_its_reason(golden, monkeypatch):
    model = (golden / "digits_int8.tflite").read_bytes()
    installed = Sysroot(directory=Path("/none"), qemu="7.2", cpus=("cortex-a53",), not_counted="there is no compiler")
    monkeypatch.setattr(sysroot, "find", lambda: installed)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert "there is no compiler" in count_instructions_or_reason(model, "qemu:cortex-a53")
    assert "support cortex-a76" in count_instructions_or_reason(model, "qemu:cortex-a76")
    with refused(BackendError, field="backend", got="qemu:cortex-a53", word="compiler"):
        count_instructions(model, "qemu:cortex-a53")


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


COMPILES = 'while [ "$1" != -o ]; do shift; done; echo plugin >"$2"'


@pytest.fixture
def emulator(tmp_path):
    """An emulator that is a script: it supports plugins, and the given plugin counts."""

    def make(*, help_text="-plugin", counts="echo '10 1' >>$out; echo '20 1' >>$out"):
        result = f'for word; do case "$word" in *,out=*) out=${{word##*,out=}};; esac; done; {counts}'
        script(
            tmp_path / "tree/host/usr/bin/qemu-aarch64", f'[ "$1" = --help ] && echo "{help_text}" && exit\n{result}'
        )
        return Sysroot(directory=tmp_path / "tree", qemu="7.2", cpus=("cortex-a53",))

    return make


@pytest.fixture
def compilers(monkeypatch):
    """The C compilers of the machine, by what they do."""

    def give(*paths):
        monkeypatch.setattr(sysroot_build, "host_compilers", lambda: list(paths))

    return give


def test_a_compiler_that_fails_is_followed_by_the_next(emulator, compilers, tmp_path):
    broken = script(tmp_path / "cc", "echo 'cc1: fatal error: no input' >&2; echo 'compilation ended' >&2; exit 1")
    compilers(str(tmp_path / "gone"), broken, script(tmp_path / "clang", COMPILES))
    result = sysroot_build.add_plugin(emulator())
    assert (result.counted_by, result.not_counted) == ("clang", "")
    assert result.plugin.read_text() == "plugin\n"
    compilers(str(tmp_path / "gone"), broken)
    result = sysroot_build.add_plugin(emulator())
    assert result.counted_by == ""
    assert "gone cannot be started: No such file" in result.not_counted
    assert "cc1" in result.not_counted


def test_without_a_compiler_the_emulator_runs_without_counting(emulator, compilers):
    compilers()
    result = sysroot_build.add_plugin(emulator())
    assert result.counted_by == ""
    assert "compiler" in result.not_counted and "`python -m tfq.backends.qemu.sysroot`" in result.not_counted

    def no_network():
        raise BackendError("apt cannot download tcc")

    assert "apt cannot download tcc" in sysroot_build.add_plugin(emulator(), no_network).not_counted


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ("exit 1", "exit code 1"),
        ("echo 'plugin: wrong API' >&2; exit 1", "plugin: wrong API"),
        (":", "nothing"),
        ("echo '10 1' >>$out; echo '10 1' >>$out", "10, 10"),
    ],
)
def test_a_plugin_that_does_not_count_is_not_kept(counts, reason, emulator, compilers, tmp_path):
    compilers(script(tmp_path / "cc", COMPILES))
    result = sysroot_build.add_plugin(emulator(counts=counts))
    assert result.counted_by == ""
    assert reason in result.not_counted and "QEMU 7.2" in result.not_counted
    assert not result.plugin.exists()


def test_for_a_qemu_without_plugins_no_compiler_is_downloaded(emulator, compilers, tmp_path, monkeypatch):
    def fail(release, folder, directory):
        folder.mkdir()
        raise BackendError("no network")

    monkeypatch.setattr(sysroot_build, "fetch_emulator", fail)
    compilers(script(tmp_path / "cc", COMPILES))
    result = sysroot_build.add_plugin(emulator(help_text="-L path"), lambda: pytest.fail("downloads"))
    assert "QEMU 7.2" in result.not_counted and "plugin" in result.not_counted and "no network" in result.not_counted
    assert not (result.directory / "counting").exists()


def test_a_compiler_that_came_later_completes_an_installation(emulator, compilers, tmp_path, monkeypatch):
    monkeypatch.setenv("TFQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")

    def build(directory, report):
        emulator().directory.rename(directory / "tree")
        built = Sysroot(directory=directory / "tree", qemu="7.2", cpus=("cortex-a53",), not_counted="there is none")
        sysroot.write_record(built, python="3.11")

    monkeypatch.setattr(sysroot, "build", build)
    later = script(tmp_path / "cc", COMPILES)
    machine = []
    monkeypatch.setattr(sysroot_build, "host_compilers", lambda: machine)
    monkeypatch.setattr(sysroot, "host_compilers", lambda: machine)
    assert sysroot.install().counted_by == ""
    assert "there is none" in sysroot.cannot_count("cortex-a53")
    machine.append(later)
    assert sysroot.install().counted_by == "cc"
    assert sysroot.cannot_count("cortex-a53") is None
    assert sysroot.find().counted_by == "cc"


def test_a_comma_in_a_path_does_not_end_the_plugins_option(tmp_path):
    installed = Sysroot(directory=tmp_path / "a,b", qemu="7.2", cpus=("cortex-a53",))
    command = installed.command("cortex-a53", counts=Path("/tmp/c,d"))
    assert command[command.index("-plugin") + 1] == f"{tmp_path}/a,,b/counting.so,out=/tmp/c,,d"
    assert "-plugin" not in installed.command("cortex-a53")


def test_a_counted_run_gets_the_same_environment_in_every_shell(tmp_path, monkeypatch):
    installed = dataclasses.replace(Sysroot(directory=tmp_path, qemu="7.2", cpus=()))
    before = installed.environment(repeatable=True)
    monkeypatch.setenv("PATH", "/elsewhere")
    monkeypatch.setenv("HOME", "/a/longer/home")
    assert installed.environment(repeatable=True) == before
    assert before["PYTHONHASHSEED"] == "0"
    assert installed.environment()["HOME"] == "/a/longer/home"


def test_the_plugins_source_is_in_the_wheel(root):
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    results = [path for pattern in listed["tfq.backends.qemu"] for path in (root / "tfq/backends/qemu").glob(pattern)]
    assert sysroot_build.SOURCE in results


@pytest.mark.parametrize(("second", "exit_code"), [(700, 0), (701, 1)])
def test_the_benchmark_fails_where_two_runs_count_differently(second, exit_code, root, golden, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("instructions_benchmark", root / "benchmarks" / "instructions.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    counts = itertools.cycle([dataclasses.replace(COUNTS, instructions=value) for value in (700, second)])
    monkeypatch.setattr(benchmark, "count_instructions", lambda *_, **__: next(counts))
    monkeypatch.setattr("sys.argv", ["instructions.py", str(golden / "digits_int8.tflite")])
    assert benchmark.main() == exit_code
    message = capsys.readouterr().out
    assert ("DIFFERENT COUNTS: digits_int8.tflite on qemu:cortex-a53: 700 and 701" in message) == bool(exit_code)

# SPDX-License-Identifier: Apache-2.0
"""What a command does if its outputs cannot be written, are not read, or are in use, and if it is stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfq import artifacts
from tfq.cli import process, streams
from tfq.errors import InputError, TfqError, TfqWarning

TFQ = f"{sys.executable} -m tfq"


@pytest.fixture
def shell(tmp_path):
    """Run a line of bash in an empty directory."""

    def run(line, **environment):
        return subprocess.run(
            ["bash", "-c", line], capture_output=True, cwd=tmp_path, timeout=60, env={**os.environ, **environment}
        )

    return run


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-", "&> >(true)"])
def test_outputs_that_nobody_reads_cost_no_result(closed, shell, golden, tmp_path):
    done = shell(f"{TFQ} audit --model={golden}/digits_float32.tflite --require=full_int8 --out=out {closed}")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert json.loads((tmp_path / "out" / "audit.json").read_bytes())["command"] == "audit"


def test_a_pipe_that_is_closed_keeps_the_exit_code(shell, golden):
    line = f"{TFQ} audit --model={golden}/digits_int8.tflite | true; exit ${{PIPESTATUS[0]}}"
    assert shell(line).returncode == 0


def test_a_full_standard_output_is_reported(shell, golden):
    done = shell(f"{TFQ} audit --model={golden}/digits_int8.tflite > /dev/full")
    assert done.returncode == TfqError.exit_code
    assert b"standard output" in done.stderr and b"Traceback" not in done.stderr


def test_a_closed_standard_output_without_out_is_reported(shell, golden):
    assert b"only the exit code" in shell(f"{TFQ} audit --model={golden}/digits_int8.tflite >&-").stderr


@pytest.mark.parametrize("name", ["modèle é.tflite", os.fsdecode(b"caf\xe9.tflite")])
def test_locales_without_unicode_show_escapes(name, shell, golden, tmp_path):
    (tmp_path / name).write_bytes((golden / "digits_int8.tflite").read_bytes())
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = shell(f"{TFQ} audit --model='{name}' --out=out", **plain)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"full_int8" in done.stdout
    assert (tmp_path / "out" / "audit.json").exists()


@pytest.mark.parametrize("out", ["file", "file/below", "x" * 300, "nul\0"])
def test_an_unusable_out_is_refused_before_the_work(out, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as refused:
        artifacts.check_out_dir(tmp_path / out)
    assert refused.value.field == "out"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    artifacts.check_out_dir(tmp_path / "new" / "below")


def test_out_is_checked_before_the_model_is_read(tfq_here, tmp_path):
    (tmp_path / "file").write_text("")
    done = tfq_here("audit", "--model=missing.tflite", f"--out={tmp_path}/file")
    assert done.returncode == 2 and "--out" in done.stderr and "missing.tflite" not in done.stderr


def test_a_command_waits_for_the_lock_of_its_output_directory(golden, tmp_path):
    command = [sys.executable, "-m", "tfq", "audit", f"--model={golden}/digits_int8.tflite", f"--out={tmp_path}"]
    with artifacts.locked(tmp_path / ".lock"):
        running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        line = next(line for line in running.stderr if not line.startswith(b"["))
        assert b"waiting" in line and not (tmp_path / "audit.json").exists()
    assert running.wait(30) == 0 and (tmp_path / "audit.json").exists()
    running.stderr.close()


def test_a_thread_that_holds_a_lock_may_enter_it_again(tmp_path):
    waited = []

    def other():
        with pytest.warns(TfqWarning, match="waiting"), artifacts.locked_directory(tmp_path):
            waited.append(time.monotonic())

    with artifacts.locked_directory(tmp_path), artifacts.locked_directory(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.2)
        released = time.monotonic()
    thread.join(10)
    assert waited and waited[0] >= released


def test_entering_an_output_directory_removes_files_of_killed_processes(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, used = tmp_path / f".tfq-{ended.pid}-model.tflite", tmp_path / f".tfq-{os.getpid()}-model.tflite"
    for path in (left, used):
        path.write_text("half")
    with artifacts.locked_directory(tmp_path):
        assert not left.exists() and used.exists()


@pytest.mark.parametrize("number", process.STOP_SIGNALS)
def test_each_stop_signal_raises_and_its_handler_is_restored(number):
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)
    try:
        with pytest.raises(KeyboardInterrupt), process._noted_interrupts() as interrupts:
            signal.raise_signal(number)
        assert interrupts == [number] and signal.getsignal(number) is default
        signal.signal(number, signal.SIG_IGN)
        with process._noted_interrupts() as interrupts:
            signal.raise_signal(number)
        assert interrupts == []
    finally:
        signal.signal(number, before)


def test_sigterm_ends_a_command_as_ctrl_c_does(golden, temporary):
    model = f"{golden}/digits_int8.tflite"
    command = [sys.executable, "-m", "tfq", "benchmark", f"--model={model}", "--num_runs=100000000"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(temporary.iterdir()), running.communicate(timeout=5)
    time.sleep(0.3)
    running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == process.INTERRUPTED, stderr
    assert b"interrupted" in stderr and b"Traceback" not in stderr
    assert list(temporary.iterdir()) == []


def test_a_lasting_stream_raises_what_the_user_must_know():
    with open("/dev/full", "w") as full:
        stream = streams._lasting(full.fileno(), None, drops_all=False)
        with pytest.raises(OSError, match="space"):
            print("result", file=stream, flush=True)
        streams.drop(full.fileno())
        stream.close()

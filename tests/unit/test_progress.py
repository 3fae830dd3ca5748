# SPDX-License-Identifier: Apache-2.0
"""The form and place of progress: lines of a command, a line that is redrawn on a terminal, or nothing."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfq import progress
from tfq.errors import TfqWarning, warn
from tfq.native_stderr import captured_stderr


class Screen(io.StringIO):
    """A stderr that may be a terminal."""

    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


class OutStream(Screen):
    """What ipykernel has for sys.stderr: no terminal, but the front end obeys carriage returns."""

    __module__ = "ipykernel.iostream"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.delenv("TFQ_PROGRESS", raising=False)
    monkeypatch.setattr(progress, "_DELAY_SECS", 0.02)
    monkeypatch.setattr(progress, "_REDRAW_SECS", 0.01)


@pytest.fixture
def show(monkeypatch):
    def on(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return on


def wait_for(screen, text, secs=10):
    end = time.monotonic() + secs
    while text not in screen.getvalue():
        assert time.monotonic() < end, f"{text!r} is not in {screen.getvalue()!r}"
        time.sleep(0.005)


def visible(text):
    """Return the lines that a terminal shows at the end: what follows a carriage return overwrites the line."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return "\n".join(lines)


def test_a_piped_command_prints_one_plain_line_per_outermost_stage(show):
    screen = show(Screen(False))
    with progress.printed_lines():
        with progress.stage("loading"), progress.stage("inside"):
            pass
        with progress.stage("converting"):
            pass
    assert re.fullmatch(r"\[ +\d+\.\d s\] loading\n\[ +\d+\.\d s\] converting\n", screen.getvalue())


def test_a_stage_may_print_the_stages_directly_inside_it(show):
    screen = show(Screen(False))
    with progress.printed_lines():
        with progress.stage("compress", prints_parts=True):
            with progress.stage("pruning"), progress.stage("inside"):
                pass
            with progress.stage("training", prints_parts=True), progress.stage("inside"):
                pass
        with progress.stage("converting"), progress.stage("inside"):
            pass
    names = [line.split("s] ")[1] for line in screen.getvalue().splitlines()]
    assert names == ["compress", "  pruning", "  training", "converting"]


def test_a_program_whose_stderr_is_a_file_prints_nothing(show):
    screen = show(Screen(False))
    with progress.stage("loading"), progress.bar("samples", 3, "") as bar:
        bar.update()
        time.sleep(0.1)
        progress.note("a line")
    assert screen.getvalue() == ""


@pytest.mark.parametrize("stream", [Screen, OutStream])
def test_a_long_stage_is_shown_with_its_time_and_disappears(show, stream):
    screen = show(stream(is_terminal=stream is Screen))
    with progress.stage("outer"), progress.stage("calibrating"):
        wait_for(screen, "calibrating 0 s")
    assert "outer" not in screen.getvalue()
    assert visible(screen.getvalue()) == ""


def test_a_short_stage_is_not_shown(show, monkeypatch):
    monkeypatch.setattr(progress, "_DELAY_SECS", 60)
    screen = show(Screen(True))
    with progress.stage("calibrating"):
        time.sleep(0.1)
    assert screen.getvalue() == ""


def test_a_warning_begins_on_a_new_line(show):
    screen = show(Screen(True))
    with progress.stage("calibrating"):
        wait_for(screen, "calibrating")
        with progress.hidden(), pytest.warns(TfqWarning):
            warn("few samples")
        screen.write("few samples\n")
    assert visible(screen.getvalue()) == "few samples\n"


def test_nothing_is_redrawn_while_something_else_is_shown(show):
    screen = show(Screen(True))
    with progress.stage("training"), progress.hidden():
        time.sleep(0.1)
    assert screen.getvalue() == ""


@pytest.mark.parametrize(("descriptor", "is_shown"), [(2, False), (5, True)])
def test_nothing_is_redrawn_on_a_stderr_that_is_captured(show, monkeypatch, descriptor, is_shown):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    screen = show(Screen(True))
    screen.fileno = lambda: descriptor
    with progress.stage("quantizing"), captured_stderr():
        if is_shown:
            wait_for(screen, "quantizing")
        else:
            time.sleep(0.1)
    assert ("quantizing" in screen.getvalue()) == is_shown


def test_a_count_is_a_bar_on_a_terminal_instead_of_the_stage(show):
    screen = show(Screen(True))
    with progress.stage("calibrating"):
        for _ in progress.counted(range(20), "samples", " samples"):
            time.sleep(0.02)
    assert re.search(r"samples: .*\d/20", screen.getvalue())
    assert visible(screen.getvalue()) == ""


@pytest.mark.parametrize("is_command", [True, False])
def test_the_switch_turns_all_of_it_off(show, monkeypatch, is_command):
    monkeypatch.setenv("TFQ_PROGRESS", "0")
    screen = show(Screen(True))
    progress._display.command_start = time.monotonic() if is_command else None
    try:
        with progress.stage("calibrating"), progress.bar("samples", 3, "") as bar:
            bar.update()
            progress.note("a line")
            time.sleep(0.1)
    finally:
        progress._display.command_start = None
    assert screen.getvalue() == ""


def test_stages_of_another_thread_are_not_mixed_in(show):
    screen = show(Screen(False))

    def other():
        with progress.stage("other"):
            pass

    with progress.printed_lines(), progress.stage("mine"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "mine" in screen.getvalue()
    assert "other" not in screen.getvalue()


def test_an_error_in_a_stage_leaves_no_stage_behind(show):
    screen = show(Screen(False))
    with progress.printed_lines():
        with pytest.raises(ValueError), progress.stage("failing"):
            raise ValueError
        with progress.stage("next"):
            pass
    assert len(screen.getvalue().splitlines()) == 2


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_missing_or_closed_stderr_is_ignored(show, stream):
    if stream == "closed":
        stream = Screen(True)
        stream.close()
    show(stream)
    with progress.printed_lines(), progress.stage("loading"), progress.bar("samples", 3, "") as bar:
        bar.update()


def test_a_forked_child_shows_its_own_stages():
    code = (
        "import os\n"
        "from tfq import progress\n"
        "with progress.printed_lines(), progress.stage('parent'):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        with progress.printed_lines(), progress.stage('child'):\n"
        "            os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert [line.split()[-1] for line in done.stderr.splitlines()] == ["parent", "child"]


COMMANDS = {
    "train": ("--model=digits_cnn", "--data=digits"),
    "convert": ("--model=model.keras", "--data=digits"),
    "compress": ("--model=model.keras", "--data=digits"),
    "audit": ("--model={golden}/digits_float32.tflite",),
    "benchmark": ("--model={golden}/digits_float32.tflite",),
    "evaluate": ("--model={golden}/digits_float32.tflite", "--data=digits"),
    "search": ("--model=model.keras", "--data=digits"),
    "analyze": ("--model={golden}/digits_int8.tflite", "--data=digits", "--reference={golden}/digits_float32.tflite"),
    "compare": ("{golden}/digits_float32.tflite", "{golden}/digits_int8.tflite"),
    "export": ("--model={golden}/digits_int8.tflite", "--data=digits", "--platform=linux"),
    "run": ("--model=digits_cnn", "--data=digits"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_stage_is_printed_before_tensorflow_is_imported(command, tmp_path, golden):
    """A module that stands in for TensorFlow ends the process when it is imported."""
    (tmp_path / "tensorflow.py").write_text("import os; os.write(2, b'TensorFlow\\n'); os._exit(9)\n")
    shutil.copy(golden.parent / "containers" / "keras.keras", tmp_path / "model.keras")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = [argument.format(golden=golden) for argument in COMMANDS[command]]
    started = subprocess.Popen(
        [sys.executable, "-m", "tfq", command, *arguments, f"--out={tmp_path}/out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with started:
        start, first = started.stderr.readline(), started.stderr.readline()
        # What follows is not tested here.
        os.killpg(started.pid, signal.SIGKILL)
    assert re.fullmatch(rf"\[ *\d+\.\d s\] starting tfq {command}\n", start), start
    assert re.match(r"\[ *\d+\.\d s\] \w+", first), start + first

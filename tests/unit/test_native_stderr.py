# SPDX-License-Identifier: Apache-2.0
"""What C++ writes to file descriptor 2 during a call is removed, and everything else reaches the real stderr."""

import ctypes
import os
import subprocess
import sys
import threading

import pytest

from tfq.native_stderr import captured_stderr, is_captured

NOISE = [
    "fully_quantize: 0, inference_type: 6, input_inference_type: INT8, output_inference_type: INT8",
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795962117.336547   13512 flatbuffer_export.cc:4302] Estimated count of arithmetic ops: 3440  ops",
    "W0000 00:00:1795962116.986170   13512 tf_tfl_flatbuffer_helpers.cc:364] Ignored output_format.",
    "E0000 00:00:1795962115.768395   13512 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error",
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
    "HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();",
]
OTHERS = [
    "epoch 3 of 10",
    "W0000 00:00:1795962116.986170   13512 cpu_allocator_impl.cc:82] Allocation of 3 GB exceeds 10% of free memory.",
    "INFO: the user's own line",
    "fully quantized",
]


def write(text):
    os.write(2, text.encode())


def run(code, **options):
    return subprocess.run([sys.executable, "-c", code], text=True, timeout=60, **options)


@pytest.fixture(autouse=True)
def log_level(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)


@pytest.mark.parametrize("line", NOISE)
def test_known_noise_is_removed_from_stderr(line, capfd):
    with captured_stderr() as stderr:
        write(f"{line}\n")
    assert capfd.readouterr().err == ""
    assert stderr.text == ""


@pytest.mark.parametrize("line", OTHERS)
def test_any_other_line_reaches_the_real_stderr(line, capfd):
    with captured_stderr() as stderr:
        write(f"{line}\n")
    assert capfd.readouterr().err == f"{line}\n"
    assert stderr.text == line


def test_what_libc_writes_is_captured(capfd):
    libc = ctypes.CDLL(None)
    with captured_stderr():
        libc.dprintf(2, b"fully_quantize: %d, inference_type: 6\n", 0)
    assert capfd.readouterr().err == ""


def test_text_without_newline_before_noise_is_passed_on(capfd):
    with captured_stderr():
        write(f"\rbar 3/10{NOISE[0]}\n")
    assert capfd.readouterr().err == "\rbar 3/10"


def test_lines_of_python_and_of_c_keep_their_order(capfd):
    print("before", file=sys.stderr)
    with captured_stderr():
        print("inside", file=sys.stderr)
        write("from C\n")
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "before\ninside\nfrom C\nafter\n"


def test_another_threads_line_reaches_the_real_stderr(capfd):
    inside, written = threading.Event(), threading.Event()

    def other():
        inside.wait(10)
        print("from another thread", file=sys.stderr)
        written.set()

    thread = threading.Thread(target=other)
    thread.start()
    with captured_stderr():
        inside.set()
        assert written.wait(10)
        write(f"{NOISE[0]}\n")
    thread.join()
    assert capfd.readouterr().err == "from another thread\n"


def test_threads_capture_one_after_the_other(capfd):
    texts = {}

    def capture(name):
        with captured_stderr() as stderr:
            for _ in range(50):
                write(f"{name}\n")
        texts[name] = set(stderr.text.splitlines())

    threads = [threading.Thread(target=capture, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {name: {name} for name in "abcd"}
    assert len(capfd.readouterr().err.splitlines()) == 200


def test_a_capture_inside_another_keeps_every_line(capfd):
    with captured_stderr():
        write("outer\n")
        with captured_stderr():
            write(f"inner\n{NOISE[0]}\n")
        write("outer again\n")
    assert capfd.readouterr().err == "outer\ninner\nouter again\n"
    assert not is_captured()


def test_diagnostics_of_a_failed_call_are_in_the_error(capfd):
    diagnostic = "loc(\"conv\"): error: 'tfl.conv_2d' op has no such kernel"
    with pytest.raises(RuntimeError) as raised, captured_stderr() as stderr:
        write(f"{NOISE[0]}\n{diagnostic}\nfrom another thread\n")
        raise RuntimeError("refused")
    assert capfd.readouterr().err == "from another thread\n"
    assert diagnostic in raised.value.__notes__[0]
    assert stderr.add_to("refused") == f"refused ({diagnostic} | from another thread)"
    assert stderr.add_to(f"{diagnostic}, from another thread") == f"{diagnostic}, from another thread"


def test_diagnostics_of_a_call_that_succeeds_are_passed_on(capfd):
    with captured_stderr():
        write("<unknown>:0: note: see current operation\n")
    assert capfd.readouterr().err == "<unknown>:0: note: see current operation\n"


def test_stderr_that_is_not_descriptor_2_is_left_alone(capfd, monkeypatch):
    class Cell:  # of a notebook
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    cell = Cell()
    monkeypatch.setattr(sys, "stderr", cell)
    with captured_stderr():
        print("in the cell", file=sys.stderr)
        write(f"{NOISE[0]}\n")
    monkeypatch.undo()
    assert cell.text == "in the cell\n"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_missing_or_closed_sys_stderr_is_ignored(stream, monkeypatch, capfd):
    if stream == "closed":
        with open(os.devnull, "w") as stream:
            pass
    monkeypatch.setattr(sys, "stderr", stream)
    with captured_stderr():
        write("line\n")
    monkeypatch.undo()
    assert capfd.readouterr().err == "line\n"


def test_the_log_level_0_shows_every_line(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with captured_stderr():
        write(f"{NOISE[0]}\n")
    assert capfd.readouterr().err == f"{NOISE[0]}\n"


def test_a_closed_descriptor_2_is_ignored():
    code = (
        "import os; os.close(2)\n"
        "from tfq.native_stderr import captured_stderr\n"
        "with captured_stderr() as stderr:\n"
        "    pass\n"
        "print(repr(stderr.text))"
    )
    assert run(code, stdout=subprocess.PIPE).stdout == "''\n"


@pytest.mark.parametrize("inside", [True, False])
def test_a_forked_child_captures_and_writes_to_the_real_stderr(inside):
    """The child of a fork during a capture has the real stderr, and so has one that captures for itself."""
    code = (
        "import os, sys\n"
        "from tfq.native_stderr import captured_stderr\n"
        "def child():\n"
        "    os.write(2, b'child\\n')\n"
        "    with captured_stderr():\n"
        "        os.write(2, b'fully_quantize: 0, inference_type: 6\\nchild captured\\n')\n"
        "    os._exit(0)\n"
        "def fork():\n"
        "    pid = os.fork()\n"
        "    child() if pid == 0 else os.waitpid(pid, 0)\n"
        f"if {inside}:\n"
        "    with captured_stderr():\n"
        "        fork()\n"
        "        os.write(2, b'parent\\n')\n"
        "else:\n"
        "    with captured_stderr():\n"
        "        pass\n"
        "    fork()\n"
        "    os.write(2, b'parent\\n')\n"
    )
    done = run(code, capture_output=True)
    assert done.stderr == "child\nchild captured\nparent\n"
    assert done.returncode == 0


def test_a_fork_while_another_thread_captures_does_not_hang_the_child():
    code = (
        "import os, threading\n"
        "from tfq.native_stderr import captured_stderr\n"
        "inside, forked = threading.Event(), threading.Event()\n"
        "def capture():\n"
        "    with captured_stderr():\n"
        "        inside.set(); forked.wait(10)\n"
        "thread = threading.Thread(target=capture); thread.start(); inside.wait(10)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    with captured_stderr():\n"
        "        os.write(2, b'child\\n')\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0); forked.set(); thread.join()\n"
        "os.write(2, b'parent\\n')\n"
    )
    done = run(code, capture_output=True)
    assert "child\n" in done.stderr
    assert done.stderr.endswith("parent\n")


def test_what_libc_prints_during_the_call_leaves_stdout():
    code = """
import ctypes
from tfq.native_stderr import stdout_to_stderr
printf = ctypes.CDLL(None).printf
printf(b"before\\n")
with stdout_to_stderr():
    print("python")
    printf(b"solver\\n")
printf(b"after\\n")
"""
    # To a pipe, libc writes only at the end, or if it is flushed.
    result = run(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (result.returncode, result.stdout, result.stderr) == (0, "before\nafter\n", "python\nsolver\n")


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_closed_stdout_or_stderr_is_ignored(descriptor):
    code = f"""
import os
from tfq.native_stderr import stdout_to_stderr
os.close({descriptor})
with stdout_to_stderr():
    pass
"""
    assert run(code).returncode == 0

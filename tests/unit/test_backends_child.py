# SPDX-License-Identifier: Apache-2.0
"""The child process of the worker: crashes, interruption, output and cleanup."""

import dataclasses
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from golden_models import golden
from messages import refused

from tfq.backends import RunRequest, child, make_backend
from tfq.backends.worker import run_worker
from tfq.errors import BackendError, ModelError

REQUEST = RunRequest(model=golden("digits_int8"), inputs=(np.zeros((3, 8, 8, 1), np.int8),))

# Runs a request with another program instead of the worker, in a process that can be interrupted.
PARENT = """
import sys
from pathlib import Path
import numpy as np
from tfq.backends import LocalBackend, RunRequest, child
child.TARGET = Path(sys.argv[1])
LocalBackend().assess(RunRequest(model=Path(sys.argv[2]).read_bytes(), inputs=(np.zeros((64, 8, 8, 1), np.int8),)))
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Replace the worker by another program and return its path."""

    def replace(source: str) -> Path:
        path = tmp_path / "other_worker.py"
        path.write_text(source)
        monkeypatch.setattr(child, "TARGET", path)
        return path

    return replace


# What the target does when it begins to run the model.
STARTED = "import os, signal, sys, time; print('started', os.getpid(), flush=True);"


def killed_by(name: str) -> str:
    return f"print('the last words', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.{name})"


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGFPE", "SIGBUS", "SIGABRT"])
def test_a_crash_in_the_model_is_reported_with_its_signal(name, worker, temporary):
    worker(STARTED + killed_by(name))
    with refused(ModelError, field="model", got=name, word="words"):
        make_backend("local").assess(REQUEST)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("before", "name"), [(STARTED, "SIGKILL"), (STARTED, "SIGTERM"), ("", "SIGSEGV")])
def test_a_crash_that_is_not_the_models_is_the_runners_error(before, name, worker, temporary):
    worker("import os, signal, sys;" + before + killed_by(name))
    with refused(BackendError, got=name, word="words"):
        make_backend("local").assess(REQUEST)
    assert list(temporary.iterdir()) == []


def test_a_model_that_never_ends_is_given_up_soon(worker, temporary):
    worker(STARTED + "[None for _ in iter(int, 1)]")
    start = time.monotonic()
    with refused(ModelError, field="timeout_secs", word="timeout_secs"):
        make_backend("local").assess(dataclasses.replace(REQUEST, num_workers=1))
    # Measured in its own CPU seconds, because other work on this machine can stretch wall time.
    assert 2 < time.monotonic() - start < 90


def test_an_idle_child_is_stopped_after_the_users_limit(worker, temporary):
    worker(STARTED + "time.sleep(60)")
    start = time.monotonic()
    with refused(ModelError, field="timeout_secs") as caught:
        make_backend("local").assess(dataclasses.replace(REQUEST, timeout_secs=0.5))
    assert 0.5 <= caught.value.got < 1
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("line", ["progress 1", "more 0"])
def test_a_child_that_makes_progress_is_not_given_up(line, worker, temporary):
    worker(STARTED + f"[(time.sleep(0.3), print({line!r}, flush=True)) for _ in range(6)]; sys.exit(9)")
    with refused(BackendError, got=9):
        make_backend("local").assess(dataclasses.replace(REQUEST, timeout_secs=1))


def test_an_exit_without_result_is_an_error_with_last_lines(worker, temporary):
    worker("import sys; [print(f'line {i}', file=sys.stderr) for i in range(20)]; sys.exit(7)")
    with refused(BackendError, got=7, word="19") as raised:
        make_backend("local").assess(REQUEST)
    assert "line 14" not in str(raised.value)
    assert list(temporary.iterdir()) == []


def test_a_run_that_succeeds_leaves_nothing_and_says_nothing(temporary, capfd):
    make_backend("local").assess(REQUEST)
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_full_temporary_directory_is_an_error_that_names_it(temporary, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with refused(BackendError, got="No space left on device", word="TMPDIR"):
        make_backend("local").assess(REQUEST)
    assert list(temporary.iterdir()) == []


def test_outputs_without_space_are_an_error_that_explains_it(worker, temporary):
    worker("print('started 1'); print('failed No space left on device'); raise SystemExit(74)")
    with refused(BackendError, got="No space left on device", word="TMPDIR"):
        make_backend("local").assess(REQUEST)
    assert list(temporary.iterdir()) == []


def test_a_python_that_is_not_there_is_an_error():
    with refused(BackendError, got="/no/such/python"):
        run_worker(["/no/such/python"], REQUEST, backend="x")


def test_an_interruption_ends_the_child_and_leaves_nothing(worker, temporary, tmp_path):
    # It ignores the interruption, like an interpreter during a long inference.
    path = worker(
        "import os, signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    (tmp_path / "model").write_bytes(REQUEST.model)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(path), str(tmp_path / "model")],
        stderr=subprocess.PIPE,
        # A test run in the background of a shell ignores the signal, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert list(temporary.iterdir()) != []
    parent.send_signal(signal.SIGINT)
    _, message = parent.communicate(timeout=20)
    assert b"KeyboardInterrupt" in message
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def shown(command: list[str], *, terminal: bool) -> bytes:
    """Return everything that `command` writes to stderr, to a terminal or into a pipe."""
    if not terminal:
        return subprocess.run(command, stderr=subprocess.PIPE).stderr
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(command, stderr=theirs)
    os.close(theirs)
    message = b""
    try:
        while part := os.read(ours, 4096):
            message += part
    except OSError:  # how Linux reports that the other end is closed
        pass
    finally:
        os.close(ours)
        process.wait()
    return message


def test_progress_is_shown_on_a_terminal_and_nowhere_else(worker, tmp_path):
    path = worker(
        "import time\n"
        "for done in range(8, 65, 8):\n"
        "    print('noise on stdout'); print(f'progress {done}', flush=True); time.sleep(0.15)\n"
        "raise SystemExit(3)"
    )
    (tmp_path / "model").write_bytes(REQUEST.model)
    command = [sys.executable, "-c", PARENT, str(path), str(tmp_path / "model")]
    on_terminal, in_pipe = (shown(command, terminal=terminal) for terminal in (True, False))
    assert b"local: " in on_terminal.partition(b"Traceback")[0]
    assert b"/64" in on_terminal
    assert b"/64" not in in_pipe
    assert in_pipe.startswith(b"Traceback")

# SPDX-License-Identifier: Apache-2.0
"""Remaining files and processes after a killed run, a full disk, or a missing fork server."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from backend_contract import soon
from golden_models import changed, golden

from tfq.backends import RunRequest, forks, make_backend, scratch

MODEL = golden("digits_int8")
EXAMPLES = np.random.default_rng(0).integers(-128, 128, (50, 8, 8, 1)).astype(np.int8)

# Runs a model whose inference takes seconds.
PARENT = """
import sys
from pathlib import Path
import numpy as np
from tfq.backends import RunRequest, forks, worker
start = forks.start_fork if sys.argv[2] == "fork" else worker.start_process
worker.run_worker(
    [sys.executable, "-I", "-S"],
    RunRequest(model=Path(sys.argv[1]).read_bytes(), inputs=(np.zeros((32, 2048, 2048, 1), np.int8),), num_workers=1),
    backend="x", path=worker.module_path(), start=start,
)
"""


def run(count: int = 50):
    return make_backend("local").assess(RunRequest(model=MODEL, inputs=(EXAMPLES[:count],)))


def parents() -> dict[int, int]:
    """Return {process: parent} of this machine, without zombies."""
    results = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            results[int(stat.parent.name)] = int(fields[1])
    return results


def descendants(pid: int) -> set[int]:
    children: dict[int, set[int]] = {}
    for child, parent in parents().items():
        children.setdefault(parent, set()).add(child)
    result, pending = set(), [pid]
    while pending:
        new = children.get(pending.pop(), set())
        result |= new
        pending += new
    return result


@pytest.mark.parametrize("start", ["fork", "process"])
def test_children_of_a_killed_parent_end_and_are_cleaned_up(start, temporary, tmp_path, monkeypatch):
    def wide(model):
        model.subgraphs[0].tensors[0].shape = [1, 2048, 2048, 1]

    (tmp_path / "model").write_bytes(changed(golden("float_island"), wide))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "model"), start])
    assert soon(lambda: list(temporary.glob("*/request.json")))
    assert soon(lambda: len(descendants(parent.pid)) == (2 if start == "fork" else 1))
    time.sleep(0.5)  # in the middle of an inference
    left = descendants(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert soon(lambda: not left & set(parents()), 2)
    run()
    assert len(list(temporary.iterdir())) == 1  # too young to be distinguished from one that is being created
    monkeypatch.setattr(scratch, "MIN_AGE_SECS", 0)
    run()
    assert list(temporary.iterdir()) == []


def test_a_directory_whose_owner_lives_is_not_swept(temporary, monkeypatch):
    monkeypatch.setattr(scratch, "MIN_AGE_SECS", 0)
    with scratch.scratch_directory() as mine:
        (mine / "file").write_text("kept")
        run()
        assert (mine / "file").read_text() == "kept"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("limit", "message"),
    [(1000, "cannot write the model"), (20_000, "cannot write inputs"), (700_000, "cannot write the outputs")],
)
def test_a_full_file_system_is_an_environment_error_and_leaves_nothing(limit, message, temporary, tmp_path):
    # A limit on the size of a file simulates a full disk: write() fails in both cases.
    code = (
        "import numpy as np, sys; from pathlib import Path; from tfq.errors import TfqError\n"
        "from tfq.backends import worker; worker.RING_BYTES = 1 << 16\n"
        "from tfq.backends import RunRequest, make_backend\n"
        "request = RunRequest(model=Path(sys.argv[1]).read_bytes(), inputs=(np.zeros((90_000, 8, 8, 1), np.int8),))\n"
        "try: make_backend('local').assess(request)\n"
        "except TfqError as error: print(error.exit_code, error)"
    )
    (tmp_path / "model").write_bytes(MODEL)
    preexec = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    command = [sys.executable, "-c", preexec + code, str(tmp_path / "model")]
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert answer.stdout.startswith(f"3 {message}") or answer.stdout.startswith(f"3 local: {message}"), answer
    assert "File too large" in answer.stdout
    assert list(temporary.iterdir()) == []


def test_runs_of_several_threads_at_once_do_not_mix():
    expected, result = run().outputs[0], {}

    def one(number):
        result[number] = run(10 + number).outputs[0]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        np.testing.assert_array_equal(result[number], expected[: 10 + number])


def test_a_server_that_was_killed_is_replaced():
    run()
    server = forks._server[0]
    server.kill()
    assert soon(lambda: server.pid not in parents())
    assert run().outputs[0].shape == (50, 10)
    assert forks._server[0].pid != server.pid


def test_the_first_run_uses_the_prepared_server():
    forks.stop()
    backend = make_backend("local")
    backend.prepare()
    prepared = forks._server[0]
    backend.prepare()
    run()
    assert forks._server[0] is prepared


def test_the_server_ends_with_this_process_and_starts_lazily():
    code = (
        "import numpy as np, sys; from pathlib import Path; from tfq.backends import RunRequest, forks, make_backend\n"
        "assert forks._server is None\n"
        "request = RunRequest(model=Path(sys.argv[1]).read_bytes(), inputs=(np.zeros((3, 8, 8, 1), np.int8),))\n"
        "make_backend('local').assess(request); print(forks._server[0].pid)"
    )
    path = Path(__file__).resolve().parent.parent / "golden" / "digits_int8.tflite"
    answer = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert soon(lambda: int(answer.stdout) not in parents(), 2)
    assert answer.stderr == ""


def test_a_fork_of_this_process_starts_its_own_server():
    run()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            same = np.array_equal(run().outputs[0], EXPECTED)
            os.write(writing, b"same" if same else b"different")
        finally:
            forks.stop()
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    assert os.read(reading, 100) == b"same"
    np.testing.assert_array_equal(run().outputs[0], EXPECTED)


def test_a_fork_runs_on_the_cpus_that_this_process_has_now():
    run()
    before, seen = os.sched_getaffinity(0), []

    def look():
        seen.extend(os.sched_getaffinity(pid) for pid in descendants(forks._server[0].pid))

    os.sched_setaffinity(0, {min(before)})
    try:
        watcher = threading.Thread(target=lambda: soon(lambda: look() or {min(before)} in seen, 10))
        watcher.start()
        make_backend("local").assess(RunRequest(model=MODEL, inputs=(np.tile(EXAMPLES, (1000, 1, 1, 1)),)))
        watcher.join()
    finally:
        os.sched_setaffinity(0, before)
    assert {min(before)} in seen


EXPECTED = run().outputs[0]

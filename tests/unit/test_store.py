# SPDX-License-Identifier: Apache-2.0
"""Results of stages on disk: reused, recomputed if anything differs, and never trusted if damaged."""

import errno
import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
from messages import refused, warned

from tfq import artifacts
from tfq import store as store_module
from tfq.errors import InputError, TfqError, TfqWarning
from tfq.store import StageStore, in_parts, keeping_parts


def stage(store, inputs=None, text="content", calls=None):
    def make(directory):
        if calls is not None:
            calls.append(inputs)
        artifacts.write_text(directory / "file.txt", text)
        return {"count": (1, 2)}

    return store.run("stage", inputs or {"a": 1}, make)


def test_a_result_is_made_once_and_found_again(tmp_path):
    calls = []
    built = stage(StageStore(tmp_path), calls=calls)
    result = stage(StageStore(tmp_path), calls=calls)
    assert len(calls) == 1
    assert (built.resumed, result.resumed) == (False, True)
    assert built.details == result.details == {"count": [1, 2]}
    assert built.seconds == result.seconds
    assert (result.directory / "file.txt").read_text() == "content"


@pytest.mark.parametrize("what", ["inputs", "name", "code", "packages", "fresh"])
def test_a_result_is_recomputed_if_any_input_differs(what, tmp_path, monkeypatch):
    stage(StageStore(tmp_path))
    if what == "code":
        monkeypatch.setattr(store_module, "code_sha256", lambda: "other")
    if what == "packages":
        monkeypatch.setattr(store_module, "package_versions", lambda: {"tensorflow": "3"})
    store = StageStore(tmp_path, fresh=what == "fresh")
    if what == "name":
        result = store.run("other", {"a": 1}, lambda directory: {})
    else:
        result = stage(store, {"a": 2} if what == "inputs" else {"a": 1})
    assert not result.resumed


@pytest.mark.parametrize("damage", ["change", "remove", "truncate record", "empty record", "no details"])
def test_a_damaged_result_is_made_again_with_a_warning(damage, tmp_path):
    built = stage(StageStore(tmp_path))
    file, record = built.directory / "file.txt", built.directory / "stage.json"
    if damage == "change":
        file.write_text("changed")
    elif damage == "remove":
        file.unlink()
    elif damage == "no details":
        record.write_text(json.dumps({"files": {}}))
    else:
        record.write_text(record.read_text()[:20] if damage == "truncate record" else "")
    with warned("again"):
        again = stage(StageStore(tmp_path))
    assert not again.resumed
    assert (again.directory / "file.txt").read_text() == "content"


def test_a_failing_stage_leaves_nothing_and_its_error_propagates(tmp_path):
    store = StageStore(tmp_path)

    def make(directory):
        artifacts.write_text(directory / "half.txt", "half")
        raise InputError("no such layer")

    with refused(InputError, word="layer"):
        store.run("stage", {}, make)
    assert list((tmp_path / ".stages").iterdir()) == []


def test_warnings_of_a_stage_are_repeated_with_its_stored_result(tmp_path):
    def make(directory):
        warnings.warn("3 layers were skipped", TfqWarning, stacklevel=2)
        return {}

    for _ in range(2):
        with warned("3"):
            StageStore(tmp_path).run("stage", {}, make)


def test_a_full_disk_is_an_error_and_the_next_run_succeeds(tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_json", full)
        with refused(TfqError, word="space"):
            stage(StageStore(tmp_path))
    assert list((tmp_path / ".stages").iterdir()) == []
    assert not stage(StageStore(tmp_path)).resumed


def test_results_that_no_stage_asked_for_are_removed(tmp_path):
    stage(StageStore(tmp_path), {"a": 1})
    store = StageStore(tmp_path)
    kept = stage(store, {"a": 2})
    store.forget_unused()
    assert [entry.name for entry in (tmp_path / ".stages").iterdir()] == [kept.directory.name]


def test_a_stage_that_was_killed_leaves_no_result_and_is_swept(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from tfq.store import StageStore\n"
        "def make(directory):\n"
        "    (directory / 'half.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "StageStore(Path(sys.argv[1])).run('stage', {'a': 1}, make)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    (left,) = (tmp_path / ".stages").iterdir()
    assert left.name.startswith(".making-")
    result = stage(StageStore(tmp_path))
    assert not result.resumed
    assert [entry.name for entry in (tmp_path / ".stages").iterdir()] == [result.directory.name]


def test_a_record_says_what_a_stage_is(tmp_path):
    record = json.loads((stage(StageStore(tmp_path)).directory / "stage.json").read_text())
    assert record["name"] == "stage"
    assert record["files"] == {"file.txt": artifacts.sha256(b"content")}


def test_only_temporary_files_of_ended_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    names = [f".tfq-{dead.pid}-a.tflite", f".tfq-{os.getpid()}-b.tflite", "c.tflite", ".tfq-x"]
    for name in names:
        (tmp_path / name).touch()
    artifacts.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def worked(count, calls, fails_at=None, seed=0):
    """Do work whose state after each part depends on the one before."""

    def advance(number, content, details):
        if number == fails_at:
            raise KeyboardInterrupt
        calls.append(number)
        return content + bytes([number]), {"numbers": [*details["numbers"], number]}

    return in_parts("work", count, lambda: {"seed": seed}, (b"start", {"numbers": []}), advance)


def test_work_resumes_after_an_interrupt_and_keeps_one_state_until_its_end(tmp_path):
    calls = []
    expected = worked(4, [])
    assert expected == (b"start\x00\x01\x02\x03", {"numbers": [0, 1, 2, 3]})
    for fails_at in (2, 3):
        with pytest.raises(KeyboardInterrupt), keeping_parts(lambda: StageStore(tmp_path)):
            worked(4, calls, fails_at)
        assert calls == list(range(fails_at)) and len(list((tmp_path / ".stages").iterdir())) == 1
    with keeping_parts(lambda: StageStore(tmp_path)):
        assert worked(4, calls) == expected
    assert calls == [0, 1, 2, 3] and not list(tmp_path.iterdir())


def test_work_that_was_complete_is_not_done_again(tmp_path):
    calls = []
    with pytest.raises(ZeroDivisionError), keeping_parts(lambda: StageStore(tmp_path)):
        worked(3, calls)
        raise ZeroDivisionError
    with keeping_parts(lambda: StageStore(tmp_path)):
        assert worked(3, calls) == worked(3, [])
    assert calls == [0, 1, 2] and not list(tmp_path.iterdir())


def test_two_pieces_of_work_in_one_block_keep_their_states(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt), keeping_parts(lambda: StageStore(tmp_path)):
        worked(2, calls, seed=1)
        worked(3, calls, fails_at=1, seed=2)
    calls.clear()
    with keeping_parts(lambda: StageStore(tmp_path)):
        worked(2, calls, seed=1)
        worked(3, calls, seed=2)
    assert calls == [1, 2] and not list(tmp_path.iterdir())


def test_without_a_store_work_is_only_done():
    calls = []
    assert worked(2, calls) == worked(2, calls) and calls == [0, 1, 0, 1]


def test_a_block_without_work_writes_nothing(tmp_path):
    with keeping_parts(lambda: StageStore(tmp_path)):
        pass
    assert not list(tmp_path.iterdir())

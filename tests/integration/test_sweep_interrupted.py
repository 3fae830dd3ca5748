# SPDX-License-Identifier: Apache-2.0
"""A sweep that is interrupted, killed and started again, and one in two shards, write the same record."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

GRID = {
    "base": {
        "compression": {"prune": False, "qat": False},
        "evaluation": {"limit": 64},
        "sweep": {"cost_backends": ["none"], "choose_on": "test"},
    },
    "axes": {
        "scheme": {
            "float16": {"conversion": {"scheme": "float16"}},
            "weights": {"conversion": {"scheme": "weight_only_int8"}},
        }
    },
}


def stored(folder):
    return [path for path in folder.glob("out/.stages/*/stage.json") if not path.parent.name.startswith(".")]


def comparable(record):
    """Return the bytes of a record without times."""
    return json.dumps({**record, "timing": None}, sort_keys=True)


@pytest.fixture
def arguments(golden):
    return ["sweep", "--grid=grid.json", f"--model={golden}/digits_float32.tflite", "--data=digits", "--out=out"]


def stopped(arguments, folder, number):
    """Start a sweep, send it a signal when it has stored one more stage, and return its exit code."""
    before = len(stored(folder))
    process = subprocess.Popen(
        [sys.executable, "-m", "tfq", *arguments], cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while len(stored(folder)) == before and process.poll() is None:
            time.sleep(0.02)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # a node that disappears takes its workers with it
        else:
            process.send_signal(number)
        return process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_interrupted_killed_and_sharded_sweeps_write_the_same_record(arguments, tmp_path, tfq_cli):
    one, many = tmp_path / "one", tmp_path / "many"
    for folder in (one, many):
        folder.mkdir()
        (folder / "grid.json").write_text(json.dumps(GRID))
    assert stopped(arguments, one, signal.SIGINT) == 130
    assert stopped(arguments, one, signal.SIGKILL) == -signal.SIGKILL
    assert not (one / "out" / "sweep.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in stored(one)}
    assert tfq_cli(*arguments, cwd=one).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and kept
    for shard in ("2/2", "1/2"):
        done = tfq_cli(*arguments, f"--shard={shard}", cwd=many)
        assert done.returncode == 0, done.stderr
    done = tfq_cli("sweep", "merge", "out", cwd=many)
    assert done.returncode == 0, done.stderr
    records = [json.loads((folder / "out" / "sweep.json").read_text()) for folder in (one, many)]
    assert comparable(records[0]) == comparable(records[1])
    assert [point["status"] for point in records[0]["points"]] == ["done", "done"]
    assert records[0]["best"]["sentence"] in done.stdout


def test_merging_nothing_is_an_input_error(tmp_path, tfq_here):
    done = tfq_here("sweep", "merge", tmp_path)
    assert done.returncode == 2 and "sweep-1-of-N.json" in done.stderr


def test_a_dry_run_prints_points_and_shared_stages(arguments, tmp_path, tfq_here, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.json").write_text(json.dumps({**GRID, "seeds": [0, 1]}))
    done = tfq_here(*arguments, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "weights/seed1" in done.stdout and not list(tmp_path.glob("out/*.json"))

# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every boundary between two stages and at twelve random moments; the run resumes with the same result."""

import json
import random
import time

import pytest
from killed_runs import (
    FLATBUFFERS,
    check_nothing_is_half_written,
    children_of,
    finish,
    flatbuffers,
    kill,
    stages_on_disk,
    start,
    wait_until_dead,
)

pytestmark = pytest.mark.slow

RANDOM_KILLS = 12


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return (flatbuffers, record, seconds) of an undisturbed run."""
    out, begin = tmp_path_factory.mktemp("whole"), time.monotonic()
    finish(start(out))
    seconds = time.monotonic() - begin
    whole = flatbuffers(out)
    assert sorted(whole) == sorted(FLATBUFFERS)
    return whole, json.loads((out / "report.json").read_text()), seconds


def check_same_end(out, uninterrupted):
    """Check that the flatbuffers are byte-identical and that the records agree except for times."""
    whole, record, _ = uninterrupted
    assert flatbuffers(out) == whole
    again = json.loads((out / "report.json").read_text())
    assert [stage["name"] for stage in again["stages"]] == [stage["name"] for stage in record["stages"]]
    for one, other in zip(again["models"], record["models"], strict=True):
        for key in ("accuracy", "agreement", "output_sqnr_db", "model_bytes", "num_examples"):
            assert one["evaluation"][key] == other["evaluation"][key], key
    assert again["sha256"] == record["sha256"]
    assert again["sparsity"] == record["sparsity"]
    assert not [path.name for path in out.iterdir() if path.name.startswith(".tfq-")]
    return again


def test_a_run_killed_at_any_stage_boundary_ends_the_same(uninterrupted, tmp_path):
    whole, record, _ = uninterrupted
    boundaries = 0
    while True:
        before, run = stages_on_disk(tmp_path), start(tmp_path)
        while run.poll() is None and stages_on_disk(tmp_path) <= before:
            time.sleep(0.002)
        if run.poll() is not None:
            break
        kill(run)
        boundaries += 1
        check_nothing_is_half_written(tmp_path, whole)
    assert run.returncode == 0, run.communicate()[0]
    built = [stage for stage in record["stages"] if not stage["skipped"]]
    # On a busy machine a stage may end before the kill at the end of the previous one arrives.
    assert len(built) - 3 <= boundaries <= len(built)
    again = check_same_end(tmp_path, uninterrupted)
    assert all(stage["resumed"] for stage in again["stages"] if not stage["skipped"])


def test_a_run_killed_at_random_moments_ends_the_same(uninterrupted, tmp_path):
    whole, _, seconds = uninterrupted
    rng = random.Random(3)
    for _ in range(RANDOM_KILLS):
        run = start(tmp_path)
        end = time.monotonic() + rng.uniform(0.05, 0.6) * seconds
        while run.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        orphans = children_of(run.pid)
        if run.poll() is None:
            kill(run)
        else:
            finish(run)
        wait_until_dead(orphans)
        check_nothing_is_half_written(tmp_path, whole)
    finish(start(tmp_path))
    check_same_end(tmp_path, uninterrupted)


def test_fresh_forgets_what_is_there(uninterrupted, tmp_path):
    # The smallest work to do twice: no compression.
    plain = ("--nocompression.prune", "--nocompression.qat")
    finish(start(tmp_path, *plain))
    finish(start(tmp_path, *plain, "--fresh"))
    record = json.loads((tmp_path / "report.json").read_text())
    assert not any(stage["resumed"] for stage in record["stages"])
    assert (tmp_path / FLATBUFFERS[0]).read_bytes() == uninterrupted[0][FLATBUFFERS[0]]


def test_two_runs_on_one_directory_wait_for_each_other(uninterrupted, tmp_path):
    plain = ("--nocompression.prune", "--nocompression.qat")
    runs = [start(tmp_path, *plain), start(tmp_path, *plain)]
    messages = [finish(run) for run in runs]
    assert sum("another command" in text for text in messages) == 1
    check_nothing_is_half_written(tmp_path, uninterrupted[0])

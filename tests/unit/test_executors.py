# SPDX-License-Identifier: Apache-2.0
"""The executor `local` and the order of tasks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from executor_contract import each_rule
from executor_tasks import digest

from tfq.executors import open_executor
from tfq.store import StageStore


@pytest.fixture(scope="module")
def local():
    with open_executor("local", num_workers=2) as executor:
        yield executor


@each_rule
def test_local_workers(rule, local, tmp_path):
    rule(local, tmp_path)


def test_workers_end_with_a_killed_driver_and_the_next_call_resumes(tmp_path, root):
    code = (
        "import sys; from pathlib import Path; from executor_contract import named\n"
        "from executor_tasks import digest; from tfq.executors import open_executor; from tfq.store import StageStore\n"
        "slow = named('slow', 'wait_for', started=sys.argv[2], seconds=600)\n"
        "with open_executor('local', num_workers=1) as executor:\n"
        "    list(executor.run([digest(seed=1), slow], StageStore(Path(sys.argv[1]))))\n"
    )
    started = tmp_path / "started"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(started)], env=environment)
    # The driver publishes the first result while the second task starts.
    stages = tmp_path / ".stages"
    assert soon(lambda: started.exists() and started.read_text() and any(stages.glob("[!.]*")))
    pid = int(started.read_text())
    driver.kill()
    driver.wait()
    assert soon(lambda: not Path(f"/proc/{pid}/stat").exists())
    with open_executor("local", num_workers=1) as executor:
        (ended,) = executor.run([digest(seed=1)], StageStore(tmp_path))
    assert ended.result.resumed
    # Nothing remains of the task that was running.
    assert len(list((tmp_path / ".stages").iterdir())) == 1


def soon(condition):
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()

# SPDX-License-Identifier: Apache-2.0
"""A user's own executor, which starts a command for each task, as a plugin."""

import executor_tasks
from executor_contract import one_result

from tfq import registry
from tfq.executors import open_executor
from tfq.store import StageStore

# docs/distributed.md shows what is between the markers.
PLUGIN = '''
# --8<-- [start:executor]
import json
import os
import subprocess
import sys

import tfq
from tfq import executors


class Commands:
    """Runs each task by a separate command: ADDRESS is put before it, such as "srun --ntasks=1"."""

    def __init__(self, address, num_workers):
        self.prefix, self.num_workers, self.running = address.split(), num_workers or 1, {}

    def run(self, tasks, store):
        return executors.run_tasks(tasks, store, self)

    def has_room(self, num_running):
        return num_running < self.num_workers

    def start(self, task, needs, store):
        process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "tfq.executors"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **executors.environment(task.num_threads)},
        )
        process.stdin.write(json.dumps(executors.request_of(task, store.out)).encode())
        process.stdin.close()
        self.running[task.key] = (process, task, store)

    def wait(self):
        """Wait for the oldest task."""
        process, task, store = self.running.pop(next(iter(self.running)))
        reply = process.stdout.read()
        if process.wait() != 0:
            return task, executors.Killed(reason=f"exit code {process.returncode}")
        return task, executors.outcome(task, store, json.loads(reply))

    def cancel(self):
        for process, _, _ in self.running.values():
            process.kill()
        self.running.clear()

    close = cancel


tfq.register(tfq.ExecutorKind(name="command", help="a command for each task", open=Commands, address="COMMAND"))
# --8<-- [end:executor]
'''


def test_a_registered_executor_gives_the_result_of_the_local_one(tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    task = executor_tasks.digest(seed=1)
    with registry.temporary():
        registry.load_plugin(str(tmp_path / "plugin.py"))
        (tmp_path / "a").mkdir()
        with open_executor("command:nice", num_workers=1) as executor:
            plugged = one_result(executor, task, StageStore(tmp_path / "a"))
    assert plugged == executor_tasks.expected_digest(seed=1)

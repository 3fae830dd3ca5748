# SPDX-License-Identifier: Apache-2.0
"""The executor `ray` on two nodes with loopback addresses. The oracle is a single process."""

import json
import threading
import time

import numpy as np
import pytest
from executor_contract import each_rule, named, store_in
from executor_tasks import expected_digest
from loopback_ray import Nodes
from messages import refused, warned

from tfq import registry
from tfq.config import EvaluationConfig
from tfq.errors import InputError, TfqError
from tfq.evaluation.accuracy import assess_model
from tfq.executors import Task, call, distributed, open_executor
from tfq.executors.ray_cluster import run_on_node
from tfq.ptq.calibration import observe

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def nodes():
    cluster = Nodes()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def executor(nodes):
    with open_executor(f"ray:{nodes.address}") as executor:
        yield executor


@each_rule
def test_ray_workers(rule, executor, tmp_path):
    rule(executor, tmp_path)


def test_plugins_are_sent_to_the_nodes(executor, tmp_path):
    (tmp_path / "mine.py").write_text("VALUE = 1\n")
    with registry.temporary():
        registry.load_plugin(str(tmp_path / "mine.py"))
        (ended,) = executor.run([named("plugin", "count_plugins")], store_in(tmp_path / "out"))
    assert ended.result.details["plugins"] == ["mine.py"]


def test_shared_work_is_identical_on_two_nodes(executor, golden, tmp_path):
    images = np.random.default_rng(3).uniform(0, 1, (60, 8, 8, 1)).astype(np.float32)
    model, reference = ((golden / f"digits_{kind}.tflite").read_bytes() for kind in ("int8", "float32"))
    labels, settings = np.arange(60) % 10, EvaluationConfig(num_runs=0)

    def work():
        observed = observe(reference, [{"image": image[None]} for image in images[:20]]).to_dict()
        assessed = assess_model(model, (images, labels), settings, reference=reference)
        record = assessed.record.to_dict()
        for name in ("machine", "memory_bytes"):
            record.pop(name)
        return json.dumps([observed, record]), [array.tobytes() for array in assessed.result.outputs]

    alone = work()
    with distributed(executor, tmp_path, num_shards=5):
        assert work() == alone


def test_a_worker_with_other_code_refuses_its_task(executor, tmp_path):
    task = named("old", "write_digest", seed=1)
    request = {**call.request_of(task, tmp_path), "out": "", "plugins": []}
    request["software"] = {**request["software"], "code": "0" * 64}
    reply = run_on_node(request, [])
    assert reply["kind"] == "error" and "code differs" in reply["message"]


def test_a_killed_node_costs_only_time(nodes, executor, tmp_path):
    started = tmp_path / "started"
    started.mkdir()
    tasks = [
        Task(
            name=f"slow {seed}",
            function="executor_tasks:slow_digest",
            arguments={"seed": seed, "started": str(started), "seconds": 2.0},
            inputs={"seed": seed},
        )
        for seed in range(5)
    ]

    def kill_when_both_nodes_work():
        while len(list(started.glob("*.running"))) < 2:
            time.sleep(0.05)
        nodes.kill_node()

    killer = threading.Thread(target=kill_when_both_nodes_work)
    killer.start()
    with warned("again"):
        ended = list(executor.run(tasks, store_in(tmp_path / "out")))
    killer.join()
    assert [each.failure for each in ended] == [None] * 5
    contents = {each.task.name: (each.result.directory / "digest").read_bytes() for each in ended}
    assert contents == {f"slow {seed}": expected_digest(seed) for seed in range(5)}
    # The task that the node had ran twice, and its first run never ended.
    assert len(list(started.glob("*.ended"))) == 5
    assert len(list(started.glob("*.running"))) == 1


def test_a_missing_cluster_is_an_error(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with refused(TfqError, field="executor", word="127.0.0.4:1"), open_executor("ray:127.0.0.4:1"):
        pass
    with refused(InputError, field="executor"), open_executor("rey:127.0.0.4:1"):
        pass

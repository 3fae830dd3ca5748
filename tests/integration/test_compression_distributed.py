# SPDX-License-Identifier: Apache-2.0
"""Compression under tf.distribute strategies: results equal those of one device, inside and outside of the scope."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import tfq

FOLDER = Path(__file__).parent
# The order of sums in float32.
ROUNDING = 1e-6


def run_child(*arguments, **environment):
    """Start a script of this folder, and return the process."""
    paths = os.pathsep.join((str(FOLDER.parents[1]), str(FOLDER)))
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process):
    """Return the JSON that a child printed last."""
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-4000:]
    return json.loads(output.splitlines()[-1])


def check(results, *steps):
    for step in steps:
        assert results[step]["replicas"] == 2, step
        assert results[step]["outside"] < ROUNDING, step
        assert results[step]["replicas_differ"] == 0, step


def test_qat_on_two_replicas_gives_the_weights_of_one_device():
    results = result_of(run_child(FOLDER / "distributed_steps.py", "uncalibrated"))
    check(results, "uncalibrated")
    assert results["uncalibrated"]["training"] > 1e3 * ROUNDING


@pytest.mark.slow
def test_every_step_on_two_replicas_equals_one_device():
    steps = ("ema", "lsq", "distillation", "bridged", "uniform", "erk", "lamp", "sensitivity", "cluster", "structured")
    results = result_of(run_child(FOLDER / "distributed_steps.py", *steps, "statistics"))
    check(results, *steps)
    assert all(results[step]["inside"] < ROUNDING for step in steps)
    assert results["statistics"] == {
        "different_before": True,
        "different_after": False,
        "converts_as_saved": True,
        "exported": "full_int8",
        "parity": True,
        "preflight": True,
    }


@pytest.mark.slow
def test_two_workers_train_alike_and_the_chief_saves(tmp_path):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{item.getsockname()[1]}" for item in sockets]
    for item in sockets:
        item.close()
    workers = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        file = tmp_path / f"worker_{index}.h5"
        workers.append(run_child(FOLDER / "distributed_workers.py", file, TF_CONFIG=json.dumps(config)))
    chief, other = map(result_of, workers)
    assert chief == other
    assert chief["refused"] == "multi-worker"
    assert chief["sparsity"]["conv"] >= 0.45
    # This process has no strategy.
    assert tfq.audit(tfq.convert(tfq.load_model(tmp_path / "worker_0.h5"))).scheme == "full_int8"

# SPDX-License-Identifier: Apache-2.0
"""The steps of examples/ci/tfq.yml run, in their order, and stop a regression."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gate_models
import numpy as np
import pytest
from golden_models import golden

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "examples" / "ci" / "tfq.yml"


def steps_of(text: str, job: str) -> dict[str, str]:
    """Return name -> script of the steps of a job that run a script, in their order."""
    (body,) = re.findall(rf"^  {job}:\n((?:    .*\n|\n)*)", text, re.MULTILINE)
    steps = {}
    for step in re.split(r"^      - ", body, flags=re.MULTILINE)[1:]:
        name = re.match(r"name: (.*)", step)
        script = re.search(r"^        run: (?:\|\n((?:          .*\n|\n)*)|(.*))", step, re.MULTILINE)
        if name and script:
            lines = script[1].splitlines() if script[1] else [script[2]]
            steps[name[1]] = "\n".join(line.removeprefix(" " * 10) for line in lines)
    return steps


def test_the_steps_of_the_workflow_are_found():
    text = WORKFLOW.read_text()
    names = ["Install", "Convert", "Compare with the baseline", "Show the result in the pull request"]
    assert list(steps_of(text, "gate")) == names
    assert text.count("run:") == sum(len(steps_of(text, job)) for job in ("gate", "baseline"))
    assert "\n  --out=out/gate" in steps_of(text, "gate")["Compare with the baseline"]


@pytest.mark.slow
def test_the_workflow_proposes_a_baseline_passes_and_stops_a_regression(tmp_path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.images[..., None].astype(np.float32), digits.target.astype(np.int64)
    checkout, commands = tmp_path / "checkout", tmp_path / "bin"
    commands.mkdir()
    for name, script in {
        "tfq": f'exec {sys.executable} -m tfq "$@"',
        "pip": 'test "$*" = "install tfq"',  # tfq is here
        "gh": 'test "$1 $2" = "pr create"',
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DATA": "npz:examples.npz",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_RUN_ID": "7",
        "TFQ_PROGRESS": "0",
    }

    def run(script: str) -> subprocess.CompletedProcess:
        # As GitHub starts them.
        return subprocess.run(
            ["bash", "-e", "-c", script], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
        )

    def succeed(script: str) -> None:
        done = run(script)
        assert done.returncode == 0, (script, done.stdout, done.stderr)

    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "origin"], check=True)
    subprocess.run(["git", "clone", "-q", tmp_path / "origin", checkout], check=True, capture_output=True)
    (checkout / "model_float32.tflite").write_bytes(golden(gate_models.FLOAT))
    np.savez(checkout / "examples.npz", x_train=x[:200], y_train=y[:200], x_test=x[-64:], y_test=y[-64:])
    text = WORKFLOW.read_text()
    for script in steps_of(text, "baseline").values():
        succeed(script)
    listed = ["git", "-C", tmp_path / "origin", "ls-tree", "-r", "--name-only", "baseline-7"]
    assert subprocess.run(listed, check=True, capture_output=True, text=True).stdout == "ci/baseline.json\n"
    steps = steps_of(text, "gate")
    for script in steps.values():
        succeed(script)
    assert "passed" in (tmp_path / "summary.md").read_text()
    assert json.loads((checkout / "out" / "gate" / "compare.json").read_text())["gate"]["holds"]
    (checkout / "out" / "model_float32_int8.tflite").write_bytes(gate_models.with_weight_scale_doubled())
    assert run(steps["Compare with the baseline"]).returncode == 1
    succeed(steps["Show the result in the pull request"])
    summary = (tmp_path / "summary.md").read_text()
    assert "failed" in summary and "depthwise" in summary

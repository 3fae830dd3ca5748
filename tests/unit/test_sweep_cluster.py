# SPDX-License-Identifier: Apache-2.0
"""The example manifests run every shard of a sweep once, and name flags that the command has."""

import os
import re
import subprocess

import pytest

from tfq.cli.flags import settings_of

SLURM = [{"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, "3/8"]
RESUBMITTED = [{"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "1", "SWEEP_SHARDS": "8"}, "3/8"]
KUBERNETES = [{"JOB_COMPLETION_INDEX": "0", "SWEEP_SHARDS": "8"}, "1/8"]


def run(root, folder, variables):
    """Run the script with a `tfq` that prints its arguments."""
    (folder / "tfq").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "tfq").chmod(0o755)
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **variables}
    command = ["sh", root / "examples" / "cluster" / "shard.sh", "--grid=a b.json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("variables", "shard"), [SLURM, RESUBMITTED, KUBERNETES])
def test_the_script_passes_its_shard_and_arguments(variables, shard, root, tmp_path):
    assert run(root, tmp_path, variables).stdout.splitlines() == ["sweep", "--grid=a b.json", f"--shard={shard}"]


@pytest.mark.parametrize("variables", [{}, {"JOB_COMPLETION_INDEX": "0"}])
def test_the_script_fails_outside_of_an_array(variables, root, tmp_path):
    assert run(root, tmp_path, variables).returncode != 0


@pytest.mark.parametrize("name", ["slurm.sbatch", "kubernetes.yaml"])
def test_the_manifests_use_flags_of_the_command(name, root):
    text = (root / "examples" / "cluster" / name).read_text()
    own = {setting.flag for setting in settings_of("sweep")}
    used = set(re.findall(r"^\s*(?:- )?--([\w.]+)=/?\w", text, re.MULTILINE))
    assert {"grid", "model", "data", "out", "num_threads"} <= used <= own


def test_the_manifests_have_as_many_shards_as_they_say(root):
    kubernetes = (root / "examples" / "cluster" / "kubernetes.yaml").read_text()
    (completions,) = re.findall(r"completions: (\d+)", kubernetes)
    assert re.findall(r'SWEEP_SHARDS\s+value: "(\d+)"', kubernetes) == [completions]

# SPDX-License-Identifier: Apache-2.0
"""A run on a small full tmpfs: exit code 3 with the reason, nothing lost, and it resumes with the same result."""

import os
import subprocess
import sys

import pytest
from killed_runs import SETTINGS, check_nothing_is_half_written, finish, flatbuffers, start

pytestmark = pytest.mark.slow

PLAIN = ("--nocompression.prune", "--nocompression.qat")
# Each is too small for another stage; the last is large enough.
SIZES = ("48k", "200k", "330k", "64m")

# In a separate mount namespace: the tmpfs disappears with the process in any case.
SCRIPT = r"""
set -u
out=$1; shift
for size in $SIZES; do
    if mountpoint -q "$out"; then
        mount -o remount,size=$size "$out"
    else
        mount -t tmpfs -o size=$size tmpfs "$out" || exit 90
    fi
    "$@"
    echo "EXIT $size $?"
    ls -A "$out"
done
cp "$out"/*.tflite "$KEEP"
"""


def unshare():
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]


@pytest.fixture(scope="module")
def may_mount():
    try:
        message = subprocess.run([*unshare(), "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"cannot make a small disk here: {error}")
    if message.returncode:
        pytest.skip(f"cannot make a small disk here: {message.stderr.strip()}")


def test_a_run_on_a_full_disk_fails_and_resumes_with_space(may_mount, tmp_path):
    whole, out, keep = tmp_path / "whole", tmp_path / "small", tmp_path / "keep"
    finish(start(whole, *PLAIN))
    out.mkdir()
    keep.mkdir()
    command = [sys.executable, "-m", "tfq", "run", f"--out={out}", *SETTINGS, *PLAIN]
    done = subprocess.run(
        [*unshare(), "sh", "-c", SCRIPT, "sh", str(out), *command],
        capture_output=True, text=True, timeout=300, env={**os.environ, "SIZES": " ".join(SIZES), "KEEP": str(keep)},
    )  # fmt: skip
    quantized = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("EXIT")]
    assert quantized == ["3"] * (len(SIZES) - 1) + ["0"], done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == len(SIZES) - 1
    assert all("No space left on device" in line for line in errors), errors
    assert "Traceback" not in done.stderr
    assert not [line for line in done.stdout.splitlines() if line.startswith((".tfq-", ".making"))]
    check_nothing_is_half_written(keep, flatbuffers(whole))
    assert flatbuffers(keep) == flatbuffers(whole)

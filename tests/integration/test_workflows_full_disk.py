# SPDX-License-Identifier: Apache-2.0
"""Writing on a full disk: exit code 3 with the reason, nothing lost, and a run resumes with the same result."""

import contextlib
import errno
import os
import resource
import subprocess
import sys

import pytest
from killed_runs import SETTINGS, check_nothing_is_half_written, finish, flatbuffers, start
from messages import refused

from tfq import artifacts
from tfq.errors import TfqError
from tfq.keras_bridge import import_keras, import_tf_keras
from tfq.workflows.models import save_keras

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


@pytest.mark.slow
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


@contextlib.contextmanager
def files_limited_to(num_bytes):
    """Let every write beyond `num_bytes` of a file fail, with EFBIG instead of ENOSPC. Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def models():
    """Return {"keras": a model of Keras 3, "tf_keras": one of tf_keras} with more than 4 kB of weights."""
    results = {}
    for name, keras in (("keras", import_keras()), ("tf_keras", import_tf_keras())):
        results[name] = keras.Sequential([keras.layers.Input((32,)), keras.layers.Dense(32)])
    return results


@pytest.mark.parametrize(
    ("kind", "name"), [("keras", "m.keras"), ("tf_keras", "m.keras"), ("keras", "m.h5"), ("tf_keras", "m.h5")]
)
def test_a_model_on_a_full_disk_is_a_short_error_and_keeps_the_old_file(kind, name, models, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"old")
    with files_limited_to(2000), refused(TfqError, got=os.strerror(errno.EFBIG), word=str(path)) as caught:
        save_keras(models[kind], path)
    assert caught.value.exit_code == 3
    assert "bytes" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [name]
    # With space, the same call succeeds.
    assert save_keras(models[kind], path).stat().st_size > 4000


@pytest.mark.parametrize("name", ["m.tflite", "examples.npz", "report.json"])
def test_other_files_on_a_full_disk_name_the_bytes_that_they_need(name, tmp_path):
    write = {
        "m.tflite": lambda path: artifacts.write_bytes(path, bytes(5000)),
        "examples.npz": lambda path: artifacts.write_bytes(path, bytes(5000)),
        "report.json": lambda path: artifacts.write_json(path, "x" * 4997),
    }[name]
    with files_limited_to(2000), refused(TfqError, got=os.strerror(errno.EFBIG), word=str(tmp_path / name)) as caught:
        write(tmp_path / name)
    assert caught.value.exit_code == 3
    assert "5000" in str(caught.value)
    assert os.listdir(tmp_path) == []

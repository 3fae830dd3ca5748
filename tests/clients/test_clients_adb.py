# SPDX-License-Identifier: Apache-2.0
"""The adb backend with a real adbd in an empty folder: lost connections, a full disk, several devices, the runtime."""

import errno
import os

import numpy as np
import pytest
from backend_contract import DIGITS, digits, local, soon
from chroot_phone import ADDRESS, Phone
from messages import refused, warned

from tfq.backends import InputStream, RunRequest, adb, make_backend, worker
from tfq.backends.relay import backend
from tfq.errors import BackendError

pytestmark = pytest.mark.clients


@pytest.fixture(autouse=True)
def nothing_is_left(temporary, monkeypatch):
    """Forget which devices were reached, and check that no files of a run are left on this machine."""
    monkeypatch.setattr(backend, "_reached", set())
    yield
    assert list(temporary.iterdir()) == []


def assess(*inputs, name="adb", **settings):
    return make_backend(name).assess(RunRequest(model=DIGITS, inputs=inputs, **settings))


def runtime(phone):
    """Return the installed runtime; the first run of these tests installs it."""
    folder = phone.root / "data/local/tmp/tfq/runtime"
    if not folder.exists():
        with warned("runtime"):
            assess(digits(1))
    (path,) = folder.iterdir()
    return path


def test_the_runtime_is_installed_once_and_runs_the_model(phone):
    before = runtime(phone).stat().st_mtime_ns
    result = assess(digits(70), name=f"adb:{ADDRESS}", num_runs=2)
    np.testing.assert_array_equal(result.outputs[0], local(DIGITS, digits(70))[0])
    assert len(result.latencies_ms) == 2 and result.memory_bytes["peak_rss"] > 1 << 20
    assert runtime(phone).stat().st_mtime_ns == before
    assert result.machine["board"] == "Test phone"
    assert ADDRESS not in str(result.machine) + str(result.notes)


@pytest.mark.parametrize("who", ["adbd", "adb"])
def test_a_run_survives_the_loss_of_its_connection(who, phone, monkeypatch):
    runtime(phone)
    inputs, reads = digits(160), []
    monkeypatch.setattr(worker, "BLOCK_EXAMPLES", 8)
    monkeypatch.setattr(worker, "RING_BYTES", 1 << 12)

    def pieces():
        reads.append(1)
        if len(reads) > 1:
            phone.connect()  # a phone with a cable comes back without it
        for place, piece in enumerate(np.split(inputs, range(16, 160, 16))):
            if place == 6 and len(reads) == 1:
                phone.kill(who)
            yield (piece,)

    with warned("again"):
        stream = InputStream(num_examples=160, pieces=pieces)
        result = make_backend("adb").assess(RunRequest(model=DIGITS, inputs=stream, num_workers=1))
    np.testing.assert_array_equal(result.outputs[0], local(DIGITS, inputs)[0])
    assert len(reads) == 2 and any("restored" in note for note in result.notes)
    assert soon(lambda: not phone.sessions())
    assert soon(lambda: not list((phone.root / "data/local/tmp/tfq/relay/runs").iterdir()))


def test_without_a_serial_number_only_one_device_is_accepted(phone):
    phone.connect("localhost:6000")
    try:
        with refused(BackendError, expected=1, got=2) as caught, warned("localhost:6000"):
            assess(digits(1))
        assert ADDRESS not in str(caught.value)
        assert make_backend("adb:localhost:6000").unavailable() is None
    finally:
        phone.run("disconnect", "localhost:6000")
    assert make_backend("adb").unavailable() is None
    assert "adb devices" in make_backend("adb:absent").unavailable()


def test_a_full_disk_leaves_nothing_of_the_runtime(adb_files, tmp_path, monkeypatch):
    phone = Phone(adb_files, tmp_path / "device", disk_size="20m")
    monkeypatch.setenv(adb.COMMAND_VARIABLE, phone.adb)
    try:
        with refused(BackendError) as caught, warned("runtime"):
            assess(digits(1))
        assert os.strerror(errno.ENOSPC) in caught.value.got
        assert phone.run("-s", ADDRESS, "shell", "ls -A /data/local/tmp/tfq/runtime") == ""
        assert soon(lambda: not phone.sessions())
    finally:
        phone.stop()

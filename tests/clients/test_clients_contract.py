# SPDX-License-Identifier: Apache-2.0
"""The contract of backends, for those that need a server or an emulator."""

import functools
import sys

import pytest
from backend_contract import *  # noqa: F403
from backend_contract import Subject, limit_worker
from loopback_sshd import Sshd

from tfq.backends import make_backend, ssh
from tfq.backends.gpu import backend as gpu
from tfq.backends.gpu import vulkan
from tfq.backends.qemu import sysroot

pytestmark = pytest.mark.clients


def _ssh(request, tmp_path, monkeypatch):
    environment = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "TFQ_TEST": "contract"}
    server = Sshd(request.getfixturevalue("sshd_files"), tmp_path / "sshd", environment)
    request.addfinalizer(server.stop)
    monkeypatch.setenv(ssh.COMMAND_VARIABLE, server.ssh)
    return Subject(
        backend=make_backend(f"ssh:127.0.0.1:{server.port}"),
        runs=tmp_path / ".cache/tfq/relay/runs",
        finish=ssh.stop_masters,
    )


def _qemu(request, tmp_path, monkeypatch):
    sysroot.install()
    return Subject(backend=make_backend("qemu:cortex-a76"), max_lsb=1, limit_memory=None)


def _tflm(request, tmp_path, monkeypatch):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed: make clients installs it")
    # Its kernels round differently, and the softmax of random inputs amplifies that.
    return Subject(
        backend=make_backend("tflm"),
        max_lsb=16,
        crash="slow_benchmark",
        limit_memory=functools.partial(limit_worker, megabytes=32),
    )


def _gpu(request, tmp_path, monkeypatch):
    vulkan.install()

    def limit_memory(monkeypatch, megabytes=500):
        monkeypatch.setattr(gpu, "DRIVER_BYTES", 0)
        monkeypatch.setattr(gpu, "memory_limit", lambda model: megabytes << 20)

    # The softmax amplifies rounding: the builtin kernels differ from XNNPACK by 13. The driver alone needs between 300
    # and 400 MB.
    return Subject(
        backend=make_backend("gpu"),
        max_lsb=16,
        limit_memory=limit_memory,
        too_wide=2048,
        crash="../golden/digits_int8",
        before_crash=lambda monkeypatch: limit_memory(monkeypatch, 100),
    )


def _adb(request, tmp_path, monkeypatch):
    phone = request.getfixturevalue("phone")
    return Subject(
        backend=make_backend("adb"),
        runs=phone.root / "data/local/tmp/tfq/relay/runs",
        process_here=phone.process_here,
    )


SUBJECTS = {"gpu": _gpu, "ssh": _ssh, "adb": _adb, "qemu": _qemu, "tflm": _tflm}


@pytest.fixture(params=SUBJECTS)
def subject(request, tmp_path, monkeypatch):
    return SUBJECTS[request.param](request, tmp_path, monkeypatch)

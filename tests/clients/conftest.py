# SPDX-License-Identifier: Apache-2.0
"""Servers that tests of several backends use."""

import pytest
from chroot_phone import Phone, soon, unpack_adb
from loopback_sshd import unpack_server

from tfq.backends import adb


@pytest.fixture(scope="session")
def sshd_files(tmp_path_factory):
    """Return the unpacked files of OpenSSH's server."""
    return unpack_server(tmp_path_factory.mktemp("openssh"))


@pytest.fixture(scope="session")
def adb_files(tmp_path_factory):
    """Return the unpacked files of adb and adbd."""
    return unpack_adb(tmp_path_factory.mktemp("adb"))


@pytest.fixture(scope="session")
def shared_phone(adb_files, tmp_path_factory):
    """Return a device that adb reaches. The first run installs the runtime there."""
    phone = Phone(adb_files, tmp_path_factory.mktemp("phone") / "device")
    yield phone
    phone.stop()


@pytest.fixture
def phone(shared_phone, monkeypatch):
    """Return the device, and let tfq find it. Nothing runs there afterwards."""
    monkeypatch.setenv(adb.COMMAND_VARIABLE, shared_phone.adb)
    yield shared_phone
    assert soon(lambda: not shared_phone.sessions())

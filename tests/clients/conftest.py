# SPDX-License-Identifier: Apache-2.0
"""Servers that tests of several backends use."""

import pytest
from loopback_sshd import unpack_server


@pytest.fixture(scope="session")
def sshd_files(tmp_path_factory):
    """Return the unpacked files of OpenSSH's server."""
    return unpack_server(tmp_path_factory.mktemp("openssh"))

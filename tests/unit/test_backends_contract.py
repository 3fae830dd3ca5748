# SPDX-License-Identifier: Apache-2.0
"""The contract of backends, for this machine and for the relay over a pipe to this machine."""

import sys

import pytest
from backend_contract import *  # noqa: F403
from backend_contract import Subject
from piped_board import PipeBackend

from tfq.backends import make_backend
from tfq.backends.relay.board import PYTHON_VARIABLE

NAMES = ("local", "relay")


@pytest.fixture(params=NAMES)
def subject(request, tmp_path, monkeypatch):
    if request.param == "local":
        return Subject(backend=make_backend("local"))
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    return Subject(backend=PipeBackend(tmp_path / "board"), runs=tmp_path / "board" / "relay" / "runs")

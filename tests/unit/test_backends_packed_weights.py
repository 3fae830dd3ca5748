# SPDX-License-Identifier: Apache-2.0
"""XNNPACK's packed weights where they cannot be measured: a reason instead of a number."""

import os
import signal
import struct

import pytest
from golden_models import golden

from tfq.backends.target import op_times, packed_weights


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "model.tflite").write_bytes(golden("digits_int8"))
    return tmp_path


def test_a_crash_is_a_reason_and_ends_only_the_fork(directory, monkeypatch):
    monkeypatch.setattr(op_times, "Compiled", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert "-9" in packed_weights.measure(str(directory), 1)["reason"]


@pytest.mark.parametrize(("error", "word"), [(FileNotFoundError(), "cache"), (RuntimeError("status 3"), "status 3")])
def test_an_error_of_litert_is_a_reason(directory, monkeypatch, error, word):
    def fail(*_):
        raise error

    monkeypatch.setattr(op_times, "Compiled", fail)
    assert word in packed_weights.measure(str(directory), 1)["reason"]


def test_nothing_is_left_in_the_folder(directory):
    assert packed_weights.measure(str(directory), 1)["bytes"] > 0
    assert [path.name for path in directory.iterdir()] == ["model.tflite"]


def test_a_cache_of_another_layout_is_an_error(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(struct.pack("<QQQ", 4, 256, 8) + bytes(264 - 24))
    assert packed_weights.read_size(path) == 128
    for content in (b"", struct.pack("<QQQ", 4, 256, 9) + bytes(240), struct.pack("<QQQ", 4, 64, 200) + bytes(240)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="layout"):
            packed_weights.read_size(path)

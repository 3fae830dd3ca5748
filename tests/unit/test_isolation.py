# SPDX-License-Identifier: Apache-2.0
"""Functions on foreign flatbuffers run in a child: the same result, and a crash is an error."""

import os
import signal

import pytest
from golden_models import golden

from tfq import isolation
from tfq.errors import InputError, ModelError
from tfq.isolation import foreign_bytes, isolated, trust

FOREIGN = golden("digits_float32")


@isolated("the library", advice="Save it again")
def process_id():
    return os.getpid()


@isolated("the library", advice="Save it again")
def crash(parent):
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGSEGV)
    return "not in a child"


@isolated("the library", advice="Save it again")
def fail(field):
    os.write(2, b"loc: error: a line of MLIR\n")
    raise InputError("refused", field=field, got=3)


@pytest.fixture(autouse=True)
def child_finds_this_file(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.setattr(isolation, "_trusted", set())  # other tests convert the same file
    yield
    isolation.stop()


def test_a_foreign_flatbuffer_is_handled_in_one_child():
    assert process_id() == os.getpid()
    with foreign_bytes(FOREIGN):
        first, second = process_id(), process_id()
    assert first == second != os.getpid()


def test_a_flatbuffer_of_this_process_is_handled_in_it(monkeypatch):
    monkeypatch.setattr(isolation, "_trusted", set())
    with foreign_bytes(trust(FOREIGN)):
        assert process_id() == os.getpid()


def test_a_crash_is_a_model_error_and_the_next_call_works():
    with foreign_bytes(FOREIGN):
        with pytest.raises(ModelError) as caught:
            crash(os.getpid())
        assert caught.value.got == "SIGSEGV"
        assert "the library" in str(caught.value)
        assert process_id() != os.getpid()
    # Without a child, the function does not crash: the error above came from there.
    assert crash(os.getpid()) == "not in a child"


def test_errors_and_stderr_come_back(capfd):
    with foreign_bytes(FOREIGN), pytest.raises(InputError) as caught:
        fail("model")
    assert (str(caught.value), caught.value.field, caught.value.got) == ("refused", "model", 3)
    assert "a line of MLIR" in capfd.readouterr().err

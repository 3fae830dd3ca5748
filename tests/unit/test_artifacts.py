# SPDX-License-Identifier: Apache-2.0
"""Files are written completely or not at all."""

import math
import multiprocessing
import os
import stat
import subprocess
import sys

import pytest
from messages import refused

from tfq import artifacts
from tfq.errors import InputError, TfqError


def test_a_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    artifacts.write_bytes(path, b"one")
    artifacts.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_written_file_has_the_mode_of_an_ordinary_one(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    written = artifacts.write_bytes(tmp_path / "written", b"x")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = artifacts.write_bytes(tmp_path / "a.bin", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused(TfqError, word="space"):
        artifacts.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failed_write_is_an_error_and_keeps_the_old_file(tmp_path):
    path = artifacts.write_bytes(tmp_path / "a.bin", b"old")
    code = (
        "import resource, signal, sys\n"
        "from tfq import artifacts\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    artifacts.write_bytes(sys.argv[1], bytes(2000))\n"
        "except artifacts.TfqError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "cannot write" in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_staged_file_appears_only_when_its_block_ends_well(tmp_path):
    path = tmp_path / "m.keras"
    with pytest.raises(ZeroDivisionError), artifacts.staged(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with artifacts.staged(path) as temporary:
        assert temporary.suffix == ".keras"
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["m.keras"]


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [math.nan]}])
def test_json_without_a_number_for_it_is_refused(tmp_path, value):
    with refused(TfqError, word="reason"):
        artifacts.write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "word"), [("", "directory"), ("none", "exist"), ("empty", "empty"), ("empty/x", "read"), ("\0", "read")]
)
def test_reading_says_what_is_wrong_with_the_path(tmp_path, name, word):
    (tmp_path / "empty").touch()
    with refused(InputError, word=word) as caught:
        artifacts.read_bytes(tmp_path / name, "a model", field="reference")
    assert (caught.value.field, caught.value.expected) == ("reference", "a model")
    assert caught.value.got == str(tmp_path / name)


def test_content_is_taken_from_bytes_or_from_a_path(tmp_path):
    path = artifacts.write_bytes(tmp_path / "a.tflite", b"content")
    for source in (b"content", bytearray(b"content"), path, str(path)):
        content = artifacts.content_of(source, "model")
        assert isinstance(content, bytes) and content == b"content"


def test_content_of_something_else_is_an_input_error():
    with pytest.raises(InputError) as caught:
        artifacts.content_of(7, "model")
    assert (caught.value.field, caught.value.got) == ("model", "int")


def test_an_out_directory_below_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path / "file", tmp_path / "file" / "below", ""):
        with refused(InputError, field="out", got=str(bad)):
            artifacts.make_out_dir(bad)
    assert artifacts.make_out_dir(tmp_path / "a" / "b").is_dir()


def test_the_current_directory_is_an_out_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert artifacts.make_out_dir(".").samefile(tmp_path)


def test_the_cache_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TFQ_CACHE_DIR", str(tmp_path / "mine"))
    assert artifacts.cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("TFQ_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert artifacts.cache_dir() == tmp_path / "xdg" / "tfq"


def _append(path, lock, word):
    for _ in range(20):
        with artifacts.locked(lock):
            text = path.read_text()
            path.write_text(text + word)


def test_a_lock_keeps_processes_apart(tmp_path):
    path = tmp_path / "text"
    path.write_text("")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append, args=(path, tmp_path / "lock", word)) for word in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(path.read_text()) == ["a"] * 20 + ["b"] * 20


def test_a_directorys_hash_covers_files_and_names(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "variables").mkdir(parents=True)
        (tmp_path / name / "saved_model.pb").write_bytes(b"graph")
        (tmp_path / name / "variables" / "data").write_bytes(b"weights")
    first = artifacts.sha256_path(tmp_path / "a")
    assert artifacts.sha256_path(tmp_path / "b") == first
    (tmp_path / "b" / "variables" / "data").rename(tmp_path / "b" / "variables" / "other")
    assert artifacts.sha256_path(tmp_path / "b") != first
    (tmp_path / "a" / "variables" / "data").write_bytes(b"weight5")
    assert artifacts.sha256_path(tmp_path / "a") != first
    file = tmp_path / "a" / "saved_model.pb"
    assert artifacts.sha256_path(file) == artifacts.sha256_file(file) == artifacts.sha256(b"graph")

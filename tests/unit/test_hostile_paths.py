# SPDX-License-Identifier: Apache-2.0
"""Every command with a sample of hostile paths and files, in process; benchmarks/hostile_paths.py runs all of them."""

import importlib.util
import json
import os
import sys
from itertools import chain, cycle
from pathlib import Path

import numpy as np
import pytest
from hostile_files import CONTENTS, NAME, PATHS, as_ordinary_user

from tfq import artifacts, progress
from tfq.cli import flags
from tfq.config import DataConfig, RunConfig
from tfq.data import load_split, source_fingerprint
from tfq.data.loading import check_readable
from tfq.errors import InputError
from tfq.registry import load_plugin

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "hostile_paths.py"


def loaded():
    specification = importlib.util.spec_from_file_location("hostile_paths_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


hostile = loaded()
# Paths that are refused as an output directory, and as any other file.
REFUSED_OUT = cycle(
    ("named pipe", "device", "link to itself", "below a file", "long name", "unreadable", "link to /", "dangling link")
)
REFUSED = cycle(kind for kind in PATHS if kind not in ("not UTF-8", "escape sequence", "line break"))


def sample(command, section):
    """Return a case for each flag of a command that names a path; the kinds of paths take turns."""
    cases = []
    for number, (flag, formats) in enumerate(hostile.flags_of(command, section)):
        form = formats[number % len(formats)]
        kind = next(REFUSED_OUT if form == "directory" else REFUSED)
        cases.append(hostile.Case(command, flag, form, kind, True))
    return cases


CASES = {command.command: sample(command.command, section) for section, command in flags.COMMANDS.items()}


@pytest.mark.parametrize("command", CASES)
def test_a_hostile_path_is_refused_by_each_flag(command, tmp_path, tfq_here, monkeypatch):
    source = "folder=" if command == "report" else "model="
    assert {"config=", source, "out=", "plugin="} <= {case.flag for case in CASES[command]}
    monkeypatch.chdir(tmp_path)
    for number, case in enumerate(CASES[command]):
        directory = tmp_path / str(number)
        directory.mkdir()
        with as_ordinary_user():
            done = tfq_here(*hostile.arguments_of(case, directory))
        assert not list(hostile.problems_of(case, done.returncode, done.stdout, done.stderr)), (case, done.stderr)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("json", "truncated"), ("json", "float that overflows"), ("json", "null in a path"), ("json", "duplicate key"),
        ("python", "exit"), ("python", "failure"), ("python", "deep expression"), ("python", "unknown encoding"),
        ("flatbuffer", "garbage"), ("flatbuffer", "zeros after the signature"), ("flatbuffer", "another format"),
    ],
)  # fmt: skip
def test_hostile_content_is_refused_and_the_file_is_named(form, kind, tmp_path, tfq_here):
    flag = {"json": "config=", "python": "plugin=", "flatbuffer": "model="}[form]
    case = hostile.Case("audit", flag, form, kind, False)
    done = tfq_here(*hostile.arguments_of(case, tmp_path))
    assert done.returncode == 2 and NAME in done.stderr.splitlines()[-1], done.stderr
    assert not list(hostile.problems_of(case, done.returncode, done.stdout, done.stderr))


def test_every_problem_of_an_outcome_is_found():
    case = hostile.Case("audit", "model=", "flatbuffer", "device", True)
    good = f"tfq audit: error: {NAME}.tflite is a device"
    assert list(hostile.problems_of(case, 2, "", good)) == []
    for code, text in [
        (0, good),
        (3, good),
        (2, "tfq audit: error: a device"),
        (2, f"Traceback (most recent call last)\n{good}"),
        (2, f"{good}\x1b[31m"),
        (2, f"{good} {'x' * 5000}"),
        (2, f"{good}\nmore"),
    ]:
        assert list(hostile.problems_of(case, code, "", text)), text


def test_every_flag_that_names_a_file_is_marked():
    for setting in flags.every_setting():
        text = setting.field.metadata["help"]
        words = (".tflite file", "float .tflite, Keras", "JSON file", "Python file", "output directory", "text file")
        names_a_file = any(word in text for word in words)
        if str in (setting.type, *getattr(setting.type, "__args__", ())) and names_a_file:
            assert setting.field.metadata["path_of"], setting.flag


@pytest.mark.parametrize("kind", ["null characters", "long number", "UTF-16", "carriage returns", "huge window"])
def test_a_hostile_table_of_labels_is_refused(kind, tmp_path):
    CONTENTS["eembc"][1]()[kind](tmp_path / "y_labels.csv")
    with pytest.raises(InputError):
        check_readable(DataConfig(source=f"eembc:{tmp_path}"), "test")


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("csv", "many columns"), ("csv", "huge label"), ("idx", "images: compressed garbage"),
        ("idx", "labels: sizes whose product overflows"), ("idx", "images: named pipe"), ("wav", "a device"),
        ("wav", "recording: named pipe"), ("wav", "recording: endless chunks"), ("masks", "unreadable folder"),
        ("coco", "image: named pipe"), ("coco", "name of 100,000 characters"), ("coco", "box of many digits"),
        ("coco", "name of a category that is an object"),
    ],
)  # fmt: skip
def test_a_hostile_data_source_is_refused_and_named(form, kind, tmp_path):
    suffix, contents = CONTENTS[form]
    path = tmp_path / f"{NAME}{suffix}"
    with as_ordinary_user():
        contents()[kind](path)
        with pytest.raises(InputError) as refused:
            load_split(DataConfig(source=f"{form}:{path}"), "test")
    path.chmod(0o700)
    assert NAME in str(refused.value)


@pytest.mark.parametrize("kind", ["long name", "long path", "unreadable directory", "null"])
def test_a_hostile_folder_of_idx_files_is_refused(kind, tmp_path):
    with as_ordinary_user(), pytest.raises(InputError):
        check_readable(DataConfig(source=f"idx:{PATHS[kind](tmp_path, '')}"), "test")


def image_folder(path):
    from PIL import Image

    (path / "class").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path / "class" / "a.png")
    return path


@pytest.mark.parametrize("target", ["/", "..", "/proc"])
def test_a_class_folder_that_contains_the_data_is_refused(target, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "other").symlink_to(target)
    config = DataConfig(source=f"folder:{tmp_path / 'data'}")
    for read in (check_readable, source_fingerprint):
        with pytest.raises(InputError) as refused:
            read(config)
        assert "other" in str(refused.value)


def test_the_root_of_the_file_system_is_not_a_data_folder(tmp_path):
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(InputError):
        source_fingerprint(DataConfig(source=f"folder:{tmp_path / 'link'}"))


def test_a_fingerprint_reads_only_images_of_the_folder(tmp_path):
    folder = image_folder(tmp_path / "data")
    config = DataConfig(source=f"folder:{folder}")
    before = source_fingerprint(config)
    os.mkfifo(folder / "class" / "pipe")
    (folder / "class" / "elsewhere").symlink_to("/")
    (folder / "notes.txt").write_text("not read")
    assert source_fingerprint(config) == before
    (folder / "class" / "b.png").write_bytes((folder / "class" / "a.png").read_bytes())
    assert source_fingerprint(config) != before


def test_the_error_of_a_decoder_is_one_short_line(tmp_path):
    path = tmp_path / "a.npz"
    CONTENTS["npz"][1]()["huge header"](path)
    with pytest.raises(InputError) as refused:
        load_split(DataConfig(source=f"npz:{path}"), "test")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "import sys; sys.exit('done')"])
def test_a_plugin_that_exits_is_an_input_error(code, tmp_path):
    (tmp_path / "plugin.py").write_text(code)
    with pytest.raises(InputError) as refused:
        load_plugin(str(tmp_path / "plugin.py"))
    assert refused.value.got == "SystemExit"


def test_an_output_directory_of_the_system_is_refused():
    with pytest.raises(InputError) as refused:
        artifacts.check_out_dir("/proc")
    assert refused.value.field == "out"


def test_names_cannot_control_a_terminal_or_fill_it():
    shown = artifacts.shown("a\x1b[31m\n\x9b" + "x" * 5000)
    assert shown.isprintable() and len(shown) < 600 and "x1b" in shown
    assert progress.printable("one\ntwo\x07") == "one\ntwo\\x07"
    assert len(progress.printable("y" * 100_000)) < 1000


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_path_contains_is_refused_in_a_config(text):
    with pytest.raises(InputError) as refused:
        RunConfig.from_dict({"model": text})
    assert refused.value.field == "model"


def test_a_config_with_a_path_that_is_not_utf8_can_be_replayed(tmp_path):
    path = os.fsdecode(b"caf\xe9.tflite")
    artifacts.write_json(tmp_path / "config.json", RunConfig(model=path).to_dict())
    assert RunConfig.from_dict(artifacts.read_json(tmp_path / "config.json")).model == path
    assert json.loads((tmp_path / "config.json").read_text())["model"] == path


def test_every_kind_of_path_is_in_the_sample():
    kinds = {case.kind for case in chain.from_iterable(CASES.values())}
    assert len(kinds) > 15

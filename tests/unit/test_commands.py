# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: help, exit codes, quiet, and no TensorFlow where none is needed."""

import os
import signal
import subprocess
import sys
import tomllib

import pytest
from messages import refused

from tfq.cli import process
from tfq.cli.main import COMMANDS
from tfq.config import DataConfig, RunConfig
from tfq.errors import AuditError, BackendError, InputError, TfqWarning
from tfq.workflows.run import run_recipe


def outcome(main, *arguments):
    with pytest.raises(SystemExit) as exit:
        process.run_command(main, command="t", section="audit", description="d", arguments=["tfq t", *arguments])
    return exit.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (AuditError("missed"), 1),
        (InputError("bad"), 2),
        (BackendError("died"), 3),
        (ValueError("ours"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_code_tells_what_happened(error, code, capsys):
    def main(_):
        if error:
            raise error

    assert outcome(main) == code
    if error:
        told = capsys.readouterr().err
        assert str(error) in told
        assert "Traceback" not in told


@pytest.mark.parametrize("error", [AttributeError("no attribute '_type_spec'"), InputError("cannot be traced")])
def test_an_interrupt_that_a_library_turned_into_its_own_error_is_an_interrupt(error, capsys):
    before = signal.getsignal(signal.SIGINT)

    def main(_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    assert outcome(main) == 130
    assert capsys.readouterr().err == "tfq t: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("model", "word"),
    [("gone.keras", "exist"), ("folder.h5", "saved_model.pb")],
)
def test_a_run_of_a_file_that_is_not_there_is_bad_input(model, word, tmp_path):
    (tmp_path / "folder.h5").mkdir()
    config = RunConfig(model=str(tmp_path / model), data=DataConfig(source="digits"), out=str(tmp_path / "out"))
    with refused(InputError, field="model", got=str(tmp_path / model), word=word):
        run_recipe(config)


def test_a_benchmark_of_several_files_says_which_one_is_damaged(tmp_path, root, tfq_cli):
    (tmp_path / "cut.tflite").write_bytes((root / "tests/golden/digits_int8.tflite").read_bytes()[:3000])
    whole = root / "tests/golden/digits_float32.tflite"
    result = tfq_cli("benchmark", f"--model={whole}", f"--against={tmp_path / 'cut.tflite'}")
    assert result.returncode == 2
    assert "error: cut: " in result.stderr


def test_v1_shows_the_traceback(capsys):
    def main(_):
        raise ValueError("deep")

    assert outcome(main, "-v=1") == 3
    assert "Traceback" in capsys.readouterr().err


def test_warnings_of_tfq_are_told_and_those_of_libraries_are_not(capfd):
    import warnings

    def main(_):
        warnings.warn("mind this", TfqWarning, stacklevel=1)
        warnings.warn("internal", DeprecationWarning, stacklevel=1)

    assert outcome(main) == 0
    assert "warning: mind this" in capfd.readouterr().err


def test_what_c_libraries_write_to_stderr_stays_off_the_screen(capfd):
    import os

    def main(_):
        os.write(2, b"W0000 noise")
        print("ours", file=sys.stderr)

    assert outcome(main) == 0
    told = capfd.readouterr().err
    assert "ours" in told
    assert "noise" not in told


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads_well_exits_0_and_loads_no_tensorflow(command, root):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['tfq', {command!r}, '--help']\n"
        "try:\n    runpy.run_module('tfq', run_name='__main__')\n"
        "except SystemExit as exit:\n    code = exit.code\n"
        "heavy = {'tensorflow', 'tf_keras', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"tfq {command}: ")
    assert "--model" in done.stdout
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_script_file_runs_by_itself(command, root):
    done = subprocess.run(
        [sys.executable, root / "pipelines" / f"{command}.py", "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config" in done.stdout


def test_a_typo_in_the_name_of_a_script_gets_a_suggestion(tfq_cli):
    done = tfq_cli("covnert")
    assert done.returncode == 2
    assert "did you mean 'convert'" in done.stderr


def test_a_typo_in_a_flag_gets_a_suggestion(tfq_cli):
    done = tfq_cli("evaluate", "--bakend=local")
    assert done.returncode == 2
    assert "did you mean 'backend'" in done.stderr


def test_tfq_alone_tells_its_scripts(tfq_cli):
    done = tfq_cli()
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"tfq {command}" in done.stdout


def test_every_command_is_a_file_of_pipelines_and_the_other_way_round(root):
    assert set(COMMANDS) == {path.stem for path in (root / "pipelines").glob("*.py")} - {"__init__"}


def test_the_version_is_that_of_the_package(root, tfq_cli):
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    done = tfq_cli("--version")
    assert (done.returncode, done.stdout) == (0, f"tfq {declared}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_has_one_prefix(command, tfq_cli):
    done = tfq_cli(command, "--seed=-1")
    assert done.returncode == 2
    assert done.stderr.startswith(f"tfq {command}: error: ")
    assert not done.stderr.startswith((f"tfq {command}: error: {command}:", f"tfq {command}: error: config:"))

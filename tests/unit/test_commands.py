# SPDX-License-Identifier: Apache-2.0
"""The command line from a user's perspective: help, exit codes, --quiet, and no TensorFlow unless it is needed."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib

import pytest
from messages import refused

from tfq import workflows
from tfq.cli import process
from tfq.cli.main import COMMANDS
from tfq.config import DataConfig, EvaluationConfig, RunConfig
from tfq.errors import AuditError, BackendError, FlatbufferError, InputError, TfqWarning, install_hint
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
def test_exit_codes_distinguish_outcomes(error, code, capsys):
    def main(_):
        if error:
            raise error

    assert outcome(main) == code
    if error:
        message = capsys.readouterr().err
        assert str(error) in message
        assert "Traceback" not in message


@pytest.mark.parametrize("error", [AttributeError("no attribute '_type_spec'"), InputError("cannot be traced")])
def test_an_interrupt_wrapped_by_a_library_is_an_interrupt(error, capsys):
    before = signal.getsignal(signal.SIGINT)

    def main(_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    assert outcome(main) == 130
    assert capsys.readouterr().err.splitlines() == ["tfq t: interrupted"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("model", "word"),
    [("gone.keras", "exist"), ("folder.h5", "saved_model.pb")],
)
def test_a_run_of_a_missing_file_is_an_input_error(model, word, tmp_path):
    (tmp_path / "folder.h5").mkdir()
    config = RunConfig(model=str(tmp_path / model), data=DataConfig(source="digits"), out=str(tmp_path / "out"))
    with refused(InputError, field="model", got=str(tmp_path / model), word=word):
        run_recipe(config)


def test_a_benchmark_of_several_files_says_which_one_is_damaged(tmp_path, root, tfq_cli):
    (tmp_path / "cut.tflite").write_bytes((root / "tests/golden/digits_int8.tflite").read_bytes()[:3000])
    whole = root / "tests/golden/digits_float32.tflite"
    result = tfq_cli("benchmark", f"--model={whole}", f"--against={tmp_path / 'cut.tflite'}")
    assert result.returncode == 2
    assert "cut.tflite:" in result.stderr


def test_v1_shows_the_traceback(capsys):
    def main(_):
        raise ValueError("deep")

    assert outcome(main, "-v=1") == 3
    assert "Traceback" in capsys.readouterr().err


def test_only_tfqs_warnings_are_printed(capfd):
    import warnings

    def main(_):
        warnings.warn("ours", TfqWarning, stacklevel=1)
        warnings.warn("internal", DeprecationWarning, stacklevel=1)

    assert outcome(main) == 0
    message = capfd.readouterr().err
    assert "ours" in message and "internal" not in message


def test_what_c_libraries_write_to_stderr_stays_off_the_screen(capfd):
    import os

    def main(_):
        os.write(2, b"W0000 noise")
        print("ours", file=sys.stderr)

    assert outcome(main) == 0
    message = capfd.readouterr().err
    assert "ours" in message
    assert "noise" not in message


# In one process, whose imports take most of the time: the script first, with the path that Python gives a script.
HELP_TWICE = """
import runpy, sys

def help_of(run, name, *arguments):
    sys.argv = [*arguments, "--help"]
    try:
        run(name, run_name="__main__")
    except SystemExit as exit:
        assert not exit.code, exit.code
    heavy = {"tensorflow", "tf_keras", "keras", "sklearn", "matplotlib"} & set(sys.modules)
    assert not heavy, heavy

folder, command = sys.argv[1:]
sys.path[0] = folder
help_of(runpy.run_path, f"{folder}/{command}.py", f"{folder}/{command}.py")
sys.path[0] = ""
print("END OF THE SCRIPT'S", flush=True)
help_of(runpy.run_module, "tfq", "tfq", command)
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_script_and_command_reads_well_exits_0_and_loads_no_tensorflow(command, root):
    arguments = [sys.executable, "-c", HELP_TWICE, root / "pipelines", command]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    of_script, of_command = done.stdout.split("END OF THE SCRIPT'S\n")
    assert "--config" in of_script
    assert of_command.startswith(f"tfq {command}: ")
    assert "--out" in of_command
    assert "Exit codes" in of_command


def test_a_typo_in_the_name_of_a_command_gets_a_suggestion(tfq_cli):
    done = tfq_cli("covnert")
    assert done.returncode == 2
    assert "'convert'" in done.stderr


def test_a_typo_in_a_flag_gets_a_suggestion(tfq_cli):
    done = tfq_cli("evaluate", "--bakend=local")
    assert done.returncode == 2
    assert "'--backend'" in done.stderr


def test_tfq_alone_tells_its_scripts(tfq_cli):
    done = tfq_cli()
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"tfq {command}" in done.stdout


def test_commands_and_files_of_pipelines_correspond(root):
    assert set(COMMANDS) == {path.stem for path in (root / "pipelines").glob("*.py")} - {"__init__"}


def test_the_version_is_that_of_the_package(root, tfq_cli):
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    done = tfq_cli("--version")
    assert (done.returncode, done.stdout) == (0, f"tfq {declared}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "--reference={gone}"),
        ("analyze", "--reference={gone}"),
        ("benchmark", "--against={gone}"),
        ("evaluate", "--require.max_accuracy_drop=0.01"),
        ("evaluate", "--require.min_agreement=0.9"),
    ],
)
def test_a_missing_reference_is_found_before_any_model_runs(arguments, tmp_path, root, capsys, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("something was read or run")

    monkeypatch.setattr("tfq.data.load_split", fail)
    monkeypatch.setattr("tfq.evaluation.check_backends", fail)
    command, *rest = (argument.format(gone=tmp_path / "gone.tflite") for argument in arguments)
    model = f"--model={root / 'tests/golden/digits_int8.tflite'}"
    pipeline = importlib.import_module(f"tfq.pipelines.{command}")
    with pytest.raises(SystemExit) as exit:
        pipeline.cli([f"tfq {command}", model, "--data=digits", *rest])
    message = capsys.readouterr().err
    assert exit.value.code == 2, message
    assert "gone.tflite does not exist" in message or (rest[0] in message and "set --reference" in message)


@pytest.mark.parametrize(("bound", "code"), [(5.0, 0), (90.0, 1)])
def test_analyze_exits_with_1_if_an_op_is_below_the_bound(bound, code, tmp_path, root, capsys):
    golden = root / "tests/golden"
    arguments = [
        *(f"--model={golden / 'digits_int8.tflite'}", f"--reference={golden / 'digits_float32.tflite'}"),
        *("--data=digits", "--limit=8", "--nohistograms", f"--require.min_layer_sqnr_db={bound}", f"--out={tmp_path}"),
    ]
    pipeline = importlib.import_module("tfq.pipelines.analyze")
    with pytest.raises(SystemExit) as exit:
        pipeline.cli(["tfq analyze", *arguments])
    assert (exit.value.code or 0) == code, capsys.readouterr().err
    record = json.loads((tmp_path / "analyze.json").read_text())
    (asked,) = record["requirements"]
    worst = min(item["sqnr_db"] for item in record["ops"] if item["op_index"] is not None)
    assert asked == {
        "name": "min_layer_sqnr_db", "bound": bound, "value": worst, "holds": not code, "reason": None
    }  # fmt: skip
    assert 'data-table="ops"' in (tmp_path / "analyze.html").read_text()


def test_a_bound_on_an_op_needs_a_reference(root, capsys):
    model = f"--model={root / 'tests/golden/digits_int8.tflite'}"
    pipeline = importlib.import_module("tfq.pipelines.analyze")
    with pytest.raises(SystemExit) as exit:
        pipeline.cli(["tfq analyze", model, "--data=digits", "--require.min_layer_sqnr_db=5"])
    assert exit.value.code == 2 and "--reference" in capsys.readouterr().err


def test_a_damaged_reference_is_named_before_any_model_runs(tmp_path, root):
    (tmp_path / "cut.tflite").write_bytes(b"no model")
    content = (root / "tests/golden/digits_int8.tflite").read_bytes()
    config = RunConfig(
        data=DataConfig(source="npz:gone.npz"), evaluation=EvaluationConfig(reference=str(tmp_path / "cut.tflite"))
    )
    with refused(FlatbufferError, field="evaluation.reference", word="cut.tflite"):
        workflows.evaluate(content, config)


def test_a_run_refuses_a_reference_before_any_work(tmp_path, root):
    config = RunConfig(
        model=str(root / "tests/golden/digits_float32.tflite"),
        data=DataConfig(source="npz:gone.npz"),
        evaluation=EvaluationConfig(reference="gone.tflite"),
        out=str(tmp_path),
    )
    with refused(InputError, field="evaluation.reference", got="gone.tflite"):
        run_recipe(config)


@pytest.mark.parametrize("command", ["convert", "compress", "search"])
def test_a_missing_model_file_is_reported_before_tensorflow_is_imported(command, tmp_path, tfq_cli):
    (tmp_path / "tensorflow.py").write_text("raise ModuleNotFoundError(\"No module named 'tensorflow'\")")
    arguments = ["--model=gone.keras", "--data=npz:gone.npz", f"--out={tmp_path / 'out'}"]
    done = tfq_cli(command, *arguments, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 2, done.stderr
    assert "--model: gone.keras" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["convert", "compress", "search", "train"])
def test_missing_tensorflow_is_reported_before_anything_is_read(command, tmp_path, tfq_cli):
    (tmp_path / "tensorflow.py").write_text("raise ModuleNotFoundError(\"No module named 'tensorflow'\")")
    (tmp_path / "model.keras").write_bytes(b"no model")
    arguments = [f"--model={tmp_path / 'model.keras'}", "--data=digits", f"--out={tmp_path / 'out'}"]
    done = tfq_cli(command, *arguments, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"tfq {command}: error: TensorFlow cannot be imported (No module named 'tensorflow'): {install_hint()}"
    )
    assert not (tmp_path / "out").exists()


def test_a_float_tflite_is_converted_by_litert_without_tensorflow(tmp_path, root, tfq_cli):
    pytest.importorskip("litert_quantizer")
    (tmp_path / "tensorflow.py").write_text("raise ModuleNotFoundError(\"No module named 'tensorflow'\")")
    model = f"--model={root / 'tests/golden/digits_float32.tflite'}"
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    arguments = [model, "--data=digits", f"--out={tmp_path}", "--num_calibration_samples=8"]
    assert tfq_cli("convert", *arguments, "--quantizer=litert", PYTHONPATH=path).returncode == 0
    assert "TensorFlow cannot be imported" in tfq_cli("convert", *arguments, PYTHONPATH=path).stderr


def test_an_install_hint_names_the_index_and_the_clone():
    assert install_hint("litert") == "pip install 'tfq[litert]'; from a clone: pip install -e '.[litert]'"
    assert install_hint() == "pip install 'tfq'; from a clone: pip install -e '.'"


def test_every_install_hint_names_an_extra_of_the_package(root):
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set()
    for path in (root / "tfq").rglob("*.py"):
        source = path.read_text()
        assert path.name == "errors.py" or "tfq[" not in source, path
        named |= set(re.findall(r"install_hint\(['\"](\w+)['\"]\)", source))
    assert named and named <= set(extras)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_has_one_prefix(command, tfq_here):
    done = tfq_here(command, "--plugin=gone.txt")
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"tfq {command}: error: ")
    assert not message.startswith((f"tfq {command}: error: {command}:", f"tfq {command}: error: config:"))

# SPDX-License-Identifier: Apache-2.0
"""The code in README.md, CONTRIBUTING.md and docs/ runs, and the examples have the documented effect."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from page import blocks_of, commands_of
from warm import Program

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if any(not block.reason for block in blocks_of(page.read_text()))]


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    run_in(folder, "-c", "import pathlib, project; project.write_project(pathlib.Path())")
    return folder


def run_in(folder, *arguments):
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    program = Program(list(arguments), folder, {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"})
    output, _ = program.communicate(timeout=900)
    assert program.returncode == 0, output[-6000:]
    return output


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_of_page_runs(page, project, tmp_path):
    for name in ("model.keras", "photos"):
        (tmp_path / name).symlink_to(project / name)
    assert "blocks ran" in run_in(tmp_path, str(Path(__file__).parent / "page.py"), str(page))


def test_blocks_are_found_with_their_lines_and_reasons():
    text = "a\n\n```python\nx = 1\n```\n\n<!-- not run: needs a phone -->\n```bash\nadb shell\n```\n\n"
    text += "```text\nno code\n```\n"
    assert [tuple(block) for block in blocks_of(text)] == [
        ("python", "x = 1\n", 4, ""),
        ("bash", "adb shell\n", 9, "needs a phone"),
    ]


def test_a_reason_is_that_of_the_next_block_alone():
    text = "<!-- not run: why -->\nwords\n\n```python\nx\n```\n"
    assert [block.reason for block in blocks_of(text)] == [""]


def test_hidden_code_runs_before_the_next_block():
    text = "<!-- run first:\nx = 1\n-->\n\n```python\nassert x == 1\n```\n"
    assert [block.code for block in blocks_of(text)] == ["x = 1\n", "assert x == 1\n"]


def test_a_command_other_than_tfq_is_refused():
    assert commands_of("tfq audit \\\n  --model=a.tflite  # comment\n\n") == [["tfq", "audit", "--model=a.tflite"]]
    with pytest.raises(ValueError):
        commands_of("curl example\n")


def test_a_page_whose_code_fails_is_reported_with_its_line(tmp_path):
    (tmp_path / "bad.md").write_text("words\n\n```python\nx = 1\nassert x == 2\n```\n")
    result = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "page.py"), "bad.md"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "bad.md:4:" in result.stderr and "line 5" in result.stderr


@pytest.mark.slow
def test_a_program_that_fails_is_reported(tmp_path):
    with pytest.raises(AssertionError, match="ValueError"):
        run_in(tmp_path, "-c", "raise ValueError('wrong')")


@pytest.mark.slow
def test_example_photos_to_int8_writes_an_int8_file(project, tmp_path):
    out = tmp_path / "model_int8.tflite"
    arguments = (f"--model={project / 'model.keras'}", f"--photos={project / 'photos'}", f"--out={out}")
    run_in(tmp_path, str(ROOT / "examples" / "photos_to_int8.py"), *arguments)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(out))
    assert interpreter.get_input_details()[0]["dtype"].__name__ == "int8"


@pytest.mark.slow
def test_example_lost_accuracy_finds_and_fixes_it(tmp_path):
    output = run_in(tmp_path, str(ROOT / "examples" / "lost_accuracy.py"))
    floating, int8, fixed = percentages(output.splitlines()[-1])
    assert int8 < floating - 20, "the example no longer loses accuracy"
    assert fixed > floating - 2
    assert "cross_layer_equalization" in output


@pytest.mark.slow
def test_example_qat_keras3_keeps_the_accuracy(tmp_path):
    output = run_in(tmp_path, str(ROOT / "examples" / "qat_keras3.py"))
    floating, _, qat = (percentages(line)[0] for line in output.splitlines()[-3:])
    assert qat > floating - 2


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(tmp_path):
    notebook = ROOT / "examples" / "quick_start.ipynb"
    copy = tmp_path / "copy.ipynb"
    copy.write_bytes(notebook.read_bytes())
    run_in(tmp_path, str(ROOT / "docs" / "execute_notebook.py"), str(copy))
    stored, again = (json.loads(path.read_text())["cells"] for path in (notebook, copy))
    assert [len(cell.get("outputs", [])) for cell in again] == [len(cell.get("outputs", [])) for cell in stored]
    (evaluated,) = (cell for cell in again if cell["id"] == "evaluate")
    assert percentages("".join(evaluated["outputs"][0]["data"]["text/plain"]))[0] > 80, "the accuracy of the model"


def percentages(line):
    return [float(number) for number in re.findall(r"([\d.]+)%", line)]


def test_every_example_is_tested_and_in_the_documentation():
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    tests = Path(__file__).read_text()
    assert examples == {name for name in examples if f"test_example_{name}" in tests}
    text = "".join(page.read_text() for page in PAGES)
    assert examples == {name for name in examples if f"examples/{name}.py" in text}

# SPDX-License-Identifier: Apache-2.0
"""Results in notebooks: every record is a table, and hostile names stay text."""

import ast
import dataclasses
import importlib.util
import json
import re

import pytest
from test_report_files import HOSTILE, parsed

import tfq
from tfq.config import AnalysisConfig, BenchmarkConfig, EvaluationConfig
from tfq.config.base import Config
from tfq.notebook import NotebookRecord, NotebookTable, tables_of

TAGS = {"div", "b", "table", "thead", "tbody", "tr", "th", "td"}


def public_records():
    classes = [getattr(tfq, name) for name in tfq.__all__ if isinstance(getattr(tfq, name), type)]
    return [cls for cls in classes if hasattr(cls, "to_dict") and not issubclass(cls, Config)]


def test_every_public_record_has_a_table_for_notebooks():
    records = public_records()
    assert len(records) >= 12
    assert [cls.__name__ for cls in records if not hasattr(cls, "_repr_html_")] == []


@pytest.fixture(scope="module")
def results(golden):
    """Return an audit, an evaluation, a benchmark and an analysis of one model."""
    model, reference = golden / "digits_int8.tflite", golden / "digits_float32.tflite"
    data = tfq.load_split(tfq.DataConfig(source="digits"), "test")
    settings = EvaluationConfig(limit=8, num_runs=2, warmup_runs=0)
    timed = BenchmarkConfig(num_runs=2, min_secs=0, warmup_runs=0, ops=False)
    return {
        "audit": tfq.audit(model),
        "evaluation": tfq.evaluate(model, data, settings, reference=reference),
        "benchmark": tfq.benchmark({"int8": model.read_bytes(), "float": reference.read_bytes()}, timed),
        "analysis": tfq.analyze(model, reference, data, AnalysisConfig(limit=4, histograms=False)),
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("audit", ["full_int8", "CONV_2D", "visited"]),
        ("evaluation", ["top1", "latency", "local, XNNPACK"]),
        ("benchmark", ["int8", "p50 ms", "thread"]),
        ("analysis", ["SQNR dB", "conv2", "no problems found"]),
    ],
)
def test_a_table_shows_the_main_numbers(name, words, results):
    html = results[name]._repr_html_()
    assert all(word in html for word in words), html
    assert parsed(html).tags <= TAGS and "<style" not in html


def test_hostile_names_are_escaped(results):
    audit = dataclasses.replace(results["audit"], scheme=HOSTILE, op_counts={HOSTILE: 1})
    evaluation = dataclasses.replace(
        results["evaluation"], backend=HOSTILE, caveats=(HOSTILE,), accuracy_reason=HOSTILE
    )
    models = tuple(dataclasses.replace(item, name=HOSTILE) for item in results["benchmark"].models)
    benchmark = dataclasses.replace(results["benchmark"], models=models)
    ops = tuple(dataclasses.replace(item, label=HOSTILE) for item in results["analysis"].ops)
    analysis = dataclasses.replace(results["analysis"], ops=ops)
    for record in (audit, evaluation, benchmark, analysis):
        html = record._repr_html_()
        assert parsed(html).tags <= TAGS and "<script" not in html and "alert(1)" in html


def test_any_json_value_is_shown_and_escaped():
    @dataclasses.dataclass(frozen=True)
    class Hostile(NotebookRecord):
        def to_dict(self):
            text = HOSTILE + "\n\x1b[31m\ud800"
            return {
                text: text,
                "list": [text],
                "none": None,
                "table": [{text: text, "n": 1}, {}],
                "nested": {text: [1.5]},
            }

    html = Hostile()._repr_html_()
    assert parsed(html).tags <= TAGS and "\x1b" not in html and "\ud800" not in html
    assert "1.5" in html


def test_lists_of_objects_become_tables_with_numbers_on_the_right():
    tables = tables_of({"ok": True, "layers": [{"size": 12345, "name": "a", "more": [1]}, {"size": None, "name": "b"}]})
    assert [list(row) for row in tables[0].rows] == [["ok", "yes"]]
    assert tables[1] == NotebookTable(
        columns=["name", "size"], rows=[["a", "12,345"], ["b", "—"]], caption="layers", left=1
    )


def test_long_tables_are_cut_with_a_note():
    class Long(NotebookRecord):
        def to_dict(self):
            return {"rows": [{"name": str(number)} for number in range(25)], "text": "x" * 5000}

    html = Long()._repr_html_()
    assert html.count("<tr>") == 1 + 1 + 20 and "5 more rows" in html and "x" * 2000 not in html


def test_the_stored_notebook_is_executed_small_and_names_no_path(root):
    path = root / "examples" / "quick_start.ipynb"
    notebook = json.loads(path.read_text())
    assert path.stat().st_size < 150_000 and (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 4
    assert not re.search(r"[\"' ](/[a-z]+){2}|\\\\Users", json.dumps(outputs)), "a path of a machine"
    for cell in code:
        ast.parse("".join(cell["source"]))


def test_the_check_for_paths_in_a_notebook_sees_one(root, monkeypatch, tmp_path):
    specification = importlib.util.spec_from_file_location("execute_notebook", root / "docs" / "execute_notebook.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    cells = [{"cell_type": "code", "source": ["x = 1\n", "x + 1"]}, {"cell_type": "code", "source": ["print(x)"]}]
    first, second = module.executed({"cells": cells})["cells"]
    assert first["outputs"][0]["data"] == {"text/plain": ["2"]} and second["outputs"][0]["text"] == ["1\n"]
    with pytest.raises(SystemExit, match="path"):
        module.executed({"cells": [{"cell_type": "code", "source": [f"print({str(tmp_path)!r})"]}]})

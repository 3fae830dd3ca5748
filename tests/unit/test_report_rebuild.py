# SPDX-License-Identifier: Apache-2.0
"""Pages are rebuilt from records alone, byte for byte; damaged, old, unknown and hostile records are named."""

import json
import os
import random
import re
import sys
from collections import Counter

import pytest
from messages import refused
from report_record import full_record
from test_report_files import HOSTILE, parsed

import tfq
from tfq.cli.main import COMMANDS, main
from tfq.errors import InputError
from tfq.provenance import SCHEMA_VERSION
from tfq.report import KINDS, write_report
from tfq.report.markdown import markdown_of
from tfq.report.page import page_of

SUFFIXES = (".html", ".md")


def run(monkeypatch, *arguments):
    """Run tfq in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["tfq", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.fixture(scope="module")
def written(tmp_path_factory, golden):
    """Return a folder with the records and pages of five commands and of a run."""
    out = tmp_path_factory.mktemp("records")
    model, reference = f"--model={golden}/digits_int8.tflite", f"--reference={golden}/digits_float32.tflite"
    with pytest.MonkeyPatch.context() as monkeypatch:
        evaluated = ("--data=digits", "--limit=16", "--num_runs=1", "--require.min_accuracy=0.99999")
        assert run(monkeypatch, "evaluate", model, reference, *evaluated, "--backends=none", f"--out={out}") in (0, 1)
        assert run(monkeypatch, "audit", model, "--require=full_int8", f"--out={out}", "--noexecute") == 0
        timed = ("--num_runs=2", "--min_secs=0", "--warmup_runs=0", "--noops")
        assert run(monkeypatch, "benchmark", model, *timed, f"--out={out}") == 0
        analyzed = ("--data=digits", "--limit=4", "--nohistograms")
        assert run(monkeypatch, "analyze", model, reference, *analyzed, f"--out={out}") == 0
    write_report({**full_record(), "schema_version": SCHEMA_VERSION, "command": "run"}, out)
    return out


def test_every_command_that_writes_a_record_has_pages():
    without = {"report"}
    assert set(COMMANDS) - without <= set(KINDS)


SEARCH = {
    "command": "search", "chosen": "mse", "holds": True, "validation": {"examples": 10, "float_accuracy": 0.9},
    "candidates": [
        {"name": "min_max", "accuracy": 0.5, "bytes": 1234, "missed": ["accuracy_drop 0.40"], "against_float": {}},
        {"name": "mse", "accuracy": 0.8125, "bytes": 999, "missed": [], "against_float": {"difference": -0.0875}},
    ],
    "test": {"examples": 20, "accuracy": 0.85, "float_accuracy": 0.875, "against_float": {"difference": -0.025}},
    "advice": ["use more data"],
}  # fmt: skip
LEVELS = {
    **SEARCH, "front": ["mse", "min_max"],
    "points": [{"max_bytes": 1300, "best": "mse", "by_solver": {"ilp": "mse", "greedy": "min_max"}}],
    "levels": {
        "base_level": "int8", "base_distortion": 0.125, "base_costs": {"bytes": 1234},
        "effects": [
            {"layer": "conv", "level": "int8", "distortion": 0, "costs": {"bytes": 0}},
            {"layer": "conv", "level": "int4", "distortion": 0.0625, "costs": {"bytes": -235}},
        ],
        "impossible": {"conv in float": "no such kernel"},
    },
}  # fmt: skip
CURVES = {"loss": [2.0, 0.5], "accuracy": [0.25, 0.75], "val_loss": [2.0, 1.0], "val_accuracy": [0.2, 0.5]}
TRAIN = {
    "command": "train", "history": CURVES, "test_accuracy": 0.625, "test_unit": "fraction", "test_metric": "top1",
    "data_notes": ["val is held out"],
}  # fmt: skip
LAYERS = [{"name": "conv", "qat": "unsupported", "reason": "no kernel", "prunable": True}]
PREFLIGHT = {"command": "preflight", "preflight": {"ok": False, "layers": LAYERS}}
COMPRESS = {
    "command": "compress",
    "history": {"qat": CURVES},
    "sparsity": {"conv": 0.5},
    "preflight": {"layers": LAYERS},
}
CONVERT = {
    "command": "convert", "file": "m_int8.tflite", "audit": {"scheme": "full_int8", "ok": True},
    "verification": {"outputs": [{"name": "p", "sqnr_db": 31.25, "ideal_db": 40.0}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (SEARCH, ["Within the budget: mse", "81.25%", "−8.75", "accuracy_drop 0.40", "use more data", "85.00%"]),
        ({**SEARCH, "holds": False}, ["No candidate is within the budget"]),
        (
            LEVELS,
            ["1,300", "integer program", "50.00%", "Pareto front", "0.0625", "-235", "0.125", "no such kernel"],
        ),
        (TRAIN, ["Test top1 62.50%", "val is held out", "75.00%"]),
        (PREFLIGHT, ["Some layers cannot be compressed", "no kernel"]),
        (COMPRESS, ["50.00%", "no kernel", "Training"]),
        (CONVERT, ["m_int8", "full int8", "31.2 dB"]),
    ],
)
def test_a_page_of_a_command_shows_its_results(record, words):
    record = {**record, "schema_version": SCHEMA_VERSION}
    page, text = page_of(record), markdown_of(record)
    assert [word for word in words if word not in page or word not in text.replace("\\_", "_")] == []


def test_the_page_of_a_search_draws_the_sizes_of_its_candidates():
    record = {**LEVELS, "schema_version": SCHEMA_VERSION}
    plots = KINDS["search"].plots(record)
    assert "Score by size" in page_of(record) and plots["scores_by_size"].svg.startswith("<svg")
    assert KINDS["search"].plots({**SEARCH, "schema_version": SCHEMA_VERSION}) == {}


def test_rebuilt_pages_have_the_bytes_of_those_that_the_commands_wrote(written, tmp_path):
    for path in written.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    pages = tfq.build_report(tmp_path)
    names = sorted(path.name for path in written.iterdir() if path.suffix in SUFFIXES)
    assert len(names) == 10 and sorted(page.name for page in pages[:-1]) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name


def test_the_index_links_every_page(written, tmp_path):
    index = tfq.build_report(written, tmp_path)[-1]
    links = re.findall(r'href="(.*?)"', index.read_text())
    assert index.name == "index.html" and len(links) == 10
    assert all((tmp_path / link).is_file() for link in links)
    assert "passed: The requirement is met" in index.read_text()  # of the audit


def test_one_record_gets_no_index(written, tmp_path):
    pages = tfq.build_report(written / "audit.json", tmp_path)
    assert [page.name for page in pages] == ["audit.md", "audit.html"]


def test_pages_show_the_numbers_of_their_record(written):
    record = json.loads((written / "evaluate.json").read_text())
    accuracy = f"{record['evaluation']['accuracy']:.2%}"
    for name in ("evaluate.html", "evaluate.md"):
        text = (written / name).read_text()
        assert accuracy in text and "min_accuracy" in text
    state = "good" if record["requirements"][0]["holds"] else "bad"
    assert f'data-state="{state}"' in (written / "evaluate.html").read_text()
    assert "full int8" in (written / "audit.md").read_text()
    assert "p50" in (written / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("old.json", {"schema_version": 1, "command": "audit", "audit": {}}, "schema_version"),
        ("new.json", {"schema_version": SCHEMA_VERSION + 1, "command": "audit", "audit": {}}, "schema_version"),
        ("unknown.json", {"schema_version": SCHEMA_VERSION, "command": "brew"}, "brew"),
        ("list.json", {"schema_version": SCHEMA_VERSION, "command": ["audit"]}, "command"),
        ("damaged.json", {"schema_version": SCHEMA_VERSION, "command": "audit", "audit": [1]}, "damaged"),
        (
            "odd.json",
            {"schema_version": SCHEMA_VERSION, "command": "analyze", "ops": [1], "findings": [], "num_samples": 1},
            "damaged",
        ),
        (
            "score.json",
            {"schema_version": SCHEMA_VERSION, "command": "train", "history": {}, "test_accuracy": []},
            "damaged",
        ),
        ("audit.json", [], "record"),
        ("evaluate.json", {"accuracy": 1}, "record"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_shown_is_named_and_the_others_are_built(name, content, word, written, tmp_path):
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "good.json").write_bytes((written / "audit.json").read_bytes())
    with refused(InputError, field="report.folder", word=name) as caught:
        tfq.build_report(tmp_path)
    assert word in str(caught.value) and len(caught.value.got) == 1
    assert (tmp_path / "good.html").read_bytes() == (written / "audit.html").read_bytes()
    assert not (tmp_path / name).with_suffix(".html").exists()


def test_the_command_exits_with_2_and_names_each_damaged_file(written, tmp_path, monkeypatch, capsys):
    (tmp_path / "good.json").write_bytes((written / "audit.json").read_bytes())
    (tmp_path / "half.json").write_bytes((written / "audit.json").read_bytes()[:1000])
    (tmp_path / "empty.json").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.json")
    assert run(monkeypatch, "report", str(tmp_path)) == 2
    message = capsys.readouterr().err
    assert all(name in message for name in ("half.json", "empty.json", "pipe.json")) and "good.json" not in message
    assert (tmp_path / "good.md").exists()
    assert run(monkeypatch, "report", str(tmp_path / "good.json")) == 0
    assert "good.html" in capsys.readouterr().out


def test_json_files_that_are_no_records_are_skipped(written, tmp_path):
    (tmp_path / "model_ranges.json").write_text('{"tensors": {}}')
    with refused(InputError, field="report.folder", word="record"):
        tfq.build_report(tmp_path)
    (tmp_path / "audit.json").write_bytes((written / "audit.json").read_bytes())
    assert len(tfq.build_report(tmp_path)) == 2
    with refused(InputError, field="report.folder", word="record"):
        tfq.build_report(tmp_path / "model_ranges.json")


@pytest.mark.parametrize("command", ["evaluate", "audit", "benchmark", "analyze"])
def test_hostile_text_in_a_record_stays_text(command, written):
    record = _with_text(json.loads((written / f"{command}.json").read_text()), HOSTILE)
    record["command"] = command
    page, clean = page_of(record), page_of(json.loads((written / f"{command}.json").read_text()))
    assert set(parsed(page).tags) <= set(parsed(clean).tags) | {"details", "summary", "ul", "li"}
    assert "<script>alert" not in page
    assert "<script>alert" not in markdown_of(record).partition("```json")[0]  # the rest is verbatim


def _with_text(value, text):
    """Return a JSON value with `text` at the end of every string."""
    if isinstance(value, str):
        return value + text
    if isinstance(value, dict):
        return {key: _with_text(item, text) for key, item in value.items()}
    return [_with_text(item, text) for item in value] if isinstance(value, list) else value


def test_a_long_text_does_not_multiply_with_the_rows_of_a_table():
    candidates = [{"name": "x" * 1_000_000}, *({"name": "y"} for _ in range(2000))]
    text = markdown_of({**SEARCH, "candidates": candidates})
    assert len(text) < 3_000_000


def test_mutated_records_give_pages_or_an_input_error(written, tmp_path):
    generator = random.Random(0)
    values = [None, True, -1, 10**400, 1e308, "x", "\ud800", [], {}, [[]], {"a": {}}, "9" * 5000]
    outcomes = Counter()
    for number in range(60):
        record = json.loads((written / f"{('evaluate', 'audit', 'benchmark')[number % 3]}.json").read_text())
        for _ in range(3):
            _mutate(record, generator, values)
        try:
            path = tmp_path / "record.json"
            path.write_text(json.dumps(record))
            tfq.build_report(path)
            outcomes["built"] += 1
        except InputError as error:
            assert "record.json" in str(error)
            outcomes["refused"] += 1
    assert outcomes["built"] > 5 and outcomes["refused"] > 5, outcomes


def _mutate(value, generator, values):
    """Replace a value at a random place of a record, other than what makes it a record."""
    key = generator.choice([key for key in value if key not in ("schema_version", "command")])
    while isinstance(value[key], (dict, list)) and value[key] and generator.random() < 0.85:
        value = value[key]
        key = generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
    value[key] = generator.choice(values)


def test_a_hostile_name_of_a_file_is_quoted_in_the_index(written, tmp_path):
    for name in ('"><script>alert(1)<.json', "b.json"):
        (tmp_path / name).write_bytes((written / "audit.json").read_bytes())
    index = tfq.build_report(tmp_path)[-1].read_text()
    assert "<script>alert" not in index and len(re.findall("href=", index)) == 4

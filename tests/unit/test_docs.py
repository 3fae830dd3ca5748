# SPDX-License-Identifier: Apache-2.0
"""Generated parts of the documentation agree with registries, tests, the commands' help and the public names."""

import ast
import dataclasses
import importlib.util
import re

import numpy as np
import pytest
from golden_models import golden

import tfq
from tfq import registry
from tfq.analysis import Explanation
from tfq.analysis.explain import ExampleMaps
from tfq.cli.main import COMMANDS
from tfq.comparison.gate_result import FigureResult, GatedModel
from tfq.comparison.metric_changes import MetricChange
from tfq.evaluation import EvaluationRecord, MetricTable
from tfq.evaluation.paired import PairedDifference
from tfq.evaluation.per_example import Difference, ExampleResults, OutputResults
from tfq.keras_bridge.loading import custom_objects
from tfq.ptq.calibration import CalibrationMethod
from tfq.robustness.record import ConditionScore, CorruptionScore, ModelRobustness, RobustnessRecord
from tfq.sweep.record import (
    Best,
    Cost,
    Front,
    FrontMember,
    GroupRecord,
    OtherMetric,
    OtherSpread,
    PointRecord,
    SplitScore,
    Spread,
    SweepResult,
)
from tfq.sweep.statistics import SeedDifference


@pytest.fixture(scope="module")
def generate(root):
    specification = importlib.util.spec_from_file_location("docs_generate", root / "docs" / "generate.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(generate):
    return "".join(path.read_text() for path in generate.documents())


def test_generated_parts_are_up_to_date(generate):
    stale = [path.name for path in generate.documents() if generate.filled(path.read_text()) != path.read_text()]
    assert stale == [], "run python docs/generate.py"


def test_every_extension_point_has_a_table_and_an_example(text):
    assert set(re.findall(r"<!-- registry: (\w+) -->", text)) == set(registry.MODULES)
    assert set(re.findall(r"<!-- code: \S+ (\w+) -->", text)) == set(registry.MODULES)


def test_every_support_table_is_in_the_documentation(text, generate):
    import support_tables

    assert set(re.findall(r"<!-- support: (\w+) -->", text)) == set(support_tables.TABLES)


def test_a_new_refusal_makes_the_support_table_stale(generate, monkeypatch):
    before = generate.filled("<!-- support: code_in_files -->\n<!-- end -->")
    assert generate.filled(before) == before and "| `Lambda` |" in before
    monkeypatch.setitem(custom_objects.REFUSED_CLASSES, "Mine", "my reason")
    assert "| `Mine` | my reason |" in generate.filled(before) != before


def test_alternatives_belong_to_refusals(generate):
    import support_tables

    declared = support_tables._test_module("corpus_declared").REFUSED
    assert set(support_tables.ALTERNATIVES) <= set(declared)


def test_every_command_has_a_page(text):
    assert set(re.findall(r"<!-- help: (\w+) -->", text)) == set(COMMANDS)


def test_every_public_name_is_in_the_api_reference(text, generate):
    groups = generate.public_names()
    assert set(re.findall(r"<!-- api: (\w+) -->", text)) == set(groups)
    assert {name for rows in groups.values() for name, _, _ in rows} == set(tfq.__all__) - {"__version__"}


def test_links_lead_to_files_and_headings(generate):
    broken = []
    for page in generate.documents():
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.exists() or (anchor and anchor not in headings(target.read_text())):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def headings(page):
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_headings_become_anchors():
    assert headings("# One, two\n\n## A `b` c?\n") == {"one-two", "a-b-c"}


def test_a_new_object_makes_the_table_stale(root, generate):
    text = "<!-- registry: calibration_method -->\n<!-- end -->"
    before = generate.filled(text)
    assert generate.filled(before) == before and "| `percentile` |" in before
    with registry.temporary():
        registry.register(CalibrationMethod(name="mine", help="of my own", choose=lambda *seen: (0.0, 1.0)))
        assert "| `mine` | of my own |" in generate.filled(before) != before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("with --out and --fresh.", "with `--out` and `--fresh`."),
        ("`tfq run --config=report.json` repeats", "`tfq run --config=report.json` repeats"),
        ("--require.* set bounds", "`--require.*` set bounds"),
        ("--backend=qemu:CPU counts", "`--backend=qemu:CPU` counts"),
        ("Writes <model>_<steps>.h5, not a < b.", "Writes `<model>_<steps>.h5`, not a < b."),
    ],
)
def test_flags_and_placeholders_become_code_once(generate, text, expected):
    assert generate._quoted(text) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_page_lists_every_flag_below_its_heading(generate, command):
    page = generate.help_of(command)
    lines = [line for line in page.splitlines() if line.startswith("- `--")]
    assert lines and not [line for line in lines if re.search(r"default[^()]*\)\s+\S", line)]


def limits_in(code):
    """Return the values of the argument `limit` of all errors in Python code; those that are not literals as None."""
    calls = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    errors = (call for call in calls if ast.unparse(call.func).endswith(("Error", "super().__init__")))
    values = (keyword.value for call in errors for keyword in call.keywords if keyword.arg == "limit")
    return {value.value if isinstance(value, ast.Constant) else None for value in values}


def test_limits_of_errors_are_read_from_code():
    code = "raise InputError('no', limit='a')\nraise ModelError('no', limit=error.limit)\nrun(limit='c')"
    assert limits_in(code) == {"a", None}


def test_every_unsupported_kind_of_input_is_documented_and_tested(root):
    code = [path.read_text() for folder in ("tfq", "pipelines", "models") for path in (root / folder).rglob("*.py")]
    limits = set().union(*map(limits_in, code)) - {None}
    rows = re.findall(r'<a id="([\w-]+)"></a>', (root / "docs" / "not_supported.md").read_text())
    assert len(rows) == len(set(rows)) and set(rows) == limits
    tests = "".join(path.read_text() for path in (root / "tests").rglob("*.py"))
    assert {limit for limit in limits if f'"{limit}"' not in tests} == set()


# What the JSON values of records consist of; the page of records describes their fields.
RECORDS = (
    EvaluationRecord, PairedDifference, MetricTable, ExampleResults, OutputResults, RobustnessRecord, ModelRobustness,
    CorruptionScore, ConditionScore, Explanation, ExampleMaps, SweepResult, PointRecord, SplitScore, OtherMetric,
    OtherSpread, GroupRecord, Spread, Cost, Front, FrontMember, Best, SeedDifference, GatedModel, FigureResult,
    MetricChange, Difference,
)  # fmt: skip
# Percentiles, means and spreads of latencies are `latency_*_ms`.
LATENCY = re.compile(r"latency_\w+_ms")


def undocumented(names, page):
    documented = {part for code in re.findall(r"`([^`]+)`", page) for part in re.findall(r"\w+", code)}
    return {name for name in names if name not in documented and not LATENCY.fullmatch(name)}


def test_every_field_of_evaluations_comparisons_and_sweeps_is_documented(root):
    page = (root / "docs" / "records.md").read_text()
    names = {field.name for record in RECORDS for field in dataclasses.fields(record)}
    assert undocumented(names, page) == set()


def test_every_key_of_a_real_evaluation_is_documented(root):
    digits = np.random.default_rng(0).integers(0, 16, (40, 8, 8, 1)).astype(np.float32)
    config = tfq.EvaluationConfig(num_runs=0, metric=("f1", "nll"))
    data = (digits, np.arange(40) % 10)
    record = tfq.evaluate(golden("digits_int8"), data, config, reference=golden("digits_float32")).to_dict()
    (output,) = record["outputs"]
    facts = record["metrics"]["f1"]
    confusion, differing = record["classes"]["confusion"], record["differing_examples"]
    parts = (record, facts, facts["table"], facts["difference"], record["classes"], confusion, *confusion["pairs"][:1])
    parts += (output, differing, *differing["examples"][:1], record["per_example"])
    page = (root / "docs" / "records.md").read_text()
    assert undocumented({key for part in parts for key in part}, page) == set()


def test_a_field_that_is_not_documented_is_named():
    assert undocumented({"value", "other", "latency_p50_ms"}, "- `value`, or null") == {"other"}

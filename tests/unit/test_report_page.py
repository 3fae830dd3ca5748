# SPDX-License-Identifier: Apache-2.0
"""The page: its first screen, folded sections, contrast, size, headings of tables, and its script."""

import base64
import hashlib
import itertools
import re
import tomllib
from pathlib import Path

import pytest
from report_record import audit, finding, full_record, newest_record, not_run, weight

from tfq import report
from tfq.report import write_report
from tfq.report.markdown import markdown_of
from tfq.report.page import STYLE, page_of
from tfq.report.verdict import checks_of, headline_of


@pytest.fixture(scope="module")
def page():
    """Return the page of the newest record."""
    return page_of(newest_record())


def bounded(**bounds):
    record = newest_record()
    record["config"]["evaluation"] = {"require": bounds}
    record["config"]["audit"] = {"require": "full_int8"}
    del record["models"][2]["portability"]["rows"]["qemu:cortex-a76"]
    return record


def row_of(record):
    """Return the row of cortex-a53 in the table of the last model."""
    return record["models"][2]["portability"]["rows"]["qemu:cortex-a53"]


COLLAPSE = {"kind": "low_sqnr", "message": "output 'p' has 3.0 dB", "output": "p", "remedies": []}


def states(record):
    """Return the worst state of each check."""
    worst = sorted(checks_of(record), key=lambda check: ("good", "open", "bad").index(check.state))
    return {check.key: check.state for check in worst}


def test_a_run_that_meets_all_requirements_is_ready_to_ship(undrawn):
    record = bounded(min_accuracy=0.95, max_accuracy_drop=0.01)
    assert headline_of(record)[0] == "good" and set(states(record).values()) == {"good"}
    assert 'data-state="good"' in page_of(record)


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (lambda record: record["config"]["evaluation"]["require"].update(min_accuracy=0.999), "requirements"),
        (lambda record: record["models"][1]["evaluation"].update(accuracy=0.2), "requirements"),
        (lambda record: record["models"][1]["evaluation"].pop("accuracy"), "requirements"),
        (lambda record: record["models"][1].update(audit=audit(False, "mixed", (finding(),))), "audit"),
        (lambda record: record["warnings"].append("the run ended early: no emulator"), "run"),
        (lambda record: record["models"][1]["verification"]["collapsed"].append(COLLAPSE), "outputs"),
        (lambda record: record.update(bundle={"self_tests": [{"name": "C", "status": "failed"}]}), "bundle"),
    ],
)
def test_one_failed_check_is_enough_not_to_ship(damage, key, undrawn):
    record = bounded(min_accuracy=0.95)
    damage(record)
    assert headline_of(record)[0] == "bad" and 'data-state="bad"' in page_of(record)
    assert states(record)[key] == "bad" and checks_of(record)[0].state == "bad"
    assert "Ready to ship" not in markdown_of(record)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda record: record["config"].pop("evaluation"), "requirements"),
        (lambda record: record["warnings"].append("the calibration set is noise"), "warnings"),
        (lambda record: row_of(record)["difference"].update(max_abs_error_lsb=7), "backends"),
        (lambda record: row_of(record).update(not_run("qemu:cortex-a53", "no network")), "backends"),
        (lambda record: row_of(record).update(not_run("qemu:cortex-a53", "no such op", "failed")), "backends"),
        (lambda record: record.update(stages=[]), "run"),
        (lambda record: record["models"][1].update(verification=None), "outputs"),
        (lambda record: record["models"][1]["verification"].update(outputs=[]), "outputs"),
    ],
)
def test_a_point_that_the_reader_has_to_decide_is_open(change, key):
    record = bounded(min_accuracy=0.95)
    change(record)
    assert headline_of(record)[0] == "open"
    assert [check.key for check in checks_of(record) if check.state == "open"] == [key]


def test_self_tests_of_the_bundle_that_could_not_run_are_named():
    tests = [{"name": "Python", "status": "passed"}, {"name": "C", "status": "not run", "detail": "no compiler"}]
    record = bounded(min_accuracy=0.95) | {"bundle": {"self_tests": tests}}
    assert headline_of(record)[0] == "good"
    assert [check.answer for check in checks_of(record) if check.key == "bundle"] == [
        "Python: passed; C: not run (no compiler)"
    ]


def test_collapsed_output_is_named_and_notes_keep_the_verdict():
    record = bounded(min_accuracy=0.95)
    record["models"][2]["verification"]["notes"].append({"kind": "sqnr", "message": "output 'q' has 22.0 dB"})
    assert headline_of(record)[0] == "good" and "output 'q' has 22.0 dB" in markdown_of(record)

    record["models"][2]["verification"]["collapsed"].append(COLLAPSE)
    assert headline_of(record)[0] == "bad" and "collapsed: output 'p' has 3.0 dB" in markdown_of(record)


@pytest.mark.parametrize(("dtype", "state"), [("int8", "good"), ("float32", "bad")])
def test_bounds_on_ops_are_checked_with_the_digest_of_the_file(dtype, state):
    record = bounded(max_float_ops=0)
    for model in record["models"]:
        model["digest"] = {"layers": [{"label": "conv/CONV_2D", "op": "CONV_2D", "type": dtype}]}
    assert states(record)["requirements"] == state


def test_an_audit_without_a_requirement_is_open_and_not_failed():
    record = bounded(min_accuracy=0.95)
    record["config"]["audit"]["require"] = ""
    record["models"][1]["audit"] = audit(False, "mixed", (finding(),))
    assert states(record)["audit"] == "open" and headline_of(record)[0] == "open"


def tiles(page):
    """Return key -> (value, details) of the main numbers on the first screen."""
    found = re.findall(r'<div data-cost="(\w+)">.*?<dd class="value">(.*?)</dd>(.*?)</div>', page)
    return {key: (value, re.findall(r'<dd class="detail">(.*?)</dd>', details)) for key, value, details in found}


def test_the_first_screen_has_verdict_main_numbers_and_checks_before_all_else(page):
    first = page[: page.index("<nav")]
    numbers = tiles(first)
    assert {key: value for key, (value, _) in numbers.items()} == {
        "accuracy": "98.59%", "size": "9.8 kB", "latency": "21.1 µs", "instructions": "3.24 M",
    }  # fmt: skip
    for key, numeral in (
        ("accuracy", "98.31%"), ("accuracy", "+0.28 points"), ("accuracy", "96.59% to 99.59%"),
        ("size", "4.6x smaller"),
        ("latency", "1.25x faster than float (means of paired blocks, 95% interval 1.22 to 1.28)"),
        ("instructions", "1.74x fewer"),
    ):  # fmt: skip
        assert any(numeral in detail for detail in numbers[key][1]), numeral
    assert re.findall(r'data-check="(\w+)"', first)[0] == "requirements"  # the open one


def test_details_are_folded_and_the_result_is_not(page):
    folded = re.findall(r'<details class="section"><summary><h2 id="(\w+)"', page)
    shown = [key for key in re.findall(r'<h2 id="(\w+)"', page) if key not in folded]
    assert shown == ["result"] and {"latency", "audit", "stages", "configuration"} <= set(folded)
    result = page[page.index('id="result"') : page.index('<details class="section">')]
    assert re.findall(r'data-plot="(\w+)"', result) == ["accuracy", "size", "latency", "training", "instructions"]
    assert result.count("<svg") == 5 and page.count("<svg") == 5


def luminance(colour):
    """Return the relative luminance, as WCAG 2 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, two):
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


LIGHT, DARK = (
    dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", part))
    for part in STYLE.split("@media print")[0].split("@media screen")
)


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_contrast_is_sufficient_in_light_and_dark(colours):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text, paper in itertools.product(("ink", "soft", "good", "open", "bad"), ("paper", "card")):
        assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
    assert contrast(colours["open"], colours["open-paper"]) >= 4.5
    for number, paper in itertools.product(range(6), ("paper", "card")):
        assert contrast(colours[f"c{number}"], colours[paper]) >= 3, (number, paper)


def test_the_page_follows_the_system_theme_and_prints_light(page):
    assert 'content="light dark"' in page
    assert "@media screen and (prefers-color-scheme: dark)" in page and "@media print" in page
    assert set(re.findall(r"var\(--([a-z0-9-]+)", STYLE)) <= {*LIGHT, "state", "s", "f"}
    assert set(LIGHT) == set(DARK)


def test_only_the_pages_own_script_may_run(page):
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    assert not re.search(r"fetch|http|import|eval|innerHTML", script)


def test_every_heading_of_a_table_has_a_scope_and_text(page):
    for heading in re.findall(r"<th\b[^>]*>", page):
        assert re.search(r'scope="(col|row)"', heading)
    assert not re.search(r"<th\b[^>]*></th>", page)
    links, headings = re.findall(r'<a href="#([^"]+)"', page), re.findall(r'<h2 id="([^"]+)"', page)
    assert links == headings and len(set(links)) == len(links)


def test_bars_are_as_long_as_their_numbers(page):
    rows = re.findall(r"<tr><th scope=\"row\">conv2d_1</th>(.*?)</tr>", page)
    (cells,) = [cells for cells in rows if 'class="s0"' in cells]
    lengths = re.findall(r'class="s(\d)"(?: style="--f:([.\d]+)")?', cells)
    assert lengths == [("0", "1.000"), ("1", ".250"), ("2", ".250"), ("0", ""), ("1", ""), ("2", ".500")]


def test_a_page_of_200_layers_stays_below_half_a_megabyte(tmp_path):
    record = newest_record()
    names = [f"block_{number // 10}_expand_depthwise_project_{number}" for number in range(200)]
    record["sparsity"] = dict.fromkeys(names, 0.5)
    record["stages"][0]["details"]["pruning_plan"] = {"pruned": names, "skipped": dict.fromkeys(names, "no weights")}
    for model in record["models"]:
        model["audit"]["weights"] = [weight(name, 123_456 + place, place) for place, name in enumerate(names)]
        message = "computes in float32, expected int8: the converter has no int8 kernel for it: replace the layer" * 3
        model["audit"]["findings"] = [finding(keras_layer=name, message=message) for name in names]
        model["audit"]["op_counts"] = {f"OP_{number}": number for number in range(120)}
    page = write_report(record, tmp_path)[2]
    assert page.stat().st_size < 500_000
    text = page.read_text()
    assert names[-1] in text and '<div class="scroll tall"' in text and '<table class="sort wide">' in text


def test_a_usual_page_is_a_small_one(page):
    assert len(page) < 120_000
    assert "sort" not in re.findall(r'<table class="([^"]*)"', page_of(full_record()))


def test_a_page_without_anything_is_still_a_page():
    page = page_of({})
    assert 'data-state="bad"' in page and "<dl" not in page


def test_style_and_script_are_files_that_are_installed_with_the_package():
    folder = Path(report.__file__).parent
    config = tomllib.loads((folder.parent.parent / "pyproject.toml").read_text())
    patterns = config["tool"]["setuptools"]["package-data"]["tfq.report"]
    assets = [path for path in folder.iterdir() if path.suffix in (".css", ".js")]
    assert {path.name for path in assets} == {"report.css", "report.js"}
    assert all(any(path.match(pattern) for pattern in patterns) for path in assets)
    rule = re.compile(r"[.#]?[\w-]+ *\{ *[\w-]+: *[^{}\"']+; *\}|addEventListener|document\.")
    assert rule.search((folder / "report.css").read_text()) and rule.search((folder / "report.js").read_text())
    for source in folder.glob("*.py"):
        assert not rule.search(source.read_text()), source.name

# SPDX-License-Identifier: Apache-2.0
"""The page: its first screen, contrast, size, headings of tables, and the one script that may run."""

import base64
import hashlib
import itertools
import re

import pytest
from report_record import audit, finding, full_record, newest_record, parity, weight

from tfq.report import write_report
from tfq.report.markdown import markdown_of
from tfq.report.page import STYLE, page_of
from tfq.report.verdict import checks_of, headline_of


@pytest.fixture(scope="module")
def page():
    """The page of the newest record."""
    return page_of(newest_record())


def bounded(**bounds):
    record = newest_record()
    record["config"]["evaluation"] = {"require": bounds}
    record["config"]["audit"] = {"require": "full_int8"}
    record["models"][2]["parity"] = {"qemu:cortex-a53": parity("qemu:cortex-a53")}
    return record


COLLAPSE = {"kind": "low_sqnr", "message": "output 'p' has 3.0 dB", "output": "p", "remedies": []}


def states(record):
    """The worst state of each question."""
    worst = sorted(checks_of(record), key=lambda check: ("good", "open", "bad").index(check.state))
    return {check.question: check.state for check in worst}


def test_a_run_that_holds_all_that_was_asked_for_is_ready_to_ship():
    record = bounded(min_accuracy=0.95, max_accuracy_drop=0.01)
    assert headline_of(record) == ("good", "Ready to ship: all that was asked for holds")
    assert set(states(record).values()) == {"good"}


@pytest.mark.parametrize(
    ("damage", "question"),
    [
        (lambda record: record["config"]["evaluation"]["require"].update(min_accuracy=0.999), "bounds"),
        (lambda record: record["models"][1]["evaluation"].update(accuracy=0.2), "bounds"),
        (lambda record: record["models"][1]["evaluation"].pop("accuracy"), "bounds"),
        (lambda record: record["models"][1].update(audit=audit(False, "mixed", (finding(),))), "audit"),
        (lambda record: record["warnings"].append("the run ended early: no emulator"), "run"),
        (lambda record: record["models"][1]["verification"]["collapsed"].append(COLLAPSE), "outputs"),
    ],
)
def test_one_thing_that_fails_is_enough_not_to_ship(damage, question):
    record = bounded(min_accuracy=0.95)
    damage(record)
    state, headline = headline_of(record)
    assert state == "bad" and headline.startswith("Not to be shipped")
    assert states(record)[question] == "bad" and "Ready to ship" not in markdown_of(record)


@pytest.mark.parametrize(
    ("change", "question"),
    [
        (lambda record: record["config"].pop("evaluation"), "bounds"),
        (lambda record: record["warnings"].append("the calibration set is noise"), "warnings"),
        (lambda record: record["models"][2]["parity"]["qemu:cortex-a53"].update(max_abs_error_lsb=7), "cortex-a53"),
        (lambda record: record["models"][2].update(parity={"qemu:cortex-a53": {"not_run": "none"}}), "cortex-a53"),
        (lambda record: record.update(stages=[]), "run"),
        (lambda record: record["models"][1].update(verification=None), "outputs"),
        (lambda record: record["models"][1]["verification"].update(outputs=[]), "outputs"),
    ],
)
def test_what_only_a_reader_can_judge_is_left_open(change, question):
    record = bounded(min_accuracy=0.95)
    change(record)
    assert headline_of(record) == ("open", "Nothing failed; 1 point to look at")
    assert states(record)[question] == "open"


def test_collapsed_output_is_named_on_the_page_and_a_note_does_not_change_the_verdict():
    record = bounded(min_accuracy=0.95)
    record["models"][2]["verification"]["notes"].append({"kind": "sqnr", "message": "output 'q' has 22.0 dB"})
    assert headline_of(record)[0] == "good" and "output 'q' has 22.0 dB" in markdown_of(record)

    record["models"][2]["verification"]["collapsed"].append(COLLAPSE)
    assert headline_of(record)[0] == "bad" and "collapsed: output 'p' has 3.0 dB" in markdown_of(record)


def test_an_audit_that_nothing_was_required_of_is_open_and_not_failed():
    record = bounded(min_accuracy=0.95)
    record["config"]["audit"]["require"] = ""
    record["models"][1]["audit"] = audit(False, "mixed", (finding(),))
    assert states(record)["audit"] == "open" and headline_of(record)[0] == "open"


def test_the_first_screen_tells_verdict_costs_and_checks_before_all_else(page):
    first = page[: page.index("<nav")]
    for message in (
        "Nothing failed; 1 point to look at", "98.59%", "+0.28 points from 98.31%", "9.8 kB",
        "4.6x smaller than 44.9 kB", "21.1 µs", "1.25x faster than float (1.22 to 1.28)", "3.24 M",
        "1.74x fewer than float; a count, not a time",
        "no bound was set",
    ):  # fmt: skip
        assert message in first, message


def luminance(colour):
    """Relative luminance, as WCAG 2 defines it."""
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
def test_text_and_marks_stand_out_in_either_scheme(colours):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text, paper in itertools.product(("ink", "soft", "good", "open", "bad"), ("paper", "card")):
        assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
    assert contrast(colours["open"], colours["open-paper"]) >= 4.5
    for number, paper in itertools.product(range(6), ("paper", "card")):
        assert contrast(colours[f"c{number}"], colours[paper]) >= 3, (number, paper)


def test_the_page_is_light_or_dark_as_the_reader_has_it_and_light_on_paper(page):
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


def test_every_heading_of_a_table_says_what_it_heads(page):
    for heading in re.findall(r"<th\b[^>]*>", page):
        assert re.search(r'scope="(col|row)"', heading)
    # An empty heading is none.
    assert not re.search(r"<th\b[^>]*></th>", page)
    links, headings = re.findall(r'<a href="#([^"]+)"', page), re.findall(r'<h2 id="([^"]+)"', page)
    assert links == headings and len(set(links)) == len(links)


def test_bars_are_as_long_as_their_numbers(page):
    rows = re.findall(r"<tr><th scope=\"row\">conv2d_1</th>(.*?)</tr>", page)
    (cells,) = [cells for cells in rows if 'class="s0"' in cells]
    lengths = re.findall(r'class="s(\d)"(?: style="--f:([.\d]+)")?', cells)
    assert lengths == [("0", "1.000"), ("1", ".250"), ("2", ".250"), ("0", ""), ("1", ""), ("2", ".500")]


def test_a_model_of_two_hundred_layers_and_many_findings_stays_below_half_a_megabyte(tmp_path):
    record = newest_record()
    names = [f"block_{number // 10}_expand_depthwise_project_{number}" for number in range(200)]
    record["sparsity"] = dict.fromkeys(names, 0.5)
    record["stages"][0]["details"]["pruning_plan"] = {"pruned": names, "skipped": dict.fromkeys(names, "no weights")}
    for model in record["models"]:
        model["audit"]["weights"] = [weight(name, 123_456 + place, place) for place, name in enumerate(names)]
        message = "computes in float32, wanted int8: the converter has no int8 kernel for it: replace the layer" * 3
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
    assert "No model was examined" in page and "<dl" not in page

# SPDX-License-Identifier: Apache-2.0
"""report.json, report.md and report.html: complete, deterministic, and names from a model file stay text."""

import dataclasses
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from unittest import mock
from xml.etree import ElementTree

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import refused
from report_record import audit, finding, full_record, newest_record, not_run, timed, weight

from tfq.errors import InputError, TfqError
from tfq.report import KINDS, write_report
from tfq.report.markdown import escaped, markdown_of
from tfq.report.page import page_of
from tfq.report.plots import Plot, plots_of

HOSTILE = "<script>alert(1)</script>\"'&--> | `x` $\\frac$ ]]> [a](b)"
PLOTS = ("accuracy", "size", "latency", "training", "instructions")
VOID = {"meta", "br", "hr", "img", "link", "input"}


@pytest.fixture(scope="module")
def page():
    """Return the page of the full record."""
    return page_of(full_record())


class Checker(HTMLParser):
    """Collects tags and text, and fails where tags do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.count, self.attributes, self.text = [], Counter(), [], []

    @property
    def tags(self):
        return set(self.count)

    def handle_starttag(self, tag, attrs):
        self.count[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker


def hostile_record():
    record = newest_record()
    record["config"]["model"] = f"dir/{HOSTILE}"
    record["config"]["data"]["source"] = HOSTILE
    record["warnings"] = [HOSTILE]
    record["sparsity"] = {HOSTILE: 0.5, "新しい層": 0.2}
    record["cpu"]["model"] = HOSTILE
    record["packages"][HOSTILE] = HOSTILE
    record["stages"][0] |= {"name": HOSTILE, "details": {HOSTILE: HOSTILE}}
    record["models"][1] |= {"name": HOSTILE, "file": HOSTILE, "audit": audit(False, HOSTILE, (_hostile_finding(),))}
    record["models"][1]["audit"] |= {"op_counts": {HOSTILE: 1}, "op_types": {HOSTILE: {HOSTILE: 1}}}
    record["models"][1]["audit"]["weights"] = [weight(HOSTILE, 9, 1, HOSTILE), weight(None, 9, 1, tensor=HOSTILE)]
    rows = record["models"][1]["portability"]["rows"]
    rows["qemu:cortex-a53"] |= {"instructions": None, "instructions_reason": HOSTILE}
    rows["qemu:cortex-a76"] = {
        "instructions": {"instructions": 5, "by": HOSTILE},
        "evaluation": {"figures": {HOSTILE: 1}},
    }
    record["models"][1]["evaluation"] |= {"metric": HOSTILE, "scores": {HOSTILE: 0.5}, "kernels": HOSTILE}
    record["benchmark"]["models"].append(timed(HOSTILE, 0.01, kernels=HOSTILE, ops_by=HOSTILE))
    record["benchmark"]["models"][2]["ops"] = [{"name": HOSTILE, "keras_layer": HOSTILE, "ms": 1.0, "fraction": 1.0}]
    record["benchmark"]["ratios"][0] |= {"against": HOSTILE, "reason": HOSTILE}
    record["stages"][1]["details"]["diagnostics"] |= {"class_counts": {HOSTILE: 5}, "findings": [HOSTILE]}
    record["stages"][1]["details"]["pruning_plan"] = {"pruned": [HOSTILE], "skipped": {HOSTILE: HOSTILE}}
    record["models"][2]["portability"]["rows"]["qemu:cortex-a53"] = not_run("qemu:cortex-a53", HOSTILE)
    record["models"][2]["portability"]["not_available"] = {HOSTILE: HOSTILE}
    record["models"][2]["evaluation"]["skipped"] = {HOSTILE: HOSTILE}
    return record


def _hostile_finding():
    return finding(op=HOSTILE, keras_layer=HOSTILE, tensor=HOSTILE, message=HOSTILE, severity=HOSTILE)


def test_three_files_are_written_and_the_json_is_the_record(tmp_path):
    paths = write_report(full_record(), tmp_path / "new" / "out")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert json.loads(paths[0].read_text()) == full_record()
    assert paths[1].read_text().startswith("# tfq run: digits_cnn\n")


def test_the_same_record_gives_the_same_bytes(tmp_path):
    one, two = (write_report(full_record(), tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_a_number_that_json_does_not_have_is_refused(tmp_path, undrawn):
    record = full_record()
    record["models"][0]["evaluation"]["output_sqnr_db"] = float("inf")
    with refused(TfqError, expected="JSON values", word="report.json"):
        write_report(record, tmp_path)


def test_a_file_in_the_way_of_the_directory_is_refused(tmp_path, undrawn):
    (tmp_path / "file").write_text("")
    with refused(InputError, field="out", got=str(tmp_path / "file" / "out")):
        write_report(full_record(), tmp_path / "file" / "out")


@pytest.mark.parametrize("show", [page_of, markdown_of])
def test_every_format_has_numbers_provenance_stages_and_reasons(show, undrawn):
    text = re.sub(r" +", " ", show(full_record()))
    for message in (
        "98.59%", "48.3", "4.57x", "21.3", "31.4 dB", "1 LSB", "8 of 9", "full int8", "CONV_2D", "conv2d_1", "49.80%",
        "2, not listed", "1 min 01 s", "not run: neither pruning nor QAT is asked for", "2.1 → 0.1",
        "Some CPU @ 2.00GHz", "avx2 fma", "2.21.0", "a" * 64, "d" * 64, "emulated", "no noise: it is the reference",
        "pass report.json to tfq run",
    ):  # fmt: skip
        assert message in text.replace("&#x27;", "'"), message


def test_warnings_of_the_run_and_of_each_evaluation_come_first_and_once(page, undrawn):
    record, quiet = full_record(), page
    record["warnings"] = ["got 50 of 200 samples", "saturated"]
    record["models"][1]["evaluation"]["warnings"] = ["saturated", "unused range"]
    page, text = page_of(record), markdown_of(record)
    assert page.index("got 50 of 200 samples") < page.index('<h2 id="result">')
    assert text.index("## Warnings") < text.index("## Result")
    assert text.count("saturated") == 1 and "- PTQ int8: unused range" in text
    assert 'data-warnings="3"' in page and "data-warnings" not in quiet


def test_a_failed_audit_shows_its_findings_with_op_layer_and_message(undrawn):
    record = full_record()
    findings = (finding(), finding(op_index=7, allowed=True, message="named in allow_float"))
    record["models"][2]["audit"] = audit(False, "mixed", findings)
    text = markdown_of(record)
    assert re.search(r"\| #2 +\| ADD +\| add_1 +\| fails +\| op #2 ADD computes in float32", text)
    assert re.search(r"\| pruned \+ QAT int8 \| not full int8 \| mixed +\| 1 fail, 1 allowed", text)
    assert '<td class="bad">not full int8</td>' in page_of(record)


def test_nothing_from_the_record_becomes_markup_in_html():
    checker = parsed(page_of(hostile_record()))
    assert checker.count["script"] == 1 and checker.count["a"] == checker.count["h2"] - 1  # warnings have no link
    assert sum("<script>alert(1)</script>" in text for text in checker.text) >= 30


@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_layer_names_are_escaped_in_the_page(name):
    record = full_record()
    record["sparsity"] = {name: 0.5}
    no_plots = dict.fromkeys(PLOTS, Plot(title="", svg="", caption=""))
    undrawn = dataclasses.replace(KINDS["run"], plots=lambda _: no_plots)
    with mock.patch.dict(KINDS, run=undrawn):
        tags = parsed(page_of(full_record())).count
        page = page_of(record)
    assert set(parsed(page).count) <= set(tags)
    page.encode()


@given(st.text(max_size=20))
@settings(max_examples=6, deadline=None)
def test_any_model_name_gives_a_drawing_that_is_well_formed(name):
    record = {"models": [{"name": name, "evaluation": {"model_bytes": 5000, "gzip_bytes": 4000, "accuracy": 0.5}}]}
    plots = plots_of(record)
    assert "5.0 kB file" in "".join(ElementTree.fromstring(plots["size"].svg).itertext())
    ElementTree.fromstring(plots["accuracy"].svg)


def test_nothing_from_the_record_becomes_markup_or_another_cell_in_markdown():
    text = markdown_of(hostile_record())
    outside_code = text[: text.index("```")]
    assert "<script" not in outside_code
    for block in re.findall(r"(?:^\|.*\n)+", outside_code, flags=re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block
    assert escaped("a|b`c[d]<e>&\\") == "a\\|b\\`c\\[d\\]&lt;e>&amp;\\\\"


def test_a_config_with_backticks_stays_in_its_fence():
    record = full_record()
    record["config"]["model"] = "x````y"
    assert markdown_of(record).rstrip().endswith("\n`````")


def test_the_page_needs_no_network(page):
    checker = parsed(page)
    assert not checker.tags & {"link", "img", "iframe", "object", "embed", "base"}
    for name, value in checker.attributes:
        assert name != "src" and not name.startswith("on")
        assert not (name.endswith("href") and not value.startswith("#")), (name, value)
    assert not re.search(r"@import|url\((?!#)", page)


def test_plots_are_well_formed_undated_and_use_page_colors():
    plots = plots_of(hostile_record())
    assert list(plots) == list(PLOTS)
    for plot in plots.values():
        root = ElementTree.fromstring(plot.svg)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        assert "currentColor" in plot.svg and "var(--c0)" in plot.svg
        assert not re.search(r"#0102|<metadata>|<style|20\d\d-\d\d-\d\d", plot.svg)
    ids = re.findall(r' id="([^"]*)"', "".join(plot.svg for plot in plots.values()))
    assert len(ids) == len(set(ids))
    assert "<script>" in "".join(ElementTree.fromstring(plots["size"].svg).itertext())


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    plots_of(full_record())
    assert dict(matplotlib.rcParams) == before


def test_a_users_matplotlib_style_does_not_change_the_report(page):
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        assert page_of(full_record()) == page


def test_without_matplotlib_the_page_says_which_plots_are_missing_and_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = page_of(newest_record())
    assert "<svg" not in page and tuple(re.findall(r'data-plot="(\w+)"', page)) == PLOTS
    assert page.count("pip install &#x27;tfq[report]&#x27;") == len(PLOTS)


def test_plots_without_their_numbers_say_why():
    record = full_record()
    for model in record["models"]:
        model["evaluation"] |= {"accuracy": None, "latency_p50_ms": None, "latency_reason": "emulated backend"}
    plots = plots_of(record)
    assert plots["accuracy"].title.startswith("Agreement") and plots["accuracy"].svg and plots["size"].svg
    assert (plots["latency"].svg, plots["latency"].caption) == ("", "not drawn: emulated backend")
    assert plots["instructions"].svg == "" and "no instructions" in plots["instructions"].caption


def test_a_custom_metric_is_shown_by_its_name():
    record = full_record()
    for model in record["models"]:
        model["evaluation"].update(metric="my_metric", accuracy=12.3456)
    assert ">my_metric<" in plots_of(record)["accuracy"].svg
    assert '<dt>my_metric</dt><dd class="value">12.35</dd>' in page_of(record)


@pytest.mark.parametrize("key", list(newest_record()))
def test_a_record_without_any_one_part_still_reports(key, tmp_path, undrawn):
    record = newest_record()
    del record[key]
    parsed(write_report(record, tmp_path)[2].read_text())


@pytest.mark.parametrize("key", ["evaluation", "audit", "portability", "file"])
@pytest.mark.parametrize("value", ["missing", None])
def test_models_without_any_one_part_still_report(key, value, tmp_path, undrawn):
    record = newest_record()
    for model in record["models"]:
        if value is None:
            model[key] = None
        else:
            del model[key]
    parsed(write_report(record, tmp_path)[2].read_text())


def test_an_empty_record_reports_that_there_is_nothing(tmp_path):
    text = write_report({}, tmp_path)[1].read_text()
    assert "No model was evaluated." in text and "No model was audited." in text and "{" not in text.split("```")[0]

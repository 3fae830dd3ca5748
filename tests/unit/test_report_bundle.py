# SPDX-License-Identifier: Apache-2.0
"""The section on an app bundle in the pages of a record."""

from report_record import full_record

from tfq.report.bundle_content import bundle_section, bundle_text
from tfq.report.markdown import markdown_of
from tfq.report.page import page_of

BUNDLE = {
    "folder": "bundle",
    "zip": "bundle.zip",
    "files": {"io.json": "a" * 64},
    "platforms": ["linux"],
    "self_tests": [
        {"name": "Python", "status": "passed", "detail": "3 golden vectors"},
        {"name": "C", "status": "failed", "detail": "<b>exit code 1</b>"},
    ],
    "golden": {"data": "the first examples of digits (test)", "is_real": True, "count": 3},
    "notes": ["no labels"],
}


def test_page_links_the_bundle_and_shows_its_self_tests(undrawn):
    page = page_of({**full_record(), "bundle": BUNDLE})
    assert '<a href="bundle/README.md">' in page and '<a href="bundle.zip">' in page
    assert "&lt;b&gt;exit code 1" in page and "<b>exit" not in page
    assert "[bundle.zip](bundle.zip)" in markdown_of({**full_record(), "bundle": BUNDLE})


def test_a_record_without_a_bundle_has_no_section():
    assert bundle_section(full_record()) is None and bundle_text(full_record(), "out") == ""


def test_the_terminal_shows_the_bundle_and_its_self_tests():
    assert bundle_text({"bundle": BUNDLE}, "out") == "out/bundle (self-tests: Python passed, C failed)"


def test_a_hostile_record_makes_no_link_to_another_place(undrawn):
    hostile = {**BUNDLE, "folder": 'javascript:alert(1)//"', "zip": "https://example.org/"}
    page = page_of({**full_record(), "bundle": hostile})
    assert 'href="javascript:' not in page and 'href="https:' not in page

# SPDX-License-Identifier: Apache-2.0
"""The documentation's generated parts: tables agree with the registries, code with the tests it was taken from."""

import importlib.util
import re

import pytest

from tfq import registry
from tfq.ptq.calibration import CalibrationMethod


@pytest.fixture(scope="module")
def generate(root):
    specification = importlib.util.spec_from_file_location("docs_generate", root / "docs" / "generate.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def documents(root):
    return [root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


def test_generated_parts_are_up_to_date(root, generate):
    stale = [path.name for path in documents(root) if generate.filled(path.read_text()) != path.read_text()]
    assert stale == [], "run python docs/generate.py"


def test_every_extension_point_has_a_table_and_an_example(root):
    text = "".join(path.read_text() for path in documents(root))
    assert set(re.findall(r"<!-- registry: (\w+) -->", text)) == set(registry.MODULES)
    assert set(re.findall(r"<!-- code: \S+ (\w+) -->", text)) == set(registry.MODULES)


def test_a_new_object_makes_the_table_stale(root, generate):
    text = "<!-- registry: calibration_method -->\n<!-- end -->"
    before = generate.filled(text)
    assert generate.filled(before) == before and "| `percentile` |" in before
    with registry.temporary():
        registry.register(CalibrationMethod(name="mine", help="of my own", choose=lambda *seen: (0.0, 1.0)))
        assert "| `mine` | of my own |" in generate.filled(before) != before

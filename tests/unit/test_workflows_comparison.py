# SPDX-License-Identifier: Apache-2.0
"""The examples that two flatbuffers treat differently, for the pages of tfq compare and tfq analyze."""

import numpy as np
from golden_models import golden
from sklearn.datasets import load_digits

from tfq import workflows
from tfq.config import DataConfig
from tfq.data import Split
from tfq.report.analysis_content import ANALYSIS
from tfq.report.comparison_content import COMPARISON

FLOATING, QUANTIZED = golden("digits_float32"), golden("digits_int8")
IMAGES = load_digits().images[..., None].astype(np.float32)


def split(labels=None):
    rng = np.random.default_rng(0)
    mixed = (IMAGES + IMAGES[rng.permutation(len(IMAGES))]) / 2
    return Split(name="test", inputs={"x": mixed[:200]}, labels=labels, source="arrays")


def test_examples_that_differ_are_on_both_pages():
    found = workflows.differing_examples(FLOATING, QUANTIZED, split(), DataConfig(source="digits"))
    assert found["compared"] == 200 and found["differing_examples"]["count"] > 0
    analyzed = {"ops": [], "num_samples": 0, "findings": [], "histograms": [], **found}
    pages = (
        (COMPARISON, {"comparison": {}, "evaluation": found}, {"A", "B"}),
        (ANALYSIS, analyzed, {"float", "int8"}),
    )
    for kind, record, names in pages:
        (section,) = (item for item in kind.sections(record) if item.key == "examples")
        assert {section.tables[0].columns[2], section.tables[0].columns[4]} == names and not section.folded


def test_labels_that_do_not_fit_are_a_reason_and_no_error():
    labels = np.full((200, 8, 8), 300)
    found = workflows.differing_examples(FLOATING, QUANTIZED, split(labels), DataConfig(source="digits"))
    assert found["differing_examples"] is None and "labels" in found["differing_examples_reason"]

# SPDX-License-Identifier: Apache-2.0
"""Bounds and verdicts, and the messages of a search about candidates beyond its budget."""

import numpy as np
import pytest

from tfq.config import BudgetConfig, RequireConfig, SearchConfig
from tfq.evaluation.paired import paired_difference
from tfq.evaluation.requirements import missed_requirements, requirements_of
from tfq.requirement import Requirement, at_least, at_most
from tfq.search.criterion import BY_LABELS
from tfq.search.record import Candidate, CandidateResult
from tfq.search.search import NOT_TIMED, _judged


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        (at_least("min_accuracy", 0.3, 0.1 + 0.2), True),
        (at_least("min_accuracy", 0.3, 0.2999), False),
        (at_most("max_accuracy_drop", 0.3, 0.1 + 0.2), True),
        (at_most("max_accuracy_drop", 0.3, 0.3001), False),
    ],
)
def test_the_rounding_of_a_float_breaks_no_bound(asked, holds):
    assert asked.holds == holds
    assert asked.reason is None


def test_a_missing_value_fails_and_a_present_one_needs_no_reason():
    assert at_most("max_bytes", 10, None, "why").to_dict() == {
        "name": "max_bytes", "bound": 10, "value": None, "holds": False, "reason": "why"
    }  # fmt: skip
    assert at_least("min_accuracy", 0.5, 1.0, "why").reason is None


def test_a_lower_bound_on_an_error_fails_with_a_reason():
    metrics = {"mae": {"direction": "lower"}}
    record = {"metric": "mae", "metrics": metrics, "accuracy": 0.9, "accuracy_reason": None, "skipped": {}}
    require = RequireConfig(min_accuracy=0.5)
    assert requirements_of(record, require) == (
        Requirement(name="min_accuracy", bound=0.5, value=0.9, holds=False, reason="lower values are better for mae"),
    )
    assert missed_requirements(record, require) == [
        "min_accuracy 0.5 cannot be checked: lower values are better for mae"
    ]


def test_a_search_bounds_the_arena_and_the_instructions():
    right = np.arange(200) < 150
    candidate = CandidateResult(
        candidate=Candidate(name="min_max", kind="calibration", method="min_max"), accuracy=0.75, agreement=0.98,
        against_float=paired_difference(right, right), model_bytes=2000, latency_ratio=None, secs=1.0, layers=(),
        missed=(), costs={"arena_bytes": 4000, "instructions": 10_000},
    )  # fmt: skip
    config = SearchConfig(budget=BudgetConfig(max_arena_bytes=4000, max_instructions=9999))
    judged = _judged(candidate, config, BY_LABELS)
    assert judged.missed == ("10,000 instructions, at most 9,999 allowed",)
    assert [(item.name, item.holds) for item in judged.requirements[1:]] == [
        ("max_arena_bytes", True), ("max_instructions", False)
    ]  # fmt: skip


def test_a_search_records_fractions_and_says_points():
    right, floating = np.arange(200) < 150, np.arange(200) < 154
    candidate = CandidateResult(
        candidate=Candidate(name="min_max", kind="calibration", method="min_max"),
        accuracy=0.75,
        agreement=0.98,
        against_float=paired_difference(right, floating),
        model_bytes=2000,
        latency_ratio=None,
        secs=1.0,
        layers=(),
        missed=(),
    )
    budget = BudgetConfig(max_accuracy_drop=0.005, max_bytes=1000, max_latency_ratio=1.5)
    judged = _judged(candidate, SearchConfig(budget=budget), BY_LABELS)
    assert judged.missed == (
        "2.00 points below float, at most 0.5 allowed",
        "2,000 bytes, at most 1,000 allowed",
        f"{NOT_TIMED}, at most 1.5x allowed",
    )
    drop, size, latency = judged.requirements
    assert (drop.bound, drop.value, drop.holds) == (0.005, pytest.approx(0.02), False)
    assert (size.bound, size.value, size.holds) == (1000, 2000, False)
    assert (latency.bound, latency.value, latency.reason) == (1.5, None, NOT_TIMED)

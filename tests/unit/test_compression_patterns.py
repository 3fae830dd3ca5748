# SPDX-License-Identifier: Apache-2.0
"""Patterns that choose layers by name, and patterns without a match."""

import pytest
from messages import refused

from tfq.errors import InputError
from tfq.patterns import check_fits, fits

REASONS = {"conv1": None, "conv2": None, "relu": "it has no weights"}


@pytest.mark.parametrize(
    ("name", "patterns", "expected"),
    [
        ("conv1", ("conv*",), True),
        ("conv1", ("head", "conv?"), True),
        ("conv1", ("Conv*",), False),
        ("block/conv1", ("conv*",), False),
        ("block/conv1", ("block*",), True),
        ("conv1", (), False),
    ],
)
def test_a_pattern_must_match_the_whole_name_and_case(name, patterns, expected):
    assert fits(name, patterns) is expected


def test_a_pattern_passes_where_one_layer_that_fits_can_be_chosen():
    check_fits("the pattern", "*", REASONS)
    check_fits("the pattern", "conv2", REASONS)


@pytest.mark.parametrize(
    ("pattern", "reasons", "able", "word"),
    [
        ("cnv1", REASONS, ("conv1", "conv2"), "'conv1'"),
        ("re*", REASONS, ("conv1", "conv2"), "'relu'"),
        ("*", {"relu": "it has no weights"}, (), "'relu'"),
    ],
)
def test_a_pattern_without_match_is_refused_with_the_nearest_name(pattern, reasons, able, word):
    with refused(InputError, field="compression.qat.layers", expected=able, got=pattern, word=word):
        check_fits("qat: 'x'", pattern, reasons, field="compression.qat.layers")


def test_the_error_says_what_kind_of_layer_was_looked_for():
    with refused(InputError, expected=("conv1", "conv2"), got="conv", word="filters"):
        check_fits("'conv'", "conv", REASONS, layers="layer with filters")

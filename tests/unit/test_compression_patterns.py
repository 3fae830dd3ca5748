# SPDX-License-Identifier: Apache-2.0
"""Patterns that choose layers by name, and patterns without a match."""

import pytest
from messages import refused

from tfq.errors import InputError
from tfq.patterns import check_fits, check_selection, fits

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
        ("conv1", ("*", "!conv1"), False),
        ("conv2", ("*", "!conv1"), True),
        ("conv1", ("!conv1", "conv*"), True),
        ("conv1", ("!conv1",), False),
        ("conv2", ("!conv1", "!dense"), True),
        ("conv2", ("conv*", "!conv[23]"), False),
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


@pytest.mark.parametrize("patterns", [("*", "!relu"), ("!conv1",), ("conv*", "!conv2"), ("!conv?", "conv1")])
def test_exclusions_that_leave_a_layer_pass(patterns):
    check_selection("qat: layers", patterns, REASONS, field="compression.qat.layers")


@pytest.mark.parametrize(
    ("patterns", "expected", "got", "word"),
    [
        (("*", "!cnv1"), ("conv1", "conv2", "relu"), "cnv1", "'conv1'"),
        (("relu", "!conv1"), ("conv1", "conv2"), "relu", "'relu'"),
        (("*", "!conv*"), ("conv1", "conv2"), ("*", "!conv*"), "excludes"),
        (("conv1", "!*"), ("conv1", "conv2"), ("conv1", "!*"), "excludes"),
    ],
)
def test_an_exclusion_without_match_or_of_everything_is_refused(patterns, expected, got, word):
    with refused(InputError, field="compression.qat.layers", expected=expected, got=got, word=word):
        check_selection("qat: layers", patterns, REASONS, field="compression.qat.layers")


def test_a_setting_for_single_layers_has_no_exclusions():
    with refused(InputError, got="!conv1", word="name"):
        check_fits("the target '!conv1=0.5'", "!conv1", REASONS)

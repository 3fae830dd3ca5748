# SPDX-License-Identifier: Apache-2.0
"""Intervals of paired differences, compared with published examples and with their coverage in simulation."""

import numpy as np
import pytest
from messages import refused

from tfq.errors import InputError
from tfq.evaluation.paired import paired_difference


def answers(wins, losses, both, neither=0):
    right = np.array([True] * wins + [False] * losses + [True] * both + [False] * neither)
    base = np.array([False] * wins + [True] * losses + [True] * both + [False] * neither)
    return right, base


def score(wins, losses, count, difference):
    """Return the score statistic of an assumed difference; its nuisance fraction is found by exhaustive search."""
    fractions = np.linspace(1e-9, 1, 2_000_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = wins * np.log(fractions + difference) + losses * np.log(fractions)
        likelihood += (count - wins - losses) * np.log(1 - 2 * fractions - difference)
    fraction = fractions[np.nanargmax(np.where(np.isfinite(likelihood), likelihood, -np.inf))]
    variance = count * (2 * fraction + difference - difference**2)
    return (wins - losses - count * difference) / np.sqrt(variance)


@pytest.mark.parametrize("counts", [(12, 2, 36), (40, 31, 400), (3, 9, 200)])
def test_the_score_at_both_interval_ends_is_that_of_95_percent(counts):
    wins, losses, _ = counts
    result = paired_difference(*answers(*counts))
    assert result.difference == pytest.approx((wins - losses) / sum(counts))
    for end, expected in ((result.low, 1.959964), (result.high, -1.959964)):
        assert score(wins, losses, sum(counts), end) == pytest.approx(expected, abs=1e-3)


def test_no_difference_is_noise_and_a_large_one_is_not():
    assert paired_difference(*answers(10, 10, 80)).is_noise
    assert not paired_difference(*answers(30, 2, 68)).is_noise
    assert paired_difference(*answers(3, 0, 97)).is_noise


def test_turning_the_two_round_turns_the_interval_round():
    one, other = paired_difference(*answers(12, 5, 60)), paired_difference(*answers(5, 12, 60))
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low), abs=1e-9)


def test_models_that_never_differ_have_a_narrow_interval_around_zero():
    result = paired_difference(*answers(0, 0, 1000))
    assert result.difference == 0 and -0.005 < result.low < 0 < result.high < 0.005


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        kind = rng.choice(4, 300, p=[0.06, 0.03, 0.7, 0.21])
        right, base = np.isin(kind, (0, 2)), np.isin(kind, (1, 2))
        result = paired_difference(right, base)
        held += result.low <= 0.03 <= result.high
    assert 930 <= held <= 970


@pytest.mark.parametrize("shapes", [((0,), (0,)), ((3,), (4,)), ((2, 2), (2, 2))])
def test_answers_that_are_not_pairs_are_refused(shapes):
    with refused(InputError, field="answers", got=shapes):
        paired_difference(*(np.zeros(shape, bool) for shape in shapes))

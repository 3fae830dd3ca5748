# SPDX-License-Identifier: Apache-2.0
"""Intervals over examples and seeds, compared with SciPy, least squares and simulations."""

import numpy as np
import pytest
from messages import refused
from scipy import stats

from tfq.errors import InputError
from tfq.sweep.statistics import SeedSpread, pooled_seed_std, seed_difference, t_quantile


@pytest.mark.parametrize("probability", [0.6, 0.975, 0.9985, 0.99995])
@pytest.mark.parametrize("freedom", [1, 1.37, 2, 5.5, 30, 999, 1e6, np.inf])
def test_t_quantiles_equal_scipys(probability, freedom):
    expected = stats.norm.ppf(probability) if np.isinf(freedom) else stats.t.ppf(probability, freedom)
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-6)


def test_the_pooled_spread_equals_a_least_squares_fit_of_groups_and_seeds():
    scores = np.random.default_rng(0).normal(size=(5, 3))
    groups, seeds = np.indices(scores.shape)
    columns = [groups.ravel() == group for group in range(5)] + [seeds.ravel() == seed for seed in range(3)]
    design = np.stack(columns, axis=1).astype(float)
    fitted = design @ np.linalg.lstsq(design, scores.ravel(), rcond=None)[0]
    spread = pooled_seed_std(scores)
    assert spread.freedom == 8
    assert spread.std == pytest.approx(np.sqrt(2 * np.sum((scores.ravel() - fitted) ** 2) / 8))


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
def test_one_group_or_one_seed_has_no_pooled_spread(shape):
    assert pooled_seed_std(np.zeros(shape)) is None


def coverage(num_seeds, *, seed_std, reps=400, count=300, true=0.05, without_seeds=False):
    """Return how often the interval contains the true difference of simulated models."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(reps):
        effects = true + rng.normal(scale=seed_std, size=num_seeds)
        easy = rng.random((num_seeds, count))
        base = [row < 0.7 for row in easy]
        new = [row < 0.7 + effect for row, effect in zip(easy, effects, strict=True)]
        if without_seeds:
            new, base = [np.concatenate(new)], [np.concatenate(base)]
        result = seed_difference(new, base)
        hits += result.low <= true <= result.high
    return hits / reps


@pytest.mark.parametrize(("num_seeds", "seed_std", "least"), [(1, 0.0, 0.93), (2, 0.02, 0.9), (5, 0.02, 0.93)])
def test_intervals_contain_the_true_difference_about_as_often_as_they_say(num_seeds, seed_std, least):
    assert coverage(num_seeds, seed_std=seed_std) >= least


def test_the_simulation_sees_an_interval_that_ignores_the_seeds():
    assert coverage(5, seed_std=0.04, without_seeds=True) < 0.9


def test_models_with_the_same_answers_still_have_an_interval_with_a_width():
    scores = np.arange(100) % 3 > 0
    result = seed_difference([scores], [scores])
    assert result.difference == 0 and result.low < 0 < result.high and result.is_noise
    assert (result.wins, result.losses) == (0, 0)


def test_a_large_paired_difference_is_no_noise():
    base = np.arange(1000) % 2 == 0
    better = base | (np.arange(1000) < 100)
    result = seed_difference([better], [base])
    assert result.difference == pytest.approx(0.05) and not result.is_noise
    assert (result.wins, result.losses) == (50, 0)


def test_more_comparisons_and_more_seed_spread_widen_the_interval():
    rng = np.random.default_rng(2)
    new, base = ([rng.random(500) < chance for _ in range(2)] for chance in (0.8, 0.7))
    plain, many = seed_difference(new, base), seed_difference(new, base, comparisons=20)
    pooled = SeedSpread(std=0.1, freedom=10)
    assert many.low < plain.low < plain.high < many.high
    assert many.confidence == pytest.approx(1 - 0.05 / 20)
    wide = seed_difference(new, base, pooled=pooled)
    assert wide.high - wide.low > 2 * stats.t.ppf(0.975, 30) * 0.1 / np.sqrt(2)


def test_scores_that_are_not_right_or_wrong_have_the_t_interval():
    rng = np.random.default_rng(3)
    new, base = rng.normal(size=50), rng.normal(size=50)
    result = seed_difference([new], [base])
    expected = stats.ttest_rel(new, base).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.wins is None


def test_a_few_examples_have_no_interval():
    assert seed_difference([np.ones(3, bool)], [np.zeros(3, bool)]).low is None


def test_different_examples_are_refused():
    with refused(InputError, field="scores"):
        seed_difference([np.ones(3, bool)], [np.ones(4, bool)])

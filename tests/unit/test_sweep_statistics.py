# SPDX-License-Identifier: Apache-2.0
"""Intervals over examples and seeds, compared with SciPy, least squares and simulations."""

import math

import numpy as np
import pytest
from messages import refused
from scipy import stats

from tfq.errors import InputError
from tfq.evaluation.paired import resampled_weights
from tfq.sweep.statistics import SeedSpread, pooled_seed_std, resampled_difference, seed_difference, t_quantile


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


DRAWS = np.stack(list(resampled_weights(120)))


def rmse_of_draws(errors):
    """Return the root mean squared error of (n,) errors, and its values for all draws."""
    return math.sqrt(np.mean(errors**2)), np.sqrt(DRAWS @ errors**2 / len(errors))


def resampled(pairs, **settings):
    """Return the difference of (new, base) errors of each seed."""
    new, base = ([rmse_of_draws(errors) for errors in group] for group in zip(*pairs, strict=True))
    values, replicates = zip(*new, strict=True)
    base_values, base_replicates = zip(*base, strict=True)
    return resampled_difference(values, base_values, replicates, base_replicates, 120, **settings)


def test_one_seed_and_one_comparison_have_the_percentiles_of_the_bootstrap():
    rng = np.random.default_rng(4)
    new, base = rng.normal(size=120) * 1.3, rng.normal(size=120)
    result = resampled([(new, base)])
    (own, draws), (other, other_draws) = rmse_of_draws(new), rmse_of_draws(base)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(draws - other_draws, (0.025, 0.975))))
    assert result.difference == pytest.approx(own - other) and result.method == "bootstrap"


def test_the_bootstrap_of_a_difference_is_about_that_of_scipy():
    rng = np.random.default_rng(5)
    new, base = rng.normal(size=120) * 1.3, rng.normal(size=120)

    def statistic(one, other, axis):
        return np.sqrt(np.mean(one**2, axis=axis)) - np.sqrt(np.mean(other**2, axis=axis))

    expected = stats.bootstrap(
        (new, base), statistic, paired=True, vectorized=True, method="percentile", n_resamples=4000, rng=rng
    ).confidence_interval
    result = resampled([(new, base)])
    width = expected.high - expected.low
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.08 * width)


def test_bootstrap_and_t_agree_for_a_mean_over_examples_and_seeds():
    rng = np.random.default_rng(6)
    new, base = (rng.normal(size=(3, 120)) + shift for shift in ([[0.2], [0.4], [0.3]], 0))
    draws = [[DRAWS @ scores / 120 for scores in group] for group in (new, base)]
    result = resampled_difference(new.mean(axis=1), base.mean(axis=1), *draws, 120, comparisons=4)
    expected = seed_difference(list(new), list(base), comparisons=4)
    assert result.difference == pytest.approx(expected.difference)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), rel=0.08)
    assert result.std_over_seeds == pytest.approx(expected.std_over_seeds)


def test_more_comparisons_widen_each_half_by_the_ratio_of_quantiles():
    rng = np.random.default_rng(7)
    pair = rng.exponential(size=120) * 2, rng.normal(size=120)
    plain, many = resampled([pair]), resampled([pair], comparisons=10)
    ratio = stats.t.ppf(1 - 0.0025, 119) / stats.t.ppf(0.975, 119)
    assert many.high - many.difference == pytest.approx(ratio * (plain.high - plain.difference))
    assert many.difference - many.low == pytest.approx(ratio * (plain.difference - plain.low))


@pytest.mark.parametrize(("num_seeds", "seed_std", "least"), [(1, 0.0, 0.91), (3, 0.1, 0.9)])
def test_bootstrap_intervals_contain_the_true_difference_about_as_often_as_they_say(num_seeds, seed_std, least):
    rng, hits = np.random.default_rng(8), 0
    for _ in range(200):
        scales = 1.2 + rng.normal(scale=seed_std, size=num_seeds)
        common = rng.normal(size=120)
        pairs = [
            (scale * (common + 0.3 * rng.normal(size=120)), common + 0.3 * rng.normal(size=120)) for scale in scales
        ]
        result = resampled(pairs)
        hits += result.low <= 0.2 * math.sqrt(1.09) <= result.high
    assert hits / 200 >= least


def test_seeds_that_differ_widen_the_interval_of_a_bootstrap():
    rng = np.random.default_rng(9)
    base = rng.normal(size=120)
    alike = [(1.2 * base, base)] * 2
    different = [(1.1 * base, base), (1.3 * base, base)]
    narrow, wide = resampled(alike), resampled(different)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    pooled = resampled(alike, pooled=SeedSpread(std=0.3, freedom=8))
    assert pooled.high - pooled.low > 2 * stats.t.ppf(0.975, 8) * 0.3 / np.sqrt(2) * 0.95


def test_a_metric_that_is_undefined_for_many_draws_has_no_interval():
    nothing = np.where(np.arange(1000) < 100, np.nan, 1.0)
    result = resampled_difference([1.0], [0.5], [nothing], [np.ones(1000)], 120)
    assert result.low is None and result.is_noise is None and "100 of 1,000" in result.reason
    assert (result.difference, result.method) == (0.5, "none")


def test_replicates_of_other_draws_are_refused():
    with refused(InputError, field="replicates"):
        resampled_difference([1.0], [1.0], [np.ones(1000)], [np.ones(999)], 120)

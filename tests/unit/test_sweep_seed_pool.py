# SPDX-License-Identifier: Apache-2.0
"""Spreads over seeds by families of compression: against loops and an analysis of variance, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tfq.config import RunConfig
from tfq.sweep.plan import family_of
from tfq.sweep.seed_pool import MIN_FREEDOM, Member, SeedPool
from tfq.sweep.statistics import pooled_seed_std


def members(families, scores, models=None):
    names = [f"g{place}" for place in range(len(families))]
    return [
        Member(name=name, family=family, model=model, scores=row)
        for name, family, model, row in zip(names, families, models or names, scores, strict=True)
    ]


def by_kind(pool):
    return {(*item["families"], item["same_model"]): item for item in pool.to_dict()["families"]}


def test_the_spread_within_a_family_is_that_of_its_analysis_of_variance():
    scores = np.random.default_rng(0).normal(size=(7, 3))
    found = by_kind(SeedPool(members(["dense"] * 3 + ["pruned"] * 4, scores)))
    for family, rows in (("dense", scores[:3]), ("pruned", scores[3:])):
        expected = pooled_seed_std(rows)
        item = found[family, family, False]
        assert (item["std"], item["freedom"]) == (pytest.approx(expected.std), expected.freedom)


def test_the_spread_between_families_is_the_mean_variance_of_their_pairs():
    scores = np.random.default_rng(1).normal(size=(5, 4))
    item = by_kind(SeedPool(members(["dense"] * 2 + ["pruned"] * 3, scores)))["dense", "pruned", False]
    variances = [np.var(scores[a] - scores[b], ddof=1) for a, b in itertools.product((0, 1), (2, 3, 4))]
    assert (item["std"], item["freedom"]) == (pytest.approx(np.sqrt(np.mean(variances))), 2 * 3)


def test_groups_of_one_trained_model_are_pooled_apart():
    rng = np.random.default_rng(2)
    training = rng.normal(size=(3, 4))
    # Each trained model is converted in two ways, which adds little noise.
    scores = np.repeat(training, 2, axis=0) + rng.normal(scale=0.01, size=(6, 4))
    found = by_kind(SeedPool(members(["dense"] * 6, scores, models=[0, 0, 1, 1, 2, 2])))
    same, different = found["dense", "dense", True], found["dense", "dense", False]
    expected = [np.var(scores[2 * place] - scores[2 * place + 1], ddof=1) for place in range(3)]
    assert (same["std"], same["freedom"]) == (pytest.approx(np.sqrt(np.mean(expected))), 3 * 3)
    assert different["freedom"] == 2 * 3 and different["std"] > 10 * same["std"]


def test_a_family_with_too_few_seeds_uses_all_groups():
    scores = np.random.default_rng(3).normal(size=(4, 2))
    pool = SeedPool(members(["dense"] * 3 + ["clustered"], scores))
    assert pool.spread("g0", "g1").over == "families" and pool.spread("g0", "g1").freedom == MIN_FREEDOM
    alone = pool.spread("g0", "g3")
    assert alone.over == "all" and alone.std == pytest.approx(pooled_seed_std(scores).std)
    assert by_kind(pool)["clustered", "dense", False]["used"] is False


def test_groups_with_a_missing_seed_use_the_pool_but_are_not_in_it():
    scores = np.random.default_rng(4).normal(size=(4, 2))
    pool = SeedPool([*members(["dense"] * 4, scores), Member(name="late", family="dense", model="late", scores=None)])
    assert pool.spread("late", "g0") == pool.spread("g0", "g1")


@pytest.mark.parametrize("families", [["dense"] * 2, ["dense", "pruned"]])
def test_three_seeds_of_single_models_are_enough(families):
    spread = SeedPool(members(families, np.random.default_rng(6).normal(size=(2, 3)))).spread("g0", "g1")
    assert (spread.over, spread.freedom) == ("families", 2)


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (3, 1)])
def test_one_group_or_one_seed_has_no_spread(shape):
    pool = SeedPool(members(["dense"] * shape[0], np.zeros(shape)))
    assert pool.spread("g0", "g1") is None and pool.to_dict() is None


def coverage(pair, *, by_family, reps, num_seeds=3):
    """Return how often the interval of a difference of two groups of known spreads contains the true difference."""
    rng, hits = np.random.default_rng(5), 0
    families = ["dense"] * 3 + ["pruned"] * 3
    stds = np.repeat([0.001, 0.03], 3)[:, None]
    for _ in range(reps):
        of_seed = rng.normal(scale=0.05, size=num_seeds)
        scores = of_seed + rng.normal(size=(6, num_seeds)) * stds
        pool = SeedPool(members(families if by_family else ["any"] * 6, scores))
        spread = pool.spread(*(f"g{place}" for place in pair))
        half = stats.t.ppf(0.975, spread.freedom) * spread.std / np.sqrt(num_seeds)
        hits += abs((scores[pair[0]] - scores[pair[1]]).mean()) <= half
    return hits / reps


@pytest.mark.parametrize("pair", [(0, 1), (3, 4), (0, 3)])
def test_intervals_by_family_contain_the_true_difference_as_often_as_they_say(pair):
    assert 0.925 <= coverage(pair, by_family=True, reps=500) <= 0.985


def test_the_simulation_sees_that_one_pool_of_all_families_is_too_narrow_for_noisy_ones():
    assert coverage((3, 4), by_family=False, reps=400) < 0.92
    assert coverage((0, 1), by_family=False, reps=200) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "dense"),
        ({"compression": {"prune": {"enabled": True}}}, "pruned"),
        ({"compression": {"qat": {"enabled": True}, "prune": {"enabled": True}}}, "pruned + QAT"),
        ({"compression": {"structured_pruning": {"enabled": True}}}, "structured"),
        ({"compression": {"cluster": {"enabled": True}}, "conversion": {"int4_layers": ["*"]}}, "clustered, int4"),
        ({"compression": {"qat": {"enabled": True, "int4_layers": ["*"]}}}, "QAT, int4"),
        ({"conversion": {"scheme": "int16x8"}}, "dense"),
    ],
)
def test_the_family_names_the_steps_of_compression_and_int4(settings, expected):
    off = {"prune": {"enabled": False}, "qat": {"enabled": False}}
    compression = off | settings.get("compression", {})
    assert family_of(RunConfig.from_dict({**settings, "compression": compression})) == expected

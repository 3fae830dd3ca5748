# SPDX-License-Identifier: Apache-2.0
"""Fronts and the best group of a sweep, compared with brute force."""

import dataclasses

import metric_examples
import numpy as np
import pytest

from tfq.config import SweepBudgetConfig
from tfq.evaluation import as_metric
from tfq.evaluation.metric_scores import Scored, score_metrics
from tfq.evaluation.per_example import packed
from tfq.sweep import best_of, front_of, groups_of, pareto_front
from tfq.sweep.analysis import missed_bounds, seed_pools
from tfq.sweep.record import Cost, PointRecord, SplitScore

COSTS = ("model_bytes", "gzip_bytes", "arena_bytes")


def score(correct, **changes):
    values = {
        "metric": "top1", "unit": "fraction", "direction": "higher", "value": float(np.mean(correct)), "reason": None,
        "interval": None, "num_examples": len(correct), "scores": {}, "agreement": None, "agreement_reason": "",
        "difference": None, "difference_reason": "", "per_example": packed(correct),
    }  # fmt: skip
    return SplitScore(**{**values, **changes})


def point(group, seed, correct, costs, reference=None, **changes):
    """Return a point with the same answers on both splits."""
    values = {
        "id": f"{group}/seed{seed}", "group": group, "axes": {"name": group}, "seed": seed, "status": "done",
        "reference": reference, "scores": {split: score(correct) for split in ("val", "test")},
        "costs": {name: Cost(value=value, how="measured") for name, value in zip(COSTS, costs, strict=False)},
    }  # fmt: skip
    return PointRecord(**{**values, **changes})


def measured(metric, values, replicates, **changes):
    """Return the score of a metric that is not a mean over 120 examples."""
    packed_draws = None if replicates is None else packed(np.asarray(replicates, np.float32))
    return score(
        np.ones(120, bool),
        metric=metric,
        unit="score",
        value=values,
        per_example=None,
        replicates=packed_draws,
        **changes,
    )


def resampled_point(group, seed, value, noise, costs, **changes):
    """Return a point whose metric varies by `noise` over the draws of a bootstrap."""
    draws = value + noise * np.random.default_rng(0).normal(size=1000)
    scores = {split: measured("mean_iou", value, draws) for split in ("val", "test")}
    return point(group, seed, np.ones(120, bool), costs, scores=scores, **changes)


def random_sweep(seed, num_groups=9, num_seeds=2, count=200):
    rng = np.random.default_rng(seed)
    easy = rng.random(count)
    return [
        point(f"g{group}", number, easy < chance + rng.normal(scale=0.02), costs)
        for group in range(num_groups)
        for chance, costs in [(rng.uniform(0.6, 0.9), (rng.integers(1, 5, size=3) * 1000).tolist())]
        for number in range(num_seeds)
    ]


def means(points, read):
    values = {}
    for each in points:
        values.setdefault(each.group, []).append(read(each))
    return {group: np.mean(each) for group, each in values.items()}


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_what_no_point_dominates(seed):
    rng = np.random.default_rng(seed)
    costs, scores = rng.integers(0, 6, size=(2, 25))
    expected = [
        this
        for this in range(25)
        if not any(
            costs[other] <= costs[this]
            and scores[other] >= scores[this]
            and (costs[other] < costs[this] or scores[other] > scores[this])
            for other in range(25)
        )
    ]
    members = pareto_front(costs, scores)
    assert sorted(members) == expected
    assert sorted(costs[members]) == list(costs[members])


def test_a_metric_where_lower_is_better_has_the_mirrored_front():
    points = random_sweep(0)
    mirrored = [
        dataclasses.replace(
            each, scores={"val": score(~np.ones(4, bool), direction="lower", value=-each.scores["val"].value)}
        )
        for each in points
    ]
    front = front_of(groups_of(mirrored), "model_bytes", "val")
    assert [each.group for each in front.members] == [
        each.group for each in front_of(groups_of(points), "model_bytes", "val").members
    ]
    assert front.members[0].score < 0


@pytest.mark.parametrize("seed", range(10))
def test_the_front_of_groups_is_that_of_their_means(seed):
    points = random_sweep(seed)
    values, costs = (
        means(points, lambda each: each.scores["val"].value),
        means(points, lambda each: each.costs["gzip_bytes"].value),
    )
    front = front_of(groups_of(points), "gzip_bytes", "val")
    names = list(values)
    expected = pareto_front([costs[name] for name in names], [values[name] for name in names])
    assert [member.group for member in front.members] == [names[index] for index in expected]
    assert not set(front.possible) & {member.group for member in front.members}


def test_equal_models_are_within_noise_and_different_ones_are_not():
    easy = np.random.default_rng(0).random(2000)
    points = [
        each
        for seed in (0, 1)
        for each in (
            point("small", seed, easy < 0.7, (1000,)),
            point("twin", seed, (easy < 0.7) ^ (np.arange(2000) == 5), (2000,)),
            point("large", seed, easy < 0.8, (3000,)),
        )
    ]
    front = front_of(groups_of(points), "model_bytes", "val")
    (large,) = (member for member in front.members if member.group == "large")
    assert large.within_noise == () and large.gain["low"] > 0
    twins = {member.group: member.within_noise for member in front.members} | {
        name: (item["member"],) for name, item in front.possible.items()
    }
    assert twins["twin"] == ("small",)


def test_a_group_without_a_cost_is_left_out_with_its_reason():
    points = random_sweep(1, num_groups=3)
    points[0] = dataclasses.replace(points[0], costs={"model_bytes": Cost(reason="not installed")})
    front = front_of(groups_of(points), "model_bytes", "val")
    assert front.left_out == {"g0": "not installed"}


BUDGETS = (
    {}, {"max_model_bytes": 2000}, {"max_model_bytes": 3000, "max_gzip_bytes": 2000}, {"max_accuracy_drop": 0.05},
    {"max_arena_bytes": 1000, "max_accuracy_drop": 0.2}, {"max_model_bytes": 0},
)  # fmt: skip


@pytest.mark.parametrize("bounds", BUDGETS)
@pytest.mark.parametrize("seed", range(4))
def test_the_best_group_is_the_best_of_those_within_all_bounds(bounds, seed):
    reference = point("float", 0, np.random.default_rng(9).random(200) < 0.85, (9000, 9000, 9000))
    points = [dataclasses.replace(each, reference=reference.id) for each in random_sweep(seed)]
    budget = SweepBudgetConfig(**bounds)
    groups, references = groups_of(points, [reference]), groups_of([reference])
    best = best_of(
        groups,
        budget,
        chosen_on="val",
        reported_on="test",
        references={group.record.group: references[0] for group in groups},
        points=points,
    )
    values = means(points, lambda each: each.scores["val"].value)
    costs = {name: means(points, lambda each, name=name: each.costs[name].value) for name in COSTS}
    allowed = [
        group
        for group in values
        if all(costs[name][group] <= bounds.get(f"max_{name}", np.inf) for name in COSTS)
        and reference.scores["val"].value - values[group] <= bounds.get("max_accuracy_drop", np.inf)
    ]
    expected = max(allowed, key=lambda group: (values[group], -costs["model_bytes"][group]), default=None)
    assert best.group == expected
    assert set(best.missed) == set(values) - set(allowed)
    assert set(best.against) == set(allowed) - {expected}
    for other, difference in best.against.items():
        assert difference["difference"] == pytest.approx(values[expected] - values[other])
        assert difference["comparisons"] == len(allowed) - 1
        assert (other in best.indistinguishable) == (difference["low"] <= 0 <= difference["high"])
    assert (expected or "Within") in best.sentence


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, ("model_bytes", "small_file", "1,000 instead of 3,000 bytes.")),
        ({"max_model_bytes": 9000}, ("model_bytes", "small_file", "1,000 instead of 3,000 bytes.")),
        ({"max_gzip_bytes": 9000}, ("gzip_bytes", "small_gzip", "500 instead of 3,000 bytes after gzip.")),
        (
            {"max_gzip_bytes": 9000, "max_model_bytes": 9000},
            ("model_bytes", "small_file", "1,000 instead of 3,000 bytes."),
        ),
    ],
)
def test_smallest_compares_the_size_that_the_budget_bounds(bounds, expected):
    right = np.arange(300) % 4 > 0
    better = right | (np.arange(300) == 0)
    points = [
        point("best", 0, better, (3000, 3000)),
        point("small_file", 0, right, (1000, 2500)),
        point("small_gzip", 0, right, (2000, 500)),
    ]
    best = best_of(
        groups_of(points), SweepBudgetConfig(**bounds), chosen_on="val", reported_on="test", references={},
        points=points,
    )  # fmt: skip
    size, cheapest, text = expected
    assert (best.group, best.size, best.cheapest) == ("best", size, cheapest)
    assert best.sentence.endswith(f"The smallest of these is {cheapest}, with {text}")


@pytest.mark.parametrize("size", ["model_bytes", "gzip_bytes"])
def test_groups_with_equal_scores_are_chosen_by_the_size_that_the_budget_bounds(size):
    right = np.arange(300) % 4 > 0
    points = [point("small_file", 0, right, (1000, 2500)), point("small_gzip", 0, right, (2000, 500))]
    budget = SweepBudgetConfig(**{f"max_{size}": 9000})
    best = best_of(groups_of(points), budget, chosen_on="val", reported_on="test", references={}, points=points)
    assert best.group == {"model_bytes": "small_file", "gzip_bytes": "small_gzip"}[size]


def noisy_sweep(*, with_families):
    """Return three quiet dense models and three pruned ones of which each seed differs by points."""
    rng = np.random.default_rng(3)
    easy, results = rng.random(4000), []
    for family, spread in (("dense", 0.001), ("pruned", 0.05)):
        for place in range(3):
            for seed in range(3):
                right = easy < 0.8 + rng.normal(scale=spread)
                name = f"{family}{place}"
                results.append(point(name, seed, right, (1000,), family=family if with_families else ""))
    return results


def test_noisy_families_do_not_widen_the_intervals_of_quiet_ones():
    widths = {}
    for with_families in (True, False):
        one, other = groups_of(noisy_sweep(with_families=with_families))[:2]
        difference = one.minus(other, "test")
        assert difference.pooled_over == "families" and difference.num_seeds == 3
        widths[with_families] = difference.high - difference.low
    # Without families, all groups are of one unnamed family.
    assert widths[True] < widths[False] / 5


@pytest.mark.parametrize(("own", "expected"), [(0.0, "families"), (0.2, "own")])
def test_the_larger_spread_over_seeds_is_used_and_named(own, expected):
    points = [each for each in noisy_sweep(with_families=True) if each.group != "dense2"]
    easy = np.random.default_rng(4).random(4000)
    points += [point("dense2", seed, easy < 0.8 + own * (seed - 1), (1000,), family="dense") for seed in range(3)]
    groups = {group.record.group: group for group in groups_of(points)}
    difference = groups["dense2"].minus(groups["pruned0"], "test")
    wider = difference.std_over_seeds > difference.pooled_std
    assert (difference.spread_from, wider) == (expected, expected == "own")


def test_the_summary_has_the_spreads_of_each_split():
    result = seed_pools(noisy_sweep(with_families=True))["test"].to_dict()
    by_kind = {tuple(item["families"]): item for item in result["families"]}
    assert by_kind["dense", "dense"]["std"] < 0.01 < by_kind["pruned", "pruned"]["std"]
    assert all(item["used"] and not item["same_model"] for item in result["families"])


def test_the_sentence_says_when_nothing_is_within_the_budget():
    points = random_sweep(0, num_groups=2)
    best = best_of(
        groups_of(points), SweepBudgetConfig(max_model_bytes=1), chosen_on="val", reported_on="test", references={},
        points=points,
    )  # fmt: skip
    assert best.group is None and "bytes" in best.sentence and len(best.missed) == 2


def test_the_sentence_says_when_another_group_is_better_on_test():
    easy = np.random.default_rng(0).random(2000)
    points = [
        dataclasses.replace(
            point(name, 0, easy < 0.5, (1000,)),
            scores={"val": score(easy[:100] < val), "test": score(easy < test)},
        )
        for name, val, test in (("lucky", 0.9, 0.6), ("good", 0.8, 0.8))
    ]
    best = best_of(
        groups_of(points), SweepBudgetConfig(), chosen_on="val", reported_on="test", references={}, points=points
    )
    assert best.group == "lucky" and "good is better on test" in best.sentence


def test_a_bound_on_a_cost_that_was_not_measured_is_missed():
    (group,) = groups_of([point("g", 0, np.ones(10, bool), (1000,))])
    missed = missed_bounds(group, {"max_instructions": 10.0}, "val", lambda group: None)
    assert len(missed) == 1 and "instructions" in missed[0]


def best(points):
    return best_of(
        groups_of(points), SweepBudgetConfig(), chosen_on="val", reported_on="test", references={}, points=points
    )


@pytest.mark.parametrize("name", ["mean_iou", "coco_map", "roc_auc", "ece", "f1", "rmse"])
def test_a_metric_that_is_not_a_mean_has_the_interval_of_the_evaluation(name, tmp_path):
    metric = as_metric(name)
    outputs, labels = metric_examples.EXAMPLES[name]
    other = tuple(np.roll(output, 1, axis=0) if index == 0 else output for index, output in enumerate(outputs))
    if name in ("mean_iou", "roc_auc"):
        other = (outputs[0].copy(),)
        other[0][:20] = other[0][20:40]
    (expected,) = score_metrics([Scored(metric=metric, outputs=other, labels=labels, reference=(outputs, labels))])
    (base,) = score_metrics([Scored(metric=metric, outputs=outputs, labels=labels)])
    points = [
        point(
            group, 0, np.ones(5, bool), (1000,), reference=None if group == "a" else "a/seed0",
            scores={"test": dataclasses.replace(
                measured(name, each.value, each.replicates, direction=metric.direction), num_examples=len(labels)
            )},
        )
        for group, each in (("a", base), ("b", expected))
    ]  # fmt: skip
    (_, group) = groups_of(points)
    difference = group.record.differences["test"]
    assert difference["difference"] == pytest.approx(expected.difference.difference)
    ends = (expected.difference.low, expected.difference.high)
    assert (difference["low"], difference["high"]) == pytest.approx(ends, abs=1e-6)
    assert difference["method"] == "bootstrap" and difference["difference"] != 0


def test_metrics_that_are_not_means_have_fronts_and_a_best_group_with_intervals():
    points = [
        each
        for seed in (0, 1)
        for each in (
            resampled_point("small", seed, 0.60 + 0.001 * seed, 0.03, (1000,)),
            resampled_point("twin", seed, 0.6001 + 0.001 * seed, 0.0301, (2000,)),
            resampled_point("large", seed, 0.70 + 0.001 * seed, 0.031, (3000,)),
        )
    ]
    front = front_of(groups_of(points), "model_bytes", "val")
    large = front.members[-1]
    assert large.group == "large" and large.within_noise == () and large.gain["low"] > 0
    assert front.members[1].within_noise == ("small",)
    chosen = best(points)
    assert chosen.group == "large" and chosen.without_interval == {} and "more than noise" in chosen.sentence
    assert chosen.against["small"]["low"] > 0 and chosen.against["small"]["comparisons"] == 2


def test_a_comparison_without_an_interval_is_named_and_is_not_called_noise():
    points = [
        resampled_point("good", 0, 0.70, 0.03, (3000,)),
        resampled_point("bad", 0, 0.60, 0.0301, (2000,)),
        point(
            "unpaired", 0, np.ones(5, bool), (1000,),
            scores={split: measured("mean_iou", 0.65, None, unpaired_reason="it would take too long")
                    for split in ("val", "test")},
        ),
    ]  # fmt: skip
    chosen = best(points)
    assert chosen.group == "good" and chosen.indistinguishable == () and chosen.cheapest == "unpaired"
    assert chosen.without_interval == {"unpaired": "it would take too long"}
    assert chosen.against["unpaired"]["difference"] == pytest.approx(0.05)
    assert chosen.against["unpaired"]["low"] is None
    assert "not known" in chosen.sentence and "unpaired" in chosen.sentence and "take too long" in chosen.sentence
    front = front_of(groups_of(points), "model_bytes", "val")
    assert front.members[-1].without_interval == {"unpaired": "it would take too long"}
    alone = best(points[1:])
    assert alone.group == "unpaired" and "only other group" in alone.sentence


def test_points_with_other_numbers_of_examples_have_no_interval():
    first = resampled_point("a", 0, 0.70, 0.03, (3000,))
    second = resampled_point("b", 0, 0.60, 0.03, (2000,))
    scores = {split: dataclasses.replace(item, num_examples=130) for split, item in second.scores.items()}
    chosen = best([first, dataclasses.replace(second, scores=scores)])
    assert "different numbers of examples" in chosen.without_interval["b"]

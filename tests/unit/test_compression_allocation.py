# SPDX-License-Identifier: Apache-2.0
"""Sparsity of each layer from a table of pruning errors. No TensorFlow."""

import itertools
import json

import numpy as np
import pytest
from messages import refused

from tfq.compression.pruning.sensitivity import SensitivityTable, allocate
from tfq.errors import InputError


def table(errors, sizes, levels=(0.25, 0.5, 0.75)):
    return SensitivityTable(levels=levels, errors=errors, sizes=sizes, examples=8, skipped={})


def overall(sparsities, sizes):
    return sum(sparsities[name] * size for name, size in sizes.items()) / sum(sizes.values())


@pytest.mark.parametrize("final", [0.0, 0.1, 0.3, 0.5, 0.62, 0.75])
def test_the_zeros_of_all_layers_are_what_was_asked_for(final):
    rng = np.random.default_rng(0)
    sizes = {"a": 1000, "b": 30, "c": 4567}
    errors = {name: tuple(np.cumsum(rng.uniform(0, 1, 3))) for name in sizes}
    sparsities = allocate(table(errors, sizes), final)
    assert overall(sparsities, sizes) == pytest.approx(final)
    assert all(0 <= sparsity <= 0.75 for sparsity in sparsities.values())


def test_the_layer_that_bears_it_is_pruned_further():
    errors = {"tender": (1.0, 2.0, 3.0), "tough": (0.01, 0.02, 0.03)}
    sparsities = allocate(table(errors, {"tender": 100, "tough": 100}), 0.5)
    assert sparsities == {"tender": pytest.approx(0.25), "tough": pytest.approx(0.75)}


def test_an_error_counts_by_the_weights_that_it_buys():
    # The same error for ten times as many zeros.
    errors = {"small": (0.1, 0.2, 0.3), "large": (0.1, 0.2, 0.3)}
    sparsities = allocate(table(errors, {"small": 100, "large": 1000}), 0.5)
    assert sparsities["small"] == 0 and sparsities["large"] == pytest.approx(0.55)


def test_no_other_allocation_on_the_levels_has_a_smaller_error():
    rng = np.random.default_rng(1)
    levels, sizes = (0.25, 0.5, 0.75), dict.fromkeys("abcd", 64)
    for _ in range(20):
        # Convex errors, so that the levels are corners of the hulls; 8 quarters to distribute.
        errors = {name: tuple(np.cumsum(np.sort(rng.uniform(0, 1, 3)))) for name in sizes}
        got = allocate(table(errors, sizes, levels), 0.5)
        costs = {name: dict(zip((0.0, *levels), (0.0, *errors[name]), strict=True)) for name in sizes}
        best = min(
            sum(costs[name][level] for name, level in zip(sizes, choice, strict=True))
            for choice in itertools.product((0.0, *levels), repeat=4)
            if sum(choice) == 2
        )
        assert sum(costs[name][got[name]] for name in sizes) == pytest.approx(best)


def test_a_level_worse_than_a_higher_one_is_skipped():
    # 0.5 costs more than 0.75, so the hull goes straight from 0.25 to 0.75.
    errors = {"odd": (0.0, 5.0, 0.1), "plain": (0.0, 0.2, 0.4)}
    sparsities = allocate(table(errors, {"odd": 100, "plain": 100}), 0.5)
    assert sparsities == {"odd": pytest.approx(0.75), "plain": pytest.approx(0.25)}


def test_a_sparsity_that_no_level_reaches_is_refused():
    with refused(InputError, word="0.75"):
        allocate(table({"a": (0.1, 0.2, 0.3)}, {"a": 10}), 0.8)


def test_the_table_is_json_with_the_most_sensitive_first():
    built = table({"tough": (0.01, 0.02, 0.03), "tender": (1.0, 2.0, 3.0)}, {"tough": 5, "tender": 7})
    assert json.loads(json.dumps(built.to_dict())) == built.to_dict()
    assert built.to_dict()["layers"]["tender"] == {"weights": 7, "errors": [1.0, 2.0, 3.0]}
    lines = built.to_text().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["tender", "tough"]

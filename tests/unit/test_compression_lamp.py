# SPDX-License-Identifier: Apache-2.0
"""Sparsities by weight magnitude, compared with scores by hand."""

import numpy as np
import pytest

from tfq.compression.pruning.allocation import lamp_sparsities

RNG = np.random.default_rng(0)


def test_scores_are_squares_over_what_would_be_left():
    # Squares 1, 4, 9 have the scores 1/14, 4/13, 1; squares 1, 1 have 1/2, 1.
    kernels = {"a": [np.array([3.0, -1.0, 2.0])], "b": [np.array([[1.0], [-1.0]])]}
    assert lamp_sparsities(kernels, 0.2) == {"a": pytest.approx(1 / 3), "b": 0.0}
    assert lamp_sparsities(kernels, 0.4) == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert lamp_sparsities(kernels, 0.6) == {"a": pytest.approx(2 / 3), "b": 0.5}


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.95])
def test_over_all_weights_the_sparsity_is_what_was_asked_for(sparsity):
    kernels = {f"layer{size}": [RNG.normal(0, 1 / size, (size, 8))] for size in (4, 40, 400)}
    result = lamp_sparsities(kernels, sparsity)
    zeros = sum(result[name] * kernels[name][0].size for name in kernels)
    assert zeros / sum(kernel[0].size for kernel in kernels.values()) == pytest.approx(sparsity, abs=0.002)


def test_layers_that_were_multiplied_have_the_same_sparsity():
    kernels = {"a": [RNG.normal(size=(30, 30))], "b": [RNG.normal(size=(60, 60))]}
    larger = {"a": [kernels["a"][0] * 100], "b": kernels["b"]}
    assert lamp_sparsities(larger, 0.7) == lamp_sparsities(kernels, 0.7)


def test_of_layers_of_one_kind_the_larger_becomes_sparser():
    result = lamp_sparsities({"small": [RNG.normal(size=100)], "large": [RNG.normal(size=10_000)]}, 0.8)
    assert result["small"] < 0.5 < 0.8 < result["large"]


def test_a_layer_of_zeros_is_valid_and_pruned_first():
    result = lamp_sparsities({"zeros": [np.zeros(50)], "other": [RNG.normal(size=50)]}, 0.5)
    assert result["zeros"] == 0.99 and result["other"] < 0.1

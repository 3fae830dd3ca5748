# SPDX-License-Identifier: Apache-2.0
"""Sparsities by shape, compared with arithmetic by hand."""

import numpy as np
import pytest

from tfq.compression.pruning.allocation import erk_sparsities

RESNET = {
    "stem": [np.ones((3, 3, 3, 16))],
    "one": [np.ones((3, 3, 16, 16))],
    "two": [np.ones((3, 3, 32, 64))],
    "three": [np.ones((3, 3, 64, 64))],
    "shortcut": [np.ones((1, 1, 32, 64))],
    "head": [np.ones((64, 10))],
}


def zeros(sparsities, kernels):
    sizes = {name: sum(kernel.size for kernel in values) for name, values in kernels.items()}
    return sum(sparsities[name] * size for name, size in sizes.items()) / sum(sizes.values())


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.9, 0.95])
def test_over_all_weights_the_sparsity_is_what_was_asked_for(sparsity):
    assert zeros(erk_sparsities(RESNET, sparsity), RESNET) == pytest.approx(sparsity)


def test_densities_follow_the_erdos_renyi_kernel_formula():
    result = erk_sparsities(RESNET, 0.8)
    one, three = ((3 + 3 + 16 + 16) / (9 * 16 * 16), (3 + 3 + 64 + 64) / (9 * 64 * 64))
    assert (1 - result["one"]) / (1 - result["three"]) == pytest.approx(one / three)


def test_small_layers_stay_dense_and_large_ones_compensate():
    result = erk_sparsities(RESNET, 0.8)
    assert result["stem"] == result["head"] == 0
    assert 0.8 < result["two"] < result["three"] < 1


def test_a_layer_with_several_kernels_counts_as_one():
    kernels = {"separable": [np.ones((3, 3, 32, 1)), np.ones((1, 1, 32, 64))], "conv": RESNET["three"]}
    result = erk_sparsities(kernels, 0.5)
    assert zeros(result, kernels) == pytest.approx(0.5) and result["separable"] < result["conv"]


def test_a_single_layer_has_the_sparsity_of_all():
    assert erk_sparsities({"head": RESNET["head"]}, 0.7) == {"head": pytest.approx(0.7)}


def test_no_sparsity_leaves_all_dense():
    assert set(erk_sparsities(RESNET, 0.0).values()) == {0.0}

# SPDX-License-Identifier: Apache-2.0
"""Masks of equal scores: the number of pruned weights and blocks, counted by hand. No TensorFlow."""

import numpy as np
import pytest

from tfq.compression.pruning.mask_shapes import block_sums, mask_of_blocks

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("block", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("dead_rows", [0, 10, 16])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
def test_equal_scores_do_not_change_the_number_of_pruned_blocks(block, dead_rows, sparsity):
    scores = RNG.uniform(1, 2, size=(16, 8))
    scores[:dead_rows] = 0
    mask = mask_of_blocks(scores, sparsity, block)
    assert np.count_nonzero(~mask) == sparsity * scores.size
    sums, kept = block_sums(scores, block), block_sums(mask, block) > 0
    assert sums[~kept].max(initial=0) <= sums[kept].min()


def test_one_weight_stays_however_high_the_sparsity():
    assert mask_of_blocks(np.array([[1.0, 3.0], [3.0, 2.0]]), 0.99).sum() == 1

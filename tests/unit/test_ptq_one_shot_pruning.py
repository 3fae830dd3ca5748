# SPDX-License-Identifier: Apache-2.0
"""One-shot pruning: masks against all masks of a small layer, weights against least squares on the data themselves."""

import itertools

import numpy as np
import pytest
from golden_models import golden
from messages import refused

from tfq import ptq, tflite
from tfq.config import ConversionConfig
from tfq.conversion.quantize import check_settings
from tfq.errors import InputError
from tfq.ptq.one_shot_pruning import best_weights, magnitude_mask, sparse_mask, sparse_weights
from tfq.ptq.weighted_ops import weighted_ops

FLOATING = golden("digits_float32")
RNG = np.random.default_rng(0)
SAMPLES = [{"image": RNG.integers(0, 17, (1, 8, 8, 1)).astype(np.float32)} for _ in range(40)]


def correlated(size, rows=400):
    """Return inputs (rows, size) that depend on fewer hidden variables."""
    return RNG.normal(size=(rows, size // 2)) @ RNG.normal(size=(size // 2, size)) + 0.1 * RNG.normal(size=(rows, size))


def least_squares(inputs, outputs, kept):
    """Return the mean squared error of the best weights for the kept inputs."""
    best, *_ = np.linalg.lstsq(inputs[:, kept], outputs, rcond=None)
    return float(((outputs - inputs[:, kept] @ best) ** 2).mean())


def test_weights_of_a_mask_are_those_of_least_squares():
    inputs, weights = correlated(12), RNG.normal(size=(3, 12))
    mask = RNG.random((3, 12)) < 0.5
    sparse = best_weights(weights, inputs.T @ inputs / len(inputs), mask)
    assert not sparse[~mask].any()
    for row, kept in enumerate(mask):
        outputs = inputs @ weights[row]
        error = ((outputs - inputs @ sparse[row]) ** 2).mean()
        assert error <= 1.02 * least_squares(inputs, outputs, kept) + 0.002 * outputs.var()


@pytest.mark.parametrize("m_by_n", [None, (2, 4)])
def test_sparse_weights_are_close_to_the_best_of_all_masks_and_better_than_magnitude(m_by_n):
    excess, ratios = [], []
    for _ in range(10):
        inputs, weights = correlated(8), RNG.normal(size=(1, 8))
        outputs = inputs @ weights[0]
        every = [np.isin(np.arange(8), item) for item in itertools.combinations(range(8), 4)]
        if m_by_n:
            every = [kept for kept in every if kept[:4].sum() == 2]
        best = min(least_squares(inputs, outputs, kept) for kept in every)
        sparse = sparse_weights(weights, inputs.T @ inputs / len(inputs), 8, 0.5, m_by_n)[0]
        by_magnitude = magnitude_mask(weights, 8, 0.5, m_by_n)[0]
        assert (sparse != 0).sum() == by_magnitude.sum() == 4
        excess.append((least_squares(inputs, outputs, sparse != 0) - best) / outputs.var())
        ratios.append(((outputs - inputs @ sparse) ** 2).mean() / least_squares(inputs, outputs, by_magnitude))

    assert np.mean(excess) < 0.02 and np.exp(np.log(ratios).mean()) < 0.8


def test_groups_do_not_continue_in_the_next_tap():
    weights = RNG.normal(size=(5, 12))  # two taps of six inputs: groups of four and of two, which keeps both
    mask = magnitude_mask(weights, 6, 0.5, (2, 4))
    by_tap = mask.reshape(5, 2, 6)
    assert (by_tap[:, :, :4].sum(axis=2) == 2).all() and by_tap[:, :, 4:].all()
    assert (sparse_mask(weights, np.eye(12), 6, 0.5, (2, 4)) == mask).all()  # inputs that do not correlate


def test_all_layers_of_a_flatbuffer_become_sparse_and_int8_keeps_the_zeros():
    result = ptq.make_sparse(FLOATING, SAMPLES, m_by_n=(2, 4))
    for layer in weighted_ops(tflite.unpack(result.model), tflite.read(result.model)):
        if layer.is_depthwise:
            assert layer.layer in result.skipped
            continue
        weights = layer.weights_by_output().reshape(layer.num_outputs, -1, layer.num_inputs)
        for start in range(0, layer.num_inputs, 4):
            group = weights[:, :, start : start + 4]
            assert ((group != 0).sum(axis=2) <= 2).all()
        before, after = result.layers[layer.layer]
        assert after < before or before < 1e-6
        assert result.zeros[layer.layer] == pytest.approx((weights == 0).mean())
    half = ptq.make_sparse(FLOATING, SAMPLES, sparsity=0.5)
    assert all(zeros == pytest.approx(0.5, abs=0.05) for zeros in half.zeros.values())


def test_a_model_without_weights_is_refused():
    with refused(InputError, field="conversion.techniques", word="one_shot_pruning"):
        ptq.make_sparse(golden("digits_int8"), SAMPLES)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sparsity": 0.7}, "sparsity"),
        ({"sparsity_m_by_n": (2, 4)}, "sparsity_m_by_n"),
        ({"techniques": ("one_shot_pruning",), "sparsity_m_by_n": (4, 2)}, "sparsity_m_by_n"),
        ({"techniques": ("one_shot_pruning",), "sparsity_m_by_n": (2, 4), "sparsity": 0.7}, "sparsity_m_by_n"),
    ],
)
def test_sparsity_that_has_no_effect_or_no_meaning_is_refused(settings, field):
    with refused(InputError, field=f"conversion.{field}"):
        check_settings(ConversionConfig(**settings), trained=False)

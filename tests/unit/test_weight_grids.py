# SPDX-License-Identifier: Apache-2.0
"""Grids of few bits. Oracles: brute force over levels, the number of remaining values, TFLite's int8."""

import numpy as np
import pytest

from tfq.analysis import GRIDS, weight_grids
from tfq.analysis.weight_grids import on_grid
from tfq.config import GRIDS as CHOICES
from tfq.quant_math import sqnr_db

RNG = np.random.default_rng(0)
ROWS = (RNG.normal(size=(6, 400)) * 2.0 ** RNG.integers(-4, 4, (6, 1))).astype(np.float32)
PRUNED = np.where(np.abs(ROWS) < np.quantile(np.abs(ROWS), 0.8, axis=1, keepdims=True), 0, ROWS)


def errors(rows, grid, bits):
    return ((on_grid(rows, grid, bits) - rows) ** 2).sum() / (rows**2).sum()


def test_the_config_offers_the_grids_that_there_are():
    assert set(CHOICES) == set(GRIDS)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_the_number_of_values_fits_the_bits(grid, bits):
    result = on_grid(ROWS, grid, bits)
    assert result.shape == ROWS.shape and result.dtype == np.float32
    parts = [result] if grid == "kmeans" else result
    assert max(np.unique(part).size for part in parts) <= 2**bits


@pytest.mark.parametrize("grid", ["uniform", "zero_aware", "logarithmic", "kmeans"])
def test_more_bits_have_less_error(grid):
    results = [errors(ROWS, grid, bits) for bits in (2, 3, 4, 6, 8)]
    assert results == sorted(results, reverse=True) and results[-1] < 1e-3


def best_logarithmic_error(row, count):
    """Return the least squared error over a dense set of bases and factors, with every distance computed."""
    least = np.inf
    for base in 2.0 ** np.geomspace(0.03, 1.2, 25):
        sides = base ** -np.arange(float(count))
        for factor in np.abs(row).max() * np.linspace(0.5, 1.02, 14):
            levels = factor * np.concatenate([sides, [0], -sides])
            least = min(least, (np.abs(row[:, None] - levels).min(axis=1) ** 2).sum())
    return least


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_logarithmic_bases_are_nearly_the_best_on_heavy_tails(bits):
    row = np.random.default_rng(1).standard_t(4, 500).astype(np.float32)
    error = ((on_grid(row[None], "logarithmic", bits) - row) ** 2).sum()
    assert error <= 1.25 * best_logarithmic_error(row.astype(np.float64), 2 ** (bits - 1) - 1)


def test_each_bit_adds_signal_to_noise_ratio_on_heavy_tails():
    rows = np.random.default_rng(2).standard_t(4, (8, 500)).astype(np.float32)
    ratios = [sqnr_db(rows, on_grid(rows, "logarithmic", bits)) for bits in range(2, 9)]
    assert np.diff(ratios).min() > 4.5 and ratios[-1] > 38


@pytest.mark.parametrize("grid", ["uniform", "zero_aware", "power_of_two", "logarithmic"])
def test_every_weight_is_on_the_nearest_level_of_its_row(grid):
    for bits in (2, 3, 5):
        result = on_grid(ROWS, grid, bits)
        for row, values in zip(ROWS, result, strict=True):
            levels = np.unique(values)
            nearest = levels[np.abs(row[:, None] - levels[None, :]).argmin(axis=1)]
            np.testing.assert_allclose(np.abs(row - values), np.abs(row - nearest), rtol=1e-5, atol=1e-6)


def test_8_bit_uniform_is_close_to_tflites_int8():
    scale = np.abs(ROWS).max(axis=1, keepdims=True) / 127
    theirs = ((np.clip(np.rint(ROWS / scale), -127, 127) * scale - ROWS) ** 2).sum() / (ROWS**2).sum()
    assert errors(ROWS, "uniform", 8) <= theirs * 1.01


@pytest.mark.parametrize("grid", GRIDS)
def test_zeros_of_a_pruned_layer_stay_zero(grid):
    assert (on_grid(PRUNED, grid, 3)[PRUNED == 0] == 0).all()


def test_a_zero_aware_grid_has_less_error_for_pruned_layers():
    assert errors(PRUNED, "zero_aware", 3) < 0.7 * errors(PRUNED, "uniform", 3)


def test_powers_of_two_are_powers_of_two():
    result = np.abs(on_grid(ROWS, "power_of_two", 4))
    exponents = np.log2(result[result > 0])
    assert (exponents == np.rint(exponents)).all()


def test_kmeans_is_at_least_as_good_as_the_grid():
    one_scale = ROWS.reshape(1, -1)
    for bits in (2, 3, 4):
        assert errors(one_scale, "kmeans", bits) <= errors(one_scale, "uniform", bits)


def test_binary_weights_have_a_sign_and_one_size_a_row():
    result = weight_grids.binary(ROWS)
    np.testing.assert_allclose(
        np.abs(result), np.broadcast_to(np.abs(ROWS).mean(1, keepdims=True), ROWS.shape), rtol=1e-6
    )
    assert (np.sign(result) == np.sign(ROWS)).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_a_row_of_zeros_stays_that(grid):
    rows = ROWS.copy()
    rows[2] = 0
    for bits in (1, 4):
        result = on_grid(rows, grid, bits)
        assert (result[2] == 0).all() and np.isfinite(result).all()

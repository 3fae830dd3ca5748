# SPDX-License-Identifier: Apache-2.0
"""Histograms whose bins are the same for all data. Oracle: NumPy on the values themselves."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from messages import refused

from tfq.errors import InputError
from tfq.ptq.calibration import Histogram
from tfq.ptq.calibration.histogram import NUM_BINS, Bins

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = arrays(np.float32, array_shapes(max_dims=2, max_side=40), elements=FINITE)


def counted(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, np.float32))
    return histogram


def test_values_are_counted_between_the_ends_of_their_bins():
    bins = counted([-3.0, 0.0, 0.5, 0.5, 1.0, 100.0]).bins()
    np.testing.assert_array_equal(bins.counts, [1, 1, 2, 1, 1])
    # A bin is 1/64 of its octave wide, and a positive one begins with its lowest value.
    np.testing.assert_array_equal(bins.low[1:], [0, 0.5, 1.0, 100.0])
    np.testing.assert_array_equal(bins.high[2:], [0.5 + 0.5 / 64, 1 + 1 / 64, 101])
    np.testing.assert_array_equal([bins.low[0], bins.high[0]], [-3 - 2 / 64, -3])


@settings(deadline=None)
@given(VALUES)
def test_bins_hold_each_value_and_are_in_order(values):
    bins = counted(values).bins()
    assert bins.counts.sum() == values.size
    assert (bins.low <= bins.high).all() and (bins.high[:-1] <= bins.low[1:]).all()
    place = np.searchsorted(bins.high, values.reshape(-1), side="left")
    assert (bins.low[place] <= values.reshape(-1)).all()


@settings(deadline=None)
@given(VALUES, st.data())
def test_parts_add_up_to_the_whole_to_the_bit(values, data):
    at = data.draw(st.integers(0, len(values)))
    part = counted(values[:at])
    part.merge(counted(values[at:]))
    np.testing.assert_array_equal(part.counts, counted(values).counts)


def test_large_arrays_are_counted_whole():
    values = np.random.default_rng(0).normal(size=(3, 70_001)).astype(np.float32)
    assert counted(values).total == values.size
    np.testing.assert_array_equal(counted(values).counts, counted(*values).counts)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.9999])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_quantiles_are_those_of_the_values_within_a_bin(fraction, scale):
    values = (np.random.default_rng(1).normal(size=100_000) * scale).astype(np.float32)
    result = counted(values).bins().quantile(fraction)
    assert abs(result - np.quantile(values, fraction)) <= abs(result) / 64 + 1e-3 * scale


def test_quantiles_at_the_ends_are_the_ends_of_the_outer_bins():
    bins = counted([-1.0, 2.0]).bins()
    assert bins.quantile(0.0) == bins.low[0] and bins.quantile(1.0) == bins.high[-1]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_quantiles_of_impossible_fractions_are_refused(fraction):
    with refused(InputError, word="0"):
        counted([1.0]).bins().quantile(fraction)


def test_quantiles_of_nothing_are_refused():
    with refused(InputError, word="least"):
        Histogram().bins().quantile(0.5)


def test_values_next_to_zero_are_counted_without_a_complaint():
    bins = Bins(np.array([0.0, 1e-45]), np.array([1e-320, 1e-44]), np.array([3, 1]))
    with np.errstate(all="raise"):
        assert bins.fraction_outside(-1, 1) == 0
        assert bins.fraction_outside(2, 3) == 1


def test_what_lies_outside_is_counted():
    bins = counted(np.linspace(-4, 4, 8001)).bins()
    assert bins.fraction_outside(-4, 4) <= 2 / 8001
    assert bins.fraction_outside(-2, 4) == pytest.approx(2000 / 8001, rel=0.01)
    assert bins.fraction_outside(-1, 2) == pytest.approx(5000 / 8001, rel=0.01)


def test_zero_has_a_bin_that_small_values_are_not_in():
    bins = counted([0.0, -0.0, 1e-30, -1e-30, 1.0]).bins()
    assert bins.counts.sum() == 5
    np.testing.assert_array_equal(bins.without_zero().counts, [1, 1, 1])


def test_json_gives_back_the_same_counts():
    histogram = counted(np.random.default_rng(2).normal(size=1000))
    values = json.loads(json.dumps(histogram.to_dict()))
    np.testing.assert_array_equal(Histogram.from_dict(values).counts, histogram.counts)


@pytest.mark.parametrize(
    "change",
    [{"mantissa_bits": 7}, {"bins": [NUM_BINS]}, {"bins": [-1]}, {"counts": [0]}, {"counts": [1, 2]}],
)
def test_other_bins_are_refused(change):
    with refused(InputError, word="histogram"):
        Histogram.from_dict({**counted([1.0]).to_dict(), **change})

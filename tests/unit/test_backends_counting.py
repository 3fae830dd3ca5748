# SPDX-License-Identifier: Apache-2.0
"""Counts of the values near the ends. Oracle: the counts of all values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfq.backends.target.counting import (
    CHOOSE_EVERY,
    COLUMNS,
    ROWS,
    SEPARATE,
    Counts,
    Groups,
    JoinedCounts,
    write_counts,
)
from tfq.ptq.calibration.histogram import NUM_BINS, SHIFT, Histogram, UnknownQuantileError

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(20, 40, 64)).astype(np.float32)
VALUES = {
    "normal": NORMAL,
    "negative": NORMAL - 10,
    "relu": np.maximum(NORMAL, 0),
    "relu with negative zeros": np.where(NORMAL > 0, NORMAL, np.float32(-0.0)),
    "relu6": np.clip(4 * NORMAL, 0, 6),
    "sigmoid": (1 / (1 + np.exp(-9 * NORMAL))).astype(np.float32),
    "almost always 0": np.where(NORMAL > 3.5, NORMAL, 0),
    "two values": np.sign(NORMAL),
    "one value": np.full_like(NORMAL, 0.3),
    "zeros": np.zeros_like(NORMAL),
    "subnormal": NORMAL * np.float32(1e-40),
    "large": NORMAL * np.float32(1e37),
    "grows": NORMAL * np.arange(1, 21, dtype=np.float32)[:, None, None],
}
TAIL, SHARE = 1e-3, 1e-2


def counted(samples, share, num_full=8):
    counts = Counts(NUM_BINS, SHIFT)
    for number, sample in enumerate(samples):
        if number == num_full:
            counts.leave_out_middle(share)
        ends = counts.add_array(sample)
        assert ends == (sample.min(), sample.max())
    (filled,) = np.nonzero(counts.counts)
    return Histogram.of_counts(filled, counts.counts[filled], counts.total, counts.gap)


@pytest.mark.parametrize("kind", VALUES)
def test_values_near_the_ends_are_counted_as_if_all_were(kind):
    samples = VALUES[kind]
    every, ends = Histogram(), counted(samples, SHARE)
    every.add(samples)
    assert ends.total == every.total == samples.size
    for fraction in (0, TAIL / 2, TAIL, 1 - TAIL, 1 - TAIL / 2, 1):
        assert ends.bins().quantile(fraction) == every.bins().quantile(fraction)
    low, high = (every.bins().quantile(fraction) for fraction in (TAIL, 1 - TAIL))
    assert ends.bins().fraction_outside(low, high) == pytest.approx(every.bins().fraction_outside(low, high), rel=1e-12)


def test_a_quantile_among_values_that_were_not_counted_is_refused():
    ends = counted(VALUES["normal"], SHARE)
    with pytest.raises(UnknownQuantileError):
        ends.bins().quantile(0.5)
    assert len(ends.bins().counts) < 400 < len(counted(VALUES["normal"], SHARE, num_full=99).bins().counts)


def test_ends_that_the_first_samples_do_not_show_are_refused_and_not_wrong():
    # Values of the first samples are so large that later ones never reach the ends.
    shrinking = NORMAL.copy()
    shrinking[8:] /= 1000
    with pytest.raises(UnknownQuantileError):
        counted(shrinking, 2e-3).bins().quantile(1 - 1e-3)


@settings(deadline=None)
@given(
    arrays(np.float32, (12, 9), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from((0.02, 0.1, 0.3)),
)
def test_any_values_are_counted_outside_of_the_gap(samples, share):
    every, ends = Histogram(), counted(samples, share, num_full=4)
    every.add(samples)
    assert ends.total == samples.size
    for fraction in np.linspace(0, 1, 23):
        try:
            assert ends.bins().quantile(fraction) == every.bins().quantile(fraction)
        except UnknownQuantileError:
            assert 0 < fraction < 1


def test_counts_of_two_children_add_up_with_the_wider_gap():
    samples = VALUES["normal"]
    every, one, other = Histogram(), counted(samples[:9], SHARE), counted(samples[9:], 2 * SHARE)
    every.add(samples)
    gap = {one.gap, other.gap}
    one.merge(other)
    assert len(gap) == 2 and one.gap in gap and one.total == samples.size
    for fraction in (TAIL, 1 - TAIL):
        assert one.bins().quantile(fraction) == every.bins().quantile(fraction)
    whole = counted(samples, SHARE, num_full=99)
    whole.merge(one)
    assert whole.gap == one.gap and whole.total == 2 * samples.size


@pytest.mark.parametrize("size", [1, ROWS - 1, ROWS, ROWS * COLUMNS, ROWS * COLUMNS + 5])
def test_arrays_of_any_size_are_counted_whole(size):
    values = RNG.normal(size=(10, size)).astype(np.float32)
    every, ends = Histogram(), counted(values, SHARE)
    every.add(values)
    for fraction in (0, 1e-4, 1 - 1e-4, 1):
        assert ends.bins().quantile(fraction) == every.bins().quantile(fraction)


def of_groups(samples, are_rows, num_full=8):
    """Return the histograms of matrices whose rows or columns are reduced, of shape (samples, rows, columns) each."""
    counted = [Counts(NUM_BINS, SHIFT) for _ in samples]
    axis = 1 if are_rows else 0
    groups = Groups([each.shape[2 - axis] for each in samples], [are_rows] * len(samples), counted)
    for number, matrices in enumerate(zip(*samples, strict=True)):
        if number == num_full:
            for counts in counted:
                counts.leave_out_middle(SHARE)
            groups.choose_limits()
        reduced = np.concatenate([end(each, axis=axis) for end in (np.min, np.max, np.sum) for each in matrices])
        extremes = groups.extremes(reduced)
        assert extremes.T.tolist() == [[each.min(), each.max()] for each in matrices]
        groups.add(reduced, matrices, extremes)
    results = []
    for counts in counted:
        (filled,) = np.nonzero(counts.counts)
        results.append(Histogram.of_counts(filled, counts.counts[filled], counts.total, counts.gap))
    return results


@pytest.mark.parametrize("are_rows", [True, False])
def test_values_of_groups_that_reach_the_ends_are_counted_as_if_all_were(are_rows):
    tensors = [*VALUES.values(), *(values[:, :10, :3] for values in VALUES.values())]
    results = of_groups(tensors, are_rows)
    assert {result.gap is None for result in results} == {True, False}
    for values, ends in zip(tensors, results, strict=True):
        one_by_one = counted(values, SHARE)
        assert (ends.gap, ends.total, ends.num_missing) == (one_by_one.gap, values.size, one_by_one.num_missing)
        assert np.array_equal(ends.counts, one_by_one.counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_extremes_of_groups_are_unknown_if_a_sum_is_not_finite(bad):
    groups = Groups([2], [True], [])
    assert groups.extremes(np.float32([1, 2, 3, 4, 5, bad])) is None
    assert groups.extremes(np.float32([1, 2, 3, 4, 5, 6])).tolist() == [[1], [4]]


def of_joined(samples, share, num_full=8):
    """Return the histograms of tensors whose values are joined, of shape (samples, values) each."""
    sizes = np.array([each.shape[1] for each in samples])
    joined = JoinedCounts(sizes, NUM_BINS, SHIFT)
    starts = np.cumsum(sizes) - sizes
    for number, row in enumerate(np.concatenate(samples, axis=1)):
        if number == num_full:
            joined.leave_out_middle(share)
        joined.add(row, [np.minimum.reduceat(row, starts), np.maximum.reduceat(row, starts)])
    joined.flush()
    results = []
    for counts in joined.tensors:
        (filled,) = np.nonzero(counts.counts)
        results.append(Histogram.of_counts(filled, counts.counts[filled], counts.total, counts.gap))
    return results


@pytest.mark.parametrize("is_sorted", [True, False])
def test_joined_tensors_are_counted_as_if_all_values_were(is_sorted):
    kinds = [values.reshape(len(values), -1) for values in VALUES.values()]
    tensors = [*(values[:, :3] for values in kinds), *kinds, *(np.tile(values, 2) for values in kinds)]
    if not is_sorted:
        tensors = tensors[::-1]
    assert {values.shape[1] < SEPARATE for values in tensors} == {True, False}
    results = of_joined(tensors, SHARE)
    assert {result.gap is None for result in results} == {True, False}
    for values, result in zip(tensors, results, strict=True):
        every = Histogram()
        every.add(values)
        assert result.total == every.total == values.size
        for fraction in (0, TAIL / 2, TAIL, 1 - TAIL, 1 - TAIL / 2, 1):
            assert result.bins().quantile(fraction) == every.bins().quantile(fraction)


def test_the_middle_of_a_small_tensor_is_left_out_when_enough_values_are_counted():
    values = RNG.normal(size=(8 + 2 * CHOOSE_EVERY, 300)).astype(np.float32)
    other = RNG.normal(size=(len(values), 3000)).astype(np.float32)
    for num_samples, has_gap in ((8, False), (8 + CHOOSE_EVERY, True), (len(values), True)):
        small, large = of_joined([values[: num_samples + 1], other[: num_samples + 1]], SHARE)
        assert (small.gap is not None, large.gap is not None) == (has_gap, True)
    every = Histogram()
    every.add(values)
    assert [small.bins().quantile(fraction) for fraction in (TAIL, 1 - TAIL)] == [
        every.bins().quantile(fraction) for fraction in (TAIL, 1 - TAIL)
    ]


def test_joined_tensors_are_counted_whole_without_a_share():
    values = RNG.normal(size=(70, 30)).astype(np.float32)
    for result, part in zip(of_joined([values[:, :10], values[:, 10:]], 0.0), (slice(10), slice(10, 30)), strict=True):
        every = Histogram()
        every.add(values[:, part])
        assert result.gap is None
        np.testing.assert_array_equal(result.counts, every.counts)


def test_few_values_do_not_choose_the_ends():
    counts = Counts(NUM_BINS, SHIFT)
    counts.add_array(NORMAL[0])
    counts.leave_out_middle(31 / NORMAL[0].size)
    assert counts.gap is None
    counts.leave_out_middle(33 / NORMAL[0].size)
    assert counts.gap is not None


def test_nan_and_infinity_reach_the_extremes():
    for special in (np.nan, np.inf, -np.inf):
        counts = Counts(NUM_BINS, SHIFT)
        for sample in NORMAL[:8]:
            counts.add_array(sample)
        counts.leave_out_middle(SHARE)
        bad = NORMAL[8].copy()
        bad[3, 3] = special
        assert not np.isfinite(counts.add_array(bad)).all()


def test_a_file_of_counts_holds_what_was_counted(tmp_path):
    tensors = [Counts(NUM_BINS, SHIFT) for _ in range(3)]
    tensors[0].add_array(np.float32([1, 1, 2]))
    tensors[2].add_array(NORMAL)
    tensors[2].leave_out_middle(SHARE)
    write_counts(tmp_path / "counts.npz", tensors)
    content = np.load(tmp_path / "counts.npz")
    np.testing.assert_array_equal(content["lengths"][:2], [2, 0])
    np.testing.assert_array_equal(content["counts"][:2], [2, 1])
    np.testing.assert_array_equal(content["totals"], [3, 0, NORMAL.size])
    np.testing.assert_array_equal(content["gaps"][:2], [[-1, -1], [-1, -1]])
    assert tuple(content["gaps"][2]) == tensors[2].gap

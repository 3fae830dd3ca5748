# SPDX-License-Identifier: Apache-2.0
"""The ratio of two times on a machine that drifts, compared with simulated machines whose ratio is known."""

import numpy as np
import pytest

from tfq.errors import InputError
from tfq.evaluation.paired import MIN_PAIRS, paired_ratio, student_t

RATIO = 1.3
ROUNDS = 40
TRIALS = 400

DRIFTS = {
    "none": lambda rng, count: np.zeros(count),
    "doubling": lambda rng, count: np.linspace(0, np.log(2), count),
    "random walk": lambda rng, count: np.cumsum(rng.normal(0, 0.03, count)),
    "step": lambda rng, count: np.where(np.arange(count) > count * rng.random(), 0.6, 0.0),
}


def machine(rng, drift, rounds=ROUNDS, orders=True):
    """Return (times, base times) of consecutive blocks, as in the benchmark's rounds."""
    speed = np.exp(DRIFTS[drift](rng, 2 * rounds) + rng.normal(0, 0.02, 2 * rounds)).reshape(rounds, 2)
    if orders:
        speed[1::2] = speed[1::2, ::-1]
    return RATIO * speed[:, 1], speed[:, 0]


def coverage(interval, drift, **settings):
    """Return how often `interval` covers the true ratio."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(TRIALS):
        low, high = interval(*machine(rng, drift, **settings))
        held += low <= RATIO <= high
    return held / TRIALS


def ours(times, base):
    ratio = paired_ratio(times, base)
    return ratio.low, ratio.high


def unpaired(times, base):
    """Return Welch's interval of two samples that are assumed independent, but timed one after the other."""
    logs = np.log(times[len(times) // 2 :]), np.log(base[: len(base) // 2])
    center = logs[0].mean() - logs[1].mean()
    reach = 2.02 * np.sqrt(sum(values.var(ddof=1) / len(values) for values in logs))
    return np.exp(center - reach), np.exp(center + reach)


@pytest.mark.parametrize("drift", DRIFTS)
def test_the_interval_covers_the_true_ratio_in_95_percent(drift):
    assert 0.92 <= coverage(ours, drift) <= 0.995


@pytest.mark.parametrize("drift", ["doubling", "random walk"])
def test_an_unpaired_interval_misses_the_true_ratio_where_the_machine_drifts(drift):
    assert coverage(unpaired, drift) < 0.5


def test_the_unpaired_interval_is_right_on_a_steady_machine():
    assert 0.92 <= coverage(unpaired, "none") <= 0.98


def test_a_steady_drift_cancels_only_with_reversed_orders():
    steady = np.exp(np.linspace(0, np.log(8), 2 * ROUNDS)).reshape(ROUNDS, 2)
    turned = steady.copy()
    turned[1::2] = turned[1::2, ::-1]
    assert paired_ratio(turned[:, 1], turned[:, 0]).ratio == pytest.approx(1, abs=1e-12)
    assert paired_ratio(steady[:, 1], steady[:, 0]).ratio == pytest.approx(8 ** (1 / (2 * ROUNDS - 1)), rel=1e-9)


def test_a_disturbance_that_lasts_widens_the_interval():
    rng = np.random.default_rng(3)
    shocks = rng.normal(0, 0.02, ROUNDS)
    lasting = np.empty(ROUNDS)
    lasting[0] = shocks[0]
    for index in range(1, ROUNDS):
        lasting[index] = 0.9 * lasting[index - 1] + shocks[index]
    base = np.ones(ROUNDS)
    shuffled = rng.permutation(lasting.reshape(-1, 2)).reshape(-1)
    ordered, mixed = (paired_ratio(np.exp(values), base) for values in (lasting, shuffled))
    assert ordered.ratio == pytest.approx(mixed.ratio)
    assert ordered.high - ordered.low > 1.5 * (mixed.high - mixed.low)


def test_the_interval_of_independent_pairs_is_students():
    logs = np.tile([0.0, 0.2], 10).repeat(2)  # alternating pairs of 0 and 0.2: correlation below 0, so 20 of them count
    ratio = paired_ratio(np.exp(logs), np.ones(40))
    reach = 2.093024 * np.std(logs[::2], ddof=1) / np.sqrt(20)
    assert np.log([ratio.low, ratio.ratio, ratio.high]) == pytest.approx([0.1 - reach, 0.1, 0.1 + reach], rel=1e-5)


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.18245), (4, 2.77645), (10, 2.22814), (30, 2.04227)])
def test_students_quantiles_are_those_of_the_table(freedom, quantile):
    assert student_t(0.975, freedom) == pytest.approx(quantile, rel=0.005)


def test_too_few_blocks_give_a_ratio_without_an_interval():
    few = 2 * MIN_PAIRS - 1
    ratio = paired_ratio(np.full(few, 3.0), np.full(few, 2.0))
    assert (ratio.ratio, ratio.low, ratio.high) == (pytest.approx(1.5), None, None)
    assert f"{few} blocks" in ratio.reason
    assert paired_ratio(np.full(few + 1, 3.0), np.full(few + 1, 2.0)).reason is None


@pytest.mark.parametrize(
    ("times", "base"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([np.nan], [1.0]), ([[1.0]], [[1.0]])]
)
def test_values_that_are_not_pairs_of_times_are_refused(times, base):
    with pytest.raises(InputError):
        paired_ratio(times, base)

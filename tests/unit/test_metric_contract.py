# SPDX-License-Identifier: Apache-2.0
"""The contract of every registered metric: states merge exactly, and weights count examples repeatedly."""

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metric_examples import EXAMPLES, NUM_EXAMPLES

from tfq import registry
from tfq.evaluation import as_metric

NAMES = registry.names("metric")
SLOW_DRAWING = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def part(outputs, labels, which):
    return tuple(output[which] for output in outputs), labels[which]


def test_every_metric_has_examples():
    assert set(EXAMPLES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(cuts=st.sets(st.integers(1, NUM_EXAMPLES - 1), min_size=1, max_size=4))
@SLOW_DRAWING
def test_merged_states_give_the_number_of_the_whole_to_the_bit(name, cuts):
    metric, (outputs, labels) = as_metric(name), EXAMPLES[name]
    whole = metric.compute(outputs, labels)
    pieces = [part(outputs, labels, which) for which in np.split(np.arange(NUM_EXAMPLES), sorted(cuts))]
    states = [metric.state_of(*piece) for piece in pieces]
    assert metric.value_of(functools.reduce(metric.merge, states)) == whole
    first, *rest = states
    assert metric.value_of(metric.merge(first, functools.reduce(metric.merge, rest))) == whole
    assert metric.value_of(metric.merge(metric.start(), metric.state_of(outputs, labels))) == whole
    continued = metric.start()
    for own, some in pieces:
        continued = metric.update(continued, metric.select(own), some)
    assert metric.value_of(continued) == whole
    if metric.table is not None:
        tables = [metric.table_of(state) for state in (continued, metric.state_of(outputs, labels))]
        assert len({repr(table and table.to_dict()) for table in tables}) == 1


@pytest.mark.parametrize("name", [name for name in NAMES if as_metric(name).resampled or as_metric(name).examples])
@given(seed=st.integers(0, 2**32 - 1))
@SLOW_DRAWING
def test_weights_count_examples_repeatedly(name, seed):
    metric, (outputs, labels) = as_metric(name), EXAMPLES[name]
    measure = metric.resampler(outputs, labels)
    assert measure(np.ones(NUM_EXAMPLES, np.int64)) == pytest.approx(metric.compute(outputs, labels), rel=1e-9)
    drawn = np.random.default_rng(seed).integers(0, NUM_EXAMPLES, NUM_EXAMPLES)
    weights = np.bincount(drawn, minlength=NUM_EXAMPLES)
    repeated = part(outputs, labels, np.repeat(np.arange(NUM_EXAMPLES), weights))
    assert measure(weights) == pytest.approx(metric.compute(*repeated), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if as_metric(name).examples])
def test_scores_of_examples_have_the_metric_as_their_mean(name):
    metric, (outputs, labels) = as_metric(name), EXAMPLES[name]
    scores = metric.examples(metric.select(outputs), labels)
    assert scores.shape == (NUM_EXAMPLES,)
    assert scores.mean() == pytest.approx(metric.compute(outputs, labels), abs=1e-15)

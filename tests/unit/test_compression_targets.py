# SPDX-License-Identifier: Apache-2.0
"""Targets by name pattern, contradicting settings, and the steps of a schedule. No TensorFlow."""

import pytest
from messages import refused

from tfq.compression.pruning.allocation import check_settings, parse_targets, target_sparsities
from tfq.compression.pruning.masks import Schedule
from tfq.config import PruneConfig
from tfq.errors import InputError
from tfq.patterns import Target

REASONS = {"conv1": None, "conv2": None, "head": None, "relu": "ReLU has no weights"}


def chosen(**settings):
    return target_sparsities(PruneConfig(**settings), REASONS)


def test_a_target_is_split_at_its_last_equals_sign():
    assert parse_targets(["a=b=0.5", " conv* = .25 "]) == (
        Target(pattern="a=b", value=0.5, text="a=b=0.5"),
        Target(pattern="conv*", value=0.25, text=" conv* = .25 "),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv1", "PATTERN=SPARSITY"),
        ("=0.5", "PATTERN=SPARSITY"),
        ("conv1=", "PATTERN=SPARSITY"),
        ("conv1=high", "'high'"),
        ("conv1=80%", "0.8"),
        ("conv1=80", "0.8"),
        ("conv1=1", "0.99"),
        ("conv1=-0.1", "0.99"),
        ("conv1=nan", "sparsity"),
        ("conv1=inf", "sparsity"),
    ],
)
def test_an_unreadable_target_is_refused_with_the_expected_form(text, message):
    with refused(InputError, word=message):
        check_settings(PruneConfig(targets=(text,)))


def test_the_last_matching_target_of_a_layer_is_used():
    assert chosen(targets=("conv*=0.8", "conv2=0.3")) == {"conv1": 0.8, "conv2": 0.3, "head": 0.5}
    assert chosen(targets=("conv2=0.3", "conv*=0.8")) == {"conv1": 0.8, "conv2": 0.8, "head": 0.5}


def test_a_target_of_zero_leaves_its_layer_out():
    assert chosen(targets=("head=0",)) == {"conv1": 0.5, "conv2": 0.5}
    with refused(InputError, word="layer's"):
        chosen(targets=("*=0",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("heat=0.5",)}, "'heat=0.5'"),
        ({"targets": ("relu=0.5",)}, "'relu'"),
        ({"layers": ("conv*",), "targets": ("head=0.5",)}, "'head'"),
        ({"layers": ("cnv1",)}, "'conv1'"),
        ({"layers": ()}, "layers"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(settings, message):
    with refused(InputError, word=message):
        chosen(**settings)


def test_settings_that_go_together_pass():
    for settings in (
        {},
        {"sparsity_m_by_n": (2, 4)},
        {"sparsity_m_by_n": (2, 4), "final_sparsity": 0.5, "begin_step": 10},
        {"sparsity_m_by_n": (1, 4), "final_sparsity": 0.25},
        {"sparsity_m_by_n": (2, 4), "block_size": (1, 1)},
        {"block_size": (4, 1), "targets": ("*=0.8",), "initial_sparsity": 0.5},
        {"allocation": "sensitivity", "block_size": (4, 1)},
        {"initial_sparsity": 0.3, "targets": ("*=0",)},
        {"initial_sparsity": 0.9, "schedule": "constant"},
    ):
        check_settings(PruneConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity_m_by_n": (2, 4), "final_sparsity": 0.8}, "final_sparsity"),
        ({"sparsity_m_by_n": (2, 4), "block_size": (4, 1)}, "block_size"),
        ({"sparsity_m_by_n": (2, 4), "targets": ("head=0.5",)}, "targets"),
        ({"sparsity_m_by_n": (2, 4), "allocation": "sensitivity"}, "leave"),
        ({"sparsity_m_by_n": (2, 4), "initial_sparsity": 0.1}, "initial_sparsity"),
        ({"sparsity_m_by_n": (2, 4), "end_step": 9, "frequency": 3}, "end_step"),
        ({"sparsity_m_by_n": (4, 4)}, "below"),
        ({"sparsity_m_by_n": (2,)}, "expected"),
        ({"block_size": (4,)}, "height,width"),
        ({"allocation": "sensitivity", "targets": ("head=0.5",)}, "leave"),
        ({"initial_sparsity": 0.4, "targets": ("head=0.3",)}, "'head=0.3'"),
        ({"initial_sparsity": 0.6}, "0.6"),
        ({"begin_step": 9, "end_step": 9}, "begin_step"),
    ],
)
def test_settings_that_contradict_each_other_say_what_to_do(settings, message):
    with refused(InputError, word=message):
        check_settings(PruneConfig(**settings))


def due(schedule, until=70):
    return [step for step in range(until) if schedule.is_due(step)]


def test_the_polynomial_follows_its_formula():
    schedule = Schedule(PruneConfig(initial_sparsity=0.2, final_sparsity=0.8, begin_step=10, end_step=50, frequency=10))
    for step in (10, 20, 30, 50):
        assert schedule.sparsity(step) == pytest.approx(0.8 + (0.2 - 0.8) * (1 - (step - 10) / 40) ** 3)
    assert schedule.sparsity(50, final=0.3) == 0.3
    # Halfway, with a separate end: 0.6 - 0.4 / 8.
    assert schedule.sparsity(30, final=0.6) == pytest.approx(0.55)
    assert due(schedule) == [10, 20, 30, 40, 50]


def test_the_constant_schedule_prunes_from_its_first_step():
    schedule = Schedule(PruneConfig(schedule="constant", begin_step=0, end_step=25, frequency=10))
    assert due(schedule) == [1, 10, 20, 25]
    assert schedule.sparsity(1) == 0.5


def test_masks_of_m_zeros_in_n_are_made_once():
    assert due(Schedule(PruneConfig(sparsity_m_by_n=(2, 4)))) == [1]
    assert due(Schedule(PruneConfig(sparsity_m_by_n=(2, 4), begin_step=7))) == [7]


def test_an_update_between_two_checks_is_due_at_the_second():
    schedule = Schedule(PruneConfig(begin_step=10, end_step=50, frequency=10))
    assert schedule.is_due(23, last_checked=18) and not schedule.is_due(27, last_checked=23)
    assert schedule.is_due(64, last_checked=48) and not schedule.is_due(64, last_checked=50)


def test_the_length_of_the_training_sets_end_step_once():
    schedule = Schedule(PruneConfig())
    schedule.set_end_step({"epochs": 3, "steps": 8})
    schedule.set_end_step({"epochs": 300, "steps": 8})
    assert schedule.end_step == 18
    with refused(InputError, word="end_step"):
        Schedule(PruneConfig()).set_end_step({"epochs": 3, "steps": None})
    with refused(InputError, word="begin_step"):
        Schedule(PruneConfig(begin_step=100)).set_end_step({"epochs": 3, "steps": 8})

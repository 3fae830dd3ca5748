# SPDX-License-Identifier: Apache-2.0
"""Strict JSON in both directions."""

import dataclasses
import json

import pytest
from messages import refused

from tfq.config import BudgetConfig, DataConfig, PruneConfig, RunConfig, SearchConfig, TrainConfig
from tfq.data import load_split
from tfq.errors import InputError


def test_a_config_survives_json():
    config = RunConfig.from_dict(
        {
            "model": "m.keras",
            "data": {"source": "npz:a", "resize": [8, 8]},
            "evaluation": {"require": {"min_accuracy": 0.5}},
        }
    )
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.data.resize == (8, 8)
    assert again.evaluation.require.min_accuracy == 0.5


def test_a_section_may_be_given_by_its_naming_field_alone():
    config = RunConfig.from_dict({"data": "npz:a", "compression": {"qat": False}})
    assert config.data == DataConfig(source="npz:a")
    assert config.compression.qat.enabled is False


@pytest.mark.parametrize(
    ("tree", "word"),
    [
        ({"modle": "x"}, "'modle'"),
        ({"compression": {"prune": {"final_sparsty": 0.5}}}, "compression.prune.final_sparsty"),
        ({"compression": {"prune": {"final_sparsity": 1.5}}}, "compression.prune.final_sparsity"),
        ({"seed": "1"}, "'1'"),
        ({"seed": True}, "expected"),
        ({"seed": 1.0}, "1.0"),
        ({"training": []}, "training"),
        ({"data": {"resize": "8,8"}}, "data.resize"),
        ({"data": {"scale": float("nan")}}, "data.scale"),
        ({"conversion": {"scheme": "int9"}}, "'int9'"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_its_path(tree, word):
    with refused(InputError, word=word):
        RunConfig.from_dict(tree)


def test_bounds_hold_in_python_too():
    with refused(InputError, word="final_sparsity"):
        PruneConfig(final_sparsity=-0.1)


def test_a_budget_in_percentage_points_is_refused():
    with refused(InputError, field="search.budget.max_accuracy_drop", expected=0.5, got=1.0, word="0.01"):
        SearchConfig(budget=BudgetConfig(max_accuracy_drop=1))
    assert SearchConfig(budget=BudgetConfig(max_accuracy_drop=1), metric="mae").metric == "mae"
    assert BudgetConfig().max_accuracy_drop == 0.005


def test_data_need_no_source_until_they_are_read():
    with refused(InputError, field="data.source", got=""):
        load_split(DataConfig(), "test")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3  # type: ignore[misc]


def test_an_int_is_taken_for_a_float():
    assert DataConfig(source="digits", scale=2).scale == 2.0


def test_the_hash_ignores_where_the_output_goes_and_nothing_else():
    config = RunConfig(model="a", out="here")
    assert config.config_hash() == dataclasses.replace(config, out="there").config_hash()
    assert config.config_hash() != dataclasses.replace(config, seed=1).config_hash()


def test_every_setting_has_a_help_text():
    def walk(cls):
        from tfq.config.base import field_types, is_section

        for field in dataclasses.fields(cls):
            yield cls.__name__, field
            if is_section(field_types(cls)[field.name]):
                yield from walk(field_types(cls)[field.name])

    assert not [(name, field.name) for name, field in walk(RunConfig) if not field.metadata.get("help")]

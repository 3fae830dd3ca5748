# SPDX-License-Identifier: Apache-2.0
"""The grid of a sweep: what it accepts, its points, and the config of each point."""

import itertools
import json

import pytest
from messages import refused

from tfq.config import DataConfig, RunConfig, SweepConfig
from tfq.errors import InputError
from tfq.sweep import Grid

AXES = {
    "compression": {
        "dense": {"compression": {"prune": False, "qat": False}},
        "pruned80": {"compression": {"prune": {"final_sparsity": 0.8}, "qat": False}},
        "qat": {"compression": {"prune": False}},
    },
    "scheme": {"int8": {}, "int16x8": {"conversion": {"scheme": "int16x8"}}},
}
COMMAND = RunConfig(model="digits_cnn", data=DataConfig(source="digits"), seed=7)


def grid(**changes):
    return Grid.from_dict({"axes": AXES, **changes})


def test_points_are_the_product_of_axes_and_seeds_without_exclusions():
    excluded = {"compression": ["qat"], "scheme": "int16x8"}
    points = grid(seeds=[3, 1], exclude=[excluded]).points(COMMAND)
    expected = [
        f"{compression}/{scheme}/seed{seed}"
        for compression, scheme, seed in itertools.product(("dense", "pruned80", "qat"), ("int8", "int16x8"), (3, 1))
        if (compression, scheme) != ("qat", "int16x8")
    ]
    assert [point.id for point in points] == expected


def test_the_config_of_a_point_is_the_commands_then_base_then_each_axis():
    points = grid(base={"conversion": {"num_calibration_samples": 9}, "compression": {"train": {"epochs": 4}}}).points(
        COMMAND
    )
    by_id = {point.id: point.config for point in points}
    config = by_id["pruned80/int16x8/seed7"]
    assert (config.model, config.data.source, config.seed) == ("digits_cnn", "digits", 7)
    assert (config.conversion.scheme, config.conversion.num_calibration_samples) == ("int16x8", 9)
    assert (config.compression.prune.final_sparsity, config.compression.train.epochs) == (0.8, 4)
    assert config.compression.prune.enabled and not config.compression.qat.enabled


def test_a_grid_survives_json():
    value = grid(
        seeds=[0], exclude=[{"scheme": "int16x8"}], reference={"compression": "dense"}, base={"data": "digits"}
    )
    assert Grid.from_dict(json.loads(json.dumps(value.to_dict()))) == value


@pytest.mark.parametrize(
    ("changes", "field", "word"),
    [
        ({"axis": {}}, "axis", "axes"),
        ({"axes": {}}, "axes", None),
        ({"axes": {"scheme": {}}}, "axes.scheme", None),
        ({"axes": {"scheme": {"a b": {}}}}, "axes.scheme", None),
        ({"axes": {"x": {"a": {"conversion": {"shceme": "int8"}}}}}, "axes.x.a.conversion.shceme", "scheme"),
        ({"axes": {"x": {"a": {"conversion": 3}}}}, "axes.x.a.conversion", None),
        ({"axes": {"x": {"a": {"seed": 3}}}}, "axes.x.a.seed", "seeds"),
        ({"axes": {"x": {"a": {"sweep": {"num_threads": 3}}}}}, "axes.x.a.sweep.num_threads", "base"),
        ({"base": {"sweep": {"shard": "1/2"}}}, "base.sweep.shard", None),
        ({"base": {"search": {}}}, "base.search", None),
        ({"base": {"evaluation": {"reference": "f"}}}, "base.evaluation.reference", "reference"),
        ({"seeds": [1, 1]}, "seeds", None),
        ({"seeds": [True]}, "seeds", None),
        ({"exclude": [{"schemes": "int8"}]}, "exclude[0]", "scheme"),
        ({"exclude": [{"scheme": ["int9"]}]}, "exclude[0].scheme", "int8"),
        ({"exclude": [{"scheme": ["int8", "int16x8"]}]}, "exclude", None),
        ({"reference": {"scheme": ["int8", "int16x8"]}}, "reference.scheme", None),
    ],
)
def test_a_wrong_grid_is_refused_with_the_place(changes, field, word):
    with refused(InputError, field=field, word=word):
        grid(**changes)


def test_a_setting_in_base_and_in_the_command_is_refused_if_they_differ():
    config = RunConfig(model="digits_cnn", data=DataConfig(source="digits"))
    assert grid(base={"model": "digits_cnn"}).points(config)
    with refused(InputError, field="model", got="digits_cnn"):
        grid(base={"model": "ds_cnn"}).points(config)


def test_a_value_that_is_not_allowed_names_the_point():
    wrong = grid(axes={"x": {"a": {"conversion": {"scheme": "int9"}}}})
    with refused(InputError, field="conversion.scheme", word="a"):
        wrong.points(COMMAND)


def test_a_grid_file_with_an_error_is_named(tmp_path):
    (tmp_path / "grid.json").write_text('{"axes": {"x": {"a": {}}}, "seed": 3}')
    with refused(InputError, field="seed", word="grid.json"):
        Grid.load(str(tmp_path / "grid.json"))
    with refused(InputError, field="sweep.grid"):
        Grid.load(SweepConfig().grid)

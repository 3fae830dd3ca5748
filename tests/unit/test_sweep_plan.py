# SPDX-License-Identifier: Apache-2.0
"""The tasks of a sweep: what points share, what keys cover, how points are divided, and records of shards."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import sweep_fakes
from messages import refused

from tfq.config import DataConfig, EvaluationConfig, RunConfig, SweepBudgetConfig, SweepConfig
from tfq.errors import InputError
from tfq.evaluation.paired import resampled_weights
from tfq.evaluation.per_example import ExampleResults
from tfq.executors import TaskFailure
from tfq.sweep import dry_run, merged, parse_shard, read_shards, shard_file, summarized, text_of
from tfq.sweep.plan import cheapest_first
from tfq.sweep.points import point_record
from tfq.sweep.run import _result, shards_of


def keys(planned, stage):
    return [chain.tasks[stage].key for chain in planned.chains if stage in chain.tasks]


def test_points_share_the_stages_before_they_differ():
    _, planned = sweep_fakes.plan()
    assert len(planned.chains) == 8 and len(planned.references) == 2
    stages = planned.stages()
    assert stages["train"] == {"distinct": 2, "used": 10}
    assert stages["compress"] == {"distinct": 2, "used": 4}
    assert stages["convert"] == {"distinct": 10, "used": 10}
    assert planned.epochs() == (2 * 10 + 2 * 2, 10 * 10 + 4 * 2)


def test_a_setting_changes_the_keys_of_the_stages_that_read_it_only():
    _, planned = sweep_fakes.plan()
    command = dataclasses.replace(
        sweep_fakes.COMMAND,
        conversion=dataclasses.replace(sweep_fakes.COMMAND.conversion, num_calibration_samples=9),
    )
    _, other = sweep_fakes.plan(command)
    for stage, is_same in {"train": True, "compress": True, "convert": False, "evaluate test": False}.items():
        assert (keys(planned, stage) == keys(other, stage)) == is_same, stage
    _, threads = sweep_fakes.plan(dataclasses.replace(sweep_fakes.COMMAND, sweep=SweepConfig(num_threads=2)))
    assert not set(keys(planned, "train")) & set(keys(threads, "train"))


def test_keys_contain_no_paths(tmp_path):
    images, labels = np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, np.int64)
    plans = []
    for name in ("my_first_place", "my_second_place"):
        folder = tmp_path / name
        folder.mkdir()
        np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        shutil.copy(sweep_fakes.__file__, folder / f"{name}.keras")
        command = RunConfig(
            model=str(folder / f"{name}.keras"), data=DataConfig(source=f"npz:{folder / 'data.npz'}"), out=str(folder)
        )
        _, planned = sweep_fakes.plan(command)
        plans.append([chain.keys() for chain in (*planned.references, *planned.chains)])
        assert all(name not in json.dumps(task.basis) for chain in planned.chains for task in chain.tasks.values())
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"compression": {"qat": True}, "conversion": {"scheme": "int16x8"}}, "conversion.scheme"),
        ({"compression": {"qat": True}, "conversion": {"int4_layers": ["*"]}}, "conversion.int4_layers"),
        ({"compression": {"qat": True}, "conversion": {"techniques": ["gptq"]}}, "conversion.techniques"),
        ({"sweep": {"fine_tune": True}}, "sweep.fine_tune"),
        ({"model": ""}, "model"),
    ],
)
def test_settings_that_would_be_ignored_are_refused_before_any_work(part, field):
    with refused(InputError, field=field, word="wrong"):
        sweep_fakes.plan(axes={"x": {"fine": {}, "wrong": part}})


def test_the_cheapest_points_run_first():
    _, planned = sweep_fakes.plan()
    ordered = cheapest_first(planned.chains)
    assert [chain.training_epochs for chain in ordered] == [10] * 4 + [12] * 4
    assert [chain.point.id for chain in ordered][:2] == ["dense/int8/seed0", "dense/int8/seed1"]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_shards_are_a_partition_that_keeps_compressed_models_together(count):
    _, planned = sweep_fakes.plan()
    shards = shards_of(planned.chains, count)
    assert len(shards) == count
    assert sorted(chain.point.id for shard in shards for chain in shard) == sorted(c.point.id for c in planned.chains)
    places = {}
    for place, shard in enumerate(shards):
        for chain in shard:
            last = [task for task, _ in chain.trainings()][-1]
            assert places.setdefault(last.key, place) == place


def test_shard_texts_are_checked():
    assert parse_shard("") is None and parse_shard("2/3") == (2, 3)
    for text in ("0/3", "4/3", "1", "a/b", "1/0", "-1/2"):
        with refused(InputError, field="sweep.shard", got=text):
            parse_shard(text)


def whole(grid, planned, outcomes, shard=None):
    own = planned.chains if shard is None else shards_of(planned.chains, shard[1])[shard[0] - 1]
    result = _result(grid, grid.base_config(sweep_fakes.COMMAND), planned, own, shard, outcomes)
    return dataclasses.replace(result, timing={"elapsed_seconds": 0.0, "stages": {}})


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("reference", [None, {"compression": "dense", "scheme": "int8"}])
def test_merged_shards_have_the_bytes_of_one_process(count, reference, tmp_path):
    grid, planned = sweep_fakes.plan(**({} if reference is None else {"reference": reference}))
    outcomes = sweep_fakes.outcomes_of(planned, tmp_path)
    for index in range(1, count + 1):
        partial = {"command": "sweep", **whole(grid, planned, outcomes, (index, count)).to_dict()}
        (tmp_path / shard_file((index, count))).write_text(json.dumps(partial))
    joined = merged(read_shards(tmp_path))
    expected = summarized(whole(grid, planned, outcomes))
    assert json.dumps(joined.to_dict()) == json.dumps(expected.to_dict())
    assert expected.best.sentence in text_of(joined)


def test_missing_damaged_and_foreign_shards_are_refused(tmp_path):
    grid, planned = sweep_fakes.plan()
    outcomes = sweep_fakes.outcomes_of(planned, tmp_path)
    with refused(InputError, field="out"):
        read_shards(tmp_path)
    records = [{"command": "sweep", **whole(grid, planned, outcomes, (i, 2)).to_dict()} for i in (1, 2)]
    (tmp_path / "sweep-1-of-2.json").write_text(json.dumps(records[0]))
    with refused(InputError, field="sweep.shard", word="2/2"):
        read_shards(tmp_path)
    (tmp_path / "sweep-1-of-3.json").write_text(json.dumps(records[0]))
    with refused(InputError, field="out", got=[2, 3]):
        read_shards(tmp_path)
    with refused(InputError, field="out", got="other"):
        merged([records[0], {**records[1], "grid_sha256": "other"}])
    with refused(InputError, field="out", word="damaged"):
        merged([records[0], {**records[1], "points": [{"id": "x"}]}])
    with refused(InputError, field="out", word="damaged"):
        merged([records[0], {**records[1], "points": []}])


def test_a_failed_stage_is_a_row_with_its_reason_and_the_rest_is_analyzed(tmp_path):
    grid, planned = sweep_fakes.plan()
    outcomes = sweep_fakes.outcomes_of(planned, tmp_path)
    (chain,) = (chain for chain in planned.chains if chain.point.id == "pruned80/int4/seed1")
    for stage in ("convert", "evaluate val", "evaluate test"):
        outcomes.results.pop(chain.tasks[stage].key)
        message = "the layer is odd" if stage == "convert" else "it needs convert"
        outcomes.failures[chain.tasks[stage].key] = TaskFailure(kind="error", message=message)
    result = summarized(whole(grid, planned, outcomes))
    (row,) = (point for point in result.points if point.status != "done")
    assert (row.id, row.status, row.failed_stage, row.reason) == (
        "pruned80/int4/seed1", "failed", "convert", "the layer is odd",
    )  # fmt: skip
    (group,) = (group for group in result.groups if group.group == "pruned80/int4")
    assert (group.seeds, group.missing) == ((0,), {"1": "the layer is odd"})
    assert "the layer is odd" in text_of(result)


def test_a_point_that_did_not_run_says_why(tmp_path):
    _, planned = sweep_fakes.plan()
    outcomes = sweep_fakes.outcomes_of(planned, tmp_path)
    outcomes.results.pop(planned.chains[0].tasks["evaluate test"].key)
    record = point_record(planned.chains[0], None, outcomes)
    assert record.status == "not_run" and "max_points" in record.reason


def test_agreement_and_difference_compare_with_the_reference_by_example(tmp_path):
    grid, planned = sweep_fakes.plan()
    outcomes = sweep_fakes.outcomes_of(planned, tmp_path)
    point = summarized(whole(grid, planned, outcomes)).points[0]
    assert point.reference == "float32/seed0"
    details = outcomes.results[point.stages["evaluate test"]].details
    (reference,) = (chain for chain in planned.references if chain.point.seed == 0)
    other = outcomes.results[reference.tasks["evaluate test"].key].details
    score = point.scores["test"]
    assert score.difference["difference"] == pytest.approx(details["accuracy"] - other["accuracy"])
    wins, losses = score.difference["wins"], score.difference["losses"]
    assert 0.01 * (wins - losses) == pytest.approx(score.difference["difference"])
    assert 0 < score.agreement <= 1 - 0.01 * (wins + losses) + 1e-9


def test_a_reference_among_the_points_is_not_added(tmp_path):
    _, planned = sweep_fakes.plan(reference={"compression": "dense", "scheme": "int8"})
    assert planned.references == ()
    by_id = {chain.point.id: chain.reference for chain in planned.chains}
    assert by_id["pruned80/int4/seed1"] == "dense/int4/seed1".replace("int4", "int8")
    assert by_id["dense/int8/seed0"] is None


def by_error(outcomes, draws=True):
    """Make the results those of a main metric that is not a mean over the examples, with top1 as another one."""
    weights = np.stack(list(resampled_weights(100)))
    for result in outcomes.results.values():
        if "metric" not in result.details:
            continue
        examples = ExampleResults.from_dict(result.details["per_example"])
        top1, wrong = result.details["accuracy"], (~examples.scores["top1"]).astype(float)
        kept = {"replicates": {"rms": np.sqrt(weights @ wrong / 100)}} if draws else {"unpaired": {"rms": "too long"}}
        facts = {"unit": "score", "direction": "lower", "interval": None}
        result.details.update(
            metric="rms",
            metrics={"rms": facts, "top1": {**result.details["metrics"]["top1"], "value": top1}},
            accuracy=math.sqrt(1 - top1),
            per_example=dataclasses.replace(examples, **kept).to_dict(),
        )


def test_points_keep_draws_and_other_metrics_also_through_the_records_of_shards(tmp_path):
    grid, planned = sweep_fakes.plan()
    outcomes = sweep_fakes.outcomes_of(planned, tmp_path)
    by_error(outcomes)
    result = whole(grid, planned, outcomes)
    again = merged([json.loads(json.dumps({"command": "sweep", "shard": [1, 1], **result.to_dict()}))])
    complete = summarized(result)
    assert again.to_dict() == complete.to_dict()
    for group in complete.groups:
        assert group.differences["test"]["method"] == "bootstrap" and group.differences["test"]["low"] is not None
        other = group.others["test"]["top1"]
        means = [point.scores["test"].scores["top1"] for point in complete.points if point.group == group.group]
        assert other.value.mean == pytest.approx(np.mean(means)) and other.difference["wins"] is not None
    assert complete.best.without_interval == {} and "top1" in text_of(complete)


def test_points_without_draws_say_why_their_differences_have_no_interval(tmp_path):
    grid, planned = sweep_fakes.plan()
    outcomes = sweep_fakes.outcomes_of(planned, tmp_path)
    by_error(outcomes, draws=False)
    result = summarized(whole(grid, planned, outcomes))
    assert set(result.best.without_interval.values()) == {"too long"} and "too long" in result.best.sentence
    assert all(point.scores["test"].difference["reason"] == "too long" for point in result.points)
    assert "no interval: dense/int8" in text_of(result) and "(no interval)" in text_of(result)


def test_a_loss_of_a_metric_in_0_to_1_is_bounded_by_a_fraction_and_another_by_its_unit(tmp_path):
    (tmp_path / "grid.json").write_text(json.dumps({"axes": {"scheme": {"int8": {}}}}))
    sweep = SweepConfig(grid=str(tmp_path / "grid.json"), budget=SweepBudgetConfig(max_accuracy_drop=2.5))
    for metric in ((), ("top1", "rmse"), ("ece",)):
        config = dataclasses.replace(sweep_fakes.COMMAND, sweep=sweep, evaluation=EvaluationConfig(metric=metric))
        with refused(InputError, field="sweep.budget.max_accuracy_drop", got=2.5):
            dry_run(config)
    in_units = dataclasses.replace(sweep_fakes.COMMAND, sweep=sweep, evaluation=EvaluationConfig(metric=("rmse",)))
    assert "1 point" in dry_run(in_units)

# SPDX-License-Identifier: Apache-2.0
"""The search for an int8 model within a budget: on the digits, and on a model that needs more than one scale."""

import dataclasses
import json
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from messages import refused

import tfq
from tfq import tflite
from tfq.__main__ import main
from tfq.conversion import convert_with_record
from tfq.errors import InputError, TfqError
from tfq.ptq.cross_layer_equalization import find_pairs
from tfq.search import find_int8
from tfq.search.criterion import BY_LABELS, outputs_of
from tfq.search.mixed_precision import LevelMeasurement, available_levels, output_distortion
from tfq.search.search import _judged
from tfq.store import StageStore

FLOATING = (Path(__file__).resolve().parent.parent / "golden" / "digits_float32.tflite").read_bytes()
SPLITS = [tfq.load_split(tfq.DataConfig(source="digits"), split) for split in ("train", "val", "test")]
# Enough for these models. The techniques run every sample through the interpreter, several times.
FEW_SAMPLES = tfq.ConversionConfig(num_calibration_samples=64)


@pytest.fixture(autouse=True)
def timed_briefly(monkeypatch):
    """Time each candidate with 200 inferences instead of a second of them: no test reads the times."""
    monkeypatch.setattr("tfq.search.search._TIMED_SECS", 0.0)


@pytest.fixture(scope="module")
def hard_search(tmp_path_factory):
    """Return a search of the hard model: its result, its lines, and the directory of its store."""
    directory, lines = tmp_path_factory.mktemp("hard"), []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("tfq.search.search._TIMED_SECS", 0.0)
        result = find_int8(
            made_hard(FLOATING), *SPLITS, budget(max_accuracy_drop=0.01), conversion=FEW_SAMPLES,
            store=StageStore(directory), progress=lines.append,
        )  # fmt: skip
    return result, lines, directory


def made_hard(model: bytes) -> bytes:
    """Return the same function with two channels between its layers 1,024 times as large."""
    edited = tflite.unpack(model)
    for pair in find_pairs(edited, tflite.read(model)):
        factors = np.ones(pair.channels)
        factors[[1, 4]] = 2.0**-10
        pair.apply(factors)
    return tflite.pack(edited, len(model))


def budget(**values) -> tfq.SearchConfig:
    full, most = values.pop("full", False), values.pop("max_mixed_layers", 2)
    return tfq.SearchConfig(
        budget=tfq.BudgetConfig(**values), full=full, max_mixed_layers=most, methods=("min_max", "mse")
    )


def test_the_model_may_be_a_path_and_the_store_is_optional(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(FLOATING)
    result = find_int8(path, *SPLITS, budget(max_accuracy_drop=0.5))
    assert result.content == find_int8(str(path), *SPLITS, budget(max_accuracy_drop=0.5)).content
    assert result.holds and [item.name for item in tmp_path.iterdir()] == ["model.tflite"]


def test_an_easy_model_needs_only_the_first_candidate(tmp_path):
    result = find_int8(FLOATING, *SPLITS, budget(max_accuracy_drop=0.01), store=StageStore(tmp_path))
    assert result.holds and result.chosen.name == "percentile" and len(result.candidates) == 1
    assert tfq.audit(result.content, tfq.AuditConfig(require="full_int8")).ok
    assert result.test_against_plain.difference == 0 and "chosen model" in result.to_text()


def test_a_hard_model_is_searched_until_its_channels_are_even(hard_search):
    result, lines, _ = hard_search
    assert result.holds and "cross_layer_equalization" in result.chosen.candidate.techniques
    assert result.candidates[0].against_float.difference < -0.1
    assert len(lines) == len(result.candidates) > 2
    # The test split, which did not influence the choice, gives the same result, and it is significant.
    evaluated = tfq.evaluate(result.content, SPLITS[2], tfq.EvaluationConfig(num_runs=0))
    assert evaluated.accuracy == pytest.approx(result.test_accuracy)
    assert not result.test_against_plain.is_noise and result.test_against_plain.low > 0.1


def test_sensitive_layers_stay_float_where_nothing_else_helps(tmp_path):
    hard = made_hard(FLOATING)
    config = tfq.SearchConfig(budget=tfq.BudgetConfig(max_accuracy_drop=0.0), methods=("min_max",), full=True)
    result = find_int8(hard, *SPLITS, config, conversion=FEW_SAMPLES, store=StageStore(tmp_path))
    mixed = [candidate for candidate in result.candidates if candidate.candidate.kind == "mixed"]
    assert [len(candidate.layers) for candidate in mixed] == [1, 2, 4]
    assert mixed[0].layers == mixed[1].layers[:1]


def test_with_litert_sensitive_layers_are_int16_before_float(tmp_path):
    hard = made_hard(FLOATING)
    config = tfq.SearchConfig(
        budget=tfq.BudgetConfig(max_accuracy_drop=0.0), methods=("percentile",), full=True, max_mixed_layers=2
    )
    conversion = dataclasses.replace(FEW_SAMPLES, quantizer="litert")
    result = find_int8(hard, *SPLITS, config, conversion=conversion, store=StageStore(tmp_path))
    mixed = [candidate for candidate in result.candidates if candidate.candidate.kind == "mixed"]
    assert [(candidate.candidate.scheme, len(candidate.layers)) for candidate in mixed] == [
        ("int16", 1), ("float", 1), ("int16", 2), ("float", 2)
    ]  # fmt: skip
    assert [candidate.to_dict()["scheme"] for candidate in result.candidates[:2]] == ["", ""]
    if result.chosen.candidate.kind == "mixed":
        assert f"--allow_{result.chosen.candidate.scheme}" in result.advice[-1]


def test_a_mixed_candidate_that_fails_is_reported_and_the_next_tried(hard_search, tmp_path, monkeypatch):
    # The candidates that are not mixed are those of `hard_search`, as far as it got.
    shutil.copytree(hard_search[2], tmp_path, dirs_exist_ok=True)

    def only_one(model, samples, conversion, **options):
        if len(conversion.float_layers) == 1:
            raise TfqError("no such form")
        return convert_with_record(model, samples, conversion, **options)

    monkeypatch.setattr("tfq.conversion.convert_with_record", only_one)
    lines, config = [], budget(max_accuracy_drop=0.0, full=True)
    result = find_int8(
        made_hard(FLOATING), *SPLITS, config, conversion=FEW_SAMPLES, store=StageStore(tmp_path), progress=lines.append
    )
    assert [len(candidate.layers) for candidate in result.candidates if candidate.candidate.kind == "mixed"] == [2]
    assert any("1 in float" in line and "no such form" in line for line in lines)


def test_a_killed_search_resumes_without_repeating_candidates(hard_search, monkeypatch):
    first, _, directory = hard_search
    config = budget(max_accuracy_drop=0.01)

    def refuse(*arguments, **settings):
        raise AssertionError("converted again")

    monkeypatch.setattr("tfq.conversion.convert_with_record", refuse)
    again = find_int8(made_hard(FLOATING), *SPLITS, config, conversion=FEW_SAMPLES, store=StageStore(directory))
    assert again.to_dict() == first.to_dict() and again.content == first.content


def test_an_int8_model_is_refused(tmp_path):
    with refused(InputError, field="model", expected="float32"):
        find_int8(tfq.convert(FLOATING, SPLITS[0]), *SPLITS, store=StageStore(tmp_path))


def test_without_labels_candidates_are_compared_with_the_float_model():
    inputs = [split.inputs["x"] for split in SPLITS]
    with pytest.warns(tfq.TfqWarning, match="labels"):
        result = find_int8(FLOATING, *inputs, budget(max_accuracy_drop=0.05))
    record = tfq.evaluate(result.content, inputs[2], tfq.EvaluationConfig(num_runs=0), reference=FLOATING)
    assert result.criterion.kind == result.to_dict()["criterion"]["kind"] == "agreement"
    assert result.test_accuracy == pytest.approx(record.agreement) and result.float_accuracy == 1
    assert "agreement" in result.to_text() and result.holds


# The techniques of the searches with levels, which try all of them.
FEW_TECHNIQUES = (("bias_correction",),)


def levels_config(**values) -> tfq.SearchConfig:
    return tfq.SearchConfig(
        budget=tfq.BudgetConfig(max_accuracy_drop=0.02, max_arena_bytes=10**6, **values),
        methods=("min_max",), pareto_points=3, max_mixed_layers=0, levels=("int4",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def levels_search(tmp_path_factory):
    """Return a search with levels of single layers: its result, its lines, and the directory of its store."""
    directory, lines = tmp_path_factory.mktemp("levels"), []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("tfq.search.search._TIMED_SECS", 0.0)
        monkeypatch.setattr("tfq.search.search.TECHNIQUES", FEW_TECHNIQUES)
        store = StageStore(directory)
        result = find_int8(
            FLOATING, *SPLITS, levels_config(), conversion=FEW_SAMPLES, store=store, progress=lines.append
        )
    return result, lines, directory


def test_levels_start_after_all_methods_and_techniques_although_the_first_is_enough(levels_search):
    result, _, _ = levels_search
    kinds = [item.candidate.kind for item in result.candidates]
    assert not result.candidates[0].missed and kinds[:4] == ["calibration", "calibration", "techniques", "levels"]
    assert {item.candidate.method for item in result.candidates[:2]} == {"percentile", "min_max"}
    before, start = result.candidates[:3], result.candidates[3].name.split(", levels")[0]
    accuracies = {item.name: result.criterion.sign * item.accuracy for item in before}
    assert accuracies[start] == max(accuracies.values())


def test_levels_are_assigned_for_several_sizes_and_every_file_is_measured(levels_search):
    result, _, _ = levels_search
    by_name = {item.name: item for item in result.candidates}
    sizes = [point.max_bytes for point in result.points]
    # With 4 bits in all layers the outputs collapse, so no file has the smallest size.
    assert len(sizes) == 2 and sizes == sorted(sizes)
    sign = result.criterion.sign
    for point in result.points:
        # Never worse than the greedy assignment of the same size.
        for name in point.by_solver.values():
            assert by_name[name].model_bytes <= point.max_bytes
            assert sign * by_name[point.best].accuracy >= sign * by_name[name].accuracy
    assert [by_name[name].model_bytes for name in result.front] == sorted(
        {by_name[n].model_bytes for n in result.front}
    )
    smallest = result.points[0]
    shrinking = {item.layer for item in result.levels.effects if item.costs["bytes"] < 0}
    assert set() < set(by_name[smallest.by_solver["ilp"]].layers) < shrinking
    # The arena is bounded, so the most accurate file within the budget is chosen.
    within = [item for item in result.candidates if not item.missed]
    assert result.holds and result.chosen.accuracy == max(item.accuracy for item in within)
    assert result.to_dict()["front"] == list(result.front) and "Pareto" in result.to_text()
    settings = result.chosen.candidate.conversion(FEW_SAMPLES, ())
    assert tfq.convert(FLOATING, SPLITS[0], settings) == result.content


def test_refined_levels_distort_the_outputs_no_more_than_those_of_both_solvers(levels_search, tmp_path, monkeypatch):
    monkeypatch.setattr("tfq.search.search.TECHNIQUES", FEW_TECHNIQUES)
    monkeypatch.setattr("tfq.search.search._TIMED_SECS", 0.0)
    shutil.copytree(levels_search[2], tmp_path, dirs_exist_ok=True)
    config = dataclasses.replace(levels_config(), refinements=1, sensitivity_examples=64)
    result = find_int8(FLOATING, *SPLITS, config, conversion=FEW_SAMPLES, store=StageStore(tmp_path))
    by_name = {item.name: item for item in result.candidates}
    examples = SPLITS[0].take(64)
    expected = outputs_of(FLOATING, examples)

    def distortion(name):
        settings = by_name[name].candidate.conversion(FEW_SAMPLES, ())
        return output_distortion(outputs_of(tfq.convert(FLOATING, SPLITS[0], settings), examples), expected)

    assert result.points
    for point in result.points:
        assert distortion(point.by_solver["refined"]) <= min(map(distortion, point.by_solver.values()))
        assert by_name[point.by_solver["refined"]].model_bytes <= point.max_bytes


def test_effects_around_an_assignment_are_changes_from_its_file(tmp_path):
    base = tfq.convert(FLOATING, SPLITS[0], FEW_SAMPLES)
    measurement = LevelMeasurement(
        floating=FLOATING, base=base, train=SPLITS[0], examples=SPLITS[0].take(40), conversion=FEW_SAMPLES,
        costs=lambda content: {}, store=StageStore(tmp_path), basis={},
    )  # fmt: skip
    plain = measurement.table(["conv1"], ("int8", "int4"))
    around = measurement.table(["conv1"], ("int8", "int4"), around={"conv1": "int4"})
    (narrow,) = (item for item in plain.effects if item.level == "int4")
    back, same = around.effects
    assert (back.level, same.level) == ("int8", "int4") and same.distortion == same.costs["bytes"] == 0
    assert back.distortion == pytest.approx(-narrow.distortion) and back.costs["bytes"] == -narrow.costs["bytes"] > 0
    assert around.base_distortion == pytest.approx(plain.base_distortion + narrow.distortion)
    assert around.costs({"conv1": "int8"}) == plain.costs({"conv1": "int8"})
    assert measurement.distortion(base) == plain.base_distortion


def test_the_table_of_levels_has_the_costs_of_real_files(levels_search):
    result, _, _ = levels_search
    layer = result.levels.layers[0]
    start = next(item.name for item in result.candidates if item.candidate.kind == "levels").split(", levels")[0]
    base = next(item for item in result.candidates if item.name == start)
    settings = base.candidate.conversion(FEW_SAMPLES, ())
    narrow = tfq.convert(FLOATING, SPLITS[0], dataclasses.replace(settings, int4_layers=(layer,)))
    effect = next(item for item in result.levels.of_layer(layer) if item.level == "int4")
    assert effect.costs["bytes"] < 0
    # Packing a flatbuffer again may add a few bytes of alignment.
    assert abs(result.levels.base_costs["bytes"] + effect.costs["bytes"] - len(narrow)) <= 64
    assert 0 <= result.levels.base_costs["bytes"] - base.model_bytes < 1000
    assert result.levels.base_costs["arena_bytes"] == base.costs["arena_bytes"] > 0
    assert json.loads(json.dumps(result.to_dict()))["levels"] == result.levels.to_dict()


def test_a_search_with_levels_resumes_and_repeats_itself(levels_search, monkeypatch):
    first, _, directory = levels_search

    def refuse(*arguments, **settings):
        raise AssertionError("converted again")

    monkeypatch.setattr("tfq.search.search.TECHNIQUES", FEW_TECHNIQUES)
    monkeypatch.setattr("tfq.conversion.convert_with_record", refuse)
    again = find_int8(FLOATING, *SPLITS, levels_config(), conversion=FEW_SAMPLES, store=StageStore(directory))
    assert again.to_dict() == first.to_dict() and again.content == first.content


def test_levels_that_cannot_be_converted_or_run_are_left_out_with_their_reason(tmp_path, monkeypatch):
    base = tfq.convert(FLOATING, SPLITS[0], FEW_SAMPLES)
    floats = tfq.convert(FLOATING, SPLITS[0], dataclasses.replace(FEW_SAMPLES, float_layers=("conv1",)))

    def convert(model, samples, conversion, **options):
        if conversion.int4_layers:
            raise TfqError("no such kernel")
        return SimpleNamespace(content=floats)

    monkeypatch.setattr("tfq.conversion.convert_with_record", convert)
    for target, possible in (("edgetpu", {"int8"}), ("xnnpack", {"int8", "float"})):
        conversion = dataclasses.replace(FEW_SAMPLES, target=target)
        measurement = LevelMeasurement(
            floating=FLOATING, base=base, train=SPLITS[0], examples=SPLITS[0].take(20), conversion=conversion,
            costs=lambda content: {}, store=StageStore(tmp_path), basis={},
        )  # fmt: skip
        table = measurement.table(["conv1"], available_levels(conversion))
        assert {item.level for item in table.effects} == possible
        assert table.impossible["conv1 in int4"] == "no such kernel"
        assert ("edgetpu" in table.impossible.get("conv1 in float", "")) == (target == "edgetpu")
    assert next(item for item in table.effects if item.level == "float").costs["bytes"] > 0


def test_a_size_that_no_levels_reach_is_reported_and_the_best_file_returned(levels_search, tmp_path, monkeypatch):
    monkeypatch.setattr("tfq.search.search.TECHNIQUES", FEW_TECHNIQUES)
    shutil.copytree(levels_search[2], tmp_path, dirs_exist_ok=True)
    config = levels_config(max_bytes=1000)
    with pytest.warns(tfq.TfqWarning, match="levels"):
        result = find_int8(FLOATING, *SPLITS, config, conversion=FEW_SAMPLES, store=StageStore(tmp_path))
    assert not result.holds and not result.points and "1,000 allowed" in result.advice[0]


def script(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["tfq", "search", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_writes_model_and_candidates_and_sets_its_exit_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "model.tflite").write_bytes(FLOATING)
    flags = [f"--model={tmp_path / 'model.tflite'}", "--data=digits", f"--out={tmp_path / 'out'}", "--methods=min_max"]

    assert (
        script(monkeypatch, *flags, "--budget.max_accuracy_drop=0.01", "--conversion.num_calibration_samples=40") == 0
    )
    message = capsys.readouterr().out
    assert "chosen: " in message and "test examples" in message
    record = json.loads((tmp_path / "out" / "search.json").read_text())
    assert record["holds"] and record["candidates"][0]["bytes"] > 0
    assert record["config"]["conversion"]["num_calibration_samples"] == 40
    assert tfq.audit((tmp_path / "out" / record["file"]).read_bytes()).scheme == "full_int8"
    few = "--conversion.num_calibration_samples=40"
    assert script(monkeypatch, *flags, "--budget.max_bytes=10", "--max_mixed_layers=0", few) == 1
    assert "budget" in capsys.readouterr().err
    assert "quantization-aware" in json.loads((tmp_path / "out" / "search.json").read_text())["advice"][0]


def test_a_collapsed_candidate_never_keeps_the_budget():
    lines = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = find_int8(
            made_hard(FLOATING), *SPLITS, budget(max_accuracy_drop=0.5), conversion=FEW_SAMPLES, progress=lines.append
        )

    first = result.candidates[0]
    assert first.collapsed and not result.chosen.collapsed
    # Its problems are in the result, in one word in the text, and no warnings.
    assert not {str(item.message) for item in caught} & set(first.collapsed)
    assert first.short_missed[-1] == "collapsed" and first.collapsed[0] not in lines[0]
    row = next(line for line in result.to_text().splitlines() if first.name in line)
    assert row.endswith("collapsed")
    # Even with an accuracy within the budget, its verification alone excludes it.
    kept = dataclasses.replace(first, against_float=result.chosen.against_float)
    judged = _judged(kept, budget(max_accuracy_drop=0.5), BY_LABELS)
    assert all(requirement.holds for requirement in judged.requirements)
    assert judged.missed == tuple(f"collapsed: {message}" for message in first.collapsed)


def test_the_problems_of_a_chosen_collapsed_candidate_are_warnings(monkeypatch):
    monkeypatch.setattr("tfq.search.search.TECHNIQUES", ())
    config = tfq.SearchConfig(budget=tfq.BudgetConfig(max_accuracy_drop=0.0), methods=(), max_mixed_layers=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = find_int8(made_hard(FLOATING), *SPLITS, config)
    assert not result.holds and result.chosen.collapsed
    messages = [str(item.message) for item in caught]
    assert all(messages.count(message) == 1 for message in result.chosen.collapsed)


def test_a_search_by_a_metric_uses_its_unit_and_direction():
    """The budget bounds the increase of the likelihood's loss, which top-1 does not show."""
    config = tfq.SearchConfig(
        budget=tfq.BudgetConfig(max_accuracy_drop=1.5), metric="nll", max_mixed_layers=0, methods=("min_max",)
    )
    result = find_int8(FLOATING, *SPLITS, config, conversion=FEW_SAMPLES)
    assert result.holds and result.criterion.metric.name == "nll"
    chosen = tfq.evaluate(
        result.content, SPLITS[2], tfq.EvaluationConfig(metric=("nll",), num_runs=0), reference=FLOATING
    )
    assert result.test_accuracy == pytest.approx(chosen.accuracy)
    assert result.test_against_float.difference == pytest.approx(chosen.accuracy_drop)
    assert result.to_dict()["criterion"]["direction"] == "lower" and "NLL" in result.to_text()
    none = find_int8(FLOATING, *SPLITS, config, conversion=FEW_SAMPLES, metric=wrong_ones)
    assert none.chosen.accuracy == min(item.accuracy for item in none.candidates)
    assert none.test_against_float.low is None and "no interval" in none.to_text()


def wrong_ones(outputs, labels):
    """Return the number of wrong examples."""
    return float((outputs.argmax(axis=1) != labels).sum())


wrong_ones.direction = "lower"


def test_a_search_by_a_metric_without_direction_is_refused():
    with refused(InputError, field="search.metric", expected=("higher", "lower")):
        find_int8(FLOATING, *SPLITS, metric=lambda outputs, labels: 1.0)

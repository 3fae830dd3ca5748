# SPDX-License-Identifier: Apache-2.0
"""Assignments of levels to layers, compared with the best of all assignments; costs and distortions by hand."""

import builtins
import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from golden_models import golden
from messages import refused

from tfq import tflite
from tfq.config import BudgetConfig, ConversionConfig, SearchConfig
from tfq.config.search import LEVELS as CHOICES
from tfq.errors import BackendError, InputError, RequirementError, TfqError, TfqWarning
from tfq.search import assignment
from tfq.search.assignment import (
    LevelEffect,
    LevelTable,
    best_assignment,
    check_solver,
    fit_assignment,
    greedy_assignment,
)
from tfq.search.mixed_precision import (
    LEVELS,
    LevelMeasurement,
    available_levels,
    check_costs,
    cost_bounds,
    costs_of,
    output_distortion,
    with_levels,
)
from tfq.search.record import Candidate
from tfq.search.search import _Search, find_int8
from tfq.store import StageStore


def random_table(seed: int, layers: int = 5, missing: bool = True) -> LevelTable:
    """Return a table of random effects, of which some levels of some layers are not possible."""
    rng, effects = np.random.default_rng(seed), []
    for layer in map(str, range(layers)):
        for level in ("int8", "float", "int16", "int4"):
            if level != "int8" and missing and rng.random() < 0.2:
                continue
            is_base = level == "int8"
            costs = {"bytes": 0.0 if is_base else float(rng.integers(-500, 900)),
                     "instructions": 0.0 if is_base else float(rng.integers(-10**8, 10**8))}  # fmt: skip
            distortion = 0.0 if is_base else float(rng.normal() * 10.0 ** rng.integers(-6, 0))
            effects.append(LevelEffect(layer=layer, level=level, distortion=distortion, costs=costs))
    return LevelTable(
        base_level="int8", base_distortion=0.1, base_costs={"bytes": 5000.0, "instructions": 1e9},
        effects=tuple(effects), impossible={},
    )  # fmt: skip


def every_assignment(table: LevelTable):
    choices = [[(layer, item.level) for item in table.of_layer(layer)] for layer in table.layers]
    return map(dict, itertools.product(*choices))


def within(table, levels, bounds) -> bool:
    costs = table.costs(levels)
    return all(costs[name] <= bound for name, bound in bounds.items())


@pytest.mark.parametrize("seed", range(12))
def test_the_solver_finds_the_best_of_all_assignments(seed):
    table = random_table(seed)
    rng = np.random.default_rng(seed)
    sizes = sorted(table.costs(levels)["bytes"] for levels in every_assignment(table))
    bounds = {"bytes": sizes[int(rng.integers(1, len(sizes)))], "instructions": 1.05e9}
    possible = [levels for levels in every_assignment(table) if within(table, levels, bounds)]
    if not possible:
        pytest.skip("no assignment is within these bounds")
    found = best_assignment(table, bounds)
    assert within(table, found, bounds)
    assert table.distortion(found) == pytest.approx(min(map(table.distortion, possible)), rel=1e-9, abs=1e-12)
    smallest = best_assignment(table, bounds, minimize="bytes")
    assert table.costs(smallest)["bytes"] == min(table.costs(levels)["bytes"] for levels in possible)


@pytest.mark.parametrize("seed", range(12))
def test_greedy_assignments_are_within_the_bounds_and_never_better(seed):
    table = random_table(seed, missing=False)
    bounds = {"bytes": 4500.0}
    found = greedy_assignment(table, bounds)
    if found is None:
        with pytest.raises(RequirementError):
            best_assignment(table, bounds)
    else:
        assert within(table, found, bounds)
        assert table.distortion(best_assignment(table, bounds)) <= table.distortion(found) + 1e-12


def test_greedy_exceeds_the_best_where_large_steps_waste_bytes():
    """To save 6 bytes, the cheapest step for each byte saves 5 (distortion 5); a second one is needed (7)."""
    effects = []
    for layer, saved, distortion in (("a", 5, 5.0), ("b", 6, 6.6), ("c", 6, 7.0)):
        effects.append(LevelEffect(layer=layer, level="int8", distortion=0.0, costs={"bytes": 0}))
        effects.append(LevelEffect(layer=layer, level="int4", distortion=distortion, costs={"bytes": -saved}))
    table = LevelTable(
        base_level="int8", base_distortion=0.0, base_costs={"bytes": 20}, effects=tuple(effects), impossible={}
    )
    assert best_assignment(table, {"bytes": 14}) == {"a": "int8", "b": "int4", "c": "int8"}
    assert table.distortion(greedy_assignment(table, {"bytes": 14})) > 6.6


def table_of(base_costs, *effects) -> LevelTable:
    """Return a table of (layer, level, distortion, bytes, instructions)."""
    items = (
        LevelEffect(layer=layer, level=level, distortion=distortion, costs={"bytes": size, "instructions": count})
        for layer, level, distortion, size, count in effects
    )
    return LevelTable(
        base_level="int8", base_distortion=0.0, base_costs=base_costs, effects=tuple(items), impossible={}
    )


OPPOSED = table_of(
    {"bytes": 100, "instructions": 100},
    ("a", "int8", 0.0, 0, 0), ("a", "int4", 1.0, -10, 12), ("b", "int8", 0.0, 0, 0), ("b", "float", 5.0, -6, 0),
)  # fmt: skip


def test_greedy_steps_end_where_one_cost_rises_as_the_other_falls():
    """Layer a saves 10 bytes for 12 instructions, of which 5 are allowed; only b can save the 5 bytes for nothing."""
    bounds = {"bytes": 95, "instructions": 105}
    assert best_assignment(OPPOSED, bounds) == {"a": "int8", "b": "float"}
    assert greedy_assignment(OPPOSED, bounds) == {"a": "int8", "b": "float"}
    # Without b, a in int4 exceeds one bound by more than a in int8 the other.
    only_a = dataclasses.replace(OPPOSED, effects=OPPOSED.effects[:2])
    assert greedy_assignment(only_a, bounds) is None


@pytest.mark.parametrize("seed", range(40))
def test_each_greedy_step_lowers_the_summed_relative_excess(monkeypatch, seed):
    """The excess after each step is computed here again; a sequence that falls cannot repeat an assignment."""
    table = random_table(seed)
    costs = [table.costs(levels) for levels in every_assignment(table)]
    bounds = {name: float(np.quantile([item[name] for item in costs], 0.15)) for name in table.base_costs}
    visited = []
    original = assignment._steps

    def steps(table, levels, *arguments):
        costs = table.costs({layer: item.level for layer, item in levels.items()})
        visited.append(sum(max(0.0, costs[name] / bound - 1) for name, bound in bounds.items()))
        assert len(visited) < 100
        return original(table, levels, *arguments)

    monkeypatch.setattr(assignment, "_steps", steps)
    found = greedy_assignment(table, bounds)
    assert all(later < earlier for earlier, later in itertools.pairwise(visited))
    assert found is None or within(table, found, bounds)


def test_a_model_without_weights_has_an_empty_assignment():
    table = table_of({"bytes": 100.0, "instructions": 7.0})
    assert best_assignment(table, {}) == best_assignment(table, {"bytes": 100}, minimize="bytes") == {}
    assert greedy_assignment(table, {"bytes": 100}) == {}
    with refused(RequirementError, field="search.budget", expected={"bytes": 100}, word="weights"):
        best_assignment(table, {"bytes": 99})
    assert greedy_assignment(table, {"bytes": 99}) is None


def test_a_solver_that_stops_early_warns_and_its_lack_of_an_answer_is_not_infeasible(monkeypatch):
    best = np.array([0.0, 1.0, 1.0, 0.0])
    solved = SimpleNamespace(status=1, x=best, message="Time limit reached.")
    monkeypatch.setattr("scipy.optimize.milp", lambda *arguments, **settings: solved)
    with pytest.warns(TfqWarning, match="prove"):
        assert best_assignment(OPPOSED, {"bytes": 95}) == {"a": "int4", "b": "int8"}
    solved.x = None
    with refused(RequirementError, field="search.pareto_points", word="known"):
        best_assignment(OPPOSED, {"bytes": 95})
    with pytest.warns(TfqWarning, match="known"):
        assert fit_assignment(OPPOSED, best_assignment, {"bytes": 95}, lambda levels: {"bytes": 1}) is None
    solved.status = 2
    with refused(RequirementError, field="search.budget", word="assignment"):
        best_assignment(OPPOSED, {"bytes": 95})


def test_bounds_that_nothing_meets_are_refused_with_the_least_costs():
    table = random_table(3)
    least = min(table.costs(levels)["bytes"] for levels in every_assignment(table))
    with refused(RequirementError, field="search.budget", expected={"bytes": least}, word="search.levels"):
        best_assignment(table, {"bytes": least - 1})
    assert greedy_assignment(table, {"bytes": least - 1}) is None
    assert table.costs(best_assignment(table, {"bytes": least}))["bytes"] == least


def test_equal_tables_get_equal_assignments():
    bounds = {"bytes": 4800.0}
    found = [best_assignment(random_table(5), bounds) for _ in range(3)]
    assert found[0] == found[1] == found[2]


def test_a_missing_solver_is_reported_with_how_to_install_it(monkeypatch):
    original = builtins.__import__

    def without_scipy(name, *arguments):
        if name.startswith("scipy"):
            raise ImportError("No module named 'scipy'")
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with refused(InputError, field="search.pareto_points", word="'tfq[mixed]'"):
        check_solver()


def test_levels_are_those_that_the_quantizer_gives_to_single_layers():
    assert tuple(LEVELS) == CHOICES == SearchConfig.from_dict({"levels": list(CHOICES)}).levels
    assert available_levels(ConversionConfig()) == ("int8", "float", "int4")
    litert = ConversionConfig(quantizer="litert")
    assert set(available_levels(litert)) == set(CHOICES)
    assert "int8_per_tensor" not in available_levels(ConversionConfig(quantizer="litert", per_channel=False))
    assert available_levels(litert, ("int4",)) == ("int8", "int4")
    with refused(InputError, field="search.levels", got="int16", expected=("float", "int8", "int4")):
        available_levels(ConversionConfig(), ("int16",))


def test_levels_become_settings_of_the_conversion():
    levels = {"a": "int4", "b": "float", "c": "int8", "d": "int4", "e": "int16", "f": "int8_per_tensor"}
    config = with_levels(ConversionConfig(quantizer="litert", int4_layers=("z",)), levels)
    assert config.int4_layers == ("z", "a", "d") and config.float_layers == ("b",)
    assert config.int16_layers == ("e",) and config.per_tensor_layers == ("f",)


def test_distortion_is_the_divergence_of_probabilities_or_the_relative_error_of_values():
    p = np.array([[0.5, 0.5], [0.9, 0.1]])
    q = np.array([[0.25, 0.75], [0.9, 0.1]])
    expected = 0.5 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert output_distortion([q], [p]) == pytest.approx(expected)
    values = np.array([[1.0, 5.0], [3.0, -2.0]])
    noisy = values + np.array([[0.1, -0.1], [0.1, 0.1]])
    assert output_distortion([noisy], [values]) == pytest.approx(0.01 / values.var())
    assert output_distortion([q, noisy], [p, values]) == pytest.approx(expected + 0.01 / values.var())
    assert output_distortion([np.full_like(values, np.nan)], [values]) == np.inf
    # A probability of 0 counts as half a step of an int8 softmax, not as an infinite divergence.
    assert 0 < output_distortion([np.array([[0.0, 1.0]])], [np.array([[0.5, 0.5]])]) < 5


def test_constant_outputs_do_not_hide_the_distortion_of_the_others():
    values = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    constant = np.full((64, 4), 3.7, np.float32)
    zeros = np.zeros((64, 4), np.float32)
    assert output_distortion([constant + 0.37], [constant]) == pytest.approx(0.1**2, rel=1e-5)
    assert output_distortion([zeros + 0.5], [zeros]) == pytest.approx(0.25)
    # The rounding of float32 does not count as variation.
    assert output_distortion([constant + 0.37], [constant * (1 + 1e-7 * values[:, :1])]) == pytest.approx(
        0.01, rel=1e-3
    )
    noisy = [constant + 0.01, zeros + 0.01, values + 0.1]
    alone = 0.1**2 / values.astype(float).var()
    assert output_distortion(noisy, [constant, zeros, values]) == pytest.approx(
        alone + (0.01 / 3.7) ** 2 + 0.01**2, rel=1e-4
    )
    # A small but real variation is still what errors are relative to.
    offset = 100 + values.astype(np.float64)
    assert output_distortion([offset + 0.1], [offset]) == pytest.approx(alone)


def measurement(tmp_path, monkeypatch, outputs, costs) -> LevelMeasurement:
    """Return a measurement of `FILES`, whose outputs and costs are given by their content."""
    monkeypatch.setattr("tfq.search.mixed_precision.outputs_of", lambda content, examples: outputs[content])
    monkeypatch.setattr(LevelMeasurement, "_converted", lambda self, conversion: golden("digits_float32"))
    return LevelMeasurement(
        floating=b"float", base=golden("digits_int8"), train=None, examples=None, conversion=ConversionConfig(),
        costs=costs, store=StageStore(tmp_path), basis={},
    )  # fmt: skip


def test_a_level_whose_costs_cannot_be_measured_is_left_out(tmp_path, monkeypatch):
    values, base, changed = np.arange(6.0).reshape(3, 2), golden("digits_int8"), golden("digits_float32")
    outputs = {b"float": [values], base: [values + 1], changed: [values + 2]}

    def costs(content):
        if content == changed:
            raise BackendError("the emulator ended")
        return {"instructions": 5}

    table = measurement(tmp_path, monkeypatch, outputs, costs).table(["dense"], ["int8", "float"])
    assert [item.level for item in table.effects] == ["int8"]
    assert table.impossible == {"dense in float": "the emulator ended"}
    assert table.base_costs["instructions"] == 5 and table.base_distortion == pytest.approx(1 / values.var())


@pytest.mark.parametrize("broken", ["float", "base"])
def test_outputs_of_the_base_that_are_not_finite_are_a_clear_error(tmp_path, monkeypatch, broken):
    values, nan = np.arange(6.0).reshape(3, 2), np.full((3, 2), np.nan)
    outputs = {
        b"float": [nan if broken == "float" else values],
        golden("digits_int8"): [nan if broken == "base" else values],
    }
    with refused(TfqError, field="search.pareto_points", word="finite"):
        measurement(tmp_path, monkeypatch, outputs, lambda content: {}).table(["dense"], ["int8"])


def test_a_backend_that_cannot_count_is_refused_before_anything_is_converted(monkeypatch):
    monkeypatch.setattr("tfq.auditing.float_source", lambda content: pytest.fail("the search started"))
    splits = [(np.zeros((1, 2), np.float32), np.zeros(1, int))] * 3
    config = SearchConfig(budget=BudgetConfig(max_instructions=10, instructions_backend="local"))
    with refused(BackendError, field="search.budget.instructions_backend", got="local", word="qemu"):
        find_int8(b"", *splits, config)
    check_costs(BudgetConfig(instructions_backend="local"))  # nothing is counted
    unavailable = "tfq.backends.qemu.backend.QemuBackend.unavailable"
    monkeypatch.setattr(unavailable, lambda self: "qemu-aarch64 is missing")
    with refused(BackendError, field="search.budget.instructions_backend", word="qemu-aarch64"):
        check_costs(BudgetConfig(max_instructions=10))


@pytest.mark.parametrize("kind", ["mixed", "levels", "calibration", "techniques"])
def test_only_candidates_in_other_formats_may_lack_their_costs(tmp_path, monkeypatch, kind):
    def fail(content, budget):
        raise BackendError("the emulator ended")

    built = SimpleNamespace(content=b"", verification=None)
    monkeypatch.setattr("tfq.conversion.convert_with_record", lambda *arguments, **settings: built)
    monkeypatch.setattr("tfq.search.search.costs_of", fail)
    search, lines = object.__new__(_Search), []
    search._config, search._conversion, search._store = SearchConfig(), ConversionConfig(), StageStore(tmp_path)
    search._floating, search._train, search._basis, search._progress = b"", None, {}, lines.append
    candidate = Candidate(name="a in int4", kind=kind, method="min_max")
    if kind in ("mixed", "levels"):
        assert search.try_candidate(candidate) is None
        assert lines == ["a in int4: not possible: the emulator ended"]
    else:
        with pytest.raises(BackendError):
            search.try_candidate(candidate)


def test_a_file_that_was_not_timed_is_not_within_a_bound_on_the_latency(monkeypatch):
    search = object.__new__(_Search)
    effects = [LevelEffect(layer="a", level="int8", distortion=0.0, costs={"bytes": 0.0, "latency_ratio": 0.0})]
    table = LevelTable(
        base_level="int8", base_distortion=0.0, base_costs={"bytes": 100.0, "latency_ratio": 1.0},
        effects=tuple(effects), impossible={},
    )  # fmt: skip
    bounds, base = {"bytes": 200, "latency_ratio": 1.5}, SimpleNamespace(name="plain")
    for ratio, fits in ((1.2, True), (None, False), (1.6, False)):
        item = SimpleNamespace(costs={}, model_bytes=100, latency_ratio=ratio)
        monkeypatch.setattr(_Search, "_try_levels", lambda self, levels, base, name, item=item: item)
        assert (search._fitting(table, best_assignment, bounds, base, "at most 200 bytes") is item) == fits


def test_costs_are_measured_only_if_they_are_bounded(monkeypatch):
    model = golden("digits_int8")
    assert costs_of(model, BudgetConfig()) == {"bytes": len(model)}
    assert cost_bounds(BudgetConfig()) == {}
    counted = []

    def count(content, backend):
        counted.append(backend)
        return type("Counted", (), {"instructions": 123})

    monkeypatch.setattr("tfq.search.mixed_precision.count_instructions", count)
    budget = BudgetConfig(max_instructions=200, max_arena_bytes=10, max_latency_ratio=1.5, max_bytes=7)
    costs = costs_of(model, budget)
    assert costs["instructions"] == 123 and counted == ["qemu:cortex-a53"]
    assert costs["arena_bytes"] == tflite.workload.peak_activation_bytes(tflite.read(model)) > 0
    assert cost_bounds(budget) == {"bytes": 7, "arena_bytes": 10, "instructions": 200, "latency_ratio": 1.5}


@pytest.mark.parametrize("error", [-300, 0, 300])
def test_an_assignment_is_repeated_with_bounds_corrected_by_the_error_of_the_prediction(error):
    """Every file has `error` bytes more than predicted; the right result is that of the bound without them."""
    table, bounds, measured = random_table(2, missing=False), {"bytes": 5000.0}, []

    def measure(levels):
        measured.append(levels)
        return {"bytes": table.costs(levels)["bytes"] + error}

    place = fit_assignment(table, best_assignment, bounds, measure)
    assert measured[place] == best_assignment(table, {"bytes": 5000.0 - error})
    assert len(measured) <= 2


def test_an_assignment_that_never_fits_has_no_result():
    table = random_table(2, missing=False)
    assert fit_assignment(table, best_assignment, {"bytes": 4500.0}, lambda levels: {"bytes": 1e6}) is None
    assert fit_assignment(table, greedy_assignment, {"bytes": 4500.0}, lambda levels: None) is None
    assert fit_assignment(table, best_assignment, {"bytes": 0.0}, lambda levels: {"bytes": 0.0}) is None


@pytest.mark.parametrize("solver", [best_assignment, greedy_assignment])
def test_a_cost_that_was_not_measured_is_not_within_its_bound(solver):
    table, measured = random_table(2, missing=False), []

    def measure(levels):
        measured.append(levels)
        return {"bytes": 1.0, "instructions": np.inf}

    assert fit_assignment(table, solver, {"bytes": 9000.0, "instructions": 2e9}, measure) is None
    assert 1 <= len(measured) <= 2

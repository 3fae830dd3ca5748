# SPDX-License-Identifier: Apache-2.0
"""Assign a number format (level) to each layer within bounds on costs: as an integer linear program, and greedily.

A table has, for each layer and level, how much the distortion of the model's outputs and each cost change if only this
layer leaves the base level. An assignment is rated by the sums of these changes:

    minimize   sum of distortion[layer, level] * x[layer, level]
    so that    sum of cost[layer, level] * x[layer, level] <= bound - cost of the base    for each bounded cost,
               sum over the levels of x[layer, level] = 1 for each layer, and x is 0 or 1.

The sums are a model: errors of several layers interact, so the converted files are measured too.

Source of the formulation: Yao et al. 2021, "HAWQ-V3: Dyadic Neural Network Quantization". The solver is HiGHS, through
`scipy.optimize.milp`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.errors import InputError, RequirementError, install_hint, warn
from tfq.native_stderr import captured_stderr, stdout_to_stderr

# Numbers for the solver, whose tolerances are absolute: the objective is scaled to this, costs to at most this.
_SCALE = 1e6
# Seconds after which the solver returns its best assignment so far, or none.
_TIME_LIMIT = 300.0
# Statuses of `scipy.optimize.milp`.
_OPTIMAL, _INFEASIBLE = 0, 2
# How often an assignment is repeated with bounds that are corrected by the error of the predicted costs.
_ATTEMPTS = 4


@dataclass(frozen=True, kw_only=True)
class LevelEffect:
    """What changes if only one layer leaves the base level.

    Attributes:
        layer: The layer.
        level: Its level.
        distortion: The distortion of the model's outputs, minus that of the base.
        costs: {cost: its change}, such as {"bytes": -3600}.
    """

    layer: str
    level: str
    distortion: float
    costs: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"layer": self.layer, "level": self.level, "distortion": self.distortion, "costs": dict(self.costs)}


@dataclass(frozen=True, kw_only=True)
class LevelTable:
    """The effects of all levels that are possible for each layer.

    Attributes:
        base_level: The level of all layers in the base, such as "int8".
        base_distortion: The distortion of the base.
        base_costs: {cost: that of the base}.
        effects: One for each layer and level that is possible, including the base level.
        impossible: {"layer in level": why it is not possible}.
    """

    base_level: str
    base_distortion: float
    base_costs: Mapping[str, float]
    effects: tuple[LevelEffect, ...]
    impossible: Mapping[str, str]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order of `effects`."""
        return tuple(dict.fromkeys(item.layer for item in self.effects))

    def of_layer(self, layer: str) -> list[LevelEffect]:
        """Return the effects of the levels of a layer."""
        return [item for item in self.effects if item.layer == layer]

    def costs(self, levels: Mapping[str, str]) -> dict[str, float]:
        """Return the costs of an assignment {layer: level}, as the table predicts them."""
        chosen = [item for item in self.effects if levels[item.layer] == item.level]
        return {name: base + sum(item.costs[name] for item in chosen) for name, base in self.base_costs.items()}

    def distortion(self, levels: Mapping[str, str]) -> float:
        """Return the distortion of an assignment {layer: level}, as the table predicts it."""
        return self.base_distortion + sum(item.distortion for item in self.effects if levels[item.layer] == item.level)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "base_level": self.base_level,
            "base_distortion": self.base_distortion,
            "base_costs": dict(self.base_costs),
            "effects": [item.to_dict() for item in self.effects],
            "impossible": dict(self.impossible),
        }


def check_solver() -> None:
    """Raise InputError if SciPy is not installed."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"search.pareto_points needs SciPy, which cannot be imported ({error}): {install_hint('mixed')}. Or leave "
            "it out: the search then only moves the most sensitive layers",
            field="search.pareto_points",
            expected=0,
            got="no SciPy",
        ) from error


def best_assignment(table: LevelTable, bounds: Mapping[str, float], minimize: str = "distortion") -> dict[str, str]:
    """Return the assignment {layer: level} with the least distortion within the bounds, by integer programming.

    Warns if the solver reaches its time limit: the assignment is within the bounds, but a better one may exist.

    Args:
        table: The effects of the levels.
        bounds: {cost: the most that the whole model may cost}.
        minimize: "distortion", or the cost to minimize instead.

    Raises:
        InputError: SciPy is not installed.
        RequirementError: No assignment is within the bounds, and the message has the least that each cost can be; or
            the solver ended without an answer (`field` is then "search.pareto_points").
    """
    check_solver()
    from scipy.optimize import LinearConstraint, milp

    layers, effects = table.layers, table.effects
    if not effects:
        if _excess(table, {}, bounds) > 0:
            raise _infeasible(table, bounds, "the model has no layers with weights")
        return {}
    values = [item.distortion if minimize == "distortion" else item.costs[minimize] for item in effects]
    objective = np.array(values, np.float64)
    largest = np.abs(objective).max(initial=0)
    one_level = np.array([[item.layer == layer for item in effects] for layer in layers], np.float64)
    constraints = [LinearConstraint(one_level, 1, 1)]
    for name, bound in bounds.items():
        row = np.array([item.costs[name] for item in effects], np.float64)
        unit = max(1.0, np.abs(row).max(initial=0) / _SCALE)
        constraints.append(LinearConstraint(row / unit, -np.inf, (bound - table.base_costs[name]) / unit))
    with captured_stderr(), stdout_to_stderr():  # HiGHS writes lines to stdout, whatever its options
        solved = milp(
            objective * (_SCALE / largest) if largest else objective,
            integrality=np.ones(len(effects)),
            bounds=(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0, "time_limit": _TIME_LIMIT},
        )
    if solved.x is None:
        fail = _infeasible if solved.status == _INFEASIBLE else _unsolved
        raise fail(table, bounds, str(solved.message))
    if solved.status != _OPTIMAL:
        warn(
            f"search.pareto_points: the solver stopped before it could prove that its levels of {len(layers)} layers "
            "are the best within the bounds. Another run may get other levels. Allow fewer levels (search.levels). "
            f"The solver says: {solved.message}"
        )
    return {item.layer: item.level for item, chosen in zip(effects, solved.x, strict=True) if chosen > 0.5}


def greedy_assignment(table: LevelTable, bounds: Mapping[str, float]) -> dict[str, str] | None:
    """Return an assignment {layer: level} within the bounds by greedy steps, or None if the steps end before.

    Every layer starts at its level with the least distortion. Each step changes the level of one layer: the change that
    adds the least distortion for each unit by which it lowers the costs beyond their bounds, relative to the bounds.
    A step must lower the sum of the relative excesses over all bounds, so that no later step can undo it and the steps
    end.
    """
    levels = {layer: min(table.of_layer(layer), key=lambda item: item.distortion) for layer in table.layers}
    while (excess := _excess(table, levels, bounds)) > 0:
        for _, _, item in sorted(_steps(table, levels, bounds), key=lambda step: step[:2]):
            changed = {**levels, item.layer: item}
            if _excess(table, changed, bounds) < excess:
                levels = changed
                break
        else:
            return None
    return {layer: item.level for layer, item in levels.items()}


Solver = Callable[[LevelTable, Mapping[str, float]], "dict[str, str] | None"]


def fit_assignment(
    table: LevelTable,
    solver: Solver,
    bounds: Mapping[str, float],
    measure: Callable[[Mapping[str, str]], Mapping[str, float] | None],
) -> int | None:
    """Solve, convert and measure, and correct the bounds by the error of the predicted costs, a few times.

    Args:
        table: The effects of the levels, whose sums only predict the costs of a file.
        solver: `best_assignment` or `greedy_assignment`.
        bounds: {cost: the most that the file may cost}.
        measure: Converts an assignment and returns the costs of the file, infinite for one that could not be measured;
            None if the conversion is not possible.

    Returns:
        Which call of `measure`, from 0, had the file within the bounds with the least predicted distortion; None if no
        file was within them.
    """
    aims, seen = dict(bounds), list[dict[str, str]]()
    best: tuple[float, int] | None = None
    for place in range(_ATTEMPTS):
        try:
            levels = solver(table, aims)
        except RequirementError as error:
            if error.field != "search.budget":
                warn(str(error))  # whether levels within the bounds exist is not known
            break
        costs = None if levels is None or levels in seen else measure(levels)
        if levels is None or costs is None:
            break
        seen.append(levels)
        distortion = table.distortion(levels)
        if all(costs[name] <= bound for name, bound in bounds.items()) and (best is None or distortion < best[0]):
            best = distortion, place
        predicted = table.costs(levels)
        aims = {
            # A cost that was not measured, which is infinite here, says nothing about the prediction.
            name: bound + predicted[name] - costs[name] if math.isfinite(costs[name]) else aims[name]
            for name, bound in bounds.items()
        }
    return None if best is None else best[1]


def _excess(table: LevelTable, levels: Mapping[str, LevelEffect], bounds: Mapping[str, float]) -> float:
    """Return the sum of the costs beyond their bounds, relative to the bounds."""
    costs = table.costs({layer: item.level for layer, item in levels.items()})
    return sum(max(0.0, costs[name] - bound) / _unit(bound) for name, bound in bounds.items())


def _unit(bound: float) -> float:
    return abs(bound) or 1.0


def _steps(
    table: LevelTable, levels: Mapping[str, LevelEffect], bounds: Mapping[str, float]
) -> Iterator[tuple[float, float, LevelEffect]]:
    """Yield (added distortion per relative gain, -gain, effect) of each change that lowers the costs beyond bounds."""
    costs = table.costs({layer: item.level for layer, item in levels.items()})
    over = {name: _unit(bound) for name, bound in bounds.items() if costs[name] > bound}
    for item in table.effects:
        now = levels[item.layer]
        gain = sum((now.costs[name] - item.costs[name]) / unit for name, unit in over.items())
        if gain > 0:
            yield (item.distortion - now.distortion) / gain, -gain, item


def _unsolved(table: LevelTable, bounds: Mapping[str, float], reason: str) -> RequirementError:
    return RequirementError(
        f"search.pareto_points: the solver found no levels of {len(table.layers)} layers within the bounds before it "
        "stopped; whether such levels exist is not known. Raise a bound (search.budget), or allow fewer levels "
        f"(search.levels). The solver says: {reason}",
        field="search.pareto_points",
        got=dict(bounds),
    )


def _infeasible(table: LevelTable, bounds: Mapping[str, float], reason: str) -> RequirementError:
    least = {
        name: table.base_costs[name]
        + sum(min(item.costs[name] for item in table.of_layer(layer)) for layer in table.layers)
        for name in bounds
    }
    listed = "; ".join(f"{name}: at most {bounds[name]:,g} allowed, the least is {least[name]:,g}" for name in bounds)
    beyond = [name for name in bounds if least[name] > bounds[name]]
    why = "" if beyond or len(bounds) < 2 else " (each bound alone can be met, not all at once)"
    return RequirementError(
        f"search.budget: no assignment of levels to {len(table.layers)} layers is within the bounds{why}. {listed}. "
        f"Raise a bound, or allow more levels (search.levels). The solver says: {reason}",
        field="search.budget",
        expected={name: least[name] for name in bounds},
        got=dict(bounds),
    )

# SPDX-License-Identifier: Apache-2.0
"""Check an evaluation and the table of its backends against the bounds in `evaluation.require`."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from tfq.config import CostRequireConfig, EvaluationConfig, RequireConfig
from tfq.errors import RequirementError
from tfq.evaluation.costs import cost_requirements
from tfq.evaluation.figure_readers import Measured
from tfq.evaluation.figures import FIGURES
from tfq.evaluation.metric_bounds import metric_bounds
from tfq.evaluation.portability_record import PortabilityTable
from tfq.evaluation.record import IDENTICAL, EvaluationRecord
from tfq.requirement import Requirement, at_least, at_most

# Bounds on costs that each backend has, unlike those that only some backends report.
_OF_EACH_BACKEND = ("min_accelerated_fraction",)


def requirements_of(record: EvaluationRecord | Mapping[str, Any], require: RequireConfig) -> tuple[Requirement, ...]:
    """Return every bound that `require` sets, with the value in the record (or its `to_dict()`) and the verdict.

    A bound on a missing value is missed, and its reason says why the value is missing. There is one exception:
    `min_sqnr_db` is met if all outputs are identical to the reference's. Bounds on ops and on the portability table are
    missed here; see `requirements_on_backends`.
    """
    values = record.to_dict() if isinstance(record, EvaluationRecord) else record
    measured = Measured(name="", evaluation=values)
    return (*_own_requirements(values, require), *figure_requirements(measured, require))


def figure_requirements(
    measured: Measured, require: CostRequireConfig, named: Collection[str] = ()
) -> list[Requirement]:
    """Return every bound in `require` that a registered figure declares, for each reading of the figure.

    A bound is missed if there is no reading, and for each backend in `named` that has none, unless the backend ran the
    model and never reports the figure.

    Args:
        measured: The parts of a record about one model.
        require: The bounds.
        named: The backends that the user named.
    """
    results = []
    for figure in FIGURES:
        bound = getattr(require, figure.bound, None) if figure.bound else None
        if bound is None:
            continue
        readings = [item for item in figure.read(measured) if not item[1].is_unsupported]
        check = at_least if figure.bound.startswith("min_") else at_most
        own = [
            check(f"{figure.bound} {place}".strip(), bound, reading.value, reading.reason)
            for place, reading in readings
            if reading.value is not None or place.removeprefix("on ") in named
        ]
        reason = next((reading.reason for _, reading in readings if reading.reason), None)
        results += own or [at_most(figure.bound, bound, None, reason or f"no backend reports it: {figure.help}")]
    return results


def _own_requirements(values: Mapping[str, Any], require: RequireConfig) -> tuple[Requirement, ...]:
    """Return the bounds that have separate rules."""
    requirements = []
    if require.min_accuracy is not None:
        requirements.append(
            at_least("min_accuracy", require.min_accuracy, values["accuracy"], values["accuracy_reason"])
        )
        direction = values["metrics"].get(values["metric"], {}).get("direction")
        if direction != "higher" and values["accuracy"] is not None:
            reason = "lower values are better" if direction == "lower" else "its direction is not declared"
            requirements[-1] = replace(requirements[-1], holds=False, reason=f"{reason} for {values['metric']}")
    if require.min_agreement is not None:
        reason = values["agreement_reason"]
        if values.get("outputs"):
            reason = f"{reason}. Use evaluation.require.min_sqnr_db for outputs that do not predict a class"
        requirements.append(at_least("min_agreement", require.min_agreement, values["agreement"], reason))
    if require.min_sqnr_db is not None:
        value, reason = values["output_sqnr_db"], values["output_sqnr_db_reason"]
        requirements.append(at_least("min_sqnr_db", require.min_sqnr_db, value, reason))
        if value is None and reason == IDENTICAL:
            requirements[-1] = replace(requirements[-1], holds=True)
    if require.max_accuracy_drop is not None:
        reason = values["accuracy_reason"] or values["skipped"].get("accuracy_drop")
        requirements.append(at_most("max_accuracy_drop", require.max_accuracy_drop, values["accuracy_drop"], reason))
    requirements += [bound.check(values) for bound in metric_bounds(require.metrics)]
    return (*requirements, *cost_requirements(values, values.get("backend", "the backend"), require))


def missed_requirements(record: EvaluationRecord | Mapping[str, Any], require: RequireConfig) -> list[str]:
    """Return a sentence for each bound of `require` that the record (or its `to_dict()`) misses, with both numbers.

    A bound on a missing number is missed; the sentence says why the number is missing.
    """
    return [missed_sentence(item) for item in requirements_of(record, require) if not item.holds]


def missed_sentence(missed: Requirement) -> str:
    """Return a sentence on a requirement that does not hold, with both numbers, or why there is no number."""
    kind, _, name = missed.name.partition("_")
    bound = _bound_text(missed.bound)
    if missed.value is None:
        return f"{missed.name} {bound} cannot be checked, because there is no {name}: {missed.reason}"
    if missed.reason is not None:
        return f"{missed.name} {bound} cannot be checked: {missed.reason}"
    value = f"{missed.value:,}" if isinstance(missed.value, int) else f"{missed.value:.4f}"
    return f"{name} is {value}, but must be {'at least' if kind == 'min' else 'at most'} {bound}"


def _bound_text(bound: float | str) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def check_requirements(record: EvaluationRecord | Mapping[str, Any], require: RequireConfig) -> None:
    """Raise RequirementError with every bound of `require` that is missed or cannot be checked."""
    missed = missed_requirements(record, require)
    if missed:
        raise RequirementError("; ".join(missed), field="require", got=tuple(missed))


def requirements_on_backends(
    record: EvaluationRecord | Mapping[str, Any],
    table: PortabilityTable | Mapping[str, Any],
    config: EvaluationConfig,
    digest: Mapping[str, Any] | None = None,
) -> tuple[Requirement, ...]:
    """Return every bound of `config.require`, for the evaluation, the portability table and the file.

    A bound applies to each backend that `config.backends` names, and its name says which: "min_accuracy on gpu". It is
    missed on a named backend that did not run the model, unless it is not available here and `config.missing_backends`
    is report. Estimators have no accuracy, so only bounds on costs apply.
    A bound on memory or instructions applies to each backend of the table that reports it, named or not; it is missed
    if none does.

    Args:
        record: The evaluation on `config.backend`, or its `to_dict()`.
        table: The table, or its `to_dict()`.
        config: The settings of both.
        digest: `digest_of` the file, which bounds on ops need.
    """
    values = record.to_dict() if isinstance(record, EvaluationRecord) else record
    rows = (table.to_dict() if isinstance(table, PortabilityTable) else table).get("rows") or {}
    asked = [name for name in config.backends if config.missing_backends == "fail" or not _is_missing(rows.get(name))]
    named = [name for name in asked if name in rows and name != values["backend"]]
    own = _own_requirements(values, config.require)
    costs = {item.name for item in cost_requirements(values, "", config.require)}
    results = [item for item in own if item.name not in costs or item.name in _OF_EACH_BACKEND]
    others: dict[str, tuple[Requirement, ...]] = {}
    for backend, row in rows.items():
        if backend != values["backend"] and row["status"] == "ran":
            others[backend] = _own_requirements(row["evaluation"], config.require)
    for name in named:
        is_estimate = rows[name]["how"] == "estimated"
        if name not in others:
            results += [
                Requirement(
                    name=f"{item.name} on {name}",
                    bound=item.bound,
                    value=None,
                    holds=False,
                    reason=rows[name]["reason"],
                )
                for item in own
                if item.name not in costs and not is_estimate
            ]
            continue
        results += [
            replace(item, name=f"{item.name} on {name}")
            for item in others[name]
            if item.name in _OF_EACH_BACKEND or (item.name not in costs and not is_estimate)
        ]
    for item in own:
        if item.name in costs and item.name not in _OF_EACH_BACKEND:
            reported = [
                replace(other, name=f"{other.name} on {backend}")
                for backend, bounds in others.items()
                for other in bounds
                if other.name == item.name and other.value is not None
            ]
            results += [item] if item.value is not None or not reported else []
            results += reported
    measured = Measured(name="", evaluation=values, rows=rows, digest=digest or {})
    return (*results, *figure_requirements(measured, config.require, asked))


def _is_missing(row: Mapping[str, Any] | None) -> bool:
    return row is not None and row["status"] == "not run"


def check_requirements_on_backends(
    record: EvaluationRecord | Mapping[str, Any],
    table: PortabilityTable | Mapping[str, Any],
    config: EvaluationConfig,
    digest: Mapping[str, Any] | None = None,
) -> None:
    """Raise RequirementError with every bound that is missed; see `requirements_on_backends`."""
    missed = missed_on_backends(record, table, config, digest)
    if missed:
        raise RequirementError("; ".join(missed), field="require", got=tuple(missed))


def missed_on_backends(
    record: EvaluationRecord | Mapping[str, Any],
    table: PortabilityTable | Mapping[str, Any],
    config: EvaluationConfig,
    digest: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return a sentence for each bound that is missed; see `requirements_on_backends`."""
    return [missed_sentence(item) for item in requirements_on_backends(record, table, config, digest) if not item.holds]

# SPDX-License-Identifier: Apache-2.0
"""The CI gate: compare a record with a baseline record, figure by figure, and name what is responsible for a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfq.comparison.gate_changes import Change, changes_of, same_examples, unchecked
from tfq.comparison.gate_inputs import models_of
from tfq.comparison.gate_result import FAILURES, FigureResult, Gate, GatedModel, Status
from tfq.comparison.metric_changes import metric_changes
from tfq.config import ComparisonConfig
from tfq.errors import InputError, RequirementError, TfqError
from tfq.evaluation.figure_readers import Measured, Reading
from tfq.evaluation.figures import FIGURES, Figure, Tolerance, figure_named
from tfq.evaluation.per_example import Difference

# How many changes are named for a figure that fails.
_MOST_CAUSES = 3
# If no more layers changed, the changes are better evidence than the measured errors of the layers.
_FEW_LAYERS = 3
# Changes below this are rounding of floats.
_ROUNDING = 1e-9


def tolerances(config: ComparisonConfig) -> dict[str, Tolerance]:
    """Return the tolerances in `config.tolerance` by figure, or by figure and place ("accuracy on gpu").

    Raises:
        InputError: An entry is not FIGURE=VALUE, or there is no such figure.
    """
    results = {}
    for entry in config.tolerance:
        name, separator, text = entry.partition("=")
        figure_named(name.partition(" ")[0])
        try:
            results[name] = Tolerance.parse(text)
        except ValueError as error:
            raise InputError(
                f"comparison.tolerance={entry}: expected FIGURE=VALUE, where VALUE is a number in the figure's unit "
                "(0.01) or a percentage of the old value (1%)",
                field="comparison.tolerance",
                expected="FIGURE=VALUE",
                got=entry if separator else name,
            ) from error
    return results


def gate_records(
    new: Mapping[str, Any],
    baseline: Mapping[str, Any],
    config: ComparisonConfig | None = None,
    *,
    layer_errors: Sequence[dict[str, Any]] = (),
    latency: Mapping[str, Any] | None = None,
) -> Gate:
    """Compare a record with a baseline record.

    Args:
        new: The record of `tfq evaluate`, `tfq benchmark` or `tfq run`.
        baseline: A record of the same command.
        config: The tolerances, what to ignore, and whether noise fails; None means `ComparisonConfig()`.
        layer_errors: The layers that lose accuracy, if both files are at hand; see `tfq.comparison.layer_errors`.
        latency: The time of the new file relative to that of the baseline, of one benchmark: `TimeRatio` as a dict.

    Returns:
        Every figure with its verdict, and every other change. `holds` is false if anything fails; `check_gate` raises.

    Raises:
        InputError: The records are of different commands, or damaged.
    """
    config = config or ComparisonConfig()
    if new.get("command") != baseline.get("command"):
        raise InputError(
            f"the baseline is a record of tfq {baseline.get('command')}, and the new one of tfq {new.get('command')}. "
            "Compare records of the same command",
            field="comparison.baseline",
            expected=new.get("command"),
            got=baseline.get("command"),
        )
    allowed = tolerances(config)
    try:
        if not models_of(baseline):
            raise InputError(
                "the baseline has no model, so nothing can be compared. Write it again with tfq run",
                field="comparison.baseline",
                expected="a record with a model",
                got=0,
            )
        pairs, new_models = _pairs(models_of(new), models_of(baseline))
        pairs = [(name, *_timed(after, before, latency)) for name, after, before in pairs]
        _check_places(allowed, [model for _, *both in pairs for model in both if model is not None])
        models = tuple(
            _gated(name, after, before, new, baseline, config, allowed, tuple(layer_errors))
            for name, after, before in pairs
        )
    except TfqError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"a record is damaged ({type(error).__name__}: {error}). Write both again with this version of tfq",
            field="comparison.baseline",
            got=type(error).__name__,
        ) from error
    return Gate(models=models, new_models=new_models, strict=config.strict, latency=latency)


def _check_places(allowed: Mapping[str, Tolerance], models: Sequence[Measured]) -> None:
    """Check that each tolerance for one place, such as "accuracy on gpu", is for a place that a record has."""
    for name in allowed:
        figure = figure_named(name.partition(" ")[0])
        if name == figure.name:
            continue
        places = {f"{figure.name} {place}".strip(): None for model in models for place, _ in figure.read(model)}
        if name not in places:
            raise InputError(
                f"comparison.tolerance={name}: neither record has this figure there. They have: "
                f"{', '.join(places) or f'no {figure.name}'}",
                field="comparison.tolerance",
                expected=tuple(places),
                got=name,
            )


def _timed(new: Measured | None, old: Measured, latency: Mapping[str, Any] | None) -> tuple[Measured | None, Measured]:
    """Return both models with the ratio of their times, which is 1 for the baseline."""
    if latency is None or new is None:
        return new, old
    # Both times are of one benchmark on this machine, whatever CPUs the records are from.
    ratio = {**latency, "same_session": True}
    base = {**ratio, "ratio": 1.0, "low": 1.0, "high": 1.0}
    return replace(new, ratios=(*new.ratios, ratio)), replace(old, ratios=(*old.ratios, base))


def _pairs(
    new: Mapping[str, Measured], old: Mapping[str, Measured]
) -> tuple[list[tuple[str, Measured | None, Measured]], tuple[str, ...]]:
    """Return (name, new model, old model) for each model of the baseline, and the names of those it does not have.

    The only models of two records belong together whatever their names are.
    """
    if len(new) == len(old) == 1:
        ((name, before),) = old.items()
        return [(name, next(iter(new.values())), before)], ()
    return [(name, new.get(name), before) for name, before in old.items()], tuple(
        name for name in new if name not in old
    )


def _gated(
    name: str,
    new: Measured | None,
    old: Measured,
    new_record: Mapping[str, Any],
    old_record: Mapping[str, Any],
    config: ComparisonConfig,
    allowed: Mapping[str, Tolerance],
    layer_errors: tuple[dict[str, Any], ...],
) -> GatedModel:
    if new is None:
        return GatedModel(name=name, file="", figures=(), missing=f"the new record does not have the model {name!r}")
    changes = [
        change
        for change in changes_of(new, old, new_record, old_record)
        if change.where not in config.ignore and change.where.partition(" ")[0] not in config.ignore
    ]
    results = []
    is_same = same_examples(new, old)
    for figure in FIGURES:
        if figure.name in config.ignore:
            continue
        after, before = dict(figure.read(new)), dict(figure.read(old))
        for place in (*before, *(place for place in after if place not in before)):
            if f"{figure.name} {place}".strip() in config.ignore:
                continue
            tolerance = allowed.get(f"{figure.name} {place}") or allowed.get(figure.name) or figure.tolerance
            result = _result(figure, place, after.get(place), before.get(place), tolerance, is_same)
            both = [item for item in (after.get(place), before.get(place)) if item is not None]
            if result is not None and len(both) == 2 and both[0].depends_on_cpu and new.cpu != old.cpu:
                result = replace(result, status="not gated", reason=f"the CPU differs: {old.cpu} -> {new.cpu}")
            if result is not None:
                results.append(result)
    explained = [_with_causes(item, changes, layer_errors) for item in results]
    return GatedModel(
        name=name,
        file=new.file,
        figures=tuple(explained),
        metrics=metric_changes(new, old, same_examples=is_same),
        changes=tuple(changes),
        same_examples=is_same,
        layer_errors=layer_errors,
        unchecked=unchecked(new, old),
    )


def _result(
    figure: Figure, place: str, new: Reading | None, old: Reading | None, tolerance: Tolerance, is_same: bool
) -> FigureResult | None:
    """Return the verdict on a figure; None if neither record has a value."""
    shown = new or old
    assert shown is not None
    after, before = (None if item is None else item.value for item in (new, old))
    if after is None and before is None:
        return None
    direction = shown.direction or figure.direction
    difference: Difference | None = None
    reason = None
    status: Status
    if before is None:
        status = "new"
    elif after is None:
        status = "missing"
        reason = (new.reason if new is not None else None) or "the new record does not have it"
        if (old is not None and old.ungated) or (new is not None and new.ungated):
            status = "not gated"
    else:
        assert new is not None and old is not None
        difference = figure.compare(new, old, same_examples=is_same)
        reason = new.ungated or old.ungated or None
        status = "not gated" if reason else _status(difference, direction, tolerance.largest_change(before))
    return FigureResult(
        figure=figure.name,
        place=place,
        unit=shown.unit or figure.unit,
        direction=direction,
        old=before,
        new=after,
        difference=difference,
        tolerance=str(tolerance),
        status=status,
        reason=reason,
    )


def _status(difference: Difference, direction: str, largest_change: float) -> Status:
    loss = -difference.value if direction == "higher" else difference.value
    if loss > largest_change + _ROUNDING * max(1.0, largest_change):
        return "noise" if difference.is_noise else "worse"
    if abs(loss) <= _ROUNDING:
        return "same"
    return "within tolerance" if loss > 0 else "better"


def _with_causes(
    item: FigureResult, changes: Sequence[Change], layer_errors: Sequence[Mapping[str, Any]]
) -> FigureResult:
    """Return a figure that became worse with the changes that may explain it."""
    if item.status not in (*FAILURES, "noise"):
        return item
    depends_on = figure_named(item.figure).depends_on
    fitting = [
        change for change in changes if depends_on == "values" or change.structural or change.kind == "environment"
    ]
    causes = [f"{change.kind} {change.where}: {change.message}" for change in fitting]
    if depends_on == "values":
        measured = [
            f"layer {error['label']}: the SQNR of its output fell from {error['old_sqnr_db']:.1f} to "
            f"{error['new_sqnr_db']:.1f} dB"
            for error in layer_errors
            if error["first"]
        ]
        # If many layers changed, as after another training, only the measurement tells which one matters.
        num_changed = len({change.where for change in changes if change.kind == "layer"})
        causes = [*measured, *causes] if num_changed > _FEW_LAYERS else [*causes[:1], *measured, *causes[1:]]
    return replace(item, causes=tuple(causes[:_MOST_CAUSES]))


def check_gate(result: Gate) -> None:
    """Raise RequirementError with the names of everything that fails the gate; `got` has a sentence for each."""
    names = [
        name
        for model in result.models
        for name in (
            *([model.name] if model.missing else []),
            *(change.where for change in model.changes if change.breaks),
            *(item.name for item in model.figures if result.fails(item)),
        )
    ]
    if names:
        raise RequirementError(
            f"worse than the baseline, or not comparable with it: {', '.join(dict.fromkeys(names))}",
            field="comparison.baseline",
            got=result.failures,
        )

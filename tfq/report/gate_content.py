# SPDX-License-Identifier: Apache-2.0
"""The part of the page of `tfq compare` on two records: each figure with its verdict, and what else changed."""

from collections.abc import Iterator
from typing import Any

from tfq.comparison.gate_result import FAILURES, FigureResult, change_text, number, tolerance_text
from tfq.comparison.metric_changes import MetricChange, metric_cells, metric_notes
from tfq.evaluation.per_example import Difference
from tfq.report.formatting import number_of, plain
from tfq.report.record import Record, part
from tfq.report.tables import Section, Table
from tfq.report.verdict import BAD, GOOD, OPEN, Check, Verdict

_NUMBERS = ("old", "new")


def gate_verdict(gate: Record) -> Verdict:
    """Return the verdict of a gate: whether it holds, and what failed."""
    failures = [plain(failure) for failure in gate.get("failures") or []]
    holds = gate.get("holds") is True and not failures
    checks = [Check(key="gate", state=BAD, question="failed", answer=failure) for failure in failures]
    figures = [item for model in _dicts(gate, "models") for item in _dicts(model, "figures")]
    noisy = [
        f"{plain(item.get('figure'))} {plain(item.get('place') or '')}".strip()
        for item in figures
        if item.get("status") == "noise"
    ]
    headline = "No figure is worse than its tolerance"
    if noisy:
        headline += ", except within noise"
    if not holds:
        headline = f"The gate fails: {number_of(len(failures), 'failure')}"
    if noisy and gate.get("strict") is not True:
        answer = f"{', '.join(noisy)}: worse than the tolerance, but the 95% interval of the change contains 0"
        checks.append(Check(key="noise", state=OPEN, question="within noise", answer=answer))
    return Verdict(state=GOOD if holds else BAD, headline=headline, checks=tuple(checks))


def _dicts(record: Record, key: str) -> list[dict[str, Any]]:
    return [item for item in record.get(key) or [] if isinstance(item, dict)]


def gate_sections(gate: Record) -> Iterator[Section]:
    """Yield a section of figures and one of other changes for each model."""
    models = _dicts(gate, "models")
    for place, model in enumerate(models):
        suffix = f" of {plain(model.get('name'))}" if len(models) > 1 else ""
        figures = _dicts(model, "figures")
        notes = [plain(model["missing"])] if model.get("missing") else []
        notes += [f"Not compared: {kind}: {plain(reason)}." for kind, reason in part(model, "unchecked").items()]
        yield Section(
            key=f"figures_{place}",
            title=f"Figures{suffix}",
            paragraphs=tuple(notes),
            tables=(
                *((_figures(figures, strict=gate.get("strict") is True),) if figures else ()),
                *_metrics(model),
            ),
            folded=False,
        )
        changes = _dicts(model, "changes")
        if changes:
            rows = [tuple(plain(item.get(key, "")) for key in ("kind", "where", "message")) for item in changes]
            table = Table(
                key=f"changes_{place}",
                columns=("kind", "where", "what changed"),
                rows=tuple(rows),
                numeric=(False,) * 3,
            )
            about = "The most suspicious first: data and interface, then layers, then the environment."
            yield Section(
                key=f"changes_{place}", title=f"Changes{suffix}", paragraphs=(about,), tables=(table,), folded=False
            )
    added = [plain(name) for name in gate.get("new_models") or []]
    if added:
        yield Section(key="new_models", title="Not in the baseline", items=tuple(added), folded=False)


def _figures(figures: list[dict[str, Any]], *, strict: bool) -> Table:
    rows: list[tuple[str, ...]] = []
    bad: list[tuple[int, int]] = []
    for item in figures:
        result = _figure(item)
        if result is None:
            continue
        failed = result.status in FAILURES or (strict and result.status == "noise")
        if failed:
            bad.append((len(rows), 5))
        why = result.reason or "; ".join(result.causes)
        rows.append(
            (
                plain(result.name),
                number(result.old, result.unit),
                number(result.new, result.unit),
                change_text(result),
                tolerance_text(result),
                plain(result.status),
                plain(why),
            )
        )
    return Table(
        key="figures",
        columns=("figure", "baseline", "new", "change (95% interval)", "tolerance", "verdict", "likely causes"),
        rows=tuple(rows),
        numeric=(False, True, True, True, True, False, False),
        bad=frozenset(bad),
        sortable=True,
    )


def _metrics(model: Record) -> Iterator[Table]:
    """Yield the table of every metric that both records have; nothing without metrics."""
    changes = []
    for item in _dicts(model, "metrics"):
        try:
            change = MetricChange.from_dict(item)
            changes.append((change, metric_cells(change)))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    if changes:
        yield Table(
            key="metrics",
            columns=("metric", "baseline (95% interval)", "new (95% interval)", "difference (95% interval)"),
            rows=tuple(tuple(map(plain, cells)) for _, cells in changes),
            caption="Every metric that both records have",
            notes=tuple(map(plain, metric_notes([change for change, _ in changes]))),
        )


def _figure(item: dict[str, Any]) -> FigureResult | None:
    """Return a figure of a record; None if it is damaged."""
    values = {**item, "causes": tuple(item.get("causes") or ())}
    try:
        values |= {key: None if item[key] is None else float(item[key]) for key in _NUMBERS}
        if item["difference"] is not None:
            difference: dict[str, Any] = {
                key: float(value) if value in ("inf", "-inf") else value for key, value in item["difference"].items()
            }
            values["difference"] = Difference(**difference)
        result = FigureResult(**values)
        tolerance_text(result), change_text(result)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return result

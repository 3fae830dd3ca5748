# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep: what is best within the budget, Pareto fronts, a sortable table, and what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfq.report.content import provenance_sections, subtitle_of
from tfq.report.formatting import DASH, NO_INTERVAL, is_number, number_of, plain, seconds
from tfq.report.kinds import RecordKind, register
from tfq.report.record import Record, part
from tfq.report.sweep_plots import QUANTIZATION, compared_axes, front_key, sweep_plots
from tfq.report.sweep_view import (
    Group,
    Metric,
    cost_format,
    costs_of,
    fronts_of,
    groups_of,
    metric_of,
    objects,
    points_of,
    reported_split,
    splits_of,
)
from tfq.report.tables import Reasons, Section, Table
from tfq.report.verdict import BAD, GOOD, OPEN, Check, Cost, Verdict

_DONE = "done"


def sweep_verdict(record: Record) -> Verdict:
    """Return the sentence about the best group, its main numbers, and what did not run."""
    best, metric = part(record, "best"), metric_of(record)
    name, points = best.get("group"), points_of(record)
    undone = [point for point in points if point.get("status") != _DONE]
    checks = []
    if undone:
        answer = f"{number_of(len(undone), 'point')} of {len(points)} did not finish; see below"
        checks.append(Check(key="points", state=OPEN, question="points", answer=answer))
    sentence = plain(best.get("sentence") or "This record has no best group: it is one shard, or it is damaged.")
    if not name:
        return Verdict(state=BAD if best else OPEN, headline=sentence, checks=tuple(checks))
    # The names of groups contain no spaces.
    headline, _, margin = sentence.partition(". ")
    unknown = part(best, "without_interval")
    if unknown:
        answer = f"{number_of(len(unknown), 'group')}; their differences from the best have no interval"
        checks.append(Check(key="unpaired", state=OPEN, question="not compared with noise", answer=answer))
    same = [plain(other) for other in best.get("indistinguishable") or []]
    if same:
        size = "file after gzip" if best.get("size") == "gzip_bytes" else "file"
        answer = f"{number_of(len(same), 'group')}; the smallest {size} of all is that of {plain(best.get('cheapest'))}"
        checks.append(Check(key="noise", state=OPEN, question="within noise of the best", answer=margin or answer))
    elif margin:
        # Such as "But pruned50/int8 is better on test": the choice did not hold.
        state = OPEN if margin.startswith("But ") else GOOD
        checks.append(Check(key="margin", state=state, question="margin", answer=margin))
    group = next((item for item in groups_of(record) if item.name == plain(name)), None)
    return Verdict(
        state=OPEN if any(check.state == OPEN for check in checks) else GOOD,
        headline=headline if margin else sentence,
        subject=f"{plain(name)}:",
        costs=tuple(_tiles(group, metric, reported_split(record))) if group else (),
        checks=tuple(checks),
    )


def _tiles(group: Group, metric: Metric, split: str) -> Iterator[Cost]:
    yield Cost(
        key="accuracy",
        name=f"{metric.name} on {split}",
        value=metric.text(group.number("scores", split)),
        details=tuple(_details(group, metric, split)),
    )
    for key, name in (("size", "gzip_bytes"), ("arena", "arena_bytes"), ("instructions", "instructions")):
        value = group.number("costs", name)
        if value is not None:
            shown = cost_format(name)
            yield Cost(key=key, name=shown.title, value=shown.text(value), details=())


def _details(group: Group, metric: Metric, split: str) -> Iterator[str]:
    yield f"mean of {number_of(len(group.record.get('seeds') or []), 'seed')}"
    std = group.number("scores", split, "std")
    if std is not None:
        yield f"standard deviation over seeds {metric.spread(std)}"
    if not group.is_reference:
        yield f"minus the reference: {_difference(part(part(group.record, 'differences'), split), metric)}"


def _difference(difference: Record, metric: Metric) -> str:
    """Return "+0.62 (+0.31 to +0.93)", "+0.62 (no interval)", or a dash without a difference."""
    value, low, high = (difference.get(key) for key in ("difference", "low", "high"))
    if not is_number(value):
        return DASH
    interval = f"{metric.change(low)} to {metric.change(high)}" if _has_interval(difference) else NO_INTERVAL
    return f"{metric.change(value)} ({interval})"


def _has_interval(difference: Record) -> bool:
    return is_number(difference.get("low")) and is_number(difference.get("high"))


def _unpaired_notes(what: str, reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for each reason why differences have no interval, with the groups.

    Args:
        what: What the differences are taken from.
        reasons: Group -> the reason.
    """
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(plain(reason), []).append(plain(name))
    return tuple(f"No interval of the difference {what}: {_listed(names)}: {why}" for why, names in groups.items())


def _reasons(differences: Mapping[str, Record]) -> dict[str, str]:
    """Return {group: why} of the differences without an interval."""
    return {
        name: plain(item.get("reason") or "the record does not say why")
        for name, item in differences.items()
        if is_number(item.get("difference")) and not _has_interval(item)
    }


# Where the spread over seeds in an interval comes from (`SeedDifference.spread_from`).
_SPREADS = {"own": "this pair", "families": "the same families", "all": "all groups"}


def _spread_from(difference: Record) -> str:
    """Return what the spread over seeds in an interval is estimated from; a dash for one seed."""
    return _SPREADS.get(plain(difference.get("spread_from")), DASH)


def _sections(record: Record) -> Iterator[Section]:
    fronts = fronts_of(record)
    yield _result(record, fronts)
    yield from _others(record)
    if compared_axes(record) is not None:
        about = (
            "Both make a model smaller. Where a color lies above another one, its quantization keeps more accuracy in "
            "files of the same size."
        )
        yield Section(
            key=QUANTIZATION,
            title="Quantization against pruning",
            paragraphs=(about,),
            plots=(QUANTIZATION,),
            folded=False,
        )
    if fronts:
        yield _fronts(record, fronts)
    yield from _best(record)
    yield from _seed_spreads(record)
    yield from _unfinished(record)
    yield _stages(record)
    yield from provenance_sections(record)


def _result(record: Record, fronts: Mapping[str, Record]) -> Section:
    groups = groups_of(record)
    if not groups:
        text = "This record has no groups: it is one shard of a sweep. tfq sweep merge joins the shards."
        return Section(key="result", title="All groups", paragraphs=(text,), folded=False)
    metric, splits, costs = metric_of(record), splits_of(record), costs_of(groups)
    on_front = {
        cost: {plain(item.get("group")) for item in objects(front, "members")} for cost, front in fronts.items()
    }
    reasons, rows = Reasons(), []
    differences: dict[str, Record] = {}
    reported = reported_split(record)
    for group in groups:
        scores = [_spread_text(group, metric, split) for split in splits]
        values = [group.number("costs", cost) for cost in costs]
        cells = [cost_format(cost).text(value) for cost, value in zip(costs, values, strict=True)]
        cells = [DASH if value is None else cell for cell, value in zip(cells, values, strict=True)]
        for split, cell in zip(splits, scores, strict=True):
            if cell == DASH:
                reasons.add(f"{metric.name} on {split}", group.name, group.reason("scores", split))
        for cost, cell in zip(costs, cells, strict=True):
            if cell == DASH:
                reasons.add(cost_format(cost).title, group.name, group.reason("costs", cost))
        fronts_text = "; ".join(cost_format(cost).title for cost, names in on_front.items() if group.name in names)
        differences[group.name] = difference = part(part(group.record, "differences"), reported)
        rows.append(
            (
                group.name + (" (reference)" if group.is_reference else ""),
                *scores,
                _difference(difference, metric),
                _spread_from(difference),
                *cells,
                fronts_text if group.is_in_grid else "not in the grid",
            )
        )
    table = Table(
        key="groups",
        columns=(
            "group",
            *(f"{metric.name}, {split}" for split in splits),
            f"minus reference, {reported} (95% interval)",
            "spread over seeds from",
            *(cost_format(cost).title for cost in costs),
            "on the front of",
        ),
        rows=tuple(rows),
        numeric=(False, *(True for _ in splits), True, False, *(True for _ in costs), False),
        notes=(*reasons.notes(), *_unpaired_notes("from the reference", _reasons(differences))),
        sortable=True,
    )
    about = (
        "Each row is a combination of the axes: the mean over its seeds ± the standard deviation. "
        f"{_axes_text(record)} Differences are paired: both models saw the same examples. Their intervals cover the "
        "choice of examples and, with several seeds, of seeds; each holds alone with 95% confidence. The spread over "
        "seeds is that of the two groups, or the one pooled over the same families or all groups, if that is larger."
    )
    return Section(key="result", title="All groups", paragraphs=(about,), tables=(table,), folded=False)


def _others(record: Record) -> Iterator[Section]:
    """Yield the section of the metrics other than the main one, on the split that the page reports."""
    groups, split = groups_of(record), reported_split(record)
    metrics = {
        plain(name): Metric(name=plain(name), unit=plain(item.get("unit") or "none"), direction="")
        for group in groups
        for name, item in part(part(group.record, "others"), split).items()
        if isinstance(item, Mapping)
    }
    if not metrics:
        return
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name in metrics:
        items = {group.name: part(part(part(group.record, "others"), split), name) for group in groups}
        notes += _unpaired_notes(
            f"in {name} from the reference", _reasons({key: part(item, "difference") for key, item in items.items()})
        )
    for group in groups:
        cells = [group.name]
        for name, metric in metrics.items():
            item = part(part(part(group.record, "others"), split), name)
            value = part(item, "value")
            std = value.get("std")
            mean = metric.text(value["mean"]) if is_number(value.get("mean")) else DASH
            spread = f" ± {metric.spread(std)}" if is_number(std) and mean != DASH else ""
            cells += [f"{mean}{spread}", _difference(part(item, "difference"), metric)]
        rows.append(tuple(cells))
    table = Table(
        key="others",
        columns=("group", *(text for name in metrics for text in (name, "minus reference"))),
        rows=tuple(rows),
        notes=tuple(notes),
        sortable=True,
    )
    about = (
        f"Mean over the seeds on {split}, and the difference from the reference with its 95% interval, paired by "
        "example. These metrics do not decide the fronts or the best group."
    )
    yield Section(key="others", title="Other metrics", paragraphs=(about,), tables=(table,))


def _spread_text(group: Group, metric: Metric, split: str) -> str:
    mean, std = group.number("scores", split), group.number("scores", split, "std")
    if mean is None:
        return DASH
    return metric.text(mean) + ("" if std is None else f" ± {metric.spread(std)}")


def _axes_text(record: Record) -> str:
    axes = part(record, "axes")
    if not axes:
        return ""
    parts = [f"{plain(axis)} ({', '.join(map(plain, values))})" for axis, values in axes.items() if values]
    seeds = ", ".join(map(plain, record.get("seeds") or []))
    return f"Axes: {'; '.join(parts)}; seeds {seeds}."


def _fronts(record: Record, fronts: Mapping[str, Record]) -> Section:
    metric = metric_of(record)
    tables = [_front_table(cost, front, metric) for cost, front in fronts.items()]
    about = (
        "A group is on the front of a cost if no other one is at least as good and as cheap, and better in one of "
        "them. The gain is over the next cheaper member of the front; its interval is corrected for all steps of the "
        "front. If it contains 0, these examples and seeds do not show that the more expensive group is better."
    )
    plots = tuple(front_key(cost) for cost in fronts)
    return Section(
        key="fronts", title="Pareto fronts", paragraphs=(about,), plots=plots, tables=tuple(tables), folded=False
    )


def _front_table(cost: str, front: Record, metric: Metric) -> Table:
    shown, rows = cost_format(cost), []
    for item in objects(front, "members"):
        noise = [plain(name) for name in item.get("within_noise") or []]
        rows.append(
            (
                plain(item.get("group")),
                shown.text(item.get("cost")),
                metric.text(item.get("score")),
                _difference(part(item, "gain"), metric),
                _spread_from(part(item, "gain")),
                _listed(noise),
            )
        )
    possible = [
        f"{plain(name)} is within noise of {plain(item.get('member'))}"
        if _has_interval(part(item, "difference"))
        else f"it is not known whether {plain(name)} is within noise of {plain(item.get('member'))}: "
        f"{plain(part(item, 'difference').get('reason'))}"
        for name, item in part(front, "possible").items()
        if isinstance(item, Mapping)
    ]
    unknown = [
        note
        for item in objects(front, "members")
        for note in _unpaired_notes(f"of {plain(item.get('group'))} from", part(item, "without_interval"))
    ]
    left_out = [f"{plain(name)} is not compared: {plain(reason)}" for name, reason in part(front, "left_out").items()]
    return Table(
        key=front_key(cost),
        columns=(
            "group",
            shown.title,
            f"{metric.name}, {plain(front.get('split'))}",
            "gain",
            "spread over seeds from",
            "within noise of cheaper",
        ),
        rows=tuple(rows),
        numeric=(False, True, True, True, False, False),
        caption=f"{metric.name} against {shown.title}",
        notes=(*possible, *unknown, *left_out),
    )


_MOST_NAMES = 5


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _best(record: Record) -> Iterator[Section]:
    best, metric = part(record, "best"), metric_of(record)
    against, missed = part(best, "against"), part(best, "missed")
    if not against and not missed:
        return
    same = {plain(name) for name in best.get("indistinguishable") or []}
    unknown = {plain(name): plain(reason) for name, reason in part(best, "without_interval").items()}
    tables = []
    if against:
        rows = tuple(
            (
                plain(name),
                _difference(item, metric) if isinstance(item, Mapping) else DASH,
                _spread_from(item) if isinstance(item, Mapping) else DASH,
                "within noise" if plain(name) in same else "not known" if plain(name) in unknown else "differs",
            )
            for name, item in against.items()
        )
        caption = (
            f"{plain(best.get('group'))} minus each other group within the budget, on {plain(best.get('reported_on'))}"
        )
        tables.append(
            Table(
                key="against",
                columns=(
                    "group",
                    "difference (intervals hold together with 95%)",
                    "spread over seeds from",
                    "verdict",
                ),
                rows=rows,
                numeric=(False, True, False, False),
                caption=caption,
                notes=_unpaired_notes("from it", unknown),
                sortable=True,
            )
        )
    if missed:
        tables.append(
            Table(
                key="missed",
                columns=("group", "missed bounds"),
                rows=tuple((plain(name), "; ".join(map(plain, reasons))) for name, reasons in missed.items()),
                numeric=(False, False),
                caption="Groups outside of the budget",
            )
        )
    gist = f"{number_of(len(against), 'other group')} within it, {len(missed)} outside"
    yield Section(key="budget", title="Within the budget", gist=gist, tables=tuple(tables))


def _seed_spreads(record: Record) -> Iterator[Section]:
    """Yield the standard deviations over seeds of differences, by families, and which of them are used."""
    metric, split = metric_of(record), reported_split(record)
    spreads = part(part(record, "seed_spreads"), split)
    total = part(spreads, "all")
    if not is_number(total.get("std")):
        return

    def std(item: Record) -> str:
        return f"{metric.factor * item['std']:.2f}{' points' if metric.unit == 'fraction' else ''}"

    rows = [("all groups", "", std(total), plain(total.get("freedom")), "if the families have too few")]
    for item in objects(spreads, "families"):
        if not is_number(item.get("std")):
            continue
        pair = " and ".join(dict.fromkeys(map(plain, item.get("families") or [])))
        models = "one model" if item.get("same_model") else "different models"
        used = "yes" if item.get("used") else "no: too few seeds or models"
        rows.append((pair, models, std(item), plain(item.get("freedom")), used))
    about = (
        "How much the difference of two groups varies from seed to seed. It is pooled over pairs of groups of the same "
        "families of compression, and apart for groups that are converted from one trained model. With fewer than "
        f"{plain(spreads.get('min_freedom'))} degrees of freedom, the spread over all groups is used. The "
        "interval of a difference uses the spread of these two groups if it is larger."
    )
    table = Table(
        key="seed_spreads",
        columns=("families", "converted from", "standard deviation", "degrees of freedom", "used"),
        rows=tuple(rows),
        numeric=(False, False, True, True, False),
        caption=f"Spread over seeds of the difference of two groups, on {split}",
    )
    yield Section(key="seed_spreads", title="Spread over seeds", paragraphs=(about,), tables=(table,))


def _unfinished(record: Record) -> Iterator[Section]:
    undone = [point for point in points_of(record) if point.get("status") != _DONE]
    if undone:
        rows = tuple(
            tuple(plain(point.get(key) or "") for key in ("id", "status", "failed_stage", "reason")) for point in undone
        )
        table = Table(key="unfinished", columns=("point", "status", "stage", "reason"), rows=rows, numeric=(False,) * 4)
        yield Section(key="unfinished", title="Points that did not finish", tables=(table,), folded=False)
    warned: dict[str, list[str]] = {}
    for point in points_of(record):
        for message in point.get("warnings") or []:
            warned.setdefault(plain(message), []).append(plain(point.get("id")))
    if warned:
        rows = tuple((message, _listed(names)) for message, names in warned.items())
        table = Table(key="warned", columns=("warning", "points"), rows=rows, numeric=(False, False))
        yield Section(
            key="point_warnings",
            title="Warnings of the points",
            gist=number_of(len(warned), "different warning"),
            tables=(table,),
        )


def _stages(record: Record) -> Section:
    kinds = part(record, "stages")
    rows: list[tuple[str, ...]] = []
    for kind, counts in kinds.items():
        distinct, used = (counts.get(key) if isinstance(counts, Mapping) else None for key in ("distinct", "used"))
        rows.append((plain(kind), number_text(distinct), number_text(used)))
    timing = part(record, "timing")
    times = [item.get("seconds") for item in _nested(timing) if is_number(item.get("seconds"))]
    total = f"{seconds(sum(times))} of work in {number_of(len(times), 'stage')}." if times else ""
    about = f"Stages that points share run once. Each runs with {plain(record.get('num_threads'))} thread(s). {total}"
    table = Table(key="stages", columns=("stage", "distinct", "used by points"), rows=tuple(rows))
    return Section(key="stages", title="Stages", paragraphs=(about.strip(),), tables=(table,) if rows else ())


def number_text(value: Any) -> str:
    """Return an integer with separators; a dash for anything else."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else DASH


def _nested(value: Any) -> Iterator[Record]:
    if isinstance(value, Mapping):
        if "seconds" in value:
            yield value
        else:
            for item in value.values():
                yield from _nested(item)


SWEEP = register(
    RecordKind(
        command="sweep",
        help="many models and settings: Pareto fronts, and what is best within a budget",
        needs={"points": list},
        sections=lambda record: list(_sections(record)),
        plots=sweep_plots,
        verdict=sweep_verdict,
        subtitle=subtitle_of,
    )
)

# SPDX-License-Identifier: Apache-2.0
"""The page of `tfq compare`: what differs between two .tflite files, largest differences first; or two records."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from tfq.comparison.change import FORMAL_PARTS, PARTS, Change
from tfq.comparison.metric_changes import changes_from_reference, metric_cells, metric_notes
from tfq.comparison.text import changed_values
from tfq.report.content import provenance_sections
from tfq.report.examples_content import examples_of_pair
from tfq.report.formatting import (
    DASH,
    count,
    decibels,
    is_number,
    kilobytes,
    number_of,
    percent,
    plain,
    scalar,
    significant,
)
from tfq.report.gate_content import gate_sections, gate_verdict
from tfq.report.kinds import RecordKind, register
from tfq.report.plots import Plot, color_of, drawn, figure_of, label_value, name_rows, svg_of
from tfq.report.record import Record, part
from tfq.report.tables import Section, Table
from tfq.report.verdict import GOOD, OPEN, Check, Cost, Verdict, verdict_of_requirements

_MOST_ROWS, _MOST_PLACES = 30, 20
_A, _B = 0, 1


def _records(comparison: Record, key: str) -> list[Record]:
    return [item for item in comparison.get(key) or [] if isinstance(item, dict)]


def _differing(comparison: Record) -> list[Record]:
    """Return the constants whose values or stored form differ, worst first, as `ConstantDifference.differs`."""
    results = []
    for item in _records(comparison, "constants"):
        stored = [
            (part(item, side).get("dtype"), part(item, side).get("granularity")) for side in ("reference", "model")
        ]
        if item.get("equal") is not True or stored[0] != stored[1] or item.get("changed_bytes"):
            results.append(item)
    return results


def _verdict(record: Record) -> Verdict:
    if "comparison" not in record:
        without = Verdict(state=OPEN, headline="There was no baseline yet")
        return gate_verdict(part(record, "gate")) if record.get("gate") else without
    comparison = part(record, "comparison")
    number = comparison.get("num_differences")
    if comparison.get("byte_identical") is True:
        headline = "The files are identical"
    elif number == 0:
        headline = "Nothing differs, except the layout of the files"
    else:
        headline = f"The files differ in {number_of(number, 'place')}"
    required = verdict_of_requirements(record)
    state = required.state if required else GOOD if number == 0 else OPEN
    checks: tuple[Check, ...] = required.checks if required else ()
    return Verdict(
        state=state, headline=headline, subject="B against A", costs=tuple(_costs(record, comparison)), checks=checks
    )


def _costs(record: Record, comparison: Record) -> Iterator[Cost]:
    sizes = [part(part(comparison, "files"), side) for side in ("reference", "model")]
    if all(is_number(size.get("bytes")) and size["bytes"] for size in sizes):
        change = (
            f"{100 * (sizes[1]['bytes'] / sizes[0]['bytes'] - 1):+.1f}% against {kilobytes(sizes[0]['bytes'])} of A"
        )
        compressed = f"gzip {kilobytes(sizes[1].get('gzip_bytes'))} against {kilobytes(sizes[0].get('gzip_bytes'))}"
        yield Cost(key="size", name="Size", value=kilobytes(sizes[1]["bytes"]), details=(change, compressed))
    matching = part(comparison, "matching")
    rules = tuple(f"{count(number)} by {plain(rule)}" for rule, number in part(matching, "rules").items())
    ops = f"of {count(matching.get('reference_ops'))} in A and {count(matching.get('model_ops'))} in B"
    yield Cost(key="ops", name="Matched ops", value=count(matching.get("matched")), details=(ops, *rules))
    weights = [
        item for item in _differing(comparison) if item.get("role") == "weight" and is_number(item.get("sqnr_db"))
    ]
    if weights:
        worst = min(weights, key=lambda item: item["sqnr_db"])
        yield Cost(
            key="weights",
            name="Lowest SQNR of weights",
            value=decibels(worst["sqnr_db"]),
            details=(plain(worst.get("op")),),
        )
    evaluation = part(record, "evaluation")
    if is_number(evaluation.get("agreement")):
        examples = f"on {number_of(evaluation.get('compared'), 'example')}"
        yield Cost(key="agreement", name="Agreement", value=percent(evaluation["agreement"]), details=(examples,))


def _subtitle(record: Record) -> str:
    config = part(record, "config")
    settings = part(config, "comparison")
    if settings.get("baseline"):
        return f"{plain(config.get('model'))} against the baseline {plain(settings['baseline'])}"
    paths = (settings.get("reference"), config.get("model"))
    return " · ".join(f"{name}: {plain(path or '?')}" for name, path in zip("AB", paths, strict=True))


def _sections(record: Record) -> list[Section]:
    if "comparison" not in record:
        return [*gate_sections(part(record, "gate")), *provenance_sections(record)]
    comparison = part(record, "comparison")
    sections = [*_outputs(record), *_largest(comparison), *_constants(comparison), *_activations(comparison)]
    changes = [change for item in _records(comparison, "changes") if (change := _change(item))]
    for key, title in PARTS.items():
        rows = _change_rows([change for change in changes if change.part == key])
        if rows:
            table = Table(
                key=key, columns=("what", "A", "B", "where"), rows=tuple(rows), numeric=(False,) * 4, sortable=True
            )
            sections.append(Section(key=key, title=title, tables=(table,), folded=key in FORMAL_PARTS))
    notes = tuple(map(plain, comparison.get("notes") or []))
    if notes:
        sections.append(Section(key="notes", title="Not compared", items=notes, folded=False))
    return [*sections, *provenance_sections(record)]


def _change(item: Record) -> Change | None:
    if not all(isinstance(item.get(key), str) for key in ("part", "where", "what")):
        return None
    return Change(
        part=item["part"],
        where=item["where"],
        what=item["what"],
        reference=item.get("reference"),
        model=item.get("model"),
    )


def _change_rows(changes: Sequence[Change]) -> list[tuple[str, ...]]:
    rows = []
    for (what, *values), places in changed_values(changes, longest=200).items():
        more = len(places) - _MOST_PLACES
        where = ", ".join(map(plain, places[:_MOST_PLACES])) + (f" and {more} more" if more > 0 else "")
        rows.append((plain(what), *(plain(value) if value != "-" else DASH for value in values), where))
    return rows


def _outputs(record: Record) -> Iterator[Section]:
    evaluation = part(record, "evaluation")
    if not evaluation:
        return
    rows = []
    for output in _records(evaluation, "outputs"):
        missing = "; ".join(plain(output[key]) for key in ("sqnr_db_reason", "agreement_reason") if output.get(key))
        rows.append(
            (plain(output.get("name")), decibels(output.get("sqnr_db")), percent(output.get("agreement")), missing)
        )
    table = Table(
        key="outputs",
        columns=("output", "SQNR", "agreement", "missing because"),
        rows=tuple(rows),
        numeric=(False, True, True, False),
    )
    about = (
        f"Both files ran on the same {number_of(evaluation.get('compared'), 'example')}. SQNR is the ratio of A's "
        "output to the difference; agreement is the fraction of examples (of positions, in maps of classes) with the "
        "same class."
    )
    yield Section(
        key="outputs", title="Outputs", paragraphs=(about,), tables=(table, *_metrics(evaluation)), folded=False
    )
    differing = examples_of_pair(evaluation, reference="A", model="B")
    if differing:
        yield dataclasses.replace(differing, folded=False)


def _metrics(evaluation: Record) -> Iterator[Table]:
    """Yield the table of every metric of both files; nothing without labels."""
    try:
        changes = changes_from_reference(evaluation)
        rows = [tuple(map(plain, metric_cells(change))) for change in changes]
    except (KeyError, TypeError, ValueError, AttributeError):
        return
    if rows:
        yield Table(
            key="metrics",
            columns=("metric", "A", "B (95% interval)", "B - A (95% interval)"),
            rows=tuple(rows),
            caption="Metrics against the labels",
            notes=tuple(map(plain, metric_notes(changes))),
        )


def _largest(comparison: Record) -> Iterator[Section]:
    items = {"constants": _drawable(_differing(comparison)), "activations": _records(comparison, "activations")}
    plots = tuple(key for key, values in items.items() if values)
    if plots:
        about = "Weights by SQNR, and activations by the ratio of their scales."
        yield Section(key="largest", title="Largest differences", paragraphs=(about,), plots=plots, folded=False)


def _drawable(items: Sequence[Record]) -> list[Record]:
    """Return the constants that the plot may show: weights and operands that differ in value."""
    return [item for item in items if is_number(item.get("sqnr_db")) and item.get("role") != "bias"]


def _constants(comparison: Record) -> Iterator[Section]:
    items = _differing(comparison)
    if not items:
        return
    total = len(_records(comparison, "constants"))
    about = (
        f"{count(len(items))} of {number_of(total, 'constant')} of matched ops differ. SQNR is the ratio of A's values "
        "to the difference, as real numbers: higher is better, 6 dB more is half the error."
    )
    table = _without_empty_columns(
        key="constants",
        columns=(
            *("op", "input", "A", "B", "SQNR", "worst channel", "largest error", "scale B/A"),
            *("zeros A", "zeros B", "bytes changed", "no SQNR because"),
        ),
        rows=[_constant_row(item) for item in items],
        numeric=(False, False, False, False, *(True,) * 7, False),
    )
    yield Section(
        key="constants", title="Weights and other constants", paragraphs=(about,), tables=(table,), folded=False
    )


def _without_empty_columns(
    key: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> Table:
    """Return a sortable table of the columns that have a value in some row."""
    filled = [place for place in range(len(columns)) if any(row[place] not in ("", DASH) for row in rows)]
    return Table(
        key=key,
        columns=tuple(columns[place] for place in filled),
        rows=tuple(tuple(row[place] for place in filled) for row in rows),
        numeric=tuple(numeric[place] for place in filled),
        sortable=True,
    )


def _constant_row(item: Record) -> tuple[str, ...]:
    stored = [part(item, side) for side in ("reference", "model")]
    worst = item.get("worst_channel")
    return (
        plain(item.get("op")),
        f"{scalar(item.get('input'))} {plain(item.get('role', ''))}",
        *(
            plain(f"{constant.get('dtype', DASH)} {constant.get('granularity', '')}").partition(",")[0]
            for constant in stored
        ),
        decibels(item.get("sqnr_db")),
        DASH if worst is None else f"#{scalar(worst)}: {decibels(item.get('worst_channel_sqnr_db'))}",
        significant(item.get("max_abs_error")),
        significant(item.get("scale_ratio")),
        *(percent(constant.get("sparsity")) for constant in stored),
        count(item.get("changed_bytes")),
        "" if is_number(item.get("sqnr_db")) else plain(item.get("reason") or ""),
    )


def _activations(comparison: Record) -> Iterator[Section]:
    items = _records(comparison, "activations")
    if not items:
        return
    rows = [
        (
            plain(item.get("where")),
            plain(item.get("dtype")),
            *(scalar(item.get(key)) for key in ("reference_scale", "model_scale", "scale_ratio")),
            *(scalar(item.get(key)) for key in ("reference_zero_point", "model_zero_point")),
        )
        for item in items
    ]
    table = Table(
        key="activations",
        columns=("op", "type", "scale A", "scale B", "B/A", "zero point A", "zero point B"),
        rows=tuple(rows),
        numeric=(False, False, *(True,) * 5),
        sortable=True,
    )
    about = (
        "Activations whose scale or zero point differs. A ratio of 2 means that B has half the resolution and "
        "twice the range."
    )
    yield Section(
        key="activations", title="Quantization of activations", paragraphs=(about,), tables=(table,), folded=False
    )


def _plots(record: Record) -> dict[str, Plot]:
    if "comparison" not in record:
        return {}
    comparison = part(record, "comparison")
    return {
        "constants": drawn("SQNR of weights", lambda: _draw_constants(_differing(comparison))),
        "activations": drawn("Scales of activations", lambda: _draw_activations(_records(comparison, "activations"))),
    }


def _draw_constants(items: Sequence[Record]) -> tuple[str, str]:
    """Draw the SQNR of each weight, and of its worst channel."""
    known = _drawable(items)
    if not known:
        return "", "not drawn: no weights differ in value"
    shown = sorted(known, key=lambda item: float(item["sqnr_db"]))[:_MOST_ROWS]
    shown.sort(key=items.index)
    figure, axes = figure_of(0.9 + 0.24 * len(shown))
    for row, item in enumerate(shown):
        axes.barh(row, item["sqnr_db"], height=0.6, color=color_of(_A), label="all channels" if row == 0 else None)
    worst = [
        (item["worst_channel_sqnr_db"], row)
        for row, item in enumerate(shown)
        if is_number(item.get("worst_channel_sqnr_db"))
    ]
    if worst:
        axes.plot(
            *zip(*worst, strict=True), "|", color=color_of(_B), markersize=11, markeredgewidth=2, label="worst channel"
        )
    name_rows(axes, [plain(item.get("layer")) for item in shown])
    axes.set_xlabel("SQNR, dB")
    figure.legend(loc="outside upper left", ncols=2)
    left_out = len(known) - len(shown)
    caption = "SQNR of the weights of each op, lowest first."
    return svg_of(figure, "SQNR of weights"), caption + (
        f" {count(left_out)} better ones are in the table." if left_out else ""
    )


def _draw_activations(items: Sequence[Record]) -> tuple[str, str]:
    """Draw the ratio of the scales on a logarithmic axis."""
    known = [item for item in items if is_number(item.get("scale_ratio")) and item["scale_ratio"] > 0]
    if not known:
        return "", "not drawn: no scales differ"
    shown = known[:_MOST_ROWS]
    figure, axes = figure_of(0.7 + 0.24 * len(shown))
    for row, item in enumerate(shown):
        steps = math.log2(item["scale_ratio"])
        axes.barh(row, steps, height=0.6, color=color_of(_B))
        label_value(axes, max(steps, 0), row, f"{item['scale_ratio']:.3g}")
    name_rows(axes, [plain(item.get("layer")) for item in shown])
    axes.set_xlabel("bits of resolution that B has less than A")
    left_out = len(known) - len(shown)
    caption = "Base-2 logarithm of the ratio of the scales, B to A."
    return svg_of(figure, "Scales of activations"), caption + (
        f" {count(left_out)} smaller ones are in the table." if left_out else ""
    )


COMPARISON = register(
    RecordKind(
        command="compare",
        help="differences between two .tflite files, or between a record and its baseline",
        needs={"comparison": dict, "gate": dict, "requirements": list},
        sections=_sections,
        plots=_plots,
        verdict=_verdict,
        subtitle=_subtitle,
    )
)

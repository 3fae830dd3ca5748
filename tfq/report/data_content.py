# SPDX-License-Identifier: Apache-2.0
"""The section on the data: calibration set, its diagnostics, preprocessing, and use of the input range."""

from collections.abc import Iterator, Sequence

from tfq.report.formatting import DASH, count, is_number, number_of, percent, plain, scalar
from tfq.report.record import Record, Reported, data_notes_of, models_of, part
from tfq.report.tables import Bars, Section, Table, fractions

_MOST_CLASSES = 100
_PREPROCESSING = ("resize", "scale", "offset")


def data_section(record: Record) -> Section:
    """Return what the record has on the examples: findings, classes, preprocessing and use of the input range."""
    stages = record.get("stages") or []
    source = scalar(part(part(record, "config"), "data").get("source"))
    about = [f"Source: {source}."] if source != DASH else []
    about += [f"{note}." for note in data_notes_of(record)]
    tables: list[Table] = []
    diagnosed, gist = False, ""
    for stage in stages:
        details = part(stage, "details")
        diagnostics = part(details, "diagnostics")
        if diagnostics:
            diagnosed = True
            about += _diagnosis(stage, diagnostics)
            gist = f"calibration set: {_gist(diagnostics)}"
            tables += [*_findings(diagnostics), *_classes(diagnostics)]
        elif dataset := part(details, "representative_dataset"):
            about.append(
                f"{plain(stage.get('name', '?'))}: calibrated on {scalar(dataset.get('examples'))} examples of the "
                f"{plain(dataset.get('split'))} split."
            )
    if not diagnosed:
        about.append("The record has no diagnosis of a calibration set.")
    tables += [table for table in (_preprocessing(record, stages), _ranges(models_of(record))) if table]
    return Section(key="data", title="Data", gist=gist, paragraphs=tuple(about), tables=tuple(tables))


def _gist(diagnostics: Record) -> str:
    number, findings = diagnostics.get("num_examples"), diagnostics.get("findings") or []
    result = number_of(len(findings), "possible problem") if findings else "no problem found"
    return f"{count(number)} examples, {result}" if is_number(number) else result


def _diagnosis(stage: Record, diagnostics: Record) -> Iterator[str]:
    """Yield the size of the calibration set, the number of findings, and what was not measured."""
    yield f"{plain(stage.get('name', '?'))}: calibration set: {_gist(diagnostics)}."
    if not diagnostics.get("class_counts"):
        reason = plain(diagnostics.get("class_counts_reason") or "the record has no reason")
        yield f"Class balance: not measured: {reason}."
    noise = part(diagnostics, "noise")
    if "is_noise" in noise:
        word = {True: "yes", False: "no"}.get(noise["is_noise"], "not known")
        reasons = [f"{plain(name)}: {plain(reason)}" for name, reason in noise.items() if name != "is_noise"]
        message = f" ({'; '.join(reasons)})" if reasons else ""
        yield f"Inputs are random noise: {word}{message}."


def _findings(diagnostics: Record) -> list[Table]:
    findings = tuple((plain(finding),) for finding in diagnostics.get("findings") or [])
    if not findings:
        return []
    caption = "Possible problems of the calibration set"
    return [Table(key="diagnostics", columns=("possible problem",), rows=findings, caption=caption)]


def _classes(diagnostics: Record) -> list[Table]:
    counts = {plain(label): number for label, number in part(diagnostics, "class_counts").items() if is_number(number)}
    if not counts:
        return []
    total = sum(counts.values()) or 1
    shown = list(counts.items())[:_MOST_CLASSES]
    notes = (
        [f"the first {len(shown)} of {len(counts)} classes; all are in report.json"] if len(shown) < len(counts) else []
    )
    return [
        Table(
            key="classes",
            columns=("class", "examples", "fraction"),
            rows=tuple((label, count(number), percent(number / total)) for label, number in shown),
            caption="Classes of the calibration set",
            bars=(
                Bars(
                    before=1,
                    title="",
                    rows=tuple((value,) for value in fractions([float(number) for _, number in shown])),
                    series=(0,),
                ),
            ),
            notes=tuple(notes),
            sortable=len(shown) > 20,
        )
    ]


def _preprocessing(record: Record, stages: Sequence[Record]) -> Table | None:
    """Return the preprocessing of each stage next to that of the evaluation: they must be the same."""
    config = part(part(record, "config"), "data")
    evaluated = {key: config[key] for key in _PREPROCESSING if key in config}
    rows = []
    for stage in stages:
        recorded = part(part(stage, "details"), "preprocessing")
        if recorded:
            same = all(recorded.get(key) == value for key, value in evaluated.items())
            message = "the same as in the evaluation" if same else "not the same as in the evaluation"
            rows.append(
                (plain(stage.get("name", "?")), *(scalar(recorded.get(key)) for key in _PREPROCESSING), message)
            )
    if not rows:
        return None
    if evaluated:
        rows.append(("evaluation", *(scalar(evaluated.get(key)) for key in _PREPROCESSING), ""))
    return Table(
        key="preprocessing",
        columns=("stage", *_PREPROCESSING, "comparison"),
        rows=tuple(rows),
        numeric=(False, True, True, True, False),
        caption="Preprocessing: the model's input is x * scale + offset",
        bad=frozenset((row, 4) for row, cells in enumerate(rows) if cells[4].startswith("not")),
        totals=bool(evaluated),
    )


def _ranges(models: Sequence[Reported]) -> Table | None:
    keys = ("clipped_input_fraction", "unused_range_fraction")
    known = [model for model in models if any(is_number(model.evaluation.get(key)) for key in keys)]
    if not known:
        return None
    return Table(
        key="ranges",
        columns=("model", "input values clipped", "input range unused"),
        rows=tuple((model.label, *(percent(model.evaluation.get(key)) for key in keys)) for model in known),
        caption="Test inputs and the range of the model's quantized inputs",
        row_series=tuple(model.series for model in known),
        notes=(
            "clipped: values outside the range, which the model receives as the nearest value in it. unused: the part "
            "of the range that no test input reaches; a smaller range would be more precise.",
        ),
    )

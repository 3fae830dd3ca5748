# SPDX-License-Identifier: Apache-2.0
"""The report's section on the data: what calibrated, what the diagnostics found, how the inputs fill the range."""

from collections.abc import Iterator, Sequence

from tfq.report.formatting import DASH, count, is_number, number_of, percent, plain, scalar
from tfq.report.summary import Record, Reported, models_of, part
from tfq.report.tables import Bars, Section, Table, fractions

_MOST_CLASSES = 100
_PREPROCESSING = ("resize", "scale", "offset")


def data_section(record: Record) -> Section:
    """What is known of the examples: findings in plain words, classes, preprocessing, share of the range."""
    stages = record.get("stages") or []
    source = scalar(part(part(record, "config"), "data").get("source"))
    about = [f"Examples from {source}."] if source != DASH else []
    tables: list[Table] = []
    diagnosed = False
    for stage in stages:
        details = part(stage, "details")
        diagnostics = part(details, "diagnostics")
        if diagnostics:
            diagnosed = True
            about += _told(stage, diagnostics)
            tables += [*_findings(diagnostics), *_classes(diagnostics)]
        elif dataset := part(details, "representative_dataset"):
            about.append(f"{plain(stage.get('name', '?'))}: calibrated on {scalar(dict(dataset))}.")
    if not diagnosed:
        about.append("The calibration set was not diagnosed: the record has nothing on it.")
    tables += [table for table in (_preprocessing(record, stages), _ranges(models_of(record))) if table]
    return Section(key="data", title="Data", paragraphs=tuple(about), tables=tuple(tables))


def _told(stage: Record, diagnostics: Record) -> Iterator[str]:
    """How many calibrate, whether anything stands out, whether they are noise; and what was not measured."""
    number, findings = diagnostics.get("num_examples"), diagnostics.get("findings") or []
    what = f"{count(number)} calibration examples" if is_number(number) else "the calibration examples"
    stands_out = number_of(len(findings), "finding") if findings else "nothing stands out"
    yield f"{plain(stage.get('name', '?'))}: {what}, {stands_out}."
    if not diagnostics.get("class_counts"):
        reason = plain(diagnostics.get("class_counts_reason") or "the record does not say why")
        yield f"Class balance not measured: {reason}."
    noise = part(diagnostics, "noise")
    if "is_noise" in noise:
        word = {True: "yes", False: "no"}.get(noise["is_noise"], "cannot be told")
        reasons = [f"{plain(name)}: {plain(reason)}" for name, reason in noise.items() if name != "is_noise"]
        message = f" ({'; '.join(reasons)})" if reasons else ""
        yield f"Random noise: {word}{message}."


def _findings(diagnostics: Record) -> list[Table]:
    findings = tuple((plain(finding),) for finding in diagnostics.get("findings") or [])
    if not findings:
        return []
    return [Table(columns=("what stands out",), rows=findings, caption="Findings in the calibration set")]


def _classes(diagnostics: Record) -> list[Table]:
    counts = {plain(label): number for label, number in part(diagnostics, "class_counts").items() if is_number(number)}
    if not counts:
        return []
    total = sum(counts.values()) or 1
    shown = list(counts.items())[:_MOST_CLASSES]
    notes = (
        [f"the first {len(shown)} of {len(counts)} classes: report.json has all"] if len(shown) < len(counts) else []
    )
    return [
        Table(
            columns=("class", "examples", "share"),
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
    """What each stage recorded, beside what the config has evaluate feed: the two must be the same."""
    config = part(part(record, "config"), "data")
    fed = {key: config[key] for key in _PREPROCESSING if key in config}
    rows = []
    for stage in stages:
        recorded = part(part(stage, "details"), "preprocessing")
        if recorded:
            same = all(recorded.get(key) == value for key, value in fed.items())
            message = "the same as fed" if same else "not what evaluate feeds"
            rows.append(
                (plain(stage.get("name", "?")), *(scalar(recorded.get(key)) for key in _PREPROCESSING), message)
            )
    if not rows:
        return None
    if fed:
        rows.append(("fed by evaluate", *(scalar(fed.get(key)) for key in _PREPROCESSING), ""))
    return Table(
        columns=("stage", *_PREPROCESSING, "recorded"),
        rows=tuple(rows),
        numeric=(False, True, True, True, False),
        caption="Preprocessing: the model sees x * scale + offset",
        bad=frozenset((row, 4) for row, cells in enumerate(rows) if cells[4].startswith("not")),
        totals=bool(fed),
    )


def _ranges(models: Sequence[Reported]) -> Table | None:
    keys = ("clipped_input_fraction", "unused_range_fraction")
    known = [model for model in models if any(is_number(model.evaluation.get(key)) for key in keys)]
    if not known:
        return None
    return Table(
        columns=("model", "input values clipped", "input range unused"),
        rows=tuple((model.label, *(percent(model.evaluation.get(key)) for key in keys)) for model in known),
        caption="Test inputs against the range of the model's input codes",
        row_series=tuple(model.series for model in known),
        notes=(
            "clipped: beyond the range, so the model sees another value; unused: codes that no test input needs, which "
            "is precision given away",
        ),
    )

# SPDX-License-Identifier: Apache-2.0
"""The sections of a report, built from the record of a run, for Markdown and HTML alike."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tfq.report.audit_content import audit_section, layers_section
from tfq.report.bundle_content import bundle_section
from tfq.report.class_content import classes_section
from tfq.report.compression_content import (
    compression_tables,
    gain_section,
    qat_parity_section,
    training_section,
    verification_section,
)
from tfq.report.data_content import data_section
from tfq.report.examples_content import examples_section
from tfq.report.formatting import (
    DASH,
    NO_INTERVAL,
    change_text,
    count,
    decibels,
    is_number,
    kilobytes,
    metric_title,
    number_of,
    paired_interval_text,
    percent,
    plain,
    scalar,
    seconds,
    with_interval,
)
from tfq.report.io_content import io_section
from tfq.report.kinds import RecordKind, kind_of, register
from tfq.report.latency_content import instructions_section, kernels_text, latency_section
from tfq.report.metric_content import confusion_section, metrics_section
from tfq.report.plots import plots_of
from tfq.report.portability_content import portability_section
from tfq.report.record import Record, Reported, models_of, part, reference_of, stages_of
from tfq.report.robustness_content import robustness_plots, robustness_section
from tfq.report.summary import delegated_text, summary_of
from tfq.report.tables import Bars, Reasons, Section, Table, fractions
from tfq.report.verdict import verdict_of_run

# Details of stages that other sections show.
_SHOWN_ELSEWHERE = (
    *("sparsity", "history", "diagnostics", "preprocessing", "verification", "data_notes"),
    "recurrent_layers",
    *("bridge", "preflight", "structured_pruning", "pruning_plan", "clustering_plan"),
)


def sections_of(record: Record) -> list[Section]:
    """Return the report after its verdict and warnings, in order."""
    sections: list[Section | None] = [
        result_section(record),
        evaluation_section(record),
        metrics_section(record),
        classes_section(record),
        confusion_section(record),
        examples_section(record),
        robustness_section(record),
        latency_section(record),
        training_section(record),
        gain_section(record),
        instructions_section(record),
        portability_section(record),
        verification_section(record),
        qat_parity_section(record),
        audit_section(record),
        io_section(record),
        layers_section(record),
        data_section(record),
        bundle_section(record),
        stages_section(record),
        *provenance_sections(record),
    ]
    return [section for section in sections if section is not None]


def result_section(record: Record) -> Section:
    """Return the section with the Result table and the main plots."""
    models = models_of(record)
    plots = ["accuracy", "size", "latency"]
    plots += ["training"] if training_section(record) else []
    counts = [part(model.instructions, name) for model in models for name in model.instructions]
    plots += ["instructions"] if any(is_number(item.get("instructions")) for item in counts) else []
    return Section(key="result", title="Result", tables=(summary_of(record),), plots=tuple(plots), folded=False)


def subtitle_of(record: Record) -> str:
    """Return the data, the seed and the CPU of a record on one line."""
    config, cpu = part(record, "config"), part(record, "cpu")
    source = config.get("data")
    source = source.get("source") if isinstance(source, Mapping) else source
    parts = [
        f"data {plain(source)}" if source else "",
        f"seed {plain(record['seed'])}" if record.get("seed") is not None else "",
        plain(cpu.get("model") or cpu.get("machine") or ""),
    ]
    return " · ".join(item for item in parts if item)


RUN = register(
    RecordKind(
        command="run",
        help="a whole run: train or load, compress, convert, audit, evaluate, benchmark",
        needs={"models": list, "stages": list},
        stem="report",
        sections=sections_of,
        plots=lambda record: {**plots_of(record), **robustness_plots(record)},
        verdict=verdict_of_run,
        subtitle=subtitle_of,
    )
)


def stages_section(record: Record) -> Section:
    """Return what each stage did and how long it took, which stages were reused, and why others were skipped."""
    stages = stages_of(record)
    if not stages:
        return Section(key="stages", title="Stages", paragraphs=("The record has no stages.",))
    rows = tuple(
        (
            plain(stage.get("name", "?")),
            "skipped" if stage.get("skipped") else seconds(stage.get("seconds")),
            _remark(stage),
        )
        for stage in stages
    )
    times = [_duration(stage) for stage in stages]
    resumed = sum(bool(stage.get("resumed")) for stage in stages)
    total = seconds(sum(time for time in times if time is not None))
    about = f"{total} in total."
    if resumed:
        about += (
            f" {number_of(resumed, 'stage')} had the same inputs as in an earlier run and "
            f"{'was' if resumed == 1 else 'were'} reused; the time is that of the earlier run."
        )
    table = Table(
        key="stages",
        columns=("stage", "time", "details"),
        rows=rows,
        numeric=(False, True, False),
        bars=(Bars(before=1, title="", rows=tuple((value,) for value in fractions(times)), series=(0,)),),
    )
    skipped = sum(bool(stage.get("skipped")) for stage in stages)
    gist = f"{number_of(len(stages) - skipped, 'stage')}, {total}{f'; {skipped} not run' if skipped else ''}"
    tables = (table, *compression_tables(stages))
    return Section(key="stages", title="Stages of the run", gist=gist, paragraphs=(about,), tables=tables)


def _duration(stage: Record) -> float | None:
    value = stage.get("seconds")
    return value if is_number(value) and not stage.get("skipped") else None


def _remark(stage: Record) -> str:
    if stage.get("skipped"):
        return f"not run: {plain(stage['skipped'])}"
    message = ["reused from an earlier run"] if stage.get("resumed") else []
    message += [
        f"{plain(key).replace('_', ' ')}: {scalar(value)}"
        for key, value in part(stage, "details").items()
        if key not in _SHOWN_ELSEWHERE and value not in (None, {}, [])
    ]
    return "; ".join(message)


def provenance_sections(record: Record) -> list[Section]:
    """Return versions, machine and hashes, and the config from which the run can be repeated."""
    cpu = part(record, "cpu")
    facts = {
        "seed": scalar(record.get("seed")),
        "CPU": plain(cpu.get("model") or DASH),
        "architecture": " ".join(map(plain, [cpu.get("machine") or DASH, *(cpu.get("isa") or [])])),
        "Python": scalar(record.get("python")),
        **{plain(name): scalar(version) for name, version in part(record, "packages").items()},
        "git commit": scalar(record.get("git_commit")),
        "schema version": scalar(record.get("schema_version")),
    }
    hashes = {"config": scalar(record.get("config_hash"))}
    sha256 = part(record, "sha256")
    if sha256.get("model"):
        hashes["input model"] = scalar(sha256["model"])
    hashes |= {f"data, {plain(split)}": scalar(value) for split, value in part(sha256, "data").items()}
    for model in models_of(record):
        if model.sha256.get("model"):
            hashes[plain(model.file or model.name)] = scalar(model.sha256["model"])
    text_columns = (False, False)
    tables = (
        Table(key="versions", columns=("what", "value"), rows=tuple(facts.items()), numeric=text_columns),
        Table(key="hashes", columns=("file or data", "SHA-256"), rows=tuple(hashes.items()), numeric=text_columns),
    )
    config = json.dumps(record.get("config") or {}, indent=2)
    command = plain(record.get("command") or "run")
    file = kind_of(record).file
    repeat = (
        f"To repeat the {'run' if command == 'run' else 'command'}, pass {file} to tfq {command} as its config, with "
        "another folder for the output."
    )
    return [
        Section(key="provenance", title="Versions and hashes", tables=tables),
        Section(
            key="configuration", title="Configuration", paragraphs=(repeat,), code=config, code_title="All settings"
        ),
    ]


def evaluation_section(record: Record) -> Section:
    """Return the accuracy and size of each model: a row for each quantity, a column for each model."""
    title, key = "Accuracy and size", "accuracy"
    models = [model for model in models_of(record) if model.evaluation]
    if not models:
        return Section(key=key, title=title, paragraphs=("No model was evaluated.",))
    reference_model = reference_of(models)
    reference = reference_model.evaluation if reference_model else {}
    reasons, rows = Reasons(), []
    for quantity, show, reason_key in (*_QUANTITIES[:1], *_score_rows(models), *_QUANTITIES[1:]):
        cells = [show(model.evaluation, reference) for model in models]
        for model, cell in zip(models, cells, strict=True):
            if cell == DASH and reason_key:
                reasons.add(quantity, model.label, plain(model.evaluation.get(reason_key) or ""))
        if any(cell != DASH for cell in cells) or reason_key:
            rows.append((quantity, *cells))
    covered = {reason_key.removesuffix("_reason") for _, _, reason_key in _QUANTITIES}
    skipped = [
        f"{model.label}: {plain(name).replace('_', ' ')} not measured: {plain(reason)}"
        for model in models
        for name, reason in (model.evaluation.get("skipped") or {}).items()
        if name not in covered
    ]
    table = Table(
        key="evaluation",
        columns=("", *(model.label for model in models)),
        rows=tuple(rows),
        notes=(*reasons.notes(), *skipped),
        column_series={1 + column: model.series for column, model in enumerate(models)},
    )
    about = (
        "Accuracy compares with the labels; the interval in parentheses has 95% confidence. Agreement is the fraction "
        "of examples (of positions, in maps of classes) for which the float model predicts the same class. The "
        "interval of a difference is paired: both models saw the same examples."
    )
    tables = (table, *_output_tables(models))
    gist = "all numbers, with intervals"
    return Section(key=key, title=title, gist=gist, paragraphs=(about,), tables=tables)


def _output_tables(models: list[Reported]) -> list[Table]:
    """Return a table that compares each output with the reference's, if a model has several outputs."""
    if all(len(model.evaluation.get("outputs") or []) < 2 for model in models):
        return []
    rows, series, reasons = [], [], Reasons()
    for model in models:
        for output in model.evaluation.get("outputs") or []:
            name = plain(output.get("name"))
            cells = {"agreement": percent(output.get("agreement")), "SQNR": decibels(output.get("sqnr_db"))}
            for (what, cell), key in zip(cells.items(), ("agreement_reason", "sqnr_db_reason"), strict=True):
                if cell == DASH:
                    reasons.add(f"{what} of {name}", model.label, plain(output.get(key) or ""))
            rows.append((model.label, name, *cells.values()))
            series.append(model.series)
    return [
        Table(
            key="outputs",
            columns=("model", "output", "agreement with float", "SQNR"),
            rows=tuple(rows),
            numeric=(False, False, True, True),
            notes=tuple(reasons.notes()),
            row_series=tuple(series),
        )
    ]


_Quantity = tuple[str, Callable[[Record, Record], str], str]


def _score_rows(models: list[Reported]) -> list[_Quantity]:
    """Return a row for each score that is reported next to the metric itself, such as top-5."""
    metrics = {model.evaluation.get("metric") for model in models}
    owners = {name: model.evaluation for model in models for name in model.evaluation.get("scores") or {}}

    def show(name: str) -> Callable[[Record, Record], str]:
        return lambda evaluation, reference: with_interval(evaluation, name)

    return [(metric_title(owner, name), show(name), "") for name, owner in owners.items() if name not in metrics]


def _of(key: str, show: Callable[[Any], str]) -> Callable[[Record, Record], str]:
    return lambda evaluation, reference: show(evaluation.get(key))


def _size_ratio(evaluation: Record, reference: Record) -> str:
    ours, theirs = evaluation.get("gzip_bytes"), reference.get("gzip_bytes")
    return f"{theirs / ours:.2f}x" if is_number(ours) and is_number(theirs) and ours else DASH


def _change(evaluation: Record, reference: Record) -> str:
    text, paired = change_text(evaluation, reference), paired_interval_text(evaluation)
    if text == DASH or evaluation is reference:
        return text
    return f"{text} ({paired if paired == NO_INTERVAL else f'95%: {paired}'})"


# (name, function that formats it, key of the reason for a missing value; "" omits the row if no model has a value)
_QUANTITIES: tuple[_Quantity, ...] = (
    ("accuracy", lambda evaluation, reference: with_interval(evaluation), "accuracy_reason"),
    (
        "metric",
        lambda evaluation, reference: metric_title(evaluation) if evaluation.get("metric") else DASH,
        "",
    ),
    ("accuracy minus float's", _change, ""),
    ("agreement with float", _of("agreement", percent), "agreement_reason"),
    ("output SQNR", _of("output_sqnr_db", decibels), "output_sqnr_db_reason"),
    ("test examples", _of("num_examples", count), ""),
    ("compared with float", _of("compared", count), ""),
    ("requested but not in the data", _of("missing", lambda number: count(number) if number else DASH), ""),
    ("file", _of("model_bytes", kilobytes), ""),
    ("file, gzip", _of("gzip_bytes", kilobytes), ""),
    ("smaller than float, gzip", _size_ratio, ""),
    ("backend", _of("backend", scalar), ""),
    ("kernels", lambda evaluation, reference: kernels_text(evaluation), ""),
    ("ops that XNNPACK runs", lambda evaluation, reference: delegated_text(evaluation), ""),
)

# SPDX-License-Identifier: Apache-2.0
"""The sections of a report, built from the record of a run, for Markdown and HTML alike."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfq.report.audit_content import audit_section
from tfq.report.compression_content import compression_tables, gain_section, qat_parity_section, verification_section
from tfq.report.data_content import data_section
from tfq.report.formatting import (
    DASH,
    accuracy_text,
    change_text,
    count,
    cpu_label,
    decibels,
    is_number,
    kilobytes,
    metric_word,
    number_of,
    percent,
    plain,
    scalar,
    score_text,
    seconds,
    significant,
)
from tfq.report.latency_content import instructions_section, kernels_text, latency_section
from tfq.report.layers_content import layers_section
from tfq.report.summary import (
    Record,
    Reported,
    backends_of,
    delegated_text,
    emulation_notes,
    models_of,
    parity_text,
    part,
    reference_of,
    summary_of,
)
from tfq.report.tables import Bars, Reasons, Section, Table, fractions

# What has a section or a table of its own.
_TOLD_ELSEWHERE = (
    *("sparsity", "history", "diagnostics", "preprocessing"),
    *("bridge", "preflight", "structured_pruning", "pruning_plan"),
)


def stages_section(record: Record) -> Section:
    """What was done, for how long, what was taken from an earlier run, and what was skipped and why."""
    stages = [stage for stage in record.get("stages") or [] if isinstance(stage, Mapping)]
    if not stages:
        return Section(key="stages", title="Stages", paragraphs=("The record holds no stages.",))
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
    about = f"{seconds(sum(time for time in times if time is not None))} in all."
    if resumed:
        about += (
            f" {number_of(resumed, 'stage')} of an earlier run came from the same inputs, and "
            f"{'was' if resumed == 1 else 'were'} not run again; the time is what it took then."
        )
    table = Table(
        columns=("stage", "time", "details"),
        rows=rows,
        numeric=(False, True, False),
        bars=(Bars(before=1, title="", rows=tuple((value,) for value in fractions(times)), series=(0,)),),
    )
    more = [item for item in (_training(stages), *compression_tables(stages)) if item]
    return Section(key="stages", title="Stages", paragraphs=(about,), tables=(table, *more))


def _duration(stage: Record) -> float | None:
    value = stage.get("seconds")
    return value if is_number(value) and not stage.get("skipped") else None


def _remark(stage: Record) -> str:
    if stage.get("skipped"):
        return plain(stage["skipped"])
    message = ["taken from an earlier run"] if stage.get("resumed") else []
    details = part(stage, "details").items()
    message += [
        f"{plain(key)}: {scalar(value)}" for key, value in details if key not in _TOLD_ELSEWHERE and value is not None
    ]
    return "; ".join(message)


def _training(stages: Sequence[Record]) -> Table | None:
    """First and last value of every curve."""
    rows = []
    for name, history in _histories(stages):
        curves = {key: values for key, values in history.items() if isinstance(values, list) and values}
        epochs = max((len(values) for values in curves.values()), default=0)
        known = ("loss", "accuracy", "val_loss", "val_accuracy")
        if not any(key in curves for key in known):
            continue
        rows.append((name, count(epochs), *(_ends(key, curves.get(key)) for key in known)))
    if not rows:
        return None
    losses = dict.fromkeys(plain(item["loss_function"]) for _, item in _histories(stages) if item.get("loss_function"))
    return Table(
        columns=("training", "epochs", "loss", "accuracy", "validation loss", "validation accuracy"),
        rows=tuple(rows),
        caption="Training, the first epoch and the last",
        notes=tuple(f"loss: {loss}" for loss in losses),
    )


def _ends(curve: str, values: list | None) -> str:
    if not values:
        return DASH
    ends = [values[0], values[-1]] if len(values) > 1 else values
    return " → ".join(map(percent if curve.endswith("accuracy") else scalar, ends))


def _histories(stages: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    for stage in stages:
        history = part(part(stage, "details"), "history")
        steps = {step: curves for step, curves in history.items() if isinstance(curves, Mapping)}
        if steps:
            yield from ((plain(step), curves) for step, curves in steps.items())
        elif history:
            yield plain(stage.get("name", "?")), history


def provenance_sections(record: Record) -> list[Section]:
    """Versions, machine, hashes; and the whole config, from which the run can be replayed."""
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
        hashes["model given"] = scalar(sha256["model"])
    hashes |= {f"data, {plain(split)}": scalar(value) for split, value in part(sha256, "data").items()}
    for model in models_of(record):
        if model.sha256.get("model"):
            hashes[plain(model.file or model.name)] = scalar(model.sha256["model"])
    text_columns = (False, False)
    tables = (
        Table(columns=("what", "value"), rows=tuple(facts.items()), numeric=text_columns),
        Table(columns=("of", "SHA-256"), rows=tuple(hashes.items()), numeric=text_columns),
    )
    config = json.dumps(record.get("config") or {}, indent=2)
    replay = "The same run again: give this report.json to tfq run as its config, and another directory as out"
    return [
        Section(key="provenance", title="Provenance", tables=tables),
        Section(
            key="configuration",
            title="Configuration",
            paragraphs=(replay,),
            code=config,
            code_title="The whole configuration",
        ),
    ]


def sections_of(record: Record) -> list[Section]:
    """The report after its verdict and warnings, in order."""
    sections: list[Section | None] = [
        Section(key="result", title="Result", tables=(summary_of(record),)),
        evaluation_section(record),
        latency_section(record),
        instructions_section(record),
        parity_section(record),
        verification_section(record),
        qat_parity_section(record),
        gain_section(record),
        audit_section(record),
        layers_section(record),
        data_section(record),
        stages_section(record),
        *provenance_sections(record),
    ]
    return [section for section in sections if section is not None]


def evaluation_section(record: Record) -> Section:
    """What the outputs are worth and what the files weigh: a row a quantity, a column a model."""
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
    skipped = [
        f"{model.label}: skipped {plain(name)}: {plain(reason)}"
        for model in models
        for name, reason in (model.evaluation.get("skipped") or {}).items()
    ]
    table = Table(
        columns=("", *(model.label for model in models)),
        rows=tuple(rows),
        notes=(*reasons.notes(), *skipped),
        column_series={1 + column: model.series for column, model in enumerate(models)},
    )
    about = (
        "Accuracy is against the labels; agreement is the fraction of examples with the float model's class, for "
        "outputs that say one."
    )
    tables = (table, *_output_tables(models))
    return Section(key=key, title=title, paragraphs=(about,), tables=tables, plots=("accuracy", "size"))


def _output_tables(models: list[Reported]) -> list[Table]:
    """Return a table of every output against the reference's, if a model has several."""
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
            columns=("model", "output", "agreement with float", "SQNR"),
            rows=tuple(rows),
            numeric=(False, False, True, True),
            notes=tuple(reasons.notes()),
            row_series=tuple(series),
        )
    ]


_Quantity = tuple[str, Callable[[Record, Record], str], str]


def _score_rows(models: list[Any]) -> list[_Quantity]:
    """A row for each score that is reported next to the metric itself, such as top-5."""
    metrics = {model.evaluation.get("metric") for model in models}
    owners = {name: model.evaluation for model in models for name in model.evaluation.get("scores") or {}}

    def show(name: str) -> Callable[[Record, Record], str]:
        return lambda evaluation, reference: score_text(evaluation, (evaluation.get("scores") or {}).get(name), name)

    return [(metric_word(owner, name), show(name), "") for name, owner in owners.items() if name not in metrics]


def _of(key: str, show: Callable[[Any], str]) -> Callable[[Record, Record], str]:
    return lambda evaluation, reference: show(evaluation.get(key))


def _size_ratio(evaluation: Record, reference: Record) -> str:
    ours, theirs = evaluation.get("gzip_bytes"), reference.get("gzip_bytes")
    return f"{theirs / ours:.2f}x" if is_number(ours) and is_number(theirs) and ours else DASH


# (what it is called, how it is shown, where the record says why it is missing; "" leaves out a row without values)
_QUANTITIES: tuple[_Quantity, ...] = (
    ("accuracy", lambda evaluation, reference: accuracy_text(evaluation), "accuracy_reason"),
    (
        "metric",
        lambda evaluation, reference: metric_word(evaluation) if evaluation.get("metric") else DASH,
        "",
    ),
    ("accuracy minus float's", change_text, ""),
    ("agreement with float", _of("agreement", percent), "agreement_reason"),
    ("output SQNR", _of("output_sqnr_db", decibels), "output_sqnr_db_reason"),
    ("examples", _of("num_examples", count), ""),
    ("examples compared", _of("compared", count), ""),
    ("missing", _of("missing", scalar), ""),
    ("file", _of("model_bytes", kilobytes), ""),
    ("file, gzip", _of("gzip_bytes", kilobytes), ""),
    ("smaller than float, gzip", _size_ratio, ""),
    ("backend", _of("backend", scalar), ""),
    ("kernels", lambda evaluation, reference: kernels_text(evaluation), ""),
    ("ops delegated to XNNPACK", lambda evaluation, reference: delegated_text(evaluation), ""),
)


def parity_section(record: Record) -> Section:
    """The comparison between backends: a row a model and backend."""
    models = models_of(record)
    backends = backends_of(models, "parity")
    rows: list[tuple[str, ...]] = []
    series: list[int | None] = []
    reasons, skipped = Reasons(), []
    for model in models:
        for backend, parity in model.parity.items():
            series.append(model.series)
            if "not_run" in parity:
                reasons.add(cpu_label(backend), model.label, f"not run: {plain(parity['not_run'])}")
                rows.append((model.label, plain(backend), "not run", DASH, DASH, DASH))
                continue
            numbers = (count(parity.get(key)) for key in ("num_different", "compared", "num_examples"))
            error = parity.get("max_abs_error_lsb")
            largest = f"{significant(error)} LSB" if is_number(error) else parity_text(parity)
            rows.append((model.label, plain(backend), largest, *numbers))
            if parity.get("skipped"):
                skipped.append(f"{model.label} on {plain(backend)}: skipped {scalar(parity['skipped'])}")
    title = "Parity between backends"
    if not rows:
        return Section(key="parity", title=title, paragraphs=("No other backend was asked for.",))
    table = Table(
        columns=("model", "backend", "largest difference", "values that differ", "values compared", "examples"),
        rows=tuple(rows),
        numeric=(False, False, True, True, True, True),
        notes=(*reasons.notes(), *skipped),
        row_series=tuple(series),
    )
    about = (
        "The same inputs on another backend, output codes compared one by one with this machine's; 1 LSB is one code."
    )
    emulated = (f"{note}." for note in emulation_notes(backends))
    return Section(key="parity", title=title, paragraphs=(about, *emulated), tables=(table,))

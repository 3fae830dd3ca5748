# SPDX-License-Identifier: Apache-2.0
"""The sections of a report, from the record of a run: what Markdown and HTML both show."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tfq.report.audit_content import REFERENCE, audit_section
from tfq.report.formatting import (
    DASH,
    count,
    is_number,
    kilobytes,
    model_label,
    percent,
    plain,
    points,
    scalar,
    seconds,
    significant,
)
from tfq.report.summary import (
    NEVER_A_LATENCY,
    accuracy_text,
    delegated_text,
    evaluation_of,
    is_share,
    parity_runners,
    parity_text,
    summary_of,
)
from tfq.report.tables import Reasons, Section, Table

Record = Mapping[str, Any]


def title_of(record: Record) -> str:
    """The heading: "tfq run: digits_cnn"."""
    model = plain((record.get("config") or {}).get("model") or "a model").rstrip("/").rpartition("/")[2]
    return f"tfq {plain(record.get('script', 'run'))}: {model}"


def warnings_of(record: Record) -> list[str]:
    """Every warning of the run once: its own, then those of each evaluation, with the model's label."""
    told = [plain(warning) for warning in record.get("warnings") or []]
    for model in record.get("models") or []:
        for warning in evaluation_of(model).get("warnings") or []:
            if plain(warning) not in told:
                told.append(f"{model_label(model.get('name', '?'))}: {plain(warning)}")
    return list(dict.fromkeys(told))


def sections_of(record: Record) -> list[Section]:
    """The report after its warnings, in order."""
    return [
        Section(title="Result", tables=(summary_of(record),)),
        evaluation_section(record),
        parity_section(record),
        audit_section(record),
        sparsity_section(record),
        stages_section(record),
        *provenance_sections(record),
    ]


def evaluation_section(record: Record) -> Section:
    """Every number of every evaluation: a row a quantity, a column a model."""
    models = [model for model in record.get("models") or [] if evaluation_of(model)]
    if not models:
        return Section(title="Evaluation", paragraphs=("No model was evaluated.",))
    labels = tuple(model_label(model.get("name", "?")) for model in models)
    evaluations = [evaluation_of(model) for model in models]
    reference = next((e for label, e in zip(labels, evaluations, strict=True) if label == REFERENCE), {})
    reasons = Reasons()
    rows = []
    for quantity, show, reason_key in _QUANTITIES:
        cells = [show(evaluation, reference) for evaluation in evaluations]
        for label, cell, evaluation in zip(labels, cells, evaluations, strict=True):
            if cell == DASH and reason_key:
                reasons.add(quantity, label, plain(evaluation.get(reason_key) or ""))
        if any(cell != DASH for cell in cells) or reason_key:
            rows.append((quantity, *cells))
    skipped = [
        f"{label}: skipped {plain(name)}: {plain(reason)}"
        for label, evaluation in zip(labels, evaluations, strict=True)
        for name, reason in (evaluation.get("skipped") or {}).items()
    ]
    table = Table(columns=("", *labels), rows=tuple(rows), notes=(*reasons.notes(), *skipped))
    about = "Accuracy is against the labels; agreement is the share of examples with the float model's own answer."
    return Section(title="Evaluation", paragraphs=(about,), tables=(table,))


def _of(key: str, show: Callable[[Any], str]) -> Callable[[Record, Record], str]:
    return lambda evaluation, reference: show(evaluation.get(key))


def _accuracy_change(evaluation: Record, reference: Record) -> str:
    ours, theirs = evaluation.get("accuracy"), evaluation.get("reference_accuracy", reference.get("accuracy"))
    if not (is_number(ours) and is_number(theirs)):
        return DASH
    return f"{points(ours - theirs)} points" if is_share(evaluation) else f"{ours - theirs:+.4g}".replace("-", "−")


def _size_ratio(evaluation: Record, reference: Record) -> str:
    ours, theirs = evaluation.get("gzip_bytes"), reference.get("gzip_bytes")
    return f"{theirs / ours:.2f}x" if is_number(ours) and is_number(theirs) and ours else DASH


def _decibels(value: Any) -> str:
    return f"{value:.1f} dB" if is_number(value) else DASH


def _milliseconds(value: Any) -> str:
    return f"{significant(value)} ms" if is_number(value) else DASH


def _kernels(value: Any) -> str:
    return DASH if value is None else "XNNPACK" if value else "builtin"


# (what it is called, how it is shown, where the record says why it is missing; "" leaves out a row without values)
_QUANTITIES: tuple[tuple[str, Callable[[Record, Record], str], str], ...] = (
    ("accuracy", lambda evaluation, reference: accuracy_text(evaluation), "accuracy_reason"),
    ("metric", _of("metric", scalar), ""),
    ("accuracy minus float's", _accuracy_change, ""),
    ("agreement with float", _of("agreement", percent), "agreement_reason"),
    ("output SQNR", _of("output_sqnr_db", _decibels), "output_sqnr_db_reason"),
    ("examples", _of("num_examples", count), ""),
    ("examples compared", _of("compared", count), ""),
    ("missing", _of("missing", scalar), ""),
    ("file", _of("model_bytes", kilobytes), ""),
    ("file, gzip", _of("gzip_bytes", kilobytes), ""),
    ("smaller than float, gzip", _size_ratio, ""),
    ("latency p50", _of("latency_p50_ms", _milliseconds), "latency_reason"),
    ("latency p90", _of("latency_p90_ms", _milliseconds), ""),
    ("latency p99", _of("latency_p99_ms", _milliseconds), ""),
    ("threads", _of("num_threads", scalar), ""),
    ("runner", _of("runner", scalar), ""),
    ("kernels", _of("xnnpack", _kernels), ""),
    ("ops delegated to XNNPACK", lambda evaluation, reference: delegated_text(evaluation), ""),
    ("input values clipped", _of("clipped_input_share", percent), ""),
    ("input range unused", _of("unused_range_share", percent), ""),
)


def parity_section(record: Record) -> Section:
    """The comparison between runners: a row a model and runner."""
    models = record.get("models") or []
    runners = parity_runners(models)
    rows: list[tuple[str, ...]] = []
    reasons, skipped = Reasons(), []
    for model in models:
        label = model_label(model.get("name", "?"))
        for runner, parity in (model.get("parity") or {}).items():
            if "not_run" in parity:
                reasons.add(plain(runner), label, f"not run: {plain(parity['not_run'])}")
                rows.append((label, plain(runner), "not run", DASH, DASH, DASH))
                continue
            numbers = (count(parity.get(key)) for key in ("num_different", "compared", "num_examples"))
            error = parity.get("max_abs_error_lsb")
            largest = f"{significant(error)} LSB" if is_number(error) else parity_text(parity)
            rows.append((label, plain(runner), largest, *numbers))
            if parity.get("skipped"):
                skipped.append(f"{label} on {plain(runner)}: skipped {scalar(parity['skipped'])}")
    if not rows:
        return Section(title="Parity between runners", paragraphs=("No other runner was asked for.",))
    notes = (*reasons.notes(), *skipped)
    columns = ("model", "runner", "largest difference", "values that differ", "values compared", "examples")
    table = Table(columns=columns, rows=tuple(rows), numeric=(False, False, True, True, True, True), notes=notes)
    about = (
        "The same inputs on another runner, output codes compared one by one with this machine's; 1 LSB is one code."
    )
    emulated = (f"{NEVER_A_LATENCY}.",) if any(runner.startswith("qemu") for runner in runners) else ()
    return Section(title="Parity between runners", paragraphs=(about, *emulated), tables=(table,))


def sparsity_section(record: Record) -> Section:
    """The measured share of zeros in each layer's weights."""
    sparsity = record.get("sparsity") or {}
    if not sparsity:
        return Section(title="Sparsity", paragraphs=("No weights were pruned, or no sparsity was measured.",))
    rows = tuple((plain(layer), percent(fraction)) for layer, fraction in sparsity.items())
    table = Table(columns=("layer", "zeros"), rows=rows)
    return Section(
        title="Sparsity", paragraphs=("Share of zeros among each layer's weights, as measured.",), tables=(table,)
    )


def stages_section(record: Record) -> Section:
    """What was done, for how long, and what was skipped and why."""
    stages = record.get("stages") or []
    if not stages:
        return Section(title="Stages", paragraphs=("The record holds no stages.",))
    rows = tuple(
        (
            plain(stage.get("name", "?")),
            "skipped" if stage.get("skipped") else seconds(stage.get("seconds")),
            plain(stage["skipped"]) if stage.get("skipped") else _details(stage.get("details") or {}),
        )
        for stage in stages
    )
    total = sum(stage["seconds"] for stage in stages if is_number(stage.get("seconds")) and not stage.get("skipped"))
    table = Table(columns=("stage", "time", "details"), rows=rows, numeric=(False, True, False))
    return Section(title="Stages", paragraphs=(f"{seconds(total)} in all.",), tables=(table,))


def _details(details: Record) -> str:
    # The sparsity has a section of its own.
    return "; ".join(f"{plain(key)}: {scalar(value)}" for key, value in details.items() if key != "sparsity")


def provenance_sections(record: Record) -> list[Section]:
    """Versions, machine, hashes; and the whole config, from which the run can be replayed."""
    cpu = record.get("cpu") or {}
    facts = {
        "seed": scalar(record.get("seed")),
        "CPU": plain(cpu.get("model") or DASH),
        "architecture": " ".join(map(plain, [cpu.get("machine") or DASH, *(cpu.get("isa") or [])])),
        "Python": scalar(record.get("python")),
        **{plain(name): scalar(version) for name, version in (record.get("packages") or {}).items()},
        "git commit": scalar(record.get("git_commit")),
        "schema version": scalar(record.get("schema_version")),
    }
    hashes = {"config": scalar(record.get("config_hash"))}
    sha256 = record.get("sha256") or {}
    if sha256.get("model"):
        hashes["model given"] = scalar(sha256["model"])
    hashes |= {f"data, {plain(split)}": scalar(value) for split, value in (sha256.get("data") or {}).items()}
    for model in record.get("models") or []:
        if (model.get("sha256") or {}).get("model"):
            hashes[plain(model.get("file", model.get("name")))] = scalar(model["sha256"]["model"])
    text_columns = (False, False)
    tables = (
        Table(columns=("what", "value"), rows=tuple(facts.items()), numeric=text_columns),
        Table(columns=("SHA-256 of", "value"), rows=tuple(hashes.items()), numeric=text_columns),
    )
    config = json.dumps(record.get("config") or {}, indent=2)
    replay = "The same run again: tfq run --config=report.json --out=DIR"
    return [
        Section(title="Provenance", tables=tables),
        Section(title="Configuration", paragraphs=(replay,), code=config, code_title="The whole configuration"),
    ]

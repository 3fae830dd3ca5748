# SPDX-License-Identifier: Apache-2.0
"""The sections of a report, from the record of a run: what Markdown and HTML both show."""

from collections.abc import Callable
from typing import Any

from tfq.report.audit_content import audit_section
from tfq.report.data_content import data_section
from tfq.report.formatting import (
    DASH,
    count,
    cpu_label,
    decibels,
    is_number,
    kilobytes,
    percent,
    plain,
    scalar,
    significant,
)
from tfq.report.gain_content import gain_section
from tfq.report.instructions_content import instructions_section
from tfq.report.latency_content import kernels_text, latency_section
from tfq.report.layers_content import layers_section
from tfq.report.qat_parity_content import qat_parity_section
from tfq.report.reported import Record, models_of, reference_of, runners_of
from tfq.report.scores import accuracy_text, change_text, metric_word, score_text
from tfq.report.stages_content import provenance_sections, stages_section
from tfq.report.summary import NEVER_A_LATENCY, delegated_text, parity_text, summary_of
from tfq.report.tables import Reasons, Section, Table


def sections_of(record: Record) -> list[Section]:
    """The report after its verdict and warnings, in order."""
    sections: list[Section | None] = [
        Section(key="result", title="Result", tables=(summary_of(record),)),
        evaluation_section(record),
        latency_section(record),
        instructions_section(record),
        parity_section(record),
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
    about = "Accuracy is against the labels; agreement is the share of examples with the float model's own answer."
    return Section(key=key, title=title, paragraphs=(about,), tables=(table,), plots=("accuracy", "size"))


_Quantity = tuple[str, Callable[[Record, Record], str], str]


def _score_rows(models: list[Any]) -> list[_Quantity]:
    """A row for each score beside the metric itself, top-5 beside top-1."""
    metrics = {model.evaluation.get("metric") or "top1" for model in models}
    names = dict.fromkeys(name for model in models for name in model.evaluation.get("scores") or {})

    def show(name: str) -> Callable[[Record, Record], str]:
        return lambda evaluation, reference: score_text(name, (evaluation.get("scores") or {}).get(name))

    return [(metric_word(name), show(name), "") for name in names if name not in metrics]


def _of(key: str, show: Callable[[Any], str]) -> Callable[[Record, Record], str]:
    return lambda evaluation, reference: show(evaluation.get(key))


def _size_ratio(evaluation: Record, reference: Record) -> str:
    ours, theirs = evaluation.get("gzip_bytes"), reference.get("gzip_bytes")
    return f"{theirs / ours:.2f}x" if is_number(ours) and is_number(theirs) and ours else DASH


# (what it is called, how it is shown, where the record says why it is missing; "" leaves out a row without values)
_QUANTITIES: tuple[_Quantity, ...] = (
    ("accuracy", lambda evaluation, reference: accuracy_text(evaluation), "accuracy_reason"),
    ("metric", _of("metric", lambda value: metric_word(value) if value else DASH), ""),
    ("accuracy minus float's", change_text, ""),
    ("agreement with float", _of("agreement", percent), "agreement_reason"),
    ("output SQNR", _of("output_sqnr_db", decibels), "output_sqnr_db_reason"),
    ("examples", _of("num_examples", count), ""),
    ("examples compared", _of("compared", count), ""),
    ("missing", _of("missing", scalar), ""),
    ("file", _of("model_bytes", kilobytes), ""),
    ("file, gzip", _of("gzip_bytes", kilobytes), ""),
    ("smaller than float, gzip", _size_ratio, ""),
    ("runner", _of("runner", scalar), ""),
    ("kernels", lambda evaluation, reference: kernels_text(evaluation), ""),
    ("ops delegated to XNNPACK", lambda evaluation, reference: delegated_text(evaluation), ""),
)


def parity_section(record: Record) -> Section:
    """The comparison between runners: a row a model and runner."""
    models = models_of(record)
    runners = runners_of(models, "parity")
    rows: list[tuple[str, ...]] = []
    series: list[int | None] = []
    reasons, skipped = Reasons(), []
    for model in models:
        for runner, parity in model.parity.items():
            series.append(model.series)
            if "not_run" in parity:
                reasons.add(cpu_label(runner), model.label, f"not run: {plain(parity['not_run'])}")
                rows.append((model.label, plain(runner), "not run", DASH, DASH, DASH))
                continue
            numbers = (count(parity.get(key)) for key in ("num_different", "compared", "num_examples"))
            error = parity.get("max_abs_error_lsb")
            largest = f"{significant(error)} LSB" if is_number(error) else parity_text(parity)
            rows.append((model.label, plain(runner), largest, *numbers))
            if parity.get("skipped"):
                skipped.append(f"{model.label} on {plain(runner)}: skipped {scalar(parity['skipped'])}")
    title = "Parity between runners"
    if not rows:
        return Section(key="parity", title=title, paragraphs=("No other runner was asked for.",))
    table = Table(
        columns=("model", "runner", "largest difference", "values that differ", "values compared", "examples"),
        rows=tuple(rows),
        numeric=(False, False, True, True, True, True),
        notes=(*reasons.notes(), *skipped),
        row_series=tuple(series),
    )
    about = (
        "The same inputs on another runner, output codes compared one by one with this machine's; 1 LSB is one code."
    )
    emulated = (f"{NEVER_A_LATENCY}.",) if any(runner.startswith("qemu") for runner in runners) else ()
    return Section(key="parity", title=title, paragraphs=(about, *emulated), tables=(table,))

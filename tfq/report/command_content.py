# SPDX-License-Identifier: Apache-2.0
"""The pages of single commands: evaluate, audit, benchmark, convert, train, compress and search.

Each record is brought into the form of a run's record with one model or stage, so that the sections of a run's report
show it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tfq.evaluation.costs import cost_rows
from tfq.report.audit_content import audit_section, layers_section
from tfq.report.class_content import classes_section
from tfq.report.compression_content import compression_tables, training_section, verification_section
from tfq.report.content import evaluation_section, provenance_sections, subtitle_of
from tfq.report.data_content import data_section
from tfq.report.examples_content import examples_section
from tfq.report.formatting import (
    DASH,
    count,
    difference_text,
    difference_with_interval,
    number_of,
    percent,
    plain,
    ratio,
    seconds,
    value_text,
)
from tfq.report.io_content import io_section
from tfq.report.kinds import RecordKind, register
from tfq.report.latency_content import evaluated_latency_section, latency_section
from tfq.report.metric_content import confusion_section, metrics_section
from tfq.report.plots import confusion_plots
from tfq.report.portability_content import portability_section
from tfq.report.record import Record, part, stages_of
from tfq.report.robustness_content import robustness_plots, robustness_section
from tfq.report.search_content import SIZES, levels_section, points_table, search_plots
from tfq.report.tables import Section, Table
from tfq.report.verdict import BAD, GOOD, Check, Verdict, verdict_of_requirements


def _opened(section: Section) -> Section:
    return dataclasses.replace(section, folded=False)


def _model_view(*keys: str) -> Any:
    """Return a function that makes the results of a record in `keys` those of the only model of a run."""

    def view(record: Record) -> Record:
        file = (
            plain(record.get("file") or part(record, "config").get("model") or "model").rstrip("/").rpartition("/")[2]
        )
        model = {"name": file.removesuffix(".tflite"), "file": file, **{key: record.get(key) for key in keys}}
        # The hash of config.model is shown once, as that of the input model.
        return {**record, "models": [model]}

    return view


def _stage_view(record: Record) -> Record:
    """Return a record with its results as the details of the only stage of a run."""
    return {**record, "stages": [{"name": plain(record.get("command")), "details": record}]}


# evaluate


def _evaluate_sections(record: Record) -> Iterator[Section]:
    yield _opened(evaluation_section(record))
    details = (metrics_section, classes_section, confusion_section, examples_section)
    yield from (_opened(section) for function in details if (section := function(record)))
    if robustness := robustness_section(record):
        yield _opened(robustness)
    if costs := _costs_table(part(record, "evaluation"), plain(part(record, "evaluation").get("backend"))):
        yield Section(key="costs", title="Memory and other costs", tables=(costs,), folded=False)
    if latency := evaluated_latency_section(record):
        yield latency
    yield _opened(portability_section(record))
    yield from provenance_sections(record)


_NO_COSTS: dict[str, Any] = {"how": "", "memory_bytes": None, "figures": {}, "unaccelerated": {}, "caveats": []}


def _costs_table(costs: Record, title: str) -> Table | None:
    """Return what a backend reports besides time; None if that is nothing."""
    rows = tuple((plain(name), plain(text)) for name, text in cost_rows({**_NO_COSTS, **costs}))
    if not rows:
        return None
    return Table(key="costs", columns=("cost", "value"), rows=rows, numeric=(False, False), caption=title)


EVALUATION = register(
    RecordKind(
        command="evaluate",
        help="accuracy, latency and size of a model, and how it runs on each backend",
        needs={"evaluation": dict},
        view=_model_view("evaluation", "portability"),
        sections=lambda record: list(_evaluate_sections(record)),
        plots=lambda record: {**confusion_plots(record), **robustness_plots(record)},
        subtitle=subtitle_of,
    )
)


# audit


def _audit_sections(record: Record) -> list[Section]:
    section = audit_section(record)
    execution = part(part(record, "audit"), "execution")
    if execution:
        reason = f": {plain(execution['reason'])}" if execution.get("reason") else ""
        message = f"Execution on this machine: {plain(execution.get('state'))}{reason}."
        section = dataclasses.replace(section, paragraphs=(*section.paragraphs, message))
    io = io_section(record)
    return [
        _opened(section),
        *([_opened(io)] if io else []),
        _opened(layers_section(record)),
        *provenance_sections(record),
    ]


AUDIT = register(
    RecordKind(
        command="audit",
        help="the data types that the ops of a model compute in",
        needs={"audit": dict},
        view=_model_view("audit"),
        sections=_audit_sections,
        subtitle=subtitle_of,
    )
)


# benchmark


def _benchmark_view(record: Record) -> Record:
    names = [model.get("name") for model in part(record, "benchmark").get("models") or []]
    return {**record, "models": [{"name": name} for name in dict.fromkeys(names)]}


def _benchmark_sections(record: Record) -> list[Section]:
    benchmark = part(record, "benchmark")
    models = [model for model in benchmark.get("models") or [] if isinstance(model, Mapping)]
    tables = [_costs_table(part(model, "costs"), plain(model.get("name"))) for model in models if model.get("costs")]
    counts = tuple(
        (plain(model.get("name")), plain(backend), count(item.get("instructions")), plain(item.get("note") or DASH))
        for model in models
        for backend, item in part(model, "instructions").items()
        if isinstance(item, Mapping)
    )
    if counts:
        columns = ("model", "backend", "instructions per inference", "note")
        numeric = (False, False, True, False)
        tables.append(Table(key="instructions", columns=columns, rows=counts, numeric=numeric))
    sections = [_opened(latency_section(record))]
    shown = tuple(table for table in tables if table)
    if shown:
        title = f"Costs on {plain(benchmark.get('backend'))}"
        sections.append(Section(key="costs", title=title, tables=shown, folded=False))
    return [*sections, *provenance_sections(record)]


BENCHMARK = register(
    RecordKind(
        command="benchmark",
        help="latency of one or more models, and their most expensive ops",
        needs={"benchmark": dict},
        view=_benchmark_view,
        sections=_benchmark_sections,
        subtitle=subtitle_of,
    )
)


# convert, train, compress


def _convert_view(record: Record) -> Record:
    return _stage_view(_model_view("audit", "verification")(record))


def _convert_sections(record: Record) -> list[Section]:
    verification = verification_section(record)
    details = compression_tables(stages_of(record))
    return [
        *([_opened(verification)] if verification else []),
        _opened(audit_section(record)),
        layers_section(record),
        data_section(record),
        *([Section(key="details", title="Details of the conversion", tables=tuple(details))] if details else []),
        *provenance_sections(record),
    ]


CONVERSION = register(
    RecordKind(
        command="convert",
        help="a conversion: its audit and its comparison with the float model",
        needs={"audit": dict},
        view=_convert_view,
        sections=_convert_sections,
        subtitle=subtitle_of,
    )
)


def _training_sections(record: Record) -> list[Section]:
    training = training_section(record)
    tables = compression_tables(stages_of(record))
    return [
        *([_opened(training)] if training else []),
        *([Section(key="layers", title="Layers", tables=tuple(tables), folded=False)] if tables else []),
        *([_opened(layers_section(record))] if record.get("sparsity") else []),
        *provenance_sections(record),
    ]


def _training_verdict(record: Record) -> Verdict | None:
    notes = [plain(note) for note in record.get("data_notes") or []]
    test = record.get("test_accuracy")
    if test is None:
        return verdict_of_requirements(record)
    score = percent(test) if record.get("test_unit") == "fraction" else f"{test:.6g}"
    checks = tuple(Check(key="data", state=GOOD, question="data", answer=note) for note in notes)
    name = plain(record.get("test_metric") or "accuracy")
    return Verdict(state=GOOD, headline=f"Test {name} {score}", checks=checks)


TRAINING = register(
    RecordKind(
        command="train",
        help="a training: its curves",
        needs={"history": dict},
        view=_stage_view,
        sections=_training_sections,
        verdict=_training_verdict,
        subtitle=subtitle_of,
    )
)
COMPRESSION = register(
    RecordKind(
        command="compress",
        help="pruning, clustering and quantization-aware training: curves, and what was done to each layer",
        needs={"history": dict, "sparsity": dict, "preflight": dict},
        view=_stage_view,
        sections=_training_sections,
        subtitle=subtitle_of,
    )
)


def _preflight_verdict(record: Record) -> Verdict:
    ok = part(record, "preflight").get("ok") is True
    headline = "All layers can be compressed" if ok else "Some layers cannot be compressed"
    return Verdict(state=GOOD if ok else BAD, headline=headline)


PREFLIGHT = register(
    RecordKind(
        command="preflight",
        help="which steps of the compression each layer of a model supports",
        needs={"preflight": dict},
        view=_stage_view,
        sections=_training_sections,
        verdict=_preflight_verdict,
        subtitle=subtitle_of,
    )
)


# search


def _search_sections(record: Record) -> list[Section]:
    chosen, validation, test = record.get("chosen"), part(record, "validation"), part(record, "test")
    criterion = part(record, "criterion")
    unit = plain(criterion.get("unit") or "fraction")
    about = (
        "Candidates in the order in which they were tried, on "
        f"{number_of(validation.get('examples'), 'validation example')}; float model "
        f"{value_text(validation.get('float_accuracy'), unit)}."
    )
    lines = [
        f"chosen: {value_text(test.get('accuracy'), unit)} of {number_of(test.get('examples'), 'test example')}, float "
        f"model {value_text(test.get('float_accuracy'), unit)}",
        *(
            f"{title}: {difference_with_interval(difference, unit)}"
            for title, difference in (
                ("minus the float model", part(test, "against_float")),
                ("minus the first candidate", part(test, "against_plain")),
            )
            if difference
        ),
        *map(plain, record.get("advice") or []),
    ]
    has_points = bool(record.get("points"))
    return [
        Section(
            key="candidates",
            title="Candidates",
            paragraphs=(about,),
            plots=(SIZES,) if has_points else (),
            tables=(_candidates_table(record), *([points_table(record)] if has_points else [])),
            folded=False,
        ),
        Section(key="test", title=f"Chosen: {plain(chosen)}", items=tuple(lines), folded=False),
        *([levels] if (levels := levels_section(record)) else []),
        *provenance_sections(record),
    ]


def _candidates_table(record: Record) -> Table:
    candidates = [item for item in record.get("candidates") or [] if isinstance(item, Mapping)]
    criterion = part(record, "criterion")
    title = plain(criterion.get("title") or "accuracy")
    agreement = plain(criterion.get("agreement_title") or "agreement")
    unit = plain(criterion.get("unit") or "fraction")
    rows = tuple(
        (
            plain(item.get("name", "?")),
            value_text(item.get("accuracy"), unit),
            difference_text(part(item, "against_float").get("difference"), unit),
            percent(item.get("agreement")),
            count(item.get("bytes")),
            ratio(item.get("latency_ratio")),
            seconds(item.get("secs")),
            _result_of(item, record),
        )
        for item in candidates
    )
    return Table(
        key="candidates",
        columns=(
            "candidate",
            title,
            "minus float" + (", points" if unit == "fraction" else ""),
            agreement,
            "bytes",
            "latency",
            "time",
            "result",
        ),
        rows=rows,
        numeric=(*(False, True, True, True, True, True, True), False),
        notes=("latency: the time of an inference divided by that of the first candidate. time: of the conversion.",),
    )


def _result_of(candidate: Record, record: Record) -> str:
    """Return "chosen", the bounds that a candidate misses, or that it is on the Pareto front."""
    if candidate.get("name") == record.get("chosen"):
        return "chosen"
    is_front = candidate.get("name") in (record.get("front") or [])
    missed = [plain(item) for item in candidate.get("missed") or []]
    return "; ".join([*(["Pareto front"] if is_front else []), *missed])


def _search_verdict(record: Record) -> Verdict:
    of_budget = verdict_of_requirements(record)
    holds, chosen = record.get("holds") is True, plain(record.get("chosen"))
    headline = f"Within the budget: {chosen}" if holds else f"No candidate is within the budget; the best is {chosen}"
    checks = of_budget.checks if of_budget else ()
    return Verdict(state=GOOD if holds else BAD, headline=headline, checks=checks)


SEARCH = register(
    RecordKind(
        command="search",
        help="the candidates of a search for the cheapest int8 model within a budget",
        needs={"candidates": list},
        sections=_search_sections,
        plots=search_plots,
        verdict=_search_verdict,
        subtitle=subtitle_of,
    )
)

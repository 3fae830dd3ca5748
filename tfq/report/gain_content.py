# SPDX-License-Identifier: Apache-2.0
"""The report's section on what compression brought, and what it did not: the compressed file against the dense one."""

from collections.abc import Callable

from tfq.report.formatting import DASH, count, cpu_label, is_number, percent, ratio, significant
from tfq.report.instructions_content import NOT_A_TIME
from tfq.report.layers_content import zeros_of
from tfq.report.reported import REFERENCE, Record, Reported, benchmark_of, models_of, part, runners_of
from tfq.report.tables import Section, Table

KEY, TITLE = "gain", "What compression brought"
UNSTRUCTURED = (
    "Zeros spread over the weights, and weights of a few values, shrink the compressed file, not the time: TFLite's "
    "int8 kernels multiply by them as by any other number. Time comes from taking whole filters out "
    "(compression.filters)."
)


def gain_section(record: Record) -> Section | None:
    """The compressed model against the dense one of the same scheme; None where there are not both."""
    models = [model for model in models_of(record) if model.evaluation]
    dense = next((model for model in models if str(model.name).startswith("ptq_")), None)
    small = next((model for model in models if model is not dense and model.name != REFERENCE), None)
    if dense is None or small is None:
        return None
    times = {model.get("name"): model.get("p50_ms") for model in benchmark_of(record)[1]}
    rows = [
        _row("file", dense, small, lambda model: model.evaluation.get("model_bytes"), count),
        _row("file, gzip", dense, small, lambda model: model.evaluation.get("gzip_bytes"), count),
        _row("zeros among the weights", dense, small, zeros_of, percent, compared=False),
        _row("time on this machine, p50 ms", dense, small, lambda model: times.get(model.name), significant),
    ]
    for runner in runners_of([dense, small], "instructions"):
        what = f"instructions on {cpu_label(runner)} ({NOT_A_TIME})"
        rows.append(_row(what, dense, small, _instructions(runner), count))
    rows = [row for row in rows if row[1:3] != (DASH, DASH)]
    table = Table(
        columns=("", dense.label, small.label, "ratio"),
        rows=tuple(rows),
        column_series={1: dense.series, 2: small.series},
    )
    asked = part(part(record, "config"), "compression")
    pruned, clustered, cut = (part(asked, step).get("enabled") for step in ("prune", "cluster", "filters"))
    about = "The compressed file against the dense one of the same scheme; below 1 is a gain."
    return Section(
        key=KEY,
        title=TITLE,
        paragraphs=(about, UNSTRUCTURED) if (pruned or clustered) and not cut else (about,),
        tables=(table,),
    )


def _row(
    what: str,
    dense: Reported,
    small: Reported,
    of: Callable[[Reported], object],
    show: Callable[[object], str],
    *,
    compared: bool = True,
) -> tuple[str, str, str, str]:
    before, after = of(dense), of(small)
    share = ratio(after / before) if compared and is_number(before) and is_number(after) and before else DASH
    return what, show(before), show(after), share


def _instructions(runner: str) -> Callable[[Reported], object]:
    return lambda model: part(model.instructions, runner).get("instructions")

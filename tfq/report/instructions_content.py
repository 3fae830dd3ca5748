# SPDX-License-Identifier: Apache-2.0
"""The report's section on what an inference costs an ARM CPU, in instructions."""

from typing import Any

from tfq.report.formatting import DASH, cpu_label, is_number, millions, plain, ratio
from tfq.report.reported import Record, Reported, models_of, part, reference_of, runners_of
from tfq.report.tables import Reasons, Section, Table

NOT_A_TIME = "a count, not a time"


def instructions_section(record: Record) -> Section | None:
    """Instructions an inference, by model and CPU; None where the record knows nothing of any."""
    models = models_of(record)
    runners = runners_of(models, "instructions")
    if not runners:
        return None
    reference = reference_of(models)
    counts = {
        (model.label, runner): part(model.instructions, runner).get("instructions")
        for model in models
        for runner in runners
    }
    reasons, rows = Reasons(), []
    for model in models:
        cells = []
        for runner in runners:
            counted = part(model.instructions, runner)
            cells += [millions(counted.get("instructions")), _against(counts, model, reference, runner)]
            if cells[-2] == DASH:
                reason = f"not run: {plain(counted['not_run'])}" if "not_run" in counted else "not counted"
                reasons.add(cpu_label(runner), model.label, reason)
        rows.append((model.label, *cells))
    ways = {plain(each["by"]) for model in models for each in model.instructions.values() if each.get("by")}
    table = Table(
        columns=("model", *(title for runner in runners for title in (f"{cpu_label(runner)}, M", "float / it"))),
        rows=tuple(rows),
        caption="Millions of instructions an inference",
        row_series=tuple(model.series for model in models),
        notes=(*reasons.notes(), *(f"counted by {way}" for way in sorted(ways))),
    )
    about = (
        f"Instructions that one inference executes on an emulated ARM CPU: {NOT_A_TIME}. It repeats to the instruction "
        "and tells which of two models asks less of such a CPU; how long each takes, its memory and clock decide too."
    )
    plots = ("instructions",) if any(is_number(value) for value in counts.values()) else ()
    return Section(key="instructions", title="ARM instructions", paragraphs=(about,), tables=(table,), plots=plots)


def _against(counts: dict[tuple[str, str], Any], model: Reported, reference: Reported | None, runner: str) -> str:
    ours = counts[model.label, runner]
    theirs = counts.get((reference.label, runner)) if reference else None
    return ratio(theirs / ours) if is_number(ours) and is_number(theirs) and ours else DASH

# SPDX-License-Identifier: Apache-2.0
"""The report's section on whether the flatbuffer computes what the QAT model does, layer by layer."""

from collections.abc import Mapping

from tfq.report.formatting import DASH, count, decibels, percent, plain, significant
from tfq.report.reported import Record, models_of, part
from tfq.report.tables import SORTABLE_FROM, Section, Table

KEY, TITLE = "qat_parity", "QAT model against its flatbuffer"


def qat_parity_section(record: Record) -> Section | None:
    """Of each flatbuffer that a QAT model was converted to; None where the run had none."""
    paragraphs: list[str] = []
    tables: list[Table] = []
    for model in models_of(record):
        found = model.qat_parity
        if "not_run" in found:
            paragraphs.append(f"{model.label}: not compared: {plain(found['not_run'])}.")
        elif found:
            paragraphs += _told(model.label, found)
            tables.append(_layers(model.label, found))
    if not paragraphs:
        return None
    about = (
        "The same examples through the QAT model and through its flatbuffer. SQNR grows worse along the depth, for "
        "roundings add up; the local columns feed each layer with the flatbuffer's own values, so that what they show "
        "is the layer's own."
    )
    return Section(key=KEY, title=TITLE, paragraphs=(about, *paragraphs), tables=tuple(tables))


def _told(label: str, found: Record) -> list[str]:
    told = [f"{label}, {count(found.get('num_examples'))} examples: {plain(found.get('told_departure') or DASH)}."]
    for output in found.get("outputs") or []:
        same = percent(output.get("top1_agreement"))
        classes = f", the same class in {same}" if same != DASH else ""
        told.append(
            f"{label}, output {plain(output.get('name', '?'))}: "
            f"{decibels(output.get('logit_sqnr_db'))} of the {plain(output.get('logits_of', 'output'))}{classes}."
        )
    missed = [plain(each) for each in found.get("missed") or []]
    told += [f"{label} misses what a faithful flatbuffer has: {each}." for each in missed]
    return told


def _layers(label: str, found: Record) -> Table:
    layers = [layer for layer in found.get("layers") or [] if isinstance(layer, Mapping)]
    rows = tuple(
        (
            " + ".join(map(plain, layer.get("layers") or [layer.get("layer", "?")])),
            plain(layer.get("op", "?")),
            percent(layer.get("agreement")),
            count(layer.get("max_lsb")),
            decibels(layer.get("sqnr_db")),
            significant(layer.get("local_max_lsb")),
            decibels(layer.get("local_sqnr_db")),
            "departs" if layer.get("departs") else "",
        )
        for layer in layers
    )
    departs = [
        f"{plain(layer.get('layer', '?'))}: {plain(layer['departs'])}" for layer in layers if layer.get("departs")
    ]
    skipped = [f"{plain(name)}: not compared: {plain(reason)}" for name, reason in part(found, "skipped").items()]
    return Table(
        columns=("layer", "op", "equal codes", "max LSB", "SQNR", "local max LSB", "local SQNR", ""),
        rows=rows,
        numeric=(False, False, True, True, True, True, True, False),
        caption=label,
        notes=(*departs, *skipped, *map(plain, found.get("notes") or [])),
        bad=frozenset((row, 7) for row, layer in enumerate(layers) if layer.get("departs")),
        sortable=len(rows) >= SORTABLE_FROM,
    )

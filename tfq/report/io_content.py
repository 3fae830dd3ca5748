# SPDX-License-Identifier: Apache-2.0
"""The section on the inputs and outputs of each file: the table of io.json, and the metadata."""

from collections.abc import Sequence

from tfq.report.formatting import DASH, count, is_number, number_of, plain
from tfq.report.record import Record, Reported, models_of, part
from tfq.report.tables import Section, Table

_LABELS_SHOWN = 6


def io_section(record: Record) -> Section | None:
    """Return how each file is called: its inputs and outputs, the steps before and after, and labels.

    None if the record has no such table.
    """
    models = [model for model in models_of(record) if part(model.audit, "io")]
    if not models:
        return None
    rows = [row for model in models for side in ("inputs", "outputs") for row in _rows(model, side)]
    series = [model.series for model in models for side in ("inputs", "outputs") for _ in _rows(model, side)]
    table = Table(
        key="io",
        columns=("model", "tensor", "type and shape", "scale, zero point", "range", "steps"),
        rows=tuple(rows),
        numeric=(False,) * 6,
        row_series=tuple(series),
        notes=tuple(dict.fromkeys(note for model in models for note in _notes(model))),
    )
    about = (
        "What an app needs to call each file. Real values x become quantized values q, and back, as the steps say, "
        "computed in float32 and rounded half to even."
    )
    sides = [len(part(models[-1].audit, "io").get(side) or []) for side in ("inputs", "outputs")]
    gist = f"{number_of(sides[0], 'input')}, {number_of(sides[1], 'output')}"
    tables = (table, *_metadata_tables(models))
    return Section(key="io", title="Inputs and outputs", gist=gist, paragraphs=(about,), tables=tables)


def _rows(model: Reported, side: str) -> list[tuple[str, ...]]:
    entries = part(model.audit, "io").get(side) or []
    return [_row(model.label, side[:-1], entry) for entry in entries if isinstance(entry, dict)]


def _row(label: str, side: str, entry: Record) -> tuple[str, ...]:
    shape = [f"{'?' if size == -1 else size} {plain(axis)}" for size, axis in _pairs(entry)]
    content = f" {plain(entry['content'])}" if entry.get("content") else ""
    limits = entry.get("range")
    steps = [plain(step.get("formula")) for step in _steps(entry)]
    if side == "input" and entry.get("preprocessing_source") is None:
        steps.append("the preprocessing before that is not recorded" if steps else "the preprocessing is not recorded")
    if shift := part(entry, "pixel_shift"):
        amount = shift.get("shift")
        steps.append("or pass the bytes of a picture" + (f", plus {plain(amount)}" if amount else ""))
    if labels := entry.get("labels"):
        more = f", ... ({count(len(labels))})" if len(labels) > _LABELS_SHOWN else ""
        steps.append(f"labels {', '.join(map(plain, labels[:_LABELS_SHOWN]))}{more}")
    return (
        label,
        f"{side} {plain(entry.get('name'))}",
        f"{plain(entry.get('dtype'))}{content} [{', '.join(shape)}]",
        f"{entry['scale']:.9g}, {plain(entry.get('zero_point'))}" if is_number(entry.get("scale")) else DASH,
        f"{limits[0]:.6g} to {limits[1]:.6g}" if limits and _is_real(entry) else DASH,
        "; ".join(steps) or DASH,
    )


def _is_real(entry: Record) -> bool:
    """Check whether the values are real numbers, and not indices or classes."""
    return is_number(entry.get("scale")) or str(entry.get("dtype")).startswith(("float", "bfloat"))


def _pairs(entry: Record) -> list[tuple[object, object]]:
    return list(zip(entry.get("shape") or [], entry.get("axes") or [], strict=False))


def _steps(entry: Record) -> list[Record]:
    return [step for step in entry.get("preprocessing") or entry.get("postprocessing") or [] if isinstance(step, dict)]


def _notes(model: Reported) -> list[str]:
    io = part(model.audit, "io")
    notes = [f"{model.label}: {plain(note)}" for note in io.get("notes") or []]
    guessed = [entry for side in ("inputs", "outputs") for entry in io.get(side) or [] if _is_guess(entry)]
    return ["The axes are guessed from the rank of each tensor."] * bool(guessed) + notes


def _is_guess(entry: Record) -> bool:
    return str(entry.get("axes_source", "")).startswith("guessed")


def _metadata_tables(models: Sequence[Reported]) -> list[Table]:
    """Return the table of the files' TFLite Metadata and associated files; none if no file has any."""
    rows, series = [], []
    for model in models:
        io = part(model.audit, "io")
        about, files = part(io, "metadata"), part(io, "files")
        if not files and not any(about.values()):
            continue
        names = [f"{plain(name)} ({count(size)} bytes)" for name, size in files.items()]
        values = [plain(about.get(key) or DASH) for key in ("name", "version", "description", "author", "license")]
        rows.append((model.label, *values, ", ".join(names) or DASH))
        series.append(model.series)
    if not rows:
        return []
    columns = ("model", "name", "version", "description", "author", "license", "files")
    table = Table(
        key="metadata",
        columns=columns,
        rows=tuple(rows),
        numeric=(False,) * len(columns),
        caption="TFLite Metadata",
        row_series=tuple(series),
    )
    return [table]

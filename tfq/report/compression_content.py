# SPDX-License-Identifier: Apache-2.0
"""The report's sections on compression: rebuilt layers, sparsity, gains, agreement of the QAT model."""

from collections.abc import Callable, Mapping, Sequence

from tfq.report.formatting import (
    DASH,
    NOT_A_TIME,
    count,
    cpu_label,
    decibels,
    is_number,
    percent,
    plain,
    ratio,
    scalar,
    significant,
)
from tfq.report.layers_content import zeros_of
from tfq.report.summary import REFERENCE, Record, Reported, backends_of, benchmark_of, models_of, part
from tfq.report.tables import SORTABLE_FROM, Section, Table

GAIN_KEY, GAIN_TITLE = "gain", "What compression brought"
UNSTRUCTURED = (
    "Zeros spread over the weights, and weights of a few values, shrink the compressed file, not the time: TFLite's "
    "int8 kernels multiply by them as by any other number. Time comes from taking whole filters out "
    "(compression.structured_pruning)."
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
    for backend in backends_of([dense, small], "instructions"):
        what = f"instructions on {cpu_label(backend)} ({NOT_A_TIME})"
        rows.append(_row(what, dense, small, _instructions(backend), count))
    rows = [row for row in rows if row[1:3] != (DASH, DASH)]
    table = Table(
        columns=("", dense.label, small.label, "ratio"),
        rows=tuple(rows),
        column_series={1: dense.series, 2: small.series},
    )
    asked = part(part(record, "config"), "compression")
    pruned, clustered, cut = (part(asked, step).get("enabled") for step in ("prune", "cluster", "structured_pruning"))
    about = "The compressed file against the dense one of the same scheme; below 1 is a gain."
    return Section(
        key=GAIN_KEY,
        title=GAIN_TITLE,
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
    fraction = ratio(after / before) if compared and is_number(before) and is_number(after) and before else DASH
    return what, show(before), show(after), fraction


def _instructions(backend: str) -> Callable[[Reported], object]:
    return lambda model: part(model.instructions, backend).get("instructions")


def verification_section(record: Record) -> Section | None:
    """How each converted model compared with its float twin on calibration samples; None if the record has none."""
    paragraphs: list[str] = []
    rows: list[tuple[str, ...]] = []
    for model in models_of(record):
        result = model.verification
        for level in ("collapsed", "notes"):
            messages = [plain(item.get("message")) for item in result.get(level) or [] if isinstance(item, Mapping)]
            paragraphs += [f"{model.label}{' collapsed' if level == 'collapsed' else ''}: {item}." for item in messages]
        for output in result.get("outputs") or []:
            exact = output.get("exact")
            rows.append(
                (
                    model.label,
                    plain(output.get("name", "?")),
                    "exact" if exact else decibels(output.get("sqnr_db")),
                    decibels(output.get("ideal_db")),
                    percent(output.get("agreement")),
                    f"{count(output.get('constant_slices'))} of {count(output.get('num_slices'))}",
                    count(output.get("values_used")),
                )
            )
    if not rows and not paragraphs:
        return None
    about = (
        "Each converted model next to the float model on a few calibration samples. Ideal is what the output's own "
        "grid could reach. A constant slice varies in float and is one value in the converted model."
    )
    head = ("model", "output", "SQNR", "ideal", "agreement", "constant slices", "quantized values")
    tables = (Table(columns=head, rows=tuple(rows), numeric=(False, False, *(True,) * 5)),) if rows else ()
    return Section(
        key="verification", title="Outputs against the float model", paragraphs=(about, *paragraphs), tables=tables
    )


QAT_PARITY_KEY, QAT_PARITY_TITLE = "qat_parity", "QAT model against its flatbuffer"


def qat_parity_section(record: Record) -> Section | None:
    """Of each flatbuffer that a QAT model was converted to; None where the run had none."""
    paragraphs: list[str] = []
    tables: list[Table] = []
    for model in models_of(record):
        result = model.qat_parity
        if "not_run" in result:
            paragraphs.append(f"{model.label}: not compared: {plain(result['not_run'])}.")
        elif result:
            paragraphs += _told(model.label, result)
            tables.append(_parity_layers(model.label, result))
    if not paragraphs:
        return None
    about = (
        "The same examples through the QAT model and through its flatbuffer. SQNR grows worse along the depth, for "
        "roundings add up; the local columns feed each layer with the flatbuffer's own values, so that what they show "
        "is the layer's own."
    )
    return Section(key=QAT_PARITY_KEY, title=QAT_PARITY_TITLE, paragraphs=(about, *paragraphs), tables=tuple(tables))


def _told(label: str, result: Record) -> list[str]:
    messages = [
        f"{label}, {count(result.get('num_examples'))} examples: {plain(result.get('departure_text') or DASH)}."
    ]
    for output in result.get("outputs") or []:
        same = percent(output.get("top1_agreement"))
        classes = f", the same class in {same}" if same != DASH else ""
        messages.append(
            f"{label}, output {plain(output.get('name', '?'))}: "
            f"{decibels(output.get('logit_sqnr_db'))} of the {plain(output.get('logits_of', 'output'))}{classes}."
        )
    missed = [plain(item) for item in result.get("missed") or []]
    messages += [f"{label} misses what a faithful flatbuffer has: {item}." for item in missed]
    return messages


def _parity_layers(label: str, result: Record) -> Table:
    layers = [layer for layer in result.get("layers") or [] if isinstance(layer, Mapping)]
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
    skipped = [f"{plain(name)}: not compared: {plain(reason)}" for name, reason in part(result, "skipped").items()]
    return Table(
        columns=("layer", "op", "equal codes", "max LSB", "SQNR", "local max LSB", "local SQNR", ""),
        rows=rows,
        numeric=(False, False, True, True, True, True, True, False),
        caption=label,
        notes=(*departs, *skipped, *map(plain, result.get("notes") or [])),
        bad=frozenset((row, 7) for row, layer in enumerate(layers) if layer.get("departs")),
        sortable=len(rows) >= SORTABLE_FROM,
    )


_MOST_NAMES = 6
_QAT = {
    "qat": "fake quantization",
    "ptq_only": "the converter alone",
    "unsupported": "cannot be taken",
}


def compression_tables(stages: Sequence[Record]) -> list[Table]:
    """What the stage that compressed the model found and did; nothing where there was none."""
    details = [part(stage, "details") for stage in stages]

    def found(key: str) -> Record:
        return next((part(item, key) for item in details if part(item, key)), {})

    tables = (
        _bridge(found("bridge")),
        _layers(found("preflight")),
        _structured_pruning(found("structured_pruning")),
        _pruning(found("pruning_plan")),
    )
    return [table for table in tables if table]


def _bridge(bridge: Record) -> Table | None:
    """Of a model that was rebuilt: how far its outputs are from the user's own, and what was changed."""
    notes, names = bridge.get("notes") or [], part(bridge, "layer_map")
    same = all(list(built or []) == [name] for name, built in names.items())
    if not bridge or (same and not notes and not bridge.get("max_difference")):
        return None
    rows = [("largest difference of outputs, of their range", scalar(bridge.get("max_difference")))]
    rows += [("note", plain(note)) for note in notes]
    rows += [
        ("layers under another name", f"{plain(name)} → {', '.join(map(plain, built)) or 'left out'}")
        for name, built in names.items()
        if list(built or []) != [name]
    ]
    return Table(
        columns=("what", "value"), rows=tuple(rows), numeric=(False, False), caption="Rebuilt of tf_keras layers"
    )


def _layers(preflight: Record) -> Table | None:
    """How many layers could take what; of those that were left to the converter, the reason with their names."""
    layers = [layer for layer in preflight.get("layers") or [] if isinstance(layer, Mapping)]
    if not layers:
        return None
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        verdict = plain(layer.get("qat", "?"))
        reason = "" if verdict == "qat" else plain(layer.get("reason", ""))
        groups.setdefault((_QAT.get(verdict, verdict), reason), []).append(plain(layer.get("name", "?")))
    rows = tuple((what, count(len(names)), _listed(names), reason) for (what, reason), names in groups.items())
    return Table(
        columns=("quantized by", "layers", "which", "why"),
        rows=rows,
        numeric=(False, True, False, False),
        caption="Quantization, by layer",
    )


def _structured_pruning(pruned: Record) -> Table | None:
    """Channels left of each layer that lost some, and of the multiply-adds and parameters as a whole."""
    removed = part(pruned, "removed")
    if not pruned:
        return None
    rows = [
        ("multiply-adds", scalar(pruned.get("macs_before")), scalar(pruned.get("macs_after"))),
        ("parameters", scalar(pruned.get("parameters_before")), scalar(pruned.get("parameters_after"))),
    ]
    rows += [
        (f"channels of {plain(name)}", scalar(part(removed, name).get("of")), scalar(part(removed, name).get("kept")))
        for name in removed
    ]
    rows += [
        (f"error of {plain(name)}, refit", percent(layer.get("before")), percent(layer.get("after")))
        for name, layer in part(pruned, "refit").items()
    ]
    skipped = {plain(name): plain(reason) for name, reason in part(pruned, "skipped").items()}
    return Table(
        columns=("what", "before", "after"),
        rows=tuple(rows),
        numeric=(False, True, True),
        caption="Structured pruning",
        notes=tuple(f"{name}: {reason}" for name, reason in skipped.items()),
    )


def _pruning(plan: Record) -> Table | None:
    """Which layers were pruned; of the others, the reason, told once with the layers that it holds for."""
    if not plan:
        return None
    layers: dict[str, list[str]] = {"pruned": [plain(name) for name in plan.get("pruned") or []]}
    for name, reason in part(plan, "skipped").items():
        # "ReLU has no weights" and "Add has no weights" are one reason of two kinds of layer.
        words = plain(reason)
        layers.setdefault("no weights" if words.endswith("has no weights") else words, []).append(plain(name))
    rows = tuple((what, count(len(names)), _listed(names)) for what, names in layers.items())
    return Table(
        columns=("what became of it", "layers", "which"),
        rows=rows,
        numeric=(False, True, False),
        caption="Pruning, by layer",
    )


def _listed(names: Sequence[str]) -> str:
    further = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {count(further)} more" if further > 0 else "")

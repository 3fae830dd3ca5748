# SPDX-License-Identifier: Apache-2.0
"""The sections on training and compression: curves, gains, comparisons of outputs, and the steps for each layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfq.report.audit_content import zeros_of
from tfq.report.formatting import (
    DASH,
    NOT_A_TIME,
    count,
    cpu_label,
    decibels,
    is_number,
    kilobytes,
    number_of,
    percent,
    plain,
    ratio,
    scalar,
    significant,
    time_unit,
    with_interval,
)
from tfq.report.record import (
    REFERENCE,
    Record,
    Reported,
    backends_of,
    curves_of,
    histories_of,
    latencies_of,
    models_of,
    part,
    stages_of,
)
from tfq.report.summary import training_notes
from tfq.report.tables import SORTABLE_FROM, Section, Table

UNSTRUCTURED = (
    "Pruning and clustering single weights makes the file smaller only after compression such as gzip, and does not "
    "make the model faster: TFLite's int8 kernels multiply by zeros too. Structured pruning, which removes whole "
    "filters (compression.structured_pruning), makes it faster."
)


def gain_section(record: Record) -> Section | None:
    """Return the comparison of the compressed model with the PTQ model of the same scheme; None if one is missing."""
    models = [model for model in models_of(record) if model.evaluation]
    dense = next((model for model in models if str(model.name).startswith("ptq_")), None)
    small = next((model for model in models if model is not dense and model.name != REFERENCE), None)
    if dense is None or small is None:
        return None
    times = latencies_of(record).medians_ms
    unit = time_unit(times.get(model.name) for model in (dense, small))
    latency = f"latency on this machine, p50 {unit.short}"
    rows = [
        _row("accuracy", dense, small, lambda model: model.evaluation, with_interval, compared=False),
        _row("file, bytes", dense, small, lambda model: model.evaluation.get("model_bytes"), count),
        _row("gzip, bytes", dense, small, lambda model: model.evaluation.get("gzip_bytes"), count),
        _row("zeros among the weights", dense, small, zeros_of, percent, compared=False),
        _row(latency, dense, small, lambda model: times.get(model.name), unit.text),
    ]
    for backend in backends_of([dense, small], "instructions"):
        what = f"instructions on {cpu_label(backend)} ({NOT_A_TIME})"
        rows.append(_row(what, dense, small, _instructions(backend), count))
    rows = [row for row in rows if row[1:3] != (DASH, DASH)]
    table = Table(
        key="gain",
        columns=("", dense.label, small.label, "ratio"),
        rows=tuple(rows),
        column_series={1: dense.series, 2: small.series},
    )
    asked = part(part(record, "config"), "compression")
    pruned, clustered, cut = (part(asked, step).get("enabled") for step in ("prune", "cluster", "structured_pruning"))
    about = [f"{small.label} compared with {dense.label}; a ratio below 1 is an improvement."]
    about += training_notes(record)
    about += [UNSTRUCTURED] if (pruned or clustered) and not cut else []
    ratios = {row[0]: row[3] for row in rows}
    gist = ", ".join(
        f"{name} {ratios[what]}"
        for name, what in (("gzip size", "gzip, bytes"), ("latency", latency))
        if ratios.get(what, DASH) != DASH
    )
    return Section(
        key="gain",
        title="Effect of compression",
        gist=gist and f"{gist} of {dense.label}",
        paragraphs=tuple(about),
        tables=(table,),
    )


def _row(
    what: str,
    dense: Reported,
    small: Reported,
    of: Callable[[Reported], Any],
    show: Callable[[Any], str],
    *,
    compared: bool = True,
) -> tuple[str, str, str, str]:
    before, after = of(dense), of(small)
    fraction = ratio(after / before) if compared and is_number(before) and is_number(after) and before else DASH
    return what, show(before), show(after), fraction


def _instructions(backend: str) -> Callable[[Reported], Any]:
    return lambda model: part(model.instructions, backend).get("instructions")


def verification_section(record: Record) -> Section | None:
    """Return the comparison of each converted model with its float version; None if the record has none."""
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
        "The outputs of each converted model on a few calibration samples, compared with those of the float model that "
        "it was converted from. SQNR is the ratio of signal to error: higher is better. The ideal SQNR is that of "
        "rounding the float outputs to the output's own scale. A constant slice is a channel that varies in the float "
        "model and has a single value in the converted one."
    )
    head = ("model", "output", "SQNR", "ideal SQNR", "agreement", "constant slices", "distinct values")
    numeric = (False, False, *(True,) * 5)
    tables = (Table(key="verification", columns=head, rows=tuple(rows), numeric=numeric),) if rows else ()
    outputs = [output for model in models_of(record) for output in model.verification.get("outputs") or []]
    lowest = min((item["sqnr_db"] for item in outputs if is_number(item.get("sqnr_db"))), default=None)
    gist = "see the notes" if paragraphs else "" if lowest is None else f"SQNR {decibels(lowest)} or more"
    return Section(
        key="verification",
        title="Outputs compared with the float model",
        gist=gist,
        paragraphs=(about, *paragraphs),
        tables=tables,
    )


def qat_parity_section(record: Record) -> Section | None:
    """Return the comparison of each QAT model with the .tflite file made from it; None if the run had none."""
    paragraphs: list[str] = []
    tables: list[Table] = []
    for model in models_of(record):
        result = model.qat_parity
        if "not_run" in result:
            paragraphs.append(f"{model.label}: not compared: {plain(result['not_run'])}.")
        elif result:
            paragraphs += _parity_sentences(model.label, result)
            tables.append(_parity_layers(model.label, result))
    if not paragraphs:
        return None
    about = (
        "The same examples were run through the QAT model in TensorFlow and through its .tflite file. Rounding errors "
        "add up, so that the SQNR falls with the depth. For the local columns, each layer was fed with the values of "
        "the .tflite file, so that they show the difference of that layer alone."
    )
    missed = sum(len(model.qat_parity.get("missed") or []) for model in models_of(record))
    gist = number_of(missed, "difference") if missed else "no difference"
    return Section(
        key="qat_parity",
        title="QAT model compared with its .tflite file",
        gist=f"{gist} beyond rounding" if tables else "",
        paragraphs=(about, *paragraphs),
        tables=tuple(tables),
    )


def _parity_sentences(label: str, result: Record) -> list[str]:
    messages = [
        f"{label}, {count(result.get('num_examples'))} examples: {plain(result.get('departure_text') or DASH)}."
    ]
    for output in result.get("outputs") or []:
        same = percent(output.get("top1_agreement"))
        classes = f"; the predicted class is the same for {same} of the examples" if same != DASH else ""
        messages.append(
            f"{label}, output {plain(output.get('name', '?'))}: {plain(output.get('logits_of', 'output'))}: "
            f"{decibels(output.get('logit_sqnr_db'))}{classes}."
        )
    missed = [plain(item) for item in result.get("missed") or []]
    messages += [f"{label} differs from the QAT model by more than rounding: {item}." for item in missed]
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
            "differs" if layer.get("departs") else DASH,
        )
        for layer in layers
    )
    departs = [
        f"{plain(layer.get('layer', '?'))}: {plain(layer['departs'])}" for layer in layers if layer.get("departs")
    ]
    skipped = [
        f"{plain(name)}: not compared: {plain(reason)}"
        for name, reason in part(result, "skipped").items()
        if not str(reason).startswith("part of ")  # a fused layer, which the first column names
    ]
    return Table(
        key="qat_parity",
        columns=("layer", "op", "equal values", "max LSB", "SQNR", "local max LSB", "local SQNR", "finding"),
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
    "ptq_only": "the converter",
    "unsupported": "not supported",
}


def compression_tables(stages: Sequence[Record]) -> list[Table]:
    """Return tables on what the compression of the model did to each layer; none if there was no compression."""
    details = [part(stage, "details") for stage in stages]

    def first(key: str) -> Record:
        return next((part(item, key) for item in details if part(item, key)), {})

    tables = (
        _bridge(first("bridge")),
        _layers(first("preflight")),
        _structured_pruning(first("structured_pruning")),
        _pruning(first("pruning_plan")),
        _recurrent(details),
    )
    return [table for table in tables if table]


def _recurrent(details: Sequence[Record]) -> Table | None:
    """Return the form of each recurrent layer in the last flatbuffer that has some; None if there are none."""
    lists = [item.get("recurrent_layers") or [] for item in details]
    layers: list[Record] = next((item for item in reversed(lists) if item), [])
    if not layers:
        return None
    rows = []
    for layer in layers:
        unrolled, kernel = part(layer, "unrolled"), layer.get("kernel")
        estimate = f"{count(unrolled['ops'])} ops, {kilobytes(unrolled['bytes'])}" if unrolled else DASH
        form = (
            f"{plain(layer.get('form'))} ({plain(kernel)} kernel, not XNNPACK)" if kernel else plain(layer.get("form"))
        )
        rows.append(
            (
                f"{plain(layer.get('layer'))} ({plain(layer.get('kind'))})",
                scalar(layer.get("steps")),
                form,
                scalar(layer.get("ops")),
                estimate,
                plain(layer.get("reason")),
            )
        )
    return Table(
        key="recurrent",
        columns=("layer", "steps", "form", "ops", "unrolled, estimated", "reason"),
        rows=tuple(rows),
        numeric=(False, True, False, True, True, False),
        caption="Recurrent layers",
    )


def _bridge(bridge: Record) -> Table | None:
    """Return the changes of a model that was rebuilt from tf_keras layers, and the difference of its outputs."""
    notes, names = bridge.get("notes") or [], part(bridge, "layer_map")
    same = all(list(built or []) == [name] for name, built in names.items())
    if not bridge or (same and not notes and not bridge.get("max_difference")):
        return None
    rows = [("largest difference of outputs, relative to their range", scalar(bridge.get("max_difference")))]
    rows += [("note", plain(note)) for note in notes]
    rows += [
        ("layers under another name", f"{plain(name)} → {', '.join(map(plain, built)) or 'left out'}")
        for name, built in names.items()
        if list(built or []) != [name]
    ]
    return Table(
        key="bridge",
        columns=("what", "value"),
        rows=tuple(rows),
        numeric=(False, False),
        caption="Rebuilding from tf_keras layers",
    )


def _layers(preflight: Record) -> Table | None:
    """Return how many layers were quantized in which way; for those left to the converter, with the reason."""
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
        key="quantization",
        columns=("quantized by", "number of layers", "layers", "reason"),
        rows=rows,
        numeric=(False, True, False, False),
        caption="Quantization, by layer",
    )


def _structured_pruning(pruned: Record) -> Table | None:
    """Return the remaining channels of each pruned layer, and the model's multiply-adds and parameters."""
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
        (f"error of {plain(name)}, by refitting", percent(layer.get("before")), percent(layer.get("after")))
        for name, layer in part(pruned, "refit").items()
    ]
    branches = part(pruned, "branches").items()
    notes = {plain(name): f"without {', '.join(map(plain, layers or []))}" for name, layers in branches}
    notes |= {plain(name): plain(reason) for name, reason in part(pruned, "skipped").items()}
    return Table(
        key="structured_pruning",
        columns=("what", "before", "after"),
        rows=tuple(rows),
        numeric=(False, True, True),
        caption="Structured pruning",
        notes=tuple(f"{name}: {text}" for name, text in notes.items()),
    )


def _pruning(plan: Record) -> Table | None:
    """Return the pruned layers, and for the others each reason once with its layers."""
    if not plan:
        return None
    layers: dict[str, list[str]] = {"pruned": [plain(name) for name in plan.get("pruned") or []]}
    for name, reason in part(plan, "skipped").items():
        # "ReLU has no weights" and "Add has no weights" are the same reason.
        words = plain(reason)
        layers.setdefault("no weights" if words.endswith("has no weights") else words, []).append(plain(name))
    rows = tuple((what, count(len(names)), _listed(names)) for what, names in layers.items())
    return Table(
        key="pruning",
        columns=("result", "number of layers", "layers"),
        rows=rows,
        numeric=(False, True, False),
        caption="Pruning, by layer",
    )


def _listed(names: Sequence[str]) -> str:
    further = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {count(further)} more" if further > 0 else "")


# Curves of Keras' history with their own column in the table.
_KNOWN = ("loss", "accuracy", "val_loss", "val_accuracy")


def training_section(record: Record) -> Section | None:
    """Return the section on training: curves, and their first and last values; None if nothing was trained."""
    histories = [(step, item, curves_of(item)) for step, item in histories_of(stages_of(record))]
    histories = [(step, item, curves) for step, item, curves in histories if any(key in curves for key in _KNOWN)]
    if not histories:
        return None
    epochs = {step: max(map(len, curves.values())) for step, _, curves in histories}
    rows = tuple(
        (step, count(epochs[step]), *(_ends(key, curves.get(key)) for key in _KNOWN)) for step, _, curves in histories
    )
    losses = dict.fromkeys(_loss_text(item["loss_function"]) for _, item, _ in histories if item.get("loss_function"))
    table = Table(
        key="training",
        columns=("step", "epochs", "loss", "accuracy", "validation loss", "validation accuracy"),
        rows=rows,
        caption="Values of the first and the last epoch",
        notes=tuple(f"loss: {loss}" for loss in losses),
    )
    steps = ", ".join(f"{step} {count(number)}" for step, number in epochs.items())
    return Section(
        key="training",
        title="Training",
        gist=f"{number_of(sum(epochs.values()), 'epoch')} ({steps})",
        paragraphs=tuple(training_notes(record)),
        tables=(table,),
    )


def _loss_text(loss: object) -> str:
    """Return a loss, or the losses of several outputs: "classes: ..., boxes: ..."."""
    if isinstance(loss, Mapping):
        return ", ".join(f"{plain(name)}: {plain(text)}" for name, text in loss.items())
    return plain(loss)


def _ends(curve: str, values: list[float] | None) -> str:
    if not values:
        return DASH
    ends = [values[0], values[-1]] if len(values) > 1 else values
    return " → ".join(map(percent if curve.endswith("accuracy") else scalar, ends))

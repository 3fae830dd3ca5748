# SPDX-License-Identifier: Apache-2.0
"""The report's tables on compression: the model rebuilt, what each layer could take, filters taken out, zeros made."""

from collections.abc import Mapping, Sequence

from tfq.report.formatting import count, percent, plain, scalar
from tfq.report.reported import Record, part
from tfq.report.tables import Table

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
        return next((part(each, key) for each in details if part(each, key)), {})

    tables = (
        _bridge(found("bridge")),
        _layers(found("preflight")),
        _filters(found("filters")),
        _pruning(found("pruning_plan")),
    )
    return [table for table in tables if table]


def _bridge(bridge: Record) -> Table | None:
    """Of a model that was rebuilt: how far its outputs are from the user's own, and what was changed."""
    notes, names = bridge.get("notes") or [], part(bridge, "layer_map")
    same = all(list(made or []) == [name] for name, made in names.items())
    if not bridge or (same and not notes and not bridge.get("max_difference")):
        return None
    rows = [("largest difference of outputs, of their range", scalar(bridge.get("max_difference")))]
    rows += [("note", plain(note)) for note in notes]
    rows += [
        ("layers under another name", f"{plain(name)} → {', '.join(map(plain, made)) or 'left out'}")
        for name, made in names.items()
        if list(made or []) != [name]
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


def _filters(filters: Record) -> Table | None:
    """Channels left of each layer that lost some, and of the multiply-adds and parameters as a whole."""
    removed = part(filters, "removed")
    if not filters:
        return None
    rows = [
        ("multiply-adds", scalar(filters.get("macs_before")), scalar(filters.get("macs_after"))),
        ("parameters", scalar(filters.get("parameters_before")), scalar(filters.get("parameters_after"))),
    ]
    rows += [
        (f"channels of {plain(name)}", scalar(part(removed, name).get("of")), scalar(part(removed, name).get("kept")))
        for name in removed
    ]
    rows += [
        (f"error of {plain(name)}, fit anew", percent(layer.get("before")), percent(layer.get("after")))
        for name, layer in part(filters, "refit").items()
    ]
    skipped = {plain(name): plain(reason) for name, reason in part(filters, "skipped").items()}
    return Table(
        columns=("what", "before", "after"),
        rows=tuple(rows),
        numeric=(False, True, True),
        caption="Filters taken out",
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

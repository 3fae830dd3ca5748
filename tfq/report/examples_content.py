# SPDX-License-Identifier: Apache-2.0
"""The section on single examples for which two models differ: other classes, other maps of classes, or other boxes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.report.formatting import DASH, class_text, count, is_number, percent, plain, significant
from tfq.report.record import REFERENCE, Record, models_of, part
from tfq.report.tables import Section, Table


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The names and colors of the two models that a table compares."""

    reference: str
    model: str
    series: int | None = None

    def of(self, name: Any) -> str:
        """Return the name of a part of a picture for readers."""
        return {"reference": self.reference, "model": self.model}.get(plain(name), plain(name))


def examples_section(record: Record) -> Section | None:
    """Return the examples for which the models of a run and its float model differ; None without any."""
    pairs = [
        (_Pair(reference=REFERENCE, model=model.label, series=model.series), model.evaluation)
        for model in models_of(record)
        if model.label != REFERENCE
    ]
    return _section(pairs)


def examples_of_pair(evaluation: Record, reference: str, model: str) -> Section | None:
    """Return the examples for which two models differ; None if the record has none.

    Args:
        evaluation: `compared`, and `differing_examples` as in an EvaluationRecord.
        reference: The name of the reference for readers.
        model: The name of the other model.
    """
    return _section([(_Pair(reference=reference, model=model), evaluation)])


def _section(pairs: Sequence[tuple[_Pair, Record]]) -> Section | None:
    items, tables, abouts = [], [], []
    for pair, evaluation in pairs:
        differing = part(evaluation, "differing_examples")
        if not differing:
            continue
        kind = _KINDS.get(plain(differing.get("kind") or "classes"))
        if kind is None:
            continue
        examples = [item for item in differing.get("examples") or [] if isinstance(item, Mapping)]
        items.append(f"{pair.model}: {_counted(differing, examples, count(evaluation.get('compared')), kind)}")
        abouts.append(kind.about.format(reference=_the(pair.reference), **_settings(differing)))
        if examples:
            tables.append(kind.table(pair, differing, examples))
    if not items:
        return None
    return Section(
        key="examples",
        title=f"Examples that differ from {_the(pairs[0][0].reference)}",
        gist="; ".join(items) if len(items) == 1 else "",
        paragraphs=tuple(dict.fromkeys(abouts)),
        items=tuple(items),
        tables=tuple(tables),
    )


def _the(reference: str) -> str:
    return "the float model" if reference == REFERENCE else reference


def _settings(differing: Record) -> dict[str, str]:
    return {name: significant(differing.get(name)) for name in ("min_score", "min_iou")}


def _counted(differing: Record, examples: Sequence[Record], compared: str, kind: "_Kind") -> str:
    total = differing.get("count")
    text = f"{count(total)} of {compared} examples {kind.differ}" if total else f"none of {compared} examples differs"
    if is_number(differing.get("agreement")):
        text += f"; mean agreement {percent(differing['agreement'])}"
    if examples and len(examples) != total:
        text += f"; {count(len(examples))} are shown: {plain(differing.get('order'))}"
    return text


def _picture_notes(differing: Record) -> tuple[str, ...]:
    reason = differing.get("picture_reason")
    return (f"no pictures: {plain(reason)}",) if reason else ()


def _row_series(pair: _Pair, rows: Sequence[object]) -> tuple[int | None, ...]:
    return () if pair.series is None else (pair.series,) * len(rows)


def _legend(differing: Record, pair: _Pair) -> tuple[tuple[str, str], ...]:
    """Return (color, text) of what is in the pictures, with the names of the models."""
    results = []
    for item in differing.get("legend") or []:
        if isinstance(item, Mapping):
            text = plain(item.get("text"))
            for word, name in (("the reference", _the(pair.reference)), ("the model", pair.model)):
                text = text.replace(word, name)
            results.append((plain(item.get("color")), text))
    return tuple(results)


def _class_table(pair: _Pair, differing: Record, examples: Sequence[Record]) -> Table:
    rows = []
    for item in examples:
        names, label = part(item, "names"), item.get("label")
        cells = [f"{class_text(item.get(key), names.get(str(item.get(key))))}" for key in ("reference_class", "class")]
        rows.append(
            (
                f"#{plain(item.get('index'))}",
                class_text(label, names.get(str(label))),
                cells[0],
                significant(item.get("reference_score")),
                cells[1],
                significant(item.get("score")),
            )
        )
    wrong = frozenset(
        (row, column)
        for row, item in enumerate(examples)
        for column, key in ((2, "reference_class"), (4, "class"))
        if item.get("label") not in (None, item.get(key))
    )
    return Table(
        key="examples",
        columns=("example", "label", pair.reference, "score", pair.model, "score"),
        rows=tuple(rows),
        numeric=(False, False, False, True, False, True),
        caption=f"Examples that differ, {pair.model}",
        notes=_picture_notes(differing),
        row_series=_row_series(pair, rows),
        pictures=tuple(item.get("picture") for item in examples),
        bad=wrong,
    )


def _position_table(pair: _Pair, differing: Record, examples: Sequence[Record]) -> Table:
    rows = [
        (
            f"#{plain(item.get('index'))}",
            percent(item.get("agreement")),
            f"{count(item.get('differing'))} of {count(item.get('positions'))}",
            percent(item.get("reference_accuracy")),
            percent(item.get("accuracy")),
            ", ".join(map(_change_text, _mappings(item, "changes"))) or DASH,
        )
        for item in examples
    ]
    return Table(
        key="examples",
        columns=(
            *("example", "agreement", "positions that differ", f"right, {pair.reference}", f"right, {pair.model}"),
            f"most frequent changes, {pair.reference} → {pair.model}",
        ),
        rows=tuple(rows),
        numeric=(False, True, True, True, True, False),
        caption=f"Examples that differ most, {pair.model}",
        notes=_picture_notes(differing),
        row_series=_row_series(pair, rows),
        pictures=tuple(item.get("picture") for item in examples),
        panels=tuple(pair.of(name) for name in differing.get("panels") or ()),
        legend=_legend(differing, pair),
    )


def _mappings(item: Record, key: str) -> list[Mapping[str, Any]]:
    return [entry for entry in item.get(key) or [] if isinstance(entry, Mapping)]


def _change_text(change: Record) -> str:
    before = class_text(change.get("reference_class"), change.get("reference_name"))
    after = class_text(change.get("class"), change.get("name"))
    return f"{before} → {after}: {count(change.get('count'))}"


def _box_table(pair: _Pair, differing: Record, examples: Sequence[Record]) -> Table:
    rows = []
    for item in examples:
        boxes = [_box_text(box, pair) for box in _mappings(item, "differing")]
        unmatched = item.get("unmatched")
        further = unmatched - len(boxes) if is_number(unmatched) else 0
        boxes += [f"and {count(further)} more"] if further > 0 else []
        rows.append(
            (
                f"#{plain(item.get('index'))}",
                percent(item.get("agreement")),
                count(item.get("labels")),
                count(item.get("reference_boxes")),
                count(item.get("boxes")),
                "; ".join(boxes) or "none",
            )
        )
    return Table(
        key="examples",
        columns=("example", "agreement", "labeled", pair.reference, pair.model, "boxes without counterpart"),
        rows=tuple(rows),
        numeric=(False, True, True, True, True, False),
        caption=f"Images that differ most, in numbers of boxes, {pair.model}",
        notes=(
            *_picture_notes(differing),
            "Pictures: boxes without counterpart have a thick border. The last part shows the boxes of both models.",
        ),
        row_series=_row_series(pair, rows),
        pictures=tuple(item.get("picture") for item in examples),
        panels=tuple(pair.of(name) for name in differing.get("panels") or ()),
        legend=_legend(differing, pair),
    )


def _box_text(box: Record, pair: _Pair) -> str:
    other = pair.reference if box.get("by") == "model" else pair.model
    score = box.get("other_score")
    opposite = f"{other} {significant(score, 4)}" if is_number(score) else f"{other} none"
    named = class_text(box.get("class"), box.get("name"))
    return f"{named}: {pair.of(box.get('by'))} {significant(box.get('score'), 4)}, {opposite}"


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How a kind of difference is shown.

    Attributes:
        about: The introduction, with {reference} and settings of the record.
        differ: What the counted examples do.
        table: (names of the models, the record's differences, its examples) -> table.
    """

    about: str
    differ: str
    table: Callable[[_Pair, Record, Sequence[Record]], Table]


_KINDS = {
    "classes": _Kind(
        about="Examples whose class differs from that of {reference}. The score is the output for the predicted class.",
        differ="differ",
        table=_class_table,
    ),
    "positions": _Kind(
        about="Examples in which the classes of most positions differ from those of {reference}. Agreement is the "
        "fraction of positions with the same class. The fractions that are right are of the labeled positions.",
        differ="have a position that differs",
        table=_position_table,
    ),
    "boxes": _Kind(
        about="Images whose boxes differ most from those of {reference}, of the boxes with a score of at least "
        "{min_score}. Boxes of one class with an IoU of at least {min_iou} are counterparts. The agreement is the sum "
        "of the IoUs of both boxes of each such pair, divided by the number of boxes of both models.",
        differ="have a box without counterpart",
        table=_box_table,
    ),
}

# SPDX-License-Identifier: Apache-2.0
"""A comparison as text for the terminal: the largest differences first, and how many are not shown."""

from collections.abc import Iterable, Sequence
from typing import Any

from tfq.comparison.change import FORMAL_PARTS, PARTS, Change, shortened
from tfq.comparison.constants import ConstantDifference
from tfq.comparison.metric_changes import changes_from_reference, metric_lines
from tfq.comparison.record import ComparisonRecord
from tfq.evaluation import EvaluationRecord
from tfq.evaluation.metric_text import score_text
from tfq.text_table import aligned, listed

_MOST_ROWS, _MOST_PLACES, _LONGEST_VALUE, _LONGEST_LABEL, _CONTEXT = 12, 3, 48, 44, 12
DASH = "-"


def text_of(record: ComparisonRecord) -> str:
    """Return the text: sizes, how ops were matched, then a table for each part that differs."""
    parts = [_sizes(record)]
    if record.byte_identical:
        return "\n".join([*parts, "", "The files are identical."])
    parts.append(matching_text(record))
    if not record.num_differences:
        return "\n".join([*parts, "", "Nothing differs, except the layout of the files."])
    for part in PARTS:
        if part == FORMAL_PARTS[0]:
            parts += [*_constants(record), *_activations(record)]
        parts += _changes(record, part)
    return "\n".join([*parts, *(f"\n{note}" for note in record.notes)])


def _changes(record: ComparisonRecord, part: str) -> list[str]:
    values = changed_values(change for change in record.changes if change.part == part)
    rows = [(*key, _where(names)) for key, names in values.items()]
    return _table(PARTS[part], ("", "A", "B", "where"), rows, left=4)


def _sizes(record: ComparisonRecord) -> str:
    facts = [record.files[name] for name in ("reference", "model")]
    rows = [
        (name, f"{item['bytes']:,} bytes", _compressed(item), change)
        for name, item, change in zip("AB", facts, ("", _size_change(*facts)), strict=True)
    ]
    return "\n".join(aligned(rows, left=1))


def _compressed(facts: dict[str, Any]) -> str:
    return "gzip not measured" if facts["gzip_bytes"] is None else f"gzip {facts['gzip_bytes']:,}"


def _size_change(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    return f"{100 * (theirs['bytes'] / ours['bytes'] - 1):+.1f}%"


def matching_text(record: ComparisonRecord) -> str:
    """Return a sentence that says how many ops were matched, and how."""
    matching = record.matching
    rules = ", ".join(f"{count} by {rule}" for rule, count in matching.rules.items())
    return (
        f"{matching.matched} of the {matching.reference_ops} ops of A and {matching.model_ops} of B are matched"
        f"{f': {rules}' if rules else ''}."
    )


def changed_values(changes: Iterable[Change], longest: int = _LONGEST_VALUE) -> dict[tuple[str, str, str], list[str]]:
    """Return {(what, reference, model): where} of all changes of the same property between the same values.

    Args:
        changes: The changes of one part.
        longest: The number of characters after which a value is cut.
    """
    places: dict[tuple[str, str, str], list[str]] = {}
    for change in changes:
        values = _contrasted(shortened(change.reference), shortened(change.model), longest)
        if change.part == "ops" and change.what in ("added", "removed"):
            # One row for all added ops of a type: their shapes are in the record.
            values = [value.partition(" -> ")[0] for value in values]
        places.setdefault((change.what, values[0], values[1]), []).append(change.where)
    return places


def _where(names: Sequence[str]) -> str:
    return f"{listed(list(map(_brief, names)), _MOST_PLACES)}" + (
        f" ({len(names)})" if 1 < len(names) <= _MOST_PLACES else ""
    )


def _brief(label: str) -> str:
    """Return the label of an op, shortened in the middle: names of tensors can be long."""
    return label if len(label) <= _LONGEST_LABEL else f"{label[:20]}...{label[3 + 20 - _LONGEST_LABEL :]}"


def _contrasted(reference: Any, model: Any, longest: int) -> list[str]:
    """Return both values as text; if long texts begin equally, only the parts around the first difference."""
    texts = [str(value) if isinstance(value, str) else "" for value in (reference, model)]
    equal = next((place for place, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), 0)
    if max(map(len, texts)) > longest and equal > _CONTEXT:
        return [_shown(f"...{text[equal - _CONTEXT :]}", longest) for text in texts]
    shown = [_shown(reference, longest), _shown(model, longest)]
    # Numbers may differ only in digits that are usually not shown.
    return [str(reference), str(model)] if shown[0] == shown[1] and isinstance(reference, float) else shown


def _shown(value: Any, longest: int) -> str:
    if value is None:
        return DASH
    text = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return the title and the first rows, without columns that have only dashes."""
    if not rows:
        return []
    cells = [head, *rows[:_MOST_ROWS]]
    columns = [place for place in range(len(head)) if any(row[place] != DASH for row in cells[1:])]
    left = sum(place < left for place in columns)
    lines = aligned([[row[place] for place in columns] for row in cells], left=left)
    more = len(rows) - _MOST_ROWS
    return ["", title, *(f"  {line}" for line in lines), *([f"  and {more} more"] if more > 0 else [])]


def _constants(record: ComparisonRecord) -> list[str]:
    differing = [item for item in record.constants if item.differs]
    head = (
        "op",
        "input",
        "A",
        "B",
        "SQNR dB",
        "worst channel",
        "max error",
        "scale B/A",
        "zeros A",
        "zeros B",
        "bytes changed",
    )
    title = f"Constants of matched ops: {len(differing)} of {len(record.constants)} differ, worst first"
    lines = _table(title, head, [_constant_row(item) for item in differing], left=4)
    reasons = dict.fromkeys(item.reason for item in differing if item.sqnr_db is None and item.reason)
    return lines + [f"  no SQNR: {reason}" for reason in list(reasons)[:_MOST_PLACES]]


def _constant_row(item: ConstantDifference) -> tuple[str, ...]:
    worst = DASH
    if item.worst_channel is not None:
        worst = f"#{item.worst_channel} {item.worst_channel_sqnr_db:.1f} dB"
    return (
        _brief(item.op),
        f"{item.input} {item.role}",
        *(
            f"{stored.dtype} {stored.granularity.replace(', axis', '')}".strip()
            for stored in (item.reference, item.model)
        ),
        DASH if item.sqnr_db is None else f"{item.sqnr_db:.1f}",
        worst,
        number(item.max_abs_error),
        number(item.scale_ratio),
        *(
            DASH if stored.sparsity is None else f"{100 * stored.sparsity:.1f}%"
            for stored in (item.reference, item.model)
        ),
        DASH if item.changed_bytes is None else f"{item.changed_bytes:,} of {item.reference.bytes:,}",
    )


def number(value: float | None) -> str:
    """Return a number with four significant digits, or a dash."""
    return DASH if value is None else f"{value:.4g}"


def _activations(record: ComparisonRecord) -> list[str]:
    rows = [
        (
            _brief(item.where),
            item.dtype,
            number(item.reference_scale),
            number(item.model_scale),
            number(item.scale_ratio),
            str(item.reference_zero_point),
            str(item.model_zero_point),
        )
        for item in record.activations
    ]
    head = ("op", "type", "scale A", "scale B", "B/A", "zero point A", "zero point B")
    return _table("Quantization of activations, largest ratio first", head, rows, left=2)


def outputs_text(evaluation: EvaluationRecord) -> str:
    """Return the comparison of the outputs of both files on the same examples."""
    kernels = ", XNNPACK" if evaluation.xnnpack else ""
    title = f"Outputs on {evaluation.compared:,} examples ({evaluation.backend}{kernels})"
    rows = [
        (
            str(output["name"]),
            DASH if output["sqnr_db"] is None else f"{output['sqnr_db']:.1f}",
            score_text("fraction", output["agreement"]) or DASH,
            "; ".join(reason for key in ("sqnr_db_reason", "agreement_reason") if (reason := output[key])) or DASH,
        )
        for output in evaluation.outputs
    ]
    lines = _table(title, ("output", "SQNR dB", "agreement", "missing because"), rows, left=1)
    lines += metric_lines(changes_from_reference(evaluation.to_dict()), "A", "B")
    return "\n".join(lines)

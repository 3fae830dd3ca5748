# SPDX-License-Identifier: Apache-2.0
"""The section of `tfq analyze` on occlusion saliency: how much the maps agree, and where they disagree."""

from collections.abc import Mapping
from typing import Any

from tfq.analysis.explain import NO_STEP, NOT_SAID
from tfq.analysis.observed import ONE_VALUE, POSITIONS
from tfq.report.formatting import DASH, class_text, count, is_number, number_of, percent, plain
from tfq.report.record import Record
from tfq.report.tables import Section, Table

_HOW_DRAWN = {
    "signal": "the signal between its lowest and its highest value, all channels over each other",
    "features": "each feature between its lowest and its highest value in the examples",
}


def explain_section(explained: Record) -> Section:
    """Return the section on the maps of an `Explanation`."""
    parts = f"{' x '.join(map(count, explained['map_shape']))} parts of {' x '.join(map(count, explained['patch']))}"
    of_map = explained.get("observed") == POSITIONS
    target = "class with the most positions, other than class 0," if of_map else "largest value of the float model"
    about = (
        f"One part of the input at a time is replaced ({parts}; filled with: {plain(explained['fill'])}), and the map "
        f"is how much the score of the target in output {plain(explained['output'])} falls. The score is "
        f"{plain(explained.get('observed') or ONE_VALUE)}. The target is the {target} unless analysis.explain.target "
        "chooses one."
    )
    pictures = (
        "Pictures: the input, the map of the float model, the map of the int8 model. Red: hiding the part lowers the "
        "score; blue: it raises it. Each map is drawn relative to its own largest value."
        if explained["kind"] == "image"
        else "Pictures: the map of the float model, that of the int8 model, and the input, from top to bottom. Red: "
        "hiding the part lowers the score; blue: it raises it. Each map is drawn relative to its own largest value, "
        f"{_HOW_DRAWN[explained['kind']]}."
    )
    return Section(
        key="explain",
        title="Occlusion saliency",
        paragraphs=(about,),
        tables=(_agreement(explained), _examples(explained, pictures)),
        folded=False,
    )


def _agreement(explained: Record) -> Table:
    ends, step = explained["interval"], explained["step"]
    interval = f"{_score(ends[0])} to {_score(ends[1])}" if ends else plain(explained["interval_reason"])
    rows = (
        ("mean rank correlation of the float and the int8 map", _score(explained["correlation"])),
        ("95% interval (bootstrap over the examples)", interval),
        ("examples without one, because a map is constant", count(explained["num_constant"])),
        ("rank correlation with only the output rounded to int8's steps", _score(explained["rounded_correlation"])),
        ("rank correlation with the int8 map of another example", _score(explained["control_correlation"])),
        (
            f"in common of the {number_of(explained['num_top'], 'most important part')}",
            percent(explained["top_overlap"]),
        ),
        ("parts that leave the int8 score exactly as it is", percent(explained["unchanged"])),
        (
            "parts that change the float score by less than one step of the int8 output",
            f"{percent(explained['below_step'])} (step {step:.4g})"
            if is_number(step)
            else plain(explained.get("step_reason") or NO_STEP),
        ),
        ("inferences of each model", count(explained["num_inferences"])),
    )
    return Table(
        key="agreement",
        columns=("quantity", f"{number_of(explained['num_examples'], 'example')}"),
        rows=rows,
        notes=(
            NOT_SAID,
            "Changes of less than one step of the output cannot be seen in the int8 map: a confident softmax, whose "
            "score hardly falls, has a flat map. The correlation with only the output rounded is what steps allow.",
        ),
    )


def _examples(explained: Record, pictures: str) -> Table:
    listed = explained["examples"]
    reasons = sorted({plain(item["correlation_reason"]) for item in listed if item["correlation_reason"]})
    stored = sum(item["picture"] is not None for item in listed)
    return Table(
        key="explain",
        caption="Examples, those whose maps disagree most first",
        columns=("example", "target", "float", "int8", "correlation", "output rounded", "top parts", "unchanged"),
        rows=tuple(map(_row, listed)),
        notes=(
            *((pictures,) if stored else ()),
            *(
                (f"Only the first {count(stored)} have pictures (analysis.explain.pictures).",)
                if stored < len(listed)
                else ()
            ),
            *(f"A dash: {reason}." for reason in reasons),
        ),
        pictures=tuple(item["picture"] for item in listed),
    )


def _row(item: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        count(item["index"]),
        class_text(item["target"], item.get("target_name")),
        f"{item['float_score']:.4g}",
        f"{item['int8_score']:.4g}",
        _score(item["correlation"]),
        _score(item["rounded_correlation"]),
        percent(item["top_overlap"]),
        percent(item["unchanged"]),
    )


def _score(value: Any) -> str:
    return f"{value:.3f}" if is_number(value) else DASH

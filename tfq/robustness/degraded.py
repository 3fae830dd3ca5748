# SPDX-License-Identifier: Apache-2.0
"""The examples that models lose under corruption: their pictures, and what each model predicts."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfq.data import Split, class_labels
from tfq.errors import InputError
from tfq.evaluation.example_images import examples_at
from tfq.evaluation.pictures import thumbnails, why_no_picture
from tfq.robustness.corruption import corrupt
from tfq.robustness.runs import Answers

if TYPE_CHECKING:
    from tfq.robustness.evaluate import _Session

ORDER_PAIRED = "by how many more corrupted versions the reference gets right than {subject}"
ORDER_ALONE = "by how many corrupted versions {subject} gets wrong, of examples that it gets right without corruption"


def degraded_examples(session: "_Session", limit: int) -> tuple[dict[str, Any] | None, str | None]:
    """Return the examples that a model loses most under corruption; or None and the reason.

    The model is the one that loses most in addition to the reference; the only model if there is no other. The result
    has its name (`subject`), the `order` and `examples`: `index`, `label`, `corruption` and `severity` (the mildest
    condition that the model gets wrong; with a reference, and that the reference gets right), `lost` (the number of
    such conditions), `classes` {model: prediction on the corrupted input}, `clean_classes`, and the pictures `clean`
    and `corrupted`, PNG files in base64, null for inputs that are not images (`picture_reason`).
    """
    if not limit:
        return None, "evaluation.robustness.degraded_examples is 0"
    right = _right(session)
    if right is None:
        return None, session.runner.reason or "the metric does not decide for each example whether it is right"
    conditions = [item for item in session.conditions if not item[0].is_mistake] or session.conditions
    subject, lost = _subject(session, right, [(c.name, s) for c, s in conditions])
    counts = lost.sum(axis=0)
    chosen = [int(index) for index in np.argsort(-counts, kind="stable")[:limit] if counts[index] > 0]
    if not chosen:
        return None, f"{subject} loses no example"
    # The mildest condition: the lowest severity, in the order of corruptions.
    order = sorted(range(len(conditions)), key=lambda place: conditions[place][1])
    picked = [next(conditions[place] for place in order if lost[place, index]) for index in chosen]
    clean = examples_at(session.data, chosen, session.inputs.name)
    values = np.concatenate(
        [
            corrupt(
                clean[place : place + 1],
                corruption,
                severity,
                limits=session.inputs.limits,
                first=index,
                seed=session.config.robustness.seed,
                parameter_set=session.inputs.parameter_set,
            )
            for place, (index, (corruption, severity)) in enumerate(zip(chosen, picked, strict=True))
        ]
    )
    before, after = (_predicted(session, array) for array in (clean, values))
    picture_reason = why_no_picture(session.inputs.shape)
    pictures = None if picture_reason else thumbnails(np.concatenate([clean, values]))
    labels, names = session.data.all_labels(), session.data.class_names
    truth = _truth(labels)
    examples = [
        {
            "index": index,
            "label": None if truth is None else int(truth[index]),
            "corruption": picked[place][0].name,
            "severity": picked[place][1],
            "lost": int(counts[index]),
            "classes": {name: _item(array, place) for name, array in after.items()},
            "clean_classes": {name: _item(array, place) for name, array in before.items()},
            "clean": pictures[place] if pictures else None,
            "corrupted": pictures[len(chosen) + place] if pictures else None,
        }
        for place, index in enumerate(chosen)
    ]
    template = ORDER_PAIRED if session.reference and subject != session.reference else ORDER_ALONE
    return {
        "subject": subject,
        "order": template.format(subject=subject),
        "conditions": len(conditions),
        "class_names": list(names),
        "picture_reason": picture_reason,
        "examples": examples,
    }, None


def _right(session: "_Session") -> dict[str, dict[Any, NDArray[np.bool_]]] | None:
    """Return {model: {condition: (n,) whether each example is right}}, the clean one under None."""
    results: dict[str, dict[Any, NDArray[np.bool_]]] = {}
    for name in session.names:
        answers: dict[Any, Answers] = {None: session.clean[name]}
        answers |= {key: value[name] for key, value in session.answers.items()}
        if any(item.examples is None or item.examples.dtype.kind != "b" for item in answers.values()):
            return None
        results[name] = {key: np.asarray(item.examples) for key, item in answers.items()}
    return results


def _subject(session: "_Session", right: dict[str, dict[Any, NDArray]], keys: list[Any]) -> tuple[str, NDArray]:
    """Return the model that loses most, and (conditions, n) which of its answers it loses."""
    stacked = {name: np.stack([answers[key] for key in keys]) for name, answers in right.items()}
    others = [name for name in session.names if name != session.reference]
    if session.reference and others:
        base = stacked[session.reference]
        subject = min(others, key=lambda name: int(stacked[name].sum()) - len(keys) * int(right[name][None].sum()))
        net = base.astype(int).sum(axis=0) - stacked[subject].astype(int).sum(axis=0)
        is_usable = right[subject][None] & right[session.reference][None] & (net > 0)
        return subject, base & ~stacked[subject] & is_usable
    subject = session.names[0]
    return subject, ~stacked[subject] & right[subject][None]


def _predicted(session: "_Session", values: NDArray[Any]) -> dict[str, NDArray[Any] | None]:
    piece = Split(name="examples", inputs={session.inputs.name: values}, labels=None, source="arrays")
    return {name: session.runner.classes_of(outputs) for name, outputs in session.runner.run(piece).items()}


def _truth(labels: NDArray[Any] | None) -> NDArray[np.int64] | None:
    try:
        return None if labels is None else class_labels(labels, "labels")
    except InputError:
        return None


def _item(classes: NDArray[Any] | None, place: int) -> int | None:
    return None if classes is None else int(classes[place])

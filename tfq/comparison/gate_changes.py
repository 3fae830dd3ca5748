# SPDX-License-Identifier: Apache-2.0
"""What changed between two records: data, preprocessing, labels, inputs and outputs, layers, versions.

A changed figure is a symptom; these changes are its possible causes. A record has hashes and quantization parameters of
every layer, so the file of the baseline is not needed.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tfq.auditing.schemes import FLOATS
from tfq.evaluation.figure_readers import Measured, per_example_of
from tfq.evaluation.metric import class_name

Kind = Literal["data", "interface", "layer", "environment"]
# The settings of an evaluation that decide what its figures mean.
_SETTINGS = ("metric", "output", "output_metrics", "xnnpack", "limit", "backends_limit")
# A pair of classes is swapped if that explains this fraction of the changed predictions, and at least this many.
_EXPLAINED, _FEWEST_SWAPS = 0.8, 3
# How many lines of a label file that differ are shown.
_MOST_LINES = 4


@dataclass(frozen=True, kw_only=True)
class Change:
    """A difference between two records other than in a figure.

    Attributes:
        kind: "data" (examples, labels, preprocessing, metric), "interface" (what an app relies on), "layer", or
            "environment" (versions, CPU, reference).
        where: The field or the layer: "data.scale", "labels", "conv2/CONV_2D".
        message: What changed, from the old to the new value.
        structural: Whether it changes ops, shapes or types, and not only values.
        breaks: Whether the gate fails because of it. Figures on other examples do not measure the change of the model,
            and an app relies on the interface.
        score: How likely it explains a worse figure: larger first.
    """

    kind: Kind
    where: str
    message: str
    structural: bool = False
    breaks: bool = False
    score: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def changes_of(
    new: Measured, old: Measured, new_record: Mapping[str, Any], old_record: Mapping[str, Any]
) -> tuple[Change, ...]:
    """Return all changes between two models of two records, the most likely causes of a worse figure first."""
    changes = [*_data_changes(new, old), *_interface_changes(new.digest, old.digest)]
    changes += layer_changes(new.digest, old.digest)
    changes += _environment_changes(new, old, new_record, old_record)
    return tuple(sorted(changes, key=lambda change: -change.score))


def same_examples(new: Measured, old: Measured) -> bool:
    """Check whether both records evaluated the same inputs and labels in the same order."""
    hashes = [list((item.sha256.get("data") or {}).values()) for item in (new, old)]
    return bool(hashes[0]) and hashes[0] == hashes[1]


def unchecked(new: Measured, old: Measured) -> dict[str, str]:
    """Return {"data" or "interface": why two records do not show whether it changed}."""
    results = {}
    if not (new.evaluation and old.evaluation):
        results["data"] = "a benchmark does not evaluate examples"
    if not (new.digest and old.digest):
        results["interface"] = "the records do not both have a digest of the file, which tfq evaluate and tfq run write"
    return results


def _data_changes(new: Measured, old: Measured) -> Iterator[Change]:
    for name in _SETTINGS:
        values = [item.settings.get(name) for item in (new, old)]
        if new.evaluation and old.evaluation and values[0] != values[1]:
            yield _changed("data", f"evaluation.{name}", values[1], values[0], score=900, breaks=True)
    if new.times and old.times and not (new.evaluation or old.evaluation):
        threads = [item.settings.get("num_threads") for item in (new, old)]
        if threads[0] != threads[1]:
            yield _changed("data", "benchmark.num_threads", threads[1], threads[0], score=900, breaks=True)
    swap = _swapped_classes(new, old)
    if swap:
        yield Change(kind="data", where="classes", message=swap, score=950)
    if same_examples(new, old) or not (new.evaluation and old.evaluation):
        return
    parts = [_parts(item) for item in (new, old)]
    settings = [
        _changed("data", f"data.{key}", value, new.data.get(key), score=1000, breaks=True)
        for key, value in old.data.items()
        if key != "source" and value != new.data.get(key)
    ]
    yield from settings
    counts = [item.evaluation.get("num_examples") for item in (new, old)]
    if counts[0] != counts[1]:
        yield _changed("data", "number of examples", counts[1], counts[0], score=980, breaks=True)
    if parts[0].get("class_names") != parts[1].get("class_names"):
        yield Change(
            kind="data",
            where="labels",
            message=f"the classes of the data are {_short(parts[0].get('class_names'))}, in the baseline "
            f"{_short(parts[1].get('class_names'))}",
            score=990,
            breaks=True,
        )
    if parts[0].get("labels") != parts[1].get("labels"):
        yield Change(
            kind="data",
            where="labels",
            message="the labels of the examples differ from those of the baseline",
            score=985,
            breaks=True,
        )
    if parts[0].get("inputs") != parts[1].get("inputs") or not parts[0]:
        reason = "as these settings changed" if settings else "with the same settings: the source or its order changed"
        yield Change(
            kind="data",
            where="inputs",
            message=f"the inputs of the examples differ from those of the baseline, {reason}",
            score=970,
            breaks=True,
        )


def _swapped_classes(new: Measured, old: Measured) -> str | None:
    """Return a sentence if classes of the predictions are exchanged; None if they are not, or if that is unknown."""
    results = [per_example_of(item.evaluation) for item in (new, old)]
    if results[0] is None or results[1] is None or not same_inputs(new, old):
        return None
    for name in results[0].outputs:
        pairs = [item.outputs[name].predicted if name in item.outputs else None for item in results if item]
        if pairs[0] is None or pairs[1] is None or len(pairs[0]) != len(pairs[1]):
            continue
        before, after = pairs[1].astype(np.int64), pairs[0].astype(np.int64)
        changed = before != after
        mapping = {}
        for label in np.unique(before[changed]):
            values, counts = np.unique(after[before == label], return_counts=True)
            mapping[int(label)] = int(values[counts.argmax()])
        swapped = {a: b for a, b in mapping.items() if a != b and mapping.get(b) is not None}
        explained = sum(int(((before == a) & (after == b)).sum()) for a, b in swapped.items())
        if sorted(swapped) == sorted(swapped.values()) and explained >= max(
            _FEWEST_SWAPS, _EXPLAINED * int(changed.sum())
        ):
            names = _parts(new).get("class_names") or ()
            listed = ", ".join(f"{_class_text(a, names)} -> {_class_text(b, names)}" for a, b in swapped.items())
            return (
                f"the predicted classes of output {name!r} are exchanged ({listed}) on {explained} of "
                f"{int(changed.sum())} examples with another prediction: the order of the labels changed"
            )
    return None


def same_inputs(new: Measured, old: Measured) -> bool:
    """Check whether both records evaluated the same inputs; the labels may differ."""
    parts = [_parts(item).get("inputs") for item in (new, old)]
    return parts[0] is not None and parts[0] == parts[1]


def _class_text(number: int, names: Sequence[str]) -> str:
    name = class_name(number, names)
    return str(number) if name in (None, str(number)) else f"{number} {name}"


def _parts(measured: Measured) -> Mapping[str, Any]:
    """Return the hashes of the inputs and of the labels alone, and the names of the classes; {} without them."""
    return next(iter((measured.sha256.get("data_parts") or {}).values()), {})


def _interface_changes(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the changes of what an app relies on. Quantization parameters may change: it reads them."""
    if not new or not old:
        return
    if new["scheme"] != old["scheme"]:
        yield _changed("interface", "scheme", old["scheme"], new["scheme"], score=100, breaks=True)
    if new["preprocessing"] != old["preprocessing"]:  # {"scale": 0.5, ...} or None
        for key in sorted({*(new["preprocessing"] or {}), *(old["preprocessing"] or {})}):
            values = [(side["preprocessing"] or {}).get(key) for side in (new, old)]
            if values[0] != values[1]:
                where = f"preprocessing.{key}"
                # An older file may not record it, which does not mean that it was another one.
                known = old["preprocessing"] is not None
                yield _changed("interface", where, values[1], values[0], score=960 if known else 40, breaks=known)
    for side in ("inputs", "outputs"):
        if len(new[side]) != len(old[side]):
            yield _changed("interface", side, len(old[side]), len(new[side]), score=940, breaks=True)
            continue
        for after, before in zip(new[side], old[side], strict=True):
            for key in ("name", "dtype", "shape", "scale", "zero_point"):
                if after[key] != before[key]:
                    yield Change(
                        kind="interface",
                        where=f"{side[:-1]} {before['name']!r}",
                        message=f"{key} {_short(before[key])} -> {_short(after[key])}",
                        structural=key in ("name", "dtype", "shape"),
                        breaks=key in ("name", "dtype", "shape"),
                        score=400 if key in ("name", "dtype", "shape") else 50,
                    )
            values = [item.get("normalization") for item in (after, before)]
            if values[0] != values[1]:
                where, known = f"preprocessing of {side[:-1]} {before['name']!r}", values[1] is not None
                message = f"normalization {_short(values[1])} -> {_short(values[0])}"
                yield Change(kind="interface", where=where, message=message, breaks=known, score=955 if known else 40)
    yield from _file_changes(new["files"], old["files"])


def _file_changes(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the changes of associated files; of text, such as labels, the first lines that differ."""
    for name in sorted({*new, *old}):
        after, before = new.get(name), old.get(name)
        if after == before:
            continue
        if after is None or before is None:
            message = f"the associated file {name} was {'removed' if after is None else 'added'}"
            yield Change(kind="interface", where="labels", message=message, breaks=after is None, score=930)
            continue
        message = f"the associated file {name} changed"
        if after["lines"] is not None and before["lines"] is not None:
            pairs = itertools.zip_longest(before["lines"], after["lines"], fillvalue="nothing")
            lines = [f"line {number}: {a!r} -> {b!r}" for number, (a, b) in enumerate(pairs, 1) if a != b]
            message += f": {', '.join(lines[:_MOST_LINES])}"
            message += f" and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
        yield Change(kind="interface", where="labels", message=message, breaks=True, score=930)


def layer_changes(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[Change]:
    """Return a change for each layer whose op, type, shapes, quantization or weights differ.

    Args:
        new: The digest of the new file (`tfq.evaluation.digest_of`).
        old: The digest of the old file.
    """
    if not new or not old:
        return []
    after, before = ({item["label"]: item for item in side["layers"]} for side in (new, old))
    results = [
        Change(kind="layer", where=label, message="is new", structural=True, score=300)
        for label in after
        if label not in before
    ]
    results += [
        Change(kind="layer", where=label, message="is gone", structural=True, score=300)
        for label in before
        if label not in after
    ]
    for label, item in after.items():
        if label in before:
            results += _changes_of_layer(label, item, before[label])
    return results


def _changes_of_layer(label: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Change]:
    def change(message: str, score: float, *, structural: bool = False) -> Change:
        return Change(kind="layer", where=label, message=message, structural=structural, score=score)

    if new["type"] != old["type"]:
        score = 800 if new["type"] in FLOATS and old["type"] not in FLOATS else 350
        yield change(f"computes in {new['type']}, in the baseline in {old['type']}", score, structural=True)
    for title, after, before in (
        *_numbered("output", new["outputs"], old["outputs"]),
        *_numbered("constant", new["constants"], old["constants"]),
    ):
        title = str(after.get("role") or title)
        if (after["dtype"], after["shape"]) != (before["dtype"], before["shape"]):
            kinds = [f"{item['dtype']} {item['shape']}" for item in (before, after)]
            yield change(f"{title}: {kinds[0]} -> {kinds[1]}", 320, structural=True)
            continue
        ratio = _log2_ratio(after["scale"], before["scale"])
        # Twice the scale is as suspicious as half of it.
        if ratio:
            times = 2**ratio
            yield change(
                f"{title}: the scale is {times:.3g} times that of the baseline ({before['scale']:.4g} -> "
                f"{after['scale']:.4g})",
                # The scale of a bias follows from that of the input and of the weights.
                (50 if title == "bias" else 100) * (1 + min(abs(ratio), 5)),
            )
        elif after.get("scales_sha256") != before.get("scales_sha256"):
            yield change(f"{title}: the scales of channels changed", 100)
        if after.get("zero_point") != before.get("zero_point"):
            yield change(f"{title}: zero point {before['zero_point']} -> {after['zero_point']}", 90)
        if after.get("sha256") != before.get("sha256"):
            yield change(f"{title}: the values changed", 80)
    if len(new["outputs"]) != len(old["outputs"]) or len(new["constants"]) != len(old["constants"]):
        yield change("has other inputs or outputs", 310, structural=True)


def _numbered(
    title: str, new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    for place, (after, before) in enumerate(zip(new, old, strict=False)):
        yield (f"{title} {place}" if len(new) > 1 else title), after, before


def _log2_ratio(new: float | None, old: float | None) -> float:
    """Return the logarithm of the ratio of two scales; 0 if they are equal up to rounding, or if one is missing."""
    if not new or not old or new < 0 or old < 0:
        return 0.0
    ratio = math.log2(new / old)
    return ratio if abs(ratio) > 1e-6 else 0.0


def _environment_changes(
    new: Measured, old: Measured, new_record: Mapping[str, Any], old_record: Mapping[str, Any]
) -> Iterator[Change]:
    same_file = new.sha256.get("model") == old.sha256.get("model")
    score = 700 if same_file else 20
    if new.sha256.get("reference") != old.sha256.get("reference"):
        message = "the reference is another file, so agreement and SQNR are those with another model"
        yield Change(kind="environment", where="evaluation.reference", message=message, score=score)
    packages = [record.get("packages") or {} for record in (new_record, old_record)]
    for name, version in packages[1].items():
        if packages[0].get(name) != version:
            yield _changed("environment", f"package {name}", version, packages[0].get(name), score=score)
    cpus = [(record.get("cpu") or {}) for record in (new_record, old_record)]
    for key in ("machine", "model", "isa"):
        if cpus[0].get(key) != cpus[1].get(key):
            yield _changed("environment", f"CPU {key}", cpus[1].get(key), cpus[0].get(key), score=score - 10)


def _changed(kind: Kind, where: str, old: Any, new: Any, *, score: float, breaks: bool = False) -> Change:
    return Change(kind=kind, where=where, message=f"{_short(old)} -> {_short(new)}", breaks=breaks, score=score)


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    text = "none" if value is None else text or "empty"
    return text if len(text) <= 80 else f"{text[:77]}..."

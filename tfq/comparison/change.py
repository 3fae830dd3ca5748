# SPDX-License-Identifier: Apache-2.0
"""One difference between two files: where it is, what it is about, and both values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# The parts of a file in the order in which they are reported -> their headings. Numbers come before `FORMAL_PARTS`.
PARTS = {
    "inputs": "Inputs and outputs",
    "signatures": "Signatures",
    "metadata": "Metadata",
    "files": "Associated files",
    "ops": "Ops",
    "options": "Options of ops",
    "types": "Types and shapes of tensors",
    "versions": "Versions of ops",
    "names": "Names of tensors",
}
# Parts whose differences do not change what a model computes.
FORMAL_PARTS = ("versions", "names")
# Longer texts and lists are cut.
_LONGEST_TEXT, _MOST_ITEMS = 200, 16


@dataclass(frozen=True, kw_only=True)
class Change:
    """A difference that is not a difference of numbers.

    Attributes:
        part: A key of `PARTS`.
        where: The op, tensor, signature, entry or file that differs.
        what: The property that differs, such as "stride_w" or "dtype".
        reference: Its value in the reference; None if it is missing there.
        model: Its value in the model; None if it is missing there.
    """

    part: str
    where: str
    what: str
    reference: object
    model: object

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "reference": shortened(self.reference), "model": shortened(self.model)}


def shortened(value: Any) -> Any:
    """Return a value as JSON, with long texts and lists cut, and without NaN and infinity."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else f"{value[:_LONGEST_TEXT]}... ({len(value)} characters)"
    if isinstance(value, (list, tuple)):
        items = [shortened(item) for item in value[:_MOST_ITEMS]]
        return items + ([f"... ({len(value)} values)"] if len(value) > _MOST_ITEMS else [])
    if isinstance(value, Mapping):
        return {str(key): shortened(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def field_changes(part: str, where: str, reference: Mapping[str, Any], model: Mapping[str, Any]) -> list[Change]:
    """Return a change for each key whose values differ; a missing key has the value None."""
    keys = [*reference, *(key for key in model if key not in reference)]
    return [
        Change(part=part, where=where, what=key, reference=reference.get(key), model=model.get(key))
        for key in keys
        if not _equal(reference.get(key), model.get(key))
    ]


def _equal(left: Any, right: Any) -> bool:
    """Compare two values; NaN equals NaN."""
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right):
        return True
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    comparable = type(left) is type(right) or (_is_number(left) and _is_number(right))
    return bool(comparable and left == right)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """Return {"a.b": value} of nested objects; lists of objects are numbered, other lists are values."""
    if isinstance(value, Mapping) and value:
        return {
            key: item
            for name, part in value.items()
            for key, item in flattened(part, f"{path}.{name}" if path else str(name)).items()
        }
    if isinstance(value, Sequence) and value and all(isinstance(item, Mapping) for item in value):
        return {
            key: item for index, part in enumerate(value) for key, item in flattened(part, f"{path}[{index}]").items()
        }
    return {path: value}

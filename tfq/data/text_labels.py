# SPDX-License-Identifier: Apache-2.0
"""Labels in text files: class numbers, other numbers (regression) or the names of classes.

They are class numbers (int64) if all are integers >= 0, else numbers (float32) if all are numbers, else the names of
classes, numbered (int64) in sorted order. Names next to numbers that are not integers >= 0 are an error.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from tfq.artifacts import shown
from tfq.errors import InputError

MAX_FLOAT = float(np.finfo(np.float32).max)
# A class number of more digits may not fit into int64.
_MOST_DIGITS = 18

Kind = Literal["class", "number", "overflow", "name"]


@dataclass(frozen=True, kw_only=True)
class LabelText:
    """A label in a file.

    Attributes:
        text: The label.
        where: Where it is, as the start of a message: "table.csv, line 3, column label".
        place: The same in a sentence: "line 3 of table.csv".
    """

    text: str
    where: str
    place: str


@dataclass(frozen=True, kw_only=True)
class TextLabels:
    """How the labels of a source become numbers.

    Attributes:
        number_of: A label -> its number.
        dtype: The type of the numbers: int64 of classes, float32 of other numbers.
        class_names: The name of each class; empty if the labels are numbers.
        information: A sentence if integers are names of classes.
    """

    number_of: Callable[[str], float]
    dtype: DTypeLike
    class_names: tuple[str, ...] = ()
    information: tuple[str, ...] = ()


def finite_number(text: str) -> float | None:
    """Return the finite number in a text, or None. Python's underscores between digits are not numbers here."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def kind_of_label(text: str) -> Kind:
    """Return what a label is on its own: an integer >= 0 is a "class". An "overflow" is too large for float32."""
    if text.isdecimal() and len(text) <= _MOST_DIGITS:
        return "class"
    value = finite_number(text)
    if value is None:
        return "overflow" if _is_infinite(text) and any(map(str.isdecimal, text)) else "name"
    return "number" if abs(value) <= MAX_FLOAT else "overflow"


def _is_infinite(text: str) -> bool:
    try:
        return math.isinf(float(text))
    except ValueError:
        return False


def labels_of(first: Mapping[Kind, LabelText], texts: Callable[[], Iterable[str]]) -> TextLabels:
    """Return how the labels of a source become numbers.

    Args:
        first: The first label of each kind that occurs.
        texts: Returns all labels, called if they are the names of classes.

    Raises:
        InputError: Some labels are names, and others numbers that are not class numbers; or a number is too large.
    """
    if "overflow" in first:
        label = first["overflow"]
        raise InputError(
            f"{label.where}: the label {shown(label.text)[:40]!r} is too large for float32. Scale the labels",
            field="data.source",
            expected="at most 3.4e38",
            got=label.text,
        )
    if "name" not in first:
        if "number" in first:
            return TextLabels(number_of=float, dtype=np.float32)
        return TextLabels(number_of=int, dtype=np.int64)
    name = first["name"]
    if "number" in first:
        number = first["number"]
        raise InputError(
            f"{name.where}: the label {shown(name.text)[:40]!r} is not a number, but {shown(number.text)[:40]!r} in "
            f"{number.place} is. Expected numbers with a decimal point, or the names of classes",
            field="data.source",
            expected="numbers with a decimal point, or the names of classes",
            got=name.text,
        )
    information = (
        f"the labels have integers and texts, such as {shown(name.text)[:40]!r} in {name.place}: all of them are names "
        "of classes, also the integers",
    )
    names = names_of_classes(texts())
    return TextLabels(
        number_of=names.number_of,
        dtype=names.dtype,
        class_names=names.class_names,
        information=information if "class" in first else (),
    )


def names_of_classes(texts: Iterable[str]) -> TextLabels:
    """Return the numbering of labels that are the names of classes: their places in sorted order."""
    names = tuple(sorted(set(texts)))
    return TextLabels(
        number_of={name: number for number, name in enumerate(names)}.__getitem__, dtype=np.int64, class_names=names
    )

# SPDX-License-Identifier: Apache-2.0
"""The record that every data source gives: named input arrays, labels, and a hash of their content."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError


class MissingSplitError(InputError):
    """The source has no such split, though it may have others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Examples of one split, as the float model is fed them.

    name: train, val or test.
    inputs: {"x": array} of a single unnamed input, else arrays by input name; each (n, ...), all with one n >= 1.
    labels: (n,) or None. Sources of classes give int64 >= 0; labels of a user's own metric may be anything.
    source: what the user called it: "digits", "npz:PATH", "tfrecord:GLOB", "arrays".
    notes: what the source did that the user did not ask for (a split held out, keys or files ignored).
    Raises InputError when there is no example, or the lengths differ.
    """

    name: str
    inputs: Mapping[str, NDArray]
    labels: NDArray | None
    source: str
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_lengths(self.inputs, self.labels, f"data {self.source} ({self.name})")

    @property
    def num_examples(self) -> int:
        """n, the length of every array."""
        return len(next(iter(self.inputs.values())))

    def take(self, n: int) -> "Split":
        """The first `n` examples, or all when there are fewer; views, no copies. Raises InputError when n < 1."""
        if n < 1:
            raise InputError(f"data {self.source} ({self.name}): take({n}): wanted at least 1 example")
        inputs = {name: array[:n] for name, array in self.inputs.items()}
        return dataclasses.replace(self, inputs=inputs, labels=None if self.labels is None else self.labels[:n])

    def sha256(self) -> str:
        """Hex SHA-256 of the content: names, dtypes, shapes and bytes of the inputs in name order, and the labels.

        What the split or its source is called does not enter: equal content has one hash.
        """
        arrays = {f"input {name}": array for name, array in self.inputs.items()}
        return content_sha256(arrays if self.labels is None else {**arrays, "labels": self.labels})


def check_lengths(inputs: Mapping[str, NDArray], labels: NDArray | None, where: str) -> None:
    """Raises InputError unless there is at least one input, one example, and as many of each input and label."""
    if not inputs:
        raise InputError(f"{where}: holds no input array: wanted at least one")
    arrays = {f"input {name!r}": array for name, array in inputs.items()}
    if labels is not None:
        arrays["labels"] = labels
    lengths = {name: len(checked_array(array, f"{where}: {name}")) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise InputError(f"{where}: lengths differ ({told}): wanted one label and one of each input per example")
    if 0 in lengths.values():
        raise InputError(f"{where}: is empty: wanted at least one example")


def checked_array(array: Any, where: str) -> NDArray:
    """`array`, if it is a NumPy array of shape (n, ...). Raises InputError on scalars and on Python objects."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"{where} is a {type(array).__name__}: wanted a NumPy array")
    if array.dtype.hasobject:
        raise InputError(f"{where} is an array of Python objects: wanted numbers of one shape for every example")
    if not array.ndim:
        raise InputError(f"{where} is a single number: wanted an array with the examples along its first axis")
    return array


def content_sha256(arrays: Mapping[str, NDArray]) -> str:
    """Hex SHA-256 over name, dtype, shape and little-endian bytes of each array, in name order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        # The header ends in a newline that repr() escapes in a name: no two contents give the same stream.
        digest.update(f"{name!r} {array.dtype.str} {arrays[name].shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_finite(inputs: Mapping[str, NDArray], where: str) -> None:
    """Raises InputError with the index of the first example that holds NaN or infinity."""
    for name, array in inputs.items():
        if array.dtype.kind != "f":
            continue
        bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if bad.any():
            index = int(bad.argmax())
            what = "NaN" if np.isnan(array[index]).any() else "infinity"
            raise InputError(
                f"{where}: input {name!r} of example {index} holds {what} ({int(bad.sum()):,} of {len(array):,} "
                "examples hold NaN or infinity): wanted finite numbers: remove or mend these examples"
            )


def class_labels(labels: NDArray, where: str) -> NDArray[np.int64]:
    """`labels` as int64 (n,): integers >= 0; (n, 1) is taken too.

    Raises InputError on anything else and tells what to do about one-hot rows and floats.
    """
    checked_array(labels, where)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(
            f"{where} has shape {labels.shape}: wanted (n,) class numbers: for one-hot rows save argmax(axis=1)"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"{where} holds {labels.dtype}: wanted integer class numbers: save it as int64")
    if len(labels) and int(labels.min()) < 0:
        index = int((labels < 0).argmax())
        raise InputError(f"{where}: label of example {index} is {int(labels[index])}: wanted class numbers from 0 up")
    if len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{where} holds {int(labels.max())}: too large for a class number")
    return labels.astype(np.int64)


def part_of_train(n: int, split: str, where: str) -> tuple[slice, str]:
    """Which of `n` train examples are `split` ("train" or "val") where a source has no val split, and a note on it.

    The last tenth is val, at least one example; train is the rest, or the one example that there is.
    Raises MissingSplitError when nothing can be spared for val.
    """
    spared = max(1, n // 10) if n >= 2 else 0
    note = f"{where} has no val split: the last {spared:,} of {n:,} train examples serve as val"
    if split == "train":
        return slice(0, n - spared), note if spared else ""
    if not spared:
        raise MissingSplitError(f"{where} has no val split, and {n} train examples are too few to hold one out")
    return slice(n - spared, n), note


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """What a source reads, before preprocessing: arrays as in `Split`, and notes."""

    inputs: dict[str, NDArray]
    labels: NDArray | None
    notes: tuple[str, ...] = ()

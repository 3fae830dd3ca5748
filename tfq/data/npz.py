# SPDX-License-Identifier: Apache-2.0
"""The source `npz:PATH`: arrays x_<split>, or x_<split>.<input> of several inputs, and labels y_<split>."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.data.binding import UNNAMED
from tfq.data.examples import Examples, Piece, examples_a_piece, without_val
from tfq.data.npz_members import Member, read_members
from tfq.data.split import MissingSplitError, class_labels
from tfq.errors import InputError

_KEY = re.compile(r"x_(train|val|test)(\..+)?|y_(train|val|test)")
_WANTED = "an .npz archive with x_test and y_test (x_train, y_train, x_val, y_val)"


def read_npz(address: str, config: DataConfig, split: str) -> Examples:
    """A split of the archive at `address`; pickled objects are never loaded.

    Without x_val, the last tenth of train is val, and train is the rest. Without y_<split> there are no labels. The
    labels are read at once, the inputs in pieces.
    Raises MissingSplitError when the archive does not hold the split, InputError on everything else.
    """
    if not address:
        raise InputError("--data=npz: wanted npz:PATH: give the path of an .npz file")
    path = Path(os.path.expanduser(address))
    members = read_members(path, _WANTED)
    notes = [f"{path}: {key!r} is not used: its name is no x_ or y_ key" for key in members if not _KEY.fullmatch(key)]
    has_val = bool(_input_keys(list(members), "val"))
    holder = "train" if split == "val" and not has_val else split
    keys = _input_keys(list(members), holder)
    if not keys:
        raise MissingSplitError(
            f"{path} has no x_{split}: wanted x_{split} or x_{split}.<input>, and y_{split} for labels; "
            f"it holds {', '.join(sorted(members)) or 'nothing'}"
        )
    examples = _examples(members, keys, path, holder, tuple(notes))
    return without_val(examples, split, str(path)) if holder == "train" and not has_val else examples


def _input_keys(keys: Sequence[str], split: str) -> list[str]:
    return [key for key in keys if key == f"x_{split}" or (key.startswith(f"x_{split}.") and _KEY.fullmatch(key))]


def _examples(members: dict[str, Member], keys: list[str], path: Path, split: str, notes: tuple[str, ...]) -> Examples:
    if len(keys) > 1 and f"x_{split}" in keys:
        raise InputError(
            f"{path} holds both x_{split} and {keys[1 - keys.index(f'x_{split}')]}: wanted one or the other"
        )
    inputs = {key.partition(".")[2] or UNNAMED: members[key] for key in keys}
    labels = _labels(members, path, f"y_{split}")
    lengths = {f"input {name!r}": member.length for name, member in inputs.items()}
    if labels is not None:
        lengths["labels"] = len(labels)
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise InputError(
            f"{path} ({split}): lengths differ ({told}): wanted one label and one of each input per example"
        )
    count = next(iter(lengths.values()))
    if not count:
        raise InputError(f"{path} ({split}): is empty: wanted at least one example")
    whole = [name for name, member in inputs.items() if member.is_by_columns]
    if whole:
        notes = (*notes, f"{path}: {whole[0]!r} is stored by columns (Fortran order): it is read as a whole")
    step = examples_a_piece(sum(member.row_bytes for member in inputs.values()))

    def read(start: int, stop: int) -> Iterator[Piece]:
        readers = {name: member.rows(start, stop, step) for name, member in inputs.items()}
        for first in range(start, stop, step):
            yield Piece(
                inputs={name: next(rows) for name, rows in readers.items()},
                labels=None if labels is None else labels[first : min(first + step, stop)],
            )
        # What is left of a reader checks that the member is whole.
        for rows in readers.values():
            next(rows, None)

    seekable = all(member.is_seekable for member in inputs.values())
    return Examples(num_examples=count, read=read, seekable=seekable, notes=notes)


def _labels(members: dict[str, Member], path: Path, key: str) -> NDArray | None:
    if key not in members:
        return None
    member = members[key]
    labels = np.concatenate(list(member.rows(0, member.length, max(1, member.length))) or [np.empty(0, member.dtype)])
    # Floats are a regression's: for a metric of the user's own.
    return labels if labels.dtype.kind == "f" else class_labels(labels, f"{path} {key}")

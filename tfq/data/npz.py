# SPDX-License-Identifier: Apache-2.0
"""The source `npz:PATH`: arrays x_<split>, or x_<split>.<input> of several inputs, and labels y_<split>."""

import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from tfq.artifacts import read_bytes
from tfq.config import DataConfig
from tfq.data.binding import UNNAMED
from tfq.data.split import Examples, MissingSplitError, check_lengths, class_labels, part_of_train
from tfq.errors import InputError

_KEY = re.compile(r"x_(train|val|test)(\..+)?|y_(train|val|test)")
_WANTED = "an .npz archive with x_test and y_test (x_train, y_train, x_val, y_val)"
# What NumPy and zipfile raise on an archive that is cut short, damaged, encrypted or none at all.
_DAMAGE = (OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


def read_npz(address: str, config: DataConfig, split: str, limit: int) -> Examples:
    """A split of the archive at `address`; pickled objects are never loaded.

    Without x_val, the last tenth of train is val, and train is the rest. Without y_<split> there are no labels.
    Raises MissingSplitError when the archive does not hold the split, InputError on everything else.
    """
    if not address:
        raise InputError("--data=npz: wanted npz:PATH: give the path of an .npz file")
    path = Path(os.path.expanduser(address))
    with _opened(path) as archive:
        keys = list(archive.files)
        notes = [f"{path}: {key!r} is not used: its name is no x_ or y_ key" for key in keys if not _KEY.fullmatch(key)]
        has_val = bool(_input_keys(keys, "val"))
        holder = "train" if split == "val" and not has_val else split
        if not _input_keys(keys, holder):
            raise MissingSplitError(
                f"{path} has no x_{split}: wanted x_{split} or x_{split}.<input>, and y_{split} for labels; "
                f"it holds {', '.join(sorted(keys)) or 'nothing'}"
            )
        inputs, labels = _read(archive, path, holder)
    part = slice(None)
    if holder == "train" and not has_val:
        part, note = part_of_train(len(next(iter(inputs.values()))), split, str(path))
        notes += [note] if note else []
    return Examples(
        inputs={name: array[part] for name, array in inputs.items()},
        labels=None if labels is None else labels[part],
        notes=tuple(notes),
    )


def _opened(path: Path) -> NpzFile:
    try:
        archive = np.load(path, allow_pickle=False)
    except _DAMAGE as error:
        read_bytes(path, _WANTED)  # says it better where the file is missing, a directory, or empty
        raise InputError(f"{path} is no .npz archive, or a damaged one ({error}): wanted {_WANTED}") from error
    if not isinstance(archive, NpzFile):
        raise InputError(f"{path} is a single .npy array: wanted {_WANTED}: save it with numpy.savez(path, x_test=...)")
    return archive


def _input_keys(keys: Sequence[str], split: str) -> list[str]:
    return [key for key in keys if key == f"x_{split}" or (key.startswith(f"x_{split}.") and _KEY.fullmatch(key))]


def _read(archive: NpzFile, path: Path, split: str) -> tuple[dict[str, NDArray], NDArray | None]:
    keys = _input_keys(archive.files, split)
    if len(keys) > 1 and f"x_{split}" in keys:
        raise InputError(
            f"{path} holds both x_{split} and {keys[1 - keys.index(f'x_{split}')]}: wanted one or the other"
        )
    inputs = {key.partition(".")[2] or UNNAMED: _member(archive, path, key) for key in keys}
    label_key = f"y_{split}"
    labels = None
    if label_key in archive.files:
        labels = _member(archive, path, label_key)
        if labels.dtype.kind != "f":  # floats are a regression's: for a metric of the user's own
            labels = class_labels(labels, f"{path} {label_key}")
    check_lengths(inputs, labels, f"{path} ({split})")
    return inputs, labels


def _member(archive: NpzFile, path: Path, key: str) -> NDArray:
    try:
        return archive[key]
    except _DAMAGE as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{path} {key}: is an array of Python objects, which tfq never unpickles: "
                "wanted numbers of one shape for every example"
            ) from error
        raise InputError(f"{path} {key}: cannot be read, the archive is damaged: {error}") from error

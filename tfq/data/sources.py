# SPDX-License-Identifier: Apache-2.0
"""Where examples come from: the registry of sources, and a split of one, ready for the float model."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfq.config import DataConfig
from tfq.data.binding import UNNAMED
from tfq.data.digits import read_digits
from tfq.data.npz import read_npz
from tfq.data.preprocessing import preprocess, real_units
from tfq.data.split import Examples, MissingSplitError, Split, check_finite
from tfq.data.tfrecord import read_tfrecord
from tfq.errors import InputError, did_you_mean

SPLITS = ("train", "val", "test")

# A source takes (what follows "name:", config, split, limit) and gives its examples, before preprocessing. The limit
# (0 is all) is a hint that spares it work: load_split cuts what is more.
SOURCES: dict[str, Callable[[str, DataConfig, str, int], Examples]] = {
    "digits": read_digits,
    "npz": read_npz,
    "tfrecord": read_tfrecord,
}

# Training data describes the ranges without having been seen by a test; the test split is the last resort.
_CALIBRATION_ORDER = ("train", "val", "test")


def load_split(config: DataConfig, split: str, *, limit: int = 0) -> Split:
    """The first `limit` examples (0: all) of a split, preprocessed: the values are what the float model is fed.

    split: "train", "val" or "test". The order of examples is the source's own, the same every time.
    Raises MissingSplitError when the source has no such split; InputError on an unknown source or split, on what cannot
    be read, on NaN or infinity (with the example's index), and on an empty split.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown: {did_you_mean(split, SPLITS)}")
    if limit < 0:
        raise InputError(f"limit {limit}: wanted 0 for all examples, or how many")
    kind, _, address = config.source.partition(":")
    if kind not in SOURCES:
        raise InputError(f"--data={config.source}: unknown source {kind!r}: {_suggestion(config.source, kind)}")
    examples = SOURCES[kind](address, config, split, limit)
    if limit:
        examples = _first(examples, limit)
    where = f"{config.source} ({split})"
    inputs = preprocess(examples.inputs, config, where)
    check_finite(inputs, where)
    return Split(name=split, inputs=inputs, labels=examples.labels, source=config.source, notes=examples.notes)


def load_calibration_split(config: DataConfig, *, limit: int = 0) -> Split:
    """`load_split` of train, else val, else test: the first that the source has. `.name` says which it was.

    A note says so when it is not train. Raises InputError when the source has none of them.
    """
    for split in _CALIBRATION_ORDER:
        try:
            found = load_split(config, split, limit=limit)
        except MissingSplitError as error:
            missing = error
            continue
        if split == "train":
            return found
        note = f"{config.source} has no train split: calibrating on {split}"
        return Split(
            name=split, inputs=found.inputs, labels=found.labels, source=found.source, notes=(*found.notes, note)
        )
    raise missing


def as_split(data: Any, *, split: str = "test", limit: int = 0) -> Split:
    """A Split of whatever a caller of the Python API has at hand.

    data: a Split; a source string ("digits") or DataConfig, of which `split` is loaded; an array or a dict of arrays
    without labels; or a tuple (one of these, labels). Arrays are taken in the model's own real units: no preprocessing.
    Raises InputError on anything else, and as `load_split` does.
    """
    if isinstance(data, str):
        data = DataConfig(source=data)
    if isinstance(data, DataConfig):
        return load_split(data, split, limit=limit)
    if not isinstance(data, Split):
        data = _split_of_arrays(data, split)
    return data.take(limit) if limit else data


def _split_of_arrays(data: Any, split: str) -> Split:
    labels = None
    if isinstance(data, tuple):
        if len(data) != 2:
            raise InputError(f"data: got a tuple of {len(data)}: wanted (x, y)")
        data, labels = data
        labels = None if labels is None else np.asarray(labels)
    named = data if isinstance(data, Mapping) else {UNNAMED: data}
    inputs = {}
    for name, value in named.items():
        if (
            value is None
            or isinstance(value, (str, bytes, Mapping))
            or callable(value)
            or hasattr(value, "element_spec")
        ):
            raise InputError(f"data: got {type(value).__name__}: wanted a source string, a Split, an array or (x, y)")
        inputs[name] = real_units(np.asarray(value), f"data: input {name!r}")
    made = Split(name=split, inputs=inputs, labels=labels, source="arrays")
    check_finite(made.inputs, "data")
    return made


def _first(examples: Examples, limit: int) -> Examples:
    inputs = {name: array[:limit] for name, array in examples.inputs.items()}
    labels = None if examples.labels is None else examples.labels[:limit]
    return Examples(inputs=inputs, labels=labels, notes=examples.notes)


def _suggestion(source: str, kind: str) -> str:
    if source.endswith(".npz"):
        return f"did you mean {'npz:' + source!r}?"
    if "tfrecord" in source:
        return f"did you mean {'tfrecord:' + source!r}?"
    return did_you_mean(kind, SOURCES)

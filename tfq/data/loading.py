# SPDX-License-Identifier: Apache-2.0
"""Load a split of a data source, preprocessed for the float model."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples
from tfq.data.label_maps import map_size_of, prepare_labels
from tfq.data.preprocessing import preprocess, preprocessed_bytes, resize_of
from tfq.data.split import PIECE_BYTES, AnySplit, MissingSplitError, Split, SplitStream, check_finite
from tfq.errors import InputError, did_you_mean

SPLITS = ("train", "val", "test")

# Train first: ranges from it leak nothing of val and test into the model. The test split is the last resort.
_CALIBRATION_ORDER = ("train", "val", "test")
_MEGABYTE = 1_000_000


def load_split(config: DataConfig, split: str, *, limit: int = 0) -> AnySplit:
    """Load one split of a data source, preprocessed as the float model expects it.

    Examples:
        >>> split = tfq.load_split(tfq.DataConfig(source="npz:examples.npz", scale=1 / 255), "test", limit=1000)
        >>> split.inputs, split.labels

    Args:
        config: The data source, and the preprocessing of its images.
        split: "train", "val" or "test".
        limit: The number of examples to load, from the start; 0 means all.

    Returns:
        The examples, in the source's own order, which is the same every time. They are a `Split`, or a `SplitStream` if
        they would need more than `config.max_memory_mb` (megabytes of 1,000,000 bytes). A `SplitStream` reports invalid
        examples when it reads them.

    Raises:
        MissingSplitError: The source has no such split.
        InputError: The source or the split is unknown, the split is empty, a file cannot be read, or an example
            contains NaN or infinity (the message has its index).
    """
    if split not in SPLITS:
        raise InputError(
            f"split {split!r} is unknown: {did_you_mean(split, SPLITS)}", field="split", expected=SPLITS, got=split
        )
    if limit < 0:
        raise InputError(f"limit={limit}: expected 0 (all examples) or a positive number", field="limit", got=limit)
    return _loaded(_limited(_examples_of(config, split), limit), config, split)


def load_unprocessed(config: DataConfig, split: str, *, limit: int) -> Split:
    """Return the first examples of a split as the source stores them, before any preprocessing.

    Args:
        config: The data source; its preprocessing is ignored.
        split: "train", "val" or "test".
        limit: How many examples to load at most, >= 1. They are loaded into memory.

    Raises:
        MissingSplitError: The source has no such split.
        InputError: The source is unknown, or a file cannot be read.
    """
    examples = _limited(_examples_of(config, split), limit)
    pieces = list(examples.read(0, examples.num_examples))
    labels = [piece.labels for piece in pieces if piece.labels is not None]
    return Split(
        name=split,
        inputs={name: np.concatenate([piece.inputs[name] for piece in pieces]) for name in pieces[0].inputs},
        labels=np.concatenate(labels) if labels else None,
        source=config.source,
        class_names=examples.class_names,
    )


def _examples_of(config: DataConfig, split: str) -> Examples:
    source, address = find_source(config)
    if source.splits and split not in source.splits:
        raise MissingSplitError(
            f"{config.source} has no {split} split: {source.name} always has {', '.join(source.splits)} only. Choose "
            "one of these",
            field="split",
            expected=source.splits,
            got=split,
        )
    return source.read(address, config, split)


def _limited(examples: Examples, limit: int) -> Examples:
    """Return the first `limit` examples; all if limit is 0."""
    return examples.part(slice(0, min(limit, examples.num_examples))) if limit else examples


def find_source(config: DataConfig) -> tuple[DataSource, str]:
    """Return the data source that `config.source` names, and the address after the colon.

    Raises:
        InputError: There is no such source.
    """
    config.check_source()
    name, _, address = config.source.partition(":")
    return registry.get(DataSource, name, field="data.source"), address


def check_readable(config: DataConfig, split: str = "") -> None:
    """Check `config` without decoding an example: the source exists, and data.resize has two numbers.

    It is fast and imports no TensorFlow. What it accepts may still be refused when it is read.

    Args:
        config: The data source.
        split: The split that is read first, whose files are checked; "" checks no files.

    Raises:
        InputError: The source is unknown or missing, or a setting is wrong.
    """
    source, address = find_source(config)
    if source.check is not None:
        source.check(address, split)
    resize_of(config)
    map_size_of(config)


def source_fingerprint(config: DataConfig) -> str:
    """Return a hex SHA-256 that changes whenever `config.source` may return other examples.

    For files it depends on their names and content, not on their directory; for data that comes with a package, on its
    version. Missing data is downloaded; nothing is decoded. Other settings of `config` do not count unless the source
    reads them.

    Raises:
        InputError: The source is unknown, or its files cannot be read.
    """
    source, address = find_source(config)
    basis = [source.name, source.fingerprint(address, config)]
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()


def load_calibration_split(config: DataConfig, *, limit: int = 0) -> AnySplit:
    """Load the split to calibrate a conversion on: train, else val, else test, the first that the source has.

    A conversion uses no validation split: if the source has none, no training examples are held out for it. Where val
    must stay unseen, as in a search, use `load_split(config, "train")` instead.

    Args:
        config: The data source.
        limit: How many examples to load at most; 0 means all.

    Returns:
        The split, `.name` says which. `.information` says so if it is val, `.notes` if it is test.

    Raises:
        InputError: The source has none of these splits, or as `load_split`.
    """
    for split in _CALIBRATION_ORDER:
        try:
            examples = _examples_of(config, split)
        except MissingSplitError as error:
            missing = error
            continue
        result = _loaded(_limited(examples.undivided or examples, limit), config, split)
        message = f"{config.source} has no train split: {split} is used for calibration"
        if split == "val":
            return dataclasses.replace(result, information=(*result.information, message))
        if split == "test":
            return dataclasses.replace(result, notes=(*result.notes, message))
        return result
    raise missing


def _loaded(examples: Examples, config: DataConfig, split: str) -> AnySplit:
    read = _reader(examples, config, split)
    pieces = read(0, examples.num_examples)
    first = next(pieces)
    example_bytes = sum(array.nbytes for array in first.inputs.values()) / first.num_examples
    if example_bytes * examples.num_examples <= config.max_memory_mb * _MEGABYTE:
        return _collected(first, pieces, examples)
    return SplitStream(
        name=split,
        source=config.source,
        num_examples=examples.num_examples,
        read=read,
        piece_examples=first.num_examples,
        seekable=examples.seekable,
        notes=examples.notes,
        information=examples.information,
        class_names=examples.class_names,
    )


def _reader(examples: Examples, config: DataConfig, split: str) -> Callable[[int, int], Iterator[Split]]:
    """Return (start, stop) -> preprocessed pieces that respect the memory limit of `config`."""
    where = f"{config.source} ({split})"
    budget = min(PIECE_BYTES, config.max_memory_mb * _MEGABYTE // 4)
    shapes: dict[str, tuple[int, ...]] = {}

    def read(start: int, stop: int) -> Iterator[Split]:
        for piece in examples.read(start, stop):
            step = max(1, budget // max(1, preprocessed_bytes(piece.inputs, config)))
            for first in range(0, len(piece), step):
                chosen = slice(first, first + step)
                inputs = preprocess({name: array[chosen] for name, array in piece.inputs.items()}, config, where)
                check_finite(inputs, where, start + first, examples.num_examples)
                _check_shapes(inputs, shapes, f"{where}: example {start + first}")
                labels = None if piece.labels is None else piece.labels[chosen]
                yield Split(
                    name=split,
                    inputs=inputs,
                    labels=prepare_labels(labels, config, where),
                    source=config.source,
                    class_names=examples.class_names,
                )
            start += len(piece)

    return read


def _check_shapes(inputs: Mapping[str, NDArray], shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Raise InputError if an input's shape differs from `shapes`, which is filled with the first shapes seen."""
    for name, array in inputs.items():
        expected = shapes.setdefault(name, array.shape[1:])
        if array.shape[1:] != expected:
            raise InputError(
                f"{where}: input {name!r} has shape {array.shape[1:]}, expected {expected} as in the examples before "
                "it. Give all examples one shape",
                field=name,
                expected=expected,
                got=array.shape[1:],
            )


def _collected(first: Split, rest: Iterator[Split], examples: Examples) -> Split:
    """Return all pieces as one split in memory."""
    if first.num_examples == examples.num_examples:
        return dataclasses.replace(first, notes=examples.notes, information=examples.information)
    inputs = {name: _allocate(array, examples.num_examples) for name, array in first.inputs.items()}
    labels = None if first.labels is None else _allocate(first.labels, examples.num_examples)
    done = 0
    for piece in itertools.chain((first,), rest):
        done = _store(piece, inputs, labels, done)
    assert done == examples.num_examples, (first.source, done, examples.num_examples)
    return dataclasses.replace(
        first, inputs=inputs, labels=labels, notes=examples.notes, information=examples.information
    )


def _allocate(array: NDArray, count: int) -> NDArray:
    return np.empty((count, *array.shape[1:]), array.dtype)


def _store(piece: Split, inputs: dict[str, NDArray], labels: NDArray | None, done: int) -> int:
    chosen = slice(done, done + piece.num_examples)
    for name, array in piece.inputs.items():
        inputs[name][chosen] = array
    if labels is not None:
        labels[chosen] = piece.labels
    return chosen.stop

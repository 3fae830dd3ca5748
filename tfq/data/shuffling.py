# SPDX-License-Identifier: Apache-2.0
"""The order in which a stream is trained on: mixed as well as memory allows, and the same for the same seed."""

from collections.abc import Iterator

import numpy as np

from tfq.data.split import Split
from tfq.data.stream import SplitStream

# Pieces in memory at a time: a quarter of a gigabyte, and as much again while they are mixed.
_BUFFER_PIECES = 8


def shuffled_batches(stream: SplitStream, batch_size: int, seed: int, epoch: int) -> Iterator[Split]:
    """Every example once, in batches of `batch_size`, the last one perhaps smaller; the order is of (seed, epoch).

    Where the source can be read from the middle, pieces come in random order. Several of them are mixed in a buffer, of
    which half goes out before the next come in. A compressed .npz is read from its beginning, so that an example moves
    by no more than about the buffer: one that is sorted by class is trained on class by class.
    """
    generator = np.random.default_rng([seed, epoch])
    held: list[Split] = []
    count = 0
    for piece in _pieces(stream, generator):
        held.append(piece)
        count += piece.num_examples
        if count < _BUFFER_PIECES * stream.piece_examples:
            continue
        whole = _mixed(held, generator)
        cut = count // 2 // batch_size * batch_size
        yield from _batches(whole, 0, cut, batch_size)
        held = [_part(whole, cut, count)]
        count -= cut
    if count:
        yield from _batches(_mixed(held, generator), 0, count, batch_size)


def batches_in_order(stream: SplitStream, batch_size: int) -> Iterator[Split]:
    """Every example once, in the stream's order, in batches of `batch_size`, the last one perhaps smaller."""
    held: list[Split] = []
    count = 0
    for piece in stream.pieces():
        held.append(piece)
        count += piece.num_examples
        if count < batch_size:
            continue
        whole = _joined(held)
        cut = count // batch_size * batch_size
        yield from _batches(whole, 0, cut, batch_size)
        held = [_part(whole, cut, count)] if cut < count else []
        count -= cut
    if count:
        yield _joined(held)


def _pieces(stream: SplitStream, generator: np.random.Generator) -> Iterator[Split]:
    if not stream.seekable:
        yield from stream.pieces()
        return
    starts = np.arange(0, stream.num_examples, stream.piece_examples)
    for start in generator.permutation(starts).tolist():
        yield from stream.read(start, min(start + stream.piece_examples, stream.num_examples))


def _joined(splits: list[Split]) -> Split:
    if len(splits) == 1:
        return splits[0]
    first = splits[0]
    return Split(
        name=first.name,
        inputs={name: np.concatenate([split.inputs[name] for split in splits]) for name in first.inputs},
        labels=None if first.labels is None else np.concatenate([split.labels for split in splits]),
        source=first.source,
    )


def _mixed(splits: list[Split], generator: np.random.Generator) -> Split:
    whole = _joined(splits)
    return _chosen(whole, generator.permutation(whole.num_examples))


def _part(split: Split, start: int, stop: int) -> Split:
    # A copy: a view would keep the whole buffer in memory.
    return _chosen(split, np.arange(start, stop))


def _chosen(split: Split, indices: np.ndarray) -> Split:
    return Split(
        name=split.name,
        inputs={name: array[indices] for name, array in split.inputs.items()},
        labels=None if split.labels is None else split.labels[indices],
        source=split.source,
    )


def _batches(split: Split, start: int, stop: int, batch_size: int) -> Iterator[Split]:
    for first in range(start, stop, batch_size):
        yield _chosen(split, np.arange(first, min(first + batch_size, stop)))

# SPDX-License-Identifier: Apache-2.0
"""A split of a data set: arrays in memory or a stream of pieces, with shuffling, labels and class counts."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError

UNNAMED = "x"


# The size of a piece of a split, unless a single example is larger.
PIECE_BYTES = 1 << 25


class MissingSplitError(InputError):
    """The source does not have this split. It may have others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The examples of one split in memory, preprocessed as the float model expects them.

    Args:
        name: "train", "val" or "test".
        inputs: {"x": array} for a single unnamed input, otherwise arrays by input name. Each has the shape (n, ...),
            with the same n >= 1.
        labels: An array of length n, or None. Sources of classes give int64 >= 0. One-hot rows (n, classes) are
            accepted wherever class numbers are. Labels for a custom metric may be anything. Labels for several outputs
            are a structured array, see `tfq.data.output_labels`.
        source: The source as the user wrote it: "digits", "npz:PATH", "tfrecord:GLOB"; "arrays" for arrays.
        notes: Possible problems that the source noticed, such as files that it ignored.
        information: How the source made the split if it had to hold one out; nothing is wrong with it.
        class_names: The source's names of class 0, 1, ...; empty if it has none.

    Raises:
        InputError: There are no examples, or the lengths differ.
    """

    name: str
    inputs: Mapping[str, NDArray]
    labels: NDArray | None
    source: str
    notes: tuple[str, ...] = field(default=())
    information: tuple[str, ...] = field(default=())
    class_names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check the lengths of the arrays."""
        check_lengths(self.inputs, self.labels, f"data {self.source} ({self.name})")

    @property
    def num_examples(self) -> int:
        """n, the length of every array."""
        return len(next(iter(self.inputs.values())))

    def take(self, n: int) -> "Split":
        """Return the first `n` examples, or all if there are fewer, as views.

        Raises:
            InputError: n < 1.
        """
        if n < 1:
            raise InputError(
                f"data {self.source} ({self.name}): take({n}): expected at least 1 example", field="n", got=n
            )
        inputs = {name: array[:n] for name, array in self.inputs.items()}
        return dataclasses.replace(self, inputs=inputs, labels=None if self.labels is None else self.labels[:n])

    def shard(self, index: int, count: int) -> "Split":
        """Return part `index` (from 0) of `count` consecutive parts, as views. The parts in order are the split.

        Raises:
            InputError: There is no such part, or there are fewer examples than parts.
        """
        chosen = shard_slice(self.num_examples, index, count, f"data {self.source} ({self.name})")
        inputs = {name: array[chosen] for name, array in self.inputs.items()}
        return dataclasses.replace(self, inputs=inputs, labels=None if self.labels is None else self.labels[chosen])

    def all_labels(self) -> NDArray | None:
        """Return `labels`. `SplitStream` has this method too."""
        return self.labels

    def pieces(self) -> Iterator["Split"]:
        """Yield all examples in order, in pieces of up to `PIECE_BYTES`, as views."""
        example_bytes = sum(array.nbytes for array in self.inputs.values()) // self.num_examples
        step = max(1, PIECE_BYTES // max(1, example_bytes))
        for start in range(0, self.num_examples, step):
            chosen = slice(start, start + step)
            yield dataclasses.replace(
                self,
                inputs={name: array[chosen] for name, array in self.inputs.items()},
                labels=None if self.labels is None else self.labels[chosen],
            )

    def sha256(self) -> str:
        """Return the hex SHA-256 of the content: names, dtypes, shapes and bytes of inputs (in name order) and labels.

        The names of the split and its source do not count. The same content has the same hash in memory and streamed.
        """
        return self._digest().hexdigest()

    def part_hashes(self) -> dict[str, str | None]:
        """Return the hash of the inputs alone and of the labels alone, which tell what of two splits differs."""
        return self._digest().part_hashes()

    def _digest(self) -> "ContentDigest":
        digest = ContentDigest()
        digest.update(self.inputs, self.labels)
        return digest


def shard_slice(num_examples: int, index: int, count: int, where: str) -> "slice[int, int, None]":
    """Return the examples of part `index` (from 0) of `count` consecutive parts, whose lengths differ by at most 1.

    Raises:
        InputError: There is no such part, or there are fewer examples than parts.
    """
    if not 0 <= index < count:
        raise InputError(
            f"{where}: part {index} of {count} does not exist, expected a part from 0 to {count - 1}",
            field="index",
            expected=f"0 to {count - 1}",
            got=index,
        )
    if count > num_examples:
        raise InputError(
            f"{where}: {num_examples:,} examples cannot be divided into {count:,} parts. Use fewer parts",
            field="count",
            expected=f"at most {num_examples}",
            got=count,
        )
    return slice(num_examples * index // count, num_examples * (index + 1) // count)


def check_lengths(inputs: Mapping[str, NDArray], labels: NDArray | None, where: str) -> None:
    """Raise InputError unless there are inputs and examples, and all inputs and the labels have one length."""
    if not inputs:
        raise InputError(f"{where} has no input array, expected at least one", field="data", got=0)
    arrays = {f"input {name!r}": array for name, array in inputs.items()}
    if labels is not None:
        arrays["labels"] = labels
    lengths = {name: len(checked_array(array, f"{where}: {name}")) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        message = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise InputError(
            f"{where}: lengths differ ({message}). Every example needs one row in each input and one label",
            field="data",
            got=lengths,
        )
    if 0 in lengths.values():
        raise InputError(f"{where} is empty, expected at least one example", field="data", got=0)


def checked_array(array: Any, where: str) -> NDArray:
    """Return `array` if it is a NumPy array of shape (n, ...).

    Raises:
        InputError: It is a scalar, holds Python objects or is not an array.
    """
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"{where} is a {type(array).__name__}, expected a NumPy array", field="data", got=type(array).__name__
        )
    if array.dtype.hasobject:
        raise InputError(
            f"{where} is an array of Python objects, expected numbers of one shape for every example",
            field="data",
            got="object",
        )
    if not array.ndim:
        raise InputError(
            f"{where} is a single number, expected an array with the examples along its first axis",
            field="data",
            got=(),
        )
    return array


class ContentDigest:
    """An incremental SHA-256 of named arrays. The pieces an array comes in do not change it."""

    def __init__(self) -> None:
        """Start with no arrays."""
        self._digests: dict[str, Any] = {}
        self._headers: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

    def update(self, inputs: Mapping[str, NDArray], labels: NDArray | None) -> None:
        """Add the next examples of a split."""
        for name, array in inputs.items():
            self.add(f"input {name}", array)
        if labels is not None:
            self.add("labels", labels)

    def add(self, name: str, array: NDArray) -> None:
        """Add the next rows of one array; its dtype and its other axes must stay the same."""
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        dtype, shape = self._headers.get(name, (array.dtype, (0, *array.shape[1:])))
        assert (dtype, shape[1:]) == (array.dtype, array.shape[1:]), (name, dtype, shape, array.dtype, array.shape)
        self._headers[name] = dtype, (shape[0] + len(array), *shape[1:])
        self._digests.setdefault(name, hashlib.sha256()).update(array.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """Return the hash of one line per array, in name order: name, dtype, shape, SHA-256 of its bytes."""
        return self._merged(self._headers)

    def part_hashes(self) -> dict[str, str | None]:
        """Return {"inputs": the hash of all arrays except the labels, "labels": that of the labels or None}."""
        inputs = [name for name in self._headers if name != "labels"]
        return {
            "inputs": self._merged(inputs),
            "labels": self._merged(["labels"]) if "labels" in self._headers else None,
        }

    def _merged(self, names: Iterable[str]) -> str:
        merged = hashlib.sha256()
        for name in sorted(names):
            dtype, shape = self._headers[name]
            # repr() escapes newlines in names, so that different contents never give the same lines.
            merged.update(f"{name!r} {dtype.str} {shape} {self._digests[name].hexdigest()}\n".encode())
        return merged.hexdigest()


@dataclass(frozen=True)
class KnownDigest:
    """The results of a `ContentDigest` in another process."""

    sha256: str
    hashes: dict[str, str | None]

    def hexdigest(self) -> str:
        """Return what `ContentDigest.hexdigest` returned."""
        return self.sha256

    def part_hashes(self) -> dict[str, str | None]:
        """Return what `ContentDigest.part_hashes` returned."""
        return self.hashes


def check_finite(inputs: Mapping[str, NDArray], where: str, first: int = 0, total: int = 0) -> None:
    """Raise InputError with the index of the first example that holds NaN or infinity.

    Args:
        inputs: Arrays (k, ...) by input name.
        where: What to call the data in messages.
        first: The index of their first example among all examples.
        total: How many examples there are in all, if there are more than these.
    """
    for name, array in inputs.items():
        if array.dtype.kind != "f":
            continue
        bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if bad.any():
            index = int(bad.argmax())
            what = "NaN" if np.isnan(array[index]).any() else "infinity"
            raise InputError(
                f"{where}: example {first + index} holds {what} in input {name!r}, expected finite numbers "
                f"({_fraction_text(bad, first, total)} hold NaN or infinity). Remove or fix these examples",
                field=f"{name}[{first + index}]",
                expected="finite numbers",
                got=what,
            )


def _fraction_text(bad: NDArray, first: int, total: int) -> str:
    if total > len(bad):
        return f"{int(bad.sum()):,} of the examples {first:,} to {first + len(bad) - 1:,}"
    return f"{int(bad.sum()):,} of {len(bad):,} examples"


def _one_hot_rows(labels: NDArray) -> NDArray[np.bool_]:
    """Return a boolean for each row of (n, classes): True if one value is 1 and all others are 0."""
    ones = labels == 1
    return (ones.sum(axis=1) == 1) & (ones | (labels == 0)).all(axis=1)


def is_one_hot(labels: NDArray) -> bool:
    """Check whether `labels` are one-hot rows: (n, classes >= 2), with a single 1 and otherwise 0 in each row."""
    is_matrix = labels.ndim == 2 and labels.shape[1] >= 2 and labels.dtype.kind in "iufb"
    return is_matrix and bool(_one_hot_rows(labels).all())


def without_one_hot(labels: NDArray) -> NDArray:
    """Return one-hot rows as class numbers, int64 (n,); all other labels are returned unchanged."""
    return labels.argmax(axis=1).astype(np.int64) if is_one_hot(labels) else labels


def check_width(labels: NDArray, classes: int, where: str) -> None:
    """Raise InputError if the length of one-hot `labels` is not the number of classes."""
    if is_one_hot(labels) and labels.shape[1] != classes:
        raise InputError(
            f"{where}: the one-hot rows have {labels.shape[1]} classes, but the model has {classes}. Use labels with "
            "the model's number of classes",
            field="labels",
            expected=(len(labels), classes),
            got=labels.shape,
        )


def class_labels(labels: NDArray, where: str, first: int = 0) -> NDArray[np.int64]:
    """Return `labels` as int64 (n,) class numbers.

    Args:
        labels: Integers >= 0, (n,) or (n, 1); or one-hot rows (n, classes) of any numeric type or of booleans.
        where: What to call the labels in messages.
        first: The index of the first of them among all labels.

    Raises:
        InputError: They are anything else, such as soft labels or floats.
    """
    checked_array(labels, where)
    labels = without_one_hot(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and len(labels):
        index = int((~_one_hot_rows(labels)).argmax())
        shown = ", ".join(f"{value:g}" for value in labels[index, :4].astype(np.float64))
        raise InputError(
            f"{where}: expected class numbers (n,) or one-hot rows (n, classes), but row {first + index} of the labels "
            f"{labels.shape} is not one-hot ({shown}{', ...' if labels.shape[1] > 4 else ''}). Soft labels and several "
            "classes per example need a metric that supports them",
            field=f"labels[{first + index}]",
            expected="class numbers or one-hot rows",
            got=labels.shape,
        )
    if labels.ndim != 1:
        raise InputError(
            f"{where} has shape {labels.shape}, expected class numbers (n,) or one-hot rows (n, classes)",
            field="labels",
            expected="(n,)",
            got=labels.shape,
        )
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"{where} holds {labels.dtype}, expected integer class numbers. Save it as int64",
            field="labels",
            expected="int64",
            got=str(labels.dtype),
        )
    if len(labels) and int(labels.min()) < 0:
        index = int((labels < 0).argmax())
        raise InputError(
            f"{where}: the label of example {first + index} is {int(labels[index])}, expected class numbers from 0 on. "
            "Renumber the classes, or remove examples without a class",
            field=f"labels[{first + index}]",
            got=int(labels[index]),
        )
    if len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
        raise InputError(
            f"{where} holds {int(labels.max())}, which is too large for a class number. Number the classes from 0 on",
            field="labels",
            got=int(labels.max()),
        )
    return labels.astype(np.int64)


# Pieces in memory at a time: 256 MB, and the same amount again while they are shuffled.
_BUFFER_PIECES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitStream:
    """The examples of one split, read in pieces and never in memory all at once.

    Args:
        name: As in `Split`.
        source: As in `Split`.
        num_examples: The number of examples, >= 1.
        read: (start, stop) -> the examples from `start` up to but not including `stop`, as `Split`s in order. Values
            are finite; dtype and shape are the same for all examples.
        piece_examples: The number of examples in the first piece; other pieces have about as many.
        seekable: Whether reading from the middle costs no more than reading from the start.
        notes: As in `Split`.
        information: As in `Split`.
        class_names: As in `Split`.
    """

    name: str
    source: str
    num_examples: int
    read: Callable[[int, int], Iterator[Split]] = field(repr=False)
    piece_examples: int
    seekable: bool
    notes: tuple[str, ...] = ()
    information: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def pieces(self) -> Iterator[Split]:
        """Yield all examples in order, in pieces. Each call reads the source from its beginning.

        Raises:
            InputError: The source no longer has the number of examples that it had when it was opened.
        """
        count, labels = 0, []
        for piece in self.read(0, self.num_examples):
            count += piece.num_examples
            if piece.labels is not None:
                labels.append(piece.labels)
            if count == self.num_examples:
                # Before the last piece is yielded: a caller that counts examples may not ask for more.
                self.__dict__.setdefault("_labels", np.concatenate(labels) if labels else None)
            yield piece
        if count != self.num_examples:
            raise InputError(
                f"data {self.source} ({self.name}): expected {self.num_examples:,} examples, got {count:,}. Did a file "
                "change while it was read?",
                field="data",
                expected=self.num_examples,
                got=count,
            )

    def take(self, n: int) -> "SplitStream":
        """Return the first `n` examples, or all if there are fewer.

        Raises:
            InputError: n < 1.
        """
        if n < 1:
            raise InputError(
                f"data {self.source} ({self.name}): take({n}): expected at least 1 example", field="n", got=n
            )
        return self if n >= self.num_examples else dataclasses.replace(self, num_examples=n)

    def shard(self, index: int, count: int) -> "SplitStream":
        """Return part `index` (from 0) of `count` consecutive parts. The parts in order are the stream.

        If the source is not seekable, reading a part also reads what is before it.

        Raises:
            InputError: There is no such part, or there are fewer examples than parts.
        """
        chosen = shard_slice(self.num_examples, index, count, f"data {self.source} ({self.name})")
        if chosen == slice(0, self.num_examples):
            return self
        return dataclasses.replace(
            self,
            num_examples=chosen.stop - chosen.start,
            read=lambda start, stop: self.read(chosen.start + start, chosen.start + stop),
        )

    def first(self) -> Split:
        """Return the first piece, which has at least one example."""
        for piece in self.pieces():
            return piece
        raise AssertionError("pieces() yielded nothing and raised no error")

    def all_labels(self) -> NDArray | None:
        """Return the labels, or None if there are none. The first call reads the whole source."""
        if "_labels" not in self.__dict__:
            for _ in self.pieces():
                pass
        return self.__dict__["_labels"]

    def remember(self, labels: NDArray | None, sha256: str, part_hashes: Mapping[str, str | None]) -> None:
        """Keep the labels and hashes that other processes computed, so that this one need not read the source."""
        self.__dict__["_labels"] = labels
        self.__dict__["_content_digest"] = KnownDigest(sha256, dict(part_hashes))

    def sha256(self) -> str:
        """Return `Split.sha256` of the same content. The first call reads the whole source."""
        return self._digest().hexdigest()

    def part_hashes(self) -> dict[str, str | None]:
        """Return `Split.part_hashes` of the same content. The first call of this or `sha256` reads the whole source."""
        return self._digest().part_hashes()

    def _digest(self) -> "ContentDigest | KnownDigest":
        digest = self.__dict__.get("_content_digest")
        if digest is None:
            digest = ContentDigest()
            for piece in self.pieces():
                digest.update(piece.inputs, piece.labels)
            self.__dict__["_content_digest"] = digest
        return digest


AnySplit = Split | SplitStream


def example_shape(split: AnySplit) -> tuple[int, ...] | None:
    """Return the shape of one example of the only input; None if there are several inputs."""
    inputs = list(next(iter(split.take(1).pieces())).inputs.values())
    return inputs[0].shape[1:] if len(inputs) == 1 else None


def count_classes(splits: Sequence[AnySplit]) -> int | None:
    """Return the number of classes that the source names, else one more than the highest label.

    For one-hot rows this is their length. None without labels, and if labels are not class numbers. Reads all of a
    stream.
    """
    named = max((len(split.class_names) for split in splits), default=0)
    if named:
        return named
    highest = -1
    for split in splits:
        for piece in split.pieces():
            if piece.labels is None:
                continue
            if is_one_hot(piece.labels):
                highest = max(highest, piece.labels.shape[1] - 1)
            elif piece.labels.dtype.kind in "iu" and piece.labels.ndim == 1:
                highest = max(highest, int(piece.labels.max()))
    return highest + 1 or None


def shuffled_batches(stream: SplitStream, batch_size: int, seed: int, epoch: int) -> Iterator[Split]:
    """Yield every example once, in an order that depends on (seed, epoch) only; the last batch may be smaller.

    If the source is seekable, pieces are read in random order. Several pieces are shuffled in a buffer; half of it is
    yielded before the next pieces are read. A compressed .npz can only be read from its beginning, so that an example
    moves
    by at most about the size of the buffer: if such a file is sorted by class, training sees one class after the other.
    """
    generator = np.random.default_rng([seed, epoch])
    buffer: list[Split] = []
    count = 0
    for piece in _pieces(stream, generator):
        buffer.append(piece)
        count += piece.num_examples
        if count < _BUFFER_PIECES * stream.piece_examples:
            continue
        merged = _shuffled(buffer, generator)
        ready = count // 2 // batch_size * batch_size
        yield from _batches(merged, 0, ready, batch_size)
        buffer = [_copy(merged, ready, count)]
        count -= ready
    if count:
        yield from _batches(_shuffled(buffer, generator), 0, count, batch_size)


def batches_in_order(stream: SplitStream, batch_size: int) -> Iterator[Split]:
    """Yield every example once, in the stream's order; the last batch may be smaller."""
    buffer: list[Split] = []
    count = 0
    for piece in stream.pieces():
        buffer.append(piece)
        count += piece.num_examples
        if count < batch_size:
            continue
        merged = _concatenated(buffer)
        ready = count // batch_size * batch_size
        yield from _batches(merged, 0, ready, batch_size)
        buffer = [_copy(merged, ready, count)] if ready < count else []
        count -= ready
    if count:
        yield _concatenated(buffer)


def _pieces(stream: SplitStream, generator: np.random.Generator) -> Iterator[Split]:
    if not stream.seekable:
        yield from stream.pieces()
        return
    starts = np.arange(0, stream.num_examples, stream.piece_examples)
    for start in generator.permutation(starts).tolist():
        yield from stream.read(start, min(start + stream.piece_examples, stream.num_examples))


def _concatenated(splits: list[Split]) -> Split:
    if len(splits) == 1:
        return splits[0]
    first = splits[0]
    return Split(
        name=first.name,
        inputs={name: np.concatenate([split.inputs[name] for split in splits]) for name in first.inputs},
        labels=None if first.labels is None else np.concatenate([split.labels for split in splits]),
        source=first.source,
    )


def _shuffled(splits: list[Split], generator: np.random.Generator) -> Split:
    merged = _concatenated(splits)
    return _select(merged, generator.permutation(merged.num_examples))


def _copy(split: Split, start: int, stop: int) -> Split:
    # A copy, because a view would keep the whole buffer in memory.
    return _select(split, np.arange(start, stop))


def _select(split: Split, indices: np.ndarray) -> Split:
    return Split(
        name=split.name,
        inputs={name: array[indices] for name, array in split.inputs.items()},
        labels=None if split.labels is None else split.labels[indices],
        source=split.source,
    )


def _batches(split: Split, start: int, stop: int, batch_size: int) -> Iterator[Split]:
    for first in range(start, stop, batch_size):
        yield _select(split, np.arange(first, min(first + batch_size, stop)))

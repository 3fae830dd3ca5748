# SPDX-License-Identifier: Apache-2.0
"""The interface of data sources: how many examples a split has, and how to read them in pieces."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from tfq import registry
from tfq.artifacts import sha256_file
from tfq.config import DataConfig
from tfq.data.split import MissingSplitError, check_lengths
from tfq.errors import install_hint

# The size of the arrays that a source returns at a time. Preprocessing to float32 may make them four times as large.
_PIECE_BYTES = 1 << 23


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Consecutive examples as their source stores them: arrays as in `Split`, labels or None."""

    inputs: Mapping[str, NDArray]
    labels: NDArray | None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The examples of a split in their source's order. Nothing is decoded before `read` is called.

    Args:
        num_examples: n >= 1.
        read: (start, stop) -> the examples start..stop-1, in pieces of a few megabytes.
        seekable: Whether reading from the middle costs no more than reading from the beginning.
        notes: As in `Split`.
        information: As in `Split`.
        class_names: As in `Split`.
        undivided: The training examples before a validation split was held out of them; None if none was.
    """

    num_examples: int
    read: Callable[[int, int], Iterator[Piece]]
    seekable: bool = True
    notes: tuple[str, ...] = ()
    information: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    undivided: "Examples | None" = None

    def part(self, chosen: "slice[int, int, None]") -> "Examples":
        """Return only the examples in `chosen`, a slice of step 1 with start and stop."""
        length = chosen.stop - chosen.start
        if length == self.num_examples:
            return self
        return dataclasses.replace(
            self,
            num_examples=length,
            read=lambda start, stop: self.read(chosen.start + start, chosen.start + stop),
            undivided=None,
        )


@registry.extension_point("data_source")
@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A kind of place where examples come from: `data.source` is its name, or NAME:ADDRESS.

    Args:
        name: What users write before the colon.
        help: What it reads, for `--help` and the documentation.
        address: What follows the colon, such as "PATH"; "" if there is none.
        read: (address, config, split) -> the examples of "train", "val" or "test", in the same order every time and
            before preprocessing. Raises `MissingSplitError` if there is no such split.
        fingerprint: (address, config) -> a JSON value that changes whenever `read` may return other examples. It should
            not decode anything. `tfq run` uses it to resume finished stages. If changes cannot be detected, return a
            value that never repeats (such as `uuid.uuid4().hex`): then nothing is resumed.
        splits: All splits that it can have, the same for every address; () if they depend on the address.
        extra: The extra of tfq that it needs (see `errors.install_hint`); "" if none.
        looks_like: A regular expression of addresses that are probably meant for this source if a user forgot the name
            and the colon; "" to suggest nothing.
        check: (address, split that is read first, "" if unknown) -> None. Raises `InputError` if there is nothing to
            read. The source may lack the split. It must be fast and decode no example: commands call it before they
            import TensorFlow. None checks nothing.
    """

    name: str
    help: str
    address: str = ""
    read: Callable[[str, DataConfig, str], Examples]
    fingerprint: Callable[[str, DataConfig], object]
    splits: tuple[str, ...] = ()
    extra: str = ""
    looks_like: str = ""
    check: Callable[[str, str], None] | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Return the further cells of its row in the documentation."""
        return {
            "spelling": f"`{self.name}:{self.address}`" if self.address else f"`{self.name}`",
            "splits": ", ".join(self.splits) or "depends on its files",
            "needs": f"`{install_hint(self.extra)}`" if self.extra else "",
        }


def file_fingerprint(paths: Iterable[Path], root: Path) -> list[str]:
    """Return "NAME SHA-256" for each file. Names are relative to `root`, so that moving `root` changes nothing.

    Raises:
        InputError: A file cannot be read.
    """
    return [f"{path.relative_to(root).as_posix()} {sha256_file(path, field='data.source')}" for path in paths]


def examples_of_arrays(
    inputs: Mapping[str, NDArray],
    labels: NDArray | None,
    where: str,
    *,
    notes: tuple[str, ...] = (),
    class_names: tuple[str, ...] = (),
) -> Examples:
    """Return the `Examples` of arrays in memory.

    Args:
        inputs: {input name: array (n, ...)}; the name of a single input is "x".
        labels: (n, ...) or None.
        where: What to call the data in messages, such as its path.
        notes: As in `Split`.
        class_names: As in `Split`.

    Raises:
        InputError: There is no example, or the lengths differ.
    """
    check_lengths(inputs, labels, where)
    count = len(next(iter(inputs.values())))
    step = examples_per_piece(sum(array.nbytes for array in inputs.values()) // count)

    def read(start: int, stop: int) -> Iterator[Piece]:
        for first in range(start, stop, step):
            chosen = slice(first, min(first + step, stop))
            yield Piece(
                inputs={name: array[chosen] for name, array in inputs.items()},
                labels=None if labels is None else labels[chosen],
            )

    return Examples(num_examples=count, read=read, notes=notes, class_names=class_names)


def examples_per_piece(example_bytes: int) -> int:
    """Return how many examples of this size make a piece; at least 1."""
    return max(1, _PIECE_BYTES // max(1, example_bytes))


def hold_out_val(train: Examples, split: str, where: str) -> Examples:
    """Return "train" or "val" of a source without a val split.

    Args:
        train: The train examples. The last tenth of them, at least one, is val; train is the rest. A single example
            stays in train.
        split: "train" or "val".
        where: What to call the data in messages.

    Raises:
        MissingSplitError: `split` is "val" and there are fewer than two examples.
    """
    count = train.num_examples
    held_out = max(1, count // 10) if count >= 2 else 0
    if not held_out:
        if split == "train":
            return train
        raise MissingSplitError(
            f"{where} has no val split, and {count} train examples are too few to hold one out. Add examples, or a "
            "val split",
            field="split",
            got="val",
        )
    message = f"{where} has no val split: the last {held_out:,} of {count:,} train examples are used as val"
    part = train.part(slice(0, count - held_out) if split == "train" else slice(count - held_out, count))
    return dataclasses.replace(part, information=(*train.information, message), undivided=train)

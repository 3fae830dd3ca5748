# SPDX-License-Identifier: Apache-2.0
"""What a data source is, and what it gives of a split: how many examples there are, and how to read them in pieces."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from tfq import registry
from tfq.artifacts import sha256_file
from tfq.config import DataConfig
from tfq.data.split import MissingSplitError, check_lengths
from tfq.errors import InputError, install_hint

# Of the arrays that a source gives at a time. What becomes of them in float32 may be four times that.
_PIECE_BYTES = 1 << 23


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Some examples in a row, as their source holds them: arrays as in `Split`, labels or None."""

    inputs: Mapping[str, NDArray]
    labels: NDArray | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The examples of a split in their source's own order; nothing of them is decoded before `read`.

    num_examples: n >= 1.
    read: (start, stop) -> the examples from start to before stop, in pieces of a few megabytes.
    seekable: whether `read` from the middle costs no more than from the beginning.
    notes, class_names: as in `Split`.
    """

    num_examples: int
    read: Callable[[int, int], Iterator[Piece]]
    seekable: bool = True
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def part(self, chosen: "slice[int, int, None]", *notes: str) -> "Examples":
        """Those of `chosen` (a slice of step 1, both ends given) alone, with more notes."""
        length = chosen.stop - chosen.start
        if length == self.num_examples:
            return dataclasses.replace(self, notes=(*self.notes, *notes))
        return dataclasses.replace(
            self,
            num_examples=length,
            read=lambda start, stop: self.read(chosen.start + start, chosen.start + stop),
            notes=(*self.notes, *notes),
        )


@registry.extension_point("data_source")
@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where examples come from: `data.source` is its name, or NAME:ADDRESS.

    Args:
        name: What users write before the colon.
        help: What it reads, for `--help` and the documentation.
        address: What stands after the colon, such as "PATH"; "" if nothing may.
        read: (address, config, split) -> the examples of "train", "val" or "test", in the same order every time and
            before preprocessing. Raises `MissingSplitError` if there is no such split.
        fingerprint: (address, config) -> a JSON value that changes whenever `read` may give other examples; it should
            decode nothing. `tfq run` resumes finished stages by it. If this cannot be known, return a value that never
            repeats (such as `uuid.uuid4().hex`): nothing is resumed then.
        splits: All splits that it can have, the same for every address; () if they depend on the address.
        extra: The extra of tfq that it needs: see `errors.install_hint`; "" if none.
        looks_like: Regular expression of an address that is probably meant for this source when a user forgot the name
            and the colon; "" to suggest nothing.
    """

    name: str
    help: str
    address: str = ""
    read: Callable[[str, DataConfig, str], Examples]
    fingerprint: Callable[[str, DataConfig], object]
    splits: tuple[str, ...] = ()
    extra: str = ""
    looks_like: str = ""

    @property
    def columns(self) -> dict[str, str]:
        """Return the further cells of its row in the documentation."""
        return {
            "spelling": f"`{self.name}:{self.address}`" if self.address else f"`{self.name}`",
            "splits": ", ".join(self.splits) or "by what its files hold",
            "needs": f"`{install_hint(self.extra)}`" if self.extra else "",
        }


def file_fingerprint(paths: Iterable[Path], root: Path) -> list[str]:
    """Return "NAME SHA-256" of each file, the name relative to `root`, so that it does not matter where `root` lies.

    Raises:
        InputError: A file cannot be read.
    """
    return [f"{path.relative_to(root).as_posix()} {_sha256(path)}" for path in paths]


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}: expected a file of data.source",
            field="data.source",
            got=str(path),
        ) from error


def examples_of_arrays(
    inputs: Mapping[str, NDArray],
    labels: NDArray | None,
    where: str,
    *,
    notes: tuple[str, ...] = (),
    class_names: tuple[str, ...] = (),
) -> Examples:
    """Examples that are in memory already. Raises InputError when there is none, or the lengths differ."""
    check_lengths(inputs, labels, where)
    count = len(next(iter(inputs.values())))
    step = examples_a_piece(sum(array.nbytes for array in inputs.values()) // count)

    def read(start: int, stop: int) -> Iterator[Piece]:
        for first in range(start, stop, step):
            chosen = slice(first, min(first + step, stop))
            yield Piece(
                inputs={name: array[chosen] for name, array in inputs.items()},
                labels=None if labels is None else labels[chosen],
            )

    return Examples(num_examples=count, read=read, notes=notes, class_names=class_names)


def examples_a_piece(example_bytes: int) -> int:
    """How many examples of this size make a piece, at least 1."""
    return max(1, _PIECE_BYTES // max(1, example_bytes))


def without_val(train: Examples, split: str, where: str) -> Examples:
    """The `split` ("train" or "val") of the train examples of a source that has no val split.

    The last tenth is val, at least one example; train is the rest, or the one example that there is.
    Raises MissingSplitError when nothing can be spared for val.
    """
    count = train.num_examples
    spared = max(1, count // 10) if count >= 2 else 0
    if not spared:
        if split == "train":
            return train
        raise MissingSplitError(
            f"{where} has no val split, and {count} train examples are too few to hold one out",
            field="split",
            got="val",
        )
    note = f"{where} has no val split: the last {spared:,} of {count:,} train examples serve as val"
    return train.part(slice(0, count - spared) if split == "train" else slice(count - spared, count), note)

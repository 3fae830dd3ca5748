# SPDX-License-Identifier: Apache-2.0
"""A split that is not in memory: read, decoded and preprocessed piece by piece, as often as it is wanted."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfq.data.split import ContentDigest, Split
from tfq.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitStream:
    """Examples of one split, as the float model is fed them, never all in memory at once.

    name, source, notes, class_names: as in `Split`.
    num_examples: n >= 1.
    read: (start, stop) -> the examples from start to before stop as `Split`s, in order, finite, of one dtype and shape.
    piece_examples: how many examples the first piece holds; others hold about as many.
    seekable: whether `read` from the middle costs no more than from the beginning.
    """

    name: str
    source: str
    num_examples: int
    read: Callable[[int, int], Iterator[Split]] = field(repr=False)
    piece_examples: int
    seekable: bool
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def pieces(self) -> Iterator[Split]:
        """All examples in their order, some at a time. Each call reads the source from its beginning.

        Raises InputError when the source holds another number of examples than it did when it was opened.
        """
        count, labels = 0, []
        for piece in self.read(0, self.num_examples):
            count += piece.num_examples
            if piece.labels is not None:
                labels.append(piece.labels)
            if count == self.num_examples:
                # Before the last piece is given: who knows how many there are need not ask for another.
                self.__dict__.setdefault("_labels", np.concatenate(labels) if labels else None)
            yield piece
        if count != self.num_examples:
            raise InputError(
                f"data {self.source} ({self.name}): gave {count:,} examples, wanted {self.num_examples:,}: has it "
                "changed while it was read?"
            )

    def take(self, n: int) -> "SplitStream":
        """The first `n` examples, or all when there are fewer. Raises InputError when n < 1."""
        if n < 1:
            raise InputError(f"data {self.source} ({self.name}): take({n}): wanted at least 1 example")
        return self if n >= self.num_examples else dataclasses.replace(self, num_examples=n)

    def first(self) -> Split:
        """The first piece, at least one example."""
        for piece in self.pieces():
            return piece
        raise AssertionError("pieces() gave none, and no error")

    def all_labels(self) -> NDArray | None:
        """(n,), or None where there are none. Reads everything, unless that has been done since it was opened."""
        if "_labels" not in self.__dict__:
            for _ in self.pieces():
                pass
        return self.__dict__["_labels"]

    def sha256(self) -> str:
        """`Split.sha256` of the same content. Reads everything, the first time that it is asked for."""
        known = self.__dict__.get("_sha256")
        if known is None:
            digest = ContentDigest()
            for piece in self.pieces():
                digest.update(piece.inputs, piece.labels)
            known = digest.hexdigest()
            self.__dict__["_sha256"] = known
        return known


AnySplit = Split | SplitStream

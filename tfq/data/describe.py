# SPDX-License-Identifier: Apache-2.0
"""What a model needs to know of the data that it is built for."""

from collections.abc import Sequence

from tfq.data.stream import AnySplit


def example_shape(split: AnySplit) -> tuple[int, ...] | None:
    """The shape of an example's one input; None where it has several."""
    inputs = list(next(iter(split.take(1).pieces())).inputs.values())
    return inputs[0].shape[1:] if len(inputs) == 1 else None


def count_classes(splits: Sequence[AnySplit]) -> int | None:
    """How many classes the source names, or else the labels of all the splits tell apart, as the highest says.

    None without labels, and of labels that are no class numbers. Reads a stream to its end.
    """
    named = max((len(split.class_names) for split in splits), default=0)
    if named:
        return named
    highest = -1
    for split in splits:
        for piece in split.pieces():
            if piece.labels is not None and piece.labels.dtype.kind in "iu":
                highest = max(highest, int(piece.labels.max()))
    return highest + 1 or None

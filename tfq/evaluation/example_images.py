# SPDX-License-Identifier: Apache-2.0
"""Read single examples of a data set, and decide which input is an image that can be drawn."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfq.data import AnySplit, Split
from tfq.errors import InputError
from tfq.evaluation.pictures import why_no_picture


def image_input(data: AnySplit) -> tuple[str | None, str | None]:
    """Return the name of the only input that is an image, and None; or None and the reason why there is none."""
    first = next(iter(data.take(1).pieces())).inputs
    reasons = {name: why_no_picture(array.shape[1:]) for name, array in first.items()}
    images = [name for name, reason in reasons.items() if reason is None]
    if len(images) == 1:
        return images[0], None
    return None, next(iter(reasons.values())) if len(reasons) == 1 else f"{len(images)} of the inputs are images"


def images_of(data: AnySplit, indices: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray | None, str | None]:
    """Return the images of single examples, (len(indices), height, width, channels); or None and the reason.

    Both are None if there are no indices.
    """
    if not len(indices):
        return None, None
    name, reason = image_input(data)
    return (None, reason) if name is None else (examples_at(data, indices, name), None)


def examples_at(data: AnySplit, indices: Sequence[int] | NDArray[np.int64], name: str) -> NDArray:
    """Return single examples of an input, (len(indices), ...). A stream that is not seekable is read once.

    Raises:
        InputError: The stream no longer has these examples.
    """
    indices = np.asarray(indices, np.int64)
    if isinstance(data, Split):
        return np.asarray(data.inputs[name][indices])
    examples: dict[int, NDArray] = {}
    spans = [(int(index), int(index) + 1) for index in indices] if data.seekable else [(0, int(indices.max()) + 1)]
    for start, stop in spans:
        for piece in data.read(start, stop):
            for index in indices[(start <= indices) & (indices < start + piece.num_examples)]:
                examples[int(index)] = np.array(piece.inputs[name][index - start])
            start += piece.num_examples
    missing = [int(index) for index in indices if int(index) not in examples]
    if missing:
        raise InputError(
            f"data {data.source} ({data.name}): example {missing[0]} can no longer be read. Did a file change?",
            field="data",
            got=missing,
        )
    return np.stack([examples[int(index)] for index in indices])

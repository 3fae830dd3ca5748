# SPDX-License-Identifier: Apache-2.0
"""Examples as a tf_keras model is fed them, for what looks at activations."""

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from tfq.data import as_split, bind_inputs, shape_fits
from tfq.errors import InputError

_BATCH_SIZE = 32


def batches_of(model: Any, data: Any, limit: int, what: str) -> Iterator[list[NDArray]]:
    """The first `limit` examples, an array (n, ...) for each input in the model's order, a batch at a time.

    data: inputs in the model's real units, whatever `tfq.data.as_split` takes. what: begins the error.
    Raises InputError where their shapes are not those of the model's inputs.
    """
    split = as_split(data, split="train", limit=limit)
    for piece in split.pieces():
        arrays = bind_inputs(piece.inputs, list(model.input_names))
        for array, tensor in zip(arrays, model.inputs, strict=True):
            wanted = tuple(tensor.shape)[1:]
            if not array.ndim or not shape_fits(array.shape[1:], wanted):
                raise InputError(
                    f"{what} examples of input {tensor.name!r} have shape {array.shape[1:]}, the model wants "
                    f"{wanted}: give an array (n, ...) of what the model is fed"
                )
        for start in range(0, len(arrays[0]), _BATCH_SIZE):
            yield [array[start : start + _BATCH_SIZE] for array in arrays]

# SPDX-License-Identifier: Apache-2.0
"""What a flatbuffer answers to a split, and what would be right."""

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends import RunRequest, make_runner
from tfq.data import AnySplit
from tfq.errors import InputError
from tfq.evaluation import decode_outputs, prepare_inputs


def labels_of(split: AnySplit, what: str) -> NDArray[np.int64]:
    """The class of each example. Raises InputError where there are none. what: the step that wants them."""
    found = [piece.labels for piece in split.pieces()]
    if any(labels is None for labels in found):
        raise InputError(f"{what}: the {split.name} split has no labels: wanted classes, to choose by accuracy")
    return np.concatenate([labels for labels in found if labels is not None])


def packed(right: NDArray[np.bool_]) -> list[int]:
    """Which examples were answered rightly, as JSON keeps it: eight in a byte."""
    found: list[int] = np.packbits(right).tolist()
    return found


def unpacked(values: list[int], count: int) -> NDArray[np.bool_]:
    """What `packed` was given, of so many examples."""
    return np.unpackbits(np.array(values, np.uint8))[:count].astype(bool)


def classes_of(content: bytes, split: AnySplit) -> NDArray[np.int64]:
    """The largest output of each example."""
    parsed = tflite.read(content)
    found = []
    for piece in split.pieces():
        inputs = prepare_inputs(parsed, piece).arrays
        outputs = make_runner("local").run(RunRequest(model=content, inputs=inputs)).outputs
        answers = np.asarray(decode_outputs(parsed, outputs)[0])
        found.append(answers.reshape(len(answers), -1).argmax(axis=1))
    return np.concatenate(found)

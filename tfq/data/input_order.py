# SPDX-License-Identifier: Apache-2.0
"""Recognize arrays that were passed by position, and probably in another order than the model's inputs.

The inputs of a model that is built from a dict are in the order of their names, which is not always the order in which
its author lists them.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.errors import InputError

# Names of inputs that have integers, such as token ids or masks.
_INTEGER_NAME = re.compile(
    r"(^|[_./-])(ids?|tokens?|index|indices|masks?|labels?|class(es)?|len(gth)?s?|counts?)($|[_./:\d-])"
)


# How many samples to compare with a model's normalization.
_COMPARED = 50
# `_distance` of values in the wrong order exceeds that of the right order by more than this, for each normalized input.
_LEAST_GAIN = 2.0
# `_distance` of values that fit a normalization is at most this. Dark images after a division by 255 have about 1.8.
_GREATEST_DISTANCE = 2.5

Normalization = tuple[NDArray, NDArray]


def normalizations(model: bytes) -> dict[str, Normalization]:
    """Return {input: (scale, offset)} of the inputs that a float model first maps to x * scale + offset.

    Keras' Normalization and Rescaling layers are such maps. Scale and offset broadcast to the shape of the input.
    """
    parsed = tflite.read(model)
    results = {}
    for name, index in zip(parsed.input_names, parsed.main_subgraph.inputs, strict=True):
        normalization = _normalization(model, parsed.main_subgraph, index)
        if normalization is not None:
            results[name] = normalization
    return results


def _normalization(model: bytes, graph: tflite.Subgraph, index: int) -> Normalization | None:
    scale: NDArray[np.float64] = np.ones(())
    offset: NDArray[np.float64] = np.zeros(())
    is_normalized = False
    while len(readers := graph.readers.get(index, ())) == 1:
        op = readers[0]
        if op.name == "CAST":
            index = op.outputs[0]
            continue
        if op.name not in ("ADD", "SUB", "MUL", "DIV") or (op.name in ("SUB", "DIV") and op.inputs[0] != index):
            break
        constant = next((graph.tensors[other] for other in op.inputs if other != index), graph.tensors[index])
        try:
            value = tflite.constant_values(model, constant).astype(np.float64)
        except InputError:  # another tensor of the model
            break
        if op.name in ("MUL", "DIV"):
            factor = value if op.name == "MUL" else 1 / np.where(value == 0, np.inf, value)
            scale, offset = scale * factor, offset * factor
        else:
            offset = offset + (value if op.name == "ADD" else -value)
        index, is_normalized = op.outputs[0], True
    return (scale, offset) if is_normalized and np.any(scale) else None


def _distance(values: NDArray, normalization: Normalization) -> float:
    """Return how far normalized values are from a size of 1, as the logarithm of a ratio.

    With an offset, values should be centered: the distance is that of their standard deviation, plus the absolute mean
    (at most 5). Without one, it is that of their root mean square.
    """
    scale, offset = normalization
    normalized = values * scale + offset
    if not np.any(offset):
        return abs(float(np.log(max(np.sqrt(np.mean(normalized**2)), 1e-6))))
    return min(abs(float(normalized.mean())), 5.0) + abs(float(np.log(max(normalized.std(), 1e-6))))


def order_warnings(
    samples: Sequence[Mapping[str, NDArray]], normalized: Mapping[str, Normalization] | None = None
) -> list[str]:
    """Return a warning if two inputs of one shape are probably exchanged.

    They are if only the wrong one has integers, or if the model's normalization of the inputs fits the values of the
    other input much better. Nothing is known about inputs that are all floats without a normalization.

    Args:
        samples: The calibration samples, whose arrays were assigned to the inputs by their position.
        normalized: The result of `normalizations` for the model.
    """
    return _integer_warnings(samples) or _normalization_warnings(samples, normalized or {})


def _normalization_warnings(
    samples: Sequence[Mapping[str, NDArray]], normalized: Mapping[str, Normalization]
) -> list[str]:
    names = list(samples[0])
    values = {name: np.concatenate([sample[name][None] for sample in samples[:_COMPARED]]) for name in names}
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            known = [(name, {one: other, other: one}[name]) for name in (one, other) if name in normalized]
            if not known or values[one].shape != values[other].shape:
                continue
            as_passed = sum(_distance(values[name], normalized[name]) for name, _ in known)
            exchanged = sum(_distance(values[partner], normalized[name]) for name, partner in known)
            if as_passed - exchanged > _LEAST_GAIN * len(known) and exchanged <= _GREATEST_DISTANCE * len(known):
                ranges = [f"{values[name].min():.4g} to {values[name].max():.4g} for {name!r}" for name in (one, other)]
                return [
                    "representative_dataset: the arrays of a list belong to the inputs in this order: "
                    f"{', '.join(names)}. The values are {ranges[0]} and {ranges[1]}. The model's own normalization "
                    f"of {' and '.join(repr(name) for name, _ in known)} fits the values of the other input, which "
                    "suggests that they are exchanged. Yield a dict by input name instead"
                ]
    return []


def _integer_warnings(samples: Sequence[Mapping[str, NDArray]]) -> list[str]:
    first = samples[0]
    integral = {name: all(np.array_equal(sample[name], np.rint(sample[name])) for sample in samples) for name in first}
    for name, is_integral in integral.items():
        if is_integral or not _INTEGER_NAME.search(name.lower()):
            continue
        for other in first:
            same_shape = first[other].shape == first[name].shape
            if same_shape and integral[other] and not _INTEGER_NAME.search(other.lower()):
                return [
                    "representative_dataset: the arrays of a list belong to the inputs in this order: "
                    f"{', '.join(first)}. So {name!r} gets fractions and {other!r} gets integers, which suggests that "
                    "they are exchanged. Yield a dict by input name instead"
                ]
    return []

# SPDX-License-Identifier: Apache-2.0
"""Check that a technique left the function of a float flatbuffer unchanged."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.errors import TfqError
from tfq.ptq.calibration.observer import Sample, map_activations

_RANDOM_SAMPLES = 8


def check_same_function(
    before: bytes, after: bytes, samples: Sequence[Sample], technique: str, tolerance: float
) -> tuple[float, int]:
    """Compare the outputs of a float flatbuffer before and after a technique.

    Args:
        before: The float flatbuffer.
        after: The same after the technique.
        samples: {input name: array of batch size 1}; if there are none, random ones are used.
        technique: The technique, as `conversion.techniques` names it.
        tolerance: The largest accepted difference, relative to the largest output.

    Returns:
        The largest difference of any output relative to the largest output, and the number of samples.

    Raises:
        TfqError: The difference is larger than `tolerance`.
    """
    compared = samples or _random_samples(tflite.read(before))
    difference = _difference(before, after, compared)
    if not difference <= tolerance:
        raise TfqError(
            f"{technique} changed the outputs of the float model by {difference:.1e} of the largest output on "
            f"{len(compared)} {'' if samples else 'random '}samples, expected at most {tolerance:.0e}. Remove "
            f"{technique} from conversion.techniques for this model",
            field="conversion.techniques",
            expected=tolerance,
            got=difference,
        )
    return difference, len(compared)


def _random_samples(parsed: tflite.Model) -> list[Sample]:
    rng, tensors = np.random.default_rng(0), parsed.main_subgraph.input_tensors
    return [
        {
            name: rng.normal(size=tensor.shape).astype(tensor.dtype)
            for name, tensor in zip(parsed.input_names, tensors, strict=True)
        }
        for _ in range(_RANDOM_SAMPLES)
    ]


def _difference(before: bytes, after: bytes, samples: Sequence[Sample]) -> float:
    outputs = tflite.read(before).main_subgraph.outputs
    runs = [
        map_activations(model, outputs, samples, lambda values: [v.copy() for v in values]) for model in (before, after)
    ]
    largest_output = difference = 0.0
    for original, changed in zip(*runs, strict=True):
        for expected, got in zip(map(_as_float, original), map(_as_float, changed), strict=True):
            largest_output = max(largest_output, float(np.abs(expected).max(initial=0)))
            difference = max(difference, float(np.abs(expected - got).max(initial=0)))
    return difference / largest_output if largest_output else difference


def _as_float(values: NDArray) -> NDArray:
    """Convert booleans and integers to float64: NumPy cannot subtract booleans, and unsigned integers wrap."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)

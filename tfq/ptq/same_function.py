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
    before: bytes, after: bytes, samples: Sequence[Sample], what: str, most: float
) -> tuple[float, int]:
    """Return (the largest difference of any output as a fraction of the largest output, the number of samples).

    Args:
        before: The float flatbuffer.
        after: The same after the technique.
        samples: By input name; if there are none, random ones are used.
        what: The technique, for the message.
        most: The largest difference that is accepted.

    Raises:
        TfqError: The difference is larger.
    """
    tried = samples or _random_samples(tflite.read(before))
    difference = _difference(before, after, tried)
    if not difference <= most:
        raise TfqError(
            f"{what} changed the float function by {difference:.1e} of its largest output on {len(tried)} "
            f"{'' if samples else 'random '}samples, expected at most {most:.0e}: leave it out for this model",
            field="conversion.techniques",
            expected=most,
            got=difference,
        )
    return difference, len(tried)


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
    largest = furthest = 0.0
    for one, other in zip(*runs, strict=True):
        for wanted, got in zip(map(_real, one), map(_real, other), strict=True):
            largest = max(largest, float(np.abs(wanted).max(initial=0)))
            furthest = max(furthest, float(np.abs(wanted - got).max(initial=0)))
    return furthest / largest if largest else furthest


def _real(values: NDArray) -> NDArray:
    """Conditions and whole numbers as float64: booleans have no difference, and that of unsigned integers wraps."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)

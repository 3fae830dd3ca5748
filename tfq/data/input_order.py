# SPDX-License-Identifier: Apache-2.0
"""Recognize arrays that were passed by position, and probably in another order than the model's inputs.

The inputs of a model that is built from a dict are in the order of their names, which is not always the order in which
its author lists them.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Names of inputs that have integers, such as token ids or masks.
_INTEGER_NAME = re.compile(
    r"(^|[_./-])(ids?|tokens?|index|indices|masks?|labels?|class(es)?|len(gth)?s?|counts?)($|[_./:\d-])"
)


def order_warnings(samples: Sequence[Mapping[str, NDArray]]) -> list[str]:
    """Return a warning if two inputs of one shape are probably exchanged: only the wrong one has integers.

    Args:
        samples: The calibration samples, whose arrays were assigned to the inputs by their position.
    """
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

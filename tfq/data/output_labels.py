# SPDX-License-Identifier: Apache-2.0
"""Labels for several outputs of a model, in one array.

They are a structured array of shape (n,) with a field for each output. So they are cut, shuffled, concatenated, hashed
and streamed like any other labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError, did_you_mean


def join_labels(labels: Mapping[str, Any], where: str) -> NDArray:
    """Return the labels {output name: (n, ...)} as a structured array (n,).

    Raises:
        InputError: There are no labels, their lengths differ, or they are not numbers.
    """
    arrays = {str(name): np.asarray(values) for name, values in labels.items()}
    lengths = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    if not arrays or None in lengths.values() or len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no output"
        raise InputError(
            f"{where}: expected one label for each example and output, got {shown}. Pass arrays of one length",
            field="labels",
            expected="arrays of one length",
            got=lengths,
        )
    bad = next((name for name, array in arrays.items() if array.dtype.kind not in "fiub"), None)
    if bad is not None:
        raise InputError(
            f"{where}: the labels of output {bad!r} are {arrays[bad].dtype}, expected numbers",
            field="labels",
            expected="numbers",
            got=str(arrays[bad].dtype),
        )
    count = next(iter(lengths.values()))
    joined = np.empty(count or 0, [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()])
    for name, array in arrays.items():
        joined[name] = array
    return joined


def labeled_outputs(labels: NDArray | None) -> tuple[str, ...]:
    """Return the names of the outputs that have separate labels; () if the labels have no names."""
    return () if labels is None else tuple(labels.dtype.names or ())


def labels_of_output(labels: NDArray, name: str) -> NDArray | None:
    """Return the labels of an output: unnamed labels are those of any output. None if this output has none."""
    names = labeled_outputs(labels)
    if not names:
        return labels
    return np.ascontiguousarray(labels[name]) if name in names else None


def check_output_names(labels: NDArray | None, outputs: Sequence[str]) -> None:
    """Raise InputError if there are labels for an output that the model does not have."""
    unknown = next((name for name in labeled_outputs(labels) if name not in outputs), None)
    if unknown is not None:
        raise InputError(
            f"the data has labels for the output {unknown!r}, which the model does not have; "
            f"{did_you_mean(unknown, outputs)}",
            field="labels",
            expected=tuple(outputs),
            got=unknown,
        )

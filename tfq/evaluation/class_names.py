# SPDX-License-Identifier: Apache-2.0
"""The names of the classes that an output predicts: from the data source, else from the label file of the model."""

from collections.abc import Sequence

from tfq.auditing.io_table import io_table
from tfq.data import AnySplit
from tfq.errors import TfqError


def class_names_by_output(content: bytes, data: AnySplit) -> list[tuple[str, ...]]:
    """Return for each output of a model the names of class 0, 1, ...; empty if they are not known.

    They are those of the data source, which are the same for all outputs. If it has none, they are the lines of the
    label file that the `.tflite` has for the output.

    Args:
        content: The bytes of the `.tflite`.
        data: The examples.
    """
    try:
        outputs = io_table(content).outputs
    except TfqError:
        return []
    return [tuple(data.class_names) or entry.labels or entry.value_labels or () for entry in outputs]


def names_of_output(names: Sequence[Sequence[str]], outputs: Sequence[int] | None) -> tuple[str, ...]:
    """Return the names of the classes of a metric.

    Args:
        names: The result of `class_names_by_output`.
        outputs: The indices of the outputs that the metric uses; None for all. The first one with names decides.
    """
    chosen = range(len(names)) if outputs is None else outputs
    return next((tuple(names[index]) for index in chosen if index < len(names) and names[index]), ())

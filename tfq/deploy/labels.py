# SPDX-License-Identifier: Apache-2.0
"""Class names for a bundle: read, checked, and joined with the output that they belong to."""

import re
import unicodedata
from collections.abc import Sequence

from tfq import artifacts, progress
from tfq import data as datasets
from tfq.auditing import IoTable
from tfq.config import DataConfig, ExportConfig
from tfq.data import MissingSplitError
from tfq.errors import InputError, warn
from tfq.text_table import shown
from tfq.tflite import Model

# Later splits were not used to train or to choose a model.
_SPLITS = ("test", "val", "train")
_MOST_BYTES = 1 << 24


def read_labels(path: str) -> tuple[str, ...]:
    """Return the lines of a label file, in UTF-8. Empty lines at its end are left out.

    Raises:
        InputError: The file cannot be read, is not UTF-8, has an empty line before its end, or has a name twice.
    """
    expected = "a text file with the name of one class per line"
    content = artifacts.read_bytes(path, expected, field="export.labels", max_bytes=_MOST_BYTES)
    with artifacts.decoding(path, f"{expected}, in UTF-8", field="export.labels"):
        # Not str.splitlines: it also ends lines at characters within a name, such as U+2028.
        lines = re.split("\r\n|\r|\n", content.decode("utf-8-sig"))
    labels = [line.strip() for line in lines]
    while labels and not labels[-1]:
        labels.pop()
    return check_names(labels, artifacts.shown(path))


def check_names(labels: Sequence[str], where: str) -> tuple[str, ...]:
    """Return class names as a tuple.

    Raises:
        InputError: There are none, one is empty or has a control character, or one occurs twice; `got` is its line.
    """
    if not labels:
        raise InputError(
            f"{where} has no class names: expected one per line, in the order of the output",
            field="export.labels",
            expected="class names",
            got=0,
        )
    lines: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        problem = f"line {number} is empty" if not label else ""
        if control := next((character for character in label if unicodedata.category(character) == "Cc"), ""):
            problem = f"line {number} has the control character {control!r}"
        if label in lines:
            problem = f"lines {lines[label]} and {number} are both {label!r}"
        if problem:
            raise InputError(
                f"{where}: {problem}. Expected a different name for each class, in the order of the output",
                field="export.labels",
                expected="a different name for each class",
                got=number,
            )
        lines[label] = number
    return tuple(labels)


def output_for_labels(model: Model, labels: Sequence[str], where: str) -> str:
    """Return the name of the output whose last axis has one value for each class name.

    Raises:
        InputError: No output has this number of classes.
    """
    widths = {
        name: tensor.shape[-1]
        for name, tensor in zip(model.output_names, model.main_subgraph.output_tensors, strict=True)
        if tensor.shape
    }
    matches = [name for name, width in widths.items() if width == len(labels)]
    if len(matches) > 1:
        warn(
            f"{where} has {len(labels)} class names, which fit the outputs {', '.join(map(shown, matches))}: only the "
            "first gets labels"
        )
    if matches:
        return matches[0]
    outputs = ", ".join(f"{name} ({width} values)" for name, width in widths.items()) or "no output with an axis"
    raise InputError(
        f"{where} has {len(labels)} class names, but the model's outputs are {outputs}. Expected as many names as the "
        "last axis of an output has values",
        field="export.labels",
        expected=tuple(widths.values()),
        got=len(labels),
    )


def labels_of(
    model: Model, config: ExportConfig, table: IoTable, class_names: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Return {output: class names}: those of the user, else of the data source unless the file has its own."""
    if config.labels and not config.detection_outputs:
        names, where = read_labels(config.labels), artifacts.shown(config.labels)
        return {output_for_labels(model, names, where): names}
    if not class_names or config.labels or any(tensor.labels or tensor.value_labels for tensor in table.outputs):
        return {}
    try:
        names = check_names(class_names, "the data source")
        return {output_for_labels(model, names, "the data source"): names}
    except InputError as error:
        warn(f"the bundle has no labels: {error}")
        return {}


def first_examples(config: DataConfig, count: int) -> datasets.Split:
    """Return the first examples of a data source before preprocessing: of its test split, else of val, else of train.

    Raises:
        InputError: The source cannot be read.
    """
    with progress.stage(f"reading {config.source}"):
        for name in _SPLITS:
            try:
                return datasets.load_unprocessed(config, name, limit=count)
            except MissingSplitError as error:
                missing = error
    raise missing

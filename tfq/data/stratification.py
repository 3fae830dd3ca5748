# SPDX-License-Identifier: Apache-2.0
"""Choose examples so that all classes are equally represented, for a representative dataset."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from tfq.data.output_labels import labeled_outputs
from tfq.data.split import AnySplit, Split, class_labels
from tfq.errors import InputError


def stratified(split: AnySplit, num_examples: int) -> Split:
    """Return examples of a split with equally many of each class, as far as there are.

    The classes take turns, the lowest number first: the first example of each class, then the second of each, until
    there are `num_examples`. A class without further examples is left out of the turns. So the result is the same every
    time, and its first examples are stratified too.

    Examples:
        >>> train = tfq.load_split(tfq.DataConfig(source="folder:photos"), "train")
        >>> flatbuffer = tfq.convert(model, tfq.stratified(train, 200))

    Args:
        split: Examples with class labels: numbers (n,) or one-hot rows (n, classes). All labels are read, and all
            examples of a stream.
        num_examples: How many to return; all, in this order, if the split has no more.

    Returns:
        The examples in memory. Its `notes` say which classes have fewer examples than others, or none.

    Raises:
        InputError: `num_examples` < 1, or the labels are not class labels.
    """
    where = f"data {split.source} ({split.name})"
    if num_examples < 1:
        raise InputError(
            f"{where}: num_examples={num_examples}: expected at least 1", field="num_examples", got=num_examples
        )
    labels = split.all_labels()
    if labels is None or labeled_outputs(labels):
        problem = "has no labels" if labels is None else "has labels for several outputs"
        raise InputError(
            f"{where} {problem}, so its examples cannot be chosen by class. Use the first examples "
            "(conversion.sampling=first), or data with a class for each example",
            field="conversion.sampling",
            expected="class labels",
            got=None if labels is None else labeled_outputs(labels),
        )
    classes = class_labels(labels, where)
    chosen = _in_turns(classes)[:num_examples]
    notes = _notes(classes, classes[chosen], split.class_names, where)
    return dataclasses.replace(_select(split, chosen), notes=(*split.notes, *notes))


def _in_turns(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all indices: the first example of each class in order of the classes, then the second of each, ..."""
    by_class = np.argsort(classes, kind="stable")
    counts = np.unique(classes, return_counts=True)[1]
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    turn = np.empty(len(classes), np.int64)
    turn[by_class] = np.arange(len(classes)) - starts
    return np.lexsort((classes, turn))


def _notes(
    classes: NDArray[np.int64], chosen: NDArray[np.int64], names: tuple[str, ...], where: str
) -> tuple[str, ...]:
    """Return a sentence if the classes are not represented equally."""
    numbers = np.unique(np.concatenate([classes, np.arange(len(names))]))
    counts = np.array([int((chosen == number).sum()) for number in numbers])
    few = [number for number, count in zip(numbers, counts, strict=True) if count < counts.max() - 1]
    absent = [number for number, count in zip(numbers, counts, strict=True) if not count]
    listed = few or absent
    if not listed:
        return ()
    shown = ", ".join(
        f"{names[number] if number < len(names) else number}: {int((chosen == number).sum())}" for number in listed[:5]
    )
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return (
        f"{where}: {len(chosen):,} examples by class have up to {counts.max()} of a class, but fewer of {shown}{more}",
    )


def _select(split: AnySplit, indices: NDArray[np.int64]) -> Split:
    """Return single examples of a split, in this order. A stream is read once."""
    if isinstance(split, Split):
        pieces = [(split, indices)]
    else:
        pieces, start = [], 0
        ordered = np.sort(indices)
        for piece in split.pieces():
            inside = ordered[(ordered >= start) & (ordered < start + piece.num_examples)] - start
            if len(inside):
                pieces.append((piece, inside))
            start += piece.num_examples
    inputs = {
        name: np.concatenate([piece.inputs[name][chosen] for piece, chosen in pieces]) for name in pieces[0][0].inputs
    }
    labels = np.concatenate([piece.labels[chosen] for piece, chosen in pieces if piece.labels is not None])
    if not isinstance(split, Split):
        back = np.argsort(np.argsort(indices))
        inputs, labels = {name: array[back] for name, array in inputs.items()}, labels[back]
    return Split(
        name=split.name,
        inputs=inputs,
        labels=labels,
        source=split.source,
        notes=split.notes,
        information=split.information,
        class_names=split.class_names,
    )


def class_counts(split: AnySplit) -> dict[str, int] | None:
    """Return {class: its number of examples} in order of the classes; None if the labels are not class labels.

    A class has the source's name if there is one, else its number. All labels of a stream are read.
    """
    labels = split.all_labels()
    if labels is None or labeled_outputs(labels):
        return None
    try:
        classes = class_labels(labels, "labels")
    except InputError:
        return None
    names = split.class_names
    return {
        names[number] if number < len(names) else str(number): count
        for number, count in zip(*(values.tolist() for values in np.unique(classes, return_counts=True)), strict=True)
    }

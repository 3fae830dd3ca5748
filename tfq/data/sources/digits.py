# SPDX-License-Identifier: Apache-2.0
"""The source `digits`: scikit-learn's 1,797 handwritten digits, real images that come with a package."""

import hashlib
from collections.abc import Iterable
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, examples_of_arrays
from tfq.data.split import UNNAMED
from tfq.errors import InputError, install_hint
from tfq.registry import register

# Fractions of each class; the rest is test. The seed of a run changes weights and shuffling, never the splits.
_TRAIN_FRACTION, _VAL_FRACTION = 0.7, 0.1


def read_digits(address: str, config: DataConfig, split: str) -> Examples:
    """Return raw pixels 0..16, float32 (n, 8, 8, 1), and labels 0..9.

    The splits have 1,262 (train), 180 (val) and 355 (test) examples; they are disjoint and stratified.
    Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), by sklearn.datasets.load_digits.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            f"data.source=digits needs scikit-learn ({error}): {install_hint('digits')}. Or use your own data: "
            "folder:DIR, npz:PATH or tfrecord:GLOB",
            field="data.source",
            got="digits",
        ) from error
    bunch = load_digits()
    labels = np.asarray(bunch.target, np.int64)
    chosen = digit_indices(labels, split)
    images = np.asarray(bunch.images, np.float32)[..., None]
    names = tuple(map(str, bunch.target_names))
    return examples_of_arrays({UNNAMED: images[chosen]}, labels[chosen], "digits", class_names=names)


def digit_indices(labels: NDArray, split: str) -> NDArray[np.int64]:
    """Return the indices of a split's examples, in a shuffled order that depends only on their numbers.

    For each class, the first 70% in shuffled order are train, the next 10% val, the rest test.
    """
    order = _shuffled(range(len(labels)), "split")
    counts = {int(label): int((labels == label).sum()) for label in np.unique(labels)}
    seen = dict.fromkeys(counts, 0)
    chosen = []
    for index in order:
        label = int(labels[index])
        if _split_of(seen[label] / counts[label]) == split:
            chosen.append(index)
        seen[label] += 1
    # Shuffle again: otherwise the first examples, which a limit selects, would come from few classes.
    return np.asarray(_shuffled(chosen, "order"), np.int64)


def _shuffled(indices: Iterable[int], salt: str) -> list[int]:
    """Return `indices` sorted by their hash. NumPy's generators may give other numbers in other versions."""
    return sorted(indices, key=lambda index: hashlib.sha256(f"digits {salt} {index}".encode()).digest())


def _split_of(fraction: float) -> str:
    if fraction < _TRAIN_FRACTION:
        return "train"
    return "val" if fraction < _TRAIN_FRACTION + _VAL_FRACTION else "test"


def _fingerprint(address: str, config: DataConfig) -> object:
    try:
        return metadata.version("scikit-learn")
    except metadata.PackageNotFoundError:
        return None  # read_digits raises the error that says what to install


register(
    DataSource(
        name="digits",
        help="scikit-learn's 1,797 handwritten digits, 8x8x1, values 0 to 16",
        read=read_digits,
        fingerprint=_fingerprint,
        splits=("train", "val", "test"),
        extra="digits",
    )
)

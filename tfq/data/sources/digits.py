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

# Shares of each class; test is the rest. The same for every run: the seed moves weights and shuffling, not the splits.
_TRAIN_SHARE, _VAL_SHARE = 0.7, 0.1


def read_digits(address: str, config: DataConfig, split: str) -> Examples:
    """Raw pixels 0..16, float32 (n, 8, 8, 1), and labels 0..9: 1,262 train, 180 val, 355 test, disjoint and stratified.

    Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), by sklearn.datasets.load_digits.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            f"data.source=digits needs scikit-learn ({error}): {install_hint('digits')}. Or give "
            "npz:PATH or tfrecord:GLOB",
            field="data.source",
            got="digits",
        ) from error
    bunch = load_digits()
    labels = np.asarray(bunch.target, np.int64)
    chosen = digit_indices(labels, split)
    images = np.asarray(bunch.images, np.float32)[..., None]
    return examples_of_arrays({UNNAMED: images[chosen]}, labels[chosen], "digits")


def digit_indices(labels: NDArray, split: str) -> NDArray[np.int64]:
    """Indices of a split's examples, in a shuffled order that depends on nothing but their numbers.

    Of each class, in that order, the first 70% are train, the next 10% val, the rest test.
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
    # Shuffled again: a split's beginning, which a limit takes, must not lean to the classes that reach it first.
    return np.asarray(_shuffled(chosen, "order"), np.int64)


def _shuffled(indices: Iterable[int], salt: str) -> list[int]:
    """`indices` by their hash: NumPy's generators may give other streams in other versions."""
    return sorted(indices, key=lambda index: hashlib.sha256(f"digits {salt} {index}".encode()).digest())


def _split_of(share: float) -> str:
    if share < _TRAIN_SHARE:
        return "train"
    return "val" if share < _TRAIN_SHARE + _VAL_SHARE else "test"


def _fingerprint(address: str, config: DataConfig) -> object:
    try:
        return metadata.version("scikit-learn")
    except metadata.PackageNotFoundError:
        return None  # reading it raises the error that says what to install


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

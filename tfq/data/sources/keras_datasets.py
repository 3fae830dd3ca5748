# SPDX-License-Identifier: Apache-2.0
"""The data sets of keras.datasets, read without TensorFlow from the files that Keras downloads.

Sources of the formats: "CIFAR-10 python version" (each batch is a pickled dict: data (10000, 3072) uint8 with red,
green and blue planes; labels, a list); the IDX format of MNIST, see `tfq.data.sources.idx`; mnist.npz of Keras.
"""

import contextlib
import importlib
import io
import os
import pickle
import socket
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import reason, sha256_file
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, examples_of_arrays, file_fingerprint, hold_out_val
from tfq.data.sources.idx import MAX_UNPACKED_BYTES, find_idx_files, read_idx_split
from tfq.data.sources.npz import read_members
from tfq.data.split import UNNAMED, class_labels
from tfq.errors import InputError
from tfq.registry import register

# uint8 (n, height, width, channels), int64 (n,), notes.
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]

_CIFAR10_ARCHIVES = ("cifar-10-batches-py.tar.gz", "cifar-10-batches-py-target_archive", "cifar-10-python.tar.gz")
_CIFAR10_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-py-target/cifar-10-batches-py")
_CIFAR10_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
# The SHA-256 of the published archive, which tf.keras.datasets.cifar10 also checks.
_CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
# Where Debian's packages of data sets put their files.
_SYSTEM = Path("/usr/share/datasets")
# The only names that a batch of CIFAR-10 needs. Any other name in a pickle could run code.
_SAFE = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def cifar10_files(datasets: Path) -> list[Path]:
    """Return [the archive] or [the folder of its batches] in a cache directory; [] if neither exists."""
    for name in _CIFAR10_ARCHIVES:
        if (datasets / name).is_file():
            return [datasets / name]
    for name in _CIFAR10_FOLDERS:
        if all((datasets / name / batch).is_file() for names in _CIFAR10_BATCHES.values() for batch in names):
            return [datasets / name]
    return []


def idx_files(folders: Sequence[Path]) -> list[Path]:
    """Return [train images, train labels, test images, test labels] of the first folder with all; [] if none has."""
    for folder in folders:
        train, test = (find_idx_files(folder, split) for split in ("train", "test"))
        if train and test:
            return [*train, *test]
    return []


def mnist_files(datasets: Path) -> list[Path]:
    """Return [mnist.npz] of Keras, or as `idx_files`."""
    archive = datasets / "mnist.npz"
    return [archive] if archive.is_file() else idx_files([datasets / "mnist", _SYSTEM / "mnist"])


def fashion_mnist_files(datasets: Path) -> list[Path]:
    """Return as `idx_files`: the files of Keras, or those of Debian's package dataset-fashion-mnist."""
    return idx_files([datasets / "fashion-mnist", _SYSTEM / "fashion-mnist"])


def read_cifar10_split(files: list[Path], split: str) -> Arrays:
    """Return "train" or "test" from the result of `cifar10_files`.

    Raises:
        InputError: A file is damaged.
    """
    (path,) = files
    notes: tuple[str, ...] = ()
    if path.is_file() and sha256_file(path) != _CIFAR10_SHA256:
        notes = (f"{path} is not the published archive of CIFAR-10 (its SHA-256 differs). It is used as it is",)
    batches = [_batch(content, f"{path}: {name}") for name, content in _contents(path, _CIFAR10_BATCHES[split])]
    images = np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.concatenate([labels for _, labels in batches]), notes


def read_idx_files(files: list[Path], split: str) -> Arrays:
    """Return "train" or "test" from the result of `idx_files`.

    Raises:
        InputError: A file is damaged.
    """
    images, labels = files[:2] if split == "train" else files[2:]
    return *read_idx_split((images, labels), split), ()


def read_mnist_split(files: list[Path], split: str) -> Arrays:
    """Return "train" or "test" from the result of `mnist_files`.

    Raises:
        InputError: A file is damaged.
    """
    if len(files) > 1:
        return read_idx_files(files, split)
    (path,) = files
    members = read_members(path, "the archive mnist.npz of Keras")
    arrays = []
    for key, axes in ((f"x_{split}", 3), (f"y_{split}", 1)):
        member = members.get(key)
        if member is None or len(member.shape) != axes or member.dtype != np.uint8 or not member.length:
            raise InputError(
                f"{path} is not the archive of MNIST that Keras downloads: expected {key} of uint8 with {axes} axes. "
                "Delete it, or copy it again",
                field="data.source",
                expected=key,
                got=None if member is None else member.shape,
            )
        arrays.append(np.concatenate(list(member.rows(0, member.length, member.length))))
    images, labels = arrays
    return images[..., None], class_labels(labels, f"{path} ({split})"), ()


def _contents(path: Path, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    if path.is_dir():
        return [(name, _read(path / name, Path.read_bytes)) for name in names]

    def extract(archive_path: Path) -> dict[str, bytes]:
        results = {}
        with tarfile.open(archive_path, "r:*") as archive:
            for member in archive:
                if member.isfile() and (name := Path(member.name).name) in names:
                    if member.size > MAX_UNPACKED_BYTES:
                        raise OSError(f"{name} has {member.size:,} bytes, expected at most {MAX_UNPACKED_BYTES:,}")
                    results[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
        return results

    result = _read(path, extract)
    missing = [name for name in names if name not in result]
    if missing:
        raise InputError(
            f"{path} does not contain {missing[0]}. Use the archive of CIFAR-10's python version",
            field="data.source",
            expected=missing[0],
            got=str(path),
        )
    return [(name, result[name]) for name in names]


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except InputError:
        raise
    except Exception as error:  # decompressors raise exceptions of many types
        raise InputError(
            f"{path} is damaged or cannot be read ({reason(error)}). Delete it, or copy it again",
            field="data.source",
            got=str(path),
        ) from error


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no batch of CIFAR-10 does")


def _batch(content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the data (n, 3072) and labels (n,) of a pickled batch."""
    try:
        values = _SafeUnpickler(io.BytesIO(content), encoding="bytes").load()
        data, labels = values[b"data"], np.asarray(values[b"labels"])
    except Exception as error:  # a damaged pickle raises exceptions of many types
        raise InputError(
            f"{where} is not a batch of CIFAR-10 ({error}). Copy the archive again", field="data.source", got=str(error)
        ) from error
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise InputError(
            f"{where}: expected data of uint8 (n, 3072), got {getattr(data, 'shape', type(data).__name__)}. Copy the "
            "archive again",
            field="data.source",
            expected="(n, 3072)",
            got=getattr(data, "shape", type(data).__name__),
        )
    if labels.shape != data.shape[:1]:
        raise InputError(
            f"{where}: expected labels of shape ({len(data)},), got {labels.shape}. Copy the archive again",
            field="data.source",
            expected=(len(data),),
            got=labels.shape,
        )
    return data, class_labels(labels, where)


# Without a timeout, a network that drops packets would block forever.
_TIMEOUT_SECONDS = 30
_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_ALTERNATIVES = (
    "or use your own data: data.source=folder:DIR, data.source=npz:PATH (x_train, y_train, x_test, y_test) or "
    "data.source=tfrecord:GLOB"
)


@dataclass(frozen=True, kw_only=True)
class KerasSet:
    """A data set of keras.datasets.

    Args:
        name: The name of its module in keras.datasets, and of the data source.
        find: Cache directory -> its files there, [] unless all exist.
        read: (files, "train" or "test") -> arrays.
        class_names: The names of the classes in the order of the labels.
        published: The files to copy into the cache directory by hand, for messages.
    """

    name: str
    find: Callable[[Path], list[Path]]
    read: Callable[[list[Path], str], Arrays]
    class_names: tuple[str, ...]
    published: str

    def examples(self, address: str, config: DataConfig, split: str) -> Examples:
        """Return a split in the files' order: pixels 0..255, (n, height, width, channels). The end of train is val."""
        images, labels, notes = self.read(self.files(), "test" if split == "test" else "train")
        examples = examples_of_arrays({UNNAMED: images}, labels, self.name, notes=notes, class_names=self.class_names)
        return examples if split == "test" else hold_out_val(examples, split, self.name)

    def fingerprint(self, address: str, config: DataConfig) -> object:
        """Return the names and hashes of the files, without their directory."""
        paths = [file for path in self.files() for file in ([path] if path.is_file() else sorted(path.iterdir()))]
        return [line for path in paths if path.is_file() for line in file_fingerprint([path], path.parent)]

    def files(self) -> list[Path]:
        """Return the files; Keras downloads them if they are missing.

        Raises:
            InputError: They cannot be downloaded. The message says where to copy them by hand.
        """
        if result := self._cached():
            return result
        home = _homes()[0]
        reason = _download(self.name, home)
        if result := self._cached():
            return result
        raise InputError(
            f"data.source={self.name} cannot be downloaded ({reason}). On a machine without internet, copy these files "
            f"to {home / 'datasets'}: {self.published}; {_ALTERNATIVES}",
            field="data.source",
            got=self.name,
        )

    def _cached(self) -> list[Path]:
        return next((result for home in _homes() if (result := self.find(home / "datasets"))), [])


def _homes() -> list[Path]:
    """Return the directories where Keras may store downloads; the last is for a home directory that is read-only."""
    keras_home = os.environ.get("KERAS_HOME")
    directories = [*([Path(keras_home)] if keras_home else []), Path.home() / ".keras", Path("/tmp/.keras")]
    return list(dict.fromkeys(directories))


def _download(name: str, home: Path) -> str:
    """Have Keras download a data set into `home`, and return a reason for the case that its files are still missing."""
    module = importlib.import_module(f"tf_keras.datasets.{name}")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        # Its progress bar goes to stdout, which is reserved for results.
        with contextlib.redirect_stdout(sys.stderr):
            module.load_data(cache_dir=str(home))
    except Exception as error:  # Keras raises a plain Exception for a failed download
        return str(error).strip() or type(error).__name__
    finally:
        socket.setdefaulttimeout(timeout)
    return "Keras downloaded it, but its files are not in the expected place"


_CIFAR10 = KerasSet(
    name="cifar10",
    find=cifar10_files,
    read=read_cifar10_split,
    class_names=_CIFAR10_CLASSES,
    published="cifar-10-batches-py.tar.gz (published as cifar-10-python.tar.gz)",
)
_FASHION_MNIST = KerasSet(
    name="fashion_mnist",
    find=fashion_mnist_files,
    read=read_idx_files,
    class_names=_FASHION_CLASSES,
    published="fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz (four files), or install Debian's package "
    "dataset-fashion-mnist",
)
_MNIST = KerasSet(
    name="mnist",
    find=mnist_files,
    read=read_mnist_split,
    class_names=tuple(map(str, range(10))),
    published="mnist.npz, or mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz (four files)",
)
# Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
register(
    DataSource(
        name="cifar10",
        help="60,000 color images of 10 classes, 32x32x3; the files of tf.keras.datasets, downloaded if missing",
        read=_CIFAR10.examples,
        fingerprint=_CIFAR10.fingerprint,
        splits=("train", "val", "test"),
    )
)
# Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST" (2017).
register(
    DataSource(
        name="fashion_mnist",
        help="70,000 images of clothes, 28x28x1; the files of tf.keras.datasets or of Debian's dataset-fashion-mnist, "
        "downloaded if missing",
        read=_FASHION_MNIST.examples,
        fingerprint=_FASHION_MNIST.fingerprint,
        splits=("train", "val", "test"),
    )
)
# Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998).
register(
    DataSource(
        name="mnist",
        help="70,000 handwritten digits, 28x28x1; the files of tf.keras.datasets, downloaded if missing",
        read=_MNIST.examples,
        fingerprint=_MNIST.fingerprint,
        splits=("train", "val", "test"),
    )
)

# SPDX-License-Identifier: Apache-2.0
"""The data sets of keras.datasets, read from the files that Keras downloads. No TensorFlow.

Sources of the formats: "CIFAR-10 python version" (a pickled dict a batch: data (10000, 3072) uint8, red, green, blue
planes; labels, a list); the IDX format of MNIST (magic 0x0803 or 0x0801, big-endian sizes, bytes).
"""

import contextlib
import gzip
import importlib
import io
import os
import pickle
import socket
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import sha256_file
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, examples_of_arrays, file_fingerprint, without_val
from tfq.data.split import UNNAMED, class_labels
from tfq.errors import InputError
from tfq.registry import register

# uint8 (n, height, width, channels), int64 (n,), notes.
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]

_CIFAR10_ARCHIVES = ("cifar-10-batches-py.tar.gz", "cifar-10-batches-py-target_archive", "cifar-10-python.tar.gz")
_CIFAR10_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-py-target/cifar-10-batches-py")
_CIFAR10_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
# Of the published archive; tf.keras.datasets.cifar10 checks the same.
_CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_FASHION_PREFIX = {"train": "train", "test": "t10k"}
# All that a batch of CIFAR-10 needs; anything else in a pickle could run code.
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
    """[the archive] or [the folder of its batches] in a cache directory; empty when neither is there."""
    for name in _CIFAR10_ARCHIVES:
        if (datasets / name).is_file():
            return [datasets / name]
    for name in _CIFAR10_FOLDERS:
        if all((datasets / name / batch).is_file() for names in _CIFAR10_BATCHES.values() for batch in names):
            return [datasets / name]
    return []


def fashion_mnist_files(datasets: Path) -> list[Path]:
    """[train images, train labels, test images, test labels] in a cache directory; empty unless all are there."""
    directory = datasets / "fashion-mnist"
    paths = [
        directory / f"{prefix}-{kind}-ubyte.gz"
        for prefix in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    return paths if all(path.is_file() for path in paths) else []


def read_cifar10_split(files: list[Path], split: str) -> Arrays:
    """`split` (train or test) of what `cifar10_files` found. Raises InputError on damaged files."""
    (path,) = files
    notes: tuple[str, ...] = ()
    if path.is_file() and sha256_file(path) != _CIFAR10_SHA256:
        notes = (f"{path} is not the published archive of CIFAR-10 (another SHA-256): its content is taken as it is",)
    batches = [_batch(content, f"{path}: {name}") for name, content in _contents(path, _CIFAR10_BATCHES[split])]
    images = np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.concatenate([labels for _, labels in batches]), notes


def read_fashion_split(files: list[Path], split: str) -> Arrays:
    """`split` (train or test) of what `fashion_mnist_files` found. Raises InputError on damaged files."""
    images, labels = (_idx(path) for path in files if path.name.startswith(_FASHION_PREFIX[split]))
    if images.ndim != 3 or labels.ndim != 1:
        raise InputError(
            f"{files[0].parent}: images {images.shape}, labels {labels.shape}: expected (n, 28, 28) and (n,)"
        )
    return images[..., None], class_labels(labels, f"{files[0].parent} ({split})"), ()


def _contents(path: Path, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    if path.is_dir():
        return [(name, _read(path / name, Path.read_bytes)) for name in names]

    def extract(archive_path: Path) -> dict[str, bytes]:
        results = {}
        with tarfile.open(archive_path, "r:*") as archive:
            for member in archive:
                if member.isfile() and (name := Path(member.name).name) in names:
                    results[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
        return results

    result = _read(path, extract)
    missing = [name for name in names if name not in result]
    if missing:
        raise InputError(
            f"{path} does not hold {missing[0]}: expected the archive of CIFAR-10's python version",
            field="data.source",
            expected=missing[0],
            got=str(path),
        )
    return [(name, result[name]) for name in names]


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(
            f"{path} is damaged or cannot be read ({error}): remove it, or copy it again",
            field="data.source",
            got=str(path),
        ) from error


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants {module}.{name}, which no batch of CIFAR-10 does")


def _batch(content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """((n, 3072), (n,)) of a pickled batch."""
    try:
        values = _SafeUnpickler(io.BytesIO(content), encoding="bytes").load()
        data, labels = values[b"data"], np.asarray(values[b"labels"])
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{where} is no batch of CIFAR-10 ({error}): copy the archive again", field="data.source", got=str(error)
        ) from error
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise InputError(
            f"{where}: data is {getattr(data, 'shape', type(data).__name__)}: expected uint8 (n, 3072)",
            field="data.source",
            expected="(n, 3072)",
            got=getattr(data, "shape", type(data).__name__),
        )
    if labels.shape != data.shape[:1]:
        raise InputError(
            f"{where}: labels are {labels.shape}: expected ({len(data)},)",
            field="data.source",
            expected=(len(data),),
            got=labels.shape,
        )
    return data, class_labels(labels, where)


def _idx(path: Path) -> NDArray[np.uint8]:
    def unpack(gzipped: Path) -> bytes:
        with gzip.open(gzipped, "rb") as file:
            return file.read()

    content = _read(path, unpack)
    axes = content[3] if len(content) > 4 else 0
    start = 4 + 4 * axes
    shape = struct.unpack_from(f">{axes}I", content, 4) if len(content) >= start else ()
    if content[:3] != b"\0\0\x08" or len(content) - start != int(np.prod(shape, dtype=np.int64)) or not shape:
        raise InputError(
            f"{path} is no IDX file of bytes, or is cut short: remove it, or copy it again",
            field="data.source",
            got=str(path),
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# Without it, a network that swallows packets would hold us for ever.
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
    "or give your own data as data.source=npz:PATH (x_train, y_train, x_test, y_test), data.source=tfrecord:GLOB or "
    "data.source=folder:DIR"
)


@dataclass(frozen=True, kw_only=True)
class KerasSet:
    """A data set of keras.datasets.

    Args:
        name: Of its module in keras.datasets, and of the data source.
        find: Cache directory -> its files there, [] unless all are there.
        read: (files, "train" or "test") -> arrays.
        class_names: In the order of the labels.
        published: What to copy into the cache directory by hand.
    """

    name: str
    find: Callable[[Path], list[Path]]
    read: Callable[[list[Path], str], Arrays]
    class_names: tuple[str, ...]
    published: str

    def examples(self, address: str, config: DataConfig, split: str) -> Examples:
        """Return a split in the files' order: pixels 0..255, (n, height, width, channels); val is the end of train."""
        images, labels, notes = self.read(self.files(), "test" if split == "test" else "train")
        examples = examples_of_arrays({UNNAMED: images}, labels, self.name, notes=notes, class_names=self.class_names)
        return examples if split == "test" else without_val(examples, split, self.name)

    def fingerprint(self, address: str, config: DataConfig) -> object:
        """Return the names and hashes of the files, wherever they lie."""
        paths = [inside for path in self.files() for inside in ([path] if path.is_file() else sorted(path.iterdir()))]
        return [line for path in paths if path.is_file() for line in file_fingerprint([path], path.parent)]

    def files(self) -> list[Path]:
        """Return the files, downloaded by Keras if they are not on this machine.

        Raises:
            InputError: They cannot be downloaded; it says where to put them by hand.
        """
        if result := self._cached():
            return result
        home = _homes()[0]
        reason = _download(self.name, home)
        if result := self._cached():
            return result
        raise InputError(
            f"data.source={self.name}: cannot be downloaded ({reason}): on a machine without internet, copy to "
            f"{home / 'datasets'} what another has there: {self.published}; {_ALTERNATIVES}",
            field="data.source",
            got=self.name,
        )

    def _cached(self) -> list[Path]:
        return next((result for home in _homes() if (result := self.find(home / "datasets"))), [])


def _homes() -> list[Path]:
    """Where the two Kerases keep what they download; the last is for a home that cannot be written to."""
    own = os.environ.get("KERAS_HOME")
    places = [*([Path(own)] if own else []), Path.home() / ".keras", Path("/tmp/.keras")]
    return list(dict.fromkeys(places))


def _download(name: str, home: Path) -> str:
    """Have Keras download a set into `home`; why it could not, or that it has."""
    module = importlib.import_module(f"tf_keras.datasets.{name}")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        # Its progress bar goes to stdout, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            module.load_data(cache_dir=str(home))
    except Exception as error:  # Keras raises a plain Exception for a failed download
        return str(error).strip() or type(error).__name__
    finally:
        socket.setdefaulttimeout(timeout)
    return "Keras has downloaded it, and the files are not where they were to be"


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
    read=read_fashion_split,
    class_names=_FASHION_CLASSES,
    published="fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz (four files)",
)
# Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
register(
    DataSource(
        name="cifar10",
        help="60,000 color images of 10 classes, 32x32x3; tf.keras.datasets' files, downloaded if they are missing",
        read=_CIFAR10.examples,
        fingerprint=_CIFAR10.fingerprint,
        splits=("train", "val", "test"),
    )
)
# Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST" (2017).
register(
    DataSource(
        name="fashion_mnist",
        help="70,000 images of clothes, 28x28x1; tf.keras.datasets' files, downloaded if they are missing",
        read=_FASHION_MNIST.examples,
        fingerprint=_FASHION_MNIST.fingerprint,
        splits=("train", "val", "test"),
    )
)

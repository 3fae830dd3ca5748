# SPDX-License-Identifier: Apache-2.0
"""The sources `cifar10` and `fashion_mnist`: the files that tf.keras.datasets downloads, read where it keeps them."""

import contextlib
import importlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from tfq.config import DataConfig
from tfq.data.binding import UNNAMED
from tfq.data.examples import Examples, examples_of_arrays, without_val
from tfq.data.keras_files import Arrays, cifar10_files, fashion_mnist_files, read_cifar10_split, read_fashion_split
from tfq.errors import InputError

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
_WANTED = {
    "cifar10": "cifar-10-batches-py.tar.gz (published as cifar-10-python.tar.gz)",
    "fashion_mnist": "fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz (four files)",
}
_ALTERNATIVES = (
    "or give your own data as --data=npz:PATH (x_train, y_train, x_test, y_test), --data=tfrecord:GLOB or "
    "--data=folder:DIR"
)


def read_cifar10(address: str, config: DataConfig, split: str) -> Examples:
    """Pixels 0..255, (n, 32, 32, 3), in the files' order: 45,000 train, 5,000 val (the last of train), 10,000 test.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
    """
    files = set_files("cifar10", address)
    return _split("cifar10", split, lambda name: read_cifar10_split(files, name), _CIFAR10_CLASSES)


def read_fashion_mnist(address: str, config: DataConfig, split: str) -> Examples:
    """Pixels 0..255, (n, 28, 28, 1), in the files' order: 54,000 train, 6,000 val (the last of train), 10,000 test.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST" (2017).
    """
    files = set_files("fashion_mnist", address)
    return _split("fashion_mnist", split, lambda name: read_fashion_split(files, name), _FASHION_CLASSES)


def set_files(name: str, address: str = "") -> list[Path]:
    """The files of a set (cifar10 or fashion_mnist), downloaded by Keras if they are not on this machine.

    Raises InputError where they cannot be had, and says where to put them by hand.
    """
    if address:
        raise InputError(f"--data={name}:{address}: {name} takes nothing after its name: did you mean {name!r}?")
    if found := _cached(name):
        return found
    home = _homes()[0]
    reason = _download(name, home)
    if found := _cached(name):
        return found
    raise InputError(
        f"--data={name}: cannot be downloaded ({reason}): on a machine without internet, copy to {home / 'datasets'} "
        f"what another has there: {_WANTED[name]}; {_ALTERNATIVES}"
    )


def _cached(name: str) -> list[Path]:
    find = {"cifar10": cifar10_files, "fashion_mnist": fashion_mnist_files}[name]
    return next((found for home in _homes() if (found := find(home / "datasets"))), [])


def _split(name: str, split: str, read: Callable[[str], Arrays], class_names: tuple[str, ...]) -> Examples:
    images, labels, notes = read("test" if split == "test" else "train")
    examples = examples_of_arrays({UNNAMED: images}, labels, name, notes=notes, class_names=class_names)
    return examples if split == "test" else without_val(examples, split, name)


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

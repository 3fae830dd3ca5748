# SPDX-License-Identifier: Apache-2.0
"""The sources cifar10 and fashion_mnist, on small synthetic files in the real formats."""

import gzip
import io
import os
import pickle
import socket
import struct
import tarfile

import numpy as np
import pytest
from messages import refused

from tfq.config import DataConfig
from tfq.data import MissingSplitError, check_readable, load_split, source_fingerprint
from tfq.data.sources import keras_datasets
from tfq.errors import InputError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Set an empty $KERAS_HOME and no other cache."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(keras_datasets, "_homes", lambda: [tmp_path / "keras"])
    monkeypatch.setattr(keras_datasets, "_SYSTEM", tmp_path / "system")
    (tmp_path / "keras" / "datasets").mkdir(parents=True)
    return tmp_path / "keras"


def batch(index, count=4):
    """Return (data (count, 3072), labels) of one batch: color planes in a row, as published."""
    data = np.random.default_rng(index).integers(0, 256, (count, 3072), np.uint8)
    return data, [(index + i) % 10 for i in range(count)]


def pickled(index, **changes):
    data, labels = batch(index)
    return pickle.dumps({b"data": data, b"labels": labels, b"batch_label": b"x", **changes}, protocol=2)


NAMES = ["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]


def write_archive(home, contents):
    with tarfile.open(home / "datasets" / "cifar-10-batches-py.tar.gz", "w:gz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def images_of(data):
    """Compute by hand: red, green and blue planes of 32 rows become (32, 32, 3)."""
    return np.stack([data[:, 0:1024], data[:, 1024:2048], data[:, 2048:]], axis=-1).reshape(-1, 32, 32, 3)


@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar10_is_read_from_what_keras_keeps(home, unpacked):
    contents = {name: pickled(index) for index, name in enumerate(NAMES)}
    if unpacked:
        folder = home / "datasets" / "cifar-10-batches-py"
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    else:
        write_archive(home, contents)
    test = load_split(DataConfig(source="cifar10"), "test")
    assert np.array_equal(test.inputs["x"], images_of(batch(0)[0])) and test.labels.tolist() == batch(0)[1]
    assert test.class_names[:2] == ("airplane", "automobile")
    assert unpacked or "SHA-256" in test.notes[0]
    train, val = (load_split(DataConfig(source="cifar10"), split) for split in ("train", "val"))
    assert (train.num_examples, val.num_examples) == (18, 2) and "20" in val.information[-1]
    assert np.array_equal(val.inputs["x"], images_of(batch(5)[0])[2:])


def write_idx(path, array):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(home, train=20, test=6):
    return write_idx_folder(home / "datasets" / "fashion-mnist", train, test)


def write_idx_folder(folder, train=20, test=6, name="{prefix}-{kind}-ubyte.gz"):
    folder.mkdir(exist_ok=True, parents=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = generator.integers(0, 10, count).astype(np.uint8)
        write_idx(folder / name.format(prefix=prefix, kind="images-idx3"), images)
        write_idx(folder / name.format(prefix=prefix, kind="labels-idx1"), labels)
        arrays[prefix] = images, labels
    return arrays


def test_fashion_mnist_is_read_from_what_keras_keeps(home):
    arrays = write_fashion(home)
    test = load_split(DataConfig(source="fashion_mnist"), "test")
    assert np.array_equal(test.inputs["x"][..., 0], arrays["t10k"][0]) and test.inputs["x"].shape == (6, 28, 28, 1)
    assert test.labels.tolist() == arrays["t10k"][1].tolist() and test.class_names[-1] == "Ankle boot"
    train = load_split(DataConfig(source="fashion_mnist"), "train")
    assert np.array_equal(train.inputs["x"][..., 0], arrays["train"][0][:18])


@pytest.mark.parametrize(("source", "folder"), [("fashion_mnist", "fashion-mnist"), ("mnist", "mnist")])
def test_idx_files_of_the_system_are_found(home, tmp_path, source, folder):
    arrays = write_idx_folder(tmp_path / "system" / folder)
    test = load_split(DataConfig(source=source), "test")
    assert np.array_equal(test.inputs["x"][..., 0], arrays["t10k"][0])
    assert test.labels.tolist() == arrays["t10k"][1].tolist()


def test_mnist_is_read_from_the_archive_of_keras(home):
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.integers(0, 256, (20, 28, 28), np.uint8),
        "y_train": np.arange(20, dtype=np.uint8) % 10,
    }
    arrays |= {"x_test": generator.integers(0, 256, (6, 28, 28), np.uint8), "y_test": np.arange(6, dtype=np.uint8)}
    path = home / "datasets" / "mnist.npz"
    np.savez(path, **arrays)
    test = load_split(DataConfig(source="mnist"), "test")
    assert np.array_equal(test.inputs["x"][..., 0], arrays["x_test"]) and test.labels.tolist() == [0, 1, 2, 3, 4, 5]
    train, val = (load_split(DataConfig(source="mnist"), split) for split in ("train", "val"))
    assert np.array_equal(np.concatenate([train.inputs["x"], val.inputs["x"]])[..., 0], arrays["x_train"])
    np.savez(path, x_test=arrays["x_test"])
    with refused(InputError, field="data.source", expected="y_test"):
        load_split(DataConfig(source="mnist"), "test")


@pytest.mark.parametrize("name", ["{prefix}-{kind}-ubyte", "{prefix}-{kind}-ubyte.gz"])
def test_a_folder_of_idx_files_is_read_compressed_or_not(tmp_path, name):
    arrays = write_idx_folder(tmp_path / "digits", name=name)
    config = DataConfig(source=f"idx:{tmp_path / 'digits'}")
    train, val, test = (load_split(config, split) for split in ("train", "val", "test"))
    assert np.array_equal(np.concatenate([train.inputs["x"], val.inputs["x"]])[..., 0], arrays["train"][0])
    assert test.inputs["x"].shape == (6, 28, 28, 1)
    (tmp_path / "digits" / name.format(prefix="t10k", kind="labels-idx1")).unlink()
    with refused(MissingSplitError, field="split", got="test"):
        load_split(config, "test")


def test_images_and_labels_of_different_lengths_are_refused(tmp_path):
    write_idx_folder(tmp_path / "a")
    write_idx(tmp_path / "a" / "t10k-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with refused(InputError, field="data.source", got=((6, 28, 28), (5,))):
        load_split(DataConfig(source=f"idx:{tmp_path / 'a'}"), "test")


@pytest.mark.parametrize("address", ["", "missing"])
def test_a_missing_idx_folder_is_reported_before_anything_is_read(tmp_path, address):
    with refused(InputError, field="data.source"):
        check_readable(DataConfig(source=f"idx:{address and tmp_path / address}"), "test")


def test_the_fingerprint_follows_the_files_of_a_set(home):
    write_fashion(home)
    before = source_fingerprint(DataConfig(source="fashion_mnist"))
    assert source_fingerprint(DataConfig(source="fashion_mnist")) == before
    write_fashion(home, train=21)
    assert source_fingerprint(DataConfig(source="fashion_mnist")) != before


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pickle.dumps({b"data": Hostile(), b"labels": []}, protocol=2), {"word": "posix.system"}),
        (pickle.dumps({b"labels": [1]}, protocol=2), {}),
        (pickle.dumps({b"data": np.zeros((2, 10), np.uint8), b"labels": [1, 2]}, protocol=2), {"got": (2, 10)}),
        (pickle.dumps({b"data": batch(0)[0], b"labels": [1, 2]}, protocol=2), {"expected": (4,), "got": (2,)}),
        (b"not a pickle", {}),
        (b"", {}),
    ],
)
def test_a_hostile_or_damaged_batch_is_refused_and_runs_nothing(home, tmp_path, monkeypatch, content, expected):
    monkeypatch.chdir(tmp_path)
    write_archive(home, {**{name: pickled(0) for name in NAMES}, "test_batch": content})
    with refused(InputError, field="data.source", **{"word": "test_batch", **expected}):
        load_split(DataConfig(source="cifar10"), "test")
    assert not (tmp_path / "ran").exists()


def test_damaged_files_are_reported(home):
    write_archive(home, {name: pickled(0) for name in NAMES[1:]})
    with refused(InputError, field="data.source", expected="test_batch"):
        load_split(DataConfig(source="cifar10"), "test")
    path = home / "datasets" / "cifar-10-batches-py.tar.gz"
    path.write_bytes(path.read_bytes()[:1000])
    with refused(InputError, field="data.source", word="damaged"):
        load_split(DataConfig(source="cifar10"), "test")
    write_fashion(home)
    images = home / "datasets" / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    images.write_bytes(gzip.compress(gzip.decompress(images.read_bytes())[:-1]))
    with refused(InputError, field="data.source", word="IDX"):
        load_split(DataConfig(source="fashion_mnist"), "test")


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "mnist"])
def test_without_a_network_the_error_gives_the_target_folder(home, monkeypatch, name):
    def unreachable():
        raise socket.gaierror(-2, "Name or service not known")

    class Loader:
        @staticmethod
        def load_data(cache_dir):
            unreachable()

    monkeypatch.setattr(keras_datasets.importlib, "import_module", lambda module: Loader)
    with refused(InputError, field="data.source", got=name, word=str(home / "datasets")):
        load_split(DataConfig(source=name), "test")
    with refused(InputError, field="data.source", expected=name, got=f"{name}:x"):
        DataConfig.from_dict({"source": f"{name}:x"}, "data")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("shape", [(0, 28, 28), (5, 0, 28)])
def test_idx_images_without_pixels_are_refused(home, shape):
    folder = home / "empty"
    folder.mkdir()
    write_idx(folder / "t10k-images-idx3-ubyte.gz", np.zeros(shape, np.uint8))
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.zeros(shape[0], np.uint8))
    with refused(InputError, field="data.source", word="(n,)"):
        load_split(DataConfig(source=f"idx:{folder}"), "test")


@pytest.mark.parametrize("shape", [(1 << 31, 1 << 31, 4), (1,) * 70])
def test_a_damaged_idx_header_is_reported(home, shape):
    # The product of the first shape is 2**64, which wraps around to 0.
    write_fashion(home)
    images = home / "datasets" / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    content = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(shape[0] == 1)
    images.write_bytes(gzip.compress(content))
    with refused(InputError, field="data.source", word="IDX"):
        load_split(DataConfig(source="fashion_mnist"), "test")

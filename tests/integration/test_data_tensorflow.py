# SPDX-License-Identifier: Apache-2.0
"""Data of TensorFlow users: tf.data.Dataset, tf.keras.datasets, TensorFlow Datasets."""

import gzip
import io
import os
import struct
import sys

import numpy as np
import pytest
import tensorflow as tf
from messages import refused
from PIL import Image

from tfq.config import DataConfig
from tfq.data import as_split, load_split, source_fingerprint
from tfq.errors import InputError

X = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
Y = np.arange(10) % 4


def sliced(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0])


@pytest.mark.parametrize(
    "dataset",
    [
        sliced(X, Y),
        sliced(X, Y).batch(4),
        sliced(X, Y).batch(5, drop_remainder=True),
        sliced(X, Y[:, None]).batch(4).map(lambda x, y: (x, y[:, 0])),
    ],
    ids=["single", "batched", "whole batches", "mapped"],
)
def test_a_dataset_of_pairs_is_collected_batched_or_not(dataset):
    split = as_split(dataset)
    assert np.array_equal(split.inputs["x"], X) and split.labels.tolist() == Y.tolist() and split.source == "tf.data"
    assert as_split(dataset, limit=7).num_examples == 7


def test_a_dataset_of_inputs_alone_must_say_that_it_is_batched():
    assert np.array_equal(as_split(sliced(X).batch(3)).inputs["x"], X)
    with refused(InputError, field="data", expected="a batched Dataset", limit="unbatched-dataset"):
        as_split(sliced(X))


def test_a_dataset_of_named_inputs_keeps_their_names():
    split = as_split(sliced({"a": X, "b": X[:, 0]}, Y).batch(4))
    assert np.array_equal(split.inputs["a"], X) and np.array_equal(split.inputs["b"], X[:, 0])


@pytest.mark.parametrize(
    ("dataset", "field", "expected"),
    [
        (sliced(X, Y).repeat(), "data", "a Dataset that ends"),
        (sliced(X, Y, Y), "data", "x or (x, y)"),
        (sliced(X, Y).take(0), "data", "at least one example"),
        (tf.data.Dataset.from_tensor_slices(((X, X), Y)), "data", "x or (x, y)"),
        (sliced(np.array([1.0, np.nan]), np.array([0, 1])), "x[1]", "finite numbers"),
        (
            tf.data.Dataset.from_generator(
                lambda: ((np.zeros(n, np.float32), 0) for n in (2, 3)),
                output_signature=(tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.int64)),
            ),
            "data",
            "one shape",
        ),
    ],
)
def test_an_unusable_dataset_is_reported(dataset, field, expected):
    with refused(InputError, field=field, expected=expected):
        as_split(dataset)


def test_endless_datasets_and_those_with_sample_weights_are_unsupported():
    with refused(InputError, field="data", limit="endless-dataset"):
        as_split(sliced(X, Y).repeat())
    with refused(InputError, field="data", limit="dataset-elements"):
        as_split(tf.data.Dataset.from_tensor_slices(((X, X), Y)).batch(2))


def test_an_endless_dataset_is_taken_with_a_limit():
    assert as_split(sliced(X, Y).repeat(), limit=23).num_examples == 23


def test_fashion_mnist_is_what_keras_reads_from_the_same_files(tmp_path, monkeypatch):
    folder = tmp_path / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 7)):
        images, labels = generator.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    import tf_keras

    (x_train, y_train), (x_test, y_test) = tf_keras.datasets.fashion_mnist.load_data(cache_dir=str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    train, test = (load_split(DataConfig(source="fashion_mnist"), split) for split in ("train", "test"))
    assert np.array_equal(test.inputs["x"][..., 0], x_test) and np.array_equal(test.labels, y_test)
    assert np.array_equal(train.inputs["x"][..., 0], x_train[:27]) and np.array_equal(train.labels, y_train[:27])


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_a_machine_without_internet_gets_advice(tfq_here, golden, tmp_path, monkeypatch, name):
    # Nothing listens there, so requests for data are refused even on a machine with a network.
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    # urllib has looked for proxies at the first request of this process.
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("HOME", str(tmp_path))
    if os.path.exists("/tmp/.keras/datasets"):
        pytest.skip("/tmp/.keras may hold the data set")
    model = f"--model={golden / 'digits_int8.tflite'}"
    done = tfq_here("evaluate", model, f"--data={name}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in ("cannot be downloaded", "npz:", "folder:", str(tmp_path / "keras")))


def test_without_tensorflow_datasets_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with refused(InputError, field="data.source", got="tfds:mnist", word="'tfq[tfds]'"):
        load_split(DataConfig(source="tfds:mnist"), "test")
    with refused(InputError, field="data.source", expected="tfds:NAME", got="tfds"):
        load_split(DataConfig(source="tfds"), "test")


@pytest.fixture
def tfds_set(tmp_path, monkeypatch):
    """Return a prepared data set `tiny`: 20 train and 5 test JPEG images, of one supervised pair."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(8, 8, 3), encoding_format="jpeg")
            features = {"picture": image, "kind": tfds.features.ClassLabel(names=["cat", "dog"])}
            keys = ("picture", "kind")
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            generator = np.random.default_rng(count)
            for index in range(count):
                yield index, {"picture": generator.integers(0, 256, (8, 8, 3), np.uint8), "kind": index % 2}

    Tiny(data_dir=tmp_path).download_and_prepare()
    return tfds


def test_a_data_set_of_tfds_is_decoded_exactly_and_in_order(tfds_set):
    config = DataConfig(source="tfds:tiny")
    test = load_split(config, "test")
    encoded = tfds_set.builder("tiny").as_dataset(split="test", decoders={"picture": tfds_set.decode.SkipDecoding()})
    elements = list(encoded.as_numpy_iterator())
    pixels = [np.asarray(Image.open(io.BytesIO(element["picture"]))) for element in elements]
    assert np.array_equal(test.inputs["x"], pixels) and test.labels.tolist() == [e["kind"] for e in elements]
    assert test.class_names == ("cat", "dog")
    assert [load_split(config, split).num_examples for split in ("train", "val")] == [18, 2]
    assert source_fingerprint(config) == source_fingerprint(config)
    with refused(InputError, field="data.source", got="tfds:tinny"):
        load_split(DataConfig(source="tfds:tinny"), "test")

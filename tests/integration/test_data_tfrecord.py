# SPDX-License-Identifier: Apache-2.0
"""The source tfrecord:GLOB, and checks that need TensorFlow."""

import io
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from messages import refused
from PIL import Image

from tfq.config import DataConfig
from tfq.data import InputSpec, load_calibration_split, load_split, representative_samples, resize_bilinear
from tfq.data.split import MissingSplitError
from tfq.errors import InputError

CIFAR10 = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cifar10"

needs_shared = pytest.mark.skipif(not (CIFAR10.parents[1]).exists(), reason="the shared data sets are not here")


def image_of(index, height=4, width=5, channels=3):
    """Return pixels that encode their index; PNG keeps them exactly."""
    return np.full((height, width, channels), index, np.uint8)


def png(image):
    return tf.io.encode_png(image).numpy()


def example(image, label, image_key="image", label_key="label"):
    features = {image_key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))}
    if label is not None:
        features[label_key] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def numbered(path, start, stop):
    return write(path, [example(png(image_of(index)), index % 10) for index in range(start, stop)])


def numbers(split):
    assert split.labels.tolist() == [int(n) % 10 for n in split.inputs["x"][:, 0, 0, 0]]
    return split.inputs["x"][:, 0, 0, 0].astype(int).tolist()


def config_of(tmp_path, pattern="*", **changes):
    return DataConfig(source=f"tfrecord:{tmp_path}/{pattern}", **changes)


def test_files_are_read_in_sorted_order_and_routed_by_their_names(tmp_path):
    numbered(tmp_path / "set-train-00001", 3, 6)
    numbered(tmp_path / "set-train-00000", 0, 3)
    numbered(tmp_path / "set-val-00000", 6, 8)
    numbered(tmp_path / "set-test-00000", 8, 11)
    (tmp_path / "README").write_text("not records")
    splits = {name: load_split(config_of(tmp_path), name) for name in ("train", "val", "test")}
    assert {name: numbers(split) for name, split in splits.items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "val": [6, 7],
        "test": [8, 9, 10],
    }
    x = splits["test"].inputs["x"]
    assert x.dtype == np.float32 and x.shape == (3, 4, 5, 3)
    assert "README" in splits["test"].notes[0]


def test_without_val_files_the_last_tenth_of_train_is_val(tmp_path):
    numbered(tmp_path / "train", 0, 25)
    assert numbers(load_split(config_of(tmp_path), "train")) == list(range(23))
    val = load_split(config_of(tmp_path), "val")
    assert numbers(val) == [23, 24] and "the last 2 of 25" in val.information[0]
    assert numbers(load_split(config_of(tmp_path), "val", limit=1)) == [23]
    assert numbers(load_split(config_of(tmp_path), "train", limit=3)) == [0, 1, 2]


def test_files_whose_names_say_no_split_are_test_and_never_train(tmp_path):
    numbered(tmp_path / "part-0", 0, 4)
    split = load_split(config_of(tmp_path), "test")
    assert numbers(split) == [0, 1, 2, 3] and "all 1 files are test" in split.notes[0]
    with refused(MissingSplitError, field="split", expected=("test",), got="train"):
        load_split(config_of(tmp_path), "train")
    assert load_calibration_split(config_of(tmp_path)).name == "test"


def test_the_scale_applies_to_pixels_and_keys_are_as_configured(tmp_path):
    write(tmp_path / "test", [example(png(image_of(50)), 7, "jpg", "class/label")])
    config = config_of(tmp_path, image_key="jpg", label_key="class/label", scale=0.1, offset=-1.0)
    split = load_split(config, "test")
    assert split.labels.tolist() == [7]
    assert np.allclose(split.inputs["x"], 4.0)


def test_an_empty_label_key_reads_images_alone(tmp_path):
    write(tmp_path / "test", [example(png(image_of(1)), None)])
    assert load_split(config_of(tmp_path, label_key=""), "test").labels is None


def test_images_of_several_sizes_need_resize(tmp_path):
    images = [image_of(1), image_of(2), image_of(3, height=9)]
    write(tmp_path / "test", [example(png(image), 0) for image in images])
    with refused(InputError, field="data.resize", expected=(4, 5, 3), got=(9, 5, 3)):
        load_split(config_of(tmp_path), "test")
    resized = load_split(config_of(tmp_path, resize=(6, 6)), "test")
    assert resized.inputs["x"].shape == (3, 6, 6, 3) and resized.inputs["x"][:, 3, 3, 0].tolist() == [1, 2, 3]


def test_gray_and_color_images_in_one_set_are_refused(tmp_path):
    write(tmp_path / "test", [example(png(image_of(1)), 0), example(png(image_of(1, channels=1)), 0)])
    for size in ((), (4, 4)):
        with refused(InputError, field="data.source", word="grayscale"):
            load_split(config_of(tmp_path, resize=size), "test")


def bad_records():
    good = example(png(image_of(0)), 0)
    two = tf.train.Example.FromString(good)
    two.features.feature["label"].int64_list.value.append(1)
    text = tf.train.Example.FromString(good)
    text.features.feature["label"].bytes_list.value.append(b"cat")
    return {
        "'img'": example(png(image_of(0)), 0, "img"),
        "'label'": example(png(image_of(0)), None),
        "decoded": example(b"\x00" * 48, 0),
        "values": two.SerializeToString(),
        "bytes_list": text.SerializeToString(),
        "tf.train.Example": b"\xff\xff\xff\xff",
    }


@pytest.mark.parametrize("number", range(6))
def test_an_unusable_record_is_named_with_its_fault(tmp_path, number):
    word, bad = list(bad_records().items())[number]
    write(tmp_path / "a-test", [example(png(image_of(i)), i) for i in range(2)])
    path = write(tmp_path / "b-test", [example(png(image_of(i)), i) for i in range(3)] + [bad])
    with refused(InputError, field="data.source", got=5, word=word) as raised:
        load_split(config_of(tmp_path), "test")
    assert str(path) in str(raised.value)


def test_a_negative_label_is_refused(tmp_path):
    write(tmp_path / "test", [example(png(image_of(0)), -1)])
    with refused(InputError, field="labels[0]", got=-1):
        load_split(config_of(tmp_path), "test")


def test_damaged_files_are_refused(tmp_path):
    whole = numbered(tmp_path / "test", 0, 4).read_bytes()
    damaged = {
        "truncated": whole[:-7],
        "TFRecord": b"once upon a time there was a text",
        "gzip": b"\x1f\x8b" + bytes(40),
        "record": b"",
        "corrupt": whole[:40] + bytes([whole[40] ^ 0xFF]) + whole[41:],
    }
    for word, content in damaged.items():
        (tmp_path / "test").write_bytes(content)
        limit = "compressed-tfrecord" if word == "gzip" else None
        with refused(InputError, field="data.source", word=word, limit=limit):
            load_split(config_of(tmp_path), "test")


def test_a_pattern_that_matches_only_directories_is_reported(tmp_path):
    (tmp_path / "folder").mkdir()
    with refused(InputError, field="data.source", word="directories"):
        load_split(config_of(tmp_path), "test")


@pytest.mark.parametrize("size", [(3, 3), (16, 16), (13, 40), (64, 5), (1, 1)])
def test_our_resize_equals_tensorflows(size):
    images = np.random.default_rng(0).uniform(0, 255, size=(3, 16, 21, 3)).astype(np.float32)
    expected = tf.image.resize(images, size, method="bilinear", antialias=False).numpy()
    assert np.abs(resize_bilinear(images, size) - expected).max() < 1e-3


def test_tf_data_datasets_calibrate_batched_unbatched_and_with_labels():
    rows = np.random.default_rng(0).normal(size=(20, 2, 3)).astype(np.float32)
    labels = np.zeros(20, np.int64)
    spec = [InputSpec(name="image", shape=(1, 2, 3))]
    unlabelled, labelled = (tf.data.Dataset.from_tensor_slices(what) for what in (rows, (rows, labels)))
    named = tf.data.Dataset.from_tensor_slices(({"image": rows}, labels))
    for dataset in (unlabelled, labelled, unlabelled.batch(7), labelled.batch(7), named, named.batch(3)):
        got = representative_samples(dataset, spec, 20)
        assert np.array_equal(np.concatenate([sample["image"] for sample in got.samples]), rows)
    tensors = [[tf.constant(row[None])] for row in rows]
    assert len(representative_samples(tensors, spec, 20).samples) == 20


@needs_shared
def test_cifar10_loads_whole_balanced_in_seconds_and_the_same_every_time():
    config = DataConfig(source=f"tfrecord:{CIFAR10}/cifar10-*")
    begin = time.monotonic()
    split = load_split(config, "test")
    assert time.monotonic() - begin < 20
    assert split.inputs["x"].shape == (10000, 32, 32, 3) and split.inputs["x"].dtype == np.float32
    assert np.bincount(split.labels).tolist() == [1000] * 10
    assert load_split(config, "test").sha256() == split.sha256()


@needs_shared
def test_cifar10_images_are_those_that_pillow_decodes():
    path = str(CIFAR10 / "cifar10-test.tfrecord-00000-of-00001")
    split = load_split(DataConfig(source=f"tfrecord:{path}"), "test", limit=300)
    for index, record in enumerate(tf.data.TFRecordDataset(path).take(300).as_numpy_iterator()):
        features = tf.train.Example.FromString(record).features.feature
        image = Image.open(io.BytesIO(features["image"].bytes_list.value[0]))
        assert np.array_equal(split.inputs["x"][index], np.asarray(image))
        assert split.labels[index] == features["label"].int64_list.value[0]


@needs_shared
def test_cifar10_holds_out_its_last_5000_train_images_across_shards():
    config = DataConfig(source=f"tfrecord:{CIFAR10}/cifar10-*")
    shards = sorted(CIFAR10.glob("cifar10-train*"))
    last = load_split(DataConfig(source=f"tfrecord:{shards[-1]}"), "val", limit=10)
    assert "1,000" in last.information[0]
    val = load_split(config, "val")
    assert val.num_examples == 5000
    assert np.array_equal(val.take(4010).inputs["x"][4000:], last.inputs["x"])


@needs_shared
def test_a_cut_cifar10_shard_is_refused(tmp_path):
    shutil.copyfile(CIFAR10 / "cifar10-test.tfrecord-00000-of-00001", tmp_path / "test")
    with open(tmp_path / "test", "r+b") as file:
        file.truncate(5_000_000)
    with refused(InputError, field="data.source", word="truncated"):
        load_split(config_of(tmp_path), "test")

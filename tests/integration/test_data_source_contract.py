# SPDX-License-Identifier: Apache-2.0
"""The contract of every data source: the same examples each time, in memory, streamed and in shards, unchanged."""

import gzip
import json
import struct
import wave

import numpy as np
import pytest

from tfq import registry
from tfq.config import DataConfig
from tfq.data import DataSource, SplitStream, load_split, source_fingerprint

COUNT = 23


def images(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (COUNT, 12, 10, 3), np.uint8)


def png(image):
    import tensorflow as tf

    return tf.io.encode_png(image).numpy()


def write_folder(root, seed):
    for index, image in enumerate(images(seed)):
        path = root / "test" / f"class_{index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return f"folder:{root}"


def write_coco(root, seed):
    (root / "images").mkdir(parents=True)
    entries = []
    for index, image in enumerate(images(seed)):
        (root / "images" / f"{index}.png").write_bytes(png(image))
        entries.append({"id": index, "file_name": f"{index}.png", "height": 12, "width": 10})
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0} for i in range(9)
    ]
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (root / "test.json").write_text(json.dumps(content))
    return f"coco:{root / 'test.json'}"


def write_masks(root, seed):
    for index, image in enumerate(images(seed)):
        for folder, content in (("images", image), ("masks", image[..., :1] % 3)):
            path = root / "test" / folder / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(content))
    return f"masks:{root}"


def write_csv(root, seed):
    root.mkdir()
    rows = np.random.default_rng(seed).normal(size=(COUNT, 4))
    lines = [",".join([*map(repr, row.tolist()), str(index % 3)]) for index, row in enumerate(rows)]
    (root / "t.csv").write_text("\n".join(["a,b,c,d,label", *lines]))
    return f"csv:{root / 't.csv'}"


def write_npz(root, seed):
    root.mkdir()
    np.savez(root / "t.npz", x_test=images(seed), y_test=np.arange(COUNT) % 3)
    return f"npz:{root / 't.npz'}"


def write_idx(root, seed):
    root.mkdir()
    for kind, array in (
        ("images-idx3", images(seed)[..., 0]),
        ("labels-idx1", (np.arange(COUNT) % 3).astype(np.uint8)),
    ):
        header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (root / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return f"idx:{root}"


def write_wav(root, seed):
    for index, values in enumerate(np.random.default_rng(seed).integers(-(2**15), 2**15, (COUNT, 50)).astype("<i2")):
        path = root / f"class_{index % 3}" / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(values.tobytes())
    return f"wav:{root}"


def write_tfrecord(root, seed):
    import tensorflow as tf

    root.mkdir()
    with tf.io.TFRecordWriter(str(root / "a-test.tfrecord")) as writer:
        for index, image in enumerate(images(seed)):
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png(image)])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[index % 3])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return f"tfrecord:{root}/*"


WRITERS = {
    name.removeprefix("write_"): function for name, function in globals().copy().items() if name.startswith("write_")
}
# Other tests read them: they come with a package, are downloaded, or have EEMBC's layout.
ELSEWHERE = {"digits", "cifar10", "fashion_mnist", "mnist", "tfds", "eembc"}


def test_every_source_has_a_contract_test():
    assert set(registry.entries(DataSource)) == set(WRITERS) | ELSEWHERE


def contents(split):
    pieces = list(split.pieces())
    return {
        **{name: np.concatenate([piece.inputs[name] for piece in pieces]) for name in pieces[0].inputs},
        "labels": np.concatenate([piece.labels for piece in pieces]),
    }


def assert_same(split, other):
    one, two = contents(split), contents(other) if not isinstance(other, dict) else other
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype and np.array_equal(one[name], two[name]), name


@pytest.mark.parametrize("name", WRITERS)
def test_a_source_gives_the_same_examples_in_every_way_of_reading(name, tmp_path):
    config = DataConfig(source=WRITERS[name](tmp_path / "a", 0))
    whole = load_split(config, "test")
    assert whole.num_examples == COUNT
    assert_same(load_split(config, "test"), whole)
    shards = [contents(whole.shard(index, 4)) for index in range(4)]
    assert_same(whole, {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]})
    assert_same(load_split(config, "test", limit=7), whole.take(7))
    stream = SplitStream(
        name="test", source=config.source, num_examples=COUNT, piece_examples=5, seekable=True, read=_streamed(config)
    )
    assert_same(stream.shard(2, 3), whole.shard(2, 3))


def _streamed(config):
    from tfq.data.loading import _examples_of, _reader

    return _reader(_examples_of(config, "test"), config, "test")


@pytest.mark.parametrize("name", WRITERS)
def test_a_moved_source_keeps_its_fingerprint_and_another_content_changes_it(name, tmp_path):
    first, moved, other = (
        source_fingerprint(DataConfig(source=WRITERS[name](tmp_path / folder, seed)))
        for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == moved != other


@pytest.mark.parametrize("name", ["folder", "npz", "idx", "tfrecord", "coco", "masks"])
def test_pixels_are_those_of_the_files_without_any_augmentation(name, tmp_path):
    result = load_split(DataConfig(source=WRITERS[name](tmp_path / "a", 0)), "test").inputs["x"]
    expected = images()[..., :1] if name == "idx" else images()
    found = {image.astype(np.uint8).tobytes() for image in result}
    assert found == {image.tobytes() for image in expected}

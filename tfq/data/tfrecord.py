# SPDX-License-Identifier: Apache-2.0
"""The source `tfrecord:GLOB`: TFRecord files of Examples, each an encoded image and an integer label."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.data.binding import UNNAMED
from tfq.data.preprocessing import resize_bilinear, resize_of
from tfq.data.record_files import RecordFile, count_records, explain_record
from tfq.data.split import Examples, MissingSplitError, class_labels, part_of_train
from tfq.errors import InputError

# A word of the base name, not a piece of one: "cifar10-train.tfrecord-00000-of-00005", "val_3", not "latest".
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|training|val|valid|validation|test|testing)(?![a-z])")
_SPLIT_OF_WORD = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_BATCH = 256


def read_tfrecord(address: str, config: DataConfig, split: str, limit: int) -> Examples:
    """Images as float32 (n, height, width, channels) with values 0..255, in the order of the sorted files.

    The word train, val or test in a file's base name says which split it belongs to. Without a val file the last tenth
    of train is val, and train is the rest. Where no name says a split, all files together are test: what tfq does not
    know to be for training, it does not train on. TensorFlow decodes (JPEG, PNG) and is imported here alone.
    Raises MissingSplitError when no file serves the split, InputError with file and record on everything else.
    """
    paths = _matched(address)
    chosen, has_val, notes = _routed(paths, split, address)
    files = count_records(chosen)
    n = sum(file.num_records for file in files)
    if not n:
        raise InputError(f"tfrecord:{address} ({split}): {len(files)} files hold no record: wanted at least one")
    part = slice(0, n)
    if split != "test" and not has_val:
        part, note = part_of_train(n, split, f"tfrecord:{address}")
        notes += [note] if note else []
    stop = min(part.stop, part.start + limit) if limit else part.stop
    images, labels = _decode(files, config, part.start, stop)
    return Examples(inputs={UNNAMED: images}, labels=labels, notes=tuple(notes))


def _matched(address: str) -> list[Path]:
    if not address:
        raise InputError("--data=tfrecord: wanted tfrecord:GLOB: give a path or a pattern such as 'data/train-*'")
    paths = sorted(Path(name) for name in glob.glob(os.path.expanduser(address), recursive=True))
    files = [path for path in paths if path.is_file()]
    if not files:
        what = (
            "matches only directories: add /* to it"
            if paths
            else "matches no file: check the path, and quote the pattern"
        )
        raise InputError(f"--data=tfrecord:{address}: {what}")
    return files


def split_of_name(name: str) -> str | None:
    """The split that a file's base name tells, None when it tells none. Raises InputError when it tells two."""
    words = {_SPLIT_OF_WORD.get(word, word) for word in _SPLIT_WORD.findall(name.lower())}
    if len(words) > 1:
        raise InputError(f"{name}: its name says {' and '.join(sorted(words))}: rename it to say one split")
    return words.pop() if words else None


def _routed(paths: Sequence[Path], split: str, address: str) -> tuple[list[Path], bool, list[str]]:
    """The files of `split` (those of train for a val that must be held out), whether there are val files, notes."""
    by_split: dict[str | None, list[Path]] = {}
    for path in paths:
        by_split.setdefault(split_of_name(path.name), []).append(path)
    unnamed = by_split.pop(None, [])
    if not by_split:
        by_split = {"test": unnamed}
        notes = [f"tfrecord:{address}: no file name says train, val or test: all {len(unnamed)} files are test"]
    else:
        notes = [f"{path}: not used: its name says neither train, val nor test" for path in unnamed]
    holder = "train" if split == "val" and "val" not in by_split else split
    if holder not in by_split:
        raise MissingSplitError(
            f"tfrecord:{address} has no {split} split: wanted files with the word {holder!r} in their names; "
            f"{len(paths)} files match, for {', '.join(sorted(map(str, by_split)))}"
        )
    return by_split[holder], "val" in by_split, notes


def _decode(files: Sequence[RecordFile], config: DataConfig, start: int, stop: int) -> tuple[NDArray, NDArray | None]:
    """Examples start..stop of the files in a row: float32 images, and int64 labels unless label_key is empty."""
    images: NDArray | None = None
    labels = np.zeros(stop - start, np.int64)
    size = resize_of(config)
    done = 0
    for batch, batch_labels in _batches(files, config, start, stop):
        if size is not None:
            batch = resize_bilinear(batch, size)
        if images is None:
            images = np.empty((stop - start, *batch.shape[1:]), np.float32)
        if batch.shape[1:] != images.shape[1:]:
            _refuse_shape(files, start + done, batch.shape[1:], images.shape[1:], size)
        images[done : done + len(batch)] = batch
        labels[done : done + len(batch)] = batch_labels
        done += len(batch)
    assert images is not None and done == stop - start, (done, start, stop)
    if not config.label_key:
        return images, None
    return images, class_labels(labels, f"{files[0].path.parent} {config.label_key!r}")


def _refuse_shape(
    files: Sequence[RecordFile], index: int, came: Sequence[int], wanted: Sequence[int], size: tuple[int, int] | None
) -> None:
    path, record = _place(files, index)
    advice = "give --data.resize=height,width" if size is None else "convert them to the same number of channels"
    raise InputError(
        f"{path}: image of record {record} is {tuple(came)}, the ones before are {tuple(wanted)}: {advice}"
    )


def _batches(
    files: Sequence[RecordFile], config: DataConfig, start: int, stop: int
) -> Iterator[tuple[NDArray, NDArray]]:
    """Decoded images and labels in order: in batches as long as the images have one size, then one by one."""
    import tensorflow as tf

    features: dict[str, Any] = {config.image_key: tf.io.FixedLenFeature([], tf.string)}
    if config.label_key:
        features[config.label_key] = tf.io.FixedLenFeature([], tf.int64)

    @tf.autograph.experimental.do_not_convert
    def decode(record):
        example = tf.io.parse_single_example(record, features)
        content = example[config.image_key]
        # The default inverse DCT is fast and rough: two in three pixels differ from other decoders, by up to 5.
        image = tf.cond(
            tf.io.is_jpeg(content),
            lambda: tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE"),
            lambda: tf.io.decode_image(content, expand_animations=False),
        )
        return image, example[config.label_key] if config.label_key else tf.constant(0, tf.int64)

    def decoded(first: int):
        records = tf.data.TFRecordDataset([str(file.path) for file in files]).skip(first).take(stop - first)
        return records.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    # TensorFlow quotes the bad record in its message, and fails to decode that message when the record is not UTF-8.
    refusals = (tf.errors.OpError, UnicodeDecodeError)
    done = start
    try:
        for images, labels in decoded(start).batch(_BATCH).prefetch(2).as_numpy_iterator():
            yield images, labels
            done += len(images)
        return
    except refusals:
        pass  # another size, or a bad record: the slow way goes on from here and finds which
    try:
        for image, label in decoded(done).prefetch(_BATCH).as_numpy_iterator():
            yield image[None], label[None]
            done += 1
    except refusals as error:
        path, record = _place(files, done)
        raise InputError(f"{path}: record {record} {explain_record(path, record, config, error)}") from error


def _place(files: Sequence[RecordFile], index: int) -> tuple[Path, int]:
    """File and number within it of example `index` of all."""
    for file in files:
        if index < file.num_records:
            return file.path, index
        index -= file.num_records
    raise AssertionError(f"example {index} is beyond the files")

# SPDX-License-Identifier: Apache-2.0
"""The source `tfrecord:GLOB`: TFRecord files of tf.train.Example.

Source of the framing: uint64 length, uint32 checksum of the length, the record, uint32 checksum of the record
(tensorflow/core/lib/io/record_writer.h).
"""

import glob
import itertools
import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tfq.artifacts import decoding, open_file, shown
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, file_fingerprint, hold_out_val
from tfq.data.sources.folder import TOO_LARGE, image_pieces, locate
from tfq.data.split import MissingSplitError, class_labels
from tfq.errors import InputError, did_you_mean
from tfq.progress import import_tensorflow
from tfq.registry import register

_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class RecordFile:
    """A TFRecord file with complete framing."""

    path: Path
    num_records: int


def count_records(paths: Sequence[Path]) -> list[RecordFile]:
    """Count the records of each file by reading only the framing.

    Raises:
        InputError: A file is truncated.
    """
    return [RecordFile(path=path, num_records=sum(1 for _ in _spans(path))) for path in paths]


def _spans(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the bytes of each record in the file."""
    try:
        size = path.stat().st_size
        if not size:
            return
        with (
            open_file(path, "a TFRecord file", field="data.source") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            yield from _walk(content, size, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}. Expected a TFRecord file",
            field="data.source",
            expected="a TFRecord file",
            got=str(path),
        ) from error


def _walk(content: mmap.mmap, size: int, path: Path) -> Iterator[tuple[int, int]]:
    if content[:2] == _GZIP_MAGIC:
        raise InputError(
            f"{path} is compressed with gzip, expected an uncompressed TFRecord file. Run gunzip on it",
            field="data.source",
            got=str(path),
            limit="compressed-tfrecord",
        )
    start, index = 0, 0
    while start < size:
        end = size + 1
        if start + _HEADER_BYTES <= size:
            end = start + _HEADER_BYTES + struct.unpack_from("<Q", content, start)[0] + _FOOTER_BYTES
        if end > size:
            raise InputError(
                f"{path}: record {index} at byte {start:,} extends past the end of the file ({size:,} bytes). "
                + ("The file is truncated or damaged" if index else "The file is damaged or not a TFRecord file"),
                field="data.source",
                got=str(path),
            )
        yield start + _HEADER_BYTES, end - _FOOTER_BYTES
        start, index = end, index + 1


def explain_record(path: Path, record: int, config: DataConfig, error: Exception) -> str:
    """Return what is wrong with a record, as the rest of a sentence about it.

    Args:
        path: The file.
        record: The record's number in the file.
        config: Names the keys of the image and the label.
        error: What TensorFlow raised when it parsed or decoded the record.
    """
    tf = import_tensorflow()
    from google.protobuf.message import DecodeError

    if isinstance(error, tf.errors.DataLossError):
        return "is corrupt: its checksum does not match. Write or copy the file again"
    if TOO_LARGE in str(error):
        return f"has an image under {config.image_key!r} that {TOO_LARGE}. Make it smaller, or leave it out"
    start, end = next(itertools.islice(_spans(path), record, None))
    with open(path, "rb") as file:
        file.seek(start)
        content = file.read(end - start)
    try:
        features = tf.train.Example.FromString(content).features.feature
    except DecodeError:
        return "is not a tf.train.Example. Expected Examples with an encoded image and an integer label"
    for flag, key, kind in (
        ("image_key", config.image_key, "bytes_list"),
        ("label_key", config.label_key, "int64_list"),
    ):
        if key and (problem := _feature_problem(features, flag, key, kind)):
            return problem
    return (
        f"has an image under {config.image_key!r} that cannot be decoded as JPEG or PNG "
        f"({len(features[config.image_key].bytes_list.value[0]):,} bytes). Expected the bytes of an image file"
    )


def _feature_problem(features, flag: str, key: str, kind: str) -> str:
    """Return what is wrong with a feature of an Example; "" if it is one value of type `kind`."""
    if key not in features:
        available = ", ".join(f"{name} ({features[name].WhichOneof('kind')})" for name in sorted(features))
        without = "; or set data.label_key= to read images without labels" if flag == "label_key" else ""
        return (
            f"has no feature {key!r}, which data.{flag} names. It has {available or 'no features'}: "
            f"{did_you_mean(key, list(features))}{without}"
        )
    got_kind = features[key].WhichOneof("kind")
    if got_kind != kind:
        return f"has {got_kind or 'nothing'} under {key!r}, expected {kind}. Choose a feature with data.{flag}"
    count = len(getattr(features[key], kind).value)
    return "" if count == 1 else f"has {count} values under {key!r}, expected one"


# A word in the file name, not a part of one: "cifar10-train.tfrecord-00000-of-00005" and "val_3", not "latest".
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|training|val|valid|validation|test|testing)(?![a-z])")
_SPLIT_OF_WORD = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def read_tfrecord(address: str, config: DataConfig, split: str) -> Examples:
    """Return images (n, height, width, channels) with values 0..255, in the order of the sorted files.

    The word train, val or test in a file's name is its split. Without a val file, the last tenth of train is val, and
    train is the rest. If no name has such a word, all files are test: tfq only trains on files that are marked for
    training. TensorFlow decodes the images (JPEG, PNG); it is imported when they are read.

    Raises:
        MissingSplitError: No file belongs to the split.
        InputError: Something else is wrong; the message names the file and the record.
    """
    paths = matched_files(address)
    chosen, has_val, notes = _select_files(paths, split, address)
    files = count_records(chosen)
    count = sum(file.num_records for file in files)
    if not count:
        raise InputError(
            f"tfrecord:{address} ({split}): {len(files)} files contain no record, expected at least one",
            field="data.source",
            got=0,
        )
    examples = Examples(num_examples=count, read=partial(_read, files, config), notes=tuple(notes))
    return examples if split == "test" or has_val else hold_out_val(examples, split, f"tfrecord:{address}")


def matched_files(address: str) -> list[Path]:
    """Return the files that match `address`, sorted.

    Raises:
        InputError: No file matches.
    """
    if not address:
        raise InputError(
            "data.source=tfrecord has no files: expected tfrecord:GLOB, a path or a pattern such as 'data/train-*'",
            field="data.source",
            expected="tfrecord:GLOB",
            got="tfrecord",
        )
    paths = sorted(Path(name) for name in glob.glob(os.path.expanduser(address), recursive=True))
    files = [path for path in paths if path.is_file()]
    if not files:
        what = (
            "matches only directories. Add /* to it"
            if paths
            else "matches no file. Check the path, and put quotes around a pattern"
        )
        raise InputError(
            f"data.source=tfrecord:{shown(address)} {what}", field="data.source", got=f"tfrecord:{address}"
        )
    return files


def split_of_name(name: str) -> str | None:
    """Return the split that a file name contains; None if it contains none.

    Raises:
        InputError: The name contains two splits.
    """
    words = {_SPLIT_OF_WORD.get(word, word) for word in _SPLIT_WORD.findall(name.lower())}
    if len(words) > 1:
        raise InputError(
            f"the file name {name} contains {' and '.join(sorted(words))}. Rename it so that it contains one split",
            field="data.source",
            expected=("train", "val", "test"),
            got=name,
        )
    return words.pop() if words else None


def _select_files(paths: Sequence[Path], split: str, address: str) -> tuple[list[Path], bool, list[str]]:
    """Return the files of `split`, whether there are val files, and notes.

    If val must be held out of train, these are the files of train.
    """
    by_split: dict[str | None, list[Path]] = {}
    for path in paths:
        by_split.setdefault(split_of_name(path.name), []).append(path)
    unnamed = by_split.pop(None, [])
    if not by_split:
        by_split = {"test": unnamed}
        notes = [f"tfrecord:{address}: no file name contains train, val or test: all {len(unnamed)} files are test"]
    else:
        notes = [f"{path} is not used: its name does not contain train, val or test" for path in unnamed]
    stored_in = "train" if split == "val" and "val" not in by_split else split
    if stored_in not in by_split:
        raise MissingSplitError(
            f"tfrecord:{address} has no {split} split: expected files with the word {stored_in!r} in their names. "
            f"The {len(paths)} matching files belong to {', '.join(sorted(map(str, by_split)))}",
            field="split",
            expected=tuple(sorted(map(str, by_split))),
            got=split,
        )
    return by_split[stored_in], "val" in by_split, notes


def _read(files: Sequence[RecordFile], config: DataConfig, start: int, stop: int) -> Iterator[Piece]:
    """Yield the examples start..stop-1 of all files together."""
    where = f"{files[0].path.parent} {config.label_key!r}"
    for piece in image_pieces(
        partial(_encoded, files, config),
        start,
        stop,
        config,
        place=lambda index: "{}: image of record {}".format(*_place(files, index)),
        explain=lambda index, error: _explained(files, index, config, error),
        has_labels=bool(config.label_key),
    ):
        labels = None if piece.labels is None else class_labels(piece.labels, where, start)
        yield Piece(inputs=piece.inputs, labels=labels)
        start += len(piece)


def _encoded(files: Sequence[RecordFile], config: DataConfig, start: int, stop: int) -> Any:
    """Return a tf.data.Dataset of (encoded image, label) for the examples start..stop-1; labels are 0 without a key."""
    tf = import_tensorflow()

    features: dict[str, Any] = {config.image_key: tf.io.FixedLenFeature([], tf.string)}
    if config.label_key:
        features[config.label_key] = tf.io.FixedLenFeature([], tf.int64)

    @tf.autograph.experimental.do_not_convert
    def parse(record: Any) -> Any:
        example = tf.io.parse_single_example(record, features)
        return example[config.image_key], example[config.label_key] if config.label_key else tf.constant(0, tf.int64)

    # Skip the files before the first example.
    number, skipped = locate([file.num_records for file in files], start)
    records = tf.data.TFRecordDataset([os.fsencode(file.path) for file in files[number:]])
    return records.skip(skipped).take(stop - start).map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _explained(files: Sequence[RecordFile], index: int, config: DataConfig, error: Exception) -> str:
    path, record = _place(files, index)
    return f"{path}: record {record} {explain_record(path, record, config, error)}"


def _place(files: Sequence[RecordFile], index: int) -> tuple[Path, int]:
    """Return the file of example `index`, and its record number there."""
    number, record = locate([file.num_records for file in files], index)
    return files[number].path, record


def _check(address: str, split: str) -> None:
    for path in matched_files(address)[:_CHECKED_FILES]:
        expected = "a TFRecord file"
        with open_file(path, expected, field="data.source") as file, decoding(path, expected, field="data.source"):
            file.read(1)


# How many files are opened before TensorFlow is imported.
_CHECKED_FILES = 1000


def _fingerprint(address: str, config: DataConfig) -> object:
    # Directories do not count: splits depend on file names only, in the order of the paths.
    return [line for path in matched_files(address) for line in file_fingerprint([path], path.parent)]


register(
    DataSource(
        name="tfrecord",
        help="TFRecord files of Examples with an encoded image and an integer label; the word train, val or test in a "
        "file's name is its split",
        address="GLOB",
        read=read_tfrecord,
        fingerprint=_fingerprint,
        check=_check,
        looks_like="tfrecord",
    )
)

# SPDX-License-Identifier: Apache-2.0
"""TFRecord files from the outside: how many records they hold, and what is wrong with one that cannot be used.

Source of the framing: uint64 length, uint32 checksum of the length, the record, uint32 checksum of the record
(tensorflow/core/lib/io/record_writer.h).
"""

import itertools
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfq.config import DataConfig
from tfq.errors import InputError, did_you_mean

_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class RecordFile:
    """A TFRecord file whose framing is whole."""

    path: Path
    num_records: int


def count_records(paths: Sequence[Path]) -> list[RecordFile]:
    """Each file with its number of records, by walking the framing. Raises InputError where a file is cut short."""
    return [RecordFile(path=path, num_records=sum(1 for _ in _spans(path))) for path in paths]


def _spans(path: Path) -> Iterator[tuple[int, int]]:
    """(start, end) of each record's bytes in the file."""
    try:
        size = path.stat().st_size
        if not size:
            return
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield from _walk(content, size, path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}: wanted a TFRecord file") from error


def _walk(content: mmap.mmap, size: int, path: Path) -> Iterator[tuple[int, int]]:
    if content[:2] == _GZIP_MAGIC:
        raise InputError(f"{path} is compressed with gzip: wanted a plain TFRecord file: gunzip it")
    start, index = 0, 0
    while start < size:
        end = size + 1
        if start + _HEADER_BYTES <= size:
            end = start + _HEADER_BYTES + struct.unpack_from("<Q", content, start)[0] + _FOOTER_BYTES
        if end > size:
            raise InputError(
                f"{path}: record {index} at byte {start:,} runs past the end of the file ({size:,} bytes): "
                + ("the file is cut short or damaged" if index else "this is no TFRecord file, or a damaged one")
            )
        yield start + _HEADER_BYTES, end - _FOOTER_BYTES
        start, index = end, index + 1


def explain_record(path: Path, record: int, config: DataConfig, error: Exception) -> str:
    """What ails record number `record` of the file that TensorFlow refused with `error`: the rest of a sentence."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    if isinstance(error, tf.errors.DataLossError):
        return "is corrupt: its checksum does not match: write or copy the file again"
    start, end = next(itertools.islice(_spans(path), record, None))
    with open(path, "rb") as file:
        file.seek(start)
        content = file.read(end - start)
    try:
        features = tf.train.Example.FromString(content).features.feature
    except DecodeError:
        return "is no tf.train.Example: wanted Examples with an encoded image and an integer label"
    for flag, key, kind in (
        ("image_key", config.image_key, "bytes_list"),
        ("label_key", config.label_key, "int64_list"),
    ):
        if key and (problem := _feature_problem(features, flag, key, kind)):
            return problem
    return (
        f"holds an image under {config.image_key!r} that cannot be decoded as JPEG or PNG "
        f"({len(features[config.image_key].bytes_list.value[0]):,} bytes): wanted the encoded file's bytes"
    )


def _feature_problem(features, flag: str, key: str, kind: str) -> str:
    """What is wrong with a feature of an Example, "" when it is one value of its kind."""
    if key not in features:
        there = ", ".join(f"{name} ({features[name].WhichOneof('kind')})" for name in sorted(features))
        without = "; --data.label_key= reads images without labels" if flag == "label_key" else ""
        return (
            f"has no {key!r}: wanted the key of --data.{flag}; it has {there or 'no feature'}: "
            f"{did_you_mean(key, list(features))}{without}"
        )
    came = features[key].WhichOneof("kind")
    if came != kind:
        return f"holds {came or 'nothing'} under {key!r}: wanted one value of {kind}: name another key in --data.{flag}"
    count = len(getattr(features[key], kind).value)
    return "" if count == 1 else f"holds {count} values under {key!r}: wanted one"

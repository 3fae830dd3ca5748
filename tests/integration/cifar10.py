# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 as TFRecords, read without tfq and TensorFlow: an independent oracle for tfq's reader."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def read_test_split(shared: Path, limit: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 (n, 32, 32, 3), labels (n,)) of the first `limit` test records; Pillow decodes the JPEGs."""
    (path,) = (shared / "data" / "cifar10").glob("cifar10-test.tfrecord-*")
    images, labels = [], []
    with open(path, "rb") as file:
        while len(images) < limit and (header := file.read(12)):
            (length,) = struct.unpack("<Q", header[:8])
            image, label = parse_example(file.read(length + 4)[:length])
            images.append(np.asarray(Image.open(io.BytesIO(image))))
            labels.append(label)
    return np.stack(images), np.array(labels)


def parse_example(content: bytes) -> tuple[bytes, int]:
    """Return image and label of a tf.train.Example: features.feature[name].{bytes_list, int64_list}.value[0]."""
    results = {}
    for entry in fields(next(iter(fields(content))), expected=1):
        name, feature = fields(entry)
        (kind, values), *_ = tagged(feature)
        value = next(iter(tagged(values)))[1]
        results[name.decode()] = value if kind == 1 else value[0] if isinstance(value, bytes) else value
    return results["image"], results["label"]


def fields(content: bytes, expected: int | None = None) -> list[bytes]:
    """Return the length-delimited fields of a protocol buffer message, in order."""
    return [value for number, value in tagged(content) if expected in (None, number) and isinstance(value, bytes)]


def tagged(content: bytes) -> list[tuple[int, bytes | int]]:
    """Yield (field number, value) of a message. Source: Protocol Buffers, "Encoding"."""
    results: list[tuple[int, bytes | int]] = []
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(content):
        tag = varint()
        value = varint()
        if tag & 7 == 2:
            results.append((tag >> 3, content[position : position + value]))
            position += value
        else:
            results.append((tag >> 3, value))
    return results

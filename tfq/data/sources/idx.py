# SPDX-License-Identifier: Apache-2.0
"""The source `idx:FOLDER`: images and labels in the IDX format of MNIST, compressed with gzip or not.

Source of the format: LeCun, Cortes and Burges, "The MNIST database of handwritten digits": two zero bytes, the type
(0x08 for unsigned bytes), the number of axes, each size as a big-endian 32-bit integer, then the bytes in C order.
"""

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import open_file, reason, shown
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, examples_of_arrays, file_fingerprint, hold_out_val
from tfq.data.split import UNNAMED, MissingSplitError, class_labels
from tfq.errors import InputError
from tfq.registry import register

# uint8 (n, height, width, channels), int64 (n,).
ImagesAndLabels = tuple[NDArray[np.uint8], NDArray[np.int64]]
# MNIST's training images have 47 MB. A compressed file that unpacks to more than this is not read to its end.
MAX_UNPACKED_BYTES = 256 << 20
# Images have three axes, those of several channels four, labels have one.
_MAX_AXES = 4
_PREFIX = {"train": "train", "test": "t10k"}
_EXPECTED = "an IDX file of MNIST's format"


def find_idx_files(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Return (images, labels) of "train" or "test" in a folder; None unless both exist.

    The names are those of MNIST, `train-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, with or without `.gz`, and
    with a dot or a hyphen before `idx`.
    """
    found = []
    for kind, axes in (("images", 3), ("labels", 1)):
        names = [f"{_PREFIX[split]}-{kind}{dot}idx{axes}-ubyte{suffix}" for dot in "-." for suffix in ("", ".gz")]
        path = next((folder / name for name in names if os.path.isfile(folder / name)), None)
        if path is None:
            return None
        found.append(path)
    return found[0], found[1]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of an IDX file of bytes.

    Raises:
        InputError: The file cannot be read, is not an IDX file of bytes, is truncated, or unpacks to more than
            `MAX_UNPACKED_BYTES`.
    """
    content = _content(path)
    axes = content[3] if len(content) > 4 else 0
    start = 4 + 4 * axes
    shape = struct.unpack_from(f">{axes}I", content, 4) if len(content) >= start else ()
    # math.prod, because NumPy's product wraps around.
    is_valid = content[:3] == b"\0\0\x08" and 0 < len(shape) <= _MAX_AXES
    if not is_valid or len(content) - start != math.prod(shape):
        raise InputError(
            f"{path} is not an IDX file of bytes, or is truncated. Delete it, or copy it again",
            field="data.source",
            got=str(path),
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        with open_file(path, _EXPECTED, field="data.source") as raw:
            is_compressed = raw.peek(2)[:2] == b"\x1f\x8b"
            file = gzip.GzipFile(fileobj=raw) if is_compressed else raw
            content = file.read(MAX_UNPACKED_BYTES + 1)
    except InputError:
        raise
    except Exception as error:  # the decompressor raises exceptions of several types
        raise InputError(
            f"{path} is damaged or cannot be read ({reason(error)}). Delete it, or copy it again",
            field="data.source",
            got=str(path),
        ) from error
    if len(content) > MAX_UNPACKED_BYTES:
        raise InputError(
            f"{path} is larger than {MAX_UNPACKED_BYTES:,} bytes when unpacked, expected {_EXPECTED}",
            field="data.source",
            expected=MAX_UNPACKED_BYTES,
            got=str(path),
        )
    return content


def read_idx_split(files: tuple[Path, Path], split: str) -> ImagesAndLabels:
    """Return the images, uint8 (n, height, width, channels), and the labels, int64 (n,), of the two files of a split.

    Raises:
        InputError: A file cannot be read, or the two do not fit together.
    """
    images, labels = map(read_idx, files)
    if images.ndim not in (3, 4) or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        raise InputError(
            f"{files[0].parent}: expected images (n, height, width) and labels (n,) in {files[0].name} and "
            f"{files[1].name}, got {images.shape} and {labels.shape}. Copy the files again",
            field="data.source",
            expected="(n, height, width) and (n,)",
            got=(images.shape, labels.shape),
        )
    return images[..., None] if images.ndim == 3 else images, class_labels(labels, f"{files[0].parent} ({split})")


def _folder(address: str) -> Path:
    if not address:
        raise InputError(
            "data.source=idx has no folder: expected idx:FOLDER, a folder with t10k-images-idx3-ubyte and "
            "t10k-labels-idx1-ubyte (test), or train-... (train)",
            field="data.source",
            expected="idx:FOLDER",
            got="idx",
        )
    folder = os.path.expanduser(address)
    # os.path, because pathlib raises OSError for a name that is too long.
    if not os.path.isdir(folder) or not os.access(folder, os.X_OK):
        raise InputError(
            f"data.source=idx:{shown(address)} is not a folder that can be read. Expected a folder with files of "
            "MNIST's format",
            field="data.source",
            expected="idx:FOLDER",
            got=f"idx:{address}",
        )
    return Path(folder)


def _files(address: str, split: str) -> tuple[Path, Path]:
    folder = _folder(address)
    files = find_idx_files(folder, split)
    if files is None:
        prefix = _PREFIX[split]
        raise MissingSplitError(
            f"{shown(str(folder))} has no {split} split: expected {prefix}-images-idx3-ubyte and "
            f"{prefix}-labels-idx1-ubyte, each with or without .gz",
            field="split",
            expected=f"{prefix}-images-idx3-ubyte",
            got=split,
        )
    return files


def read_idx_folder(address: str, config: DataConfig, split: str) -> Examples:
    """Return a split of a folder: pixels 0..255, (n, height, width, 1), in the files' order. The end of train is val.

    Raises:
        MissingSplitError: The folder has no files of the split.
        InputError: A file is damaged.
    """
    stored_in = "test" if split == "test" else "train"
    images, labels = read_idx_split(_files(address, stored_in), stored_in)
    examples = examples_of_arrays({UNNAMED: images}, labels, f"idx:{address}")
    return examples if split == "test" else hold_out_val(examples, split, f"idx:{address}")


def _check(address: str, split: str) -> None:
    folder = _folder(address)
    if not any(find_idx_files(folder, name) for name in _PREFIX):
        _files(address, "test")


def _fingerprint(address: str, config: DataConfig) -> object:
    folder = _folder(address)
    found = [find_idx_files(folder, split) for split in _PREFIX]
    return file_fingerprint([path for files in found if files for path in files], folder)


register(
    DataSource(
        name="idx",
        help="images and labels in MNIST's IDX format: {train,t10k}-{images-idx3,labels-idx1}-ubyte, also with .gz",
        address="FOLDER",
        read=read_idx_folder,
        fingerprint=_fingerprint,
        check=_check,
        looks_like=r"idx\d-ubyte(\.gz)?$",
    )
)

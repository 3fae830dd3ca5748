# SPDX-License-Identifier: Apache-2.0
"""The data source `folder:DIRECTORY`: image files, one folder per class."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_a_piece, file_fingerprint, without_val
from tfq.data.preprocessing import resize_bilinear, resize_of
from tfq.data.split import UNNAMED, MissingSplitError, class_labels
from tfq.errors import InputError
from tfq.registry import register

_BATCH = 256


def decode_image(content: Any) -> Any:
    """A scalar string tensor as a uint8 tensor (height, width, channels), the channels as they are stored."""
    import tensorflow as tf

    # The default inverse DCT is fast and rough: two in three pixels differ from other decoders, by up to 5.
    return tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(content, expand_animations=False),
    )


def image_pieces(
    encoded: Callable[[int, int], Any],
    start: int,
    stop: int,
    config: DataConfig,
    *,
    place: Callable[[int], str],
    explain: Callable[[int, Exception], str],
    has_labels: bool = True,
) -> Iterator[Piece]:
    """Examples start..stop, decoded and resized: float32 where resized, else uint8, (k, height, width, channels).

    encoded: (start, stop) -> a tf.data.Dataset of (encoded bytes, label). place: index -> where this image is.
    explain: (index, what TensorFlow raised) -> what ails this example, a whole sentence.
    Raises InputError on an image that cannot be decoded, and on one of another size where nothing resizes them.
    """
    size = resize_of(config)
    held: list[tuple[NDArray, NDArray]] = []
    count = 0
    for images, labels in _batches(encoded, start, stop, explain):
        if size is not None:
            images = resize_bilinear(images, size)
        held.append((images, labels))
        wanted = held[0][0].shape[1:]
        if images.shape[1:] != wanted:
            is_color = images.shape[-1] != wanted[-1]
            advice = "convert them to one number of channels" if is_color else "give data.resize=height,width"
            raise InputError(
                f"{place(start + count)} is {images.shape[1:]}, the ones before are {wanted}: {advice}",
                field="data.resize" if not is_color else "data.source",
                expected=wanted,
                got=images.shape[1:],
            )
        count += len(images)
        # Images of several sizes come one by one.
        if count >= min(_BATCH, examples_a_piece(images[0].nbytes)):
            yield _piece(held, has_labels)
            start, count, held = start + count, 0, []
    if held:
        yield _piece(held, has_labels)


def _piece(held: list[tuple[NDArray, NDArray]], has_labels: bool) -> Piece:
    images, labels = (parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*held, strict=True))
    return Piece(inputs={UNNAMED: images}, labels=labels if has_labels else None)


def _batches(
    encoded: Callable[[int, int], Any], start: int, stop: int, explain: Callable[[int, Exception], str]
) -> Iterator[tuple[NDArray, NDArray]]:
    """Decoded images and labels in order: in batches as long as the images have one size, then one by one."""
    import tensorflow as tf

    @tf.autograph.experimental.do_not_convert
    def decode(content: Any, label: Any) -> Any:
        return decode_image(content), label

    def decoded(first: int) -> Any:
        return encoded(first, stop).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    # TensorFlow quotes the bad record in its message, and fails to decode that message when the record is not UTF-8.
    refusals = (tf.errors.OpError, UnicodeDecodeError)
    done = start
    try:
        first, label = next(decoded(done).take(1).as_numpy_iterator())
        batch = min(_BATCH, examples_a_piece(first.nbytes))
        for images, labels in decoded(done).batch(batch).prefetch(1).as_numpy_iterator():
            yield images, labels
            done += len(images)
        return
    except refusals:
        pass  # another size, or a bad record: the slow way goes on from here and finds which
    try:
        for image, label in decoded(done).prefetch(2).as_numpy_iterator():
            yield image[None], np.asarray(label)[None]
            done += 1
    except refusals as error:
        raise InputError(explain(done, error), field="data.source", got=done) from error


def place_in(lengths: Sequence[int], index: int) -> tuple[int, int]:
    """(which of several things in a row of these lengths, index within it) of item `index` of them all."""
    for number, length in enumerate(lengths):
        if index < length:
            return number, index
        index -= length
    raise AssertionError(f"item {index} is beyond the last")


SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_IMAGES = (".jpg", ".jpeg", ".png")
# Images that tfq does not decode: to leave them out would change what is measured.
_OTHER_IMAGES = (".bmp", ".gif", ".heic", ".heif", ".jp2", ".ppm", ".tif", ".tiff", ".webp", ".avif")
_HIDDEN = ("thumbs.db", "desktop.ini", "__macosx")
_WANTED = "wanted DIR/CLASS/*.jpg, or DIR/train/CLASS/*.jpg with val and test beside train"


@dataclass(kw_only=True)
class _Found:
    """Image files below some class folders, and what else was there."""

    images: dict[str, list[Path]] = field(default_factory=dict)
    hidden: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)


def read_folder(address: str, config: DataConfig, split: str) -> Examples:
    """JPEG and PNG files as (n, height, width, channels) with values 0..255; class numbers are of the sorted folders.

    DIR/train, DIR/val, DIR/test with a folder a class in each are the splits; classes are numbered over all of them.
    Without val, the last tenth of train is val. Without such folders, DIR's own are the classes and all images are
    test: what tfq does not know to be for training, it does not train on. The examples are in an order that mixes the
    classes and depends on nothing but the files' paths below DIR: the first n of them are of all classes.
    Raises MissingSplitError when there is no folder for the split, InputError on everything else.
    """
    root = _root(address)
    splits, notes = _splits(root)
    results = {name: _found(folders) for name, folders in splits.items()}
    classes = sorted({name for item in results.values() for name, images in item.images.items() if images})
    holder = "train" if split == "val" and "val" not in splits else split
    if holder not in splits:
        raise MissingSplitError(
            f"folder:{address} has no {split} split: expected a folder {root / holder} with one folder a class in it; "
            f"there is {', '.join(sorted(splits))}",
            field="split",
            expected=tuple(sorted(splits)),
            got=split,
        )
    if not any(results[holder].images.values()):
        raise InputError(
            f"folder:{address} ({holder}): holds no JPEG or PNG file in a class folder: {_WANTED}",
            field="data.source",
            expected=_WANTED,
            got=f"folder:{address}",
        )
    notes += _notes(results[holder], classes, f"folder:{address}", holder)
    examples = _examples(root, results[holder], classes, config, tuple(notes))
    return examples if split == "test" or "val" in splits else without_val(examples, split, f"folder:{address}")


def _root(address: str) -> Path:
    if not address:
        raise InputError(
            f"data.source=folder: expected folder:DIR: give a directory of images: {_WANTED}",
            field="data.source",
            expected="folder:DIR",
            got="folder",
        )
    root = Path(os.path.expanduser(address))
    if not root.is_dir():
        raise InputError(
            f"data.source=folder:{address}: {root} is no directory: {_WANTED}",
            field="data.source",
            got=f"folder:{address}",
        )
    return root


def _splits(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Split -> its class folders, and notes. A folder called test that holds images alone is a class of that name."""
    folders = _subfolders(root)
    named: dict[str, list[Path]] = {}
    for path in folders:
        name = SPLIT_FOLDERS.get(path.name.lower())
        if name and (inside := _subfolders(path)):
            if name in named:
                raise InputError(
                    f"{root} has two folders for {name}, {path.name} and another: expected one",
                    field="data.source",
                    expected=f"one folder for {name}",
                    got=path.name,
                )
            named[name] = inside
    if named:
        used = {path.parent for inside in named.values() for path in inside}
        loose = [path for path in folders if path not in used]
        notes = [f"{path}: not used: it is neither train, val nor test, or holds no class folder" for path in loose]
        return named, notes
    if not folders:
        raise InputError(f"{root} holds no folder: {_WANTED}", field="data.source", expected=_WANTED, got=str(root))
    if all(path.name.lower() in SPLIT_FOLDERS for path in folders):
        raise InputError(
            f"{folders[0]} holds no class folder: {_WANTED}", field="data.source", expected=_WANTED, got=str(folders[0])
        )
    note = (
        f"folder:{root}: no folder is called train, val or test: all images are test; to train on some, put their "
        "class folders below train"
    )
    return {"test": folders}, [note]


def _subfolders(path: Path) -> list[Path]:
    try:
        return sorted(item for item in path.iterdir() if item.is_dir() and not _is_hidden(item))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}: {_WANTED}", field="data.source", expected=_WANTED, got=str(path)
        ) from error


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _HIDDEN


def _found(folders: Sequence[Path]) -> _Found:
    """All files below the class folders, however deep."""
    result = _Found()
    for folder in folders:
        images = result.images.setdefault(folder.name, [])
        for directory, inside, files in os.walk(folder):
            paths = [Path(directory, name) for name in (*files, *inside)]
            result.hidden += [path for path in paths if _is_hidden(path)]
            result.unused += [path for path in paths if path.is_dir() and path.is_symlink() and not _is_hidden(path)]
            inside[:] = [name for name in inside if not _is_hidden(Path(name))]
            for path in (Path(directory, name) for name in files if not _is_hidden(Path(name))):
                suffix = path.suffix.lower()
                if suffix in _OTHER_IMAGES:
                    raise InputError(
                        f"{path}: tfq reads JPEG and PNG, not {suffix}: convert it, or move it away",
                        field="data.source",
                        expected=("JPEG", "PNG"),
                        got=suffix,
                    )
                (images if suffix in _IMAGES else result.unused).append(path)
    return result


def _notes(result: _Found, classes: Sequence[str], where: str, split: str) -> list[str]:
    notes = []
    missing = [name for name in classes if not result.images.get(name)]
    if missing:
        notes.append(f"{where} ({split}): no image of {len(missing)} of {len(classes)} classes, such as {missing[0]!r}")
    empty = [name for name, images in result.images.items() if not images and name not in classes]
    if empty:
        notes.append(f"{where} ({split}): {len(empty)} folders without images are no classes: {', '.join(empty[:5])}")
    for paths, what in ((result.hidden, "hidden"), (result.unused, "neither JPEG nor PNG")):
        if paths:
            notes.append(f"{where} ({split}): {len(paths):,} files not used, being {what}: such as {paths[0]}")
    return notes


def _examples(
    root: Path, result: _Found, classes: Sequence[str], config: DataConfig, notes: tuple[str, ...]
) -> Examples:
    number = {name: index for index, name in enumerate(classes)}
    pairs = [(path, number[name]) for name, images in result.images.items() for path in images]
    pairs.sort(key=lambda pair: hashlib.sha256(pair[0].relative_to(root).as_posix().encode()).digest())
    paths = [str(path) for path, _ in pairs]
    labels = [label for _, label in pairs]

    def read(start: int, stop: int) -> Iterator[Piece]:
        for piece in image_pieces(
            partial(_encoded, paths, labels),
            start,
            stop,
            config,
            place=lambda index: f"{paths[index]}: the image",
            explain=lambda index, error: _explained(Path(paths[index])),
        ):
            assert piece.labels is not None
            yield Piece(inputs=piece.inputs, labels=class_labels(piece.labels, str(root)))

    return Examples(num_examples=len(pairs), read=read, notes=notes, class_names=tuple(classes))


def _encoded(paths: Sequence[str], labels: Sequence[int], start: int, stop: int) -> Any:
    """A tf.data.Dataset of (content of the file, label) of files start..stop."""
    import tensorflow as tf

    files = tf.data.Dataset.from_tensor_slices((list(paths[start:stop]), list(labels[start:stop])))
    return files.map(lambda path, label: (tf.io.read_file(path), label), num_parallel_calls=2, deterministic=True)


def _explained(path: Path) -> str:
    try:
        size = path.stat().st_size
        with open(path, "rb"):
            pass
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    message = "is empty" if not size else f"cannot be decoded as JPEG or PNG ({size:,} bytes)"
    return f"{path} {message}: expected a whole image: fix it, or move it away"


def _fingerprint(address: str, config: DataConfig) -> object:
    root = _root(address)
    return file_fingerprint(sorted(path for path in root.rglob("*") if path.is_file()), root)


register(
    DataSource(
        name="folder",
        help="JPEG and PNG files in DIR/{train,val,test}/CLASS; without split folders all of them are test",
        address="DIR",
        read=read_folder,
        fingerprint=_fingerprint,
        looks_like=r"^(?!.*\.csv$)([~.]|.*/)",
    )
)

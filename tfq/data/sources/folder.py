# SPDX-License-Identifier: Apache-2.0
"""The source `folder:DIR`: image files in one folder per class."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import open_file, shown
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_per_piece, file_fingerprint, hold_out_val
from tfq.data.preprocessing import resize_bilinear, resize_of
from tfq.data.split import UNNAMED, MissingSplitError, class_labels
from tfq.errors import InputError
from tfq.native_stderr import captured_stderr
from tfq.progress import import_tensorflow
from tfq.registry import register

_BATCH = 256


# An image of a few kilobytes can declare any size.
MAX_PIXELS = 1 << 26
TOO_LARGE = f"declares more than {MAX_PIXELS:,} pixels"


def decode_image(content: Any) -> Any:
    """Decode a scalar string tensor to uint8 (height, width, channels) with the channels that the file stores.

    An image that declares more than MAX_PIXELS pixels is an error of TensorFlow with the text TOO_LARGE.
    """
    tf = import_tensorflow()

    def png_shape() -> Any:
        sizes = tf.cast(tf.reshape(tf.io.decode_raw(tf.strings.substr(content, 16, 8), tf.uint8), (2, 4)), tf.int64)
        return tf.reduce_sum(sizes * tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64), axis=1)

    def other_shape() -> Any:
        is_png = tf.strings.substr(content, 0, 4) == b"\x89PNG"
        return tf.cond(is_png, png_shape, lambda: tf.zeros(2, tf.int64))

    shape = tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.image.extract_jpeg_shape(content, output_type=tf.int32)[:2],
        lambda: tf.cast(tf.minimum(other_shape(), MAX_PIXELS + 1), tf.int32),
    )
    pixels = tf.reduce_prod(tf.cast(shape, tf.int64))
    check = tf.debugging.assert_less_equal(pixels, tf.constant(MAX_PIXELS, tf.int64), TOO_LARGE)
    with tf.control_dependencies([check]):
        content = tf.identity(content)

    # TensorFlow's default inverse DCT is fast but inexact: two in three pixels differ from other decoders, by up to 5.
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
    """Yield the examples start..stop-1, decoded and resized.

    Images are (k, height, width, channels): float32 if they are resized, else uint8.

    Args:
        encoded: (start, stop) -> a tf.data.Dataset of (encoded bytes, label).
        start: The first example.
        stop: The example after the last one.
        config: Says whether to resize.
        place: Index -> where the image is, as the subject of a sentence.
        explain: (index, TensorFlow's exception) -> what is wrong with the example, as a full sentence.
        has_labels: Whether to return labels.

    Raises:
        InputError: An image cannot be decoded, or images have different sizes and are not resized.
    """
    size = resize_of(config)
    buffer: list[tuple[NDArray, NDArray]] = []
    count = 0
    for images, labels in _batches(encoded, start, stop, explain):
        if size is not None:
            images = resize_bilinear(images, size)
        buffer.append((images, labels))
        expected_shape = buffer[0][0].shape[1:]
        if images.shape[1:] != expected_shape:
            is_color = images.shape[-1] != expected_shape[-1]
            advice = "Convert all images to color or all to grayscale" if is_color else "Set data.resize=height,width"
            raise InputError(
                f"{place(start + count)} has shape {images.shape[1:]}, expected {expected_shape} as in the images "
                f"before it. {advice}",
                field="data.resize" if not is_color else "data.source",
                expected=expected_shape,
                got=images.shape[1:],
                limit="image-sizes",
            )
        count += len(images)
        # Images of different sizes arrive one at a time.
        if count >= min(_BATCH, examples_per_piece(images[0].nbytes)):
            yield _piece(buffer, has_labels)
            start, count, buffer = start + count, 0, []
    if buffer:
        yield _piece(buffer, has_labels)


def _piece(buffer: list[tuple[NDArray, NDArray]], has_labels: bool) -> Piece:
    images, labels = (parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*buffer, strict=True))
    return Piece(inputs={UNNAMED: images}, labels=labels if has_labels else None)


def _batches(
    encoded: Callable[[int, int], Any], start: int, stop: int, explain: Callable[[int, Exception], str]
) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield decoded images and labels in order: in batches while all images have one size, then one at a time."""
    tf = import_tensorflow()

    @tf.autograph.experimental.do_not_convert
    def decode(content: Any, label: Any) -> Any:
        return decode_image(content), label

    def decoded(first: int) -> Any:
        return encoded(first, stop).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    # TensorFlow quotes the bad record in its message, and fails to decode the message if the record is not UTF-8.
    refusals = (tf.errors.OpError, UnicodeDecodeError)
    done = start
    try:
        first, label = next(decoded(done).take(1).as_numpy_iterator())
        batch = min(_BATCH, examples_per_piece(first.nbytes))
        batches = decoded(done).batch(batch).prefetch(1).as_numpy_iterator()
        while True:
            with captured_stderr():  # TensorFlow logs the error of images that have different sizes
                item = next(batches, None)
            if item is None:
                return
            yield item
            done += len(item[0])
    except refusals:
        pass  # Another size or a bad record: the slow loop below continues from here and finds which.
    try:
        for image, label in decoded(done).prefetch(2).as_numpy_iterator():
            yield image[None], np.asarray(label)[None]
            done += 1
    except refusals as error:
        raise InputError(explain(done, error), field="data.source", got=done) from error


def locate(lengths: Sequence[int], index: int) -> tuple[int, int]:
    """Return (which group, index in the group) of item `index` in consecutive groups of these lengths."""
    for number, length in enumerate(lengths):
        if index < length:
            return number, index
        index -= length
    raise AssertionError(f"item {index} is after the last one")


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
# tfq cannot decode these. Leaving them out silently would change the result, so they are an error.
_OTHER_IMAGES = (".bmp", ".gif", ".heic", ".heif", ".jp2", ".ppm", ".tif", ".tiff", ".webp", ".avif")
_SIGNATURE_BYTES = 12
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_OTHER_SIGNATURES = ((b"BM", "BMP"), (b"GIF8", "GIF"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"))
# How many files are opened before TensorFlow is imported.
_CHECKED_FILES = 1000
# Their files are views of the system, and there is no end to them.
_SYSTEM_FOLDERS = ("/dev", "/proc", "/sys")
_HIDDEN = ("thumbs.db", "desktop.ini", "__macosx")
_LAYOUT = "Expected images in DIR/CLASS/, or in DIR/train/CLASS/, DIR/val/CLASS/ and DIR/test/CLASS/"


@dataclass(kw_only=True)
class _Files:
    """The image files in some class folders, and other files there."""

    images: dict[str, list[Path]] = field(default_factory=dict)
    hidden: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)


def read_folder(address: str, config: DataConfig, split: str) -> Examples:
    """Return JPEG and PNG files as (n, height, width, channels) with values 0..255.

    DIR/train, DIR/val and DIR/test, with one folder per class in each, are the splits. Without val, the last tenth of
    train is val. If there are no such folders, the folders in DIR are the classes and all images are test: tfq only
    trains on images that are marked for training.

    Classes are numbered in the sorted order of their names, over all splits. The order of examples mixes the classes
    and depends only on the files' paths in DIR, so that the first n examples come from all classes.

    Raises:
        MissingSplitError: There is no folder for the split.
        InputError: The directory has another layout, is empty, or has images of another format.
    """
    root = _root(address)
    splits, notes = _splits(root)
    results = {name: find_files(folders) for name, folders in splits.items()}
    classes = sorted({name for item in results.values() for name, images in item.images.items() if images})
    stored_in = "train" if split == "val" and "val" not in splits else split
    if stored_in not in splits:
        raise MissingSplitError(
            f"folder:{address} has no {split} split, it has {', '.join(sorted(splits))}. Create the folder "
            f"{root / stored_in} with one folder per class in it",
            field="split",
            expected=tuple(sorted(splits)),
            got=split,
        )
    if not any(results[stored_in].images.values()):
        raise InputError(
            f"folder:{address} ({stored_in}) has no JPEG or PNG file in its class folders. {_LAYOUT}",
            field="data.source",
            expected=_LAYOUT,
            got=f"folder:{address}",
        )
    notes += find_notes(results[stored_in], classes, f"folder:{address}", stored_in)
    examples = _examples(root, results[stored_in], classes, config, tuple(notes))
    return examples if split == "test" or "val" in splits else hold_out_val(examples, split, f"folder:{address}")


def _root(address: str) -> Path:
    if not address:
        raise InputError(
            f"data.source=folder has no directory: expected folder:DIR. {_LAYOUT}",
            field="data.source",
            expected="folder:DIR",
            got="folder",
        )
    root = Path(os.path.expanduser(address))
    # os.path, because pathlib raises OSError for a name that is too long.
    if not os.path.isdir(root):
        problem = "is a file, not a directory" if os.path.exists(root) else "does not exist"
        raise InputError(
            f"data.source=folder:{shown(address)}: {shown(root)} {problem}. {_LAYOUT}",
            field="data.source",
            expected="a directory",
            got=f"folder:{address}",
        )
    if root.resolve() == Path("/"):
        raise InputError(
            f"data.source=folder:{shown(address)} is the root of the file system. Name the directory of the images. "
            f"{_LAYOUT}",
            field="data.source",
            expected="a directory with images",
            got=f"folder:{address}",
        )
    return root


def _splits(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Return {split: its class folders} and notes. A folder "test" that only holds images is a class of that name."""
    folders = _subfolders(root)
    named: dict[str, list[Path]] = {}
    for path in folders:
        name = SPLIT_FOLDERS.get(path.name.lower())
        if name and (subfolders := _subfolders(path)):
            if name in named:
                raise InputError(
                    f"{root} has two folders for the {name} split, {path.name} and another one. Keep one of them",
                    field="data.source",
                    expected=f"one folder for {name}",
                    got=path.name,
                )
            named[name] = subfolders
    if named:
        used = {path.parent for subfolders in named.values() for path in subfolders}
        unused = [path for path in folders if path not in used]
        notes = [f"{path} is not used: it is not train, val or test, or has no class folder in it" for path in unused]
        return named, notes
    if not folders:
        count = sum(path.suffix.lower() in _IMAGES for path in root.iterdir())
        advice = f", only {count:,} images. Move images without a class into one folder, such as {root / 'all'}"
        raise InputError(
            f"data.source=folder:{root} has no folder in it{advice if count else ''}. {_LAYOUT}",
            field="data.source",
            expected=_LAYOUT,
            got=str(root),
        )
    if all(path.name.lower() in SPLIT_FOLDERS for path in folders):
        raise InputError(
            f"data.source=folder:{root}: {folders[0]} has no class folder in it. {_LAYOUT}",
            field="data.source",
            expected=_LAYOUT,
            got=str(folders[0]),
        )
    note = (
        f"folder:{root}: there is no folder train, val or test, so all images are the test split. To train on some of "
        "them, move their class folders to a folder train"
    )
    return {"test": folders}, [note]


def _check(address: str, split: str) -> None:
    root = _root(address)
    splits, _ = _splits(root)
    if not split:
        return
    # Calibration uses the first split that there is.
    stored_in = next(name for name in (split, "train", "val", "test") if name in splits)
    check_formats([path for path, _ in _in_order(root, find_files(splits[stored_in]))[:_CHECKED_FILES]])


def _subfolders(path: Path) -> list[Path]:
    try:
        folders = sorted(item for item in path.iterdir() if item.is_dir() and not _is_hidden(item))
    except OSError as error:
        raise InputError(
            f"{shown(path)} cannot be read: {error.strerror}. {_LAYOUT}",
            field="data.source",
            expected=_LAYOUT,
            got=str(path),
        ) from error
    for folder in filter(Path.is_symlink, folders):
        target = folder.resolve()
        if path.resolve().is_relative_to(target) or any(map(target.is_relative_to, _SYSTEM_FOLDERS)):
            raise InputError(
                f"{shown(folder)} is a link to {shown(target)}, which contains this folder or files of the system. "
                "Remove the link",
                field="data.source",
                expected="class folders",
                got=str(folder),
            )
    return folders


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _HIDDEN


def find_files(folders: Sequence[Path]) -> _Files:
    """Return all files in the class folders and their subfolders."""
    result = _Files()
    for folder in folders:
        images = result.images.setdefault(folder.name, [])
        for directory, subfolders, files in os.walk(folder):
            paths = [Path(directory, name) for name in (*files, *subfolders)]
            result.hidden += [path for path in paths if _is_hidden(path)]
            result.unused += [path for path in paths if path.is_dir() and path.is_symlink() and not _is_hidden(path)]
            subfolders[:] = [name for name in subfolders if not _is_hidden(Path(name))]
            for path in (Path(directory, name) for name in files if not _is_hidden(Path(name))):
                suffix = path.suffix.lower()
                if suffix in _OTHER_IMAGES:
                    raise InputError(
                        f"{path}: tfq reads JPEG and PNG, not {suffix}. Convert it, or move it to another directory",
                        field="data.source",
                        expected=("JPEG", "PNG"),
                        got=suffix,
                        limit="image-formats",
                    )
                (images if suffix in _IMAGES else result.unused).append(path)
    return result


def find_notes(result: _Files, classes: Sequence[str], where: str, split: str) -> list[str]:
    """Return sentences about classes without images, and about files that are not used."""
    notes = []
    missing = [name for name in classes if not result.images.get(name)]
    if missing:
        notes.append(
            f"{where} ({split}): {len(missing)} of {len(classes)} classes have no image, such as {missing[0]!r}"
        )
    empty = [name for name, images in result.images.items() if not images and name not in classes]
    if empty:
        notes.append(
            f"{where} ({split}): {len(empty)} folders have no images and are not classes: {', '.join(empty[:5])}"
        )
    for paths, what in ((result.hidden, "hidden"), (result.unused, "neither JPEG nor PNG")):
        if paths:
            notes.append(f"{where} ({split}): {len(paths):,} files are {what} and not used, such as {paths[0]}")
    return notes


def _examples(
    root: Path, result: _Files, classes: Sequence[str], config: DataConfig, notes: tuple[str, ...]
) -> Examples:
    number = {name: index for index, name in enumerate(classes)}
    pairs = _in_order(root, result)
    paths = [str(path) for path, _ in pairs]
    labels = [number[name] for _, name in pairs]

    def read(start: int, stop: int) -> Iterator[Piece]:
        check_formats([path for path, _ in pairs[start:stop]])
        for piece in image_pieces(
            partial(_encoded, paths, labels),
            start,
            stop,
            config,
            place=lambda index: paths[index],
            explain=lambda index, error: _explained(Path(paths[index]), too_large=TOO_LARGE in str(error)),
        ):
            assert piece.labels is not None
            yield Piece(inputs=piece.inputs, labels=class_labels(piece.labels, str(root)))

    return Examples(num_examples=len(pairs), read=read, notes=notes, class_names=tuple(classes))


def _in_order(root: Path, result: _Files) -> list[tuple[Path, str]]:
    """Return (file, class) of all images in the order of the examples."""
    pairs = [(path, name) for name, images in result.images.items() for path in images]
    return sorted(pairs, key=lambda pair: hashlib.sha256(os.fsencode(pair[0].relative_to(root))).digest())


def check_formats(paths: Sequence[Path]) -> None:
    """Check by their first bytes that files are JPEG or PNG. TensorFlow would also decode BMP and GIF.

    Raises:
        InputError: A file has another format, is empty or cannot be read.
    """
    for path in paths:
        try:
            with open_file(path, "a JPEG or PNG file", field="data.source") as file:
                first = file.read(_SIGNATURE_BYTES)
        except OSError:
            first = b""
        if not first.startswith(_SIGNATURES):
            raise InputError(
                _explained(path, _format_of(first)),
                field="data.source",
                expected=("JPEG", "PNG"),
                got=str(path),
            )


def _format_of(first: bytes) -> str:
    """Return the name of the format that the first bytes of a file belong to; "" if it is not known."""
    if first[:4] == b"RIFF" and first[8:12] == b"WEBP":
        return "WebP"
    if first[4:8] == b"ftyp":
        return "AVIF" if first[8:12] in (b"avif", b"avis") else "HEIC"
    return next((name for start, name in _OTHER_SIGNATURES if first.startswith(start)), "")


def _encoded(paths: Sequence[str], labels: Sequence[int], start: int, stop: int) -> Any:
    """Return a tf.data.Dataset of (content of the file, label) for the files start..stop-1."""
    tf = import_tensorflow()

    files = tf.data.Dataset.from_tensor_slices(
        ([os.fsencode(path) for path in paths[start:stop]], list(labels[start:stop]))
    )
    return files.map(lambda path, label: (tf.io.read_file(path), label), num_parallel_calls=2, deterministic=True)


def _explained(path: Path, image_format: str = "", *, too_large: bool = False) -> str:
    try:
        size = path.stat().st_size
        with open(path, "rb"):
            pass
    except OSError as error:
        return f"{shown(path)} cannot be read: {error.strerror}"
    if image_format:
        return (
            f"{shown(path)} is {image_format}, and tfq reads JPEG and PNG. Convert it, or move it to another directory"
        )
    if too_large:
        return f"{shown(path)} {TOO_LARGE} ({size:,} bytes). Make it smaller, or move it to another directory"
    message = (
        "is empty (0 bytes)"
        if not size
        else f"cannot be decoded as JPEG or PNG ({size:,} bytes): it is damaged or has another format"
    )
    return f"{shown(path)} {message}. Replace it, or move it to another directory"


def _fingerprint(address: str, config: DataConfig) -> object:
    root = _root(address)
    splits, _ = _splits(root)
    found = [find_files(folders) for folders in splits.values()]
    images = [path for item in found for paths in item.images.values() for path in paths]
    return [sorted(splits), *file_fingerprint(sorted(images), root)]


register(
    DataSource(
        name="folder",
        help="JPEG and PNG files in DIR/{train,val,test}/CLASS; without such folders, DIR/CLASS, and all are test",
        address="DIR",
        read=read_folder,
        fingerprint=_fingerprint,
        looks_like=r"^(?!.*\.csv$)([~.]|.*/)",
        check=_check,
    )
)

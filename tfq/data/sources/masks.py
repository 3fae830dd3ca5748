# SPDX-License-Identifier: Apache-2.0
"""The source `masks:DIR`: images, and for each of them a PNG file with the class of each pixel."""

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import decoding, open_file, read_bytes, shown
from tfq.config import DataConfig
from tfq.data.examples import DataSource, Examples, Piece, examples_per_piece, file_fingerprint, hold_out_val
from tfq.data.label_maps import map_size_of, resize_nearest
from tfq.data.png_indices import stored_numbers, why_no_numbers
from tfq.data.preprocessing import resize_bilinear, resize_of
from tfq.data.sources.folder import MAX_PIXELS, SPLIT_FOLDERS, check_formats, decode_image, find_files, find_notes
from tfq.data.split import UNNAMED, MissingSplitError
from tfq.errors import InputError
from tfq.progress import import_tensorflow
from tfq.registry import register

IMAGES, MASKS, CLASS_FILE = "images", "masks", "classes.txt"
_SPLITS = ("train", "val", "test")
_LAYOUT = "Expected DIR/train/images and DIR/train/masks, the same for val and test; or DIR/images and DIR/masks"
_HEADER_BYTES = 33
# How many files are opened before TensorFlow is imported.
_CHECKED_FILES = 1000
_MAX_CLASS_FILE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """The images of a split and their masks, in the order of the examples."""

    pairs: tuple[tuple[Path, Path], ...]
    notes: tuple[str, ...]


def read_masks(address: str, config: DataConfig, split: str) -> Examples:
    """Return images (n, height, width, channels) with values 0..255, and masks (n, height, width), uint8 classes.

    DIR/train, DIR/val and DIR/test are the splits, with the folders `images` and `masks` in each. Without val, the last
    tenth of train is val. If DIR itself has images and masks, they are the test split: tfq only trains on images that
    are marked for training. An image and its mask have the same path in their folders, except for the suffix.

    Masks are PNG files of at most 8 bits per pixel, and a class is the number that the file stores: a gray value, or an
    index of the palette, whose colors do not matter. With data.resize, images are resized bilinearly and masks to the
    nearest pixel. data.label_resize gives the masks another size.

    The order of examples depends only on the paths of the images in DIR, and is a random one, so that the first n
    examples represent all. DIR/classes.txt has the name of class 0, 1, ... in its lines; it may be missing.

    Raises:
        MissingSplitError: There are no folders for the split.
        InputError: DIR has another layout, an image has no mask or the reverse, or a file is not an image, no mask of
            numbers, or has another size than its image.
    """
    root = _root(address)
    folders = _folders(root)
    stored_in = "train" if split == "val" and "val" not in folders else split
    if stored_in not in folders:
        raise MissingSplitError(
            f"masks:{shown(address)} has no {split} split, it has {', '.join(folders)}. Create "
            f"{shown(root / stored_in)} with the folders {IMAGES} and {MASKS} in it",
            field="split",
            expected=tuple(folders),
            got=split,
        )
    found = _pairs(root, folders[stored_in], stored_in)
    examples = _examples(found, _class_names(root), config)
    return examples if split == "test" or "val" in folders else hold_out_val(examples, split, f"masks:{address}")


def _root(address: str) -> Path:
    root = Path(os.path.expanduser(address))
    problem = ""
    if not address:
        problem = "has no directory"
    elif not os.path.isdir(root):
        problem = "is a file, not a directory" if os.path.exists(root) else "does not exist"
    elif root.resolve() == Path("/"):
        problem = "is the root of the file system"
    if problem:
        raise InputError(
            f"data.source=masks:{shown(address)} {problem}. {_LAYOUT}",
            field="data.source",
            expected="masks:DIR",
            got=f"masks:{address}",
        )
    return root


def _folders(root: Path) -> dict[str, Path]:
    """Return {split: the folder that contains its images and masks}."""
    folders: dict[str, Path] = {}
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise InputError(
            f"data.source=masks:{shown(root)} cannot be read: {error.strerror}. {_LAYOUT}",
            field="data.source",
            expected="masks:DIR",
            got=f"masks:{root}",
        ) from error
    for path in entries:
        name = SPLIT_FOLDERS.get(path.name.lower())
        if name and path.is_dir():
            if name in folders:
                raise InputError(
                    f"{shown(root)} has two folders for the {name} split, {folders[name].name} and {path.name}. Keep "
                    "one of them",
                    field="data.source",
                    expected=f"one folder for {name}",
                    got=path.name,
                )
            folders[name] = path
    folders = {name: folders[name] for name in _SPLITS if name in folders} or {"test": root}
    for name, folder in folders.items():
        for part in (IMAGES, MASKS):
            if not (folder / part).is_dir():
                raise InputError(
                    f"data.source=masks:{shown(root)} ({name}): there is no folder {shown(folder / part)}. {_LAYOUT}",
                    field="data.source",
                    expected=str(folder / part),
                    got=str(folder),
                )
    return folders


def _pairs(root: Path, folder: Path, split: str) -> _Pairs:
    """Return the images and masks of a split, paired by their paths without suffix."""
    found = {part: find_files([folder / part]) for part in (IMAGES, MASKS)}
    by_stem = {part: _by_stem(files.images[part], folder / part) for part, files in found.items()}
    images, masks = by_stem[IMAGES], by_stem[MASKS]
    if not images:
        raise InputError(
            f"data.source=masks:{shown(root)} ({split}): {shown(folder / IMAGES)} has no JPEG or PNG file. {_LAYOUT}",
            field="data.source",
            expected="at least one image",
            got=str(folder / IMAGES),
        )
    for one, other, name, missing in ((images, masks, "image", MASKS), (masks, images, "mask", IMAGES)):
        alone = sorted(one.keys() - other.keys())
        if alone:
            raise InputError(
                f"data.source=masks:{shown(root)} ({split}): {len(alone):,} of {len(one):,} {name}s have no file of "
                f"the same name in {missing}, such as {shown(one[alone[0]])}. Add the missing files, or move these to "
                "another directory",
                field="data.source",
                expected=f"{missing}/{alone[0]}",
                got=str(one[alone[0]]),
            )
    order = sorted(images, key=lambda stem: hashlib.sha256(os.fsencode(images[stem].relative_to(root))).digest())
    notes = [note for files in found.values() for note in find_notes(files, (), f"masks:{shown(root)}", split)]
    return _Pairs(pairs=tuple((images[stem], masks[stem]) for stem in order), notes=tuple(notes))


def _by_stem(paths: list[Path], folder: Path) -> dict[str, Path]:
    results: dict[str, Path] = {}
    for path in sorted(paths):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in results:
            raise InputError(
                f"{shown(path)} and {shown(results[stem])} have the same name without their suffixes, so nothing says "
                "which belongs to which mask. Rename one of them",
                field="data.source",
                expected="one file",
                got=str(path),
            )
        results[stem] = path
    return results


def _class_names(root: Path) -> tuple[str, ...]:
    path = root / CLASS_FILE
    if not path.is_file():
        return ()
    expected = "a text file with the name of one class per line, in UTF-8"
    content = read_bytes(path, expected, field="data.source", max_bytes=_MAX_CLASS_FILE_BYTES)
    with decoding(path, expected, field="data.source"):
        names = [line.strip() for line in re.split("\r\n|\r|\n", content.decode("utf-8-sig").rstrip())]
    bad = next((number for number, name in enumerate(names) if not name or name in names[:number]), None)
    if bad is not None:
        problem = f"is {names[bad]!r} again" if names[bad] else "is empty"
        raise InputError(
            f"{shown(path)}: line {bad + 1} {problem}. Expected the name of class 0, 1, ... in each line",
            field="data.source",
            expected="one name in each line",
            got=bad + 1,
        )
    return tuple(names)


def _examples(found: _Pairs, names: tuple[str, ...], config: DataConfig) -> Examples:
    size, mask_size = resize_of(config), map_size_of(config) or resize_of(config)

    def read(start: int, stop: int) -> Iterator[Piece]:
        images: list[NDArray] = []
        masks: list[NDArray] = []
        for path, mask_path in found.pairs[start:stop]:
            image, mask = _decoded_image(path)[None], _decoded_mask(mask_path)[None]
            _check_pair(path, image, mask_path, mask)
            _check_classes(mask_path, mask, names, config)
            image = image if size is None else resize_bilinear(image, size)
            mask = mask if mask_size is None else resize_nearest(mask, mask_size)
            if images:
                _check_shape(path, image.shape[1:], images[0].shape[1:])
            images.append(image)
            masks.append(mask)
            if len(images) >= examples_per_piece(image.nbytes + mask.nbytes):
                yield Piece(inputs={UNNAMED: np.concatenate(images)}, labels=np.concatenate(masks))
                images, masks = images[:0], masks[:0]
        if images:
            yield Piece(inputs={UNNAMED: np.concatenate(images)}, labels=np.concatenate(masks))

    return Examples(num_examples=len(found.pairs), read=read, notes=found.notes, class_names=names)


def _decoded_image(path: Path) -> NDArray[np.uint8]:
    """Return an image as uint8 (height, width, channels), decoded like those of the source `folder`."""
    check_formats([path])
    image: NDArray[np.uint8] = _decoded(path, read_bytes(path, "a JPEG or PNG file", field="data.source"))
    return image


def _decoded_mask(path: Path) -> NDArray[np.uint8]:
    """Return the numbers that a mask stores, uint8 (height, width)."""
    content = read_bytes(path, "a PNG file", field="data.source")
    _check_mask(path, content)
    try:
        numbers = stored_numbers(content)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    pixels = _decoded(path, numbers.content)
    return np.asarray(pixels[..., 0] // numbers.factor)


def _decoded(path: Path, content: bytes) -> NDArray[np.uint8]:
    tf = import_tensorflow()
    try:
        pixels: NDArray[np.uint8] = _decoder()(tf.constant(content)).numpy()
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        too_large = f"more than {MAX_PIXELS:,} pixels, " if "pixels" in str(error) else ""
        raise _damaged(path, f"{too_large}{len(content):,} bytes") from error
    return pixels


@functools.cache
def _decoder() -> Any:
    """Return `decode_image` as one graph, which takes a fraction of the time of its single ops."""
    tf = import_tensorflow()
    return tf.function(decode_image, input_signature=[tf.TensorSpec((), tf.string)], autograph=False)


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(
        f"{shown(path)} cannot be decoded ({problem}): it is damaged or too large. Replace it, or remove it and the "
        "file that belongs to it",
        field="data.source",
        expected=("JPEG", "PNG"),
        got=str(path),
    )


def _check_mask(path: Path, content: bytes) -> None:
    problem = why_no_numbers(content)
    if problem is not None:
        raise InputError(
            f"the mask {shown(path)} {problem}",
            field="data.source",
            expected="a PNG file, 8-bit grayscale or with a palette",
            got=str(path),
            limit="mask-formats",
        )


def _check_pair(path: Path, image: NDArray, mask_path: Path, mask: NDArray) -> None:
    if image.shape[:3] != mask.shape:
        raise InputError(
            f"{shown(mask_path)} has {mask.shape[1]} x {mask.shape[2]} pixels (height x width), but its image "
            f"{shown(path)} has {image.shape[1]} x {image.shape[2]}. Use the mask of this image",
            field="data.source",
            expected=image.shape[1:3],
            got=mask.shape[1:],
        )


def _check_shape(path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise InputError unless an image has the shape of those before it."""
    if shape != expected:
        is_color = shape[-1] != expected[-1]
        advice = "Convert all images to color or all to grayscale" if is_color else "Set data.resize=height,width"
        raise InputError(
            f"{shown(path)} has shape {shape}, expected {expected} as in the images before it. {advice}",
            field="data.source" if is_color else "data.resize",
            expected=expected,
            got=shape,
            limit="image-sizes",
        )


def _check_classes(path: Path, mask: NDArray, names: tuple[str, ...], config: DataConfig) -> None:
    """Raise InputError if a mask has a class that `CLASS_FILE` does not name."""
    if not names:
        return
    is_unnamed = mask >= len(names)
    if config.ignore_label is not None:
        is_unnamed &= mask != config.ignore_label
    if is_unnamed.any():
        value = int(mask[is_unnamed][0])
        raise InputError(
            f"{shown(path)} contains class {value} ({int(is_unnamed.sum()):,} pixels), but {CLASS_FILE} has the names "
            f"of {len(names)} classes, 0 to {len(names) - 1}. If {value} marks pixels without a label, set "
            f"data.ignore_label={value}; else add names, or renumber the classes",
            field="data.source",
            expected=f"0 to {len(names) - 1}",
            got=value,
        )


def _check(address: str, split: str) -> None:
    root = _root(address)
    folders = _folders(root)
    _class_names(root)
    if not split:
        return
    # Calibration uses the first split that there is.
    stored_in = next(name for name in (split, *_SPLITS) if name in folders)
    pairs = _pairs(root, folders[stored_in], stored_in).pairs[:_CHECKED_FILES]
    check_formats([path for path, _ in pairs])
    for _, path in pairs:
        with open_file(path, "a PNG file", field="data.source") as file:
            _check_mask(path, file.read(_HEADER_BYTES))


def _fingerprint(address: str, config: DataConfig) -> object:
    root = _root(address)
    folders: Mapping[str, Path] = _folders(root)
    paths = [path for name, folder in folders.items() for pair in _pairs(root, folder, name).pairs for path in pair]
    names = [root / CLASS_FILE] if (root / CLASS_FILE).is_file() else []
    return [sorted(folders), *file_fingerprint([*sorted(paths), *names], root)]


register(
    DataSource(
        name="masks",
        help="images in DIR/{train,val,test}/images, and the class of each pixel in .../masks, 8-bit grayscale or "
        "palette PNG files of the same names; without such folders, DIR/images and DIR/masks are test",
        address="DIR",
        read=read_masks,
        fingerprint=_fingerprint,
        check=_check,
    )
)

# SPDX-License-Identifier: Apache-2.0
"""The source `coco:ANNOTATIONS.json`: images with labeled boxes, in the format of the COCO data set."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import read_bytes, shown
from tfq.config import DataConfig
from tfq.data.box_labels import BOX_COLUMNS, pad_boxes
from tfq.data.examples import DataSource, Examples, Piece, examples_per_piece, file_fingerprint, hold_out_val
from tfq.data.preprocessing import resize_bilinear, resize_of
from tfq.data.sources.folder import decode_image
from tfq.data.split import UNNAMED, MissingSplitError
from tfq.errors import InputError
from tfq.progress import import_tensorflow
from tfq.registry import register

SPLIT_FIELD = "{split}"
_SPLITS = ("train", "val", "test")
_PREFIX = "instances_"  # of COCO's own files: annotations/instances_val2017.json describes the images in val2017/
_EXPECTED = "coco:ANNOTATIONS.json or coco:ANNOTATIONS.json:IMAGES"
# Annotations are rounded: a box may end this many pixels outside of its image.
_MARGIN = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """The content of an annotation file, checked.

    Args:
        files: The path of each image in the images' folder, by ascending image id.
        sizes: (height, width) of each image in pixels.
        boxes: For each image (boxes, 7): class, ymin, xmin, ymax, xmax (fractions of the image), is_crowd, area
            (pixels), in the order of the file.
        class_names: The names of the categories, by ascending category id; a class is the index of its category here.
        information: What was computed because the file does not have it.
    """

    files: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    boxes: tuple[NDArray[np.float64], ...]
    class_names: tuple[str, ...]
    information: tuple[str, ...] = ()

    @property
    def max_boxes(self) -> int:
        """The number of boxes in the image that has most, at least 1."""
        return max(1, *map(len, self.boxes))


def read_coco(address: str, config: DataConfig, split: str) -> Examples:
    """Return images (n, height, width, channels) with values 0..255, and boxes (n, max_boxes, 9), float64.

    The columns of a box are `tfq.data.box_labels.BOX_COLUMNS`; rows of padding have class -1. Categories are numbered
    from 0 on by ascending id. Images come by ascending id, those without boxes too. Images are stretched to
    data.resize, not letterboxed, so that boxes as fractions of the image stay correct. If the first image has three
    channels, grayscale images are repeated to three.

    The address is a path, which may contain {split}: it stands for train, val and test. A file without it is the test
    split. Without val, the last tenth of train is val.

    Raises:
        MissingSplitError: There is no file for the split.
        InputError: The file is not a COCO annotation file, or an image is missing, damaged or has another size.
    """
    path, images = _paths(address)
    stored_in = "train" if split == "val" and not _file_of(path, "val") else split
    file = _file_of(path, stored_in)
    if file is None:
        raise MissingSplitError(_no_split(address, path, split), field="split", got=split)
    annotations = read_annotations(file)
    root = _images_folder(file, images.replace(SPLIT_FIELD, stored_in), annotations.files)
    missing = [name for name in annotations.files if not os.path.isfile(root / name)]
    if missing:
        raise InputError(
            f"{shown(file)}: {len(missing):,} of {len(annotations.files):,} images are not in {shown(root)}, such as "
            f"{shown(missing[0])}. Name the folder of the images: {_EXPECTED}",
            field="data.source",
            expected=str(root / missing[0]),
            got=len(missing),
        )
    _check_memory(annotations, file, config)
    examples = _examples(annotations, root, file, config)
    return hold_out_val(examples, split, f"coco:{address}") if stored_in == "train" and _is_held_out(path) else examples


def _is_held_out(path: str) -> bool:
    return _file_of(path, "val") is None


def _paths(address: str) -> tuple[str, str]:
    """Return the path of the annotations and that of the images, "" if it is not named."""
    if not address:
        raise InputError(
            f"data.source=coco has no annotation file: expected {_EXPECTED}",
            field="data.source",
            expected=_EXPECTED,
            got="coco",
        )
    path, _, images = address.partition(".json:")
    path = f"{path}.json" if images else address
    return os.path.expanduser(path), os.path.expanduser(images)


def _file_of(path: str, split: str) -> Path | None:
    if SPLIT_FIELD not in path:
        return Path(path) if split == "test" else None
    file = path.replace(SPLIT_FIELD, split)
    return Path(file) if os.path.isfile(file) else None


def _no_split(address: str, path: str, split: str) -> str:
    if SPLIT_FIELD not in path:
        return (
            f"coco:{shown(address)} has no {split} split: a single annotation file is the test split. Write "
            f"{SPLIT_FIELD} where the names of several files differ: coco:instances_{SPLIT_FIELD}.json"
        )
    return f"coco:{shown(address)} has no {split} split: there is no {shown(path.replace(SPLIT_FIELD, split))}"


def _images_folder(file: Path, named: str, files: Sequence[str]) -> Path:
    """Return the named folder, or the first of the usual ones that has the first image."""
    if named:
        if not os.path.isdir(named):
            raise InputError(
                f"data.source: the folder of the images, {shown(named)}, does not exist. Expected {_EXPECTED}",
                field="data.source",
                expected="a folder",
                got=named,
            )
        return Path(named)
    stem = file.stem.removeprefix(_PREFIX)
    next_to = [file.parent / name for name in dict.fromkeys(("images", stem, file.stem))]
    usual = [*next_to, file.parent, file.parent.parent / stem, file.parent.parent / "images"]
    for folder in usual:
        if os.path.isfile(folder / files[0]):
            return folder
    raise InputError(
        f"{shown(file)}: the image {shown(files[0])} is in none of {', '.join(shown(folder) for folder in usual)}. "
        f"Name the folder of the images: {_EXPECTED}",
        field="data.source",
        expected=tuple(map(str, usual)),
        got=files[0],
    )


def _check_memory(annotations: Annotations, file: Path, config: DataConfig) -> None:
    size = len(annotations.files) * annotations.max_boxes * len(BOX_COLUMNS) * 8 // 1_000_000
    if size > config.max_memory_mb:
        raise InputError(
            f"{shown(file)}: one image has {annotations.max_boxes:,} boxes, so the labels of all "
            f"{len(annotations.files):,} images need {size:,} MB. Increase data.max_memory_mb, or split the file",
            field="data.max_memory_mb",
            expected=size,
            got=config.max_memory_mb,
        )


def read_annotations(path: str | os.PathLike[str]) -> Annotations:
    """Read and check a COCO annotation file for object detection.

    Args:
        path: A JSON file with "images" (id, file_name, height, width), "annotations" (image_id, category_id, bbox: x,
            y, width, height in pixels; optionally iscrowd and area) and "categories" (id, name).

    Raises:
        InputError: It cannot be read, lacks a field, or contains an invalid value; the message says in which entry.
    """
    file = Path(path)
    content = read_bytes(file, "a COCO annotation file", field="data.source")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _invalid(file, "", f"is not a JSON file: {error}", "JSON", type(error).__name__) from error
    tables = _tables(file, data)
    classes: dict[int, str] = {}
    for place, entry in enumerate(tables["categories"]):
        number, name = _integer(file, entry, f"categories[{place}]", "id"), entry.get("name", entry.get("id"))
        if number in classes:
            raise _invalid(file, f"categories[{place}].id", "occurs twice", "unique ids", number)
        if not isinstance(name, str | int):
            raise _invalid(file, f"categories[{place}].name", "is not a text", "a text", type(name).__name__)
        classes[number] = str(name)
    images = _images(file, tables["images"])
    order, class_ids = sorted(images), sorted(classes)
    class_of = {number: place for place, number in enumerate(class_ids)}
    boxes: dict[int, list[list[float]]] = {number: [] for number in order}
    num_without_area = 0
    for place, entry in enumerate(tables["annotations"]):
        image, row, has_area = _box(file, entry, f"annotations[{place}]", images, class_of)
        boxes[image].append(row)
        num_without_area += not has_area
    area_note = f"{file.name}: {num_without_area:,} annotations have no area: that of their box is used"
    return Annotations(
        files=tuple(images[number][0] for number in order),
        sizes=tuple(images[number][1:] for number in order),
        boxes=tuple(np.asarray(boxes[number], np.float64).reshape(-1, 7) for number in order),
        class_names=tuple(classes[number] for number in class_ids),
        information=(area_note,) if num_without_area else (),
    )


def _tables(file: Path, data: object) -> dict[str, list[dict[str, Any]]]:
    names = ("images", "annotations", "categories")
    if not isinstance(data, dict):
        raise _invalid(file, "", f"is a JSON {type(data).__name__}", f"an object with {', '.join(names)}", type(data))
    for name in names:
        table = data.get(name)
        if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
            raise _invalid(file, name, "is missing or not a list of objects", "a list of objects", type(table).__name__)
    for name in ("images", "categories"):
        if not data[name]:
            raise _invalid(file, name, "is empty", "at least one entry", 0)
    return {name: data[name] for name in names}


def _images(file: Path, table: list[dict[str, Any]]) -> dict[int, tuple[str, int, int]]:
    """Return {id: (file name, height, width)}."""
    images: dict[int, tuple[str, int, int]] = {}
    for place, entry in enumerate(table):
        where = f"images[{place}]"
        number, name = _integer(file, entry, where, "id"), entry.get("file_name")
        if number in images:
            raise _invalid(file, f"{where}.id", "occurs twice", "unique ids", number)
        # A path that leaves the folder of the images could read any file.
        if (
            not isinstance(name, str)
            or not name
            or "\0" in name
            or Path(name).is_absolute()
            or ".." in Path(name).parts
        ):
            raise _invalid(
                file, f"{where}.file_name", "is not a path in the folder of the images", "a relative path", name
            )
        height, width = (_integer(file, entry, where, side) for side in ("height", "width"))
        if height < 1 or width < 1:
            raise _invalid(file, where, "has an invalid size", "height and width >= 1", (height, width))
        images[number] = name, height, width
    return images


def _box(
    file: Path,
    entry: dict[str, Any],
    where: str,
    images: Mapping[int, tuple[str, int, int]],
    class_of: Mapping[int, int],
) -> tuple[int, list[float], bool]:
    """Return the image id of an annotation, its row, and whether it has an area."""
    image, category = _integer(file, entry, where, "image_id"), _integer(file, entry, where, "category_id")
    if image not in images:
        raise _invalid(file, f"{where}.image_id", "is the id of no image", "an id in images", image)
    if category not in class_of:
        raise _invalid(file, f"{where}.category_id", "is the id of no category", tuple(class_of)[:20], category)
    bbox, crowd, area = entry.get("bbox"), entry.get("iscrowd", 0), entry.get("area")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_finite, bbox)):
        raise _invalid(file, f"{where}.bbox", "is not a box", "[x, y, width, height]", bbox)
    if crowd not in (0, 1):
        raise _invalid(file, f"{where}.iscrowd", "is invalid", (0, 1), crowd)
    x, y, box_width, box_height = map(float, bbox)
    _, height, width = images[image]
    if box_width < 0 or box_height < 0:
        raise _invalid(file, f"{where}.bbox", "has a negative size", "[x, y, width, height]", bbox)
    if min(x, y) < -_MARGIN or x + box_width > width + _MARGIN or y + box_height > height + _MARGIN:
        raise _invalid(
            file,
            f"{where}.bbox",
            "is outside of its image. A bbox is x, y, width, height in pixels of the original image",
            f"within {width} x {height} pixels",
            bbox,
        )
    has_area = area is not None
    area = box_width * box_height if area is None else area
    if not _is_finite(area) or area < 0:
        raise _invalid(file, f"{where}.area", "is invalid", "a number >= 0", area)
    row = [y / height, x / width, (y + box_height) / height, (x + box_width) / width, float(crowd), float(area)]
    return image, [float(class_of[category]), *row], has_area


def _is_finite(value: object) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)
    )


def _integer(file: Path, entry: dict[str, Any], where: str, key: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**62:
        raise _invalid(file, f"{where}.{key}", "is missing or not a whole number", "a whole number", value)
    return value


def _invalid(file: Path, where: str, problem: str, expected: object, got: object) -> InputError:
    value = shown(str(got)[:200])
    place = f"{shown(file)}: {where}" if where else shown(file)
    return InputError(
        f"{place} {problem}: got {value}, expected {expected}. Fix the annotation file",
        field=where or "data.source",
        expected=expected,
        got=got,
    )


def _examples(annotations: Annotations, root: Path, file: Path, config: DataConfig) -> Examples:
    size = resize_of(config)
    channels = _decoded(root / annotations.files[0], annotations.sizes[0], file, None).shape[-1]

    def read(start: int, stop: int) -> Iterator[Piece]:
        buffer: list[NDArray] = []
        for index in range(start, stop):
            image = _decoded(root / annotations.files[index], annotations.sizes[index], file, channels)[None]
            image = image if size is None else resize_bilinear(image, size)
            if buffer and image.shape != buffer[0].shape:
                raise InputError(
                    f"{shown(root / annotations.files[index])} has shape {image.shape[1:]}, expected "
                    f"{buffer[0].shape[1:]} as in the images before it. Set data.resize=height,width",
                    field="data.resize",
                    expected=buffer[0].shape[1:],
                    got=image.shape[1:],
                    limit="image-sizes",
                )
            buffer.append(image)
            if len(buffer) >= examples_per_piece(image.nbytes):
                yield _piece(annotations, buffer, index + 1)
                buffer = []
        if buffer:
            yield _piece(annotations, buffer, stop)

    return Examples(
        num_examples=len(annotations.files),
        read=read,
        information=annotations.information,
        class_names=annotations.class_names,
    )


def _piece(annotations: Annotations, images: list[NDArray], stop: int) -> Piece:
    chosen = slice(stop - len(images), stop)
    labels = pad_boxes(annotations.boxes[chosen], annotations.max_boxes, annotations.sizes[chosen])
    return Piece(inputs={UNNAMED: np.concatenate(images)}, labels=labels)


def _decoded(path: Path, size: tuple[int, int], file: Path, channels: int | None) -> NDArray[np.uint8]:
    """Return an image as uint8 (height, width, channels); a grayscale image repeated to three channels if need be."""
    tf = import_tensorflow()
    try:
        content = read_bytes(path, "a JPEG or PNG file", field="data.source")
        image: NDArray[np.uint8] = decode_image(tf.constant(content)).numpy()
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        raise InputError(
            f"{shown(path)} cannot be read as JPEG or PNG. Replace it, or remove it from {shown(file)}",
            field="data.source",
            expected=("JPEG", "PNG"),
            got=str(path),
        ) from error
    if image.shape[:2] != size:
        raise InputError(
            f"{shown(path)} has {image.shape[0]} x {image.shape[1]} pixels (height x width), but {shown(file)} says "
            f"{size[0]} x {size[1]}, so its boxes would be wrong. Use the images that the file was made for",
            field="data.source",
            expected=size,
            got=image.shape[:2],
        )
    if channels == 3 and image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    if channels not in (None, image.shape[2]):
        raise InputError(
            f"{shown(path)} has {image.shape[2]} channels, expected {channels} as in the first image. Convert all "
            "images to color or all to grayscale",
            field="data.source",
            expected=channels,
            got=image.shape[2],
            limit="image-sizes",
        )
    return image


def _fingerprint(address: str, config: DataConfig) -> object:
    path, images = _paths(address)
    entries = []
    for split in _SPLITS:
        file = _file_of(path, split)
        if file is not None:
            files = read_annotations(file).files
            root = _images_folder(file, images.replace(SPLIT_FIELD, split), files)
            paths = [root / name for name in files]
            entries += [split, *file_fingerprint([file], file.parent), *file_fingerprint(paths, root)]
    return entries


def _check(address: str, split: str) -> None:
    path, _ = _paths(address)
    if SPLIT_FIELD in path:
        if not any(_file_of(path, name) for name in _SPLITS):
            raise InputError(
                f"data.source=coco:{shown(address)}: there is no file {shown(path)} for train, val or test",
                field="data.source",
                expected=_EXPECTED,
                got=f"coco:{address}",
            )
    else:
        read_bytes(Path(path), "a COCO annotation file", field="data.source")


register(
    DataSource(
        name="coco",
        help="images with labeled boxes, from a COCO annotation file; {split} in its name is train, val or test",
        address="ANNOTATIONS.json",
        read=read_coco,
        fingerprint=_fingerprint,
        looks_like=r"\.json$",
        check=_check,
    )
)

# SPDX-License-Identifier: Apache-2.0
"""Generated scenes for object detection: handwritten digits and small photos on canvases, with exact boxes.

It uses NumPy, scikit-learn and Pillow, and nothing of tfq, so that it can be an oracle's input too.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


@dataclass(frozen=True)
class Scene:
    """A canvas (height, width, channels) and its objects: boxes (k, 4) as x, y, width, height in pixels."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray


@dataclass(frozen=True)
class Patch:
    """An object to place on a canvas: values 0..255 (height, width, 1 or 3), its class, and its opacity 0..1."""

    pixels: np.ndarray
    label: int
    opacity: np.ndarray


def digit_patches(part: slice = slice(None)) -> list[Patch]:
    """Return scikit-learn's digits, classes 0 to 9, cut to their ink."""
    results = []
    for image, label in zip(*(array[part] for array in load_digits(return_X_y=True)), strict=True):
        ink = image.reshape(8, 8) / 16
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        results.append(Patch(np.full((*ink.shape, 1), 255.0), int(label), ink[..., None]))
    return results


def photo_patches(images: np.ndarray, labels: np.ndarray, first_class: int = 10) -> list[Patch]:
    """Return photos (n, height, width, 3) as opaque patches, their classes after those of the digits."""
    opaque = np.ones((*images.shape[1:3], 1))
    return [
        Patch(image.astype(float), first_class + int(label), opaque)
        for image, label in zip(images, labels, strict=True)
    ]


def resized(array: np.ndarray, height: int, width: int) -> np.ndarray:
    channels = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(array, -1, 0)]
    return np.stack([np.asarray(plane.resize((width, height), Image.BILINEAR)) for plane in channels], axis=-1)


def make_scene(
    rng: np.random.Generator,
    patches: list[Patch],
    size: tuple[int, int],
    num_objects: int,
    sides: tuple[int, int],
    *,
    channels: int = 3,
    most_overlap: float = 0.3,
    crowd_fraction: float = 0.0,
) -> Scene:
    """Draw up to `num_objects` patches of a height in `sides` on a noisy canvas.

    A patch that would cover more than `most_overlap` of another box is left out. A crowd is a box around six small
    patches of one class, without boxes.
    """
    height, width = size
    canvas = rng.uniform(0, 70, channels) + rng.normal(0, 10, (height, width, channels))
    boxes, classes, crowds, areas = [], [], [], []
    for _ in range(num_objects):
        patch = patches[rng.integers(len(patches))]
        h = int(min(rng.integers(sides[0], sides[1] + 1), height))
        w = int(np.clip(round(h * patch.pixels.shape[1] / patch.pixels.shape[0]), 3, width))
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        if any(_overlap((x, y, w, h), box) > most_overlap for box in boxes):
            continue
        is_crowd = rng.random() < crowd_fraction
        places = [(x, y, w, h)]
        if is_crowd:
            places = [
                (x + i * w // 3, y + j * h // 2, max(1, w // 3), max(1, h // 2)) for i in range(3) for j in (0, 1)
            ]
        for left, top, wide, high in places:
            area = canvas[top : top + high, left : left + wide]
            opacity = resized(patch.opacity, *area.shape[:2])
            area[:] = area * (1 - opacity) + resized(patch.pixels, *area.shape[:2]) * opacity
        boxes.append((x, y, w, h))
        classes.append(patch.label)
        crowds.append(is_crowd)
        areas.append(float(np.round(resized(patch.opacity, h, w).sum(), 2)))
    return Scene(
        np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        np.asarray(boxes, float).reshape(-1, 4),
        np.asarray(classes, int),
        np.asarray(crowds, bool),
        np.asarray(areas, float),
    )


def _overlap(box, other) -> float:
    """Return the intersection divided by the smaller area."""
    across = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    down = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(across, 0) * max(down, 0) / min(box[2] * box[3], other[2] * other[3])


def varied_scenes(count: int, patches: list[Patch], seed: int = 0) -> list[Scene]:
    """Return scenes of 48 to 420 pixels: a tenth is empty, a fifth crowded, with boxes of all of COCO's area ranges."""
    rng, scenes = np.random.default_rng(seed), []
    for index in range(count):
        size = tuple(int(side) for side in rng.integers(48, 421, 2))
        num_objects = 0 if index % 10 == 3 else 40 if index % 5 == 1 else int(rng.integers(1, 9))
        sides = (8, min(size) // (4 if num_objects == 40 else 1))
        scenes.append(make_scene(rng, patches, size, num_objects, sides, crowd_fraction=0.1, most_overlap=0.6))
    return scenes


def category_id(number: int) -> int:
    """Return ids with gaps, as in COCO."""
    return 2 * number + 5


def write_coco(scenes: list[Scene], directory: Path, name: str = "scenes") -> Path:
    """Write directory/NAME.json and PNG files in directory/NAME/."""
    (directory / name).mkdir(parents=True)
    images, annotations = [], []
    for index, scene in enumerate(scenes):
        file, identity = f"{index:05d}.png", 100 + 3 * index
        picture = scene.image[..., 0] if scene.image.shape[2] == 1 else scene.image
        Image.fromarray(picture).save(directory / name / file)
        height, width = scene.image.shape[:2]
        images.append({"id": identity, "file_name": file, "height": height, "width": width})
        for box, label, is_crowd, area in zip(scene.boxes, scene.classes, scene.is_crowd, scene.areas, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": identity, "category_id": category_id(int(label))}
            annotations.append({**entry, "bbox": box.tolist(), "area": area, "iscrowd": int(is_crowd)})
    numbers = range(1 + max((int(scene.classes.max(initial=0)) for scene in scenes), default=0))
    categories = [{"id": category_id(number), "name": f"class {number}"} for number in numbers]
    path = directory / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def simulated_detections(scenes: list[Scene], seed: int = 0) -> list[list[tuple[int, list[float], float]]]:
    """Return for each scene (class, [x, y, width, height] in pixels, score) of an imagined detector.

    It shifts boxes, finds some twice, confuses classes, misses some and adds false ones; scores have ties, as int8
    outputs have.
    """
    rng, results = np.random.default_rng(seed), []
    num_classes = 1 + max(int(scene.classes.max(initial=0)) for scene in scenes)
    for scene in scenes:
        height, width = scene.image.shape[:2]
        rows = []
        for box, label in zip(scene.boxes, scene.classes, strict=True):
            for _ in range(rng.choice(4, p=[0.15, 0.6, 0.2, 0.05])):
                shift = rng.normal(0, rng.choice([0, 0.03, 0.15]), 4) * [box[2], box[3], box[2], box[3]]
                x, y, w, h = box + (shift if rng.random() < 0.7 else np.round(shift))
                number = int(label) if rng.random() < 0.85 else int(rng.integers(num_classes))
                rows.append((number, [float(x), float(y), max(1.0, float(w)), max(1.0, float(h))], rng.beta(4, 2)))
        for _ in range(rng.integers(0, 6)):
            w, h = rng.uniform(4, width), rng.uniform(4, height)
            box = [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]
            rows.append((int(rng.integers(num_classes)), [float(v) for v in box], rng.beta(2, 4)))
        results.append([(number, box, float(np.round(score * 64) / 64)) for number, box, score in rows])
    return results

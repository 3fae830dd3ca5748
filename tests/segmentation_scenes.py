# SPDX-License-Identifier: Apache-2.0
"""Canvases with handwritten digits and the digit of each pixel, as a folder of images and masks."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

SIDE, SCALE = 32, 2
BACKGROUND, UNLABELED = 0, 255
NAMES = ("background", *map(str, range(10)))
# scikit-learn's digits have values 0 to 16. Between these two, a pixel is the border of a digit, and has no label.
_DARK, _BRIGHT = 4, 9


def scenes(count: int, seed: int, digits: slice) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return canvases (count, 32, 32, 1), and masks (count, 32, 32): 0, digit + 1, or 255 at the borders of digits.

    Args:
        count: The number of canvases, with one or two digits each.
        seed: The seed of positions, digits and noise.
        digits: Which of scikit-learn's 1,797 digits are used, so that splits have different ones.
    """
    rng = np.random.default_rng(seed)
    data = load_digits()
    pictures, kinds = data.images[digits], data.target[digits]
    values = np.zeros((count, SIDE, SIDE))
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    for canvas, mask in zip(values, masks, strict=True):
        for row in rng.permutation([0, 1])[: rng.integers(1, 3)]:
            index = rng.integers(len(pictures))
            picture = np.asarray(Image.fromarray(pictures[index].astype(np.float32)).resize((16, 16)))
            top, left = row * 16, rng.integers(0, SIDE - 15)
            canvas[top : top + 16, left : left + 16] = picture
            part = mask[top : top + 16, left : left + 16]
            part[picture > _DARK] = UNLABELED
            part[picture > _BRIGHT] = kinds[index] + 1
    values = values * 13 + rng.normal(12, 8, values.shape)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)[..., None], masks


def write(root: Path, counts: dict[str, int]) -> None:
    """Write splits, such as {"train": 2000, "test": 500}, as the source `masks` reads them.

    Train uses the first 1,200 digits, val the next 200, test the last 397. Masks have a palette, as in Pascal VOC.
    """
    parts = {"train": slice(0, 1200), "val": slice(1200, 1400), "test": slice(1400, None)}
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    for seed, (split, count) in enumerate(counts.items()):
        folders = [root / split / name for name in ("images", "masks")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for index, (image, mask) in enumerate(zip(*scenes(count, seed, parts[split]), strict=True)):
            Image.fromarray(image[..., 0]).save(folders[0] / f"{index:05}.png")
            numbers = Image.fromarray(mask)
            numbers.putpalette(palette.ravel().tolist())
            numbers.save(folders[1] / f"{index:05}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")

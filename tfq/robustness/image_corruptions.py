# SPDX-License-Identifier: Apache-2.0
"""Corruptions of images with published parameters: noise, blur, weather and digital artifacts.

Source: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(ImageNet-C and CIFAR-10-C), with the definitions of the package imagecorruptions, whose motion blur needs no
ImageMagick. As published, an image is rounded to 8 bits first, and the result is truncated to 8 bits.
"""

import functools
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.registry import register
from tfq.robustness.corruption import Corruption, Draws, Limits

PUBLISHED = "Hendrycks and Dietterich 2019"
OWN = "steps of tfq"
Pixels = NDArray[np.uint8]
# (8-bit image, parameter, draws) -> values from 0 to 255, not clipped.
OnPixels = Callable[[Pixels, Any, Draws], NDArray[Any]]


def to_pixels(values: NDArray[Any], limits: Limits) -> Pixels:
    """Return values in the model's units as 8-bit pixels: `limits` become 0 and 255, other values are rounded."""
    low, high = limits
    scaled = (np.asarray(values, np.float64) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def from_pixels(pixels: NDArray[Any], limits: Limits) -> NDArray[np.float32]:
    """Return pixels (0 to 255) in the model's units."""
    low, high = limits
    return (np.asarray(pixels, np.float64) * ((high - low) / 255) + low).astype(np.float32)


def on_pixels(function: OnPixels) -> Callable[..., NDArray[np.float32]]:
    """Return a corruption of 8-bit images as one of inputs in the model's units."""

    def apply(image: NDArray[np.float32], parameter: Any, draws: Draws, limits: Limits) -> NDArray[np.float32]:
        changed = np.clip(function(to_pixels(image, limits), parameter, draws), 0, 255).astype(np.uint8)
        return from_pixels(changed, limits)

    return apply


# noise


def gaussian_noise(image: Pixels, scale: float, draws: Draws) -> NDArray[Any]:
    """Add normal noise to each value; `scale` is its standard deviation as a fraction of the range."""
    return 255 * np.clip(image / 255 + draws.normal(size=image.shape, scale=scale), 0, 1)


def shot_noise(image: Pixels, photons: float, draws: Draws) -> NDArray[Any]:
    """Replace each value by a Poisson count; `photons` is the mean count of white."""
    return 255 * np.clip(draws.poisson(image / 255 * photons) / photons, 0, 1)


def impulse_noise(image: Pixels, fraction: float, draws: Draws) -> NDArray[Any]:
    """Set a fraction of the values to black or white, with equal probability."""
    is_changed = draws.random(image.shape) <= fraction
    is_white = draws.random(image.shape) <= 0.5
    return np.where(is_changed, np.where(is_white, 255, 0), image)


# blur


def _reflected(image: NDArray[Any], radius: tuple[int, int]) -> NDArray[Any]:
    """Pad height and width with mirrored pixels, without repeating the edge."""
    return np.pad(image, ((radius[0],) * 2, (radius[1],) * 2, (0, 0)), mode="reflect")


def _correlate(image: NDArray[Any], kernel: NDArray[np.float64]) -> NDArray[Any]:
    """Return the correlation of each channel with a kernel of odd sides; borders are mirrored."""
    rows, columns = kernel.shape
    padded = _reflected(image, (rows // 2, columns // 2))
    height, width = image.shape[:2]
    result = np.zeros(image.shape, np.float64)
    for row, column in zip(*np.nonzero(kernel), strict=True):
        result += kernel[row, column] * padded[row : row + height, column : column + width]
    return result


def _gaussian_weights(radius: int, sigma: float) -> NDArray[np.float64]:
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum())


@functools.cache
def _disk(radius: float, alias_blur: float) -> NDArray[np.float64]:
    """Return the kernel of a defocused lens: a disk whose edge is smoothed."""
    half = 8 if radius <= 8 else math.ceil(radius)
    smoothing = 1 if radius <= 8 else 2
    grid = np.arange(-half, half + 1)
    disk = (grid[:, None] ** 2 + grid[None, :] ** 2 <= radius**2).astype(np.float64)
    disk = (disk / disk.sum())[:, :, None]
    weights = _gaussian_weights(smoothing, alias_blur)
    return np.asarray(_correlate(disk, weights[:, None] * weights[None, :])[:, :, 0])


def defocus_blur(image: Pixels, parameter: tuple[float, float], draws: Draws) -> NDArray[Any]:
    """Blur with a disk; the parameter is (radius in pixels, smoothing of its edge in pixels)."""
    return 255 * np.clip(_correlate(image / 255, _disk(*parameter)), 0, 1)


def _shifted(image: NDArray[Any], right: int, down: int) -> NDArray[Any]:
    """Move the content by whole pixels; the edge is repeated."""
    rows = np.clip(np.arange(image.shape[0]) - down, 0, image.shape[0] - 1)
    columns = np.clip(np.arange(image.shape[1]) - right, 0, image.shape[1] - 1)
    return image[rows[:, None], columns]


def motion_blur(image: Pixels, parameter: tuple[int, float], draws: Draws) -> NDArray[Any]:
    """Blur along a line; the parameter is (radius in pixels, standard deviation of the decay), the angle is random."""
    radius, sigma = parameter
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = math.radians(draws.uniform(-45, 45))
    result = np.zeros(image.shape, np.float64)
    for step in range(width):
        down, right = (-math.ceil(step * part - 0.5) for part in (math.sin(angle), math.cos(angle)))
        if abs(down) >= image.shape[0] or abs(right) >= image.shape[1]:
            break  # as published: the rest of the weights is lost, which darkens images smaller than the motion
        result += weights[step] * _shifted(image, right, down)
    return result


def gaussian_blur(image: Pixels, sigma: float, draws: Draws) -> NDArray[Any]:
    """Blur with a normal kernel, cut off after 4 standard deviations; the edge is repeated."""
    radius = int(4 * sigma + 0.5)
    weights = _gaussian_weights(radius, sigma)
    result = image / 255
    for axis, size in enumerate(image.shape[:2]):
        padded = np.pad(result, [(radius, radius) if at == axis else (0, 0) for at in range(3)], mode="edge")
        parts = (np.take(padded, range(step, step + size), axis) * weight for step, weight in enumerate(weights))
        result = sum(parts, start=np.zeros_like(result))
    return 255 * np.clip(result, 0, 1)


# weather and light


def _plasma(size: int, decay: float, draws: Draws) -> NDArray[np.float64]:
    """Return a random height map (size, size) from 0 to 1 by the diamond-square algorithm; `size` is a power of 2."""
    heights = np.zeros((size, size))
    step, wobble = size, 100.0

    def mean_of(total: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(total / 4 + wobble * draws.uniform(-wobble, wobble, total.shape))

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        sums = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = mean_of(sums + np.roll(sums, -1, axis=1))
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        above = corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = mean_of(middles + np.roll(middles, 1, axis=0) + above)
        left_sums = corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = mean_of(middles + np.roll(middles, 1, axis=1) + left_sums)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return np.asarray(heights / heights.max())


def fog(image: Pixels, parameter: tuple[float, float], draws: Draws) -> NDArray[Any]:
    """Add a random cloud; the parameter is (its brightness, how much smoother each finer detail is)."""
    amount, decay = parameter
    height, width = image.shape[:2]
    values = image / 255
    brightest = values.max()
    cloud = _plasma(1 << (max(height, width) - 1).bit_length(), decay, draws)[:height, :width, None]
    return 255 * np.clip((values + amount * cloud) * brightest / (brightest + amount), 0, 1)


def brightness(image: Pixels, amount: float, draws: Draws) -> NDArray[Any]:
    """Increase V of HSV by a fraction of the range; hue and saturation stay."""
    values = image / 255
    old = values.max(axis=2, keepdims=True)
    new = np.clip(old + amount, 0, 1)
    return 255 * np.where(old > 0, values * (new / np.where(old > 0, old, 1)), new)


def contrast(image: Pixels, factor: float, draws: Draws) -> NDArray[Any]:
    """Multiply the distance from the mean of each channel by a factor."""
    values = image / 255
    means = values.mean(axis=(0, 1), keepdims=True)
    return 255 * np.clip((values - means) * factor + means, 0, 1)


# digital


def _pillow(image: Pixels) -> Any:
    from PIL import Image

    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _from_pillow(picture: Any, image: Pixels) -> NDArray[Any]:
    return np.asarray(picture, np.uint8).reshape(image.shape)


def jpeg_compression(image: Pixels, quality: int, draws: Draws) -> NDArray[Any]:
    """Encode and decode as JPEG of a quality from 1 to 95, with Pillow."""
    from PIL import Image

    file = io.BytesIO()
    _pillow(image).convert("RGB").save(file, "JPEG", quality=quality)
    return _from_pillow(Image.open(file).convert("L" if image.shape[2] == 1 else "RGB"), image)


def pixelate(image: Pixels, fraction: float, draws: Draws) -> NDArray[Any]:
    """Reduce to a fraction of the size by averaging, and enlarge again by repeating pixels, with Pillow."""
    from PIL import Image

    height, width = image.shape[:2]
    small = _pillow(image).resize((max(1, int(width * fraction)), max(1, int(height * fraction))), Image.Resampling.BOX)
    return _from_pillow(small.resize((width, height), Image.Resampling.NEAREST), image)


# geometry


def sampled(image: NDArray[Any], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values at fractional positions, interpolated bilinearly; the edge is repeated.

    Args:
        image: (height, width, channels).
        rows: (height, width) or broadcastable: the row of each result, in pixels from the center of the first.
        columns: The same for columns.
    """
    rows, columns = np.broadcast_arrays(rows, columns)
    rows = np.clip(rows, 0, image.shape[0] - 1)
    columns = np.clip(columns, 0, image.shape[1] - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    down, across = (rows - top)[:, :, None], (columns - left)[:, :, None]
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return np.asarray(upper * (1 - down) + lower * down)


def translation(image: Pixels, fraction: float, draws: Draws) -> NDArray[Any]:
    """Move the content by a fraction of the longer side in a random direction; the edge is repeated."""
    angle = draws.uniform(0, 2 * math.pi)
    distance = fraction * max(image.shape[:2])
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    return sampled(image, rows - distance * math.sin(angle), columns - distance * math.cos(angle))


def rotation(image: Pixels, degrees: float, draws: Draws) -> NDArray[Any]:
    """Rotate around the center, in a random direction; the edge is repeated."""
    angle = math.radians(degrees) * (1 if draws.random() < 0.5 else -1)
    centers = [(size - 1) / 2 for size in image.shape[:2]]
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    down, right = rows - centers[0], columns - centers[1]
    return sampled(
        image,
        centers[0] + down * math.cos(angle) - right * math.sin(angle),
        centers[1] + down * math.sin(angle) + right * math.cos(angle),
    )


def _register(
    function: OnPixels,
    help: str,
    unit: str,
    imagenet_c: tuple[Any, ...] = (),
    cifar10_c: tuple[Any, ...] = (),
    *,
    own: tuple[Any, ...] = (),
    needs: tuple[str, str] | tuple[()] = (),
) -> Corruption:
    """Register an image corruption with its published parameters, or with tfq's `own`."""
    return register(
        Corruption(
            name=function.__name__,
            help=help,
            kind="image",
            apply=on_pixels(function),
            parameters={"": own} if own else {"imagenet_c": imagenet_c, "cifar10_c": cifar10_c},
            unit=unit,
            source=OWN if own else PUBLISHED,
            needs=needs,
        )
    )


_PILLOW = ("PIL", "images")
_register(
    gaussian_noise,
    "normal noise, as in dim light",
    "standard deviation, of the range",
    (0.08, 0.12, 0.18, 0.26, 0.38),
    (0.04, 0.06, 0.08, 0.09, 0.10),
)
_register(shot_noise, "Poisson noise of few photons", "photons of white", (60, 25, 12, 5, 3), (500, 250, 100, 75, 50))
_register(
    impulse_noise,
    "black and white values, as of bit errors",
    "fraction of the values",
    (0.03, 0.06, 0.09, 0.17, 0.27),
    (0.01, 0.02, 0.03, 0.05, 0.07),
)
_register(
    defocus_blur,
    "an image out of focus",
    "radius and smoothing, pixels",
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
)
_register(
    motion_blur,
    "a camera that moves, in a random direction",
    "radius and decay, pixels",
    ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
)
_register(gaussian_blur, "a smooth blur", "standard deviation, pixels", (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1))
_register(
    fog,
    "a random cloud in front of the scene",
    "brightness and decay",
    ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
)
_register(brightness, "more light", "added, of the range", (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3))
_register(contrast, "less contrast", "factor", (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15))
_register(jpeg_compression, "artifacts of JPEG", "quality", (25, 18, 15, 10, 7), (80, 65, 58, 50, 40), needs=_PILLOW)
_register(
    pixelate,
    "a lower resolution, enlarged again",
    "fraction of the size",
    (0.6, 0.5, 0.4, 0.3, 0.25),
    (0.95, 0.9, 0.85, 0.75, 0.65),
    needs=_PILLOW,
)
_register(
    translation,
    "the object elsewhere, in a random direction",
    "of the longer side",
    own=(0.03, 0.06, 0.1, 0.15, 0.2),
)
_register(rotation, "the camera tilted, to a random side", "degrees", own=(5, 10, 15, 20, 30))

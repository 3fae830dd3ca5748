# SPDX-License-Identifier: Apache-2.0
"""Mistakes of an app that feeds a model of images: each shows what the failure looks like in the field."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.registry import register
from tfq.robustness.corruption import Corruption, Draws, Limits
from tfq.robustness.image_corruptions import from_pixels, sampled, to_pixels

SOURCE = "mistakes in apps"
Image = NDArray[np.float32]
Shape = tuple[int, ...]
# How far a range may be from another one to count as the same, as a fraction of its width.
_SAME_RANGE = 0.05


def reversed_channels(image: Image, parameter: Any, draws: Draws, limits: Limits) -> Image:
    """Return BGR for RGB."""
    return image[:, :, ::-1]


def planar(image: Image, parameter: Any, draws: Draws, limits: Limits) -> Image:
    """Return the values in the order (channels, height, width), read as (height, width, channels)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)).reshape(image.shape)


def other_range(image: Image, parameter: Limits, draws: Draws, limits: Limits) -> Image:
    """Return the image scaled to another range, in the units that the model reads it in; the parameter is the range."""
    low, high = limits
    start, stop = parameter
    return (start + (image - low) * ((stop - start) / (high - low))).astype(np.float32)


def unsigned_bytes(image: Image, parameter: Any, draws: Draws, limits: Limits) -> Image:
    """Return what an int8 input reads if the app copies the bytes of uint8 pixels: 128 is subtracted from none."""
    return from_pixels((to_pixels(image, limits).astype(int) + 128) % 256, limits)


def half_pixel(image: Image, parameter: Any, draws: Draws, limits: Limits) -> Image:
    """Return a resize without half-pixel centers from a much larger picture: it samples half a pixel too early."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    return sampled(image, rows - 0.5, columns - 0.5).astype(np.float32)


def align_corners(image: Image, parameter: Any, draws: Draws, limits: Limits) -> Image:
    """Return a resize with aligned corners from a much larger picture: stretched by n / (n - 1)."""
    rows, columns = (np.arange(size) * (size / max(1, size - 1)) - 0.5 for size in image.shape[:2])
    return sampled(image, rows[:, None], columns[None, :]).astype(np.float32)


def nearest_neighbor(image: Image, parameter: float, draws: Draws, limits: Limits) -> Image:
    """Return the image enlarged bilinearly to the size of a camera frame and reduced again by nearest neighbor."""
    positions = []
    for size in image.shape[:2]:
        frame = max(1, round(size * parameter))
        nearest = np.floor((np.arange(size) + 0.5) * frame / size)
        positions.append((nearest + 0.5) * size / frame - 0.5)
    return sampled(image, positions[0][:, None], positions[1][None, :]).astype(np.float32)


def rotated(image: Image, parameter: Any, draws: Draws, limits: Limits) -> Image:
    """Return the image rotated by 90 degrees, as a sensor delivers it."""
    return np.rot90(image).copy()


def mirrored(image: Image, parameter: Any, draws: Draws, limits: Limits) -> Image:
    """Return the image mirrored, as a front camera shows it."""
    return image[:, ::-1]


def _needs_color(shape: Shape, limits: Limits) -> str | None:
    return None if shape[-1] == 3 else "the images have one channel"


def _needs_square(shape: Shape, limits: Limits) -> str | None:
    return None if shape[0] == shape[1] else "the images are not square"


def _needs_other_range(low: float, high: float) -> Callable[[Shape, Limits], str | None]:
    def refuses(shape: Shape, limits: Limits) -> str | None:
        close = _SAME_RANGE * (high - low)
        is_same = abs(limits[0] - low) <= close and abs(limits[1] - high) <= close
        return f"the model's input has this range, {low:g} to {high:g}" if is_same else None

    return refuses


def _register(
    name: str,
    apply: Any,
    help: str,
    *,
    parameter: Any = None,
    refuses: Callable[[Shape, Limits], str | None] = lambda shape, limits: None,
) -> None:
    register(
        Corruption(
            name=name,
            help=help,
            kind="image",
            apply=apply,
            parameters={"": (parameter,)},
            source=SOURCE,
            is_mistake=True,
            refuses=refuses,
        )
    )


_register("bgr", reversed_channels, "the app feeds BGR instead of RGB", refuses=_needs_color)
_register("channels_first", planar, "the app feeds planes (channels, height, width)", refuses=_needs_color)
_register(
    "range_0_1",
    other_range,
    "the app scales pixels to 0..1, which is not the model's range",
    parameter=(0.0, 1.0),
    refuses=_needs_other_range(0, 1),
)
_register(
    "range_-1_1",
    other_range,
    "the app scales pixels to -1..1, which is not the model's range",
    parameter=(-1.0, 1.0),
    refuses=_needs_other_range(-1, 1),
)
_register(
    "range_0_255",
    other_range,
    "the app feeds pixels 0..255, which is not the model's range",
    parameter=(0.0, 255.0),
    refuses=_needs_other_range(0, 255),
)
_register("unsigned_bytes", unsigned_bytes, "the app copies uint8 pixels into an int8 input without subtracting 128")
_register("half_pixel", half_pixel, "the app resizes without half-pixel centers (half_pixel_centers=False)")
_register("align_corners", align_corners, "the app resizes with align_corners=True")
_register(
    "nearest_neighbor",
    nearest_neighbor,
    "the app resizes by nearest neighbor from a camera frame 1.5 times as large",
    parameter=1.5,
)
_register("rotated_90", rotated, "the app ignores the orientation of the sensor", refuses=_needs_square)
_register("mirrored", mirrored, "the app feeds the mirrored preview of a front camera")

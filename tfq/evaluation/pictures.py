# SPDX-License-Identifier: Apache-2.0
"""Small PNG pictures for records and pages: inputs of a model, maps of classes, boxes, and maps of importance.

A picture of several parts is one PNG file, its parts from left to right with white gaps.
"""

import base64
import colorsys
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

# The longer side of a thumbnail, in pixels.
MAX_SIDE = 48
MIN_SIDE = 4
# White pixels between the parts of a picture.
GAP = 4
WHITE = 255
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2}  # channels -> PNG's color type: gray, RGB
# Ranges of preprocessed images, the narrowest first.
_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
# Class 0 is the background in most data sets.
_FIRST_CLASS: Color = (38, 38, 38)
# The brightness and saturation of the colors of successive rounds through the hues.
_ROUNDS = ((0.95, 0.85), (0.65, 1.0), (1.0, 0.45), (0.45, 0.7))
_HUES = 7


def why_no_picture(shape: tuple[int, ...]) -> str | None:
    """Return why an input of this shape, without the batch dimension, is not an image; None if it is one."""
    if len(shape) == 3 and shape[-1] in _COLOR_TYPES and min(shape[:2]) >= MIN_SIDE:
        return None
    return f"the input of shape {shape} is not an image: expected (height, width, 1 or 3)"


def thumbnails(images: NDArray) -> list[str]:
    """Return images as PNG files in base64, with a longer side of at most `MAX_SIDE` pixels.

    Args:
        images: (n, height, width, channels) preprocessed values, 1 or 3 channels. All are drawn with the same range of
            values; see `brightness`.
    """
    factor = -(-max(images.shape[1:3]) // MAX_SIDE)
    return [encoded(np.rint(_block_means(image, factor)).astype(np.uint8)) for image in brightness(images)]


def brightness(values: NDArray) -> NDArray[np.float64]:
    """Return finite values as brightness from 0 to 255.

    The darkest and the brightest value are the limits of the narrowest of [0, 1], [-1, 1] and [0, 255] that holds all
    values. If none does, or they use less than a quarter of it, they are the minimum and the maximum.
    """
    values = np.asarray(values, np.float64)
    low, high = float(values.min()), float(values.max())
    low, high = next((pair for pair in _RANGES if _fits(low, high, *pair)), (low, high))
    return np.asarray(np.clip((values - low) / ((high - low) or 1) * 255, 0, 255))


def _fits(low: float, high: float, start: float, stop: float) -> bool:
    """Check whether a range holds all values, and they use at least a quarter of it, so that they differ visibly."""
    return start <= low and high <= stop and high - low >= (stop - start) / 4


def _block_means(image: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Return an image (height, width, channels) reduced by an integer factor, each pixel the mean of a block."""
    height, width = (max(factor, size // factor * factor) for size in image.shape[:2])
    padded = np.pad(image, ((0, max(0, height - len(image))), (0, max(0, width - image.shape[1])), (0, 0)), "edge")
    blocks = padded[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return np.asarray(blocks.mean(axis=(1, 3)))


def fitted(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Return the height and width, >= 1, of an image of this shape whose longer side has `side` pixels."""
    height, width = (max(1, round(size * side / max(shape[:2]))) for size in shape[:2])
    return height, width


def nearest(values: NDArray, height: int, width: int) -> NDArray:
    """Return values (rows, columns, ...) in another size, each the nearest value."""
    rows, columns = (
        ((np.arange(size) + 0.5) * have / size).astype(int)
        for size, have in zip((height, width), values.shape[:2], strict=True)
    )
    return values[np.ix_(rows, columns)]


def any_nearest(flags: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Return flags (rows, columns) in another size. A pixel is set if any flag of its area is, so that none gets lost.

    It is `nearest` along an axis that does not get shorter.
    """
    results = flags
    for axis, size in enumerate((height, width)):
        have = results.shape[axis]
        if size < have:
            results = np.logical_or.reduceat(results, np.arange(size) * have // size, axis=axis)
    return np.asarray(nearest(results, height, width))


def rgb(values: NDArray, height: int, width: int) -> Pixels:
    """Return an image, (rows, columns, 1 or 3) of brightness 0 to 255, as (height, width, 3) pixels.

    An image that is at least twice as large is reduced to means of blocks first; then each pixel is the nearest value.
    """
    factor = max(1, max(values.shape[:2]) // max(height, width))
    pixels = nearest(np.rint(_block_means(values, factor)).astype(np.uint8), height, width)
    return np.array(np.broadcast_to(pixels, (height, width, 3)))


def side_by_side(parts: Sequence[Pixels]) -> Pixels:
    """Return parts (height, width, 3) of one height in a row, with white gaps."""
    gap = np.full((parts[0].shape[0], GAP, 3), WHITE, np.uint8)
    return np.concatenate([item for part in parts for item in (gap, part)][1:], axis=1)


def class_color(number: int) -> Color:
    """Return the color (red, green, blue) of a class: dark gray for 0, then seven hues in four shades.

    The colors of 29 or more classes repeat.
    """
    if number <= 0:
        return _FIRST_CLASS
    value, saturation = _ROUNDS[(number - 1) // _HUES % len(_ROUNDS)]
    red, green, blue = colorsys.hsv_to_rgb((number - 1) % _HUES / _HUES, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def color_text(color: Color) -> str:
    """Return a color as "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def painted(numbers: NDArray[np.integer], colors: dict[int, Color]) -> Pixels:
    """Return (height, width) numbers as (height, width, 3) pixels, each number in its color."""
    pixels = np.empty((*numbers.shape, 3), np.uint8)
    for number in np.unique(numbers):
        pixels[numbers == number] = colors[int(number)]
    return pixels


def outlined(pixels: Pixels, box: NDArray[np.floating], color: Color, thickness: int = 1) -> None:
    """Draw the border of a box into pixels (height, width, 3), inside of the box; a part outside is cut off.

    Args:
        pixels: Changed in place.
        box: ymin, xmin, ymax, xmax as fractions of the height and width.
        color: Red, green, blue.
        thickness: Of the border, in pixels.
    """
    height, width = pixels.shape[:2]
    scaled = np.rint(np.clip(box, 0, 1) * (height, width, height, width)).astype(int)
    top, left = (int(min(start, size - 1)) for start, size in zip(scaled[:2], (height, width), strict=True))
    bottom, right = max(top + 1, int(scaled[2])), max(left + 1, int(scaled[3]))
    area = pixels[top:bottom, left:right]
    for border in (area[:thickness], area[-thickness:], area[:, :thickness], area[:, -thickness:]):
        border[:] = color


def signed(maps: Sequence[NDArray[np.float64]]) -> list[Pixels]:
    """Return maps as RGB pixels: red for positive values, blue for negative ones, white for 0.

    Args:
        maps: (height, width) values. Each is drawn relative to its own largest magnitude.
    """
    results = []
    for values in maps:
        relative = values / (np.abs(values).max() or 1)
        fade = np.rint(255 * (1 - np.abs(relative))).astype(np.uint8)
        full = np.full_like(fade, 255)
        red = np.where(relative >= 0, full, fade)
        blue = np.where(relative <= 0, full, fade)
        results.append(np.stack([red, fade, blue], axis=-1))
    return results


def encoded(pixels: Pixels) -> str:
    """Return (height, width, 1 or 3) pixels as a PNG file in base64."""
    return base64.b64encode(png(pixels)).decode()


def png(pixels: Pixels) -> bytes:
    """Return a PNG file of (height, width, channels) pixels with 8 bits, 1 or 3 channels.

    Source: Portable Network Graphics specification, W3C 2003.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    # Each row starts with the number of its filter; 0 is none.
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )

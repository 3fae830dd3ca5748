# SPDX-License-Identifier: Apache-2.0
"""Small PNG pictures of the inputs of a model, for records and pages."""

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

# The longer side of a thumbnail, in pixels.
MAX_SIDE = 48
MIN_SIDE = 4
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2}  # channels -> PNG's color type: gray, RGB
# Ranges of preprocessed images, the narrowest first.
_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))


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
    return [base64.b64encode(png(np.rint(_reduced(image)).astype(np.uint8))).decode() for image in brightness(images)]


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


def _reduced(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an image (height, width, channels) reduced by an integer factor, each pixel the mean of a block."""
    factor = -(-max(image.shape[:2]) // MAX_SIDE)
    height, width = (max(factor, size // factor * factor) for size in image.shape[:2])
    padded = np.pad(image, ((0, max(0, height - len(image))), (0, max(0, width - image.shape[1])), (0, 0)), "edge")
    blocks = padded[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return np.asarray(blocks.mean(axis=(1, 3)))


def png(pixels: NDArray[np.uint8]) -> bytes:
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

# SPDX-License-Identifier: Apache-2.0
"""Preprocessing from a source's values to the float model's inputs: real units, resize, then x * scale + offset."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.errors import InputError

# The most float32 values to resize at a time, so that temporary arrays stay in the tens of megabytes.
_PIECE_VALUES = 4_000_000


def preprocessing_record(config: DataConfig) -> dict[str, Any]:
    """Return the preprocessing that a converted model records about its inputs.

    Returns:
        {"resize": [height, width] or [], "scale": float, "offset": float}.
    """
    return {"resize": list(config.resize), "scale": config.scale, "offset": config.offset}


def resize_of(config: DataConfig) -> tuple[int, int] | None:
    """Return (height, width) in pixels, or None if images are not resized.

    Raises:
        InputError: data.resize is neither empty nor two numbers.
    """
    return size_in_pixels(config.resize, "data.resize")


def size_in_pixels(setting: tuple[int, ...], field: str) -> tuple[int, int] | None:
    """Return (height, width) of a setting; None if it is empty.

    Raises:
        InputError: It is neither empty nor two numbers. `field` is its path in the config.
    """
    if not setting:
        return None
    if len(setting) != 2:
        raise InputError(
            f"{field}={','.join(map(str, setting))}: expected two numbers, height,width",
            field=field,
            expected=("height", "width"),
            got=setting,
        )
    return setting[0], setting[1]


def real_units(array: NDArray, where: str) -> NDArray:
    """Return `array` with unchanged values in the dtype that the float model is fed.

    Floats and booleans become float32, and so do 8- and 16-bit integers (pixels, audio samples) and integers of rank 3
    and more (images). int32 and int64 of rank 1 and 2 may be indices (tokens) and keep their type.

    Raises:
        InputError: The array holds strings, complex numbers or anything else that is not a real number.
    """
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"{where} holds {array.dtype}: expected real numbers",
            expected="real numbers",
            got=str(array.dtype),
            limit="not-real-numbers",
        )
    if array.dtype.kind in "iu" and array.dtype.itemsize >= 4 and array.ndim <= 2:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):  # a float64 that is too large for float32 becomes infinity: see check_finite
        return array.astype(np.float32, copy=False)


def preprocessed_bytes(inputs: Mapping[str, NDArray], config: DataConfig) -> int:
    """Return an upper bound of the bytes of one example after preprocessing (resized, float32)."""
    size = resize_of(config)
    total = 0
    for array in inputs.values():
        values = size[0] * size[1] * array.shape[3] if size and array.ndim == 4 else math.prod(array.shape[1:])
        total += values * max(4, array.dtype.itemsize if array.dtype.kind in "iu" else 0)
    return total


def preprocess(inputs: Mapping[str, NDArray], config: DataConfig, where: str) -> dict[str, NDArray]:
    """Return `inputs` as the float model is fed them: `real_units`, resized, then x * scale + offset in float32.

    Every input of shape (n, height, width, channels) is resized.

    Raises:
        InputError: data.resize is set and no input is an image, or data.scale or data.offset would also apply to
            integer indices.
    """
    size = resize_of(config)
    arrays = {name: real_units(array, f"{where}: input {name!r}") for name, array in inputs.items()}
    if size is not None:
        arrays = _resized(arrays, size, where)
    if config.scale == 1.0 and config.offset == 0.0:
        return arrays
    integers = [name for name, array in arrays.items() if array.dtype.kind in "iu"]
    if 0 < len(integers) < len(arrays):
        raise InputError(
            f"{where}: data.scale and data.offset apply to every input, but {integers[0]!r} holds integers next to "
            "float inputs. Scale the float inputs before you save them, and leave data.scale and data.offset out",
            field="data.scale",
            got=integers[0],
        )
    scale, offset = np.float32(config.scale), np.float32(config.offset)
    with np.errstate(over="ignore"):
        return {name: array.astype(np.float32, copy=False) * scale + offset for name, array in arrays.items()}


def _resized(arrays: dict[str, NDArray], size: tuple[int, int], where: str) -> dict[str, NDArray]:
    images = [name for name, array in arrays.items() if array.ndim == 4]
    if not images:
        message = ", ".join(f"{name!r} {array.shape}" for name, array in arrays.items())
        raise InputError(
            f"{where}: data.resize needs an image input of shape (n, height, width, channels), got {message}. Leave "
            "data.resize out",
            field="data.resize",
            got={name: array.shape for name, array in arrays.items()},
        )
    return {name: resize_bilinear(array, size) if name in images else array for name, array in arrays.items()}


def resize_bilinear(images: NDArray, size: tuple[int, int]) -> NDArray:
    """Return images (n, height, width, channels) resized to `size` (height, width), as float32.

    Bilinear with half-pixel centers, no antialiasing and repeated edge pixels: the definition and the float32
    arithmetic of tf.image.resize(method="bilinear", antialias=False). Images that already have this size keep their
    values.

    Raises:
        InputError: An image has no pixels.
    """
    n, height, width, channels = images.shape
    if (height, width) == tuple(size):
        return images.astype(np.float32, copy=False)
    if not height or not width:
        raise InputError(
            f"images of shape {images.shape[1:]} cannot be resized: expected at least one pixel", got=images.shape[1:]
        )
    top, bottom, row_weight = _neighbors(height, size[0])
    left, right, column_weight = _neighbors(width, size[1])
    resized = np.empty((n, *size, channels), np.float32)
    step = max(1, _PIECE_VALUES // max(1, max(height, size[0]) * max(width, size[1]) * channels))
    for start in range(0, n, step):
        piece = images[start : start + step].astype(np.float32, copy=False)
        columns = _interpolate(piece[:, :, left], piece[:, :, right], column_weight[:, None])
        resized[start : start + step] = _interpolate(columns[:, top], columns[:, bottom], row_weight[:, None, None])
    return resized


def _neighbors(source: int, target: int) -> tuple[NDArray, NDArray, NDArray]:
    """Return for each of `target` pixels its two neighbors in the source, and its distance from the first (0 to 1)."""
    position = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5)
    below = np.floor(position)
    first, second = np.maximum(below, 0).astype(int), np.minimum(below + 1, source - 1).astype(int)
    return first, second, position - below


def _interpolate(first: NDArray, second: NDArray, weight: NDArray) -> NDArray:
    return first + (second - first) * weight

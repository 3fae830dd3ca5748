# SPDX-License-Identifier: Apache-2.0
"""From what a source holds to what the float model is fed: real units, resize, then x * scale + offset."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.errors import InputError

# float32 values that a piece of a resize may hold: its temporaries stay in the tens of megabytes.
_PIECE_VALUES = 4_000_000


def preprocessing_record(config: DataConfig) -> dict[str, Any]:
    """{"resize": [height, width] or [], "scale": float, "offset": float}: what a model keeps of how it was fed."""
    return {"resize": list(config.resize), "scale": config.scale, "offset": config.offset}


def resize_of(config: DataConfig) -> tuple[int, int] | None:
    """(height, width) in pixels, or None. Raises InputError when data.resize is neither empty nor two numbers."""
    if not config.resize:
        return None
    if len(config.resize) != 2:
        raise InputError(
            f"data.resize={','.join(map(str, config.resize))}: expected height,width: give two numbers",
            field="data.resize",
            expected=("height", "width"),
            got=config.resize,
        )
    return config.resize[0], config.resize[1]


def real_units(array: NDArray, where: str) -> NDArray:
    """`array` with the values unchanged, in the dtype that a float model is fed.

    Floats and booleans become float32; so do 8- and 16-bit integers (pixels, audio samples), and integers of rank 3
    and more (images). int32 and int64 of rank 1 and 2 may be indices (tokens) and stay. Raises InputError on complex
    numbers and strings.
    """
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"{where} holds {array.dtype}: expected real numbers", expected="real numbers", got=str(array.dtype)
        )
    if array.dtype.kind in "iu" and array.dtype.itemsize >= 4 and array.ndim <= 2:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which check_finite reports
        return array.astype(np.float32, copy=False)


def fed_bytes(inputs: Mapping[str, NDArray], config: DataConfig) -> int:
    """What an example of `inputs` takes once it is preprocessed: in float32, and resized. Integers may take less."""
    size = resize_of(config)
    total = 0
    for array in inputs.values():
        values = size[0] * size[1] * array.shape[3] if size and array.ndim == 4 else math.prod(array.shape[1:])
        total += values * max(4, array.dtype.itemsize if array.dtype.kind in "iu" else 0)
    return total


def preprocess(inputs: Mapping[str, NDArray], config: DataConfig, where: str) -> dict[str, NDArray]:
    """`inputs` as the float model is fed them: `real_units`, resized, then x * scale + offset in float32.

    Resizes every input of shape (n, height, width, channels). Raises InputError when there is none to resize, and when
    a scale would be applied to indices that stand beside float inputs.
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
            f"{where}: data.scale and data.offset apply to every input, and {integers[0]!r} holds integers beside "
            "float inputs: store the float inputs already scaled, and leave these flags out",
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
            f"{where}: data.resize: no input is an image (n, height, width, channels): got {message}",
            field="data.resize",
            got={name: array.shape for name, array in arrays.items()},
        )
    return {name: resize_bilinear(array, size) if name in images else array for name, array in arrays.items()}


def resize_bilinear(images: NDArray, size: tuple[int, int]) -> NDArray:
    """`images` (n, height, width, channels) resized to `size` (height, width), float32; unchanged if it fits already.

    Bilinear with half-pixel centres and no antialiasing, the edge pixels repeated: the definition and the float32
    arithmetic of tf.image.resize(method="bilinear", antialias=False).
    """
    n, height, width, channels = images.shape
    if (height, width) == tuple(size):
        return images.astype(np.float32, copy=False)
    if not height or not width:
        raise InputError(f"images of shape {images.shape[1:]} cannot be resized: expected at least one pixel")
    top, bottom, row_share = _neighbours(height, size[0])
    left, right, column_share = _neighbours(width, size[1])
    resized = np.empty((n, *size, channels), np.float32)
    step = max(1, _PIECE_VALUES // max(1, max(height, size[0]) * max(width, size[1]) * channels))
    for start in range(0, n, step):
        piece = images[start : start + step].astype(np.float32, copy=False)
        columns = _between(piece[:, :, left], piece[:, :, right], column_share[:, None])
        resized[start : start + step] = _between(columns[:, top], columns[:, bottom], row_share[:, None, None])
    return resized


def _neighbours(source: int, target: int) -> tuple[NDArray, NDArray, NDArray]:
    """For each of `target` pixels: the two source pixels that it lies between, and how far toward the second."""
    place = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5)
    below = np.floor(place)
    first, second = np.maximum(below, 0).astype(int), np.minimum(below + 1, source - 1).astype(int)
    return first, second, place - below


def _between(first: NDArray, second: NDArray, share: NDArray) -> NDArray:
    return first + (second - first) * share

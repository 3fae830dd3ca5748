# SPDX-License-Identifier: Apache-2.0
"""Labels that are maps of classes: the positions to ignore, and another size.

A map has a class for each position of an example, such as the pixels of an image. `IGNORED` marks a position without a
label: losses and metrics leave it out. Data sets use other values for it, mostly 255, which `data.ignore_label` names.
"""

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.data.preprocessing import size_in_pixels
from tfq.errors import InputError

# The label of positions that no loss and no metric counts.
IGNORED = -1


def map_size_of(config: DataConfig) -> tuple[int, int] | None:
    """Return (height, width) of label maps in pixels, or None if they keep their size.

    Raises:
        InputError: data.label_resize is neither empty nor two numbers.
    """
    return size_in_pixels(config.label_resize, "data.label_resize")


def prepare_labels(labels: NDArray | None, config: DataConfig, where: str) -> NDArray | None:
    """Return labels with `IGNORED` where they are `data.ignore_label`, resized to `data.label_resize`.

    Args:
        labels: Labels of examples, (n, ...) or a structured array with those of each output.
        config: The settings. Without them, the labels are returned unchanged.
        where: Start of messages.

    Raises:
        InputError: There is a setting, and no labels are maps of integers (n, height, width) or, for the ignore label,
            (n, positions).
    """
    size = map_size_of(config)
    if labels is None or (config.ignore_label is None and size is None):
        return labels
    field = "data.ignore_label" if size is None else "data.label_resize"
    if labels.dtype.names is None:
        if not _is_map(labels, size):
            raise _no_maps(f"{labels.dtype} {list(labels.shape)}", field, where)
        return _prepared(labels, config.ignore_label, size)
    arrays = {name: labels[name] for name in labels.dtype.names}
    if not any(_is_map(array, size) for array in arrays.values()):
        shown = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in arrays.items())
        raise _no_maps(shown, field, where)
    arrays = {
        name: _prepared(array, config.ignore_label, size) if _is_map(array, size) else array
        for name, array in arrays.items()
    }
    joined = np.empty(len(labels), [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()])
    for name, array in arrays.items():
        joined[name] = array
    return joined


def resize_nearest(maps: NDArray, size: tuple[int, int]) -> NDArray:
    """Return maps (n, height, width, ...) resized to `size` (height, width), with their dtype.

    Each position has the value at its center: half-pixel centers, as in tf.image.resize(method="nearest"), so that maps
    and images that are resized with `resize_bilinear` stay aligned.
    """
    rows, columns = (
        (2 * np.arange(target) + 1) * source // (2 * target)
        for source, target in zip(maps.shape[1:3], size, strict=True)
    )
    return np.ascontiguousarray(maps[:, rows][:, :, columns])


def _is_map(labels: NDArray, size: tuple[int, int] | None) -> bool:
    """Check whether labels are integers, one for each of several positions; two axes of them if they are resized."""
    axes = 2 if size is None else 3
    return labels.dtype.kind in "iu" and labels.ndim >= axes and labels[:1].size != 1


def _prepared(labels: NDArray, ignore_label: int | None, size: tuple[int, int] | None) -> NDArray:
    if size is not None:
        labels = resize_nearest(labels, size)
    if ignore_label is None:
        return labels
    signed = labels.astype(np.promote_types(labels.dtype, np.int8), copy=labels.dtype.kind == "i")
    signed[labels == ignore_label] = IGNORED
    return signed


def _no_maps(labels: str, field: str, where: str) -> InputError:
    return InputError(
        f"{where}: {field} is for maps with a class for each position, (n, height, width) integers, but the labels are "
        f"{labels}. Leave it out",
        field=field,
        expected="(n, height, width) integers",
        got=labels,
    )

# SPDX-License-Identifier: Apache-2.0
"""Occlusion: replace one part of an input at a time, and observe how much the score of one output value falls.

The importance of a part is the score of the whole input minus the score of the input without the part.

Source: Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks", section 4.2.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfq.config import ExplainConfig
from tfq.errors import InputError

# An axis has about this many patches that do not overlap.
_PATCHES_PER_AXIS = 8
# A vector with more values is a signal, not the features of a table.
MOST_FEATURES = 256

Kind = Literal["image", "signal", "features"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The parts of an input that are occluded one at a time.

    Attributes:
        kind: "image" for patches of (height, width, channels), "signal" for windows of (time,) or (time, channels), or
            "features" for the single values of a vector. Channels are occluded together.
        patch: The size of a part along each occluded axis.
        starts: Where the parts start along each axis. The last part ends where the axis ends.
        shape: The shape of an example.
    """

    kind: Kind
    patch: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]

    @property
    def map_shape(self) -> tuple[int, ...]:
        """The number of parts along each axis."""
        return tuple(map(len, self.starts))

    @property
    def num_parts(self) -> int:
        """The number of parts."""
        return int(np.prod(self.map_shape))

    def parts(self) -> Iterator[tuple[slice, ...]]:
        """Yield where each part is in an example, in the order of the flattened map."""
        for corner in itertools.product(*self.starts):
            yield tuple(slice(start, start + size) for start, size in zip(corner, self.patch, strict=True))

    def on_input(self, values: NDArray) -> NDArray[np.float64]:
        """Return a map in the resolution of the input: at each place the mean of the parts that cover it.

        Args:
            values: (num_parts,) a value for each part.

        Returns:
            The shape of the occluded axes; 0 where no part is.
        """
        extent = self.shape[: len(self.patch)]
        total, covers = np.zeros(extent), np.zeros(extent)
        for part, value in zip(self.parts(), values, strict=True):
            total[part] += value
            covers[part] += 1
        return np.asarray(total / np.maximum(covers, 1))


def grid_of(shape: tuple[int, ...], config: ExplainConfig) -> Grid:
    """Return the parts of an input of this shape, without the batch dimension.

    Raises:
        InputError: The input is not an image, signal or vector, or a setting does not fit it.
    """
    kinds: dict[int, Kind] = {
        1: "signal" if shape and shape[0] > MOST_FEATURES else "features",
        2: "signal",
        3: "image",
    }
    if len(shape) not in kinds or 0 in shape:
        raise InputError(
            f"analysis.explain: examples of shape {list(shape)} are not images (height, width, channels), signals "
            "(time, channels) or vectors, and occlusion is not defined for them",
            field="analysis.explain",
            expected="examples with 1 to 3 dimensions",
            got=shape,
        )
    kind = kinds[len(shape)]
    extent = shape[:2] if kind == "image" else shape[:1]
    if config.patch > max(extent):
        raise InputError(
            f"analysis.explain.patch={config.patch} is larger than the input of shape {list(shape)}",
            field="analysis.explain.patch",
            expected=f"at most {max(extent)}",
            got=config.patch,
        )
    patch = tuple(_patch(size, kind, config.patch) for size in extent)
    if config.stride > max(patch):
        raise InputError(
            f"analysis.explain.stride={config.stride} is larger than the patch of {list(patch)}: parts of the input "
            "would never be occluded",
            field="analysis.explain.stride",
            expected=f"at most {max(patch)}",
            got=config.stride,
        )
    starts = tuple(
        _starts(size, length, min(config.stride, length) or max(1, length // 2))
        for size, length in zip(extent, patch, strict=True)
    )
    return Grid(kind=kind, patch=patch, starts=starts, shape=shape)


def _patch(size: int, kind: Kind, chosen: int) -> int:
    if chosen:
        return min(chosen, size)
    return 1 if kind == "features" else min(size, max(2, -(-size // _PATCHES_PER_AXIS)))


def _starts(size: int, patch: int, stride: int) -> tuple[int, ...]:
    starts = list(range(0, size - patch + 1, stride))
    return tuple(starts if starts[-1] + patch == size else [*starts, size - patch])


def fill_of(inputs: NDArray, grid: Grid, fill: float | None) -> NDArray:
    """Return what replaces occluded values, as an array that broadcasts to an example.

    Args:
        inputs: (n, ...) the examples.
        grid: The parts.
        fill: A value for all; None for the mean of the examples, for each channel, or for each feature of a vector.
    """
    if fill is not None:
        return np.full((1,) * len(grid.shape), fill, inputs.dtype)
    axes = () if grid.kind == "features" else tuple(range(1, 1 + len(grid.patch)))
    return np.asarray(inputs.mean(axis=(0, *axes), keepdims=True, dtype=np.float64)[0].astype(inputs.dtype))


def occluded(example: NDArray, grid: Grid, fill: NDArray) -> NDArray:
    """Return the whole example, then the example without each part: (1 + num_parts, ...)."""
    places = np.arange(1 + grid.num_parts)
    return occluded_at(np.repeat(example[None], len(places), axis=0), places, grid, fill)


def occluded_at(examples: NDArray, places: NDArray[np.int64], grid: Grid, fill: NDArray) -> NDArray:
    """Return examples without one part each.

    Args:
        examples: (k, ...) the examples.
        places: (k,) for each 1 plus the place of its part in `Grid.parts`, or 0 to leave it whole.
        grid: The parts.
        fill: The result of `fill_of`.
    """
    parts = list(grid.parts())
    values = np.broadcast_to(fill, examples.shape[1:])
    results = np.array(examples)
    for row, place in zip(results, places, strict=True):
        if place:
            row[parts[place - 1]] = values[parts[place - 1]]
    return results


def importances(scores: NDArray) -> NDArray[np.float64]:
    """Return the importance of each part, (num_parts,), from the scores of `occluded`, (1 + num_parts,)."""
    scores = np.asarray(scores, np.float64)
    return np.asarray(scores[0] - scores[1:])


def ranks(values: NDArray) -> NDArray[np.float64]:
    """Return the rank of each of (n,) values, from 1 for the smallest; equal values have the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places])


def rank_correlation(one: NDArray, other: NDArray) -> tuple[float | None, str | None]:
    """Return Spearman's rank correlation of (n,) values and None; or None and the reason why it is not defined.

    It is Pearson's correlation of the ranks, where ties have average ranks.
    Source: Spearman 1904, "The proof and measurement of association between two things".
    """
    constant = [name for name, values in (("float", one), ("int8", other)) if len(np.unique(values)) < 2]
    if constant:
        return None, f"the map of the {' and of the '.join(constant)} model is constant"
    first, second = (ranks(values) - (len(values) + 1) / 2 for values in (one, other))
    product = float(first @ second) / float(np.sqrt((first @ first) * (second @ second)))
    return float(np.clip(product, -1, 1)), None


def top_overlap(one: NDArray, other: NDArray, top: int) -> float:
    """Return the fraction of the `top` largest values that two maps have in common.

    If more values are equal to the smallest of them than there are places, they share the places equally, so that a
    constant map has `top` / n in common with every other map, as one with random places has on average.
    """
    return float(np.minimum(_memberships(one, top), _memberships(other, top)).sum() / top)


def _memberships(values: NDArray, top: int) -> NDArray[np.float64]:
    limit = np.sort(values)[-top]
    above, ties = values > limit, values == limit
    return np.asarray(above + ties * (top - above.sum()) / ties.sum())


def curve(values: NDArray, height: int, width: int, among: NDArray | None = None) -> NDArray[np.uint8]:
    """Return a curve as RGB pixels (height, width, 3), black on white.

    Args:
        values: (time,) or (time, channels); the curves of all channels are drawn over each other.
        height: Pixels from the lowest value to the highest.
        width: Pixels of the whole time. A column spans the values at its time and the next one.
        among: (n, time, ...) examples, which scale each place by its lowest and highest value; None scales all by the
            lowest and highest value of `values`.
    """
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    low, high = (np.asarray(limit, np.float64) for limit in (rows.min(), rows.max()))
    if among is not None:
        flat = np.asarray(among, np.float64).reshape(len(among), *rows.shape)
        low, high = flat.min(axis=0), flat.max(axis=0)
    extent = np.where(high > low, high - low, 1)
    places = np.rint((1 - (rows - low) / extent) * (height - 1)).astype(int)
    pixels = np.full((height, width, 3), 255, np.uint8)
    for column in range(width):
        first = column * len(rows) // width
        stop = max(first + 1, (column + 1) * len(rows) // width)
        for channel in places[first : stop + 1].T:
            pixels[channel.min() : channel.max() + 1, column] = 0
    return pixels

# SPDX-License-Identifier: Apache-2.0
"""Expand constants that a flatbuffer stores sparse.

The format stores the dimensions of a tensor, followed by the dimensions within a block, in `traversalOrder`. Each is
dense (all positions) or compressed (`arraySegments[parent]` to `arraySegments[parent + 1]` are its entries in
`arrayIndices`). `blockMap` names the tensor dimension that each block dimension divides.
Source: `SparsityParameters` of tflite/schema/schema.fbs; Kjolstad et al., "The tensor algebra compiler" (2017).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import FlatbufferError
from tfq.tflite.binary import DAMAGED

_DENSE = 0


def densify(sparsity: Any, stored: NDArray, shape: Sequence[int], name: str) -> NDArray:
    """Return the dense values, in `shape`, of a constant that stores only some of them; the others are 0.

    Args:
        sparsity: Its `SparsityParametersT`, which may be damaged.
        stored: The stored values, a flat array.
        shape: The dense shape.
        name: The tensor's name in errors.

    Raises:
        FlatbufferError: The parameters do not describe a tensor of this shape.
    """
    order = _integers(sparsity.traversalOrder)
    block_map, dimensions = _integers(sparsity.blockMap), list(sparsity.dimMetadata or [])
    rank, levels = len(shape), len(shape) + len(block_map)
    if sorted(order) != list(range(levels)) or len(dimensions) != levels or any(d >= rank or d < 0 for d in block_map):
        _fail(name)
    # Positions along each level of all entries so far, and the number of each entry within its level.
    entries, positions = np.zeros(1, np.int64), np.zeros((levels, 1), np.int64)
    for level, dimension in enumerate(dimensions):
        parents, steps, entries = _expanded(dimension, entries, max(stored.size, math.prod(shape)), name)
        positions = positions[:, parents]
        positions[order[level]] = steps
    coordinates = positions[:rank].copy()
    for block, axis in enumerate(block_map):
        size = int(dimensions[order.index(rank + block)].denseSize)
        coordinates[axis] = coordinates[axis] * size + positions[rank + block]
    inside = (coordinates >= 0) & (coordinates < np.array(shape, np.int64).reshape(-1, 1))
    if not inside.all() or (entries.size and (entries.min() < 0 or entries.max() >= stored.size)):
        _fail(name)
    dense = np.zeros(shape, stored.dtype)
    dense[tuple(coordinates)] = stored[entries]
    return dense


def _expanded(dimension: Any, entries: NDArray, most: int, name: str) -> tuple[NDArray, NDArray, NDArray]:
    """Return the parent, the position along the dimension and the number of each entry of the next level."""
    if dimension.format == _DENSE:
        size = int(dimension.denseSize)
        if not 0 <= size * entries.size <= most:
            _fail(name)
        parents = np.repeat(np.arange(entries.size), size)
        steps = np.tile(np.arange(size), entries.size)
        return parents, steps, entries[parents] * size + steps
    segments, indices = _vector(dimension.arraySegments, name), _vector(dimension.arrayIndices, name)
    if entries.size and (entries.min() < 0 or entries.max() + 1 >= segments.size):
        _fail(name)
    starts, ends = segments[entries], segments[entries + 1]
    counts = ends - starts
    if counts.size and (counts.min() < 0 or starts.min() < 0 or ends.max() > indices.size or counts.sum() > most):
        _fail(name)
    parents = np.repeat(np.arange(entries.size), counts)
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if counts.size else counts
    numbers = starts[parents] + np.arange(parents.size) - firsts[parents]
    return parents, indices[numbers], numbers


def _integers(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]


def _vector(vector: Any, name: str) -> NDArray:
    if vector is None or vector.values is None:
        _fail(name)
    return np.asarray(vector.values, np.int64)


def _fail(name: str) -> None:
    raise FlatbufferError(
        f"tensor {name!r}: its sparsity parameters do not fit its shape: {DAMAGED}",
        field=name,
        expected="sparsity parameters that fit the shape",
    )

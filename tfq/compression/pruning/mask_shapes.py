# SPDX-License-Identifier: Apache-2.0
"""Masks of the weights with the highest scores: single weights, blocks, rows, columns, or m:n groups. Needs only NumPy.

A kernel (..., inputs, outputs) is a matrix with a row for each input of each tap, and a column for each output channel.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def block_shape(shape: Sequence[int], block: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the blocks of a kernel. A size of 0 is the whole axis of its matrix."""
    return block[0] or math.prod(shape[:-1]), block[1] or shape[-1]


def reason_against_blocks(shape: Sequence[int], block: tuple[int, int]) -> str | None:
    """Return why a kernel cannot have blocks of (height, width), or None if it can."""
    height, width = block_shape(shape, block)
    rows = math.prod(shape[:-1])
    dense = "x".join(str(size) for size in shape)
    if len(shape) < 2:
        return f"blocks need a kernel of rank 2 or more, but this one is {dense}"
    # Blocks do not continue from one tap to the next, where the inputs start again.
    if (height != rows and shape[-2] % height) or shape[-1] % width:
        return f"blocks of {height}x{width} do not divide the inputs and outputs of its kernel of {dense}"
    if (height, width) == (rows, shape[-1]):
        return f"a block of {height}x{width} is its whole kernel of {dense}"
    return None


def block_sums(values: NDArray, block: tuple[int, int]) -> NDArray:
    """Return the sum of each block: (rows of blocks, columns of blocks)."""
    height, width = block_shape(values.shape, block)
    matrix = values.reshape(-1, height, values.shape[-1] // width, width)
    return matrix.sum(axis=(1, 3))


def mask_of_blocks(scores: NDArray, sparsity: float, block: tuple[int, int] = (1, 1)) -> NDArray[np.bool_]:
    """Return a mask that is True at the blocks with the highest sums of scores.

    Args:
        scores: (..., inputs, outputs).
        sparsity: Fraction of the blocks that are False, up to rounding; at least one block is True. If sums are
            equal, the first ones are False.
        block: (height, width); (1, 1) for single weights.
    """
    sums = scores if block == (1, 1) else block_sums(scores, block)
    kept = max(1, round(sums.size * (1 - sparsity)))
    mask = np.ones(sums.shape, bool)
    mask.flat[np.argsort(sums, axis=None, kind="stable")[: sums.size - kept]] = False
    if block == (1, 1):
        return mask
    height, width = block_shape(scores.shape, block)
    return np.repeat(np.repeat(mask, height, axis=0), width, axis=1).reshape(scores.shape)


def mask_of_groups(scores: NDArray, m: int, n: int) -> NDArray[np.bool_]:
    """Return a mask that is True at the n - m highest scores of every n consecutive inputs.

    Args:
        scores: (..., inputs, outputs). An incomplete last group keeps up to n - m of its weights.
        m: Number of zeros in a group.
        n: Size of a group.
    """
    inputs = scores.shape[-2]
    padding = [(0, 0)] * scores.ndim
    padding[-2] = 0, -inputs % n
    padded = np.pad(scores.astype(np.float64), padding, constant_values=-np.inf)
    groups = np.moveaxis(padded, -2, -1).reshape(*scores.shape[:-2], scores.shape[-1], -1, n)
    order = np.argsort(-groups, axis=-1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[..., : n - m], True, axis=-1)
    return np.moveaxis(mask.reshape(*scores.shape[:-2], scores.shape[-1], -1), -1, -2)[..., :inputs, :]

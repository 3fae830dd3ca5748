# SPDX-License-Identifier: Apache-2.0
"""Choose the scales of weights with 4 or 2 bits, which cannot represent every weight of a channel well.

With so few values, the scale that represents the largest weight wastes most of them. The scale here minimizes the
squared error instead, and clips some weights.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Bits -> (smallest, largest quantized value). With so few values, none is given up for symmetry, as int8 does.
QUANTIZED_LIMITS: Mapping[int, tuple[int, int]] = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1)}
# Bits -> scales that are tried, as fractions of the one that represents the largest weight.
_FRACTIONS = {4: np.linspace(0.4, 1.0, 31), 2: np.linspace(0.1, 1.0, 46)}


def widest_scales(rows: NDArray, bits: int, *, per_tensor: bool) -> NDArray[np.float64]:
    """Return the smallest scales that represent all weights: (output channels, 1); 1 for channels of zeros.

    Args:
        rows: Real weights: (output channels, weights of a channel).
        bits: 4 or 2.
        per_tensor: Whether all channels have one scale.
    """
    lowest, highest = QUANTIZED_LIMITS[bits]
    axis = None if per_tensor else 1
    needed = np.maximum(rows.max(axis=axis, keepdims=True) / highest, rows.min(axis=axis, keepdims=True) / lowest)
    return np.broadcast_to(np.where(needed > 0, needed, 1.0), (len(rows), 1))


def least_error_scales(
    rows: NDArray, bits: int, importance: NDArray | None = None, *, per_tensor: bool = False
) -> NDArray[np.float64]:
    """Return the scale of each output channel with the least squared error: (output channels,), float32 values.

    Args:
        rows: Real weights: (output channels, weights of a channel).
        bits: 4 or 2.
        importance: Factors of the squared errors, in the shape of `rows`, such as the mean square of each weight's
            input; None weights all errors equally.
        per_tensor: Whether all channels have one scale.
    """
    widest, fractions = widest_scales(rows, bits, per_tensor=per_tensor), _FRACTIONS[bits]
    errors = np.stack([_weighted_errors(rows, widest * fraction, importance, bits) for fraction in fractions])
    if per_tensor:
        errors = np.broadcast_to(errors.sum(axis=1, keepdims=True), errors.shape)
    scales = widest[:, 0] * fractions[errors.argmin(axis=0)]
    return scales.astype(np.float32).astype(np.float64)


def nearest(rows: NDArray, scales: NDArray, bits: int) -> NDArray[np.float64]:
    """Return the nearest quantized values of `rows`, half to even; `scales` broadcasts against it."""
    return np.clip(np.rint(rows / scales), *QUANTIZED_LIMITS[bits])


def quantize_to_few_bits(values: NDArray, axis: int | None, bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize weights to 4 or 2 bits, at the scales with the least squared error.

    Args:
        values: Real weights of any shape.
        axis: The axis of the channels; None for one scale.
        bits: 4 or 2.

    Returns:
        Quantized values in the same shape, one per int8, and the scales: one for each index along `axis`, or one.
    """
    ordered = values[None] if axis is None else np.moveaxis(values, axis, 0)
    rows = ordered.reshape(len(ordered), -1).astype(np.float64)
    scales = least_error_scales(rows, bits)
    quantized = nearest(rows, scales[:, None], bits).astype(np.int8).reshape(ordered.shape)
    return (quantized[0] if axis is None else np.moveaxis(quantized, 0, axis)), scales.astype(np.float32)


def _weighted_errors(rows: NDArray, scales: NDArray, importance: NDArray | None, bits: int) -> NDArray[np.float64]:
    """Return each output channel's sum of squared rounding errors at a scale."""
    errors = (rows - nearest(rows, scales, bits) * scales) ** 2
    return (errors if importance is None else errors * importance).sum(axis=1)

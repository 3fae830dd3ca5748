# SPDX-License-Identifier: Apache-2.0
"""Affine 8-bit quantization: the one tested path, used wherever tfq turns reals into codes or back."""

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tfq.errors import InputError


def quantize(x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, dtype: DTypeLike = np.int8) -> NDArray:
    """Integer codes of `x`, same shape: x / scale rounded half to even, plus zero_point, saturated to `dtype`'s range.

    scale, zero_point: scalars, or shaped to broadcast along the channel axis. scale > 0.
    Raises InputError when `x` holds NaN: no code stands for it.
    Source: TFLite 8-bit quantization specification. To the bit what XNNPACK's QUANTIZE op computes: in float32, with
    the reciprocal of the scale, and rounding before zero_point is added (of ties, an odd zero_point would turn
    half to even into half to odd; and 8-bit pixels scaled to [-1, 1] are ties, every one).
    """
    x = np.asarray(x)
    if x.dtype.kind == "f" and np.isnan(x).any():
        raise InputError(
            "quantize: the input holds NaN, which has no integer code: clean the data first",
            field="values",
            expected="finite numbers",
            got="NaN",
        )
    limits = np.iinfo(np.dtype(dtype))
    steps = np.rint(x.astype(np.float32) * (np.float32(1) / np.asarray(scale, np.float32)))
    quantized = steps + np.asarray(zero_point, np.float32)
    return np.clip(quantized, limits.min, limits.max).astype(dtype)


def dequantize(codes: ArrayLike, scale: ArrayLike, zero_point: ArrayLike) -> NDArray[np.float32]:
    """Reals that integer `codes` stand for, same shape, float32: (code - zero_point) * scale.

    scale, zero_point: scalars, or shaped to broadcast along the channel axis.
    Source: TFLite 8-bit quantization specification.
    """
    centred = np.asarray(codes).astype(np.int32) - np.asarray(zero_point, np.int32)
    return centred.astype(np.float32) * np.asarray(scale, np.float32)


def quantization_parameters(minimum: float, maximum: float, num_bits: int = 8) -> tuple[float, int]:
    """(scale, zero_point) of the signed asymmetric code whose range covers [minimum, maximum] and zero.

    Raises InputError on NaN, infinity or minimum > maximum. A range of width zero gets scale 1.
    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", eq. 1.
    """
    if not (np.isfinite(minimum) and np.isfinite(maximum)) or minimum > maximum:
        raise InputError(
            f"range [{minimum}, {maximum}]: expected finite minimum <= maximum",
            field="range",
            expected="finite minimum <= maximum",
            got=(minimum, maximum),
        )
    minimum, maximum = min(float(minimum), 0.0), max(float(maximum), 0.0)
    lowest, highest = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    if minimum == maximum:
        return 1.0, 0
    scale = (maximum - minimum) / (highest - lowest)
    return scale, int(np.clip(np.rint(lowest - minimum / scale), lowest, highest))


def sqnr_db(reference: ArrayLike, quantized: ArrayLike) -> float:
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum(reference^2) / sum((reference - quantized)^2)).

    Same shapes. No noise gives inf; noise on a zero signal gives -inf.
    Raises InputError on NaN in either, on different shapes, and on empty arrays.
    """
    reference, quantized = np.asarray(reference, np.float64), np.asarray(quantized, np.float64)
    if reference.shape != quantized.shape or not reference.size:
        raise InputError(
            f"sqnr_db: expected two non-empty arrays of one shape, got {reference.shape} and {quantized.shape}",
            expected=reference.shape,
            got=quantized.shape,
        )
    if np.isnan(reference).any() or np.isnan(quantized).any():
        raise InputError(
            "sqnr_db: NaN in the arrays: an output that is not a number has no noise ratio",
            expected="finite numbers",
            got="NaN",
        )
    signal, noise = float(np.sum(reference**2)), float(np.sum((reference - quantized) ** 2))
    if noise == 0:
        return float("inf")
    return float("-inf") if signal == 0 else 10 * float(np.log10(signal / noise))

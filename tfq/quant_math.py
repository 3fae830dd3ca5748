# SPDX-License-Identifier: Apache-2.0
"""Affine 8-bit quantization, used wherever tfq quantizes or dequantizes values."""

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tfq.errors import InputError


def quantize(x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, dtype: DTypeLike = np.int8) -> NDArray:
    """Quantize real values: round x / scale half to even, add the zero point, and saturate to the range of `dtype`.

    The result equals that of XNNPACK's QUANTIZE op bit for bit: it is computed in float32 with the reciprocal of the
    scale, and rounded before the zero point is added. (An odd zero point added before rounding would turn half to even
    into half to odd, and 8-bit pixels scaled to [-1, 1] are all ties.)

    Source: TFLite 8-bit quantization specification.

    Args:
        x: Real values of any shape.
        scale: The step, > 0: a scalar, or an array that broadcasts along the channel axis.
        zero_point: The quantized value of 0.0: a scalar, or an array like `scale`.
        dtype: The integer type of the result.

    Returns:
        The quantized values, in the shape of `x`.

    Raises:
        InputError: `x` contains NaN, which has no quantized value.
    """
    x = np.asarray(x)
    if x.dtype.kind == "f" and np.isnan(x).any():
        raise InputError(
            "quantize: the input contains NaN, which cannot be quantized: clean the data first",
            field="values",
            expected="finite numbers",
            got="NaN",
        )
    limits = np.iinfo(np.dtype(dtype))
    steps = np.rint(x.astype(np.float32) * (np.float32(1) / np.asarray(scale, np.float32)))
    quantized = steps + np.asarray(zero_point, np.float32)
    return np.clip(quantized, limits.min, limits.max).astype(dtype)


def dequantize(quantized_values: ArrayLike, scale: ArrayLike, zero_point: ArrayLike) -> NDArray[np.float32]:
    """Dequantize integers: (value - zero point) * scale, in float32.

    Source: TFLite 8-bit quantization specification.

    Args:
        quantized_values: Integers of any shape.
        scale: The step: a scalar, or an array that broadcasts along the channel axis.
        zero_point: The quantized value of 0.0: a scalar, or an array like `scale`.

    Returns:
        The real values, in the same shape.
    """
    centered = np.asarray(quantized_values).astype(np.int32) - np.asarray(zero_point, np.int32)
    return centered.astype(np.float32) * np.asarray(scale, np.float32)


def quantization_parameters(minimum: float, maximum: float, num_bits: int = 8) -> tuple[float, int]:
    """Return (scale, zero_point) of signed asymmetric quantization whose range covers [minimum, maximum] and zero.

    A range of width zero has scale 1.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", eq. 1.

    Raises:
        InputError: A bound is NaN or infinite, or minimum > maximum.
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
    """Return the signal-to-quantization-noise ratio in dB: 10 log10(sum(reference^2) / sum((reference - quantized)^2)).

    Args:
        reference: The signal.
        quantized: The signal with noise, of the same shape.

    Returns:
        The ratio; inf without noise, -inf for noise on a zero signal.

    Raises:
        InputError: An array contains NaN or is empty, or the shapes differ.
    """
    reference, quantized = np.asarray(reference, np.float64), np.asarray(quantized, np.float64)
    if reference.shape != quantized.shape or not reference.size:
        raise InputError(
            f"sqnr_db: expected two non-empty arrays of the same shape, got {reference.shape} and {quantized.shape}",
            expected=reference.shape,
            got=quantized.shape,
        )
    if np.isnan(reference).any() or np.isnan(quantized).any():
        raise InputError(
            "sqnr_db: the arrays contain NaN: expected finite numbers",
            expected="finite numbers",
            got="NaN",
        )
    signal, noise = float(np.sum(reference**2)), float(np.sum((reference - quantized) ** 2))
    if noise == 0:
        return float("inf")
    return float("-inf") if signal == 0 else 10 * float(np.log10(signal / noise))

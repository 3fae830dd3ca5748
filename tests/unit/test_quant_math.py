# SPDX-License-Identifier: Apache-2.0
"""Quantization arithmetic. Oracles: arithmetic by hand, and exact rationals."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import refused

from tfq.errors import InputError
from tfq.quant_math import dequantize, quantization_parameters, quantize, sqnr_db


def test_quantize_rounds_ties_to_even():
    assert quantize([0.5, 1.5, 2.5, -0.5, -1.5], 1.0, 0).tolist() == [0, 2, 2, 0, -2]


def test_quantize_saturates_instead_of_wrapping_around():
    assert quantize([127.4, 128.0, 1e9, -128.6, -1e9, np.inf, -np.inf], 1.0, 0).tolist() == [
        127, 127, 127, -128, -128, 127, -128,
    ]  # fmt: skip


def test_quantize_rounds_negative_values_instead_of_truncating_them():
    assert quantize([-0.6, -1.4, 0.6], 1.0, 0).tolist() == [-1, -1, 1]


def test_quantize_to_uint8_saturates_at_its_own_range():
    assert quantize([-1.0, 300.0, 2.0], 1.0, 0, np.uint8).tolist() == [0, 255, 2]


def test_quantize_of_pixels_covers_all_values():
    quantized = quantize(np.arange(256, dtype=np.float32), 1.0, -128)
    assert quantized.tolist() == list(range(-128, 128))


def test_ties_go_to_even_steps_whatever_the_zero_point():
    assert quantize([0.5, 1.5, 2.5, -0.5], 1.0, -1).tolist() == [-1, 1, 1, -1]


def test_quantize_per_channel_broadcasts():
    quantized = quantize([[1.0, 1.0], [2.0, 2.0]], np.array([1.0, 0.5]), np.array([0, -10]))
    assert quantized.tolist() == [[1, -8], [2, -6]]


def test_quantize_refuses_nan():
    with refused(InputError, word="NaN"):
        quantize([0.0, np.nan], 1.0, 0)


@given(st.integers(-128, 127), st.floats(2.0**-20, 1024.0, width=32), st.integers(-128, 127))
def test_a_quantized_value_survives_dequantize_and_quantize(code, scale, zero_point):
    assert quantize(dequantize(code, scale, zero_point), scale, zero_point) == code


@given(st.integers(-(2**20), 2**20), st.integers(0, 6), st.integers(-128, 127))
def test_quantize_equals_exact_rational_rounding(numerator, shift, zero_point):
    """Powers of two are exact in float32, so the exact rational result is the oracle."""
    x, scale = Fraction(numerator, 2**10), Fraction(1, 2**shift)
    exact = max(-128, min(127, round(x / scale) + zero_point))  # Python rounds Fractions half to even
    assert quantize(float(x), float(scale), zero_point) == exact


def test_dequantize_by_hand():
    assert dequantize(np.int8([-128, 0, 127]), 0.5, -128).tolist() == [0.0, 64.0, 127.5]


def test_quantization_parameters_of_softmax_and_relu_ranges():
    assert quantization_parameters(0.0, 255.0) == (1.0, -128)
    assert quantization_parameters(-1.0, 1.0) == (2 / 255, 0)


def test_quantization_parameters_always_cover_zero():
    scale, zero_point = quantization_parameters(2.0, 4.0)
    assert (scale, zero_point) == (4 / 255, -128)


@pytest.mark.parametrize("bounds", [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_quantization_parameters_refuse_invalid_ranges(bounds):
    with refused(InputError, word="range"):
        quantization_parameters(*bounds)


def test_sqnr_by_hand():
    assert sqnr_db([3.0, 4.0], [3.0, 3.5]) == pytest.approx(20.0)  # 25 / 0.25 = 100


def test_sqnr_is_infinite_without_noise_or_without_signal():
    assert sqnr_db([1.0], [1.0]) == float("inf")
    assert sqnr_db([0.0], [1.0]) == float("-inf")


@pytest.mark.parametrize("pair", [([1.0], [1.0, 2.0]), ([], []), ([np.nan], [1.0]), ([1.0], [np.nan])])
def test_sqnr_refuses_what_has_no_ratio(pair):
    with pytest.raises(InputError):
        sqnr_db(*pair)

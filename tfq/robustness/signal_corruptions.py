# SPDX-License-Identifier: Apache-2.0
"""Corruptions of one-dimensional inputs: waveforms (time,) and features or sensor channels (time, channels)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.registry import register
from tfq.robustness.corruption import Corruption, Draws, Limits

STEPS = "steps of tfq"
Signal = NDArray[np.float32]


def noise_at_snr(signal: Signal, snr_db: float, draws: Draws, limits: Limits) -> Signal:
    """Add white noise whose power is that of the example (its mean square) divided by 10^(snr_db / 10)."""
    power = float(np.mean(np.square(signal, dtype=np.float64))) / 10 ** (snr_db / 10)
    return (signal + draws.normal(size=signal.shape, scale=math.sqrt(power))).astype(np.float32)


def gain(signal: Signal, decibels: float, draws: Draws, limits: Limits) -> Signal:
    """Multiply by 10^(decibels / 20), and clip to the limits of the input, as an analog-to-digital converter does."""
    low, high = limits
    return np.clip(signal * 10 ** (decibels / 20), low, high).astype(np.float32)


def time_shift(signal: Signal, fraction: float, draws: Draws, limits: Limits) -> Signal:
    """Move the signal by a fraction of its length, earlier or later; the gap is zero."""
    steps = max(1, round(fraction * len(signal)))
    result = np.zeros_like(signal)
    if draws.random() < 0.5:
        result[steps:] = signal[: len(signal) - steps]
    else:
        result[: len(signal) - steps] = signal[steps:]
    return result


def dropped_samples(signal: Signal, fraction: float, draws: Draws, limits: Limits) -> Signal:
    """Set a random fraction of the time steps to zero, in all channels."""
    result = signal.copy()
    result[draws.random(len(signal)) < fraction] = 0
    return result


def gap(signal: Signal, fraction: float, draws: Draws, limits: Limits) -> Signal:
    """Set a stretch of the time to zero, at a random place."""
    length = max(1, round(fraction * len(signal)))
    start = int(draws.random() * (len(signal) - length + 1))
    result = signal.copy()
    result[start : start + length] = 0
    return result


def sample_rate(signal: Signal, factor: float, draws: Draws, limits: Limits) -> Signal:
    """Return the start of the signal as if it had `factor` times as many samples per second."""
    steps = np.arange(len(signal), dtype=np.float64) / factor
    below = np.floor(steps).astype(int)
    above = np.minimum(below + 1, len(signal) - 1)
    weight = (steps - below).reshape(-1, *(1,) * (signal.ndim - 1))
    return (signal[below] * (1 - weight) + signal[above] * weight).astype(np.float32)


def _register(name: str, apply: Any, help: str, unit: str, *parameters: float, is_mistake: bool = False) -> None:
    register(
        Corruption(
            name=name,
            help=help,
            kind="signal",
            apply=apply,
            parameters={"": parameters},
            unit=unit,
            source=STEPS,
            is_mistake=is_mistake,
        )
    )


_register("noise", noise_at_snr, "white noise", "SNR, dB", 20, 15, 10, 5, 0)
_register("louder", gain, "a higher gain, clipped to the range of the input", "dB", 3, 6, 9, 12, 18)
_register("quieter", gain, "a lower gain", "dB", -3, -6, -9, -12, -18)
_register("time_shift", time_shift, "an earlier or later start", "of the length", 0.02, 0.05, 0.1, 0.15, 0.25)
_register("dropped_samples", dropped_samples, "single samples lost", "fraction", 0.01, 0.02, 0.05, 0.1, 0.2)
_register("gap", gap, "a stretch of the signal lost", "of the length", 0.02, 0.05, 0.1, 0.2, 0.3)
_register(
    "double_sample_rate",
    sample_rate,
    "the app records at twice the sample rate, so that an example holds half of the time",
    "factor",
    2,
    is_mistake=True,
)

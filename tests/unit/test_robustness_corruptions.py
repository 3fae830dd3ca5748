# SPDX-License-Identifier: Apache-2.0
"""Corruptions: against the arrays of the package imagecorruptions, independent of batches, and bounded."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tfq import registry
from tfq.errors import InputError
from tfq.robustness import deployment_mistakes, image_corruptions, signal_corruptions
from tfq.robustness.corruption import Corruption, corrupt

GOLDEN = Path(__file__).parents[1] / "golden" / "corruptions.npz"
SEED = 7  # as in make_corruptions.py
ROUNDING = 1e-3  # the package blurs in float32
PIXELS = (0.0, 255.0)
KNOWN = registry.entries(Corruption)
IMAGES = [name for name, item in KNOWN.items() if item.kind == "image"]
SIGNALS = [name for name, item in KNOWN.items() if item.kind == "signal"]


def golden():
    with np.load(GOLDEN) as arrays:
        return {name: arrays[name] for name in arrays.files}


def same_draws(name):
    """Return the stream that the package drew from: its noise of salt and pepper uses a newer generator."""
    return np.random.default_rng(SEED) if name == "impulse_noise" else np.random.RandomState(SEED)


@pytest.mark.parametrize("name", sorted({key.rsplit("_", 2)[0] for key in np.load(GOLDEN).files} - {"image"}))
def test_corruption_equals_the_package_imagecorruptions(name):
    if name in ("jpeg_compression", "pixelate"):
        pytest.importorskip("PIL")
    arrays = golden()
    cases = [key for key in arrays if key.rsplit("_", 2)[0] == name]
    assert len(cases) == 7
    for key in cases:
        _, severity, index = key.rsplit("_", 2)
        parameter = KNOWN[name].values("imagenet_c")[int(severity) - 1]
        function = getattr(image_corruptions, name)
        result = np.clip(function(arrays[f"image_{index}"], parameter, same_draws(name)), 0, 255)
        # The package truncates to 8 bits: values that are whole numbers up to rounding may become the number below.
        fraction = result - arrays[key].astype(np.float64)
        assert fraction.min() >= -ROUNDING and fraction.max() <= 1 + ROUNDING, key


def test_comparison_with_the_package_sees_other_parameters():
    arrays = golden()
    image = arrays["image_0"].astype(np.float32)
    result = KNOWN["contrast"].apply(image, 0.41, same_draws("contrast"), PIXELS)
    assert np.abs(result - arrays["contrast_1_0"]).max() > 1


@pytest.mark.parametrize("name", [*IMAGES, *SIGNALS])
def test_corrupted_example_depends_on_its_index_only(name):
    corruption = KNOWN[name]
    if corruption.needs:
        pytest.importorskip(corruption.needs[0])
    shape = (32, 32, 3) if corruption.kind == "image" else (50, 2)
    examples = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.float32)
    options = {"limits": PIXELS, "seed": 3, "parameter_set": "cifar10_c"}
    severity = corruption.severities("cifar10_c")[-1]
    together = corrupt(examples, corruption, severity, **options)
    alone = [corrupt(examples[index : index + 1], corruption, severity, first=index, **options) for index in (4, 1)]
    assert np.array_equal(together[[4, 1]], np.concatenate(alone))
    assert together.dtype == np.float32 and np.isfinite(together).all()
    assert not np.array_equal(together, examples) or name == "range_0_255"


@pytest.mark.parametrize("name", [name for name in IMAGES if not KNOWN[name].is_mistake])
def test_image_corruption_commutes_with_the_range_of_the_input(name):
    if KNOWN[name].needs:
        pytest.importorskip("PIL")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 1)).astype(np.float32)
    options = {"parameter_set": "cifar10_c", "seed": 1}
    one = corrupt(pixels, KNOWN[name], 3, limits=PIXELS, **options)
    other = corrupt(pixels / 127.5 - 1, KNOWN[name], 3, limits=(-1, 1), **options)
    np.testing.assert_allclose((other + 1) * 127.5, one, atol=1e-3)


def test_other_seed_gives_other_noise():
    image = np.full((1, 32, 32, 3), 128, np.float32)
    first, second = (
        corrupt(image, KNOWN["gaussian_noise"], 1, limits=PIXELS, seed=seed, parameter_set="cifar10_c")
        for seed in (0, 1)
    )
    assert not np.array_equal(first, second)
    # 0.04 of the range, truncated to integers.
    assert pytest.approx(first.std(), rel=0.1) == 0.04 * 255


def test_noise_has_the_snr_of_its_parameter():
    signal = np.sin(np.arange(20_000) / 7).astype(np.float32)
    noisy = signal_corruptions.noise_at_snr(signal, 10, np.random.default_rng(0), (-1, 1))
    ratio = np.mean(signal**2) / np.mean((noisy - signal) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(10, abs=0.2)


def test_gain_clips_to_the_limits_of_the_input():
    signal = np.float32([0.1, -0.4, 0.9])
    result = signal_corruptions.gain(signal, 6, np.random.default_rng(0), (-1, 1))
    np.testing.assert_allclose(result, [0.1995262, -0.7981049, 1], rtol=1e-5)


def test_time_shift_moves_the_signal_and_fills_with_zeros():
    signal = np.arange(1, 11, dtype=np.float32)
    results = {
        tuple(signal_corruptions.time_shift(signal, 0.2, np.random.default_rng(seed), (0, 10))) for seed in range(20)
    }
    assert results == {(0, 0, 1, 2, 3, 4, 5, 6, 7, 8), (3, 4, 5, 6, 7, 8, 9, 10, 0, 0)}


def test_unsigned_bytes_equal_a_cast_of_the_pixels():
    pixels = np.arange(256, dtype=np.float32).reshape(16, 16, 1)
    result = deployment_mistakes.unsigned_bytes(pixels, None, np.random.default_rng(0), PIXELS)
    # An int8 input of scale 1 and zero point -128 reads the byte as a signed number.
    expected = pixels.astype(np.uint8).view(np.int8).astype(int) + 128
    assert np.array_equal(result, expected)


def test_rotation_by_a_right_angle_equals_rot90():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    results = [image_corruptions.rotation(image, 90, np.random.default_rng(seed)) for seed in range(12)]
    close = [[np.allclose(result, np.rot90(image, turns), atol=1e-6) for turns in (1, 3)] for result in results]
    assert all(map(any, close)) and all(any(column) for column in zip(*close, strict=True))


def test_half_pixel_shift_averages_neighbors():
    image = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    result = deployment_mistakes.half_pixel(image, None, np.random.default_rng(0), PIXELS)
    assert result[1, 1, 0] == image[:2, :2].mean() and result[0, 0, 0] == image[0, 0, 0]


def test_range_mistake_is_refused_for_a_model_of_that_range():
    refuses = KNOWN["range_-1_1"].refuses
    assert refuses((32, 32, 3), (-1.0, 1.0)) and not refuses((32, 32, 3), (0.0, 1.0))


def test_corruption_of_another_shape_is_an_error():
    wrong = dataclasses.replace(KNOWN["noise"], apply=lambda signal, *rest: signal[1:])
    with pytest.raises(InputError, match="shape"):
        corrupt(np.zeros((2, 10), np.float32), wrong, 1, limits=(-1, 1))


def test_unknown_severity_is_an_error():
    with pytest.raises(InputError, match="severity"):
        corrupt(np.zeros((1, 8, 8, 3), np.float32), KNOWN["bgr"], 2, limits=PIXELS)


def test_wrong_number_of_parameters_is_an_error():
    with pytest.raises(InputError, match="parameters"):
        dataclasses.replace(KNOWN["noise"], parameters={"": (1, 2, 3)})

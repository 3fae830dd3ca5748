# SPDX-License-Identifier: Apache-2.0
"""Ranges from observed statistics. Oracle: NumPy on the values themselves, with errors measured by quant_math."""

import numpy as np
import pytest
from messages import refused

from tfq import quant_math
from tfq.config import CalibrationConfig
from tfq.errors import InputError
from tfq.ptq.calibration import Histogram, Observations, TensorObservation, choose_ranges
from tfq.ptq.calibration.observation import add_extremes

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=200_000).astype(np.float32)
LAPLACE = RNG.laplace(size=200_000).astype(np.float32)
RELU = np.maximum(NORMAL, 0)
OUTLIER = np.append(NORMAL, np.float32(100))
SHIFTED = (np.abs(LAPLACE) - 0.5).astype(np.float32)


def seen(values, name="a", layer=None, samples=10, histogram=True):
    tensor = TensorObservation(name=name, layer=layer, histogram=Histogram() if histogram else None)
    for number, part in enumerate(np.array_split(values, samples)):
        add_extremes([tensor], np.array([[[part.min(), part.max()]]], np.float32), number)
        if histogram:
            tensor.histogram.add(part)
    return tensor


def observations(*tensors, samples=10):
    listed = {(0, index): tensor for index, tensor in enumerate(tensors)}
    return Observations(tensors=listed, num_samples=samples, model_sha256="m", data_sha256=("d",))


def chosen(values, **config):
    return choose_ranges(observations(seen(values)), CalibrationConfig(**config)).tensors[0, 0]


def squared_error(values, ends):
    scale, zero_point = quant_math.quantization_parameters(*ends)
    quantized = quant_math.quantize(values, scale, zero_point)
    return float(((values - quant_math.dequantize(quantized, scale, zero_point)).astype(np.float64) ** 2).mean())


def test_min_max_is_what_was_seen():
    result = chosen(OUTLIER, method="min_max")
    assert (result.minimum, result.maximum) == (OUTLIER.min(), 100)
    assert result.clipped == 0 and result.coverage == 1


def test_moving_average_weighs_the_later_samples_more():
    result = chosen(np.repeat(np.arange(10, dtype=np.float32), 5), method="moving_average")
    weights = 0.9 ** np.arange(9, -1, -1)
    assert result.maximum == pytest.approx((weights * np.arange(10)).sum() / weights.sum())


def test_moving_average_of_equal_samples_is_theirs():
    result = chosen(np.tile(np.float32([-2, 5]), 10), method="moving_average")
    assert (result.minimum, result.maximum) == pytest.approx((-2, 5))


@pytest.mark.parametrize("percentile", [99, 99.9, 99.99])
@pytest.mark.parametrize("values", [NORMAL, LAPLACE, RELU])
def test_percentile_is_numpys_within_a_bin(values, percentile):
    result = chosen(values, method="percentile", percentile=percentile)
    ends = np.percentile(values, [100 - percentile, percentile])
    np.testing.assert_allclose([result.minimum, result.maximum], ends, rtol=1 / 64, atol=1e-6)


def test_percentile_100_is_min_max():
    result = chosen(OUTLIER, method="percentile", percentile=100.0)
    assert (result.minimum, result.maximum) == (OUTLIER.min(), 100)


@pytest.mark.parametrize(
    "values", [NORMAL, LAPLACE, RELU, SHIFTED, OUTLIER], ids=str.split("normal laplace relu shifted outlier")
)
def test_mse_is_at_least_as_good_as_a_fine_search(values):
    values = values[-20_000:]
    result = chosen(values, method="mse")
    low, high = min(float(values.min()), 0), float(values.max())
    tried = [(low * a, high * b) for a in 0.9 ** np.arange(35) for b in 0.9 ** np.arange(35)]
    least = min(squared_error(values, ends) for ends in tried)
    assert squared_error(values, (result.minimum, result.maximum)) <= 1.03 * least


def test_mse_clips_an_outlier_only_where_that_is_worth_it():
    for count in (50, 20_000, 200_000):
        result = chosen(np.append(NORMAL[:count], np.float32(100)), method="mse")
        # The minimum of (100 - maximum)² + count * (maximum - minimum)² / 255² / 12.
        weight = count / 255**2 / 12
        assert result.maximum == pytest.approx((100 + weight * result.minimum) / (1 + weight), rel=0.01)


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_zeros_of_a_relu_do_not_move_the_range(method):
    sparse = np.concatenate([RELU, np.zeros(2_000_000, np.float32)])
    one, other = chosen(RELU, method=method), chosen(sparse, method=method)
    assert (one.minimum, one.maximum) == (other.minimum, other.maximum)


def test_entropy_keeps_most_of_a_gaussian_and_drops_an_outlier():
    assert chosen(NORMAL, method="entropy").maximum > 2.5
    assert chosen(OUTLIER, method="entropy").maximum < 50


@pytest.mark.parametrize("method", ["min_max", "moving_average", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -3.0, 1e-38, 3e38])
def test_tensors_of_one_value_have_a_finite_range(method, value):
    result = chosen(np.full(100, value, np.float32), method=method)
    assert np.isfinite([result.minimum, result.maximum]).all()
    assert result.minimum <= result.maximum
    assert np.float32(min(value, 0)) <= result.minimum and result.maximum <= np.float32(max(value, 0))


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_ranges_never_reach_beyond_what_was_seen(method):
    result = chosen(LAPLACE, method=method)
    assert LAPLACE.min() <= result.minimum < result.maximum <= LAPLACE.max()


def test_clipped_values_are_reported():
    result = chosen(NORMAL, method="percentile", percentile=90.0)
    assert result.clipped == pytest.approx(0.2, abs=0.002)
    assert result.coverage == pytest.approx(2 * 1.2816 / (NORMAL.max() - NORMAL.min()), rel=0.02)


def test_without_a_histogram_what_is_clipped_is_not_known():
    result = choose_ranges(observations(seen(NORMAL, histogram=False)), CalibrationConfig(method="moving_average"))
    assert result.tensors[0, 0].clipped is None


def test_a_method_that_needs_a_missing_histogram_is_refused():
    with refused(InputError, word="histograms=True"):
        choose_ranges(observations(seen(NORMAL, histogram=False)), CalibrationConfig(method="mse"))


def test_the_last_matching_pattern_sets_a_layers_method():
    tensors = [seen(OUTLIER, name=f"t{index}", layer=layer) for index, layer in enumerate(("conv", "conv_2", None))]
    config = CalibrationConfig(method="min_max", tensors=("conv*=mse", "conv_2=percentile"))
    result = choose_ranges(observations(*tensors), config)
    assert [item.method for item in result.tensors.values()] == ["mse", "percentile", "min_max"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("conv", "PATTERN=METHOD"),
        ("=mse", "PATTERN=METHOD"),
        ("conv=msee", "mean"),
        ("dense=mse", "layer"),
    ],
)
def test_patterns_that_say_nothing_are_refused(text, word):
    with refused(InputError, word=word):
        choose_ranges(observations(seen(NORMAL, layer="conv")), CalibrationConfig(tensors=(text,)))


def of_samples(values, **config):
    """Return the range of a tensor of a few values over many samples."""
    return choose_ranges(
        observations(seen(values.reshape(-1), samples=len(values)), samples=len(values)), CalibrationConfig(**config)
    ).tensors[0, 0]


FEW_VALUES = RNG.normal(size=(500, 16)).astype(np.float32)
ONE_FAR_OUT = np.where(np.arange(500)[:, None] == 317, FEW_VALUES * 300, FEW_VALUES)


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_an_outlier_sample_is_left_out_and_reported_by_index(method):
    result = of_samples(ONE_FAR_OUT, method=method)
    assert result.outlier_samples == (317,)
    assert FEW_VALUES.min() <= result.minimum < -2 and 2 < result.maximum <= FEW_VALUES.max()
    assert result.clipped > 0 and result.coverage < 0.01


@pytest.mark.parametrize("method", ["min_max", "moving_average"])
def test_methods_of_extremes_leave_no_sample_out(method):
    result = of_samples(ONE_FAR_OUT, method=method)
    assert result.outlier_samples == () and (method != "min_max" or result.maximum == ONE_FAR_OUT.max())


def test_samples_of_one_family_are_all_kept():
    for values in (FEW_VALUES, np.abs(FEW_VALUES), FEW_VALUES + 100, np.exp(FEW_VALUES)):
        assert of_samples(values.astype(np.float32), method="percentile").outlier_samples == ()


def test_a_few_percent_of_samples_are_outliers_if_they_are_farther_away():
    def spread(every, factor):
        chosen = np.arange(500) % every == 0
        return np.where(chosen[:, None], FEW_VALUES * factor, FEW_VALUES), tuple(np.flatnonzero(chosen).tolist())

    for every, factor in ((100, 12), (83, 300), (34, 300)):  # 1%, 1.4% and 3% of the samples
        values, expected = spread(every, factor)
        assert of_samples(values, method="percentile").outlier_samples == expected
    assert of_samples(spread(31, 300)[0], method="percentile").outlier_samples == ()  # 3.4%


def test_among_fewer_than_a_hundred_samples_there_are_no_outliers():
    few = ONE_FAR_OUT[300:399]
    assert of_samples(few, method="percentile").outlier_samples == ()
    assert of_samples(ONE_FAR_OUT[300:400], method="percentile").outlier_samples == (17,)


def test_what_is_zero_in_nearly_all_samples_keeps_the_others():
    rarely = np.where(np.arange(500)[:, None] == 5, np.float32(3), np.float32(0)) * np.ones((1, 4), np.float32)
    result = of_samples(rarely, method="percentile")
    assert result.outlier_samples == () and result.maximum == 3

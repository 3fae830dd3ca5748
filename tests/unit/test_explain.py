# SPDX-License-Identifier: Apache-2.0
"""Occlusion saliency. Oracles: a loop over pixels and LiteRT's interpreter, and SciPy."""

import base64
import io
import json
import sys

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from golden_models import changed, golden
from messages import refused
from PIL import Image
from scipy.stats import spearmanr
from sklearn.datasets import load_digits

import tfq
from tfq.analysis import explain as explain_function
from tfq.analysis import occlusion
from tfq.config import ExplainConfig
from tfq.errors import InputError
from tfq.report.analysis_content import ANALYSIS
from tfq.report.explain_content import explain_section
from tfq.report.tables import table_html

FLOATING, QUANTIZED = golden("digits_float32"), golden("digits_int8")
IMAGES = load_digits().images[..., None].astype(np.float32)[:12]


def scores(model, images):
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    given, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for image in images:
        if given["dtype"] == np.int8:
            scale, zero_point = given["quantization"]
            image = np.clip(np.rint(image / scale) + zero_point, -128, 127)
        interpreter.set_tensor(given["index"], image[None].astype(given["dtype"]))
        interpreter.invoke()
        values = interpreter.get_tensor(result["index"])[0].astype(np.float64)
        if given["dtype"] == np.int8:
            scale, zero_point = result["quantization"]
            values = (values - zero_point) * scale
        rows.append(values)
    return np.array(rows)


def brute_force(model, image, target, fill, patch, stride):
    size = image.shape[0]
    result = np.zeros(((size - patch) // stride + 1,) * 2)
    whole = scores(model, [image])[0, target]
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            hidden = image.copy()
            for y in range(patch):
                for x in range(patch):
                    hidden[row * stride + y, column * stride + x] = fill
            result[row, column] = whole - scores(model, [hidden])[0, target]
    return result


def test_maps_and_correlations_are_those_of_a_loop_over_pixels():
    images = IMAGES[:3]
    result = tfq.explain(QUANTIZED, FLOATING, images, ExplainConfig(patch=2, stride=2, fill=3.0))
    assert result.map_shape == (4, 4) and result.patch == (2, 2)
    for item in result.examples:
        image = images[item.index]
        assert item.target == scores(FLOATING, [image])[0].argmax()
        one, other = (brute_force(model, image, item.target, 3.0, 2, 2) for model in (FLOATING, QUANTIZED))
        np.testing.assert_allclose(item.float_map, one, atol=1e-5)
        np.testing.assert_allclose(item.int8_map, other, atol=1e-6)
        expected = spearmanr(np.ravel(item.float_map), np.ravel(item.int8_map)).statistic
        assert item.correlation == pytest.approx(expected, abs=1e-9)
        assert item.unchanged == (other == 0).mean()
        assert item.below_step == (np.abs(np.array(item.float_map)) < result.step).mean()


def shuffled(model):
    rng = np.random.default_rng(5)
    for buffer in model.buffers:
        if buffer.data is not None and len(buffer.data) > 200:
            buffer.data = rng.permutation(np.asarray(buffer.data))


def test_maps_of_shuffled_weights_do_not_correlate():
    good = tfq.explain(QUANTIZED, FLOATING, IMAGES)
    bad = tfq.explain(changed(QUANTIZED, shuffled), FLOATING, IMAGES)
    assert good.correlation > 0.7
    assert abs(bad.correlation) < 0.3
    assert good.interval[0] < good.correlation < good.interval[1]
    assert abs(good.control_correlation) < 0.4


def test_a_model_against_itself_has_a_correlation_of_one():
    result = tfq.explain(FLOATING, FLOATING, IMAGES[:4])
    assert result.correlation == 1 and result.top_overlap == 1
    assert result.step is None and result.below_step is None and result.interval is None
    assert "10" in result.interval_reason


def test_examples_are_sorted_by_correlation_and_pictures_are_capped():
    result = tfq.explain(QUANTIZED, FLOATING, IMAGES, ExplainConfig(pictures=2))
    known = [item.correlation for item in result.examples]
    assert known == sorted(known)
    assert [item.picture is not None for item in result.examples] == [True, True] + [False] * 10
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(result.examples[0].picture))))
    assert picture.shape == (48, 3 * 48 + 2 * 4, 3)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_curve_spans_the_lowest_and_the_highest_value():
    time = np.arange(960)
    signal = np.sin(time / 960 * 2 * np.pi)
    pixels = occlusion.curve(signal, 33, 96)
    assert pixels.shape == (33, 96, 3) and set(np.unique(pixels)) == {0, 255}
    black = pixels[..., 0] == 0
    # Each column has the rows between the lowest and the highest sample at its time, in an unbroken run.
    for column in range(96):
        rows = np.flatnonzero(black[:, column])
        samples = (1 - signal[10 * column : 10 * column + 11]) / 2 * 32
        assert (rows[0], rows[-1]) == (np.rint(samples.min()), np.rint(samples.max())), column
        assert len(rows) == rows[-1] - rows[0] + 1
    assert not black[17:, :40].any() and not black[:16, 56:].any()
    assert (occlusion.curve(np.full(4, 7.0), 5, 8)[-1] == 0).all()


def test_features_are_drawn_within_the_range_of_the_examples():
    among = np.array([[0.0, 1000.0], [1.0, 3000.0], [0.5, 2000.0]])
    pixels = occlusion.curve(among[2], 11, 2, among)
    assert [np.flatnonzero(column == 0).tolist() for column in pixels[..., 0].T] == [[5], [5]]
    assert np.flatnonzero(occlusion.curve(among[1], 11, 2, among)[:, 0, 0] == 0).tolist() == [0]


def test_the_picture_of_a_signal_has_the_signal_under_both_maps():
    inputs = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
    grid = occlusion.grid_of((300,), ExplainConfig())
    scores = np.arange(grid.num_parts, dtype=float)
    pixels = sys.modules[explain_function.__module__]._picture(inputs, 1, (scores, -scores), grid)
    assert pixels.shape == (2 * 12 + 2 * 4 + 32, 96, 3)
    np.testing.assert_array_equal(pixels[-32:], occlusion.curve(inputs[1], 32, 96))


def test_constant_maps_have_no_correlation_and_a_reason():
    result = tfq.explain(QUANTIZED, FLOATING, np.zeros((3, 8, 8, 1), np.float32), ExplainConfig(fill=0.0))
    assert result.num_constant == 3 and result.correlation is None and result.unchanged == 1
    assert "float and of the int8 model" in result.examples[0].correlation_reason
    assert "no example has a correlation" in result.to_text()


def test_ranks_of_ties_are_averages():
    rng = np.random.default_rng(1)
    for _ in range(50):
        one, other = rng.integers(0, 4, 20).astype(float), rng.integers(0, 6, 20).astype(float)
        value, _ = occlusion.rank_correlation(one, other)
        assert value == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)


def test_a_constant_map_has_chance_overlap_with_every_map():
    values = np.random.default_rng(2).permutation(20).astype(float)
    assert occlusion.top_overlap(values, values, 4) == 1
    assert occlusion.top_overlap(values, -values, 4) == 0
    assert occlusion.top_overlap(values, np.zeros(20), 4) == pytest.approx(4 / 20)


@pytest.mark.parametrize(
    ("shape", "kind", "map_shape"),
    [
        ((32, 32, 3), "image", (15, 15)),
        ((49, 10, 1), "image", (15, 9)),
        ((100, 6), "signal", (16,)),
        ((16000,), "signal", (15,)),
        ((13,), "features", (13,)),
        ((1, 1, 3), "image", (1, 1)),
    ],
)
def test_every_place_is_hidden_by_a_part(shape, kind, map_shape):
    grid = occlusion.grid_of(shape, ExplainConfig())
    assert grid.kind == kind and grid.map_shape == map_shape
    assert (grid.on_input(np.ones(grid.num_parts)) == 1).all()
    example = np.ones(shape, np.float32)
    hidden = occlusion.occluded(example, grid, occlusion.fill_of(example[None] * 5, grid, 0.0))
    assert (hidden[0] == 1).all() and hidden[1:].min(axis=0).max() == 0


def test_features_are_filled_with_their_own_means():
    data = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    grid = occlusion.grid_of((2,), ExplainConfig())
    np.testing.assert_array_equal(
        occlusion.occluded(data[0], grid, occlusion.fill_of(data, grid, None)), [[1, 10], [2, 10], [1, 20]]
    )


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"patch": 9}, "patch"),
        ({"patch": 2, "stride": 3}, "stride"),
        ({"target": 10}, "target"),
        ({"output": "boxes"}, "output"),
        ({"input": "sound"}, "input"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, field):
    with refused(InputError, field=f"analysis.explain.{field}"):
        tfq.explain(QUANTIZED, FLOATING, IMAGES[:1], ExplainConfig(**settings))


def test_the_page_shows_pictures_and_what_the_steps_hide():
    explained = json.loads(json.dumps(tfq.explain(QUANTIZED, FLOATING, IMAGES, ExplainConfig(pictures=3)).to_dict()))
    section = explain_section(explained)
    agreement, examples = section.tables
    assert table_html(examples).count("data:image/png;base64,") == 3
    assert any("less than one step" in row[0] for row in agreement.rows)
    assert any("does not say why" in note for note in agreement.notes)
    assert ANALYSIS.command == "analyze"

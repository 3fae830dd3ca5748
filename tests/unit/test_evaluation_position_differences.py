# SPDX-License-Identifier: Apache-2.0
"""Examples for which two models predict different classes of positions: their figures and pictures."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tfq.data import Split
from tfq.evaluation import metric_for_labels
from tfq.evaluation.pictures import GAP, any_nearest, class_color, nearest, rgb
from tfq.evaluation.position_differences import SIDE, differing_positions, position_agreement, position_classes
from tfq.report.command_content import EVALUATION
from tfq.report.examples_content import examples_of_pair
from tfq.report.markdown import markdown_of
from tfq.report.page import page_of
from tfq.report.tables import table_html

NAMES = ("background", "cat", "dog")
RED, GREEN, ORANGE = (230, 40, 40), (40, 170, 80), (240, 170, 30)


def split(images, names=()):
    return Split(name="test", inputs={"x": images}, labels=None, source="arrays", class_names=names)


def one_hot(maps, classes=3):
    return np.eye(classes)[maps]


@pytest.fixture
def scenes():
    """Return images, labels, and the maps of a reference and of a model, of three examples of 8x8 pixels.

    The model differs in 0, 3 and 5 pixels. In example 1 the reference is right; in example 2 the model is right in
    two pixels, both are wrong in two, and one has no label.
    """
    labels = np.zeros((3, 8, 8), np.int64)
    labels[:, 2:6, 2:6] = 1
    reference, model = labels.copy(), labels.copy()
    model[1, 0, :3] = 2
    reference[2, 0, :2] = 1  # labeled 0, as the model says
    reference[2, 7, :2], model[2, 7, :2] = 1, 2
    labels[2, 4, 0] = -1
    model[2, 4, 0] = 2
    images = np.linspace(0, 1, 3 * 64, dtype=np.float32).reshape(3, 8, 8, 1)
    return images, labels, reference, model


def panels_of(picture, count):
    """Return the parts of a picture, (height, width, 3) each, as Pillow decodes it."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
    width = (pixels.shape[1] - GAP * (count - 1)) // count
    assert (width + GAP) * count - GAP == pixels.shape[1]
    return [pixels[:, place * (width + GAP) :][:, :width] for place in range(count)]


def test_the_examples_with_the_lowest_agreement_come_first(scenes):
    images, labels, reference, model = scenes
    result = differing_positions(one_hot(model), one_hot(reference), labels, split(images, NAMES), 12)
    assert (result["kind"], result["count"]) == ("positions", 2)
    assert [(item["index"], item["differing"], item["positions"]) for item in result["examples"]] == [
        (2, 5, 64), (1, 3, 64),
    ]  # fmt: skip
    assert [item["agreement"] for item in result["examples"]] == pytest.approx([59 / 64, 61 / 64])
    first, second = result["examples"]
    assert (first["reference_accuracy"], first["accuracy"]) == pytest.approx((59 / 63, 61 / 63))
    assert (second["reference_accuracy"], second["accuracy"]) == pytest.approx((1, 61 / 64))
    assert second["changes"] == [
        {"reference_class": 0, "reference_name": "background", "class": 2, "name": "dog", "count": 3}
    ]
    json.dumps(result, allow_nan=False)


def test_no_more_examples_are_listed_than_asked_for(scenes):
    images, labels, reference, model = scenes
    result = differing_positions(one_hot(model), one_hot(reference), labels, split(images), 1)
    assert result["count"] == 2 and [item["index"] for item in result["examples"]] == [2]


def test_equal_maps_list_no_example(scenes):
    images, labels, reference, _ = scenes
    result = differing_positions(one_hot(reference), one_hot(reference), labels, split(images), 12)
    assert (result["count"], result["examples"], result["picture_reason"]) == (0, [], None)


def test_a_picture_shows_each_class_in_the_color_of_the_legend(scenes):
    images, labels, reference, model = scenes
    result = differing_positions(one_hot(model), one_hot(reference), labels, split(images, NAMES), 12)
    colors = {item["text"]: tuple(bytes.fromhex(item["color"][1:])) for item in result["legend"]}
    assert result["panels"] == ["input", "label", "reference", "model", "difference"]
    parts = panels_of(result["examples"][0]["picture"], 5)
    by_class = {0: colors["0 background"], 1: colors["1 cat"], 2: colors["2 dog"], -1: colors["no label"]}
    for part, classes in zip(parts[1:4], (labels[2], reference[2], model[2]), strict=True):
        middle = part[SIDE // 16 :: SIDE // 8, SIDE // 16 :: SIDE // 8]
        expected = [[by_class[int(number)] for number in row] for row in classes]
        assert np.array_equal(middle, expected)
    gray = parts[0][SIDE // 16 :: SIDE // 8, SIDE // 16 :: SIDE // 8]
    assert np.array_equal(gray[..., 0], np.rint(255 * images[2, ..., 0])) and (gray == gray[..., :1]).all()


def test_the_last_part_shows_which_model_is_right(scenes):
    images, labels, reference, model = scenes
    result = differing_positions(one_hot(model), one_hot(reference), labels, split(images), 12)
    for item, expected in zip(result["examples"], ({GREEN: 2, ORANGE: 3}, {RED: 3}), strict=True):
        pixels = panels_of(item["picture"], 5)[-1].reshape(-1, 3)
        counts = {color: int((pixels == color).all(axis=1).sum()) for color in (RED, GREEN, ORANGE)}
        assert counts == {color: expected.get(color, 0) * (SIDE // 8) ** 2 for color in counts}
    texts = [item["text"] for item in result["legend"]]
    assert {"only the reference is right", "only the model is right"} <= set(texts)


def test_a_single_pixel_stays_visible_in_a_picture_that_is_smaller():
    flags = np.zeros((1000, 700), bool)
    flags[613, 401] = True
    small = any_nearest(flags, 96, 67)
    assert small.shape == (96, 67) and small.sum() == 1 and small[613 * 96 // 1000, 401 * 67 // 700]
    assert nearest(flags, 96, 67).sum() == 0  # what it must not be
    assert np.array_equal(any_nearest(flags[600:620, 400:410], 20, 10), flags[600:620, 400:410])


@pytest.mark.parametrize("shape", [(4, 4, 3), (97, 60, 1), (500, 333, 3), (191, 191, 1)])
def test_an_image_of_any_size_fills_its_part(shape):
    image = np.zeros(shape)
    image[shape[0] // 2 :] = 255
    pixels = rgb(image, 96, 60)
    assert pixels.shape == (96, 60, 3) and (pixels[:40] == 0).all() and (pixels[56:] == 255).all()


def test_without_labels_the_pictures_have_no_part_for_them(scenes):
    images, _, reference, model = scenes
    result = differing_positions(one_hot(model), one_hot(reference), None, split(images), 12)
    assert result["panels"] == ["input", "reference", "model", "difference"]
    assert all(item["accuracy"] is None and item["picture"] for item in result["examples"])
    panels_of(result["examples"][0]["picture"], 4)


def test_maps_of_half_the_size_are_drawn_over_the_whole_image(scenes):
    images, labels, reference, model = scenes
    large = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    small = differing_positions(one_hot(model), one_hot(reference), labels, split(images), 12)
    result = differing_positions(one_hot(model), one_hot(reference), labels, split(large), 12)
    for item, other in zip(result["examples"], small["examples"], strict=True):
        parts, others = (panels_of(entry["picture"], 5) for entry in (item, other))
        assert all(np.array_equal(*pair) for pair in zip(parts[1:4], others[1:4], strict=True))


def test_inputs_or_outputs_without_pictures_have_a_reason(scenes):
    images, labels, reference, model = scenes
    vectors = split(images.reshape(3, 64))
    result = differing_positions(one_hot(model), one_hot(reference), labels, vectors, 12)
    assert result["picture_reason"] and result["legend"] == []
    signals = [array.reshape(3, 64) for array in (model, reference, labels)]
    result = differing_positions(one_hot(signals[0]), one_hot(signals[1]), signals[2], split(images), 12)
    assert [item["picture"] for item in result["examples"]] == [None, None] and result["picture_reason"]
    assert [item["differing"] for item in result["examples"]] == [5, 3]


def test_one_sigmoid_for_each_pixel_is_read_at_half(scenes):
    _, labels, _, _ = scenes
    rng = np.random.default_rng(0)
    values, expected = rng.uniform(size=(2, 3, 8, 8, 1))
    truth = (labels > 0).astype(np.int64)
    assert np.array_equal(position_classes(values, truth)[0], (values > 0.5).reshape(3, 64))
    oracle = float(((values > 0.5) == (expected > 0.5)).mean())
    assert position_agreement(values, expected, truth) == pytest.approx(oracle)


def test_class_numbers_are_compared_as_they_are(scenes):
    images, labels, reference, model = scenes
    result = differing_positions(model, reference, labels, split(images), 12)
    assert [item["differing"] for item in result["examples"]] == [5, 3]


def test_the_agreement_of_many_examples_is_that_of_all_at_once():
    rng = np.random.default_rng(1)
    values, expected = rng.uniform(size=(2, 150, 4, 4, 3))
    oracle = float((values.argmax(-1) == expected.argmax(-1)).mean())
    assert position_agreement(values, expected, None) == pytest.approx(oracle)


def test_colors_of_neighboring_classes_are_far_apart():
    colors = np.array([class_color(number) for number in range(29)], float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 45
    assert distances[:8, :8].min() > 100


def test_many_classes_have_a_color_each_if_few_of_them_occur():
    labels = np.full((1, 8, 8), 3)
    labels[0, 0] = 31  # would have the color of class 3
    reference = labels.copy()
    reference[0, 1] = 31
    images = split(np.zeros((1, 8, 8, 3), np.float32))
    result = differing_positions(one_hot(labels, 40), one_hot(reference, 40), labels, images, 12)
    colors = [item["color"] for item in result["legend"]]
    assert len(set(colors)) == len(colors)


@pytest.fixture
def evaluation(scenes):
    images, labels, reference, model = scenes
    result = differing_positions(one_hot(model), one_hot(reference), labels, split(images, NAMES), 12)
    return {"compared": 3, "differing_examples": result}


def test_the_page_shows_the_parts_of_pictures_with_a_legend(evaluation):
    record = {"command": "evaluate", "evaluation": evaluation, "config": {"model": "m_int8.tflite"}}
    (section,) = (item for item in EVALUATION.sections(EVALUATION.view(record)) if item.key == "examples")
    assert "2 of 3" in section.items[0]
    (table,) = section.tables
    assert table.panels == ("input", "label", "float", "m_int8", "difference")
    page, text = page_of(record), markdown_of(record)
    assert page.count('<img src="data:image/png;base64,iVBOR') == 2
    html = page.partition('data-table="examples"')[2]
    for word in ("background", "only the float model is right", "only m_int8 is right", "<span>difference</span>"):
        assert word in html
    assert "0 background → 2 dog: 3" in text and "iVBOR" not in text and "#e62828" not in text


def test_two_files_have_their_letters_on_the_page(evaluation):
    section = examples_of_pair(evaluation, reference="A", model="B")
    (table,) = section.tables
    assert table.panels[2:4] == ("A", "B")
    assert "only A is right" in [text for _, text in table.legend]


@pytest.mark.parametrize("color", ["red", "#fff", "#e62828;background:url(x)", '#e62828"><script>', ""])
def test_a_color_of_another_form_is_not_drawn(evaluation, color):
    evaluation["differing_examples"]["legend"] = [{"color": color, "text": "hostile"}]
    section = examples_of_pair(evaluation, reference="A", model="B")
    assert "hostile" not in table_html(section.tables[0])


def test_an_unknown_kind_of_differences_is_not_shown(evaluation):
    evaluation["differing_examples"]["kind"] = "later"
    assert examples_of_pair(evaluation, reference="A", model="B") is None


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (np.zeros((2, 4, 4), np.int64), "mean_iou"),
        (np.zeros((2, 3, 9)), "coco_map"),
        (np.zeros((2, 3, 6)), "coco_map"),
        (np.zeros(2, np.int64), None),
        (np.eye(3)[[0, 1]], None),
        (np.eye(3)[[0, 1]].astype(np.int64), None),
        (np.zeros((2, 1, 1), np.int64), None),
        (np.full((2, 3, 6), 0.5), None),
        (None, None),
    ],
)
def test_labels_choose_the_metric_that_is_meant_for_them(labels, name):
    metric = metric_for_labels(labels)
    assert (None if metric is None else metric.name) == name

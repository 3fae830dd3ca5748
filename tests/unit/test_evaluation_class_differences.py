# SPDX-License-Identifier: Apache-2.0
"""Figures of each class, and the examples for which a model and its reference predict different classes."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

import tfq
from tfq.config import EvaluationConfig
from tfq.data import Split, SplitStream
from tfq.evaluation.class_differences import class_figures, differing_examples
from tfq.evaluation.pictures import MAX_SIDE, png, thumbnails, why_no_picture
from tfq.report.class_content import classes_section
from tfq.report.command_content import EVALUATION
from tfq.report.examples_content import examples_section
from tfq.report.markdown import markdown_of
from tfq.report.page import page_of

LABELS = np.array([0, 0, 1, 2, 2, 2])
# The model is wrong for examples 1 and 5, the reference for 4.
MODEL = np.eye(3)[[0, 1, 1, 2, 2, 0]] * 0.8 + 0.05
REFERENCE = np.eye(3)[[0, 0, 1, 2, 1, 2]] * 0.9 + 0.03


def decoded(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


def split(images, **fields):
    return Split(name="test", inputs={"x": images}, labels=None, source="arrays", **fields)


@pytest.fixture
def images():
    """Return six images whose values are their indices."""
    return np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1) * np.ones((6, 8, 8, 1), np.float32)


def test_the_figures_of_a_class_are_counts_of_its_examples():
    figures, reason = class_figures(MODEL, REFERENCE, LABELS, ("a", "b"))
    assert reason is None
    assert figures.pop("confusion")["classes"] == [0, 1, 2]
    assert figures == {
        "class": [0, 1, 2], "name": ["a", "b", None], "examples": [2, 1, 3], "correct": [1, 1, 2],
        "reference_correct": [2, 1, 2],
    }  # fmt: skip
    assert class_figures(MODEL, None, LABELS, ())[0]["reference_correct"] is None


@pytest.mark.parametrize("labels", [None, np.full(6, 0.5), np.array([0, 1, 2, 3, 0, 0]), np.zeros(5, int)])
def test_labels_that_are_no_classes_have_a_reason(labels):
    figures, reason = class_figures(MODEL, REFERENCE, labels, ())
    assert figures is None and reason


def test_examples_that_only_the_reference_gets_right_come_first(images):
    result, reason = differing_examples(MODEL, REFERENCE, LABELS, split(images), 12)
    assert reason is None and result["count"] == 3
    assert {item["index"] for item in result["examples"][:2]} == {1, 5} and result["examples"][2]["index"] == 4
    first = next(item for item in result["examples"] if item["index"] == 5)
    assert (first["label"], first["class"], first["reference_class"]) == (2, 0, 2)
    assert (first["score"], first["reference_score"]) == pytest.approx((0.85, 0.93))


def test_no_more_examples_are_listed_than_asked_for(images):
    result, _ = differing_examples(MODEL, REFERENCE, LABELS, split(images), 1)
    assert result["count"] == 3 and len(result["examples"]) == 1


def test_equal_classes_list_no_example(images):
    result, reason = differing_examples(MODEL, MODEL[:, ::1], LABELS, split(images), 12)
    assert (result["count"], result["examples"], reason) == (0, [], None)


def test_pictures_are_those_of_their_examples(images):
    result, _ = differing_examples(MODEL, REFERENCE, LABELS, split(images), 12)
    levels = {item["index"]: decoded(item["picture"]) for item in result["examples"]}
    assert {index: (level.min(), level.max()) for index, level in levels.items()} == {
        index: (value, value) for index, value in ((1, 0), (4, 191), (5, 255))
    }  # 1 to 5 are drawn as 0 to 255


@pytest.mark.parametrize("seekable", [True, False])
def test_pictures_of_a_stream_are_those_of_the_same_examples_in_memory(images, seekable):
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        for place in range(start, stop, 2):
            yield split(images[place : min(place + 2, stop)])

    stream = SplitStream(name="test", source="s", num_examples=6, read=read, piece_examples=2, seekable=seekable)
    in_memory, _ = differing_examples(MODEL, REFERENCE, LABELS, split(images), 12)
    streamed, _ = differing_examples(MODEL, REFERENCE, LABELS, stream, 12)
    assert len(reads) == (1 + 3 if seekable else 2)  # one for the shape
    assert streamed == in_memory


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({"x": np.zeros((6, 8), np.float32)}, "shape"),
        ({"x": np.zeros((6, 8, 8, 2), np.float32)}, "shape"),
        ({"a": np.zeros((6, 8, 8, 1), np.float32), "b": np.zeros((6, 8, 8, 3), np.float32)}, "2"),
    ],
)
def test_inputs_that_are_no_image_have_a_reason_instead_of_pictures(inputs, word):
    data = Split(name="test", inputs=inputs, labels=None, source="arrays")
    result, _ = differing_examples(MODEL, REFERENCE, None, data, 12)
    assert [item["picture"] for item in result["examples"]] == [None] * 3 and word in result["picture_reason"]
    assert all(item["label"] is None for item in result["examples"])


def test_the_score_of_a_sigmoid_is_that_of_the_predicted_class(images):
    result, _ = differing_examples(np.array([[0.2]] * 6), np.array([[0.2]] * 5 + [[0.7]]), None, split(images), 12)
    (item,) = result["examples"]
    assert (item["class"], item["reference_class"]) == (0, 1)
    assert (item["score"], item["reference_score"]) == pytest.approx((0.8, 0.7))


def test_class_numbers_have_no_score(images):
    numbers = np.array([0, 1, 1, 2, 2, 0])[:, None]
    result, _ = differing_examples(numbers, np.zeros((6, 1), int), None, split(images), 12)
    assert result["count"] == 4 and all(item["score"] is None for item in result["examples"])
    json.dumps(result, allow_nan=False)


def test_a_class_for_each_pixel_has_a_reason(images):
    result, reason = differing_examples(np.zeros((6, 8, 8, 3)), np.zeros((6, 8, 8, 3)), None, split(images), 12)
    assert result is None and "64" in reason


@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_decodes_a_png_file_to_the_same_pixels(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    image = Image.open(io.BytesIO(png(pixels)))
    image.verify()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))).reshape(pixels.shape), pixels)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 255)), (0.25, 0.75, (64, 191)), (-1, 1, (0, 255)), (0, 255, (0, 255)), (0, 16, (0, 255)),
        (-3, 5, (0, 255)),
    ],
)  # fmt: skip
def test_values_are_drawn_in_the_range_that_they_were_scaled_to(low, high, expected):
    image = np.full((1, 4, 4, 1), low, np.float32)
    image[0, 0] = high
    pixels = decoded(thumbnails(image)[0])
    assert (pixels.min(), pixels.max()) == expected


@pytest.mark.parametrize("shape", [(224, 224, 3), (1000, 4, 1), (49, 10, 1), (48, 48, 3)])
def test_a_thumbnail_is_small(shape):
    image = np.zeros((1, *shape), np.float32)
    image[:, : shape[0] // 2] = 1
    pixels = decoded(thumbnails(image)[0])
    assert max(pixels.shape[:2]) <= MAX_SIDE and min(pixels.shape[:2]) >= 1
    assert pixels[0].max() == 255 and pixels[-1].max() == 0
    assert why_no_picture(shape) is None


@pytest.fixture(scope="module")
def ambiguous():
    """Return digits that are the mean of two, for which int8 and float sometimes differ."""
    digits = tfq.load_split(tfq.DataConfig(source="digits"), "test")
    (images,) = digits.inputs.values()
    mixed = (images + images[np.random.default_rng(0).permutation(len(images))]) / 2
    return dataclasses.replace(digits, inputs={"x": mixed})


@pytest.fixture(scope="module")
def evaluated(golden, ambiguous):
    """Return the evaluation of a model whose classes differ from the float model's for some examples."""
    settings = EvaluationConfig(num_runs=0, differing_examples=3)
    model, reference = golden / "digits_int8.tflite", golden / "digits_float32.tflite"
    return tfq.evaluate(model, ambiguous, settings, reference=reference)


def test_an_evaluation_counts_as_many_differing_examples_as_disagree(evaluated):
    differing, figures = evaluated.differing_examples, evaluated.classes
    assert differing["count"] == round((1 - evaluated.agreement) * evaluated.num_examples) > 3
    assert len(differing["examples"]) == 3
    assert sum(figures["correct"]) == round(evaluated.accuracy * evaluated.num_examples)
    assert sum(figures["reference_correct"]) == round(evaluated.reference_accuracy * evaluated.num_examples)


def test_the_page_shows_pictures_and_the_worst_classes_first(evaluated):
    record = {"command": "evaluate", "evaluation": evaluated.to_dict(), "config": {"model": "m_int8.tflite"}}
    page, text = page_of(record), markdown_of(record)
    assert page.count('<img src="data:image/png;base64,iVBOR') == 3
    table = page.partition('data-table="classes"')[2].partition("</table>")[0]
    differences = [cell.split("</td>")[0] for cell in table.split('<td class="number">')[4::4]]
    values = [float(cell.replace("−", "-")) for cell in differences]
    assert len(values) == 10 and values == sorted(values)
    assert "Examples that differ" in text and "iVBOR" not in text


@pytest.mark.parametrize(
    "picture", ["<script>", '"><script>alert(1)</script>', "PHN2Zz4=", "iVBORw0KGgo<", 5, ["iVBORw0KGgo="], "../a.png"]
)
def test_a_picture_that_is_no_png_file_is_not_shown(evaluated, picture, undrawn):
    evaluation = json.loads(json.dumps(evaluated.to_dict()))
    evaluation["differing_examples"]["examples"][0]["picture"] = picture
    page = page_of({"command": "evaluate", "evaluation": evaluation})
    assert page.count("<img ") == 2 and "<script>alert" not in page and "svg+xml" not in page


def test_a_page_says_that_no_example_differs(evaluated):
    evaluation = {**evaluated.to_dict(), "differing_examples": {"count": 0, "examples": []}}
    sections = EVALUATION.sections(EVALUATION.view({"command": "evaluate", "evaluation": evaluation}))
    (section,) = (section for section in sections if section.key == "examples")
    assert "none" in section.items[0] and section.tables == ()


@pytest.mark.parametrize("setting", [{"differing_examples": 0}, {}])
def test_without_examples_the_record_has_the_reason(golden, ambiguous, setting):
    reference = golden / "digits_float32.tflite" if setting else None
    config = EvaluationConfig(num_runs=0, limit=8, **setting)
    record = tfq.evaluate(golden / "digits_int8.tflite", ambiguous, config, reference=reference)
    assert record.differing_examples is None and record.differing_examples_reason
    assert sum(record.classes["examples"]) == 8 and (record.classes["reference_correct"] is None) == (reference is None)


def test_names_of_classes_are_shown_and_wrong_classes_are_marked():
    examples = [
        {"index": 7, "label": 1, "class": 2, "reference_class": 1, "names": {"1": "cat", "2": "2"}},
        {"index": 8, "label": 1, "class": 1, "reference_class": 2, "names": {"1": "cat", "2": "2"}},
    ]
    evaluation = {"compared": 9, "differing_examples": {"count": 2, "examples": examples}}
    (table,) = examples_section({"models": [{"name": "ptq_int8", "evaluation": evaluation}]}).tables
    assert [(row[1], row[2], row[4]) for row in table.rows] == [("1 cat", "1 cat", "2"), ("1 cat", "2", "1 cat")]
    assert table.bad == {(0, 4), (1, 2)}


def test_a_runs_page_lists_classes_and_examples_of_all_models_but_float(evaluated):
    models = [{"name": name, "evaluation": evaluated.to_dict()} for name in ("float", "ptq_int8", "qat_int8")]
    record = {"models": models}
    for section in (classes_section(record), examples_section(record)):
        assert [table.columns[-2 if section.key == "examples" else 3] for table in section.tables] == [
            "PTQ int8",
            "QAT int8",
        ]
    assert classes_section({"models": models[:1]}) is None and examples_section({"models": models[:1]}) is None

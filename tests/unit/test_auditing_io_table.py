# SPDX-License-Identifier: Apache-2.0
"""The table of inputs and outputs: shapes, steps, ranges and labels, compared with NumPy and with what the file has."""

import json

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from golden_models import GOLDEN, NAMES, changed, golden

from tfq import tflite
from tfq.auditing import io_table
from tfq.config import DataConfig
from tfq.data import preprocess
from tfq.quant_math import quantize
from tfq.tflite import ModelMetadata, SubGraphMetadata, TensorMetadata
from tfq.tflite import model_metadata as md

UINT8 = golden("digits_int8_uint8_io")
INT8 = golden("digits_int8")


def with_preprocessing(data: bytes, scale: float, offset: float = 0.0, resize: tuple[int, ...] = ()) -> bytes:
    record = {"resize": list(resize), "scale": scale, "offset": offset}
    return tflite.write_metadata(data, {"preprocessing": record})


def with_input_quantization(scale: float, zero_point: int, data: bytes = UINT8) -> bytes:
    """Return a file whose input has another scale and zero point; only the input's parameters matter here."""

    def change(model):
        graph = model.subgraphs[0]
        quantization = graph.tensors[graph.inputs[0]].quantization
        quantization.scale, quantization.zeroPoint = [scale], [zero_point]

    return changed(data, change)


@pytest.mark.parametrize("name", NAMES)
def test_table_agrees_with_the_interpreter(name):
    table = io_table(golden(name))
    json.dumps(table.to_dict(), allow_nan=False)
    assert table.to_text()
    if name in ("custom_op", "flex_op"):
        return
    interpreter = Interpreter(model_content=golden(name))
    for entries, details in (
        (table.inputs, interpreter.get_input_details()),
        (table.outputs, interpreter.get_output_details()),
    ):
        for entry, detail in zip(entries, details, strict=True):
            assert entry.tensor_name == detail["name"]
            assert list(entry.shape) == list(detail["shape_signature"])
            assert entry.dtype == np.dtype(detail["dtype"]).name
            assert (entry.scale or 0.0, entry.zero_point or 0) == detail["quantization"]


def test_steps_compute_what_tfq_feeds_the_model():
    scale, offset = 0.0078125, -0.5
    data = with_preprocessing(with_input_quantization(0.004, 125), scale, offset, (8, 8))
    entry = io_table(data).to_dict()["inputs"][0]
    assert [step["step"] for step in entry["preprocessing"]] == ["resize", "scale_offset", "quantize"]
    resize, affine, last = entry["preprocessing"]
    pictures = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 1)).astype(np.uint8)
    config = DataConfig(resize=(8, 8), scale=scale, offset=offset)
    real = preprocess({"image": pictures}, config, "test")["image"]
    assert (resize["height"], resize["width"], affine["scale"], affine["offset"]) == (8, 8, scale, offset)
    by_formula = np.clip(
        np.rint(real * (np.float32(1) / np.float32(last["scale"]))) + last["zero_point"],
        last["minimum"],
        last["maximum"],
    )
    np.testing.assert_array_equal(by_formula, quantize(real, 0.004, 125, np.uint8))
    assert entry["preprocessing_source"] == "tfq"
    assert entry["range"] == pytest.approx([-0.5, 0.52], abs=1e-6)


@pytest.mark.parametrize(
    ("quantization", "preprocessing", "expected"),
    [
        ((1 / 255, 0), (1 / 255, 0.0), (0, 0)),
        ((1.0, 0), (1.0, 0.0), (0, 0)),
        # Pixels scaled to [-1, 1] are half a step apart from the steps of the input.
        ((2 / 255, 128), (2 / 255, -1.0), (0, 1)),
        ((1 / 255, 3), (1 / 255, 0.0), None),
        ((2 / 255, 0), (1 / 255, 0.0), None),
    ],
)
def test_bytes_of_a_picture_are_passed_only_if_that_is_right(quantization, preprocessing, expected):
    data = with_preprocessing(with_input_quantization(*quantization), *preprocessing)
    shift = io_table(data).to_dict()["inputs"][0]["pixel_shift"]
    assert shift == (None if expected is None else {"shift": expected[0], "error": expected[1]})


def test_int8_inputs_take_pixels_minus_128():
    data = with_preprocessing(with_input_quantization(1 / 255, -128, INT8), 1 / 255)
    assert io_table(data).to_dict()["inputs"][0]["pixel_shift"] == {"shift": -128, "error": 0}


def test_output_ranges_are_those_of_the_last_op():
    assert io_table(golden("digits_float32")).outputs[0].range == (0.0, 1.0)
    assert io_table(golden("digits_int8_float_io")).outputs[0].range == (0.0, 255 / 256)
    assert io_table(INT8).outputs[0].range == (0.0, 255 / 256)
    assert io_table(golden("two_branches_float32")).outputs[0].range is None


def test_metadata_names_axes_content_labels_and_normalization():
    data = (GOLDEN / "metadata" / "image_classifier.tflite").read_bytes()
    table = io_table(data)
    (picture,), (scores,) = table.inputs, table.outputs
    assert (picture.content, picture.color_space, picture.description) == ("image", "RGB", "An RGB picture.")
    assert picture.steps_source == "TFLITE_METADATA"
    assert picture.steps[0].values == {"mean": [123.5, 116.25, 103.75], "std": [58.5, 57.0, 57.5]}
    assert (scores.labels, scores.labels_source) == (("cat", "dog", "bird"), "labels.txt")
    assert [step.step for step in scores.steps] == ["calibrate"]
    assert table.to_dict()["metadata"]["author"] == "the tests of tfq"
    assert table.to_dict()["files"] == {"german.txt": 16, "labels.txt": 12, "scores.csv": 22}
    named = TensorMetadata(dimension_names=("batch", "row", "column", "gray"))
    main = SubGraphMetadata(input_tensor_metadata=(named,))
    axes = io_table(tflite.write_model_metadata(INT8, ModelMetadata(subgraph_metadata=(main,)))).inputs[0]
    assert (axes.axes, axes.axes_source) == (("batch", "row", "column", "gray"), "TFLITE_METADATA")


def test_provided_labels_replace_those_of_the_file():
    data = (GOLDEN / "metadata" / "image_classifier.tflite").read_bytes()
    name = io_table(data).outputs[0].name
    assert io_table(data, labels={name: ["a", "b", "c"]}).outputs[0].labels == ("a", "b", "c")


def test_text_inputs_list_their_tokenizer():
    entry = io_table((GOLDEN / "metadata" / "nl_classifier.tflite").read_bytes()).to_dict()["inputs"][0]
    assert entry["preprocessing"][0]["tokenizer"] == "RegexTokenizerOptions"
    assert entry["preprocessing"][0]["files"] == ["vocab.txt"]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (tflite.edit_model(INT8, entries={md.TFLITE_METADATA: b"damaged metadata"}), "M001"),
        (tflite.write_metadata(INT8, {"preprocessing": {"scale": "1"}}), "preprocessing"),
        (tflite.write_metadata(INT8, {"preprocessing": {"scale": 1, "offset": 0, "resize": [8]}}), "preprocessing"),
    ],
)
def test_damaged_records_are_noted_and_not_used(data, word):
    table = io_table(data)
    assert any(word in note for note in table.notes)
    assert table.inputs[0].steps_source is None


def test_text_of_the_table_has_no_control_characters():
    hostile = TensorMetadata(name="\x1b[31m", description="a\nb", dimension_names=("\x1b", "\r", "\n", "\0"))
    main = SubGraphMetadata(input_tensor_metadata=(hostile,))
    data = tflite.write_model_metadata(INT8, ModelMetadata(name="\x1b]0;x", subgraph_metadata=(main,)))
    assert all(line.isprintable() for line in io_table(data).to_text().split("\n"))

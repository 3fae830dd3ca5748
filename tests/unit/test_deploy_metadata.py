# SPDX-License-Identifier: Apache-2.0
"""Building TFLite Metadata from a table and the author's words, and what MediaPipe Tasks would refuse.

tests/clients/test_clients_mediapipe.py runs MediaPipe itself.
"""

import numpy as np
import pytest
from built_models import Call, T, build
from golden_models import GOLDEN, golden
from messages import refused

from tfq import tflite
from tfq.auditing import io_table
from tfq.config import DataConfig
from tfq.data import preprocess
from tfq.deploy import ModelDescription, build_metadata, find_task, mediapipe_problems, tasks_for, with_model_metadata
from tfq.deploy.metadata import image_normalization
from tfq.errors import InputError
from tfq.tflite import ModelMetadata
from tfq.tflite import model_metadata as md

DIGITS = tuple(f"digit {number}" for number in range(10))
UINT8 = golden("digits_int8_uint8_io")


def recorded(data: bytes, scale: float, offset: float) -> bytes:
    return tflite.write_metadata(data, {"preprocessing": {"resize": [], "scale": scale, "offset": offset}})


def identity(dtype: str, shape, inputs: int = 1) -> bytes:
    """Return a model with `inputs` inputs of a type and shape, each of which is an output too."""
    names = [f"x{number}" for number in range(inputs)]
    tensors = {name: T(dtype, shape) for name in (*names, *(f"{name}_out" for name in names))}
    ops = [Call("RESHAPE", [name], [f"{name}_out"]) for name in names]
    return build(tensors, ops, names, [f"{name}_out" for name in names])


@pytest.mark.parametrize(
    ("scale", "offset"), [(1 / 255, 0.0), (2 / 255, -1.0), (1.0, 0.0), (1 / 58, -123.7 / 58), (-1 / 255, 1.0)]
)
def test_normalization_computes_what_tfq_preprocesses(scale, offset):
    options = image_normalization(io_table(recorded(UINT8, scale, offset)).inputs[0])
    pixels = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1)
    expected = preprocess({"x": pixels}, DataConfig(scale=scale, offset=offset), "test")["x"]
    (mean,), (std,) = (np.asarray(values, np.float32) for values in (options.mean, options.std))
    unit = np.spacing(np.float32(max(abs(255 * scale), abs(offset))))
    assert np.abs((pixels - mean) / std - expected).max() <= 2 * unit


def test_a_file_that_does_not_record_its_preprocessing_gets_no_normalization():
    assert image_normalization(io_table(UINT8).inputs[0]) is None
    metadata, _ = build_metadata(io_table(UINT8), ModelDescription())
    assert metadata.inputs[0].process_units == ()


def test_metadata_of_an_image_classifier_has_content_statistics_and_labels():
    model = with_model_metadata(
        recorded(golden("digits_float32"), 2 / 255, -1.0),
        ModelDescription(name="digits", author="a", license="l", version="v", description="d", labels=DIGITS),
    )
    metadata = tflite.read_model_metadata(model)
    (image,), (scores,) = metadata.inputs, metadata.outputs
    assert (metadata.name, metadata.author, metadata.license, metadata.version) == ("digits", "a", "l", "v")
    assert image.properties == md.ImageProperties(color_space="GRAYSCALE")
    assert image.stats == md.Stats(min=(-1.0,), max=(1.0,))
    assert scores.properties == md.FeatureProperties()
    assert scores.stats == md.Stats(min=(0.0,), max=(1.0,))
    assert tflite.associated_files(model) == {"labels.txt": "\n".join(DIGITS).encode()}
    assert io_table(model).outputs[0].labels == DIGITS
    quantized = tflite.read_model_metadata(with_model_metadata(UINT8, ModelDescription()))
    assert quantized.inputs[0].stats == md.Stats(min=(0.0,), max=(255.0,))


def test_existing_metadata_stays_where_the_description_is_empty():
    data = (GOLDEN / "metadata" / "image_classifier.tflite").read_bytes()
    before = tflite.read_model_metadata(data)
    after = tflite.read_model_metadata(with_model_metadata(data, ModelDescription(version="v3")))
    assert (after.version, after.name, after.outputs[0].name) == ("v3", before.name, "probability")
    assert after.inputs[0] == before.inputs[0]
    assert after.outputs[0].associated_files == before.outputs[0].associated_files


def test_detector_outputs_get_the_roles_of_their_names():
    shapes = ((1, 5, 4), (1, 5), (1, 5), (1,))
    names = ("b", "c", "s", "n")
    tensors = {"x": T("float32", (1, 5, 4))} | {name: T("float32", s) for name, s in zip(names, shapes, strict=True)}
    model = build(tensors, [Call("RESHAPE", ["x"], [name]) for name in names], ["x"], ["n", "s", "c", "b"])
    description = ModelDescription(detection_outputs=names, value_labels=("cat", "dog"))
    metadata = tflite.read_model_metadata(with_model_metadata(model, description))
    assert [output.name for output in metadata.outputs] == ["number of detections", "score", "category", "location"]
    assert metadata.outputs[3].properties.index == (1, 0, 3, 2)
    assert [file.type for file in metadata.outputs[2].associated_files] == ["TENSOR_VALUE_LABELS"]
    assert metadata.subgraph_metadata[0].output_tensor_groups[0].tensor_names == ("location", "category", "score")


@pytest.mark.parametrize(
    ("description", "field"),
    [
        (ModelDescription(labels=DIGITS[:9]), "labels"),
        (ModelDescription(labels={"probabilities": DIGITS[:9]}), "labels"),
        (ModelDescription(labels={"scores": DIGITS}), "labels"),
        (ModelDescription(labels=(*DIGITS[:9], "")), "labels[9]"),
        (ModelDescription(labels=(*DIGITS[:9], "a\nb")), "labels[9]"),
        (ModelDescription(kinds={"picture": "image"}), "kinds"),
        (ModelDescription(kinds={"image": "video"}), "kinds"),
        (ModelDescription(kinds={"image": "audio"}), "sample_rate"),
        (ModelDescription(kinds={"image": "text"}), "tokenizer"),
        (ModelDescription(kinds={"image": "text"}, tokenizer="regex"), "vocabulary"),
        # MediaPipe crashes if a line has no number.
        (ModelDescription(kinds={"image": "text"}, tokenizer="regex", vocabulary=b"<PAD>\n"), "vocabulary"),
        (ModelDescription(kinds={"image": "text"}, tokenizer="regex", vocabulary=b"<PAD> 0\n"), "vocabulary"),
        (ModelDescription(detection_outputs=("probabilities",)), "detection_outputs"),
        (ModelDescription(bert_inputs=("image",)), "bert_inputs"),
    ],
)
def test_descriptions_that_do_not_fit_the_model_are_refused(description, field):
    with refused(InputError, field=field):
        with_model_metadata(golden("digits_int8"), description)


def test_text_inputs_get_their_tokenizer_and_bert_inputs_their_names():
    vocabulary = b"<PAD> 0\n<UNKNOWN> 1\n"
    one = ModelDescription(kinds={"x0": "text"}, tokenizer="regex", vocabulary=vocabulary)
    metadata = tflite.read_model_metadata(with_model_metadata(identity("int32", (1, 4)), one))
    assert metadata.inputs[0].unit(md.RegexTokenizerOptions).vocab_file[0].name == "vocab.txt"
    three = ModelDescription(
        kinds=dict.fromkeys(("x0", "x1", "x2"), "text"),
        tokenizer="wordpiece",
        vocabulary=b"[PAD]\n",
        bert_inputs=("x1", "x0", "x2"),
    )
    model = with_model_metadata(identity("int32", (1, 4), 3), three)
    metadata = tflite.read_model_metadata(model)
    assert [entry.name for entry in metadata.inputs] == ["mask", "ids", "segment_ids"]
    assert tflite.associated_files(model) == {"vocab.txt": b"[PAD]\n"}


@pytest.mark.parametrize(
    ("model", "task", "advice"),
    [
        (identity("int8", (1, 8, 8, 3)), "image_classifier", "conversion.inference_input_type=uint8"),
        (identity("int8", (1, 8, 8, 3)), "image_classifier", "conversion.inference_output_type=uint8"),
        (identity("float32", (1, 8, 8, 3)), "image_segmenter", "data.scale"),
        (identity("float32", (1, 8, 8, 1)), "object_detector", "averages"),
        (identity("int8", (1, 80)), "audio_classifier", "conversion.inference_input_type=float32"),
        (identity("int64", (1, 80)), "text_classifier", "int32"),
    ],
)
def test_problems_name_the_conversion_that_works(model, task, advice):
    problems = mediapipe_problems(io_table(model), ModelMetadata(), task)
    assert any(advice in problem.advice for problem in problems if problem.refused)


def test_task_without_problems_is_listed():
    model = recorded(identity("float32", (1, 8, 8, 3)), 1 / 255, 0.0)
    model = with_model_metadata(model, ModelDescription())
    table = io_table(model)
    assert [task.name for task in tasks_for(table, table.metadata)] == ["image_classifier", "image_segmenter"]
    with refused(InputError, got="classifier"):
        find_task("classifier")

# SPDX-License-Identifier: Apache-2.0
"""TFLite Metadata: files that tflite-support 0.4.4 wrote, round trips, merging, damaged bytes, and associated files.

The oracle of the first part is the JSON that tflite-support shows for its own files (tests/golden/metadata/make.py).
"""

import dataclasses
import io
import json
import random
import struct
import warnings
import zipfile

import flatbuffers
import pytest
from golden_models import GOLDEN, golden, unpacked
from messages import refused

from tfq import tflite
from tfq.errors import FlatbufferError, InputError, TfqWarning
from tfq.tflite import ModelMetadata, SubGraphMetadata, TensorMetadata
from tfq.tflite import model_metadata as md

FILES = tuple(sorted(path.stem for path in (GOLDEN / "metadata").glob("*.tflite")))
INT8 = golden("digits_int8")
LABELS = md.AssociatedFile(name="labels.txt", type="TENSOR_AXIS_LABELS")
PICTURE = TensorMetadata(
    name="picture",
    description="ü",
    dimension_names=("batch", "", "width", "channels"),
    content=md.Content(
        content_properties=md.ImageProperties(color_space="RGB", default_size=md.ImageSize(width=2**32 - 1, height=1)),
        range=md.ValueRange(min=-1, max=2),
    ),
    process_units=(
        md.ProcessUnit(options=md.NormalizationOptions(mean=(0.5, -2.0), std=(1.5,))),
        md.ProcessUnit(
            options=md.RegexTokenizerOptions(delim_regex_pattern="x", vocab_file=(md.AssociatedFile(name="vocab.txt"),))
        ),
    ),
    stats=md.Stats(max=(1.0,), min=(-1.0, 0.0)),
)
SCORES = TensorMetadata(
    content=md.Content(
        content_properties=md.BoundingBoxProperties(index=(3, 0), type="CENTER", coordinate_type="PIXEL")
    ),
    process_units=(
        md.ProcessUnit(options=md.ScoreCalibrationOptions(score_transformation="LOG", default_score=0.25)),
        md.ProcessUnit(options=md.ScoreThresholdingOptions(global_score_threshold=-0.5)),
        md.ProcessUnit(),
    ),
    associated_files=(dataclasses.replace(LABELS, description="d", locale="en", version="3"),),
)
EVERYTHING = ModelMetadata(
    name="n",
    description="d",
    version="v",
    author="a",
    license="l",
    associated_files=(md.AssociatedFile(name="vocab.txt", type="VALUE_77"),),
    subgraph_metadata=(
        SubGraphMetadata(
            name="main",
            description="m",
            input_tensor_metadata=(PICTURE,),
            output_tensor_metadata=(SCORES,),
            associated_files=(LABELS,),
            input_process_units=(md.ProcessUnit(options=md.BertTokenizerOptions(vocab_file=(LABELS,))),),
            output_process_units=(
                md.ProcessUnit(
                    options=md.SentencePieceTokenizerOptions(sentence_piece_model=(LABELS,), vocab_file=(LABELS,))
                ),
            ),
            input_tensor_groups=(md.TensorGroup(name="g", tensor_names=("picture", "other")),),
            output_tensor_groups=(md.TensorGroup(name="h"),),
            custom_metadata=(md.CustomMetadata(name="c", data=bytes(range(256))),),
        ),
        SubGraphMetadata(
            input_tensor_metadata=(
                TensorMetadata(
                    content=md.Content(content_properties=md.AudioProperties(sample_rate=16000, channels=2))
                ),
            )
        ),
    ),
)


def published(name: str) -> bytes:
    return (GOLDEN / "metadata" / f"{name}.tflite").read_bytes()


def entry_of(data: bytes) -> bytes:
    offset, size = tflite.read(data).metadata[md.TFLITE_METADATA]
    return data[offset : offset + size]


def rounded(value):
    """Return JSON values with floats as flatc prints them: six decimals."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


@pytest.mark.parametrize("name", FILES)
def test_files_of_tflite_support_are_read_as_it_shows_them(name):
    metadata = tflite.read_model_metadata(published(name))
    assert rounded(metadata.to_dict()) == json.loads((GOLDEN / "metadata" / f"{name}.json").read_text())
    assert metadata.losses == ()
    assert set(tflite.associated_files(published(name))) == set(metadata.file_names)


@pytest.mark.parametrize("name", FILES)
def test_rewritten_files_of_tflite_support_keep_everything(name):
    data = published(name)
    metadata = tflite.read_model_metadata(data)
    unversioned = dataclasses.replace(metadata, min_parser_version="")
    rewritten = tflite.write_model_metadata(data, unversioned)
    assert tflite.read_model_metadata(rewritten) == metadata
    assert tflite.associated_files(rewritten) == tflite.associated_files(data)
    assert tflite.decode_model_metadata(tflite.encode_model_metadata(unversioned)) == metadata


def test_every_field_survives_a_round_trip():
    result = tflite.decode_model_metadata(tflite.encode_model_metadata(EVERYTHING))
    assert result == dataclasses.replace(EVERYTHING, min_parser_version="1.5.0")
    assert tflite.encode_model_metadata(result) == tflite.encode_model_metadata(EVERYTHING)


@pytest.mark.parametrize(
    ("metadata", "version"),
    [
        (ModelMetadata(name="n"), "1.0.0"),
        (ModelMetadata(associated_files=(md.AssociatedFile(type="VOCABULARY"),)), "1.0.1"),
        (ModelMetadata(associated_files=(md.AssociatedFile(version="1"),)), "1.4.1"),
        (ModelMetadata(name="n", min_parser_version="1.10.0"), "1.10.0"),
        (ModelMetadata(name="n", min_parser_version="damaged"), "1.0.0"),
    ],
)
def test_parser_version_is_that_of_the_newest_field(metadata, version):
    assert tflite.decode_model_metadata(tflite.encode_model_metadata(metadata)).min_parser_version == version


def test_written_metadata_changes_nothing_else():
    edited = tflite.write_model_metadata(INT8, ModelMetadata(name="digits"))
    assert tflite.read_model_metadata(edited).name == "digits"
    before, after = unpacked(INT8), unpacked(edited)
    after.metadata = [entry for entry in after.metadata if entry.name != b"TFLITE_METADATA"]
    after.buffers = after.buffers[: len(before.buffers)]
    results = []
    for model in (before, after):
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder))
        results.append(bytes(builder.Output()))
    assert results[0] == results[1]
    assert tflite.write_model_metadata(edited, ModelMetadata()) == edited


def test_merging_keeps_what_the_new_metadata_leaves_empty():
    data = published("image_classifier")
    french = md.AssociatedFile(name="noms.txt", type="TENSOR_AXIS_LABELS", locale="de")
    unit = md.ProcessUnit(options=md.ScoreThresholdingOptions(global_score_threshold=0.5))
    main = SubGraphMetadata(
        input_tensor_metadata=(
            TensorMetadata(process_units=(md.ProcessUnit(options=md.NormalizationOptions(mean=(1.0,), std=(2.0,))),)),
        ),
        output_tensor_metadata=(TensorMetadata(associated_files=(french,), process_units=(unit,)),),
    )
    edited = tflite.write_model_metadata(
        data, ModelMetadata(name="new", subgraph_metadata=(main,)), {"noms.txt": b"chat\nchien\noiseau"}
    )
    result = tflite.read_model_metadata(edited)
    assert (result.name, result.author) == ("new", "the tests of tfq")
    (picture,), (scores,) = result.inputs, result.outputs
    assert (picture.name, picture.properties) == ("picture", md.ImageProperties(color_space="RGB"))
    assert picture.unit(md.NormalizationOptions) == md.NormalizationOptions(mean=(1.0,), std=(2.0,))
    assert [type(unit.options).__name__ for unit in scores.process_units] == [
        "ScoreCalibrationOptions",
        "ScoreThresholdingOptions",
    ]
    # The German labels are replaced, and their file goes; the English ones stay.
    assert sorted(tflite.associated_files(edited)) == ["labels.txt", "noms.txt", "scores.csv"]


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        (ModelMetadata(associated_files=(LABELS,)), "files"),
        (
            ModelMetadata(subgraph_metadata=(SubGraphMetadata(input_tensor_metadata=(PICTURE, PICTURE)),)),
            "metadata.inputs",
        ),
        (ModelMetadata(name=7), "TFLite Metadata: name"),
        (ModelMetadata(name="\ud800"), "TFLite Metadata: name"),
        (ModelMetadata(associated_files=(LABELS, "x")), "TFLite Metadata: associated_files[1]"),
        (
            ModelMetadata(associated_files=(md.AssociatedFile(type="LABELS"),)),
            "TFLite Metadata: associated_files[0]: type",
        ),
    ],
)
def test_wrong_metadata_is_refused(metadata, field):
    with refused(InputError, field=field):
        tflite.write_model_metadata(INT8, metadata)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, "1", True])
def test_numbers_that_float32_cannot_store_are_refused(value):
    options = md.ProcessUnit(options=md.NormalizationOptions(mean=(value,), std=(1.0,)))
    main = SubGraphMetadata(input_process_units=(options,))
    with refused(InputError):
        tflite.encode_model_metadata(ModelMetadata(subgraph_metadata=(main,)))


def test_fields_of_a_newer_schema_are_reported_and_their_loss_is_a_warning():
    builder = flatbuffers.Builder(64)
    name = builder.CreateString("n")
    builder.StartObject(12)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependInt8Slot(9, 1, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"M001")
    newer = bytes(builder.Output())
    metadata = tflite.decode_model_metadata(newer)
    assert metadata.name == "n"
    assert metadata.losses == ("TFLite Metadata: field 9, which is newer than this version of tfq",)
    data = tflite.edit_model(INT8, entries={md.TFLITE_METADATA: newer})
    with pytest.warns(TfqWarning, match="newer"):
        tflite.write_model_metadata(data, ModelMetadata(author="a"))


def test_damaged_metadata_is_replaced_with_a_warning():
    data = tflite.edit_model(INT8, entries={md.TFLITE_METADATA: b"\x08\0\0\0M001\xff\xff\xff\x7f"})
    with refused(FlatbufferError):
        tflite.read_model_metadata(data)
    with pytest.warns(TfqWarning, match="damaged"):
        edited = tflite.write_model_metadata(data, ModelMetadata(name="n"))
    assert tflite.read_model_metadata(edited).name == "n"


@pytest.mark.parametrize("content", [b"", b"M001", b"\0\0\0\0TFL3\0\0\0\0"])
def test_bytes_that_are_not_metadata_are_refused(content):
    with refused(FlatbufferError):
        tflite.decode_model_metadata(content)


def test_five_thousand_damaged_buffers_end_in_clear_errors():
    contents = [entry_of(published(name)) for name in ("image_classifier", "object_detector", "bert_sentencepiece")]
    contents.append(tflite.encode_model_metadata(EVERYTHING))
    source, refusals = random.Random(0), 0
    for number in range(5000):
        content = bytearray(contents[number % len(contents)])
        for _ in range(source.choice((1, 1, 2, 8))):
            place = source.randrange(len(content) - 3)
            word = source.choice((0, 1, 4, 0xFF, 0x7FFF, 2**31, 2**32 - 1, source.getrandbits(32), len(content)))
            struct.pack_into("<I", content, place if source.random() < 0.5 else place // 4 * 4, word)
        if number % 10 == 0:
            content = content[: source.randrange(len(content))]
        try:
            metadata = tflite.decode_model_metadata(bytes(content))
        except FlatbufferError as error:
            refusals += 1
            assert str(error)
        else:
            json.dumps(metadata.to_dict(), allow_nan=False)
    assert 1000 < refusals < 4900


def test_damaged_archives_lose_files_with_a_warning_and_raise_nothing():
    data = published("image_classifier")
    start = len(data) - 900
    source = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            content = bytearray(data)
            for _ in range(source.choice((1, 2, 8))):
                content[source.randrange(start, len(content))] = source.getrandbits(8)
            try:
                tflite.associated_files(bytes(content))
            except TfqWarning as warning:
                assert "left" in str(warning)


def archive_of(names, data: bytes = INT8) -> bytes:
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that occurs twice
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), name.encode())
    return stream.getvalue()


@pytest.mark.parametrize("name", ["../labels.txt", "/labels.txt", "a/b.txt", "..", "c:labels.txt", "a\nb", "n" * 300])
def test_unsafe_names_are_neither_read_nor_written(name):
    with pytest.warns(TfqWarning, match="left"):
        assert tflite.associated_files(archive_of([name, "ok.txt"])) == {"ok.txt": b"ok.txt"}
    with refused(InputError, field="files", got=name):
        tflite.append_files(INT8, {name: b""})


def test_a_name_that_occurs_twice_is_read_once():
    with pytest.warns(TfqWarning, match="twice"):
        assert list(tflite.associated_files(archive_of(["labels.txt", "labels.txt"]))) == ["labels.txt"]


def test_editing_functions_keep_associated_files():
    data = tflite.append_files(INT8, {"labels.txt": b"a"})
    graph = tflite.read(data).main_subgraph
    edits = [
        tflite.write_metadata(data, {"a": 1}),
        tflite.add_signature(data, {"x": graph.inputs[0]}, {"y": graph.outputs[0]}),
    ]
    assert [tflite.associated_files(edited) for edited in edits] == [{"labels.txt": b"a"}] * 2
    assert tflite.with_associated_files(edits[0], data) == (edits[0], ("labels.txt",))

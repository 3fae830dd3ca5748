# SPDX-License-Identifier: Apache-2.0
"""TFLite Metadata: what a `.tflite` file says about itself, for MediaPipe Tasks, LiteRT's tools and people.

It is a flatbuffer (file identifier M001) in the metadata entry TFLITE_METADATA. The classes and their fields have the
names of its schema, version 1.5.0.

Source: metadata_schema.fbs, as it is in the wheels of mediapipe 1.2.3 and tflite-support 0.4.4.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from tfq.tflite.table_codec import SchemaTable, column

TFLITE_METADATA = "TFLITE_METADATA"
IDENTIFIER = b"M001"

# Names of the schema's enums, in the order of their numbers.
FILE_TYPES = (
    "UNKNOWN",
    "DESCRIPTIONS",
    "TENSOR_AXIS_LABELS",
    "TENSOR_VALUE_LABELS",
    "TENSOR_AXIS_SCORE_CALIBRATION",
    "VOCABULARY",
    "SCANN_INDEX_FILE",
)
COLOR_SPACES = ("UNKNOWN", "RGB", "GRAYSCALE")
BOX_TYPES = ("UNKNOWN", "BOUNDARIES", "UPPER_LEFT", "CENTER")
COORDINATE_TYPES = ("RATIO", "PIXEL")
SCORE_TRANSFORMATIONS = ("IDENTITY", "LOG", "INVERSE_LOGISTIC")

_FILE_TYPE_VERSIONS = {"VOCABULARY": "1.0.1", "SCANN_INDEX_FILE": "1.4.0"}
_FIRST_VERSION = "1.0.0"


@dataclass(frozen=True, kw_only=True)
class AssociatedFile(SchemaTable):
    """A file in the ZIP archive after the flatbuffer.

    Attributes:
        name: Its name in the archive.
        description: What it is.
        type: One of FILE_TYPES: TENSOR_AXIS_LABELS names the values along an axis (the classes of a classifier),
            TENSOR_VALUE_LABELS the meaning of each value (the class numbers of a detector).
        locale: The language of the file, such as "en"; empty for all.
        version: Its version, in the author's words.
    """

    name: str = column("text")
    description: str = column("text")
    type: str = column("enum", of=FILE_TYPES)
    locale: str = column("text")
    version: str = column("text", since="1.4.1")

    def identity(self) -> Hashable:
        """Return its role: type and locale; files without a role differ by name."""
        return (self.type, self.locale) if self.type not in FILE_TYPES[:2] else self.name

    def schema_versions(self) -> Iterator[str]:
        """Yield the versions of the schema that the table and its fields with a value need; "" is any version."""
        yield from super().schema_versions()
        yield _FILE_TYPE_VERSIONS.get(self.type, "")


@dataclass(frozen=True, kw_only=True)
class FeatureProperties(SchemaTable):
    """The tensor holds plain numbers."""


@dataclass(frozen=True, kw_only=True)
class ImageSize(SchemaTable):
    """Width and height in pixels."""

    width: int = column("u32")
    height: int = column("u32")


@dataclass(frozen=True, kw_only=True)
class ImageProperties(SchemaTable):
    """The tensor holds images.

    Attributes:
        color_space: One of COLOR_SPACES.
        default_size: The size to use if that of the tensor is dynamic.
    """

    color_space: str = column("enum", of=COLOR_SPACES)
    default_size: ImageSize | None = column("table", of=ImageSize)


@dataclass(frozen=True, kw_only=True)
class BoundingBoxProperties(SchemaTable):
    """The tensor holds bounding boxes.

    Attributes:
        index: The places of the box's four values; empty for the default order of `type`.
        type: One of BOX_TYPES. BOUNDARIES is left, top, right, bottom by default.
        coordinate_type: RATIO (0 to 1) or PIXEL.
    """

    index: tuple[int, ...] = column("u32s")
    type: str = column("enum", of=BOX_TYPES)
    coordinate_type: str = column("enum", of=COORDINATE_TYPES)


@dataclass(frozen=True, kw_only=True)
class AudioProperties(SchemaTable):
    """The tensor holds audio samples.

    Attributes:
        sample_rate: In Hz.
        channels: The number of channels.
    """

    since = "1.3.0"
    sample_rate: int = column("u32")
    channels: int = column("u32")


@dataclass(frozen=True, kw_only=True)
class ValueRange(SchemaTable):
    """A range of dimensions, both ends included."""

    min: int = column("i32")
    max: int = column("i32")


ContentProperties: TypeAlias = FeatureProperties | ImageProperties | BoundingBoxProperties | AudioProperties


@dataclass(frozen=True, kw_only=True)
class Content(SchemaTable):
    """The meaning of a tensor's values.

    Attributes:
        content_properties: The kind of content; None if it is unknown.
        range: The dimensions of one object; None if all dimensions except the batch are one object.
    """

    content_properties: ContentProperties | None = column(
        "union", of=(FeatureProperties, ImageProperties, BoundingBoxProperties, AudioProperties)
    )
    range: ValueRange | None = column("table", of=ValueRange)


@dataclass(frozen=True, kw_only=True)
class NormalizationOptions(SchemaTable):
    """The input is (x - mean) / std, where x is a pixel from 0 to 255 for images.

    Attributes:
        mean: One value, or one for each channel.
        std: One value, or one for each channel.
    """

    mean: tuple[float, ...] = column("f32s")
    std: tuple[float, ...] = column("f32s")


@dataclass(frozen=True, kw_only=True)
class ScoreCalibrationOptions(SchemaTable):
    """Scores are calibrated by the sigmoids in a TENSOR_AXIS_SCORE_CALIBRATION file.

    Attributes:
        score_transformation: One of SCORE_TRANSFORMATIONS, applied first.
        default_score: The score of classes that the file has no parameters for.
    """

    score_transformation: str = column("enum", of=SCORE_TRANSFORMATIONS)
    default_score: float = column("f32")


@dataclass(frozen=True, kw_only=True)
class ScoreThresholdingOptions(SchemaTable):
    """Results with a lower score are left out.

    Attributes:
        global_score_threshold: That score.
    """

    global_score_threshold: float = column("f32")


@dataclass(frozen=True, kw_only=True)
class BertTokenizerOptions(SchemaTable):
    """Text is split into word pieces, as BERT does.

    Attributes:
        vocab_file: The vocabulary.
    """

    since = "1.1.0"
    vocab_file: tuple[AssociatedFile, ...] = column("tables", of=AssociatedFile)


@dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizerOptions(SchemaTable):
    """Text is split by a SentencePiece model.

    Attributes:
        sentence_piece_model: The model.
        vocab_file: An optional vocabulary.
    """

    since = "1.1.0"
    sentence_piece_model: tuple[AssociatedFile, ...] = column("tables", of=AssociatedFile, key="sentencePiece_model")
    vocab_file: tuple[AssociatedFile, ...] = column("tables", of=AssociatedFile)


@dataclass(frozen=True, kw_only=True)
class RegexTokenizerOptions(SchemaTable):
    """Text is split at the matches of a regular expression.

    Attributes:
        delim_regex_pattern: The expression.
        vocab_file: The vocabulary: a word and its number in each line.
    """

    since = "1.2.1"
    delim_regex_pattern: str = column("text")
    vocab_file: tuple[AssociatedFile, ...] = column("tables", of=AssociatedFile)


ProcessUnitOptions: TypeAlias = (
    NormalizationOptions
    | ScoreCalibrationOptions
    | ScoreThresholdingOptions
    | BertTokenizerOptions
    | SentencePieceTokenizerOptions
    | RegexTokenizerOptions
)


_Options = TypeVar("_Options", bound=SchemaTable)


@dataclass(frozen=True, kw_only=True)
class ProcessUnit(SchemaTable):
    """A step that the caller applies before or after the model."""

    options: ProcessUnitOptions | None = column(
        "union",
        of=(
            NormalizationOptions,
            ScoreCalibrationOptions,
            ScoreThresholdingOptions,
            BertTokenizerOptions,
            SentencePieceTokenizerOptions,
            RegexTokenizerOptions,
        ),
    )

    def identity(self) -> Hashable:
        """Return its kind: a tensor is normalized or thresholded once."""
        return type(self.options).__name__


@dataclass(frozen=True, kw_only=True)
class Stats(SchemaTable):
    """The smallest and largest values of a tensor: one, or one for each channel."""

    max: tuple[float, ...] = column("f32s")
    min: tuple[float, ...] = column("f32s")


@dataclass(frozen=True, kw_only=True)
class TensorGroup(SchemaTable):
    """Tensors that belong together, such as the boxes, classes and scores of a detector.

    Attributes:
        name: The name of the group.
        tensor_names: The names of the tensors in their metadata.
    """

    since = "1.2.0"
    name: str = column("text")
    tensor_names: tuple[str, ...] = column("texts")

    def identity(self) -> Hashable:
        """Return its name."""
        return self.name


@dataclass(frozen=True, kw_only=True)
class TensorMetadata(SchemaTable):
    """The meaning of an input or output.

    Attributes:
        name: Its name for callers.
        description: What it is.
        dimension_names: The name of each dimension.
        content: The meaning of its values.
        process_units: What the caller does with it, before or after the model.
        stats: Its smallest and largest values.
        associated_files: Files about it, such as labels.
    """

    name: str = column("text")
    description: str = column("text")
    dimension_names: tuple[str, ...] = column("texts")
    content: Content | None = column("table", of=Content)
    process_units: tuple[ProcessUnit, ...] = column("tables", of=ProcessUnit)
    stats: Stats | None = column("table", of=Stats)
    associated_files: tuple[AssociatedFile, ...] = column("tables", of=AssociatedFile)

    @property
    def properties(self) -> ContentProperties | None:
        """The kind of content, or None if it is unknown."""
        return self.content.content_properties if self.content else None

    def unit(self, kind: type[_Options]) -> _Options | None:
        """Return the options of the process unit of that class, or None if there is none."""
        return next((unit.options for unit in self.process_units if isinstance(unit.options, kind)), None)


@dataclass(frozen=True, kw_only=True)
class CustomMetadata(SchemaTable):
    """Data that the schema does not define, such as the options of a MediaPipe task."""

    since = "1.5.0"
    name: str = column("text")
    data: bytes = column("bytes")

    def identity(self) -> Hashable:
        """Return its name."""
        return self.name


@dataclass(frozen=True, kw_only=True)
class SubGraphMetadata(SchemaTable):
    """The metadata of a subgraph.

    Attributes:
        name: Its name.
        description: What it does.
        input_tensor_metadata: One for each input.
        output_tensor_metadata: One for each output.
        associated_files: Files about it.
        input_process_units: Steps before the model that concern several inputs, such as a tokenizer.
        output_process_units: Steps after the model that concern several outputs.
        input_tensor_groups: Inputs that belong together.
        output_tensor_groups: Outputs that belong together.
        custom_metadata: Data that the schema does not define.
    """

    name: str = column("text")
    description: str = column("text")
    input_tensor_metadata: tuple[TensorMetadata, ...] = column("tables", of=TensorMetadata)
    output_tensor_metadata: tuple[TensorMetadata, ...] = column("tables", of=TensorMetadata)
    associated_files: tuple[AssociatedFile, ...] = column("tables", of=AssociatedFile)
    input_process_units: tuple[ProcessUnit, ...] = column("tables", of=ProcessUnit, since="1.1.0")
    output_process_units: tuple[ProcessUnit, ...] = column("tables", of=ProcessUnit, since="1.1.0")
    input_tensor_groups: tuple[TensorGroup, ...] = column("tables", of=TensorGroup)
    output_tensor_groups: tuple[TensorGroup, ...] = column("tables", of=TensorGroup)
    custom_metadata: tuple[CustomMetadata, ...] = column("tables", of=CustomMetadata)


@dataclass(frozen=True, kw_only=True)
class ModelMetadata(SchemaTable):
    """The metadata of a model.

    Attributes:
        name: Its name.
        description: What it does.
        version: Its version, in the author's words.
        subgraph_metadata: The metadata of its subgraphs; the first is the main one.
        author: Its author.
        license: Its license.
        associated_files: Files about it.
        min_parser_version: The version of the schema that a reader must know. `write_model_metadata` sets it.
        losses: Parts of the file that this class cannot represent, such as fields of a newer schema. Writing it loses
            them.
    """

    name: str = column("text")
    description: str = column("text")
    version: str = column("text")
    subgraph_metadata: tuple[SubGraphMetadata, ...] = column("tables", of=SubGraphMetadata)
    author: str = column("text")
    license: str = column("text")
    associated_files: tuple[AssociatedFile, ...] = column("tables", of=AssociatedFile)
    min_parser_version: str = column("text")
    losses: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[TensorMetadata, ...]:
        """The metadata of the main subgraph's inputs."""
        return self.subgraph_metadata[0].input_tensor_metadata if self.subgraph_metadata else ()

    @property
    def outputs(self) -> tuple[TensorMetadata, ...]:
        """The metadata of the main subgraph's outputs."""
        return self.subgraph_metadata[0].output_tensor_metadata if self.subgraph_metadata else ()

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names of all associated files that the metadata mentions, each once."""
        names = [table.name for table in self.tables() if isinstance(table, AssociatedFile) and table.name]
        return tuple(dict.fromkeys(names))

    @property
    def needed_parser_version(self) -> str:
        """The version of the schema that has all fields with a value, such as "1.3.0"."""
        return newest(_FIRST_VERSION, *(version for table in self.tables() for version in table.schema_versions()))


def newest(*versions: str) -> str:
    """Return the newest of several versions of the schema; anything that is not a version is the oldest."""
    return max(versions, key=_version_key)


def _version_key(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() and len(part) < 10 for part in parts) else ()

# SPDX-License-Identifier: Apache-2.0
"""Build TFLite Metadata from what the file says about its inputs and outputs, and from what its author says."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tfq.auditing import IoTable, IoTensor, io_table
from tfq.config import INPUT_KINDS
from tfq.deploy.mediapipe import BERT_INPUTS
from tfq.errors import InputError, did_you_mean
from tfq.tflite import ModelMetadata, SubGraphMetadata, TensorMetadata, write_model_metadata
from tfq.tflite.model_metadata import (
    AssociatedFile,
    AudioProperties,
    BertTokenizerOptions,
    BoundingBoxProperties,
    Content,
    ContentProperties,
    FeatureProperties,
    ImageProperties,
    NormalizationOptions,
    ProcessUnit,
    RegexTokenizerOptions,
    SentencePieceTokenizerOptions,
    Stats,
    TensorGroup,
    ValueRange,
)

LABELS_FILE, VOCABULARY_FILE, SENTENCEPIECE_FILE = "labels.txt", "vocab.txt", "sentencepiece.model"
# Splits at everything that is not a letter, digit, underscore or apostrophe.
DEFAULT_PATTERN = r"[^\w\']+"
_REGEX_TOKENS = ("<PAD>", "<UNKNOWN>")
_LARGEST_PIXEL = 255.0
# Names and order of a detector's tensors, as MediaPipe's and TensorFlow Lite's task libraries expect them.
_DETECTION_GROUP = "detection_result"


def _vocabulary_file() -> AssociatedFile:
    description = "Tokens that the model knows, one in each line."
    return AssociatedFile(name=VOCABULARY_FILE, description=description, type="VOCABULARY")


def _sentencepiece_file() -> AssociatedFile:
    return AssociatedFile(name=SENTENCEPIECE_FILE, description="The SentencePiece model.")


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A way to turn text into token numbers.

    Attributes:
        name: Its name in `ModelDescription.tokenizer`.
        help: What it does.
        file_name: The name of its vocabulary or model in the `.tflite`.
        unit: Returns its process unit, from the pattern of `ModelDescription`.
        check: Returns what is wrong with the content of the file, or an empty string.
        is_per_tensor: Whether the unit belongs to the input, and not to all inputs together.
    """

    name: str
    help: str
    file_name: str
    unit: Callable[[str], ProcessUnit]
    is_per_tensor: bool
    check: Callable[[bytes], str] = lambda content: ""


def _regex_vocabulary_fault(content: bytes) -> str:
    """Return why MediaPipe's regex tokenizer would refuse a vocabulary, or crash: it expects a number in each line."""
    try:
        lines = [line.split() for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        return "it is not UTF-8 text"
    bad = next((" ".join(line) for line in lines if len(line) != 2 or not line[1].isdecimal()), None)
    if bad is not None:
        return f"expected a word and its number in each line, got {bad[:80]!r}"
    missing = [token for token in _REGEX_TOKENS if token not in {line[0] for line in lines}]
    return f"it has no {missing[0]} token" if missing else ""


TOKENIZERS = (
    Tokenizer(
        name="regex",
        help="splits at a regular expression; the vocabulary has a word and its number in each line",
        file_name=VOCABULARY_FILE,
        unit=lambda pattern: ProcessUnit(
            options=RegexTokenizerOptions(delim_regex_pattern=pattern, vocab_file=(_vocabulary_file(),))
        ),
        is_per_tensor=True,
        check=_regex_vocabulary_fault,
    ),
    Tokenizer(
        name="wordpiece",
        help="splits into BERT's word pieces; the vocabulary has a piece in each line",
        file_name=VOCABULARY_FILE,
        unit=lambda pattern: ProcessUnit(options=BertTokenizerOptions(vocab_file=(_vocabulary_file(),))),
        is_per_tensor=False,
    ),
    Tokenizer(
        name="sentencepiece",
        help="splits with a SentencePiece model, which is its file",
        file_name=SENTENCEPIECE_FILE,
        unit=lambda pattern: ProcessUnit(
            options=SentencePieceTokenizerOptions(sentence_piece_model=(_sentencepiece_file(),))
        ),
        is_per_tensor=False,
    ),
)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What the author of a model says about it. Empty fields keep what the file already says.

    Attributes:
        name: The name of the model.
        description: What it does.
        version: Its version.
        author: Its author.
        license: Its license.
        labels: The names of the classes, in order: for the one output whose last dimension has this size, or
            {output name: names}.
        value_labels: The names of the classes whose numbers an output holds (a detector's), as in `labels`.
        locale: The language of the labels, such as "en".
        kinds: Input name -> one of `config.INPUT_KINDS`. An input without one is an image if it has the shape (batch,
            height, width, 1 or 3), and plain otherwise.
        sample_rate: Of audio inputs, in Hz.
        audio_channels: The number of channels of audio inputs.
        tokenizer: The name of one of TOKENIZERS, for text inputs.
        vocabulary: The content of the tokenizer's vocabulary or model.
        pattern: Where the regex tokenizer splits.
        bert_inputs: For BERT models: the names of the inputs with the token numbers, mask and segment numbers.
        detection_outputs: For detectors: the names of the outputs with the boxes (top, left, bottom, right from 0 to
            1), class numbers, scores, and number of detections.
    """

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    labels: Sequence[str] | Mapping[str, Sequence[str]] = ()
    value_labels: Sequence[str] = ()
    locale: str = ""
    kinds: Mapping[str, str] = field(default_factory=dict)
    sample_rate: int = 0
    audio_channels: int = 1
    tokenizer: str = ""
    vocabulary: bytes = b""
    pattern: str = DEFAULT_PATTERN
    bert_inputs: tuple[str, ...] = ()
    detection_outputs: tuple[str, ...] = ()


def with_model_metadata(model: bytes, description: ModelDescription) -> bytes:
    """Return a `.tflite` file with standard TFLite Metadata, merged into what it has; nothing else changes.

    Args:
        model: The file, which is trusted.
        description: What its author says about it.

    Raises:
        InputError: The description does not fit the model.
    """
    return write_model_metadata(model, *build_metadata(io_table(model), description))


def build_metadata(table: IoTable, description: ModelDescription) -> tuple[ModelMetadata, dict[str, bytes]]:
    """Return metadata for the file of `table`, and the content of the associated files that it names.

    The normalization of images is that of the table's preprocessing: for pixels from 0 to 255, (x - mean) / std equals
    x * scale + offset. `write_model_metadata` merges the result into the metadata that the file has.

    Args:
        table: The inputs and outputs of the file.
        description: What its author says about it.

    Raises:
        InputError: The description names an input or output that does not exist, its labels do not fit, or a text input
            has no tokenizer.
    """
    files: dict[str, bytes] = {}
    kinds = {tensor.name: _kind(tensor, description) for tensor in table.inputs}
    _check_names(description.kinds, table.inputs, "kinds")
    tokenizer = _tokenizer(description, kinds)
    units = (tokenizer.unit(description.pattern),) if tokenizer else ()
    if tokenizer:
        files[tokenizer.file_name] = description.vocabulary
    per_tensor = units if tokenizer and tokenizer.is_per_tensor else ()
    inputs = tuple(_input(table, tensor, kinds[tensor.name], description, per_tensor) for tensor in table.inputs)
    labels = _labels_by_output(table, description)
    roles = _detection_roles(table, description)
    outputs = []
    for tensor in table.outputs:
        named = _label_files(tensor, labels.get(tensor.name, ()), description, files, single=len(labels) <= 1)
        role = roles.get(tensor.name)
        if role is not None and role.has_labels and description.value_labels:
            named = (_file(LABELS_FILE, "TENSOR_VALUE_LABELS", description.locale),)
            files[LABELS_FILE] = _label_content(description.value_labels)
        outputs.append(_output(table, tensor, role, named))
    group = TensorGroup(name=_DETECTION_GROUP, tensor_names=tuple(role.name for role in _ROLES[:3]))
    main = SubGraphMetadata(
        input_tensor_metadata=inputs,
        output_tensor_metadata=tuple(outputs),
        input_process_units=units if tokenizer and not tokenizer.is_per_tensor else (),
        output_tensor_groups=(group,) if roles else (),
    )
    metadata = ModelMetadata(
        name=description.name,
        description=description.description,
        version=description.version,
        author=description.author,
        license=description.license,
        subgraph_metadata=(main,),
    )
    return metadata, files


def _kind(tensor: IoTensor, description: ModelDescription) -> str:
    kind = description.kinds.get(tensor.name)
    if kind is None:
        if tensor.content in ("image", "audio"):
            return tensor.content
        return "image" if len(tensor.shape) == 4 and tensor.shape[3] in (1, 3) else "plain"
    if kind not in INPUT_KINDS:
        raise InputError(
            f"kinds: the input {tensor.name!r} is {kind!r}, expected one of {', '.join(INPUT_KINDS)}",
            field="kinds",
            expected=INPUT_KINDS,
            got=kind,
        )
    return kind


def _check_names(names: Mapping[str, object], tensors: Sequence[IoTensor], argument: str) -> None:
    known = tuple(tensor.name for tensor in tensors)
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        side = tensors[0].side if tensors else "tensor"
        raise InputError(
            f"{argument}: the model has no {side} {unknown!r}; {did_you_mean(unknown, known)}",
            field=argument,
            expected=known,
            got=unknown,
        )


def _tokenizer(description: ModelDescription, kinds: Mapping[str, str]) -> Tokenizer | None:
    if "text" not in kinds.values():
        return None
    names = tuple(tokenizer.name for tokenizer in TOKENIZERS)
    result = next((tokenizer for tokenizer in TOKENIZERS if tokenizer.name == description.tokenizer), None)
    if result is None:
        raise InputError(
            f"tokenizer: a text input needs one of {', '.join(names)}, got {description.tokenizer!r}",
            field="tokenizer",
            expected=names,
            got=description.tokenizer,
        )
    if not description.vocabulary:
        raise InputError(
            f"vocabulary: the tokenizer {result.name} needs one, and got none. It {result.help}",
            field="vocabulary",
            expected=result.help,
        )
    if fault := result.check(description.vocabulary):
        raise InputError(
            f"vocabulary: {fault}. The tokenizer {result.name} {result.help}",
            field="vocabulary",
            expected=result.help,
            got=fault,
        )
    return result


def _existing(table: IoTable, tensor: IoTensor) -> TensorMetadata:
    """Return the metadata that the file has about a tensor; empty if it has none."""
    metadata = table.metadata or ModelMetadata()
    described = metadata.inputs if tensor.side == "input" else metadata.outputs
    tensors = table.inputs if tensor.side == "input" else table.outputs
    return described[tensor.index] if len(described) == len(tensors) else TensorMetadata()


def _input(
    table: IoTable, tensor: IoTensor, kind: str, description: ModelDescription, tokenizer: tuple[ProcessUnit, ...]
) -> TensorMetadata:
    existing = _existing(table, tensor)
    properties: ContentProperties | None = FeatureProperties()
    units: tuple[ProcessUnit, ...] = ()
    stats = _type_stats(tensor)
    if kind == "image":
        channels = tensor.shape[3] if len(tensor.shape) == 4 else 0
        properties = ImageProperties(color_space={3: "RGB", 1: "GRAYSCALE"}.get(channels, "UNKNOWN"))
        if (normalization := image_normalization(tensor)) is not None:
            units = (ProcessUnit(options=normalization),)
            stats = stats or _pixel_stats(normalization)
    elif kind == "audio" and not (tensor.content == "audio" and tensor.sample_rate and not description.sample_rate):
        if description.sample_rate <= 0:
            raise InputError(
                f"sample_rate: the audio input {tensor.name!r} needs it, in Hz",
                field="sample_rate",
                expected="a rate in Hz",
                got=description.sample_rate,
            )
        properties = AudioProperties(sample_rate=description.sample_rate, channels=description.audio_channels)
    elif kind == "text":
        units = tokenizer
    if existing.properties is not None and kind in (tensor.content, "plain") and tensor.name not in description.kinds:
        properties = None  # the file says as much already
    return TensorMetadata(
        name=_bert_name(table, tensor, description) or existing.name or tensor.name,
        content=Content(content_properties=properties) if properties else None,
        process_units=units,
        stats=stats,
    )


def _bert_name(table: IoTable, tensor: IoTensor, description: ModelDescription) -> str:
    """Return the name that MediaPipe finds an input of a BERT model by; empty for other models."""
    names = description.bert_inputs
    if not names:
        return ""
    _check_names(dict.fromkeys(names), table.inputs, "bert_inputs")
    if len(set(names)) != len(BERT_INPUTS) or len(table.inputs) != len(BERT_INPUTS):
        raise InputError(
            f"bert_inputs: expected the names of the three inputs with {', '.join(BERT_INPUTS)}, got "
            f"{', '.join(names)}; the model has {len(table.inputs)} inputs",
            field="bert_inputs",
            expected=BERT_INPUTS,
            got=names,
        )
    return BERT_INPUTS[names.index(tensor.name)]


def image_normalization(tensor: IoTensor) -> NormalizationOptions | None:
    """Return (x - mean) / std that equals the input's preprocessing of pixels; None if the file does not record it.

    The float32 results of the two formulas differ by rounding: by at most 2 units in the last place of the larger of
    x * scale and offset.
    """
    if tensor.steps_source is None:
        # Raw integers, such as pixels, are the input itself.
        return NormalizationOptions(mean=(0.0,), std=(1.0,)) if tensor.scale == 1.0 and not tensor.zero_point else None
    mean, std = 0.0, 1.0
    for step in tensor.steps:
        if step.step == "normalize":
            return NormalizationOptions(mean=tuple(step.values["mean"]), std=tuple(step.values["std"]))
        if step.step == "scale_offset":
            scale, offset = step.values["scale"], step.values["offset"]
            if not scale:
                return None
            mean, std = -offset / scale, 1.0 / scale
    return NormalizationOptions(mean=(mean,), std=(std,))


def _pixel_stats(normalization: NormalizationOptions) -> Stats:
    mean, std = np.asarray(normalization.mean, np.float64), np.asarray(normalization.std, np.float64)
    ends = np.sort([(0.0 - mean) / std, (_LARGEST_PIXEL - mean) / std], axis=0)
    return Stats(min=tuple(map(float, ends[0])), max=tuple(map(float, ends[1])))


def _type_stats(tensor: IoTensor) -> Stats | None:
    """Return the limits of a quantized type, or None. Statistics are in the tensor's units, as tflite-support's are."""
    if not tensor.is_quantized:
        return None
    limits = np.iinfo(tensor.dtype)
    return Stats(min=(float(limits.min),), max=(float(limits.max),))


@dataclass(frozen=True, kw_only=True)
class _Role:
    """The part of a detector's result that an output is."""

    name: str
    properties: ContentProperties
    is_per_object: bool = True
    has_labels: bool = False


_ROLES = (
    _Role(
        name="location",
        properties=BoundingBoxProperties(index=(1, 0, 3, 2), type="BOUNDARIES", coordinate_type="RATIO"),
    ),
    _Role(name="category", properties=FeatureProperties(), has_labels=True),
    _Role(name="score", properties=FeatureProperties()),
    _Role(name="number of detections", properties=FeatureProperties(), is_per_object=False),
)


def _detection_roles(table: IoTable, description: ModelDescription) -> dict[str, _Role]:
    names = description.detection_outputs
    if not names:
        return {}
    _check_names(dict.fromkeys(names), table.outputs, "detection_outputs")
    if len(set(names)) != len(_ROLES) or len(table.outputs) != len(_ROLES):
        raise InputError(
            f"detection_outputs: expected the four outputs {', '.join(role.name for role in _ROLES)}, got "
            f"{', '.join(names)}; the model has {len(table.outputs)} outputs",
            field="detection_outputs",
            expected=tuple(role.name for role in _ROLES),
            got=names,
        )
    return dict(zip(names, _ROLES, strict=True))


def _output(table: IoTable, tensor: IoTensor, role: _Role | None, files: tuple[AssociatedFile, ...]) -> TensorMetadata:
    existing = _existing(table, tensor)
    content = None
    if role is not None:
        value_range = ValueRange(min=2, max=2) if role.is_per_object else None
        content = Content(content_properties=role.properties, range=value_range)
    elif existing.properties is None:
        is_mask = len(tensor.shape) == 4 and tensor.shape[1:3] != (1, 1)
        content = Content(content_properties=ImageProperties() if is_mask else FeatureProperties())
    stats = _type_stats(tensor)
    if stats is None and tensor.range is not None and tensor.dtype.startswith("float"):
        stats = Stats(min=(tensor.range[0],), max=(tensor.range[1],))
    return TensorMetadata(
        name=role.name if role else existing.name or tensor.name,
        content=content,
        stats=stats,
        associated_files=files,
    )


def _labels_by_output(table: IoTable, description: ModelDescription) -> dict[str, tuple[str, ...]]:
    labels = description.labels
    if not labels:
        return {}
    if isinstance(labels, Mapping):
        _check_names(labels, table.outputs, "labels")
        results = {name: tuple(names) for name, names in labels.items()}
    else:
        fitting = [tensor.name for tensor in table.outputs if tensor.shape and tensor.shape[-1] == len(labels)]
        if len(fitting) != 1:
            sizes = {tensor.name: tensor.shape[-1] if tensor.shape else None for tensor in table.outputs}
            raise InputError(
                f"labels: got {len(labels)} labels, and {len(fitting)} outputs have that many classes (last dimensions "
                f"{sizes}). Pass as many labels as the model has classes, or {{output name: labels}}",
                field="labels",
                expected=sizes,
                got=len(labels),
            )
        results = {fitting[0]: tuple(labels)}
    for tensor in table.outputs:
        count = len(results.get(tensor.name, ()))
        if count and (not tensor.shape or tensor.shape[-1] not in (count, -1)):
            raise InputError(
                f"labels: the output {tensor.name!r} has the shape {list(tensor.shape)}, but there are {count} labels. "
                "Pass one label for each value of the last dimension",
                field="labels",
                expected=tensor.shape[-1] if tensor.shape else 0,
                got=count,
            )
    return results


def _label_files(
    tensor: IoTensor, labels: Sequence[str], description: ModelDescription, files: dict[str, bytes], *, single: bool
) -> tuple[AssociatedFile, ...]:
    """Return the label file of an output, and add its content to `files`."""
    if not labels:
        return ()
    name = LABELS_FILE if single else f"labels_{tensor.index}.txt"
    files[name] = _label_content(labels)
    return (_file(name, "TENSOR_AXIS_LABELS", description.locale),)


def _file(name: str, kind: str, locale: str) -> AssociatedFile:
    return AssociatedFile(name=name, description="The names of the classes.", type=kind, locale=locale)


def _label_content(labels: Sequence[str]) -> bytes:
    for place, fault in _label_faults(labels):
        raise InputError(
            f"labels: label {place} is {labels[place]!r}, {fault}. A label file has one label in each line",
            field=f"labels[{place}]",
            expected="text on one line",
            got=labels[place],
        )
    return "\n".join(labels).encode()


def _label_faults(labels: Sequence[str]) -> Iterator[tuple[int, str]]:
    for place, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            yield place, "which is empty or not text"
        elif "\n" in label or "\r" in label:
            yield place, "which has several lines"

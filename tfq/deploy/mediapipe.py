# SPDX-License-Identifier: Apache-2.0
"""What MediaPipe Tasks refuse, or run but compute differently, with the conversion that works.

Each rule was tried on MediaPipe 1.2.3 with small models: tests/clients/test_clients_mediapipe.py compares them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tfq.auditing import IoTable, IoTensor
from tfq.deploy.platform import Problem
from tfq.errors import InputError, did_you_mean
from tfq.text_table import alternatives
from tfq.tflite import ModelMetadata, TensorMetadata
from tfq.tflite.model_metadata import (
    AudioProperties,
    BertTokenizerOptions,
    BoundingBoxProperties,
    ImageProperties,
    NormalizationOptions,
    RegexTokenizerOptions,
    SentencePieceTokenizerOptions,
)

_DYNAMIC = -1
_IMAGE_TYPES, _SCORE_TYPES, _MASK_TYPES = ("uint8", "float32"), ("uint8", "float32"), ("uint8", "float32", "int8")
# Names of the metadata of BERT's inputs.
BERT_INPUTS = ("ids", "mask", "segment_ids")


@dataclass(frozen=True, kw_only=True)
class TaskProblem(Problem):
    """A reason why a MediaPipe task does not run a file as tfq does, and what works.

    Args:
        tensor: The name of the input or output; empty if it is not about one.
        refused: True if the task raises an error; False if it runs, but computes something else.
    """

    tensor: str = ""
    refused: bool = True


_Problems = Iterator[TaskProblem]


@dataclass(frozen=True, kw_only=True)
class MediaPipeTask:
    """A MediaPipe task.

    Attributes:
        name: Its name in tfq.
        help: What it does.
        class_name: Its class in MediaPipe.
        check: Yields the problems of a file that has the given metadata.
        kinds: The kinds of inputs that it reads, as in `ModelDescription.kinds`.
    """

    name: str
    help: str
    class_name: str
    check: Callable[[IoTable, ModelMetadata], _Problems] = field(repr=False)
    kinds: tuple[str, ...]


def find_task(name: str) -> MediaPipeTask:
    """Return the task of that name.

    Raises:
        InputError: There is none.
    """
    names = tuple(task.name for task in TASKS)
    if name not in names:
        message = f"there is no MediaPipe task {name!r}; {did_you_mean(name, names)}"
        raise InputError(message, field="task", expected=names, got=name)
    return TASKS[names.index(name)]


def mediapipe_problems(table: IoTable, metadata: ModelMetadata, task: str) -> tuple[TaskProblem, ...]:
    """Return what keeps a MediaPipe task from running a file as tfq does; empty if nothing does.

    Args:
        table: The inputs and outputs of the file.
        metadata: The metadata that the file will have: that of `build_metadata`, or `table.metadata`.
        task: The name of one of TASKS.

    Raises:
        InputError: There is no such task.
    """
    return tuple(find_task(task).check(table, metadata))


def tasks_for(table: IoTable, metadata: ModelMetadata) -> tuple[MediaPipeTask, ...]:
    """Return the tasks that run the file as tfq does."""
    return tuple(task for task in TASKS if not any(task.check(table, metadata)))


def _pairs(
    tensors: Sequence[IoTensor], described: Sequence[TensorMetadata]
) -> Iterator[tuple[IoTensor, TensorMetadata]]:
    """Yield each input or output and its metadata, which is empty if there is none."""
    for place, tensor in enumerate(tensors):
        yield tensor, described[place] if place < len(described) else TensorMetadata()


def _one_input(table: IoTable, task: str) -> _Problems:
    if len(table.inputs) != 1:
        names = ", ".join(tensor.name for tensor in table.inputs)
        reason = f"{task} takes models with one input, and this one has {len(table.inputs)} ({names})"
        yield TaskProblem(reason=reason, advice="use another task, or build a model with one input")


def _image_input(table: IoTable, metadata: ModelMetadata) -> _Problems:
    yield from _one_input(table, "an image task")
    for tensor, described in _pairs(table.inputs[:1], metadata.inputs):
        shape = tensor.shape
        if tensor.dtype not in _IMAGE_TYPES:
            yield TaskProblem(
                reason=f"image tasks take {alternatives(_IMAGE_TYPES)} inputs, and {tensor.name!r} is {tensor.dtype}",
                advice="convert with conversion.inference_input_type=uint8, or float32",
                tensor=tensor.name,
            )
        if len(shape) != 4 or shape[0] not in (1, _DYNAMIC) or shape[3] != 3:
            yield TaskProblem(
                reason=f"image tasks take inputs of shape [1, height, width, 3] (RGB), and {tensor.name!r} has "
                f"{list(shape)}",
                advice="build the model with such an input; for gray images, start it with a layer that averages the "
                "colors",
                tensor=tensor.name,
            )
        elif _DYNAMIC in shape[1:3]:
            yield TaskProblem(
                reason=f"the size of {tensor.name!r} is dynamic, {list(shape)}, and MediaPipe resizes pictures to 1x1",
                advice="convert with conversion.input_shapes",
                tensor=tensor.name,
                refused=False,
            )
        yield from _image_metadata(tensor, described)


def _image_metadata(tensor: IoTensor, described: TensorMetadata) -> _Problems:
    properties = described.properties
    if properties is not None and not isinstance(properties, ImageProperties):
        reason = f"the metadata says that {tensor.name!r} is {type(properties).__name__}, and not an image"
        yield TaskProblem(reason=reason, advice="export with the kind image for this input", tensor=tensor.name)
    elif properties is not None and properties.color_space != "RGB":
        reason = f"image tasks take RGB images, and the metadata of {tensor.name!r} says {properties.color_space}"
        yield TaskProblem(reason=reason, advice="build the model with an RGB input", tensor=tensor.name)
    if tensor.dtype == "float32":
        yield from _normalization(tensor, described.unit(NormalizationOptions))
    elif tensor.dtype == "uint8" and (tensor.pixel_shift is None or tensor.pixel_shift.shift != 0):
        if tensor.steps_source is None:
            reason = f"MediaPipe passes the bytes of the picture, and {tensor.name!r} does not record what it expects"
            advice = "convert again with tfq's data settings (data.scale and data.offset)"
        else:
            steps = "; ".join(step.formula for step in tensor.steps)
            reason = f"MediaPipe passes the bytes of the picture, and {tensor.name!r} expects other values ({steps})"
            advice = "convert with conversion.inference_input_type=float32, for which MediaPipe normalizes"
        yield TaskProblem(reason=reason, advice=advice, tensor=tensor.name, refused=False)


def _normalization(tensor: IoTensor, options: NormalizationOptions | None) -> _Problems:
    if options is None:
        yield TaskProblem(
            reason=f"the float32 input {tensor.name!r} needs the normalization of its pixels in the metadata, and the "
            "file does not record it",
            advice="convert with tfq's data settings (data.scale and data.offset)",
            tensor=tensor.name,
        )
        return
    sizes = len(options.mean), len(options.std)
    values = f"mean {list(options.mean)} and std {list(options.std)}"
    if sizes not in ((1, 1), (3, 3)) or min(options.std) <= 0:
        reason = f"the metadata of {tensor.name!r} has {values}: expected one or three of each, and std above 0"
        advice = "correct the metadata, or move the normalization into the model (keras.layers.Rescaling)"
        yield TaskProblem(reason=reason, advice=advice, tensor=tensor.name)
    elif len({*options.mean}) > 1 or len({*options.std}) > 1:
        yield TaskProblem(
            reason=f"MediaPipe normalizes all channels alike, and the metadata of {tensor.name!r} has {values}",
            advice="move the normalization into the model: a keras.layers.Rescaling or Normalization layer",
            tensor=tensor.name,
        )


def _score_outputs(table: IoTable, metadata: ModelMetadata) -> _Problems:
    for tensor, described in _pairs(table.outputs, metadata.outputs):
        yield from _score_type(tensor, "uint8, or float32")
        count = math.prod(abs(size) for size in tensor.shape)
        labels = len(tensor.labels or ())
        has_labels = any(file.type == "TENSOR_AXIS_LABELS" for file in described.associated_files)
        if has_labels and labels != count:
            names = f"{labels} labels" if labels else "no label file with a name for each"
            reason = f"{tensor.name!r} has {count} scores, shape {list(tensor.shape)}, and {names}"
            yield TaskProblem(reason=reason, advice="pass a label for each score", tensor=tensor.name)


def _score_type(tensor: IoTensor, types: str) -> _Problems:
    if tensor.dtype not in _SCORE_TYPES:
        yield TaskProblem(
            reason=f"the task reads {alternatives(_SCORE_TYPES)} outputs, and {tensor.name!r} is {tensor.dtype}",
            advice=f"convert with conversion.inference_output_type={types}",
            tensor=tensor.name,
        )


def _image_classifier(table: IoTable, metadata: ModelMetadata) -> _Problems:
    yield from _image_input(table, metadata)
    yield from _score_outputs(table, metadata)


def _image_segmenter(table: IoTable, metadata: ModelMetadata) -> _Problems:
    yield from _image_input(table, metadata)
    if len(table.outputs) > 1:
        reason = f"the segmenter shows only the last of the model's {len(table.outputs)} outputs"
        yield TaskProblem(reason=reason, advice="build a model with one output", refused=False)
    for tensor in table.outputs:
        if len(tensor.shape) != 4 or tensor.dtype not in _MASK_TYPES:
            yield TaskProblem(
                reason=f"the segmenter reads scores of shape [1, height, width, classes] as "
                f"{alternatives(_MASK_TYPES)}, and shows wrong masks for {tensor.name!r}, which is {tensor.dtype} "
                f"{list(tensor.shape)}",
                advice="leave out a final argmax, and keep the batch dimension",
                tensor=tensor.name,
                refused=False,
            )


def _object_detector(table: IoTable, metadata: ModelMetadata) -> _Problems:
    yield from _image_input(table, metadata)
    if len(table.outputs) != 4:
        yield TaskProblem(
            reason="the detector takes the four outputs of TFLite's detection postprocessing (boxes, classes, scores, "
            f"count), and the model has {len(table.outputs)}",
            advice="add the postprocessing to the model",
        )
        return
    if not any(isinstance(described.properties, BoundingBoxProperties) for described in metadata.outputs):
        reason = "the metadata does not say which outputs are boxes, classes, scores and count"
        yield TaskProblem(reason=reason, advice="export with the names of these outputs, in this order")
    for tensor in table.outputs:
        yield from _score_type(tensor, "float32")


def _audio_classifier(table: IoTable, metadata: ModelMetadata) -> _Problems:
    yield from _one_input(table, "the audio classifier")
    for tensor, described in _pairs(table.inputs[:1], metadata.inputs):
        if tensor.dtype != "float32":
            yield TaskProblem(
                reason=f"the audio classifier takes float32 inputs, and {tensor.name!r} is {tensor.dtype}",
                advice="convert with conversion.inference_input_type=float32",
                tensor=tensor.name,
            )
        shape = tensor.shape
        if len(shape) not in (1, 2) or shape[-1] == _DYNAMIC or (len(shape) == 2 and shape[0] not in (1, _DYNAMIC)):
            yield TaskProblem(
                reason=f"the audio classifier takes inputs of shape [1, samples] or [samples], and {tensor.name!r} has "
                f"{list(shape)}",
                advice="build the model with such an input; keras.layers.Reshape adds axes",
                tensor=tensor.name,
            )
        yield from _audio_metadata(tensor, described)
    yield from _score_outputs(table, metadata)


def _audio_metadata(tensor: IoTensor, described: TensorMetadata) -> _Problems:
    properties, samples = described.properties, tensor.shape[-1] if tensor.shape else 0
    if not isinstance(properties, AudioProperties):
        reason = f"the metadata does not say that {tensor.name!r} is audio, and at which sample rate"
        advice = "export with the kind audio for this input, and with the sample rate"
        yield TaskProblem(reason=reason, advice=advice, tensor=tensor.name)
    elif not properties.channels or not properties.sample_rate or samples % properties.channels:
        yield TaskProblem(
            reason=f"the metadata of {tensor.name!r} says {properties.sample_rate} Hz and {properties.channels} "
            f"channels: expected a rate, and a number of channels that divides {samples}",
            advice="export with the right sample rate and number of channels",
            tensor=tensor.name,
        )


def _text_classifier(table: IoTable, metadata: ModelMetadata) -> _Problems:
    yield from _tokenizer(table, metadata)
    for tensor in table.inputs:
        if tensor.dtype != "int32":
            yield TaskProblem(
                reason=f"the text classifier passes int32 token numbers, and {tensor.name!r} is {tensor.dtype}",
                advice="build the model with an int32 input",
                tensor=tensor.name,
            )
        if len(tensor.shape) != 2 or tensor.shape[0] not in (1, _DYNAMIC):
            reason = f"the text classifier takes inputs of shape [1, tokens], and {tensor.name!r} has {[*tensor.shape]}"
            yield TaskProblem(reason=reason, advice="build the model with such an input", tensor=tensor.name)
        elif tensor.shape[1] == _DYNAMIC and len(table.inputs) == 1:
            yield TaskProblem(
                reason=f"the length of {tensor.name!r} is dynamic, and MediaPipe passes only the first token",
                advice="convert with conversion.input_shapes",
                tensor=tensor.name,
                refused=False,
            )
    yield from _score_outputs(table, metadata)


def _tokenizer(table: IoTable, metadata: ModelMetadata) -> _Problems:
    main = metadata.subgraph_metadata[0] if metadata.subgraph_metadata else None
    options = [unit.options for unit in main.input_process_units] if main else []
    count = len(table.inputs)
    advice = "export with a tokenizer and its vocabulary"
    if count not in (1, len(BERT_INPUTS)):
        reason = f"the text classifier takes models with one input, or BERT's three, and this one has {count}"
        yield TaskProblem(reason=reason, advice="build such a model")
    elif count == len(BERT_INPUTS):
        names = sorted(described.name for described in metadata.inputs)
        if not any(isinstance(item, BertTokenizerOptions) for item in options):
            yield TaskProblem(
                reason="three inputs are BERT's, and the metadata has no wordpiece tokenizer", advice=advice
            )
        elif names != sorted(BERT_INPUTS):
            reason = f"the metadata names the inputs {', '.join(names)}: expected {', '.join(BERT_INPUTS)}"
            yield TaskProblem(reason=reason, advice="export with the names of BERT's inputs, in this order")
    elif not any(described.unit(RegexTokenizerOptions) for described in metadata.inputs) and not any(
        isinstance(item, SentencePieceTokenizerOptions) for item in options
    ):
        reason = "the metadata has no regex or sentencepiece tokenizer for the model's one input"
        yield TaskProblem(reason=reason, advice=advice)


TASKS = (
    MediaPipeTask(
        name="image_classifier",
        help="names the classes of a picture",
        class_name="ImageClassifier",
        check=_image_classifier,
        kinds=("image",),
    ),
    MediaPipeTask(
        name="image_segmenter",
        help="names the class of each pixel",
        class_name="ImageSegmenter",
        check=_image_segmenter,
        kinds=("image",),
    ),
    MediaPipeTask(
        name="object_detector",
        help="finds objects and names their classes",
        class_name="ObjectDetector",
        check=_object_detector,
        kinds=("image",),
    ),
    MediaPipeTask(
        name="audio_classifier",
        help="names the classes of a sound",
        class_name="AudioClassifier",
        check=_audio_classifier,
        kinds=("audio",),
    ),
    MediaPipeTask(
        name="text_classifier",
        help="names the classes of a text",
        class_name="TextClassifier",
        check=_text_classifier,
        kinds=("text",),
    ),
)

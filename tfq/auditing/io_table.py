# SPDX-License-Identifier: Apache-2.0
"""The inputs and outputs of a `.tflite` file, with everything that an app needs to call it: io.json.

It says the name, shape, type, scale, zero point, range and axes of each one, the steps before and after the model, and
the labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.artifacts import PathOrBytes, content_of
from tfq.auditing.io_steps import (
    ROUNDING,
    PixelShift,
    Step,
    input_steps,
    output_steps,
    pixel_shift,
    recorded_preprocessing,
    scale_of,
)
from tfq.auditing.schemes import FLOATS
from tfq.errors import FlatbufferError
from tfq.text_table import shown
from tfq.tflite.associated_files import associated_files
from tfq.tflite.metadata_entry import decode_model_metadata
from tfq.tflite.model_metadata import (
    TFLITE_METADATA,
    AudioProperties,
    BoundingBoxProperties,
    FeatureProperties,
    ImageProperties,
    ModelMetadata,
    TensorMetadata,
)
from tfq.tflite.reader import read
from tfq.tflite.records import ABSENT, Model, Subgraph, Tensor
from tfq.tflite.signatures import main_subgraph_note

FORMAT = 1
# Where the meaning of the axes comes from.
AXES_FROM_METADATA, AXES_GUESSED = "TFLITE_METADATA", "guessed from the rank"

_AXES = {
    "input": {
        1: ("batch",),
        2: ("batch", "features"),
        3: ("batch", "time", "features"),
        4: ("batch", "height", "width", "channels"),
        5: ("batch", "depth", "height", "width", "channels"),
    },
    "output": {
        1: ("batch",),
        2: ("batch", "classes"),
        3: ("batch", "positions", "classes"),
        4: ("batch", "height", "width", "classes"),
        5: ("batch", "depth", "height", "width", "classes"),
    },
}
_CONTENTS = {
    FeatureProperties: "features",
    ImageProperties: "image",
    BoundingBoxProperties: "bounding_boxes",
    AudioProperties: "audio",
}
_OP_RANGES = {"SOFTMAX": (0.0, 1.0), "LOGISTIC": (0.0, 1.0), "TANH": (-1.0, 1.0)}
_LABEL_TYPES = ("TENSOR_AXIS_LABELS", "TENSOR_VALUE_LABELS")
_LABELS_ON_SCREEN = 6
# A longer label file is not a list of classes.
_MOST_LABELS = 100_000


@dataclass(frozen=True, kw_only=True)
class IoTensor:
    """An input or output.

    Attributes:
        side: "input" or "output".
        name: Its name in the signature, or that of the tensor if the file has no signature.
        tensor_name: The name of the tensor.
        index: Its place among the inputs or outputs.
        shape: The dimensions; -1 for a dynamic one.
        dtype: The type in NumPy's spelling.
        scale: The real value of a quantized step; None if it is not quantized, or has no usable scale.
        zero_point: The quantized value of 0.0, or None.
        range: The smallest and largest value that it can represent, in real units. For float outputs, the range of the
            op that computes them, such as SOFTMAX; None if that is unlimited, and for float inputs and text.
        axes: The meaning of each dimension.
        axes_source: AXES_FROM_METADATA or AXES_GUESSED.
        content: image, audio, features, bounding_boxes or text, if the metadata says it; else None.
        color_space: RGB or GRAYSCALE, if the metadata says it.
        sample_rate: Of audio, in Hz, if the metadata says it.
        description: The description in the metadata; empty if there is none.
        stats: The smallest and largest values in the metadata, lists `min` and `max`; None if there are none.
        steps: The steps before the model for an input, after it for an output.
        steps_source: What recorded the steps before quantization: "tfq", "TFLITE_METADATA", or None if nothing did.
        pixel_shift: For 8-bit inputs: how an app can pass the bytes of an image without the steps; else None.
        labels: The names of the classes along the last axis, one for each; None if they are unknown.
        value_labels: The names of the classes whose numbers the output holds, such as a detector's; else None.
        labels_source: The name of the file after the flatbuffer, or "provided".
    """

    side: str
    name: str
    tensor_name: str
    index: int
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None
    range: tuple[float, float] | None
    axes: tuple[str, ...]
    axes_source: str
    content: str | None = None
    color_space: str | None = None
    sample_rate: int | None = None
    description: str = ""
    stats: Mapping[str, Any] | None = None
    steps: tuple[Step, ...] = ()
    steps_source: str | None = None
    pixel_shift: PixelShift | None = None
    labels: tuple[str, ...] | None = None
    value_labels: tuple[str, ...] | None = None
    labels_source: str | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether its values are integers that represent real numbers."""
        return self.scale is not None

    def to_dict(self) -> dict[str, Any]:
        """Return its entry of io.json."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        is_input = values.pop("side") == "input"
        steps = [step.to_dict() for step in values.pop("steps")]
        source, shift = values.pop("steps_source"), values.pop("pixel_shift")
        values |= {"shape": list(self.shape), "axes": list(self.axes)}
        values["range"] = None if self.range is None else list(self.range)
        for key in ("labels", "value_labels"):
            values[key] = None if values[key] is None else list(values[key])
        values["dynamic_axes"] = [at for at, size in enumerate(self.shape) if size == ABSENT]
        if is_input:
            return values | {
                "preprocessing": steps,
                "preprocessing_source": source,
                "pixel_shift": shift and shift.to_dict(),
            }
        return values | {"postprocessing": steps}

    def to_rows(self) -> list[tuple[str, str]]:
        """Return its lines for the terminal: the side in front of the first one, and nothing in front of the others."""
        sizes = ", ".join(
            f"{'?' if size == ABSENT else size} {axis}" for size, axis in zip(self.shape, self.axes, strict=True)
        )
        guess = "" if self.axes_source == AXES_FROM_METADATA else f" (axes {self.axes_source})"
        kind = f" {self.content}" if self.content else ""
        lines = [f"{shown(self.name)}: {self.dtype}{kind} [{sizes}]{guess}"]
        if self.range is not None and (self.is_quantized or self.dtype in FLOATS):
            lines.append(f"range {self.range[0]:.6g} to {self.range[1]:.6g}")
        lines += [f"{place + 1}. {step.formula}" for place, step in enumerate(self.steps)]
        if self.side == "input" and self.steps_source is None:
            lines.append("the file does not record how its data is preprocessed")
        if self.pixel_shift is not None:
            shift, error = self.pixel_shift.shift, self.pixel_shift.error
            how = "as they are" if shift == 0 else f"{'minus' if shift < 0 else 'plus'} {abs(shift)}"
            exact = "" if error == 0 else f", at most {error} step from the formula"
            lines.append(f"pixels from 0 to 255 can be passed {how}{exact}")
        for what, labels in (("labels", self.labels), ("labels of the values", self.value_labels)):
            if labels is not None:
                more = f", ... ({len(labels)})" if len(labels) > _LABELS_ON_SCREEN else ""
                lines.append(f"{what}: {', '.join(map(shown, labels[:_LABELS_ON_SCREEN]))}{more}")
        return [(self.side, lines[0]), *(("", line) for line in lines[1:])]


@dataclass(frozen=True, kw_only=True)
class IoTable:
    """The inputs and outputs of the main subgraph of a `.tflite` file.

    Attributes:
        signature: The key of its signature, or None if it has none.
        inputs: In the order of the main subgraph.
        outputs: In the order of the main subgraph.
        metadata: The file's TFLite Metadata; None if it has none, or it is damaged.
        files: Name -> size in bytes of the files after the flatbuffer.
        notes: What a reader should know, such as that the metadata is damaged.
    """

    signature: str | None
    inputs: tuple[IoTensor, ...]
    outputs: tuple[IoTensor, ...]
    metadata: ModelMetadata | None = None
    files: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of io.json."""
        about = self.metadata.to_dict() if self.metadata else {}
        return {
            "format": FORMAT,
            "signature": self.signature,
            "rounding": ROUNDING,
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
            "metadata": {key: about.get(key) for key in ("name", "description", "version", "author", "license")},
            "files": dict(self.files),
            "notes": list(self.notes),
        }

    def to_rows(self) -> list[tuple[str, str]]:
        """Return the lines of the table for the terminal, each with the word in front of it, which may be empty."""
        rows = [row for tensor in (*self.inputs, *self.outputs) for row in tensor.to_rows()]
        if self.metadata is not None:
            about = [self.metadata.name, self.metadata.version, self.metadata.author, self.metadata.license]
            rows.append(("metadata", "; ".join(shown(text) for text in about if text) or "without a name"))
            if self.metadata.description:
                rows.append(("", shown(self.metadata.description)))
        if self.files:
            sizes = [f"{shown(name)} {size:,} bytes" for name, size in self.files.items()]
            rows.append(("files", ", ".join(sizes)))
        return [*rows, *(("note", note) for note in self.notes)]

    def to_text(self) -> str:
        """Return the table for the terminal."""
        lines = [f"{name:8} {text}" for name, text in self.to_rows()]
        return "\n".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines)


def io_table(model: PathOrBytes, labels: Mapping[str, Sequence[str]] | None = None) -> IoTable:
    """Return the inputs and outputs of a `.tflite` file, which may be untrusted.

    Args:
        model: The file: its bytes or its path.
        labels: Output name -> the names of its classes; they replace those that the file has.

    Raises:
        FlatbufferError: The bytes are not a flatbuffer, or it is damaged.
    """
    data = content_of(model, "model")
    return table_of(data, read(data), labels)


def table_of(data: bytes, parsed: Model, labels: Mapping[str, Sequence[str]] | None = None) -> IoTable:
    """Return `io_table` of a file that is parsed already."""
    metadata, notes = _metadata(data, parsed)
    files = associated_files(data)
    recorded, note = recorded_preprocessing(data, parsed)
    if note:
        notes.append(note)
    if several := main_subgraph_note(parsed, "listed here"):
        notes.append(several)
    main = parsed.main_subgraph
    key = next((signature.key for signature in parsed.signatures if signature.subgraph == main.index), None)

    def ends(side: str) -> tuple[IoTensor, ...]:
        names = parsed.input_names if side == "input" else parsed.output_names
        tensors = main.input_tensors if side == "input" else main.output_tensors
        described = (metadata.inputs if side == "input" else metadata.outputs) if metadata else ()
        if described and len(described) != len(tensors):
            notes.append(f"the metadata describes {len(described)} {side}s, but the file has {len(tensors)}")
            described = ()
        results = []
        for index, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
            about = described[index] if described else None
            entry = _entry(side, name, index, tensor, about)
            if side == "input":
                steps, source = input_steps(parsed, tensor, recorded, about)
                entry = dataclasses.replace(
                    entry, steps=steps, steps_source=source, pixel_shift=pixel_shift(tensor, steps)
                )
            else:
                steps = output_steps(tensor, about)
                entry = dataclasses.replace(entry, steps=steps, range=entry.range or _computed_range(main, tensor))
                entry = _with_labels(entry, about, files, (labels or {}).get(name), notes)
            results.append(entry)
        return tuple(results)

    inputs, outputs = ends("input"), ends("output")
    return IoTable(
        signature=key,
        inputs=inputs,
        outputs=outputs,
        metadata=metadata,
        files={name: len(content) for name, content in files.items()},
        notes=tuple(notes),
    )


def label_lines(content: bytes) -> tuple[str, ...]:
    """Return the labels of a label file, one in each line; a line end after the last one is ignored."""
    lines = content.decode("utf-8", "backslashreplace").split("\n")
    return tuple(line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1]))


def _metadata(data: bytes, parsed: Model) -> tuple[ModelMetadata | None, list[str]]:
    offset, size = parsed.metadata.get(TFLITE_METADATA, (0, 0))
    if TFLITE_METADATA not in parsed.metadata:
        return None, []
    try:
        metadata = decode_model_metadata(data[offset : offset + size])
    except FlatbufferError as error:
        return None, [f"the TFLite Metadata cannot be read: {error}"]
    return metadata, [f"a part of the TFLite Metadata cannot be shown: {loss}" for loss in metadata.losses]


def _entry(side: str, name: str, index: int, tensor: Tensor, described: TensorMetadata | None) -> IoTensor:
    shape = tensor.shape_signature
    parameters = scale_of(tensor)
    named = described.dimension_names if described else ()
    is_named = len(named) == len(shape) > 0
    guess = _AXES[side].get(len(shape), tuple(f"axis {at}" for at in range(len(shape))))
    properties = described.properties if described else None
    stats = described.stats if described else None
    return IoTensor(
        side=side,
        name=name,
        tensor_name=tensor.name,
        index=index,
        shape=tuple(shape),
        dtype=tensor.dtype,
        scale=parameters[0] if parameters else None,
        zero_point=parameters[1] if parameters else None,
        range=_range(tensor, parameters),
        axes=tuple(named) if is_named else guess,
        axes_source=AXES_FROM_METADATA if is_named else AXES_GUESSED,
        content=_CONTENTS.get(type(properties)) if properties else None,
        color_space=properties.color_space if isinstance(properties, ImageProperties) else None,
        sample_rate=properties.sample_rate if isinstance(properties, AudioProperties) else None,
        description=described.description if described else "",
        stats=stats.to_dict() if stats else None,
    )


def _range(tensor: Tensor, parameters: tuple[float, int] | None) -> tuple[float, float] | None:
    if tensor.dtype == "bool":
        return (0.0, 1.0)
    try:
        limits = np.iinfo(np.dtype(tensor.dtype))
    except (TypeError, ValueError):
        return None
    scale, zero_point = parameters or (1.0, 0)
    if parameters is None and tensor.is_quantized:
        return None
    return (float((int(limits.min) - zero_point) * scale), float((int(limits.max) - zero_point) * scale))


def _computed_range(graph: Subgraph, tensor: Tensor) -> tuple[float, float] | None:
    """Return the range of the op that computes a float output, or None if it is unlimited."""
    op = graph.producers.get(tensor.index)
    if op is None or tensor.dtype not in FLOATS:
        return None
    if op.name == "DEQUANTIZE":
        source = graph.tensors[op.inputs[0]]
        return _range(source, scale_of(source)) if source.is_quantized else None
    return _OP_RANGES.get(op.name)


def _with_labels(
    entry: IoTensor,
    described: TensorMetadata | None,
    files: Mapping[str, bytes],
    provided: Sequence[str] | None,
    notes: list[str],
) -> IoTensor:
    """Return an output with its labels. A label file that does not fit the last axis is left out, with a note."""
    if provided is not None:
        return dataclasses.replace(entry, labels=tuple(provided), labels_source="provided")
    for file in described.associated_files if described else ():
        content = files.get(file.name)
        if file.type not in _LABEL_TYPES or content is None or content.count(b"\n") > _MOST_LABELS:
            continue
        lines = label_lines(content)
        if file.type == "TENSOR_VALUE_LABELS":
            return dataclasses.replace(entry, value_labels=lines, labels_source=file.name)
        width = entry.shape[-1] if entry.shape else 1
        if width == len(lines):
            return dataclasses.replace(entry, labels=lines, labels_source=file.name)
        notes.append(
            f"the label file {file.name!r} has {len(lines)} names, but the last axis of output {entry.name!r} has "
            f"{'no fixed length' if width == ABSENT else f'{width} values'}: its names are left out"
        )
    return entry

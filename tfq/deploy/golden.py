# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: inputs of a model, and the outputs that XNNPACK on this machine gives for them.

An app that feeds these inputs must get these outputs. One vector is one inference. Its files are raw arrays, in row
order and little-endian.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import data, progress
from tfq.backends import LocalBackend
from tfq.deploy.steps import apply_steps
from tfq.errors import InputError
from tfq.evaluation.inputs import decode_outputs, scale_of
from tfq.evaluation.pictures import brightness, png
from tfq.tflite import Model, Tensor

FORMAT = 1
TOP = 3
# Types of source values that a bundle stores unchanged; others become float32 (see `real_units`).
_SOURCE_TYPES = ("uint8", "int32", "int64")


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceExamples:
    """Examples before preprocessing.

    Args:
        inputs: {input name, or "x" for the only one: array (n, ...)}, in real units: pixels, samples, token numbers.
        labels: Class numbers (n,), or None.
        description: What they are, such as "the first examples of digits (test)".
        is_real: Whether they are data, not random numbers.
    """

    inputs: Mapping[str, NDArray]
    labels: NDArray | None
    description: str
    is_real: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class GoldenVectors:
    """The golden vectors of a bundle.

    Args:
        document: The content of golden/golden.json.
        files: {path in the bundle: content} of the arrays and pictures.
    """

    document: Mapping[str, Any]
    files: Mapping[str, bytes]

    @property
    def examples(self) -> Sequence[Mapping[str, Any]]:
        """The entries of the vectors in golden.json."""
        return self.document["examples"]


def golden_vectors(
    content: bytes,
    model: Model,
    source: SourceExamples,
    table: Mapping[str, Any],
    tolerance: Mapping[str, Mapping[str, Any]],
) -> GoldenVectors:
    """Run the model on examples, and return them as golden vectors.

    Args:
        content: The bytes of the `.tflite`. It runs in a child process.
        model: The same, parsed.
        source: The examples. If an inference has a batch of k, it uses k of them; there are as many vectors as full
            batches, at least one.
        table: The table of inputs and outputs, as in io.json. Its steps make the inputs from the examples.
        tolerance: {backend: {output name: largest difference to these outputs}}.

    Raises:
        InputError: The examples do not fit the model.
        ModelError: The model cannot run on this machine.
    """
    labels = {entry["name"]: entry["labels"] for entry in table["outputs"] if entry["labels"]}
    if not source.inputs:
        raise InputError(
            "the model has no inputs, so there are no golden vectors. Expected a model with at least one input",
            field="model",
            expected="at least one input",
            got=0,
        )
    groups = _groups(model, source)
    raw = data.bind_inputs(groups.inputs, model.input_names)
    tensors = model.main_subgraph.input_tensors
    sources = [
        [_source(array, groups, place, len(tensor.shape)) for array, tensor in zip(raw, tensors, strict=True)]
        for place in range(groups.count)
    ]
    samples = [_fed(model, table, arrays) for arrays in sources]
    with progress.stage("computing the golden vectors"):
        outputs = _run(content, samples)
    files: dict[str, bytes] = {}
    examples = []
    for place in range(groups.count):
        chosen = slice(place * groups.batch, (place + 1) * groups.batch)
        named = zip(model.input_names, sources[place], samples[place], strict=True)
        inputs = [_input(place, index, *rest, files) for index, rest in enumerate(named)]
        examples.append(
            {
                "label": _label(groups.labels, chosen, labels),
                "inputs": inputs,
                "outputs": _outputs(place, model, outputs[place], labels, files),
            }
        )
    document = {
        "format": FORMAT,
        "data": source.description,
        "is_real": source.is_real,
        "runtime": "LiteRT with XNNPACK on the machine that exported the bundle",
        "examples": examples,
        "tolerance": tolerance,
    }
    return GoldenVectors(document=document, files=files)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Groups:
    """Examples cut to complete inferences: `count` of them with `batch` examples each."""

    inputs: Mapping[str, NDArray]
    labels: NDArray | None
    count: int
    batch: int
    has_batch: bool


def _groups(model: Model, source: SourceExamples) -> _Groups:
    size = data.batch_size_of(model)
    batch = size or 1
    available = len(next(iter(source.inputs.values())))
    count = max(1, available // batch)
    # A batch that is larger than the data repeats it.
    chosen = np.arange(count * batch) % available
    return _Groups(
        inputs={name: array[chosen] for name, array in source.inputs.items()},
        labels=None if source.labels is None else source.labels[chosen],
        count=count,
        batch=batch,
        has_batch=size is not None,
    )


def _source(array: NDArray, groups: _Groups, place: int, rank: int) -> NDArray:
    """Return the values of one inference before preprocessing: a batch, or the input of an example.

    An input of several that share no batch dimension may start with a dimension of 1 that examples lack. It is added.
    """
    array = array[place * groups.batch : (place + 1) * groups.batch] if groups.has_batch else array[place]
    array = np.asarray(array)
    array = array[None] if array.ndim == rank - 1 else array
    values = array if array.dtype.name in _SOURCE_TYPES else data.real_units(array, "golden vectors")
    return np.asarray(values, order="C")


def _fed(model: Model, table: Mapping[str, Any], sources: Sequence[NDArray]) -> tuple[NDArray, ...]:
    """Return the inputs of one inference in the model's types."""
    results = []
    for entry, tensor, source in zip(table["inputs"], model.main_subgraph.input_tensors, sources, strict=True):
        where = f"the golden vector of input {entry['name']!r}"
        array = apply_steps(source, entry, where)
        if not data.shape_fits(array.shape, tensor.shape_signature):
            raise InputError(
                f"{where} has shape {list(array.shape)} after preprocessing, expected {list(tensor.shape_signature)}"
                f"{data.image_advice(tensor.shape_signature, array.shape)}",
                field="data",
                expected=tensor.shape_signature,
                got=array.shape,
            )
        results.append(np.asarray(array, order="C"))
    return tuple(results)


def _run(content: bytes, samples: list[tuple[NDArray, ...]]) -> list[tuple[NDArray, ...]]:
    return [tuple(np.asarray(output) for output in outputs) for outputs in LocalBackend().run_samples(content, samples)]


def _array(path: str, array: NDArray, files: dict[str, bytes]) -> dict[str, Any]:
    """Store an array as a file of the bundle; return its entry."""
    little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    files[path] = little_endian.tobytes()
    return {"file": path, "dtype": array.dtype.name, "shape": list(array.shape)}


def _input(place: int, index: int, name: str, source: NDArray, fed: NDArray, files: dict[str, bytes]) -> dict[str, Any]:
    stem = f"golden/{place}_input_{index}"
    entry = {"name": name, "source": _array(f"{stem}_source.bin", source, files), **_array(f"{stem}.bin", fed, files)}
    picture = _picture(source)
    if picture is not None:
        files[f"{stem}.png"] = picture
        entry["picture"] = f"{stem}.png"
    return entry


def _outputs(
    place: int,
    model: Model,
    outputs: tuple[NDArray, ...],
    labels: Mapping[str, Sequence[str]],
    files: dict[str, bytes],
) -> list[dict[str, Any]]:
    entries = []
    decoded = decode_outputs(model, outputs)
    for index, (name, output, real) in enumerate(zip(model.output_names, outputs, decoded, strict=True)):
        stem = f"golden/{place}_output_{index}"
        entry = {"name": name, **_array(f"{stem}.bin", output, files)}
        entry["decoded_file"] = f"{stem}_decoded.bin"
        _array(entry["decoded_file"], real.astype(np.float32), files)
        if name in labels and is_one_class(real.shape):
            entry["top"] = top_classes(real.reshape(-1, len(labels[name]))[0], labels[name])
        entries.append(entry)
    return entries


def is_one_class(shape: Sequence[int]) -> bool:
    """Check whether an output has one class for each example: not one for each pixel, token or box."""
    return all(length == 1 for length in shape[1:-1])


def top_classes(scores: NDArray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the classes with the highest scores, best first; of equal scores, the lower class number comes first.

    An infinite score is None, because JSON has no infinity.
    """
    order = np.argsort(-scores.astype(np.float64), kind="stable")[:TOP]
    return [
        {
            "index": int(index),
            "label": labels[int(index)],
            "score": float(scores[index]) if np.isfinite(scores[index]) else None,
        }
        for index in order
    ]


def _label(numbers: NDArray | None, chosen: slice, labels: Mapping[str, Sequence[str]]) -> Any:
    """Return the true class of an inference with one example: its name, or its number; None if it is unknown."""
    if numbers is None or chosen.stop - chosen.start != 1:
        return None
    number = data.without_one_hot(np.asarray(numbers[chosen]))[0]
    if not np.issubdtype(np.asarray(number).dtype, np.integer) or np.ndim(number):
        return None
    names = next(iter(labels.values()), ())
    return names[int(number)] if 0 <= int(number) < len(names) else int(number)


def _picture(source: NDArray) -> bytes | None:
    """Return a PNG of the first image for people to look at; None for other data."""
    if source.ndim != 4 or source.shape[3] not in (1, 3) or not source.size or not np.isfinite(source).all():
        return None
    image = source[0]
    return png(image if image.dtype == np.uint8 else np.rint(brightness(image)).astype(np.uint8))


def random_source(model: Model, table: Mapping[str, Any], count: int, seed: int) -> SourceExamples:
    """Return seeded random numbers in the range of the model's inputs, for a bundle without data.

    Quantized inputs cover their range, other float inputs 0 to 1, both after preprocessing. Integers without a scale
    are 0, because their range is unknown.
    """
    generator = np.random.default_rng(seed)
    size = data.batch_size_of(model)
    inputs = {}
    for entry, tensor in zip(table["inputs"], model.main_subgraph.input_tensors, strict=True):
        lengths = data.sample_shape(tensor.shape, size)
        shape = (count * (size or 1), *(1 if length in (None, -1) else int(length or 0) for length in lengths))
        if tensor.is_quantized or np.dtype(tensor.dtype).kind == "f":
            low, high = _real_range(entry["name"], tensor)
            values = generator.uniform(low, high, shape).astype(np.float32)
            inputs[entry["name"]] = _before(values, entry)
        else:
            inputs[entry["name"]] = np.zeros(shape, tensor.dtype)
    return SourceExamples(inputs=inputs, labels=None, description="random numbers, not real data", is_real=False)


def _before(values: NDArray, entry: Mapping[str, Any]) -> NDArray:
    """Return values that the steps of an input map to these values: the inverse of scaling and normalization."""
    for step in reversed(entry["preprocessing"]):
        if step["step"] == "scale_offset":
            values = (values - step["offset"]) / (step["scale"] or 1.0)
        elif step["step"] == "normalize" and "mean" in step:
            values = values * np.asarray(step["std"]) + np.asarray(step["mean"])
    return values.astype(np.float32)


def _real_range(name: str, tensor: Tensor) -> tuple[float, float]:
    if not tensor.is_quantized:
        return 0.0, 1.0
    scale, zero_point = scale_of(f"input {name!r}", tensor)
    limits = np.iinfo(np.dtype(tensor.dtype))
    return (limits.min - zero_point) * scale, (limits.max - zero_point) * scale

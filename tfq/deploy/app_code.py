# SPDX-License-Identifier: Apache-2.0
"""What sources for apps say about a model: its inputs and outputs, its golden vectors, and where it is from."""

import math
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq import artifacts, registry
from tfq.backends import BackendKind
from tfq.deploy.platform import BundleContents, Candidate, Problem
from tfq.deploy.templates import fill, read_source
from tfq.errors import InputError
from tfq.progress import printable
from tfq.provenance import package_versions
from tfq.tflite import Model, Tensor

# Differences of kernels, relative to the largest output: of float32, and of ops that quantize their float inputs (0.007
# was measured between x86-64 and ARM for dynamic-range models).
_FLOAT_TOLERANCE, _ROUNDED_TOLERANCE = 1e-4, 0.02
_HEADER_WIDTH = 114
# Differences of up to this many times the usual tolerance (one quantized value) may be rounding.
LARGE_DIFFERENCE = 8


@dataclass(frozen=True, kw_only=True)
class CodeTensor:
    """An input or output as sources describe it.

    Args:
        name: Its name in io.json.
        shape: Its shape; a dynamic batch is 1.
        dtype: The type of its values.
        scale: The step of its quantized values; None if it is not quantized.
        zero_point: The quantized value of 0.0.
        resize: Whether images are resized to its height and width first.
        factor: What values are multiplied by then.
        offset: What is added to the product.
        mean: What is subtracted instead: one number, or one for each channel. Empty if `factor` and `offset` apply.
        std: What the differences are divided by.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int = 0
    resize: bool = False
    factor: float = 1.0
    offset: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def code_inputs(contents: BundleContents) -> list[CodeTensor]:
    """Return the inputs of a model in the order of its main subgraph.

    Raises:
        InputError: Their preprocessing has a step that sources for apps do not have.
    """
    tensors = contents.parsed.main_subgraph.input_tensors
    return [
        _tensor(entry, tensor, **_preprocessing(entry))
        for entry, tensor in zip(contents.io["inputs"], tensors, strict=True)
    ]


def code_outputs(contents: BundleContents) -> list[CodeTensor]:
    """Return the outputs of a model in the order of its main subgraph."""
    tensors = contents.parsed.main_subgraph.output_tensors
    return [_tensor(entry, tensor) for entry, tensor in zip(contents.io["outputs"], tensors, strict=True)]


def _tensor(entry: Mapping[str, Any], tensor: Tensor, **preprocessing: Any) -> CodeTensor:
    scale = entry["scale"]
    return CodeTensor(
        name=entry["name"],
        shape=tuple(tensor.shape),
        dtype=entry["dtype"],
        scale=None if scale is None else float(scale),
        zero_point=0 if scale is None else int(entry["zero_point"]),
        **preprocessing,
    )


def _preprocessing(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing of an input as arguments of `CodeTensor`."""
    values: dict[str, Any] = {}
    for step in entry["preprocessing"]:
        match step["step"]:
            case "resize":
                values["resize"] = True
            case "scale_offset":
                values |= {"factor": step["scale"], "offset": step["offset"]}
            case "normalize" if step.get("mean") and step.get("std"):
                values |= {"mean": tuple(step["mean"]), "std": tuple(step["std"])}
            case "quantize" | "tokenize":
                pass  # the tensor's scale and zero point; the app's own tokenizer: see `_missing_steps`
            case unknown:
                raise InputError(
                    f"input {entry['name']!r} has the preprocessing step {unknown!r} ({step.get('formula')}), which "
                    "the sources for apps do not have: expected resize, scale_offset, normalize or quantize",
                    field="export.platform",
                    expected=("resize", "scale_offset", "normalize", "quantize"),
                    got=unknown,
                )
    return values


def _missing_steps(contents: BundleContents) -> list[str]:
    """Return a line for each step before or after the model that the sources leave to the app."""
    return [
        f"Not in this code: {step['formula']} ({side} {entry['name']})."
        for side, steps in (("input", "preprocessing"), ("output", "postprocessing"))
        for entry in contents.io[f"{side}s"]
        for step in entry.get(steps, ())
        if step["step"] in ("tokenize", "calibrate", "threshold")
    ]


def header(contents: BundleContents, tried: str) -> list[str]:
    """Return the lines of the comment at the top of a source: the model, the versions, and how far it was tried.

    They have no line separators of any language, and no backslash, which would continue a comment of C.
    """
    version = package_versions().get("tfq")
    paragraphs = [
        f"{shown_name(contents)}: model.tflite with SHA-256 {artifacts.sha256(contents.model)}",
        f"Exported by tfq {version}. {tried}",
        *_missing_steps(contents),
    ]
    plain = [" ".join(printable(paragraph).split()).replace("\\", "/") for paragraph in paragraphs]
    return [line for paragraph in plain for line in textwrap.wrap(paragraph, _HEADER_WIDTH)]


def interpreter_sources(
    contents: BundleContents,
    *,
    folder: str,
    suffix: str,
    tried: str,
    types: tuple[str, str],
    arguments: Callable[[CodeTensor], str],
    example: Callable[[Mapping[str, Any], Sequence[float], Sequence[str | None]], str],
) -> dict[str, bytes]:
    """Return the files of `folder`: Model, LiteRtModel and SelfTest in one language, and README.md.

    Args:
        contents: The parts of the bundle.
        folder: The folder of the templates and of the files.
        suffix: The suffix of the language's files, without the dot.
        tried: How far the sources were tried, for their headers.
        types: The names of the types of inputs and of outputs.
        arguments: Returns the arguments of the constructor of an input or output.
        example: (golden vector, tolerances, best labels) -> the golden vector in the language.
    """
    top = "\n".join(f"// {line}" for line in header(contents, tried))
    inputs, outputs = (
        "\n".join(f"    {name}({arguments(tensor)})," for tensor in tensors)
        for name, tensors in zip(types, (code_inputs(contents), code_outputs(contents)), strict=True)
    )
    limits = tolerances(contents)
    examples = "\n".join(example(item, limits, best_labels(contents, item)) for item in contents.golden.examples)
    parts = {
        f"Model.{suffix}": {"header": top, "inputs": inputs, "outputs": outputs},
        f"LiteRtModel.{suffix}": {"header": top},
        "README.md": {},
        f"SelfTest.{suffix}": {"header": top, "examples": examples},
    }
    return {
        f"{folder}/{name}": fill(read_source(f"{folder}/{name}"), values).encode() for name, values in parts.items()
    }


def shown_name(contents: BundleContents) -> str:
    """Return the name of the model as UTF-8 text. A file name may have bytes that are not UTF-8: they become "?"."""
    return contents.name.encode("utf-8", "replace").decode()


def float_literal(value: float) -> str:
    """Return the shortest decimal number that is this float32: "0.00390625", "1e-10"."""
    return str(np.float32(value))


def tolerances(contents: BundleContents) -> list[float]:
    """Return how far each output may be from its golden vectors on another CPU.

    In steps of the scale if the output is quantized: the largest measured difference of all CPU backends, but at least
    one step. Else in real units: at least one step of the tensor that the output is dequantized from; without one, 2%
    of the largest value if the model rounds somewhere, else float32's rounding.
    """
    result = []
    for entry, least in zip(contents.io["outputs"], least_tolerances(contents), strict=True):
        measured = [
            value
            for backend, outputs in contents.golden.document["tolerance"].items()
            if _runs_cpu_kernels(backend)
            for value in outputs.get(entry["name"], {}).values()
            if value is not None
        ]
        result.append(float(max([least, *measured])))
    return result


def large_recorded_differences(contents: BundleContents) -> list[str]:
    """Return a warning for each CPU backend whose recorded difference is more than rounding explains.

    `tolerances` accepts such a difference. Quantized outputs are checked: the difference is above LARGE_DIFFERENCE
    quantized values, and above the recorded one between TFLite's builtin kernels and XNNPACK.
    """
    yardstick = (contents.results.portability.get("yardstick") or {}).get("outputs") or []
    builtin = {output["name"]: output.get("max_abs_error_lsb") or 0 for output in yardstick}
    return [
        f"backend {backend} differs from XNNPACK by {difference['quantized']} quantized values in output {name!r}, "
        f"which is more than rounding: up to {LARGE_DIFFERENCE} are usual. The self-tests of apps accept this "
        f"difference, so they do not show that the outputs are right. Compare the accuracy of both in "
        f"{contents.results.record}"
        for backend, outputs in contents.golden.document["tolerance"].items()
        if _runs_cpu_kernels(backend)
        for name, difference in outputs.items()
        if (difference.get("quantized") or 0) > max(LARGE_DIFFERENCE, builtin.get(name, 0))
    ]


def least_tolerances(contents: BundleContents) -> list[float]:
    """Return `tolerances` without what backends measured: what two right implementations usually differ by."""
    tensors = contents.parsed.main_subgraph.output_tensors
    return [_least_tolerance(contents, index, tensor) for index, tensor in enumerate(tensors)]


def _runs_cpu_kernels(backend: str) -> bool:
    kind = registry.entries(BackendKind).get(backend.partition(":")[0])
    return kind is not None and kind.has_cpu_kernels


def _least_tolerance(contents: BundleContents, index: int, tensor: Tensor) -> float:
    if tensor.is_quantized:
        return 1.0
    if np.dtype(tensor.dtype).kind != "f":
        return 0.0
    files = [example["outputs"][index]["decoded_file"] for example in contents.golden.examples]
    values = np.abs(np.concatenate([np.frombuffer(contents.golden.files[file], "<f4") for file in files]))
    largest = float(values.max(initial=0, where=np.isfinite(values)))
    step = _step_before(contents.parsed, tensor)
    rounds = not step and _rounds(contents.parsed)
    return max((_ROUNDED_TOLERANCE if rounds else _FLOAT_TOLERANCE) * largest, step)


def _rounds(model: Model) -> bool:
    """Check whether an op of a model other than DEQUANTIZE reads or writes quantized values."""
    return any(
        graph.tensors[index].is_quantized
        for graph in model.subgraphs
        for op in graph.ops
        if op.name != "DEQUANTIZE"
        for index in op.tensors
    )


def _step_before(model: Model, tensor: Tensor) -> float:
    """Return the scale of the tensor that DEQUANTIZE makes this one from; 0 if there is none."""
    graph = model.main_subgraph
    for op in graph.ops:
        if op.name == "DEQUANTIZE" and graph.tensors[op.outputs[0]] is tensor:
            source = graph.tensors[op.inputs[0]]
            return source.scale[0] if source.is_quantized else 0.0
    return 0.0


def labeled_output(contents: BundleContents) -> int | None:
    """Return the index of the output whose classes labels.txt names, one for each example; None if there is none."""
    first = contents.golden.examples[0]["outputs"]
    places = [
        place
        for place, entry in enumerate(contents.io["outputs"])
        if contents.labels and tuple(entry["labels"] or ()) == contents.labels and first[place].get("top")
    ]
    return places[0] if places else None


def best_labels(contents: BundleContents, example: Mapping[str, Any]) -> list[str | None]:
    """Return the label of the best class of each golden output; None for all but `labeled_output`."""
    labeled = labeled_output(contents)
    return [
        output["top"][0]["label"] if place == labeled and output.get("top") else None
        for place, output in enumerate(example["outputs"])
    ]


def shared_tensor_problems(model: Model, title: str) -> list[Problem]:
    """Return a problem for each output that is also an input, or an earlier output: LiteRT's new API refuses them.

    `CompiledModel` returns wrong values for the outputs of a file that returns an input, and does not load a file that
    returns a tensor twice (ai-edge-litert 2.3.0, LiteRT.js 2.5.3). The interpreter runs both.
    """
    inputs, outputs = (list(getattr(model.main_subgraph, side)) for side in ("inputs", "outputs"))
    problems = []
    for place, (index, name) in enumerate(zip(outputs, model.output_names, strict=True)):
        other = "an input" if index in inputs else "an output" if index in outputs[:place] else ""
        if other:
            problems.append(
                Problem(
                    reason=f"output {name!r} is the same tensor as {other}, which {title} does not run",
                    advice="convert a model without this output",
                )
            )
    return problems


def check_tensors(dtypes: Collection[str], *, title: str) -> Callable[[Candidate], tuple[Problem, ...]]:
    """Return the check of a platform whose sources have only these types, and fixed shapes except for the batch."""

    def check(candidate: Candidate) -> tuple[Problem, ...]:
        return (*type_problems(candidate, dtypes, title), *shape_problems(candidate))

    return check


def type_problems(candidate: Candidate, dtypes: Collection[str], title: str) -> list[Problem]:
    """Return a problem for each input and output of another type."""
    return [
        Problem(
            reason=f"{side} {entry['name']!r} is {entry['dtype']}, and {title} has only {', '.join(dtypes)}",
            advice=_type_advice(side, entry["dtype"], dtypes),
        )
        for side, entry in _entries(candidate)
        if entry["dtype"] not in dtypes
    ]


def _type_advice(side: str, dtype: str, dtypes: Collection[str]) -> str:
    if dtype not in ("int8", "int16", "float16"):
        return f"let the model have {' or '.join(dtypes)} there"
    other = "uint8" if dtype == "int8" and "uint8" in dtypes else "float32"
    return f"convert with conversion.inference_{side}_type={other}"


def empty_problems(candidate: Candidate) -> list[Problem]:
    """Return a problem for each input and output without values: clients have no buffers of no bytes."""
    return [
        Problem(
            reason=f"{side} {entry['name']!r} has no values, shape {entry['shape']}, and LiteRT has no buffers without "
            "values",
            advice=f"convert a model without this {side}",
        )
        for side, entry in _entries(candidate)
        if 0 in entry["shape"]
    ]


def shape_problems(
    candidate: Candidate, *, allow_batch: bool = True, sides: Sequence[str] = ("input", "output")
) -> list[Problem]:
    """Return a problem for each input and output whose shape is dynamic; a dynamic batch may be allowed.

    If no input has a dynamic batch, the length of a dynamic first axis of an output depends on values, as for WHERE.
    """
    allow_batch = allow_batch and any(0 in entry["dynamic_axes"] for entry in candidate.io["inputs"])
    problems = empty_problems(candidate)
    for side, entry in _entries(candidate):
        if side in sides and any(axis or not allow_batch for axis in entry["dynamic_axes"]):
            shape = " x ".join("any" if length == -1 else str(length) for length in entry["shape"])
            problems.append(
                Problem(
                    reason=f"{side} {entry['name']!r} has the dynamic shape {shape}",
                    advice="convert a model with fixed shapes: set conversion.batch_size and conversion.input_shapes; "
                    "leave out ops whose output has a length that depends on the values",
                )
            )
    return problems


def _entries(candidate: Candidate) -> list[tuple[str, Mapping[str, Any]]]:
    return [(side[:-1], entry) for side in ("inputs", "outputs") for entry in candidate.io[side]]


def num_values(shape: Sequence[int]) -> int:
    """Return the number of values of a tensor."""
    return math.prod(shape)

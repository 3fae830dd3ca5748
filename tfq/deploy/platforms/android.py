# SPDX-License-Identifier: Apache-2.0
"""Android: Kotlin sources for an app that runs the model in LiteRT's interpreter."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfq.deploy.app_code import CodeTensor, check_tensors, float_literal, interpreter_sources
from tfq.deploy.platform import BundleContents, Platform, SelfTest
from tfq.registry import register

TRIED = (
    "tfq's tests compile Model.kt and SelfTest.kt with Kotlin 2.4.20 and reproduce golden vectors on a computer, "
    "without the model. They compile LiteRtModel.kt against declarations of Android's and LiteRT's classes. Nothing "
    "ran on Android."
)
DTYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")


def _sources(contents: BundleContents) -> dict[str, bytes]:
    return interpreter_sources(
        contents,
        folder="android",
        suffix="kt",
        tried=TRIED,
        types=("Input", "Output"),
        arguments=_arguments,
        example=_example,
    )


def _arguments(tensor: CodeTensor) -> str:
    """Return the arguments of a tensor's constructor in Kotlin."""
    arguments = [_string(tensor.name), f"listOf({', '.join(map(str, tensor.shape))})", f"DType.{tensor.dtype.upper()}"]
    if tensor.scale is not None:
        arguments.append(f"Quantization({float_literal(tensor.scale)}f, {tensor.zero_point})")
    if tensor.resize:
        arguments.append("resize = true")
    if (tensor.factor, tensor.offset) != (1.0, 0.0):
        arguments.append(f"scale = {float_literal(tensor.factor)}f, offset = {float_literal(tensor.offset)}f")
    if tensor.mean:
        mean, std = (", ".join(f"{float_literal(value)}f" for value in values) for values in (tensor.mean, tensor.std))
        arguments.append(f"mean = listOf({mean}), std = listOf({std})")
    return ", ".join(arguments)


def _example(example: Mapping[str, Any], limits: Sequence[float], best: Sequence[str | None]) -> str:
    """Return a golden vector as an `Example` in Kotlin."""
    inputs = "\n".join(f"                {_golden_input(entry)}," for entry in example["inputs"])
    outputs = "\n".join(
        f"                {_golden_output(*values)}," for values in zip(example["outputs"], limits, best, strict=True)
    )
    return (
        "        Example(\n"
        f"            listOf(\n{inputs}\n            ),\n"
        f"            listOf(\n{outputs}\n            ),\n"
        "        ),"
    )


def _golden_input(entry: Mapping[str, Any]) -> str:
    source = entry["source"]
    shape = ", ".join(map(str, source["shape"]))
    dtype = f"DType.{source['dtype'].upper()}"
    return f"GoldenInput({_string(source['file'])}, {dtype}, listOf({shape}), {_string(entry['file'])})"


def _golden_output(entry: Mapping[str, Any], limit: float, label: str | None) -> str:
    arguments = [_string(entry["file"]), _string(entry["decoded_file"]), f"{float_literal(limit)}f"]
    if label is not None:
        arguments.append(f"best = {_string(label)}")
    return f"GoldenOutput({', '.join(arguments)})"


def _string(text: str) -> str:
    """Return text as a string literal of Kotlin: other characters than printable ASCII as UTF-16 escapes."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\$':
        return "\\" + character
    if " " <= character <= "~":
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index : index + 2].hex()}" for index in range(0, len(units), 2))


register(
    Platform(
        name="android",
        help="Android: Kotlin for LiteRT's interpreter",
        title="the Kotlin code for Android",
        tried=TRIED,
        sources=_sources,
        check=check_tensors(DTYPES, title="the Kotlin code"),
        self_tests=(
            SelfTest(
                name="Kotlin",
                commands=(),
                not_run="it is part of the app: call SelfTest.failures in an instrumented test",
            ),
        ),
    )
)

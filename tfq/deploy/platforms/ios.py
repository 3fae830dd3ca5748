# SPDX-License-Identifier: Apache-2.0
"""iOS: Swift sources for an app that runs the model in LiteRT's interpreter."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfq.deploy.app_code import CodeTensor, check_tensors, float_literal, interpreter_sources
from tfq.deploy.platform import BundleContents, Platform, SelfTest
from tfq.registry import register

TRIED = (
    "tfq's tests check the syntax of the Swift sources (tree-sitter-swift). By hand, Model.swift and SelfTest.swift "
    "were compiled with Swift 6.0.3 on Linux, where they reproduced golden vectors without the model, and "
    "LiteRtModel.swift was type-checked against declarations of TensorFlowLite. Nothing ran on iOS."
)
DTYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")


def _sources(contents: BundleContents) -> dict[str, bytes]:
    return interpreter_sources(
        contents,
        folder="ios",
        suffix="swift",
        tried=TRIED,
        types=("ModelInput", "ModelOutput"),
        arguments=_arguments,
        example=_example,
    )


def _arguments(tensor: CodeTensor) -> str:
    """Return the arguments of a tensor's initializer in Swift."""
    arguments = [swift_string(tensor.name), f"[{', '.join(map(str, tensor.shape))}]", f".{tensor.dtype}"]
    if tensor.scale is not None:
        arguments.append(f"Quantization(scale: {float_literal(tensor.scale)}, zeroPoint: {tensor.zero_point})")
    if tensor.resize:
        arguments.append("resize: true")
    if (tensor.factor, tensor.offset) != (1.0, 0.0):
        arguments.append(f"scale: {float_literal(tensor.factor)}, offset: {float_literal(tensor.offset)}")
    if tensor.mean:
        mean, std = (", ".join(map(float_literal, values)) for values in (tensor.mean, tensor.std))
        arguments.append(f"mean: [{mean}], std: [{std}]")
    return ", ".join(arguments)


def _example(example: Mapping[str, Any], limits: Sequence[float], best: Sequence[str | None]) -> str:
    """Return a golden vector as an `Example` in Swift."""
    inputs = "\n".join(f"        {_golden_input(entry)}," for entry in example["inputs"])
    outputs = "\n".join(
        f"        {_golden_output(*values)}," for values in zip(example["outputs"], limits, best, strict=True)
    )
    return f"    Example(\n      inputs: [\n{inputs}\n      ],\n      outputs: [\n{outputs}\n      ]\n    ),"


def _golden_input(entry: Mapping[str, Any]) -> str:
    source = entry["source"]
    shape = ", ".join(map(str, source["shape"]))
    files = f"source: {swift_string(source['file'])}, type: .{source['dtype']}, shape: [{shape}]"
    return f"GoldenInput({files}, file: {swift_string(entry['file'])})"


def _golden_output(entry: Mapping[str, Any], limit: float, label: str | None) -> str:
    files = f"file: {swift_string(entry['file'])}, decoded: {swift_string(entry['decoded_file'])}"
    best = "nil" if label is None else swift_string(label)
    return f"GoldenOutput({files}, tolerance: {float_literal(limit)}, best: {best})"


def swift_string(text: str) -> str:
    """Return text as a string literal of Swift."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if " " <= character <= "~" else f"\\u{{{ord(character):x}}}"


register(
    Platform(
        name="ios",
        help="iOS: Swift for LiteRT's interpreter",
        title="the Swift code for iOS",
        tried=TRIED,
        sources=_sources,
        check=check_tensors(DTYPES, title="the Swift code"),
        self_tests=(
            SelfTest(
                name="Swift",
                commands=(),
                not_run="it is part of the app: call SelfTest.failures in a unit test",
            ),
        ),
    )
)

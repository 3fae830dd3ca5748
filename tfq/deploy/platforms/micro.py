# SPDX-License-Identifier: Apache-2.0
"""Microcontrollers: a C array, op resolver, arena and self-test for TensorFlow Lite Micro."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfq import tflite
from tfq.auditing import audit_model
from tfq.config import AuditConfig
from tfq.deploy.app_code import header, least_tolerances, tolerances
from tfq.deploy.platform import BundleContents, Candidate, Platform, Problem, SelfTest, SelfTestResult
from tfq.deploy.templates import fill, read_source
from tfq.deploy.tflm_measurement import Measurement, large_differences, measure, run_array
from tfq.errors import warn
from tfq.registry import register

TARGET = "tflm"
TRIED = (
    "tfq's tests compile the sources against declarations of TensorFlow Lite Micro, and the bytes of the C array "
    "reproduce golden vectors in its Python package on a computer. No microcontroller was tried."
)
# Methods of MicroMutableOpResolver whose names differ from those of the ops in more than underscores.
# Source: tensorflow/lite/micro/micro_mutable_op_resolver.h of tflite-micro, 2025.
_METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
_CUSTOM_METHODS = {"TFLite_Detection_PostProcess": "AddDetectionPostprocess"}
# Metadata that TensorFlow Lite Micro does not read, so that it does not take up flash.
_UNUSED_METADATA = (b"tfq", b"TFLITE_METADATA")
# The margin of the arena, for scratch memory that optimized kernels need and reference kernels do not.
_MARGIN, _LEAST_MARGIN = 1 / 8, 1024
# The golden vectors of the self-test must fit into a microcontroller's flash.
_MOST_GOLDEN_BYTES = 64 * 1024
_ARRAY_TEST = "C array in TensorFlow Lite Micro's Python package"
_TYPES = {"float32": "kFloat32", "int8": "kInt8", "uint8": "kUint8", "int16": "kInt16"}


def op_methods(model: tflite.Model) -> list[str]:
    """Return the methods of MicroMutableOpResolver that add the ops of a model, each once, sorted."""
    return sorted({_method(op) for graph in model.subgraphs for op in graph.ops})


def _method(op: tflite.Op) -> str:
    if op.custom_code:
        return _CUSTOM_METHODS[op.custom_code]
    return _METHODS.get(op.name) or "Add" + op.name.replace("_", " ").title().replace(" ", "")


def flash_model(content: bytes) -> bytes:
    """Return a `.tflite` without the metadata and the files that TensorFlow Lite Micro does not read."""
    model = tflite.unpack(content)
    unused = [entry for entry in model.metadata or [] if bytes(entry.name) in _UNUSED_METADATA]
    for entry in unused:
        model.buffers[entry.buffer].data = None
    model.metadata = [entry for entry in model.metadata or [] if entry not in unused] or None
    return tflite.pack(model, len(content))


def _sources(contents: BundleContents) -> dict[str, bytes]:
    content = flash_model(contents.model)
    document, read = contents.golden.document, contents.golden.files.__getitem__
    measured = measure(content, document, read)
    for message in large_differences(content, document, read, measured, least_tolerances(contents)):
        warn(message)
    lines = header(contents, TRIED)
    c_header = "\n".join(f"/* {line.replace('*/', '* /').replace('/*', '/ *')} */" for line in lines)
    cc_header = "\n".join(f"// {line}" for line in lines)
    parts = {
        "model_data.h": {"header": c_header},
        "model_data.c": {"header": c_header, "data": _model_data(content, len(contents.model))},
        "arena.h": {"header": c_header, "arena": _arena(measured)},
        "op_resolver.h": {"header": cc_header, "ops": _ops(op_methods(contents.parsed))},
        "golden_data.h": {"header": cc_header, "vectors": _vectors(contents, measured)},
        "main.cc": {"header": cc_header},
        "README.md": {},
    }
    return {f"micro/{name}": fill(read_source(f"micro/{name}"), values).encode() for name, values in parts.items()}


def _model_data(content: bytes, full_size: int) -> str:
    left_out = f"; {full_size - len(content):,} bytes of metadata in model.tflite are left out"
    return (
        f"/* {len(content):,} bytes{left_out if full_size > len(content) else ''}. */\n"
        f"alignas(16) const unsigned char g_model_data[] = {{\n{_bytes(content)}\n}};\n"
        f"const unsigned int g_model_data_size = {len(content)};"
    )


def _bytes(content: bytes) -> str:
    """Return bytes as rows of C numbers."""
    rows = (content[start : start + 16] for start in range(0, len(content), 16))
    return "\n".join(f"    0x{row.hex('/').replace('/', ', 0x')}," for row in rows) or "    0x00,"


def _arena(measured: Measurement) -> str:
    if measured.arena is None:
        reason = " ".join(measured.reason.split()).replace("*/", "* /")
        return (
            f"/* Not measured: {reason} */\n"
            "#ifndef MODEL_ARENA_BYTES\n"
            '#error "The arena was not measured: define MODEL_ARENA_BYTES"\n'
            "#endif"
        )
    return (
        f"/* Measured: {measured.arena:,} bytes, in a 64-bit build with reference kernels. The rest is a margin:\n"
        f" * an eighth, but at least {_LEAST_MARGIN:,} bytes, because optimized kernels (CMSIS-NN and others) need\n"
        " * scratch memory. Print arena_used_bytes() on the device, and reduce it. */\n"
        f"#define MODEL_ARENA_MEASURED_BYTES {measured.arena}\n"
        "#ifndef MODEL_ARENA_BYTES\n"
        f"#define MODEL_ARENA_BYTES {arena_with_margin(measured.arena)}\n"
        "#endif"
    )


def arena_with_margin(measured: int) -> int:
    """Return the bytes of the arena to reserve: a multiple of 16."""
    return -(-(measured + max(int(measured * _MARGIN), _LEAST_MARGIN)) // 16) * 16


def _ops(methods: Sequence[str]) -> str:
    calls = " &&\n         ".join(f"resolver.{method}() == kTfLiteOk" for method in methods)
    return (
        f"// Exactly the ops of the model.\nusing OpResolver = MicroMutableOpResolver<{len(methods)}>;\n\n"
        "// Adds the ops to the resolver. Returns false if one is refused.\n"
        f"inline bool AddOps(OpResolver& resolver) {{\n  return {calls};\n}}"
    )


def _vectors(contents: BundleContents, measured: Measurement) -> str:
    limits = tolerances(contents)
    if measured.differences:
        pairs = zip(limits, measured.differences, strict=True)
        limits = [max(limit, difference) if np.isfinite(difference) else limit for limit, difference in pairs]
    examples = contents.golden.examples[: num_golden_examples(contents)]
    arrays, tables = [], {}
    for side, name in (("inputs", "Input"), ("outputs", "Output")):
        rows = []
        for number, example in enumerate(examples):
            cells = []
            for index, entry in enumerate(example[side]):
                symbol = f"k{number}{name}{index}"
                content = contents.golden.files[entry["file"]]
                arrays.append(f"alignas(8) inline constexpr uint8_t {symbol}[] = {{\n{_bytes(content)}\n}};")
                kind, limit = _TYPES.get(entry["dtype"], "kOther"), limits[index] if side == "outputs" else 0.0
                cells.append(f"{{{symbol}, sizeof({symbol}), Type::{kind}, {float(np.float32(limit))}f}}")
            rows.append(f"    {{{', '.join(cells)}}},")
        tables[side] = f"inline constexpr Vector k{name}[kExamples][k{name}s] = {{\n" + "\n".join(rows) + "\n};"
    if measured.arena is None:
        differences = "not measured"
    else:
        differences = ", ".join(f"{difference:g}" for difference in measured.differences)
    counts = (
        f"// Largest difference of each output in TensorFlow Lite Micro's Python package: {differences}.\n"
        f"inline constexpr size_t kExamples = {len(examples)};  // of {len(contents.golden.examples)} in golden/\n"
        f"inline constexpr size_t kInputs = {len(examples[0]['inputs'])};\n"
        f"inline constexpr size_t kOutputs = {len(examples[0]['outputs'])};"
    )
    return "\n".join([counts, *arrays, tables["inputs"], tables["outputs"]])


def num_golden_examples(contents: BundleContents) -> int:
    """Return how many golden vectors the self-test has: those that fit into 64 KB, at least one."""
    total = count = 0
    for example in contents.golden.examples:
        entries = [*example["inputs"], *example["outputs"]]
        total += sum(len(contents.golden.files[entry["file"]]) for entry in entries)
        if count and total > _MOST_GOLDEN_BYTES:
            break
        count += 1
    return count


def _check(candidate: Candidate) -> tuple[Problem, ...]:
    """Return what the audit for TensorFlow Lite Micro finds, except custom ops that its resolver can add."""
    custom = {op.custom_code for graph in candidate.model.subgraphs for op in graph.ops if op.custom_code}
    messages: dict[str, list[str]] = {}
    for finding in audit_model(candidate.content, AuditConfig(require=TARGET)).failures:
        if finding.kind != "custom_op" or not custom <= set(_CUSTOM_METHODS):
            messages.setdefault(finding.kind, []).append(finding.message)
    return tuple(
        Problem(
            reason=first + (f" ({len(others)} more such ops)" if others else ""),
            advice=f"convert with conversion.target={TARGET}",
        )
        for first, *others in messages.values()
    )


def _test_array(folder: Path) -> SelfTestResult:
    return run_array(_ARRAY_TEST, folder)


register(
    Platform(
        name="micro",
        help="microcontrollers: C++ for TensorFlow Lite Micro",
        title="TensorFlow Lite Micro",
        tried=TRIED,
        sources=_sources,
        check=_check,
        self_tests=(
            SelfTest(name=_ARRAY_TEST, commands=(), run=_test_array),
            SelfTest(
                name="microcontroller",
                commands=(),
                not_run="it is part of the firmware: build micro/*.c and micro/*.cc with TensorFlow Lite Micro, run it",
            ),
        ),
    )
)
